"""gpt-oss in its real size with random weights, to measure what would need the real one.

``python benchmarks/make_gpt_oss.py FOLDER`` writes the shape of the 20 B model as a Hugging Face
folder of several files, 13.8 GB, experts in MXFP4 and the rest in bf16; ``--gguf FILE`` makes a
GGUF of it, 12.1 GB, and ``--drop-folder`` keeps only that (both are there for a moment). A few MB
of memory and as fast as the disk takes it: numbers are drawn and written piece by piece. The same
arguments give the same bytes.

Codes are any, scales 2^-9 to 2^-3, so that activations stay finite and reach the limit of 7 where
they are cut. Other weights have about the spread of a trained model. The tokenizer is that of the
tiny model, 2021 ids that speak harmony; the other rows of the embedding have no word.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from abi_train import _native
from abi_train.sample import HARMONY
from abi_train.sample.tiny import TinyShape

PIECE = 1 << 22
"""Numbers drawn at once."""
SHARD = 4_000_000_000
"""Most bytes of a file."""
SCALES = (118, 124)
Draw = np.random.Generator


@dataclass(frozen=True)
class Tensor:
    """One tensor to come. spread: of the numbers of a matrix or a bias; None for a norm; of codes
    and scales it says nothing."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    spread: float | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * (2 if self.dtype == "BF16" else 1)


def tensors_of(shape: TinyShape) -> Iterator[Tensor]:
    """All tensors of a model, layer by layer."""
    c, f = shape.hidden, shape.intermediate
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield Tensor("model.embed_tokens.weight", "BF16", (shape.vocabulary, c), 1.0)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield Tensor(at + "input_layernorm.weight", "BF16", (c,))
        for module, out, into in (
            ("q_proj", wide, c),
            ("k_proj", narrow, c),
            ("v_proj", narrow, c),
            ("o_proj", c, wide),
        ):
            yield Tensor(f"{at}self_attn.{module}.weight", "BF16", (out, into), into**-0.5)
            yield Tensor(f"{at}self_attn.{module}.bias", "BF16", (out,), 0.1)
        yield Tensor(at + "self_attn.sinks", "BF16", (shape.heads,), 1.0)
        yield Tensor(at + "post_attention_layernorm.weight", "BF16", (c,))
        yield Tensor(at + "mlp.router.weight", "BF16", (shape.experts, c), c**-0.5)
        yield Tensor(at + "mlp.router.bias", "BF16", (shape.experts,), 0.1)
        for module, out, into in (("gate_up_proj", 2 * f, c), ("down_proj", c, f)):
            experts, name = shape.experts, f"{at}mlp.experts.{module}"
            yield Tensor(f"{name}_blocks", "U8", (experts, out, into // 32, 16))
            yield Tensor(f"{name}_scales", "U8", (experts, out, into // 32))
            yield Tensor(f"{name}_bias", "BF16", (experts, out), 0.1)
    yield Tensor("model.norm.weight", "BF16", (c,))
    yield Tensor("lm_head.weight", "BF16", (shape.vocabulary, c), c**-0.5)


def numbers_of(tensor: Tensor, draw: Draw) -> Iterator[npt.NDArray[Any]]:
    """The tensor's elements as they are stored, in pieces."""
    for start in range(0, tensor.count, PIECE):
        count = min(PIECE, tensor.count - start)
        if tensor.name.endswith("_scales"):
            low, high = SCALES
            yield draw.integers(low, high + 1, count, dtype=np.uint8)
            continue
        if tensor.dtype == "U8":
            yield np.frombuffer(draw.bytes(count), dtype=np.uint8)
            continue
        bits = np.frombuffer(draw.bytes(2 * count), dtype=np.uint16)
        if tensor.spread is None:  # between 1 and 1.25
            yield 0x3F80 | (bits & 0x1F)
        else:  # of either sign, between 2^k and 2^(k + 1), whose root mean square is 1.53 x 2^k
            exponent = 127 + round(math.log2(tensor.spread / 1.53))
            yield (bits & 0x807F) | np.uint16(exponent << 7)


def write_folder(folder: Path, shape: TinyShape, seed: int) -> int:
    """Write the folder, which must not exist; the bytes of its tensors."""
    folder.mkdir(parents=True)
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors_of(shape):
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    places: dict[str, str] = {}
    draw = np.random.Generator(np.random.SFC64(seed))
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard.sort(key=lambda t: t.dtype == "U8")  # widest elements first
        with (folder / name).open("wb") as file:
            write_shard(file, shard, draw)
        places.update((tensor.name, name) for tensor in shard)
    total = sum(t.size for shard in shards for t in shard)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": places},
    )
    for file in HARMONY.iterdir():
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", config_of(shape))
    ends = {"bos_token_id": 2000, "eos_token_id": [2004, 2001, 2014], "pad_token_id": 2001}
    write_json(folder / "generation_config.json", ends)
    return total


def write_shard(file: BinaryIO, shard: list[Tensor], draw: Draw) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for t in shard:
        offsets = [at, at := at + t.size]
        header[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for t in shard:
        for piece in numbers_of(t, draw):
            file.write(piece.tobytes())


def config_of(shape: TinyShape) -> dict[str, Any]:
    """The published model's `config.json` but for the sizes and the ids of the tiny tokenizer."""
    config = shape.config("mxfp4")
    config["rope_scaling"] |= {"factor": 32.0, "original_max_position_embeddings": 4096}
    return config | {"max_position_embeddings": 131072, "initial_context_length": 4096}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Indented, keys in order."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, help="make a GGUF of it, too")
    parser.add_argument("--type", default="mxfp4_moe", help="mix of the GGUF (mxfp4_moe)")
    parser.add_argument("--drop-folder", action="store_true", help="remove the folder after")
    parser.add_argument("--seed", type=int, default=0)
    sizes = {
        "layers": 24,
        "experts": 32,
        "experts-per-token": 4,
        "hidden": 2880,
        "intermediate": 2880,
        "heads": 64,
        "kv-heads": 8,
        "head-dim": 64,
        "window": 128,
        "vocabulary": 201088,
    }
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=str(value))
    given = parser.parse_args(arguments)
    if given.folder.exists():
        parser.error(f"{given.folder} exists")
    if given.drop_folder and given.gguf is None:
        parser.error("--drop-folder would leave nothing without --gguf")
    shape = TinyShape(
        **{name.replace("-", "_"): vars(given)[name.replace("-", "_")] for name in sizes}
    )
    start = time.monotonic()
    size = write_folder(given.folder, shape, given.seed)
    told = time.monotonic() - start
    print(f"{given.folder}: {size / 1e9:.2f} GB in {told:.0f} s", file=sys.stderr)
    if given.gguf is None:
        return
    start = time.monotonic()
    size, _ = _native.export.gguf(given.folder, given.gguf, mix=given.type)
    told = time.monotonic() - start
    print(f"{given.gguf}: {size / 1e9:.2f} GB in {told:.0f} s", file=sys.stderr)
    if given.drop_folder:
        shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
