"""Seconds to quantise a GGUF, and to make one from a model folder in one go.

``python benchmarks/quantise.py FILE.gguf [--llama-quantize PATH] [--json OUT]`` with a file of
`make_model.py`. Each program reads the file from the page cache and writes beside it, in turn;
`abi` syncs what it wrote to the disk and reads it back before it gives it its name, llama-quantize
does not. With llama-quantize the two files are compared byte by byte.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from abi_train import _native

PROGRAM = Path(_native.__file__).resolve().parents[1] / "bin" / "abi"
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def timed(command: Sequence[object]) -> dict[str, float]:
    """Wall and CPU seconds of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}


def into_the_cache(path: Path) -> None:
    """Read the file once."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def folder_of(source: Path) -> Path:
    """A Hugging Face folder with the tensors of the file, kept beside it."""
    folder = source.with_suffix("")
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(exist_ok=True)
    reader = gguf.GGUFReader(source)

    def key(name: str) -> Any:
        field = reader.get_field(f"llama.{name}")
        assert field is not None
        return field.contents()

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": key("vocab_size"),
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for tensor in reader.tensors:
        pieces = tensor.name.split(".")
        name = OUTER.get(tensor.name) or f"model.layers.{pieces[1]}.{PARTS[pieces[2]]}.weight"
        tensors[name] = np.array(tensor.data)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def one_pass(folder: Path, out: Path, mix: str) -> None:
    """Folder to GGUF, in a process of its own."""
    _native.export.gguf(folder, out, mix=mix, without_tokenizer=True, threads=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--types", default="q4_k_m,q8_0")
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--folder", action="store_true", help="only: folder to GGUF in one go")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.folder:
        folder = folder_of(args.source)
        into_the_cache(folder / "model.safetensors")
        script = "import sys; sys.path.insert(0, sys.argv[1]); import quantise; from pathlib import"
        script += " Path; quantise.one_pass(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])"
        here = Path(__file__).parent
        for mix in args.types.split(","):
            out = args.source.with_name("bench-folder.gguf")
            row = timed([sys.executable, "-c", script, here, folder, out, mix])
            rows.append({"what": f"folder to {mix}", "program": "abi", **row})
            out.unlink()
    else:
        into_the_cache(args.source)
        for mix in args.types.split(","):
            out = args.source.with_name("bench-ours.gguf")
            row = timed([PROGRAM, "quantize", args.source, out, mix, "--threads", 2])
            rows.append({"what": mix, "program": "abi", **row})
            if args.llama_quantize is not None:
                theirs = args.source.with_name("bench-theirs.gguf")
                row = timed([args.llama_quantize, args.source, theirs, mix.upper(), 2])
                same = filecmp.cmp(out, theirs, shallow=False)
                rows.append({"what": mix, "program": "llama-quantize", "same": same, **row})
                theirs.unlink()
            out.unlink()
    for row in rows:
        print(json.dumps(row))
    if args.json is not None:
        result = {"benchmark": "quantise", "command": " ".join(sys.argv), "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
