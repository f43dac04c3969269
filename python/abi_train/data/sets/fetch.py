"""One public set as a file of rows, with a side file that says where they are from.

The rows are JSON lines with sorted-out columns; the same set, options, limit and seed give the same
bytes. Neither file appears before both are whole, and rows never lie beside another set's side
file: what was there before goes first.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError, DataError, FileAccessError
from .. import provenance
from . import hub, local
from .base import Converting, DataSet, Home, Record, Row, check_columns, checked, draw

OTHER_FILE: Final = (
    "Is this a file of the set, the configuration and the split that were meant? docs/datasets.md "
    "lists the columns of each"
)


@dataclass(kw_only=True)
class Fetched:
    """What was written, and what was left out for which reason."""

    name: str
    path: Path
    side_file: Path
    config: str
    split: str
    rows: int = 0
    read: int = 0
    """Records looked at."""
    not_drawn: int = 0
    """Usable rows that the limit left out."""
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    unused_columns: tuple[str, ...] = ()
    license: str | None = None
    commercial_use: bool | None = None
    notes: tuple[str, ...] = ()
    dataset: str | None = None
    revision: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dict(vars(self))
        values.update(
            path=str(self.path),
            side_file=str(self.side_file),
            left_out=dict(self.left_out),
            unused_columns=list(self.unused_columns),
            notes=list(self.notes),
        )
        return values


def fetch_set(
    data_set: DataSet,
    output: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    source: str | Path | None = None,
    hub_id: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    seed: int = 42,
    options: Mapping[str, str] | None = None,
    license_note: str | None = None,
    commercial_use: bool | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Fetched:
    """Write the rows of a set to `output` (JSON lines), and `<output>.source.json` beside it.

    split, config: default to those of the set. source: a file or folder to read in place of the
    Hub. hub_id: another repository with the same columns; revision: one of its branches or commits.
    limit: draw that many rows by the seed; a larger limit holds all rows of a smaller one.
    license_note, commercial_use: what is said of data whose licence the set does not know.
    on_progress: called with records read.

    Raises `ConfigError` for what the set does not have, `DataError` for columns of another layout
    or when no row is left, `FileAccessError`, and `EngineError` without `datasets`.
    """
    output = Path(output)
    config = config or data_set.default_config
    split = split or data_set.default_split
    _check(data_set, output, config, split, limit)
    if data_set.license is not None and license_note is not None:
        raise ConfigError(
            f"{data_set.name} is under {data_set.license}; leave out --license (in Python "
            "license_note)"
        )
    job = Converting(config=config, options=data_set.choose(options or {}), seed=seed)
    report = Fetched(
        name=data_set.name,
        path=output,
        side_file=provenance.side_file(output),
        config=config,
        split=split,
        license=data_set.license or license_note,
        commercial_use=data_set.commercial_use,
        notes=data_set.warnings(split),
    )
    if report.commercial_use is None:
        told = None if license_note is None else provenance.allows_commercial_use(license_note)
        report.commercial_use = told if commercial_use is None else commercial_use
    tables = _tables(data_set, report, source=source, hub_id=hub_id, revision=revision)
    records = _records(data_set, tables, report, on_progress)
    rows = data_set.convert(records, job)
    with together(report.side_file, output) as (side, target):
        for line in _drawn(rows, report, limit, seed):
            target.write(line)
        report.left_out, report.examples = job.left_out, job.examples
        if report.rows == 0:
            raise DataError(f"{report.dataset or source}: no row is left; {_reasons(report)}")
        side.write(_side_text(data_set, report, job, limit))
    return report


def _check(data_set: DataSet, output: Path, config: str, split: str, limit: int | None) -> None:
    if config not in data_set.columns:
        rule = ", ".join(data_set.columns)
        raise ConfigError(f"{data_set.name} has no configuration {config!r}; it has {rule}")
    if data_set.splits and split not in data_set.splits:
        rule = ", ".join(data_set.splits)
        raise ConfigError(f"{data_set.name} has no split {split!r}; it has {rule}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be 1 or more")
    if output.suffix != ".jsonl":
        raise ConfigError(f"{output}: the name of the rows must end in .jsonl")
    if output.is_dir():
        raise FileAccessError(f"{output} is a folder; name a file in it, ending in .jsonl")
    if output.exists() and not provenance.side_file(output).is_file():
        raise FileAccessError(
            f"{output} exists and was not made by this; name another file, or delete it"
        )


def _tables(
    data_set: DataSet,
    report: Fetched,
    *,
    source: str | Path | None,
    hub_id: str | None,
    revision: str | None,
) -> Iterator[local.Table]:
    """The tables asked for; `report` is told which repository and commit they are from."""
    if source is not None:
        if hub_id is not None or revision is not None:
            raise ConfigError("--from reads files; leave out --id and --revision")
        parts = [home.parts.get(report.config, ()) for home in data_set.homes]
        names = {name for part in parts for name in part if name} | {report.config}
        all_parts = [
            name for home in data_set.homes for part in home.parts.values() for name in part
        ]
        return local.read(
            Path(source),
            _all_columns(data_set, report.config),
            split=report.split,
            config=sorted(names),
            configs=[*data_set.columns, *filter(None, all_parts)],
            raw_csv=data_set.raw_csv,
            tsv=data_set.tsv,
        )
    home = _home(data_set, report.config, hub_id)
    report.dataset = home.hub_id
    report.revision = revision or home.revision

    def each() -> Iterator[local.Table]:
        commits = set()
        for part in home.parts[report.config]:
            asked = revision or home.revision
            wanted = _all_columns(data_set, report.config)
            split = home.splits.get(report.split, report.split)
            table, commit = hub.read(home.hub_id, part, wanted, split=split, revision=asked)
            commits.add(commit)
            yield table
        if len(commits) == 1 and (commit := commits.pop()):
            report.revision = commit

    return each()


def _home(data_set: DataSet, config: str, hub_id: str | None) -> Home:
    """The repository to read. Raises `ConfigError` for one that is gone, or when there is none."""
    if not data_set.homes:
        raise ConfigError(f"{data_set.name} is read from a file; name it with --from")
    if hub_id in data_set.gone:
        raise ConfigError(
            f"{hub_id}: {data_set.notes[0]} Use {data_set.homes[0].hub_id}, or leave out --id."
        )
    known = [home for home in data_set.homes if hub_id in (None, home.hub_id)]
    for home in known:
        if config in home.parts:
            return home
    if known:
        raise ConfigError(f"{hub_id} has no configuration {config!r}")
    parts = data_set.homes[0].parts[config]
    return Home(hub_id=str(hub_id), parts={config: parts})


def _records(
    data_set: DataSet,
    tables: Iterable[local.Table],
    report: Fetched,
    on_progress: Callable[[int], None] | None,
) -> Iterator[Record]:
    """The records with their columns checked, those of another layout turned."""
    for table in tables:
        advice = _advice(report)
        where = table.where + (f" at {report.revision}" if report.revision else "")
        wanted, layout = data_set.columns[report.config], data_set.layouts.get(report.config)
        if layout is not None and set(layout.columns) <= set(table.columns):
            wanted = layout.columns
        else:
            layout = None
        extra = check_columns(table.columns, wanted, where=where, advice=advice)
        report.unused_columns = tuple(name for name in extra if name not in data_set.optional)
        _check_labels(data_set, table, where, advice)
        taken = {**wanted, **data_set.optional}
        for place, values in table.records:
            report.read += 1
            if on_progress is not None and report.read % 500 == 0:
                on_progress(report.read)
            found = checked(values, taken, where=place, advice=advice)
            for one in [found] if layout is None else layout.turned(found):
                yield place, one


def _all_columns(data_set: DataSet, config: str) -> dict[str, Any]:
    """Every column that may be read, with its type. Of two layouts the Hub's type counts."""
    layout = data_set.layouts.get(config)
    return {
        **({} if layout is None else layout.columns),
        **data_set.columns[config],
        **data_set.optional,
    }


