"""From rows of text to a token file: `.bin`, loss mask, row starts and manifest.

What is in the loss: all of a text and its end token; the completion of a prompt and its end token;
the assistant's turns of a chat with the token that ends each. A prompt and its completion are
tokenised as one text, and what both tokenisations begin with in common is the prompt, so a token
that straddles the border is learned. A pair of answers becomes two rows of one prompt, split where
the shorter of the two common beginnings ends. Control tokens are put in as ids: text can never
become one.

Files appear under their names only when whole. The work is done natively, on all threads, and
goes on where a killed one stopped; with an `encoder` of Python's it is done row by row by the same
rules. Does not know: how a tokenizer or the writer works.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from .. import _native
from .._native.preparation import Progress
from ..chat import FROM_TOKENIZER
from ..dataset import TokenizedDataset, TokenizedWriter
from ..errors import DataError, FileAccessError
from . import provenance
from .native import NativeEncoder
from .sources import (
    Chat,
    Completion,
    Message,
    Preference,
    Skipped,
    Text,
    count_lines,
    read_rows,
)

LOSSES: Final = ("assistant", "completion", "all")
"""What is learned: assistant turns and completions; of a chat only the last answer; everything."""

Loss = Literal["assistant", "completion", "all"]

PASS_OVER: Final = (
    "Correct the line, or leave such lines out with --skip-invalid (in Python skip_invalid=True)."
)
NO_FORMAT = (
    "a chat needs a chat format, and the tokenizer's template is none this version knows. "
    "Name one with --chat-format (in Python chat_format)"
)


class Encoder(Protocol):
    """The part of a tokenizer this module needs.

    end_id: what ends a text. end_ids: all ids at which a model stops, `end_id` among them.
    """

    vocab_size: int
    end_id: int | None
    end_ids: frozenset[int]
    hash: str
    chat_format: str | None

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with the begin token where the tokenizer puts one."""

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        emotion: str | None,
        answer_next: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        learn_from: int = 0,
        last_only: bool = False,
    ) -> tuple[list[int], list[bool]]:
        """Ids and whether each is in the loss.

        answer_next: end where an answer would begin. learn_from: answers before this turn are not
        learned. last_only: only the last answer is.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens shown."""


@dataclass(kw_only=True)
class Split:
    """What went into one token file."""

    path: Path
    rows: int = 0
    tokens: int = 0
    tokens_in_loss: int = 0
    truncated: int = 0
    longest: int = 0
    without_end: int = 0
    """Rows whose last token in the loss is not the end token: cut rows only."""
    pairs: int = 0
    """Pairs of answers, two rows each; 0 unless this is preference data."""


