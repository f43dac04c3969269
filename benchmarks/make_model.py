"""A GGUF of a known shape with random weights in f16, to measure quantising and generation on.

``python benchmarks/make_model.py FILE.gguf`` writes 2.2 GB: the 1.1 B shape; with ``135m`` behind
it 270 MB, SmolLM2's. Weights are normal numbers times 0.02; quantising takes as long on them as on
a trained model. The vocabulary is invented: llama.cpp's server wants one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np


class Shape(NamedTuple):
    """What a model looks like; ``shared`` is the number of key and value heads."""

    width: int
    inner: int
    layers: int
    heads: int
    shared: int
    vocab: int
    tied: bool


SHAPES = {
    "1b": Shape(2048, 5632, 22, 32, 4, 32000, tied=False),
    "135m": Shape(576, 1536, 30, 9, 3, 49152, tied=True),
}


def main(path: Path, shape: Shape) -> None:
    """Write the file."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.shared)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"word{number}" for number in range(shape.vocab)])
    writer.add_token_types([1] * shape.vocab)
    writer.add_token_merges(["w o"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_vocab_size(shape.vocab)
    kv_width = shape.width // shape.heads * shape.shared
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (shape.vocab, shape.width)),
        ("output_norm.weight", (shape.width,)),
    ]
    if not shape.tied:
        shapes.append(("output.weight", (shape.vocab, shape.width)))
    for layer in range(shape.layers):
        shapes += [
            (f"blk.{layer}.{name}.weight", size)
            for name, size in (
                ("attn_norm", (shape.width,)),
                ("ffn_norm", (shape.width,)),
                ("attn_q", (shape.width, shape.width)),
                ("attn_k", (kv_width, shape.width)),
                ("attn_v", (kv_width, shape.width)),
                ("attn_output", (shape.width, shape.width)),
                ("ffn_gate", (shape.inner, shape.width)),
                ("ffn_up", (shape.inner, shape.width)),
                ("ffn_down", (shape.width, shape.inner)),
            )
        ]
    for name, size in shapes:
        kind = np.dtype(np.float32 if len(size) == 1 else np.float16)
        writer.add_tensor_info(name, size, kind, int(np.prod(size)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, size in shapes:
        if len(size) == 1:
            writer.write_tensor_data(np.ones(size, np.float32))
        else:
            numbers = rng.standard_normal(size, np.float32) * np.float32(0.02)
            writer.write_tensor_data(numbers.astype(np.float16))
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), SHAPES[sys.argv[2] if len(sys.argv) > 2 else "1b"])