def _check_labels(data_set: DataSet, table: local.Table, where: str, advice: str) -> None:
    """Raise `DataError` where a number would stand for another word than it does here."""
    for name, names in data_set.label_names.items():
        found = table.label_names.get(name, names)
        for number, (word, known) in enumerate(itertools.zip_longest(found, names)):
            if word != known:
                raise DataError(
                    f"{where}: {number} in column {name} stands for {word or 'nothing'}, expected "
                    f"{known or 'nothing'}. {advice}"
                )


def _advice(report: Fetched) -> str:
    if report.dataset is None:
        return OTHER_FILE + "."
    return (
        f"The layout of {report.dataset} may have changed: name an older --revision or another "
        "--id, or read a file of the old layout with --from."
    )


def _drawn(rows: Iterator[Row], report: Fetched, limit: int | None, seed: int) -> Iterator[str]:
    """The lines to write: all, or those the seed draws, in the order of the set."""
    if limit is None:
        for row in rows:
            report.rows += 1
            yield _line(row)
        return
    kept: list[tuple[int, int, str]] = []  # largest draw first, so that it leaves first
    count = 0
    for count, row in enumerate(rows, start=1):
        drawn = -draw(seed, "row", count)
        if len(kept) < limit:
            heapq.heappush(kept, (drawn, count, _line(row)))
        elif drawn > kept[0][0]:
            heapq.heapreplace(kept, (drawn, count, _line(row)))
    report.rows, report.not_drawn = len(kept), count - len(kept)
    for _, _, line in sorted(kept, key=lambda item: item[1]):
        yield line


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _reasons(report: Fetched) -> str:
    if not report.left_out:
        return f"{report.read} records were read"
    counts = ", ".join(f"{count} x {reason}" for reason, count in report.left_out.most_common(3))
    return f"left out: {counts}"


def _side_text(data_set: DataSet, report: Fetched, job: Converting, limit: int | None) -> str:
    """What the side file says. Nothing in it depends on the machine or the time."""
    named = report.dataset or "from a file"
    values = {
        "source": f"{data_set.title} ({named}), {report.config}, {report.split}",
        "license": report.license,
        "commercial_use": report.commercial_use,
        "notes": list(report.notes),
        "dataset": data_set.homes[0].hub_id if data_set.homes else None,
        "revision": report.revision,
        "read_from": report.dataset,
        "config": report.config,
        "split": report.split,
        "options": dict(job.options),
        "seed": job.seed,
        "limit": limit,
        "rows": report.rows,
        "left_out": dict(report.left_out),
        "evaluations": list(data_set.evaluations.get(report.split, ())),
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def together(side: Path, rows: Path) -> Iterator[Sequence[Any]]:
    """Two files to write that get their names together, the old ones gone first."""
    works = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (side, rows)]
    try:
        rows.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(work.open("w", encoding="utf-8", newline="\n"))
                for work in works
            ]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        rows.unlink(missing_ok=True)
        works[0].replace(side)
        works[1].replace(rows)
    except OSError as error:
        if error.filename is None and error.errno is None:  # of our own, with its sentence
            raise
        raise FileAccessError(f"{rows}: cannot be written ({error.strerror})") from None
    finally:
        for work in works:
            work.unlink(missing_ok=True)
