"""What a model will learn from a file, seen before it does.

`examine` measures a token file, or JSONL rows with a tokenizer, and says what of it looks wrong;
the result is a `Report`, whose `to_dict` is the JSON of docs/data-report.md and which `page` turns
into one HTML file. Nothing is changed or written besides.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError
from ..prepare import Loss
from .example import Example, Token, tokens_of
from .findings import ERROR, SEVERITIES, Finding, Rules, plural, unit_hashes
from .histogram import Histogram, length_histogram, share_histogram
from .measure import Measures, measure
from .source import Material, Progress, add_decoded_text, opened
from .text import TextFacts

SCHEMA: Final = "abi_train/data-report/1"
PERCENTILES: Final = (1, 5, 25, 50, 75, 90, 95, 99)
TEXT_BUDGET: Final = 16 << 20
"""Tokens whose text is looked at; of more, stretches at even distances are taken."""
SHOWN_TOKENS: Final = 600
"""Tokens of a row that are shown."""
SHOWN_BESIDE: Final = 160
"""Tokens of a row that is shown beside a finding."""


@dataclass(kw_only=True)
class Report:
    """Everything about one file. Field by field as in docs/data-report.md."""

    path: Path
    kind: str
    from_jsonl: bool
    manifest: dict[str, Any]
    rows: int
    tokens: int
    tokens_in_loss: int
    targets_possible: int
    lengths: dict[str, Any]
    length_histogram: Histogram
    loss_histogram: Histogram
    answers: dict[int, int]
    turns: dict[int, int]
    roles: dict[str, int]
    vocabulary: dict[str, Any]
    text: TextFacts | None
    text_share: float
    max_seq_len: dict[str, Any] | None
    pairs: dict[str, Any] | None
    lines: int | None
    skipped: int
    findings: list[Finding]
    unchecked: dict[str, str]
    examples: list[Example]
    finding_examples: dict[int, Example]
    extremes: dict[str, list[tuple[int, int]]]
    evaluation: Path | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == ERROR for finding in self.findings)

    @property
    def share_in_loss(self) -> float:
        """Tokens in the loss among those that could be: all but the first of each row."""
        return self.tokens_in_loss / self.targets_possible if self.targets_possible else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as docs/data-report.md describes them."""
        text = None
        if self.text is not None:
            letters = sum(self.text.scripts.values())
            text = {
                "bytes": self.text.bytes,
                "share_looked_at": round(self.text_share, 6),
                "scripts": {
                    name: round(count / letters, 6)
                    for name, count in self.text.scripts.most_common()
                },
                "code_rows": self.text.code_rows,
                "code_share": round(self.text.code_bytes / max(1, self.text.bytes), 6),
            }
        said = ("format", "source", "license", "commercial_use", "vocab_size", "tokenizer_hash")
        return {
            "schema": SCHEMA,
            "file": {
                "path": str(self.path),
                "kind": self.kind,
                "from_jsonl": self.from_jsonl,
                "lines": self.lines,
                "lines_skipped": self.skipped,
                **{key: self.manifest.get(key) for key in said},
            },
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_in_loss": self.tokens_in_loss,
            "share_in_loss": round(self.share_in_loss, 6),
            "lengths": {**self.lengths, "histogram": self.length_histogram.to_dict()},
            "loss_by_row": self.loss_histogram.to_dict(),
            "answers_by_row": {str(key): value for key, value in self.answers.items()},
            "turns_by_row": {str(key): value for key, value in self.turns.items()},
            "roles": self.roles,
            "longest": [{"row": row, "tokens": size} for row, size in self.extremes["longest"]],
            "shortest": [{"row": row, "tokens": size} for row, size in self.extremes["shortest"]],
            "vocabulary": self.vocabulary,
            "text": text,
            "max_seq_len": self.max_seq_len,
            "pairs": self.pairs,
            "evaluation": None if self.evaluation is None else str(self.evaluation),
            "findings": [finding.to_dict() for finding in self.findings],
            "not_checked": self.unchecked,
            "examples": [example.to_dict() for example in self.examples],
            "seconds": round(self.seconds, 3),
        }


