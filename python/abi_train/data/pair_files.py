"""Calibration pairs from files to a file: `abi-train data pairs`.

    from abi_train.data.pair_files import make_pairs
    make_pairs(["questions.jsonl"], "pairs.jsonl", review="review.md")

Writes rows for `prepare`, and beside them `<rows>.jsonl.source.json`, which says where they are
from: the most restrictive licence counts, and pairs of a public test stay marked as such.

Does not know: the command line.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, DataError, FileAccessError
from . import pair_review, provenance
from .pair_builder import Built, Pair, build, reviewed
from .pair_sources import TRUTHFUL_QA, read_file, read_sessions
from .pair_templates import Question
from .provenance import Origin
from .sets import fetch_set, find
from .sets.fetch import together

SET: Final = "set:"
FAILURES: Final = ("one", "both")
TEMPLATES_NOTE: Final = "Answers to questions are worded by templates of abi_train."
RECORDED_NOTE: Final = (
    "Some pairs are from recorded conversations: look through them before you publish any."
)


@dataclass(frozen=True, kw_only=True)
class PairsReport:
    """What `make_pairs` wrote. built: pairs and what was left out; review: the page, if any.

    new_in_review: pairs that page did not have before.
    """

    path: Path
    side_file: Path
    built: Built
    origin: Origin
    review: Path | None = None
    new_in_review: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "side_file": str(self.side_file),
            **self.built.to_dict(),
            "license": self.origin.license,
            "commercial_use": self.origin.commercial_use,
            "evaluations": list(self.origin.evaluations),
            "review": None if self.review is None else str(self.review),
            "new_in_review": self.new_in_review,
        }


def make_pairs(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    sessions: str | Path | None = None,
    review: str | Path | None = None,
    failures: str = "one",
    limit: int | None = None,
    seed: int = 42,
    license_note: str | None = None,
) -> PairsReport:
    """Write pairs of these sources to `output` (JSON lines), each once.

    sources: files of questions or of pairs, or `set:truthful-qa`. sessions: a folder of recorded
    conversations. review: a page with a mark for each pair; written when it is not there, else
    followed, and new pairs are added to it. failures: `one` worse answer a question or `both`.
    limit: that many pairs at most. license_note: of files that do not say it themselves.

    Raises `ConfigError`, `DataError` with file and line, `FileAccessError`, and what reading a set
    raises.
    """
    output = Path(output)
    if failures not in FAILURES:
        raise ConfigError(f"failures is {failures!r}; it must be one or both")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be 1 or more")
    _require_ours(output)
    if not sources and sessions is None:
        raise ConfigError("nothing to make pairs of; name a file of questions, or --sessions")
    files = [Path(source) for source in sources if not str(source).startswith(SET)]
    _require_apart(files, output, None if review is None else Path(review))
    if review is not None and Path(review).is_file():
        pair_review.read(review)  # a page that is none is refused before anything is fetched
    questions, others, origins, left_out = _all(sources, seed, license_note)
    if sessions is not None:
        recorded, damaged = read_sessions(sessions)
        others += recorded
        left_out["a file that is no recorded session"] += len(damaged)
        origins.append(
            Origin(
                source="recorded conversations",
                license=license_note,
                commercial_use=None
                if license_note is None
                else provenance.allows_commercial_use(license_note),
                notes=(RECORDED_NOTE,),
            )
        )
    built = build(questions, others=others, seed=seed, failures=failures)
    built.left_out.update({reason: count for reason, count in left_out.items() if count})
    if limit is not None:
        built = replace(built, pairs=built.pairs[:limit])
    fresh = 0
    if review is not None:
        built, fresh = _followed(built, Path(review))
    if not built.taken:
        raise DataError(f"{output}: no pair is left to write; {_reasons(built)}")
    origin = provenance.combine(origins)
    if questions:
        origin = replace(origin, notes=(*origin.notes, TEMPLATES_NOTE))
    side = provenance.side_file(output)
    with together(side, output) as (beside, rows):
        for row in built.rows:
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
        told = {**origin.to_dict(), "seed": seed, "rows": len(built.taken)}
        beside.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return PairsReport(
        path=output,
        side_file=side,
        built=built,
        origin=origin,
        review=None if review is None else Path(review),
        new_in_review=fresh,
    )


def _require_ours(output: Path) -> None:
    if output.suffix != ".jsonl":
        raise ConfigError(f"{output}: the name of the rows must end in .jsonl")
    if output.is_dir():
        raise FileAccessError(f"{output} is a folder; name a file in it, ending in .jsonl")
    if output.exists() and not provenance.side_file(output).is_file():
        raise FileAccessError(
            f"{output} exists and was not made by this; name another file, or delete it"
        )


def _require_apart(sources: Sequence[Path], output: Path, review: Path | None) -> None:
    """Raise `ConfigError` where what is written would be what is read, or both the same file."""
    written = {"the rows": output, "what says where they are from": provenance.side_file(output)}
    for what, path in written.items():
        for source in sources:
            if _same(path, source):
                raise ConfigError(f"{source} is read, and {what} would replace it; name another")
        if review is not None and _same(path, review):
            raise ConfigError(f"{review}: {what} and the review need files of their own")
    for source in sources:
        for read in (source, provenance.side_file(source)):
            if review is not None and _same(review, read):
                raise ConfigError(f"{review} is read as a source; name another file for the review")


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _all(
    sources: Sequence[str | Path], seed: int, license_note: str | None
) -> tuple[list[Question], list[Pair], list[Origin], Counter[str]]:
    questions: list[Question] = []
    others: list[Pair] = []
    origins: list[Origin] = []
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="abi-train-pairs-") as scratch:
        for source in sources:
            path = Path(source)
            if str(source).startswith(SET):
                path = Path(scratch) / f"{len(origins)}.jsonl"
                name = str(source).removeprefix(SET)
                found = fetch_set(find(name), path, seed=seed)
                left_out.update(found.left_out)
            asked, given, is_test = read_file(path)
            if path.parent == Path(scratch):
                given = [replace(pair, source=str(source)) for pair in given]
            questions += asked
            others += given
            origins.append(_origin(path, license_note, is_test=is_test))
    return questions, others, origins, left_out


def _origin(path: Path, license_note: str | None, *, is_test: bool) -> Origin:
    origin = provenance.of_rows([path], license=license_note)
    if not is_test or TRUTHFUL_QA in origin.evaluations:
        return origin
    data_set = find("truthful-qa")
    return replace(
        origin,
        source=f"{data_set.title} ({path.name})",
        license=data_set.license,
        commercial_use=data_set.commercial_use,
        notes=(*origin.notes, *data_set.warnings(data_set.default_split)),
        datasets=(*origin.datasets, data_set.homes[0].hub_id),
        evaluations=(*origin.evaluations, TRUTHFUL_QA),
    )


def _followed(built: Built, review: Path) -> tuple[Built, int]:
    """The pairs as a review has them, and how many of them it did not know; it then knows all."""
    if review.is_dir():
        raise FileAccessError(f"{review} is a folder; name a page in it, as review.md")
    if not review.exists():
        pair_review.write(review, built.pairs)
        return built, len(built.pairs)
    marks = pair_review.read(review)
    followed = replace(built, pairs=tuple(reviewed(built.pairs, marks)))
    fresh = [pair for pair in followed.pairs if pair.id not in marks]
    if fresh:
        pair_review.add(review, fresh)
    return followed, len(fresh)


def _reasons(built: Built) -> str:
    counts = [f"{count} x {reason}" for reason, count in built.left_out.most_common()]
    rejected = sum(pair.accepted is False for pair in built.pairs)
    if rejected:
        counts.append(f"{rejected} x left out in the review")
    waiting = sum(pair.accepted is None and pair.needs_review for pair in built.pairs)
    if waiting:
        counts.append(f"{waiting} x waiting for a review (--review FILE)")
    return ", ".join(counts) or "the sources hold no question and no pair"
