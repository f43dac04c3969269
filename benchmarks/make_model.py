"""A GGUF of the 1.1 B shape with random weights in f16, to measure quantising and generation on.

``python benchmarks/make_model.py FILE.gguf`` writes 2.2 GB. Weights are normal numbers times 0.02;
quantising takes as long on them as on a trained model. The vocabulary is invented: llama.cpp's
server wants one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

WIDTH, INNER, LAYERS, HEADS, SHARED, VOCAB = 2048, 5632, 22, 32, 4, 32000


def main(path: Path) -> None:
    """Write the file."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"word{number}" for number in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["w o"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_vocab_size(VOCAB)
    shared = WIDTH // HEADS * SHARED
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (VOCAB, WIDTH)),
        ("output_norm.weight", (WIDTH,)),
        ("output.weight", (VOCAB, WIDTH)),
    ]
    for layer in range(LAYERS):
        shapes += [
            (f"blk.{layer}.{name}.weight", shape)
            for name, shape in (
                ("attn_norm", (WIDTH,)),
                ("ffn_norm", (WIDTH,)),
                ("attn_q", (WIDTH, WIDTH)),
                ("attn_k", (shared, WIDTH)),
                ("attn_v", (shared, WIDTH)),
                ("attn_output", (WIDTH, WIDTH)),
                ("ffn_gate", (INNER, WIDTH)),
                ("ffn_up", (INNER, WIDTH)),
                ("ffn_down", (WIDTH, INNER)),
            )
        ]
    for name, shape in shapes:
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, kind, int(np.prod(shape)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape in shapes:
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            numbers = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            writer.write_tensor_data(numbers.astype(np.float16))
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
