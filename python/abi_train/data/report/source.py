"""What a report is made of: a token file, or JSONL rows that are tokenised into a temporary one.

The temporary file is what `prepare` would write without cutting, and unlike `prepare` this reading
never stops at a bad row: it is counted. Does not know: what is measured.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataset import TokenizedDataset, TokenizedWriter
from ...errors import ArgumentError, DataError, FileAccessError, MissingFileError
from ..files import Bits, Ids, TokenFiles, is_set, manifest_path
from ..native import NativeEncoder
from ..prepare import Loss, encode_pair, encode_row
from ..sources import Preference, Skipped, count_lines, read_rows
from .text import FAMILIES, TextFacts, add_text
from .turns import TurnFacts, add_turns, chats_of, row_text
from .vocabulary import Vocabulary

TEXT_CHUNK = 1 << 20
"""Bytes of text looked at at once."""
DOCUMENT_BLOCK = 1 << 22

MIXED = "pairs of answers mixed with other rows"
NO_IDS = Ids([np.empty(0, dtype=np.uint32)], [0, 0])

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(kw_only=True)
class Material:
    """Ids, rows and mask of what is reported on, and what only the JSONL could tell.

    kind: `rows`, `pairs` or `stream`. starts: of a stream those of its documents, or the whole
    stream as one. lines: the line of each row (of a pair: of both its rows); None for a token file.
    text, turns: from the JSONL; None for a token file.
    """

    path: Path
    kind: str
    tokens: Ids
    starts: npt.NDArray[np.int64]
    mask: Bits | None
    manifest: dict[str, Any]
    vocabulary: Vocabulary | None
    lines: npt.NDArray[np.int64] | None = None
    text: TextFacts | None = None
    turns: TurnFacts | None = None
    skipped: Skipped = field(default_factory=Skipped)
    line_count: int = 0
    documents_known: bool = True

    @property
    def from_jsonl(self) -> bool:
        """Whether rows were tokenised for this report."""
        return self.lines is not None

    @property
    def own_formats(self) -> frozenset[str]:
        """Formats whose markers may stand in the text of the file: its own, if they are text."""
        name = str(self.manifest.get("format") or "")
        family = FAMILIES.get(name, name)
        return frozenset({family} & {"abbey", "mistral"})

    def learned(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """The mask of tokens `begin` to `end` as the file has it."""
        if self.mask is None:
            return np.ones(end - begin, dtype=np.bool_)
        return self.mask.at(begin, end).view(np.bool_)


def is_jsonl(path: Path) -> bool:
    """Whether a report must tokenise this file: it is neither a `.bin` nor a set's manifest."""
    return path.suffix != ".bin" and not (
        path.suffix == ".json" and is_set(path.with_suffix(".bin"))
    )


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    tokenizer: Path | None,
    chat_format: str | None = None,
    loss: Loss = "assistant",
    on_progress: Progress | None = None,
) -> Iterator[Material]:
    """What `path` holds, with the tokenizer if one is named.

    Raises `DataError`, `FileAccessError`, `FormatError`, and `ArgumentError` for JSONL without a
    tokenizer.
    """
    import tempfile

    if path.is_dir():
        raise FileAccessError(f"{path} is a folder; name a token file (.bin) or a JSONL file in it")
    if path.suffix == ".bin" and not path.exists() and is_set(path):
        path = manifest_path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise FileAccessError(f"{path} is not a regular file; save the rows to one first")
    if not is_jsonl(path):
        TokenizedDataset.load(path).close()  # the native reader has a sentence for every fault
        yield _token_file(path, TokenFiles.open(path), tokenizer)
        return
    if tokenizer is None:
        raise ArgumentError(
            f"{path} holds text: name a folder with tokenizer.json with --tokenizer (in Python "
            "tokenizer), or name a token file (.bin)"
        )
    encoder = NativeEncoder(tokenizer, chat_format)
    with tempfile.TemporaryDirectory(prefix="abi-report-") as folder:
        beside = Path(folder) / "rows.bin"
        material = _tokenised(path, beside, encoder, tokenizer, loss, on_progress)
        if not beside.exists():
            yield material
            return
        made = TokenFiles.open(beside)
        assert made.starts is not None
        material.tokens, material.mask = made.token_ids, made.mask
        material.starts = made.starts.astype(np.int64)
        yield material
        material.tokens, material.mask = NO_IDS, None  # the file goes away


def _token_file(path: Path, data: TokenFiles, tokenizer: Path | None) -> Material:
    manifest = data.manifest
    name = manifest.get("format")
    vocabulary = Vocabulary(tokenizer, name) if tokenizer is not None else None
    if data.starts is None:
        kind, (starts, known) = "stream", _documents(data.token_ids, vocabulary)
    else:
        kind = "pairs" if manifest.get("kind") == "preference" else "rows"
        starts, known = data.starts.astype(np.int64), True
    if kind == "pairs" and starts.size % 2 == 0:
        raise DataError(
            f"{path} holds pairs of answers, but an odd number of rows. Prepare the data again"
        )
    return Material(
        path=path,
        kind=kind,
        tokens=data.token_ids,
        starts=starts,
        mask=data.mask,
        manifest=manifest,
        vocabulary=vocabulary,
        documents_known=known,
    )


