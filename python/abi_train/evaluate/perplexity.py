"""How surprised the model is by a text: exp of the mean negative log-probability of its tokens.

A plain text is read through windows of the model's context (at most `WINDOW` ids) that step half a
window on, so that each token but the first has at least half a window before it. Rows of a `.jsonl`
or `.bin` file stand alone, and what is in their loss counts; a stream of ids is a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..data.sources import Chat, Completion, Text, read_rows
from ..dataset import TokenizedDataset
from ..errors import DataError, FileAccessError, MissingFileError
from .scorer import Scorer, finite

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.uint32]

WINDOW: Final = 1024
MAX_TEXT_BYTES: Final = 256 << 20
BATCH: Final = 16
"""Windows handed to the engine at once."""


def evaluate(
    scorer: Scorer, path: Path, *, limit: int | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and details. limit: rows of a file of rows, else windows of a text.

    Raises `DataError` for an empty file, ids that are not the model's, or rows it cannot hold.
    """
    size = None
    cut = 0
    if path.suffix in (".bin", ".json"):
        pieces = _of_tokens(scorer, path, limit)
    elif path.suffix == ".jsonl":
        pieces = _of_rows(scorer, path, limit)
    else:
        text = _text(path)
        ids = scorer.tokenizer.encode(text)
        size = len(text.encode("utf-8"))
        parts = list(windows(ids, min(WINDOW, scorer.runner.context)))
        if limit is not None and limit < len(parts):
            parts, size = parts[:limit], None
        pieces = ((f"{path}", ids, first, None) for ids, first in parts)
    total, count = 0.0, 0
    batch: list[tuple[Ids, int]] = []
    masks: list[Any] = []

    def flush() -> None:
        nonlocal total, count
        for (values, _), mask in zip(scorer.runner.log_probs(batch), masks, strict=True):
            kept = values if mask is None else values[mask]
            total -= finite(kept)
            count += int(kept.size)
        batch.clear()
        masks.clear()

    for _place, ids, first, mask in pieces:
        if ids.size > scorer.runner.context:
            cut += 1
            ids = ids[: scorer.runner.context]
            mask = None if mask is None else mask[: ids.size - first]
        if ids.size <= first:
            continue
        batch.append((ids, first))
        masks.append(mask)
        if len(batch) == BATCH:
            flush()
    if batch:
        flush()
    if count == 0:
        raise DataError(f"{path}: nothing to predict in it; it needs two tokens, or rows with loss")
    mean = total / count
    scores = {"nll_per_token": mean, "tokens": float(count)}
    if mean < 700:  # more than that no float holds, nor does JSON
        scores = {"perplexity": math.exp(mean), **scores}
    if size:
        scores["bits_per_byte"] = total / math.log(2) / size
    details: dict[str, Any] = {"file": str(path)}
    if cut:
        details["cut_to_context"] = cut
    return scores, details


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes, more than {MAX_TEXT_BYTES}; take a part of "
                "it, or prepare it as a token file"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; name a text, .jsonl or .bin file") from None
    if not text.strip():
        raise DataError(f"{path}: empty; there is nothing to predict in it")
    return text


def windows(ids: Ids, width: int) -> Iterator[tuple[Ids, int]]:
    """Windows and where in each the new ids begin: together each id but the first, once.

    A window steps half its width on, so what is new in it has at least the other half before it.
    """
    done = 1
    while done < ids.size:
        begin = max(0, done - max(1, width // 2)) if done > 1 else 0
        end = min(begin + width, int(ids.size))
        yield ids[begin:end], done - begin
        done = end


Piece = tuple[str, "Ids", int, Any]


def _of_rows(scorer: Scorer, path: Path, limit: int | None) -> Iterator[Piece]:
    for number, (_, place, row) in enumerate(read_rows([path])):
        if limit is not None and number >= limit:
            return
        if isinstance(row, Chat):
            ids, mask = scorer.tokenizer.render_chat(
                [message.to_dict() for message in row.messages],
                format=scorer.chat_format,
                tools=row.tools or None,
                train=True,
                learn_from=row.learn_from,
            )
            yield place, ids, 1, mask[1:]
        elif isinstance(row, Text):
            yield place, scorer.tokenizer.encode(row.text), 1, None
        elif isinstance(row, Completion):
            ids = scorer.tokenizer.encode(row.prompt + row.completion)
            before = scorer.tokenizer.encode(row.prompt)
            shared = next(
                (i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b),
                min(ids.size, before.size),
            )
            yield place, ids, max(1, int(shared)), None
        else:
            raise DataError(f"{place}: a pair of answers; perplexity is of single texts")


def _of_tokens(scorer: Scorer, path: Path, limit: int | None) -> Iterator[Piece]:
    with TokenizedDataset.load(path) as data:
        if data.is_preference:
            raise DataError(f"{path}: holds pairs of answers; perplexity is of single texts")
        data.check_vocabulary(scorer.runner.vocab_size)
        rows = data.row_count
        if rows is None:
            width = min(WINDOW, scorer.runner.context)
            for number, (ids, first) in enumerate(windows(data.tokens, width)):
                if limit is not None and number >= limit:
                    return
                yield str(path), ids, first, None
            return
        mask = data.loss_mask
        starts = data.row_starts
        assert starts is not None
        for number in range(rows if limit is None else min(rows, limit)):
            begin = int(starts[number])
            ids = data.row(number)
            kept = None if mask is None else mask[begin + 1 : begin + ids.size]
            yield f"{path}: row {number}", ids, 1, kept
