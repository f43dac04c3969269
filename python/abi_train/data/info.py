"""What a token file holds, in words and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import TokenizedDataset
from ..errors import FileAccessError
from . import provenance


def describe(
    path: str | Path, *, tokenizer: Path | None = None, rows: int = 0, verify: bool = False
) -> dict[str, Any]:
    """Counts, manifest and the first `rows` rows of a token file.

    verify: read everything and compare the checksums of the manifest. Raises `DataError`,
    `FileAccessError`.
    """
    path = Path(path)
    if path.is_dir():
        raise FileAccessError(f"{path} is a folder; name the token file (.bin) in it")
    if path.exists() and not path.is_file():
        raise FileAccessError(f"{path} is not a regular file; a token file (.bin) is needed")
    with TokenizedDataset.load(path) as data:
        tokens = data.tokens
        starts, mask = data.row_starts, data.loss_mask
        facts: dict[str, Any] = {
            "path": str(path),
            "bytes": 4 * len(data),
            "tokens": int(tokens.size),
            **({"files": data.file_count} if data.is_set else {}),
            "kind": ("stream" if starts is None else "pairs" if data.is_preference else "rows"),
        }
        if tokens.size:
            facts["largest id"] = int(tokens.max())
        if starts is not None:
            lengths = np.diff(starts)
            if data.is_preference:
                facts["pairs"] = int(lengths.size) // 2
            facts["rows"] = int(lengths.size)
            facts["shortest row"] = int(lengths.min())
            facts["median row"] = int(np.median(lengths))
            facts["longest row"] = int(lengths.max())
        if mask is not None:
            facts["in the loss"] = int(mask.sum())
        for key, value in (data.manifest or {}).items():
            if value is not None and key in ("vocab_size", "format", "seed", "source", "license"):
                facts[key] = value
        if data.manifest:
            origin = provenance.of_data(path)
            if origin.commercial_use is not None:
                facts["commercial use"] = "allowed" if origin.commercial_use else "not allowed"
            if origin.notes:
                facts["notes"] = " ".join(origin.notes)
        if verify:
            facts["checksums"] = f"{data.verify()} files agree"
        if rows:
            facts["examples"] = _examples(data, tokenizer, rows)
    return facts


def _examples(data: TokenizedDataset, tokenizer: Path | None, rows: int) -> list[dict[str, Any]]:
    from ..tokenizer import Tokenizer

    starts = data.row_starts
    if starts is None:
        ends = [(at * 64, (at + 1) * 64) for at in range(min(rows, len(data) // 64))]
    else:
        count = min(rows, starts.size - 1)
        ends = [(int(starts[at]), int(starts[at + 1])) for at in range(count)]
    shown = []
    opened = Tokenizer.load(tokenizer) if tokenizer is not None else None
    for number, (begin, end) in enumerate(ends):
        ids = data.tokens[begin:end]
        example: dict[str, Any] = {"row": number, "tokens": end - begin, "ids": ids.tolist()}
        if opened is not None:
            foreign = np.unique(ids[ids >= opened.vocab_size])
            if foreign.size:  # of another tokenizer; the ids say more than half a text would
                example["foreign"] = foreign.tolist()
            else:
                example["text"] = opened.decode(ids, skip_special=False)
        shown.append(example)
    if opened is not None:
        opened.close()
    return shown