def examine(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    eval_path: str | Path | None = None,
    max_seq_len: int | None = None,
    chat_format: str | None = None,
    loss: Loss = "assistant",
    rows: int = 3,
    show: Sequence[int] = (),
    text_budget: int | None = TEXT_BUDGET,
    on_progress: Progress | None = None,
) -> Report:
    """Measure a token file (`.bin`), or the rows of a JSONL file with a tokenizer.

    tokenizer: folder with `tokenizer.json`; a token file can do without, and then no text is looked
    at. eval_path: rows of it that `path` holds too are a finding; by default `<path>_eval.bin` if
    it is there. max_seq_len: count what a run with it would cut. chat_format, loss: for JSONL, as
    for `prepare`. rows: how many rows from the start become examples; show: or these rows.
    text_budget: tokens whose text is looked at, None for all. on_progress: called with bytes done
    and in all while JSONL is read.

    Raises `ArgumentError`, `DataError`, `FileAccessError`, `FormatError`.
    """
    begun = time.monotonic()
    path = Path(path)
    folder = None if tokenizer is None else Path(tokenizer)
    if max_seq_len is not None and max_seq_len < 2:
        raise ArgumentError(f"max_seq_len is {max_seq_len}; a row needs at least 2 tokens")
    if eval_path is None and path.name:
        beside = path.with_name(path.stem + "_eval.bin")
        eval_path = beside if path.suffix == ".bin" and beside.is_file() else None
    with opened(
        path, tokenizer=folder, chat_format=chat_format, loss=loss, on_progress=on_progress
    ) as material:
        measures = _measured(material)
        text, share = _text(material, text_budget)
        rules = Rules(
            material, measures, text or TextFacts(), text_share=share, max_seq_len=max_seq_len
        )
        findings = rules.all()
        if eval_path is not None:
            eval_path = Path(eval_path)
            overlap = _overlap(
                material, measures, eval_path, folder, chat_format=chat_format, loss=loss
            )
            if overlap is not None:
                findings.append(overlap)
                findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        report = _report(material, measures, findings, text, share, max_seq_len)
        report.evaluation = eval_path
        report.examples = _examples(material, measures, show or range(rows), bool(show))
        wanted = [row for finding in findings for row in finding.rows[:2]]
        wanted += [row for kind in report.extremes.values() for row, _ in kind[:1]]
        some = _examples(material, measures, dict.fromkeys(wanted), False, SHOWN_BESIDE)
        report.finding_examples = {example.row: example for example in some}
        report.unchecked = _unchecked(report, material, eval_path)
        if material.vocabulary is not None:
            material.vocabulary.close()
    report.seconds = time.monotonic() - begun
    return report


def _measured(material: Material) -> Measures:
    said = material.manifest.get("vocab_size")
    size = said if isinstance(said, int) and material.vocabulary is None else None
    return measure(
        material.tokens,
        material.starts,
        material.mask,
        material.vocabulary,
        vocab_size=size,
        stream=material.kind == "stream",
    )


def _text(material: Material, budget: int | None) -> tuple[TextFacts | None, float]:
    """What the text holds, and the share of the tokens it was read of."""
    if material.text is not None:
        return material.text, 1.0
    if material.vocabulary is None:
        return None, 0.0
    found = TextFacts()
    total = max(1, int(material.starts[-1]))
    return found, add_decoded_text(material, found, total if budget is None else max(1, budget))


def _overlap(
    material: Material,
    measures: Measures,
    eval_path: Path,
    folder: Path | None,
    *,
    chat_format: str | None,
    loss: Loss,
) -> Finding | None:
    """Rows of the evaluation file that are among those of this one."""
    with opened(eval_path, tokenizer=folder, chat_format=chat_format, loss=loss) as other:
        if other.kind != material.kind or other.kind == "stream":
            return None
        theirs = _measured(other)
        if other.vocabulary is not None:
            other.vocabulary.close()
        pairs = material.kind == "pairs"
        known = np.isin(unit_hashes(theirs.hashes, pairs), unit_hashes(measures.hashes, pairs))
        exact = int(known.sum())
        if material.vocabulary is not None:
            known |= np.isin(
                unit_hashes(theirs.letter_hashes, pairs), unit_hashes(measures.letter_hashes, pairs)
            ) & ((theirs.letters[:: 2 if pairs else 1]) > 0)
        count = int(known.sum())
        if count == 0:
            return None
        lines = other.lines
        rows = [int(row) * (2 if pairs else 1) for row in np.flatnonzero(known)[:8]]
        size = max(1, known.size)
        what = "pair" if pairs else "row"
        return Finding(
            code="eval-overlap",
            severity="warn",
            count=count,
            row_count=0,
            message=f"{plural(count, what)} of {eval_path.name} ({count / size:.1%}) stand in this "
            f"file too, {exact:,} token for token: the evaluation would flatter.",
            next="Take them out of one of the two; the row numbers are those of the evaluation "
            "file.",
            detail={
                "eval_rows": rows,
                "eval_lines": [] if lines is None else [int(lines[row]) for row in rows],
                "exact": exact,
            },
        )


