"""Small files of preference pairs for tests, written byte by byte, not with the code under test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

Pair = tuple[list[int], list[int], list[int]]


def write_pairs(path: Path, pairs: list[Pair]) -> Path:
    """Rows 2i and 2i + 1 are the prompt of pair i with the chosen and the rejected answer."""
    rows = [prompt + answer for prompt, *answers in pairs for answer in answers]
    bits = [
        position >= len(prompt)
        for prompt, *answers in pairs
        for answer in answers
        for position in range(len(prompt) + len(answer))
    ]
    ids = np.array([token for row in rows for token in row], dtype="<u4")
    ids.tofile(path)
    np.cumsum([0, *map(len, rows)]).astype("<u8").tofile(path.with_suffix(".idx"))
    np.packbits(bits, bitorder="little").tofile(path.with_suffix(".mask"))
    manifest = {
        "schema": "abi_train/token-bin/1",
        "kind": "preference",
        "count": int(ids.size),
        "rows": len(rows),
        "mask": path.with_suffix(".mask").name,
        "idx": path.with_suffix(".idx").name,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return path


def random_pairs(count: int, *, vocab: int, seed: int = 0, longest: int = 24) -> list[Pair]:
    """Pairs of random ids with prompts of 3 to 9 and answers of 2 to `longest`."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sizes = draw.integers(3, 10), draw.integers(2, longest), draw.integers(2, longest)
        prompt, good, bad = (draw.integers(0, vocab, size).tolist() for size in sizes)
        bad[0] = (good[0] + 1) % vocab
        found.append((prompt, good, bad))
    return found