@dataclass(kw_only=True)
class PrepareReport:
    """What `prepare` did, for a person and for a script."""

    train: Split
    evaluation: Split | None = None
    lines: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    dropped: int = 0
    """Rows in which no token was left to learn; pairs whose prompt filled the length, or whose
    answers were the same after the cut."""
    chat_format: str | None = None
    vocab_size: int = 0
    first_example: list[tuple[str, bool]] = field(default_factory=list)
    """The first row as pieces of text, each with whether it is in the loss."""
    continued_at: float = 0.0
    """Share of the sources an earlier, interrupted preparation had done."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def split(part: Split | None) -> dict[str, Any] | None:
            return None if part is None else {**vars(part), "path": str(part.path)}

        return {
            "train": split(self.train),
            "evaluation": split(self.evaluation),
            "lines": self.lines,
            "skipped": dict(self.skipped.counts),
            "skipped_examples": self.skipped.examples,
            "dropped": self.dropped,
            "chat_format": self.chat_format,
            "vocab_size": self.vocab_size,
            "continued_at": self.continued_at,
            "first_example": [{"text": text, "in_loss": kept} for text, kept in self.first_example],
        }


def prepare(
    sources: Sequence[str | Path],
    tokenizer: str | Path,
    output: str | Path,
    *,
    max_seq_len: int | None = None,
    eval_output: str | Path | None = None,
    eval_fraction: float = 0.0,
    seed: int = 42,
    skip_invalid: bool = False,
    stream: bool = False,
    chat_format: str | None = None,
    loss: Loss = "assistant",
    source_note: str | None = None,
    license_note: str | None = None,
    encoder: Encoder | None = None,
    threads: int = 0,
    resume: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    journal_ms: int = 1000,
) -> PrepareReport:
    """Tokenise JSONL files into `output` (a `.bin`) and, if asked, an evaluation file.

    tokenizer: a folder with `tokenizer.json`. chat_format: instead of what its template says.
    max_seq_len: rows longer than this many tokens keep their start. eval_fraction: share of the
    lines, drawn from `seed`, that goes to `eval_output` (default: `<output>_eval.bin`).
    skip_invalid: count unusable lines instead of stopping at the first. stream: no row starts, one
    stream of ids as ABI reads it; a mask is kept beside it all the same, so that prompts stay out
    of the loss. loss: what is learned, see `LOSSES`; a text is learned whole in any case.
    encoder: tokenises in Python instead, one row after the other.
    threads: how many to use; 0: one for each CPU. The bytes are the same for any number.
    resume: go on where a killed preparation with the same options and files stopped; it notes how
    far it is every `journal_ms` milliseconds. on_progress: called some times a second.

    Rows with `chosen` and `rejected` make preference data, two rows a line; they do not mix with
    other rows in one file.

    source_note, license_note: of sources without a side file `<source>.source.json` that says it.

    An existing file is replaced only when it is a data set with a manifest. Raises `DataError` with
    file and line, also for a row that would be learned without its end token, `MissingFileError`,
    `FileAccessError`, or `FormatError` for the tokenizer.
    """
    output = Path(output)
    asked = eval_fraction > 0.0 or eval_output is not None
    beside = output.with_name(output.stem + "_eval.bin")
    eval_output = Path(eval_output) if eval_output is not None else beside
    _check_outputs(output, eval_output if asked else None)
    if not 0.0 <= eval_fraction < 1.0:
        raise DataError(f"eval_fraction is {eval_fraction}; it must be at least 0 and below 1")
    if max_seq_len is not None and max_seq_len < 2:
        raise DataError(f"max_seq_len is {max_seq_len}; a row needs at least 2 tokens")
    if loss not in LOSSES:
        raise DataError(f"loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    origin = provenance.of_rows(sources, source=source_note, license=license_note)
    if encoder is None:
        native = NativeEncoder(Path(tokenizer), chat_format)
        runs_template = native.chat_format == FROM_TOKENIZER  # which is done in Python
        options: dict[str, Any] = {
            "sources": [str(path) for path in sources],
            "eval_fraction": eval_fraction,
            "seed": seed,
            "chat_format": None if runs_template else native.chat_format,
            "tools": native.shows_tools,
            "loss": loss,
            "max_seq_len": max_seq_len,
            "skip_invalid": skip_invalid,
            "stream": stream,
            "threads": threads,
            "continues": resume,
            "journal_ms": journal_ms,
            "source_note": origin.source,
            "license": origin.license,
            "commercial_use": origin.commercial_use,
            "notes": origin.notes,
        }
        held_out = eval_output if eval_fraction > 0.0 else None
        try:
            report = _prepare_natively(native, output, held_out, options, on_progress)
        except DataError as error:
            if not (runs_template and NO_FORMAT in str(error)):
                raise
            encoder = native  # there are chats among the rows
        else:
            for split in (report.train, report.evaluation):
                if split is not None:
                    provenance.record(split.path, origin)
            return report
    skipped = Skipped() if skip_invalid else None
    rows = read_rows(sources, skipped=skipped)
    first = next(rows, None)
    preference = first is not None and isinstance(first[2], Preference)
    if preference and stream:
        raise DataError(
            f"{first[1] if first else output}: pairs of answers cannot be a stream; "
            "leave out --stream (in Python stream)"
        )
    if preference and loss == "all":
        raise DataError(
            f"{first[1] if first else output}: of pairs only the answers are learned, never the "
            "prompt; leave out --loss all (in Python loss)"
        )
    total = count_lines(sources)
    held = _held_out(total, eval_fraction, seed)
    report = PrepareReport(
        train=Split(path=output),
        lines=total,
        chat_format=encoder.chat_format,
        vocab_size=encoder.vocab_size,
        skipped=skipped or Skipped(),
    )

    def writer(path: Path) -> TokenizedWriter:
        path.parent.mkdir(parents=True, exist_ok=True)
        return TokenizedWriter(
            path,
            rows=not stream,
            vocab_size=encoder.vocab_size,
            seed=seed if held else None,
            tokenizer_hash=encoder.hash,
            format=encoder.chat_format,
            source=origin.source,
            license=origin.license,
            preference=preference,
        )

    with contextlib.ExitStack() as stack:  # what is not finished leaves nothing behind
        targets = [(report.train, stack.enter_context(writer(output)))]
        if held:
            report.evaluation = Split(path=eval_output)
            opened = stack.enter_context(writer(eval_output))
            targets.append((report.evaluation, opened))
        for number, place, row in itertools.chain([first] if first else [], rows):
            if on_progress is not None:
                on_progress(_estimate(sources, number, total, report))
            split, into = targets[1 if number in held else 0]
            if isinstance(row, Preference) != preference:
                raise DataError(
                    f"{place}: rows with chosen and rejected do not mix with other rows; "
                    "prepare them as two files"
                )
            try:
                if isinstance(row, Preference):
                    _add_pair(encoder, row, place, max_seq_len, split, into, report)
                else:
                    _add(encoder, row, place, max_seq_len, split, into, report, stream, loss)
            except _UnusableRow as unusable:
                if skipped is None:
                    raise DataError(f"{place}: {unusable}. {PASS_OVER}") from None
                skipped.add(place, str(unusable))
        if on_progress is not None:
            on_progress(_estimate(sources, total, total, report))
        for split, _ in targets:
            if split.rows == 0:
                longer = ", or raise --max-seq-len (in Python max_seq_len)"
                raise DataError(
                    f"{', '.join(str(path) for path in sources)}: no row is left for {split.path} "
                    f"({report.skipped.total} unusable, {report.dropped} with nothing to learn). "
                    f"Check the source{longer if max_seq_len is not None else ''}."
                )
        for split, into in targets:
            into.finish()
            provenance.record(split.path, origin)
    return report


def _prepare_natively(
    encoder: NativeEncoder,
    output: Path,
    eval_output: Path | None,
    options: dict[str, Any],
    on_progress: Callable[[Progress], None] | None,
) -> PrepareReport:
    """The work, on the native side; Ctrl-C is heard meanwhile."""
    job = _native.preparation.open(
        encoder.tokenizer,
        {
            **options,
            "output": str(output),
            "eval_output": None if eval_output is None else str(eval_output),
            "tokenizer_hash": encoder.hash,
            "format_name": encoder.chat_format,
        },
    )
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _native.preparation.run(job)
        except BaseException as error:
            failures.append(error)

    # Not on this thread: while it is in a native call, it does not hear Ctrl-C.
    worker = threading.Thread(target=work, name="prepare", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(0.1)
            if on_progress is not None:
                on_progress(_native.preparation.progress(job))
    except BaseException:
        _native.preparation.cancel(job)
        worker.join()
        raise
    if failures:
        raise failures[0]
    told, done = _native.preparation.report(job), _native.preparation.progress(job)
    held = eval_output is not None and told["evaluation"]["rows"] > 0
    report = PrepareReport(
        train=Split(path=output, **told["train"]),
        evaluation=Split(path=eval_output, **told["evaluation"]) if held and eval_output else None,
        lines=told["lines"],
        skipped=Skipped(counts=Counter(told["skipped"]), examples=told["skipped_examples"]),
        dropped=told["dropped"],
        chat_format=encoder.chat_format,
        vocab_size=encoder.vocab_size,
        continued_at=done.bytes_before / done.bytes_total if done.bytes_total else 0.0,
    )
    where = eval_output if told["first_in_evaluation"] else output
    assert where is not None
    with TokenizedDataset.load(where) as data:
        count = told["first_tokens"]
        bits = data.mask_bits
        assert bits is not None
        kept = np.unpackbits(bits[: count // 8 + 1], count=count, bitorder="little")
        report.first_example = _pieces(
            encoder, data.tokens[:count].tolist(), kept.astype(bool).tolist()
        )
    return report


def _estimate(
    sources: Sequence[str | Path], number: int, total: int, report: PrepareReport
) -> Progress:
    """How far it is when only lines are counted: the bytes as if all lines were as long."""
    size = sum(Path(path).stat().st_size for path in sources)
    splits = [split for split in (report.train, report.evaluation) if split is not None]
    return Progress(
        bytes_done=size * number // max(total, 1),
        bytes_before=0,
        bytes_total=size,
        lines=number,
        rows=sum(split.rows for split in splits),
        tokens=sum(split.tokens for split in splits),
        counting=False,
    )


def _check_outputs(output: Path, eval_output: Path | None) -> None:
    """Refuse names that would cost somebody a file."""
    for path in (output, eval_output):
        if path is None:
            continue
        if path.suffix != ".bin":
            raise DataError(f"{path}: the name of a token file must end in .bin")
        if path.is_dir():
            raise FileAccessError(f"{path} is a folder; name a file in it, ending in .bin")
        if path.exists() and not path.with_suffix(".json").is_file():
            raise FileAccessError(
                f"{path} exists and has no manifest that says it is a data set; name another file, "
                "or delete it"
            )
    if eval_output is not None and output.resolve() == eval_output.resolve():
        raise DataError(
            f"{output} cannot be the training and the evaluation file at once; name another "
            "--eval-output (in Python eval_output)"
        )


class _UnusableRow(ValueError):
    """A row that cannot be used, while others of the file can."""


def _render(encoder: Encoder, messages: Sequence[Message], **options: Any) -> Any:
    try:
        return encoder.encode_chat(messages, **options)
    except DataError as error:
        raise _UnusableRow(str(error)) from None


def encode_row(
    encoder: Encoder,
    row: Text | Completion | Chat,
    loss: Loss = "assistant",
    *,
    check: bool = True,
) -> tuple[list[int], list[bool]]:
    """Ids of a row and whether each is in the loss.

    Raises `ValueError` with the reason, with `check` also when something would be learned without
    its end.
    """
    if isinstance(row, Text):
        ids = _ended(encoder, encoder.encode(row.text))
        mask = [True] * len(ids)
    elif isinstance(row, Completion):
        prompt = encoder.encode(row.prompt)
        ids = _ended(encoder, encoder.encode(row.prompt + row.completion))
        border = common_prefix(prompt, ids)
        mask = [at >= border for at in range(len(ids))]
    else:
        ids, mask = _encode_chat(encoder, row, loss)
    if check:
        check_ends(encoder, ids, mask)
    return ids, [True] * len(ids) if loss == "all" else mask


def _encode_chat(encoder: Encoder, row: Chat, loss: Loss) -> tuple[list[int], list[bool]]:
    if encoder.chat_format is None:
        raise ValueError(NO_FORMAT)
    ids, mask = _render(
        encoder,
        row.messages,
        emotion=row.emotion,
        tools=row.tools,
        learn_from=row.learn_from,
        last_only=loss == "completion" and not row.learn_from,
    )
    return ids, mask


def check_ends(encoder: Encoder, ids: Sequence[int], mask: Sequence[bool]) -> None:
    """Raises `ValueError` when a learned stretch does not end with an end token.

    A model that never saw the end of an answer does not stop by itself.
    """
    last = len(ids) - 1
    past: frozenset[int] = getattr(encoder, "past_end_ids", frozenset())
    for at, kept in enumerate(mask):
        if not kept or (at < last and mask[at + 1]) or ids[at] in encoder.end_ids:
            continue
        if at == last or ids[at + 1] not in past:
            raise ValueError(_no_end(encoder, ids[: at + 1]))


def _no_end(encoder: Encoder, learned: Sequence[int]) -> str:
    """What to say of learned ids without an end token."""
    shown = encoder.decode(learned[-8:])
    move = (
        "Choose another --chat-format (in Python chat_format)"
        if encoder.end_ids
        else "The tokenizer has none: set eos_token in its tokenizer_config.json"
    )
    return (
        f"what is learned ends with {shown!r} and not with an end token, so the model would not "
        f"learn to stop. {move}"
    )


def encode_pair(
    encoder: Encoder, row: Preference, *, check: bool = True
) -> tuple[int, list[int], list[int]]:
    """Length of the prompt, and ids of prompt and better, prompt and worse answer.

    As TRL: the prompt is what its own tokenisation and those with either answer have in common.
    Raises `ValueError` with the reason, with `check` also for an answer without its end token.
    """
    parts = (row.prompt, row.chosen, row.rejected)
    if (
        isinstance(row.prompt, str)
        and isinstance(row.chosen, str)
        and isinstance(row.rejected, str)
    ):
        prompt = encoder.encode(row.prompt)
        better = _ended(encoder, encoder.encode(row.prompt + row.chosen))
        worse = _ended(encoder, encoder.encode(row.prompt + row.rejected))
    else:
        assert not any(isinstance(part, str) for part in parts)
        if encoder.chat_format is None:
            raise ValueError(NO_FORMAT)
        turns, good, bad = ([turn for turn in part if not isinstance(turn, str)] for part in parts)
        shown: dict[str, Any] = {"emotion": row.emotion, "tools": row.tools}
        prompt, _ = _render(encoder, turns, answer_next=True, **shown)
        better, _ = _render(encoder, turns + good, learn_from=len(turns), **shown)
        worse, _ = _render(encoder, turns + bad, learn_from=len(turns), **shown)
    if better == worse:
        raise _UnusableRow("chosen and rejected become the same ids")
    border = min(common_prefix(prompt, better), common_prefix(prompt, worse))
    if border == len(better) or border == len(worse):
        raise _UnusableRow("an answer adds no token to its prompt")
    for answer in (better[border:], worse[border:]):  # a line break may follow the end token
        if check and encoder.end_ids.isdisjoint(answer):
            raise ValueError(_no_end(encoder, answer))
    return border, better, worse


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading ids are equal."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _ended(encoder: Encoder, ids: list[int]) -> list[int]:
    end = encoder.end_id
    if end is None or (ids and ids[-1] == end):
        return ids
    return [*ids, end]


def _held_out(total: int, fraction: float, seed: int) -> set[int]:
    """Numbers of the lines that go to the evaluation file."""
    if fraction == 0.0 or total < 2:
        return set()
    count = min(total - 1, math.ceil(fraction * total))
    order = _native.epoch_order(total, True, seed, 0)
    return {int(number) for number in order[:count]}


def _add(
    encoder: Encoder,
    row: Text | Completion | Chat,
    place: str,
    limit: int | None,
    split: Split,
    writer: TokenizedWriter,
    report: PrepareReport,
    stream: bool,
    loss: Loss,
) -> None:
    try:
        ids, mask = encode_row(encoder, row, loss)
    except _UnusableRow:
        raise
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    cut = limit is not None and len(ids) > limit
    if cut:
        ids, mask = ids[:limit], mask[:limit]
    if not any(mask[1:]):
        report.dropped += 1
        return
    if not report.first_example:
        report.first_example = _pieces(encoder, ids, mask)
    writer.append(np.array(ids, dtype=np.uint32), np.array(mask, dtype=np.bool_))
    # Nothing predicts the first token of a row; in a stream only the very first has none before it.
    split.tokens_in_loss += sum(mask if stream and split.tokens else mask[1:])
    split.rows += 1
    split.tokens += len(ids)
    split.truncated += cut
    split.longest = max(split.longest, len(ids))
    split.without_end += cut and mask[-1]


def _add_pair(
    encoder: Encoder,
    row: Preference,
    place: str,
    limit: int | None,
    split: Split,
    writer: TokenizedWriter,
    report: PrepareReport,
) -> None:
    try:
        border, better, worse = encode_pair(encoder, row)
    except _UnusableRow:
        raise
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if limit is not None and (border >= limit or better[:limit] == worse[:limit]):
        report.dropped += 1
        return
    for ids in (better, worse):
        kept = ids[:limit]
        mask = [at >= border for at in range(len(kept))]
        if not report.first_example:
            report.first_example = _pieces(encoder, kept, mask)
        writer.append(np.array(kept, dtype=np.uint32), np.array(mask, dtype=np.bool_))
        split.rows += 1
        split.tokens += len(kept)
        split.tokens_in_loss += sum(mask[1:])
        split.truncated += len(kept) < len(ids)
        split.without_end += len(kept) < len(ids)
        split.longest = max(split.longest, len(kept))
    split.pairs += 1


def _pieces(encoder: Encoder, ids: Sequence[int], mask: Sequence[bool]) -> list[tuple[str, bool]]:
    """Runs of ids with equal mask as text."""
    pieces: list[tuple[str, bool]] = []
    begin = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or mask[at] != mask[begin]:
            pieces.append((encoder.decode(ids[begin:at]), mask[begin]))
            begin = at
    return pieces


__all__ = [
    "LOSSES",
    "Chat",
    "Encoder",
    "Loss",
    "PrepareReport",
    "Progress",
    "Split",
    "check_ends",
    "common_prefix",
    "encode_pair",
    "encode_row",
    "prepare",
]
