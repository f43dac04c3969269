"""One small folder in which everything is right; each case breaks one thing of a copy of it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 64
MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 2,
    "max_seq_len": 16,
    "grad_accum_steps": 1,
    "max_steps": 2,
    "threads": 1,
}
WORDS = ["What", " is", " it", "?", " Let", " us", " see", "."]


@dataclass(frozen=True)
class Case:
    """One wrong thing: how it is made, the command that meets it, what must be said."""

    name: str
    break_it: Callable[[Path], object]
    command: str
    words: tuple[str, ...]
    code: int = 1


def nothing(folder: Path) -> None:
    """The files are right; the command line is not."""


def cut(name: str, *, keep: float = 0.5) -> Callable[[Path], object]:
    """Keeps the first part of a file."""

    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return apply


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Puts other content into a file."""
    return lambda folder: (folder / name).write_bytes(
        content.encode("utf-8") if isinstance(content, str) else content
    )


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def change_json(name: str, **changes: Any) -> Callable[[Path], object]:
    """Sets keys of a JSON file; `...` removes one."""

    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        for key, value in changes.items():
            if value is ...:
                del values[key]
            else:
                values[key] = value
        (folder / name).write_text(json.dumps(values), encoding="utf-8")

    return apply


def ids(name: str, values: list[int]) -> Callable[[Path], object]:
    return lambda folder: np.array(values, "<u4").tofile(folder / name)


Tensors = dict[str, np.ndarray[Any, Any]]


def change_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    """Rewrites `model/model.safetensors` with an independent writer."""

    def apply(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = folder / "model" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        (folder / "model" / "checksums.json").unlink(missing_ok=True)

    return apply


def patch(name: str, at: int, content: bytes) -> Callable[[Path], object]:
    """Overwrites some bytes; a negative place counts from the end."""

    def apply(folder: Path) -> None:
        old = bytearray((folder / name).read_bytes())
        start = at if at >= 0 else len(old) + at
        old[start : start + len(content)] = content
        (folder / name).write_bytes(old)

    return apply


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def make_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of exactly `VOCAB` tokens would miss bytes: a tiny one of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {"<|endoftext|>": 0}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[letter] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def make_sound(folder: Path) -> Path:
    """Writes everything the cases start from."""
    from abi_train import Model, export

    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    (folder / "train.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    draw.integers(0, VOCAB, 600).astype("<u4").tofile(folder / "data.bin")
    draw.integers(0, VOCAB, 600).astype("<u4").tofile(folder / "rows.bin")
    np.arange(0, 601, 12, dtype="<u8").tofile(folder / "rows.idx")
    np.packbits(np.ones(600, bool), bitorder="little").tofile(folder / "rows.mask")
    manifest = {
        "schema": "abi_train/token-bin/1",
        "count": 600,
        "rows": 50,
        "mask": "rows.mask",
        "idx": "rows.idx",
    }
    (folder / "rows.json").write_text(json.dumps(manifest), encoding="utf-8")
    with Model.random(folder / "config.json", seed=1) as model:
        model.save(folder / "model")
    make_tokenizer(folder / "tokenizer")
    larger = {**MODEL, "vocab_size": 257}
    (folder / "talker.json").write_text(json.dumps(larger), encoding="utf-8")
    with Model.random(folder / "talker.json", seed=1) as model:
        model.save(folder / "talker")
    for path in (folder / "tokenizer").iterdir():
        (folder / "talker" / path.name).write_bytes(path.read_bytes())
    export.export_gguf(folder / "talker", folder / "talker.gguf", dtype="f32")
    rows = [{"prompt": f"Say {i}. ", "completion": f"It is {i}."} for i in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    recipe = {"model": "model", "data": "data.bin", "run_dir": "run", "training": SETTINGS}
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    (folder / "kept").mkdir()
    (folder / "kept" / "thesis.txt").write_text("years of work", encoding="utf-8")
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    """What every file below holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }
