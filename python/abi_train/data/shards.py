"""Preparing a large corpus in parts: a job over shards on several processes or machines.

The bytes of the sources are divided evenly into as many ranges as there are shards; a line belongs
to the range its first byte is in. Which lines are held out for evaluation is drawn as `prepare`
draws it for the whole. So what each shard holds follows from the sources and the options alone, not
from who does it or when, and the files of a set one behind the other are the file that one process
makes.

`prepare_sharded` runs the job with `datasets`, on processes of this machine. On several machines
with a shared folder one calls `begin_shards`, each `prepare_shard` for its own numbers, under Ray,
Slurm or by hand, and one `join_shards` at the end. A shard that is there is not made again.

Does not know: how rows become ids (`prepare`), what a set must be (`zig/src/data/shards.zig`).
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import _native
from .._native import dataset as native
from ..checkpoint import write_text_atomic
from ..dataset import TokenizedWriter
from ..errors import AbiTrainError, ArgumentError, DataError, EngineError, FileAccessError
from . import provenance
from .files import manifest_path, read_manifest
from .prepare import PrepareReport, Split, prepare
from .sources import Skipped

MAX_SHARDS: Final = 4096
DONE: Final = "done.json"
OPTIONS: Final = frozenset(
    [
        "max_seq_len",
        "skip_invalid",
        "stream",
        "chat_format",
        "loss",
        "source_note",
        "license_note",
        "threads",
    ]
)
"""Keywords of `prepare` that a job hands on."""
EMPTY: Final = "no row is left"
"""How `prepare` says that nothing of its sources can be learned."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A job: what is prepared into how many shards.

    options: the keywords of `prepare` except those for evaluation, which are beside them here.
    """

    sources: tuple[str, ...]
    tokenizer: str
    output: str
    shards: int
    eval_output: str | None = None
    eval_fraction: float = 0.0
    seed: int = 42
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= MAX_SHARDS:
            raise DataError(f"shards is {self.shards}; it must be 1 to {MAX_SHARDS}")
        if not 0.0 <= self.eval_fraction < 1.0:
            raise DataError(
                f"eval_fraction is {self.eval_fraction}; it must be at least 0 and below 1"
            )
        unknown = sorted(self.options.keys() - OPTIONS)
        if unknown:
            raise ArgumentError(f"{unknown[0]} is no option of a job of shards")
        for path in self.outputs:
            if path.suffix != ".bin":
                raise DataError(f"{path}: the name of a token file must end in .bin")
            if path.exists():
                raise FileAccessError(
                    f"{path} exists, and a set of shards has no file of its own name. Delete it, "
                    "or name another one"
                )

    @property
    def outputs(self) -> list[Path]:
        """The sets that are made."""
        output = Path(self.output)
        if self.eval_fraction == 0.0:
            return [output]
        beside = output.with_name(output.stem + "_eval.bin")
        return [output, Path(self.eval_output) if self.eval_output else beside]

    @property
    def work(self) -> Path:
        """Where what is half done lies."""
        return Path(self.output).with_suffix(".shards")

    def key(self) -> str:
        """Changes with everything that the shards follow from."""
        stats = [Path(path).stat() for path in self.sources]
        tokenizer = Path(self.tokenizer) / "tokenizer.json"
        text = tokenizer.read_bytes() if tokenizer.is_file() else b""
        made_of = {
            **dataclasses.asdict(self),
            "options": {key: self.options[key] for key in sorted(self.options) if key != "threads"},
            "sizes": [[stat.st_size, stat.st_mtime_ns] for stat in stats],
            "tokenizer": hashlib.sha256(text).hexdigest(),
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def shard_name(output: Path, index: int, count: int) -> str:
    """Name of a file of a set."""
    return f"{output.stem}-{index:05}-of-{count:05}.bin"


def prepare_sharded(
    sources: Sequence[str | Path],
    tokenizer: str | Path,
    output: str | Path,
    *,
    shards: int,
    workers: int = 0,
    eval_output: str | Path | None = None,
    eval_fraction: float = 0.0,
    seed: int = 42,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> PrepareReport:
    """Tokenise JSONL files into a set of `shards` files with one manifest, on `workers` processes.

    The rows, their order and their ids are those of `prepare` with the same options, whatever the
    number of workers (0: one for each CPU). `options` are the keywords of `prepare`. A job that was
    interrupted goes on with the shards that are missing. on_progress: called with shards done and
    shards in all. Needs `datasets` (`pip install 'abi-train[sets]'`) for more than one worker.

    Raises what `prepare` raises, with the file and line of the source.
    """
    plan = ShardPlan(
        sources=tuple(str(path) for path in sources),
        tokenizer=str(tokenizer),
        output=str(output),
        shards=shards,
        eval_output=None if eval_output is None else str(eval_output),
        eval_fraction=eval_fraction,
        seed=seed,
        options=options,
    )
    workers = min(workers or _cpu_count(), shards)
    begin_shards(plan)
    if workers == 1:
        for index in range(shards):
            prepare_shard(plan, index)
            if on_progress is not None:
                on_progress(index + 1, shards)
    else:
        with _watching(plan, on_progress):
            _run_with_datasets(plan, workers)
    return join_shards(plan)


def _cpu_count() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def begin_shards(plan: ShardPlan) -> None:
    """Check the sources and mark the sets as not whole. Forgets the shards of another job."""
    _ranges(plan)
    key = plan.key()
    marker = plan.work / "job.json"
    if plan.work.exists() and (
        not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")).get("key") != key
    ):
        if any(plan.work.iterdir()) and not marker.is_file():
            raise FileAccessError(f"{plan.work} is in the way: it is no folder of a job of shards")
        shutil.rmtree(plan.work)
    plan.work.mkdir(parents=True, exist_ok=True)
    write_text_atomic(marker, json.dumps({"key": key}) + "\n")
    for path in plan.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        native.join_later(path)


def prepare_shard(plan: ShardPlan, index: int) -> None:
    """Make shard `index` of the job, unless it is there. Any process may, one at a time."""
    folder = plan.work / f"{index:05}"
    key = plan.key()
    if _is_done(folder, key):
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    pieces = _write_pieces(plan, index, folder)
    reports = []
    for at, path in enumerate(plan.outputs):
        shard = path.with_name(shard_name(path, index, plan.shards))
        reports.append(_prepare_one(plan, shard, pieces, at))
    write_text_atomic(folder / DONE, json.dumps({"key": key, "reports": reports}) + "\n")
    for piece in pieces:
        for text in piece.texts:
            text.unlink(missing_ok=True)


def join_shards(plan: ShardPlan) -> PrepareReport:
    """Make the set, or the sets, of shards that are all there; says what is in them.

    Raises `DataError` when one is missing.
    """
    key = plan.key()
    missing = [i for i in range(plan.shards) if not _is_done(plan.work / f"{i:05}", key)]
    if missing:
        raise DataError(
            f"{plan.output}: shards {', '.join(map(str, missing[:8]))} of {plan.shards} are not "
            "made. Make them before they are joined"
        )
    told = [
        json.loads((plan.work / f"{i:05}" / DONE).read_text(encoding="utf-8"))["reports"]
        for i in range(plan.shards)
    ]
    origin = provenance.of_rows(
        plan.sources,
        source=plan.options.get("source_note"),
        license=plan.options.get("license_note"),
    )
    splits = []
    for at, path in enumerate(plan.outputs):
        reports = [report[at] for report in told]
        if at and sum(_line_counts(plan, _ranges(plan))) < 2:
            manifest_path(path).unlink()  # of one line nothing is held out, as in `prepare`
            continue
        if all(report is None for report in reports):
            raise DataError(
                f"{', '.join(plan.sources)}: {EMPTY} for {path}. Check the source, or raise "
                "--max-seq-len (in Python max_seq_len)."
            )
        names = [shard_name(path, i, plan.shards) for i in range(plan.shards)]
        model = next(names[i] for i, report in enumerate(reports) if report is not None)
        for name, report in zip(names, reports, strict=True):
            if report is None:
                _write_empty(path.with_name(name), path.with_name(model))
        native.join(path, names)
        provenance.record(path, origin)
        splits.append([report for report in reports if report is not None])
    report = _together(plan, splits)
    shutil.rmtree(plan.work)
    return report


def _is_done(folder: Path, key: str) -> bool:
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(done, dict) and done.get("key") == key


@dataclass(frozen=True)
class _Piece:
    """Lines of one source: as training rows, and as evaluation rows."""

    part: _Range
    texts: tuple[Path, ...]
    lines: tuple[int, ...]
    """Of each text how many lines are not blank."""

    @functools.cached_property
    def first_line(self) -> int:
        """Lines of the source before it. Reads all of them: only for messages."""
        return _lines_before(self.part)


@dataclass(frozen=True)
class _Range:
    """Bytes of one source, from the beginning of a line."""

    source: str
    begin: int
    end: int


def _ranges(plan: ShardPlan) -> list[list[_Range]]:
    """The bytes of each shard. Reads a line at each border."""
    sizes = []
    for source in plan.sources:
        with _reading(source):
            sizes.append(Path(source).stat().st_size)
    total = sum(sizes)
    found: list[list[_Range]] = [[] for _ in range(plan.shards)]
    before = 0
    for source, size in zip(plan.sources, sizes, strict=True):
        begin = 0
        for index in range(plan.shards):
            # Lines whose first byte lies before this belong to this shard or an earlier one.
            border = min(size, max(0, (index + 1) * total // plan.shards - before))
            end = _line_start(source, border, size)
            if end > begin:
                found[index].append(_Range(source, begin, end))
                begin = end
        before += size
    return found


def _line_start(source: str, position: int, size: int) -> int:
    """Where the first line begins that begins at or behind `position`."""
    if position in (0, size):
        return position
    with _reading(source), Path(source).open("rb") as file:
        file.seek(position - 1)
        file.readline()
        return file.tell()


@contextlib.contextmanager
def _reading(source: str) -> Iterator[None]:
    if not Path(source).is_file():
        raise FileAccessError(f"{source}: no such file; check the path")
    try:
        yield
    except OSError as error:
        raise FileAccessError(f"{source}: cannot be read ({error.strerror})") from None


def _write_pieces(plan: ShardPlan, index: int, folder: Path) -> list[_Piece]:
    """The lines of a shard as files of their own, named as the sources.

    A line that belongs to the other split is left blank, so that lines keep their numbers.
    """
    ranges = _ranges(plan)
    held = _held_out(plan, ranges, index)
    pieces = []
    number = 0
    for at, part in enumerate(ranges[index]):
        source = Path(part.source)
        texts = []
        for split in range(len(plan.outputs)):
            place = folder / f"{at:03}-{split}"
            place.mkdir()
            texts.append(place / source.name)
            side = provenance.side_file(source)
            if side.is_file():
                shutil.copyfile(side, provenance.side_file(texts[-1]))
        counts = [0] * len(texts)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_reading(part.source))
            files = [stack.enter_context(text.open("wb")) for text in texts]
            for line in _lines(part):
                into = 0
                if not _blank(line):
                    into = int(held is not None and bool(held[number]))
                    number += 1
                    counts[into] += 1
                for split, file in enumerate(files):
                    file.write(line if split == into else b"\n")
        pieces.append(_Piece(part, tuple(texts), tuple(counts)))
    return pieces


def _lines(part: _Range) -> Iterator[bytes]:
    with Path(part.source).open("rb") as file:
        file.seek(part.begin)
        left = part.end - part.begin
        while left > 0 and (line := file.readline()):
            left -= len(line)
            yield line


def _lines_before(part: _Range) -> int:
    """Lines of the source before the range."""
    count, left = 0, part.begin
    with Path(part.source).open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def _blank(line: bytes) -> bool:
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def _held_out(
    plan: ShardPlan, ranges: list[list[_Range]], index: int
) -> npt.NDArray[np.bool_] | None:
    """Of each line of a shard that is not blank whether it is held out for evaluation."""
    if plan.eval_fraction == 0.0:
        return None
    counts = _line_counts(plan, ranges)
    total = sum(counts)
    held = np.zeros(total, dtype=np.bool_)
    if total >= 2:
        drawn = int(np.ceil(plan.eval_fraction * total))
        order = _native.epoch_order(total, True, plan.seed, 0)
        held[order[: min(total - 1, drawn)]] = True
    before = sum(counts[:index])
    return held[before : before + counts[index]]


def _line_counts(plan: ShardPlan, ranges: list[list[_Range]]) -> list[int]:
    """Lines of each shard that are not blank; counted once for a job."""
    kept = plan.work / "lines.json"
    with contextlib.suppress(OSError, ValueError):
        counts: list[int] = json.loads(kept.read_text(encoding="utf-8"))
        return counts
    counts = [sum(not _blank(line) for part in parts for line in _lines(part)) for parts in ranges]
    write_text_atomic(kept, json.dumps(counts) + "\n")
    return counts


def _prepare_one(
    plan: ShardPlan, shard: Path, pieces: list[_Piece], split: int
) -> dict[str, Any] | None:
    """One file of a set; None when none of its lines is a row."""
    used = [piece for piece in pieces if piece.lines[split]]
    if not used:
        return None
    try:
        report = prepare(
            [piece.texts[split] for piece in used], plan.tokenizer, shard, **plan.options
        )
    except AbiTrainError as error:
        message = str(error)
        for piece in used:
            message = _with_source_lines(message, str(piece.texts[split]), piece)
        if EMPTY in message and plan.shards > 1:
            return None
        raise type(error)(message) from None
    told = report.to_dict()
    told["train"]["path"] = str(shard)
    told["lines"] = sum(piece.lines[split] for piece in used)
    for piece in used:
        told["skipped_examples"] = [
            _with_source_lines(example, str(piece.texts[split]), piece)
            for example in told["skipped_examples"]
        ]
    return told


def _with_source_lines(message: str, text: str, piece: _Piece) -> str:
    """A message that names a piece and a line of it, as one about its source."""
    parts = message.split(text)
    for at in range(1, len(parts)):
        digits = ""
        if parts[at].startswith(":"):
            digits = "".join(_leading_digits(parts[at][1:]))
        if digits:
            line = int(digits) + piece.first_line
            parts[at] = f":{line}{parts[at][1 + len(digits) :]}"
    return piece.part.source.join(parts)


def _leading_digits(text: str) -> Iterator[str]:
    for character in text:
        if not character.isdigit():
            return
        yield character


def _write_empty(path: Path, like: Path) -> None:
    """A file without rows that fits beside `like`."""
    manifest = read_manifest(like)
    with TokenizedWriter(
        path,
        rows=manifest.get("idx") is not None,
        mask=manifest.get("mask") is not None,
        vocab_size=manifest.get("vocab_size"),
        tokenizer_hash=manifest.get("tokenizer_hash"),
        format=manifest.get("format"),
        preference=manifest.get("kind") == "preference",
    ) as writer:
        writer.finish()


def _together(plan: ShardPlan, splits: list[list[dict[str, Any]]]) -> PrepareReport:
    """One report over the reports of all shards."""
    every = [report for reports in splits for report in reports]
    found = []
    for path, reports in zip(plan.outputs, splits, strict=False):
        split = Split(path=path)
        for report in reports:
            for name, value in report["train"].items():
                if name == "path":
                    continue
                before = getattr(split, name)
                setattr(split, name, max(before, value) if name == "longest" else before + value)
        found.append(split)
    skipped = Skipped()
    for report in every:
        skipped.counts += Counter(report["skipped"])
        skipped.examples += report["skipped_examples"]
    return PrepareReport(
        train=found[0],
        evaluation=found[1] if len(found) > 1 else None,
        lines=sum(report["lines"] for report in every),
        skipped=skipped,
        dropped=sum(report["dropped"] for report in every),
        chat_format=every[0]["chat_format"],
        vocab_size=every[0]["vocab_size"],
        first_example=[(one["text"], one["in_loss"]) for one in every[0]["first_example"]],
    )


@contextlib.contextmanager
def _watching(plan: ShardPlan, on_progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Tells how many shards are there while others make them."""
    if on_progress is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            on_progress(len(list(plan.work.glob(f"*/{DONE}"))), plan.shards)

    watcher = threading.Thread(target=watch, name="shards", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    on_progress(plan.shards, plan.shards)


def _run_with_datasets(plan: ShardPlan, workers: int) -> None:
    """The job as a `map` over shard numbers: `datasets` deals them out to processes."""
    try:
        import datasets
    except ImportError:
        raise EngineError(
            "several workers need datasets: pip install 'abi-train[sets]', or use one worker"
        ) from None
    if "threads" not in plan.options:
        each = max(1, _cpu_count() // workers)
        plan = dataclasses.replace(plan, options={**plan.options, "threads": each})
    if plan.eval_fraction:
        _line_counts(plan, _ranges(plan))  # once, before all need it
    numbers = datasets.Dataset.from_dict({"shard": list(range(plan.shards))})
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        done = numbers.map(
            _shard_of_row,
            fn_kwargs={"plan": plan},
            num_proc=workers,
            load_from_cache_file=False,
            new_fingerprint=plan.key()[:32],
        )
    except RuntimeError as error:
        if "died" not in str(error):
            raise
        raise EngineError(
            "a worker was killed, for want of memory perhaps. Run the same again to go on with the "
            "shards that are missing, with fewer workers if need be"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    for row in done:
        if row["failure"]:
            kind, message = json.loads(row["failure"])
            raise _failure(kind, message)


def _shard_of_row(row: dict[str, Any], plan: ShardPlan) -> dict[str, Any]:
    """One shard; a failure is told as text, which every engine can carry."""
    try:
        prepare_shard(plan, row["shard"])
    except AbiTrainError as error:
        return {"failure": json.dumps([type(error).__name__, str(error)])}
    return {"failure": ""}


def _failure(kind: str, message: str) -> AbiTrainError:
    from .. import errors

    found = getattr(errors, kind, DataError)
    made = found(message)
    assert isinstance(made, AbiTrainError)
    return made


__all__ = [
    "MAX_SHARDS",
    "ShardPlan",
    "begin_shards",
    "join_shards",
    "prepare_shard",
    "prepare_sharded",
    "shard_name",
]
