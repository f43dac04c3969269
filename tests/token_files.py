"""Small token files for tests, written byte by byte and not with the code under test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_stream(path: Path, *, tokens: int, vocab: int, seed: int = 0) -> Path:
    """A bare stream of random ids."""
    draw = np.random.default_rng(seed)
    draw.integers(0, vocab, tokens).astype("<u4").tofile(path)
    return path


def write_masked_stream(path: Path, *, tokens: int, vocab: int, learned_from: int) -> Path:
    """A stream with a mask: nothing before `learned_from`, and every third token behind it."""
    write_stream(path, tokens=tokens, vocab=vocab)
    position = np.arange(tokens)
    bits = (position >= learned_from) & (position % 3 == 0)
    np.packbits(bits, bitorder="little").tofile(path.with_suffix(".mask"))
    manifest = {
        "schema": "abi_train/token-bin/1",
        "count": tokens,
        "mask": path.with_suffix(".mask").name,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return path


def write_rows(
    path: Path, lengths: list[int], *, vocab: int, masked: float = 0.3, seed: int = 0
) -> Path:
    """Rows of these lengths with a random loss mask and a manifest."""
    draw = np.random.default_rng(seed)
    count = sum(lengths)
    draw.integers(0, vocab, count).astype("<u4").tofile(path)
    np.cumsum([0, *lengths]).astype("<u8").tofile(path.with_suffix(".idx"))
    bits = draw.random(count) >= masked
    np.packbits(bits, bitorder="little").tofile(path.with_suffix(".mask"))
    manifest = {
        "schema": "abi_train/token-bin/1",
        "count": count,
        "rows": len(lengths),
        "mask": path.with_suffix(".mask").name,
        "idx": path.with_suffix(".idx").name,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return path