def _report(
    material: Material,
    measures: Measures,
    findings: list[Finding],
    text: TextFacts | None,
    share: float,
    max_seq_len: int | None,
) -> Report:
    lengths = measures.lengths
    stream = material.kind == "stream"
    vocabulary = material.vocabulary
    known = vocabulary is not None
    size = vocabulary.size if vocabulary is not None else material.manifest.get("vocab_size")
    turns = material.turns
    possible = int(lengths.sum()) - (1 if stream else measures.rows)
    order = np.argsort(lengths, kind="stable")
    return Report(
        path=material.path,
        kind=material.kind,
        from_jsonl=material.from_jsonl,
        manifest=material.manifest,
        rows=measures.rows,
        tokens=int(lengths.sum()),
        tokens_in_loss=measures.tokens_in_loss,
        targets_possible=max(0, possible),
        lengths=_spread(lengths),
        length_histogram=length_histogram(lengths),
        loss_histogram=share_histogram(measures.trained, lengths - 1),
        answers=_by_count(measures.stretches),
        turns=dict(sorted(turns.counts.items())) if turns is not None else {},
        roles=dict(turns.roles) if turns is not None else {},
        vocabulary={
            "size": size,
            "used": int(np.count_nonzero(measures.id_counts)) if known else None,
            "largest_id": measures.largest_id if measures.rows else None,
        },
        text=text,
        text_share=share,
        max_seq_len=_limit(measures, max_seq_len),
        pairs=_pairs(material, measures),
        lines=material.line_count if material.from_jsonl else None,
        skipped=material.skipped.total,
        findings=findings,
        unchecked={},
        examples=[],
        finding_examples={},
        extremes={
            "longest": [(int(row), int(lengths[row])) for row in order[::-1][:3]],
            "shortest": [(int(row), int(lengths[row])) for row in order[:3]],
        },
    )


def _spread(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    if values.size == 0:
        return {"min": None, "max": None, "mean": None, "percentiles": {}}
    at = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {
        "min": int(values.min()),
        "max": int(values.max()),
        "mean": round(float(values.mean()), 3),
        "percentiles": {str(name): int(value) for name, value in zip(PERCENTILES, at, strict=True)},
    }


def _by_count(values: npt.NDArray[np.int64]) -> dict[int, int]:
    numbers, counts = np.unique(values, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _limit(measures: Measures, limit: int | None) -> dict[str, Any] | None:
    if limit is None:
        return None
    over = measures.lengths > limit
    count = int(np.count_nonzero(over))
    return {
        "value": limit,
        "rows_over": count,
        "share_over": round(count / max(1, measures.rows), 6),
        "tokens_cut": int((measures.lengths[over] - limit).sum()),
    }


def _pairs(material: Material, measures: Measures) -> dict[str, Any] | None:
    if material.kind != "pairs" or measures.rows == 0:
        return None
    better, worse = measures.trained[0::2], measures.trained[1::2]
    return {
        "count": int(better.size),
        "chosen_longer": int((better > worse).sum()),
        "rejected_longer": int((better < worse).sum()),
        "chosen_tokens_mean": round(float(better.mean()), 3),
        "rejected_tokens_mean": round(float(worse.mean()), 3),
    }


def _examples(
    material: Material,
    measures: Measures,
    rows: Iterable[int],
    named: bool,
    limit: int = SHOWN_TOKENS,
) -> list[Example]:
    shown = []
    for row in rows:
        if not 0 <= row < measures.rows:
            if named:
                raise ArgumentError(
                    f"row is {row}; {material.path} has {measures.rows}, counted from 0"
                )
            break
        begin, end = int(material.starts[row]), int(material.starts[row + 1])
        cut = min(end, begin + limit)
        learned = material.learned(begin, cut)
        if cut > begin and (material.kind != "stream" or row == 0):
            learned[0] = False  # nothing predicts it
        answer = ("chosen", "rejected")[row % 2] if material.kind == "pairs" else None
        shown.append(
            Example(
                row=row,
                line=None if material.lines is None else int(material.lines[row]),
                answer=answer,
                count=end - begin,
                tokens=tokens_of(material.tokens[begin:cut], learned, material.vocabulary),
            )
        )
    return shown


def _unchecked(report: Report, material: Material, eval_path: Path | None) -> dict[str, str]:
    """What this report could not look at, and why."""
    missing = {}
    if material.vocabulary is None:
        missing["text, end tokens, control tokens"] = "no tokenizer: name its folder"
    elif report.text_share < 1:
        missing["text"] = f"{1 - report.text_share:.0%} of the tokens not read: use --all-text"
    if not material.from_jsonl:
        missing["roles"] = "a token file has none: report on the JSONL"
    if material.kind == "stream":
        missing["rows"] = "a stream has none" + (
            "; its documents are counted instead" if material.documents_known else ""
        )
    if eval_path is None:
        missing["overlap with evaluation data"] = "no evaluation file"
    return missing


__all__ = [
    "SCHEMA",
    "Example",
    "Finding",
    "Histogram",
    "Report",
    "Token",
    "examine",
]