def _documents(tokens: Ids, vocabulary: Vocabulary | None) -> tuple[npt.NDArray[np.int64], bool]:
    """Where the documents of a stream start: behind each end token."""
    count = int(tokens.size)
    whole = np.array([0, count] if count else [0], dtype=np.int64)
    if vocabulary is None or vocabulary.eos is None:
        return whole, False
    ends = [
        np.flatnonzero(tokens[at : at + DOCUMENT_BLOCK] == vocabulary.eos) + at + 1
        for at in range(0, count, DOCUMENT_BLOCK)
    ]
    starts = np.unique(np.concatenate([whole, *ends]))
    return starts, starts.size > whole.size


def _tokenised(
    path: Path,
    output: Path,
    encoder: NativeEncoder,
    folder: Path,
    loss: Loss,
    on_progress: Progress | None,
) -> Material:
    skipped, text, turns = Skipped(), TextFacts(), TurnFacts()
    lines = array("q")
    chunk = _Chunk(text)
    size, total = path.stat().st_size, max(1, count_lines([path]))
    kind, used = "rows", 0
    with contextlib.ExitStack() as stack:
        writer: TokenizedWriter | None = None
        for number, place, row in read_rows([path], skipped=skipped):
            pair = isinstance(row, Preference)
            if writer is None:
                kind = "pairs" if pair else "rows"
                writer = stack.enter_context(
                    TokenizedWriter(output, vocab_size=encoder.vocab_size, preference=pair)
                )
            if pair != (kind == "pairs"):
                skipped.add(place, MIXED)
                continue
            try:
                if isinstance(row, Preference):
                    border, *answers = encode_pair(encoder, row, check=False)
                    made = [(ids, [at >= border for at in range(len(ids))]) for ids in answers]
                else:
                    made = [encode_row(encoder, row, loss, check=False)]
            except (ValueError, DataError) as error:
                skipped.add(place, str(error))
                continue
            used += 1
            line = int(place.rpartition(":")[2])
            index = len(lines)
            for ids, mask in made:
                if not ids:
                    continue
                writer.append(np.array(ids, dtype=np.uint32), np.array(mask, dtype=np.bool_))
                lines.append(line)
            for chat in chats_of(row):
                add_turns(turns, index, chat)
            words = row_text(row).encode("utf-8")
            chunk.add(words, index, len(made))
            if on_progress is not None:
                on_progress(size * (number + 1) // total, size)  # as if all lines were as long
        chunk.finish()
        if writer is not None and lines:
            writer.finish()
    if on_progress is not None:
        on_progress(size, size)
    return Material(
        path=path,
        kind=kind,
        tokens=NO_IDS,
        starts=np.zeros(1, dtype=np.int64),
        mask=None,
        manifest={"format": encoder.chat_format, "vocab_size": encoder.vocab_size},
        vocabulary=Vocabulary(folder, encoder.chat_format),
        lines=np.array(lines, dtype=np.int64),
        text=text,
        turns=turns,
        skipped=skipped,
        line_count=used + skipped.total,
    )


class _Chunk:
    """Texts of rows, gathered until they are worth a look."""

    def __init__(self, found: TextFacts) -> None:
        self.found = found
        self.parts: list[bytes] = []
        self.offsets = [0]
        self.first = 0

    def add(self, words: bytes, row: int, rows: int) -> None:
        """Take the text of a row, which stands for `rows` rows of the token file."""
        if not self.parts:
            self.first = row
        self.parts += [words, *[b""] * (rows - 1)]
        self.offsets += [self.offsets[-1] + len(words)] * rows
        if self.offsets[-1] >= TEXT_CHUNK:
            self.finish()

    def finish(self) -> None:
        """Look at what is there."""
        if self.parts:
            add_text(self.found, b"".join(self.parts), np.array(self.offsets), self.first)
        self.parts, self.offsets = [], [0]


def add_decoded_text(material: Material, found: TextFacts, budget: int) -> float:
    """Look at the text of a token file, decoded; returns the share of the tokens looked at.

    Of more than `budget` tokens it takes stretches of rows at even distances.
    """
    vocabulary, starts = material.vocabulary, material.starts
    total = int(starts[-1])
    if vocabulary is None or total == 0:
        return 0.0
    step = min(TEXT_CHUNK // 4, budget)
    count = -(-total // step)
    wanted = range(count)
    if total > budget:
        some = max(1, budget // step)
        wanted = range(0, count, -(-count // some))
    seen = 0
    next_row = 0
    for number in wanted:
        # Rows that begin in this stretch; of a row longer than a stretch, its beginning.
        first = max(int(np.searchsorted(starts, number * step, side="left")), next_row)
        last = int(np.searchsorted(starts, (number + 1) * step, side="left"))
        last = min(last, starts.size - 1)
        next_row = last
        if first >= last:
            continue
        begin = int(starts[first])
        end = min(int(starts[last]), begin + 2 * step)
        ids = material.tokens[begin:end]
        data = vocabulary.ordinary_bytes(ids)
        lengths = np.where(
            ids < vocabulary.size,
            vocabulary.byte_length[np.minimum(ids, vocabulary.size - 1)],
            0,
        )
        until = np.concatenate(([0], np.cumsum(lengths)))
        edges = np.minimum(starts[first : last + 1] - begin, end - begin)
        add_text(
            found,
            data,
            np.minimum(until[edges], len(data)),
            first,
            leave_out=material.own_formats,
        )
        seen += end - begin
    return seen / total
