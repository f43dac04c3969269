"""Records of a set from files: Parquet, JSON, JSON lines, CSV, TSV, or a folder of them.

A folder is read as the Hub lays one out (`main/train-00000-of-00001.parquet`,
`default/train/0000.parquet`, `train.jsonl`): names of folders and files tell split and
configuration, whole words of them. Files that name neither belong to all. Parquet needs pyarrow,
the rest nothing. Does not know: which set this is, or the network.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from ...errors import DataError, EngineError, FileAccessError, MissingFileError
from .base import Columns, Record, as_columns

ENDINGS: Final = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
NO_DATA: Final = ("dataset_infos.json", "dataset_info.json", "state.json")
SPLIT_WORDS: Final = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}
MAX_CELL: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Table:
    """Records that came together. where: the file, or the repository.

    label_names: of columns whose whole numbers stand for words, these words in order.
    """

    where: str
    columns: tuple[str, ...]
    records: Iterable[Record]
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read(
    path: Path,
    wanted: Columns,
    *,
    split: str,
    config: Sequence[str],
    configs: Iterable[str],
    raw_csv: bool,
    tsv: Sequence[str] = (),
) -> Iterator[Table]:
    """The tables at `path`: the file itself, or the files of a folder for this split.

    config: names of the configuration asked for, configs: of all there are. raw_csv: quotes in a
    CSV are letters. tsv: the columns of a TSV, whose first line is a record like the others. Raises
    `MissingFileError`, `FileAccessError`, `DataError` with file and line.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder; check the path")
    files = [path] if path.is_file() else choose(path, split=split, config=config, configs=configs)
    for file in files:
        if file.suffix not in ENDINGS:
            raise DataError(
                f"{file}: cannot tell what it holds; the name must end in {', '.join(ENDINGS)}"
            )
        if file.suffix == ".parquet":
            yield _parquet(file, wanted)
        elif file.suffix == ".tsv" and tsv:
            records = _csv_records(file, wanted, raw=True, head=tsv, between="\t")
            yield Table(where=str(file), columns=tuple(tsv), records=records)
        elif file.suffix in (".csv", ".tsv"):
            yield _csv(file, wanted, raw=raw_csv, between="," if file.suffix == ".csv" else "\t")
        else:
            yield _json(file)


def choose(
    folder: Path, *, split: str, config: Sequence[str], configs: Iterable[str]
) -> list[Path]:
    """The files of a folder that hold this split of this configuration, in order of their names.

    Raises `DataError` when there are none.
    """
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in ENDINGS
        and path.is_file()
        and path.name not in NO_DATA
        and not path.name.endswith(".source.json")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise DataError(f"{folder}: no file in it ends in {', '.join(ENDINGS)}")
    known = sorted({*configs, *config}, key=len, reverse=True)
    named = {path: _named(path.relative_to(folder), known) for path in found}
    if any(name in config for name in named.values()):
        found = [path for path in found if named[path] in config]
    else:
        found = [path for path in found if named[path] is None] or found
    splits = {path: _splits(path.relative_to(folder)) for path in found}
    chosen = [path for path in found if split in splits[path]]
    if not chosen and not any(splits.values()):
        return found
    if not chosen:
        has = ", ".join(sorted({name for names in splits.values() for name in names}))
        raise DataError(f"{folder}: no file of the split {split}; there are {has}")
    return chosen


def _named(path: Path, names: Iterable[str]) -> str | None:
    """The longest of these names in a path, as whole words."""
    text = path.with_suffix("").as_posix().lower()
    for name in names:
        if re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text):
            return name
    return None


def _splits(path: Path) -> set[str]:
    """The split a path names; the file's own name counts before those of folders."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = set(re.split(r"[^a-z]+", part.lower()))
        found = {split for split, known in SPLIT_WORDS.items() if words & known}
        if found:
            return found
    return set()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the system or the text refuses inside names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save it as UTF-8 first") from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None


def _json(path: Path) -> Table:
    """JSON lines, one list of objects, or one object."""
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        first = file.readline()
        while first and not first.strip():
            first = file.readline()
    whole = path.suffix == ".json" and (start == "[" or not _is_object(first))
    records = _whole(path) if whole else _lines(path)
    begin = next(records, None)
    if begin is None:
        raise DataError(f"{path}: no record in it")

    def again() -> Iterator[Record]:
        yield begin
        yield from records

    return Table(where=str(path), columns=tuple(begin[1]), records=again())


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[Record]:
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _object(line, place)


def _whole(path: Path) -> Iterator[Record]:
    with _reading(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    for number, value in enumerate([values] if isinstance(values, dict) else values, start=1):
        place = f"{path}, record {number}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: not an object with columns")
        yield place, value


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{place}: not an object with columns")
    return values


def _csv(path: Path, wanted: Columns, *, raw: bool, between: str) -> Table:
    """A table with a head. raw: each comma ends a field, and quotes are letters."""
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        head = _reader(file, None, raw, between).fieldnames
    if not head:
        raise DataError(f"{path}: no line with the names of columns")
    records = _csv_records(path, wanted, raw=raw, head=None, between=between)
    return Table(where=str(path), columns=tuple(head), records=records)


def _reader(
    file: TextIO, head: Sequence[str] | None, raw: bool, between: str
) -> csv.DictReader[str]:
    csv.field_size_limit(MAX_CELL)
    if raw:
        return csv.DictReader(file, head, quoting=csv.QUOTE_NONE, delimiter=between)
    return csv.DictReader(file, head, strict=True, delimiter=between)


def _csv_records(
    path: Path, wanted: Columns, *, raw: bool, head: Sequence[str] | None, between: str
) -> Iterator[Record]:
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = _reader(file, head, raw, between)
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                extra: Any = values.pop(None, None)
                if extra and not raw:
                    raise DataError(f"{place}: more fields than the first line names")
                there = {name: text for name, text in values.items() if text is not None}
                yield place, as_columns(there, wanted)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None


def _parquet(path: Path, wanted: Columns) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EngineError(
            f"{path}: reading Parquet needs pyarrow: pip install 'abi-train[sets]'"
        ) from None
    with _reading(path):
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{path}: not a Parquet file ({error})") from None
    schema = file.schema_arrow
    return Table(
        where=str(path),
        columns=tuple(schema.names),
        label_names=_labels_of(schema.metadata or {}),
        records=_parquet_records(file, path, [name for name in wanted if name in schema.names]),
    )


def _parquet_records(file: Any, path: Path, names: list[str]) -> Iterator[Record]:
    import pyarrow

    number = 0
    with _reading(path), file:
        try:
            for batch in file.iter_batches(columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", values
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: damaged behind row {number} ({error})") from None


def _labels_of(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of labels as `datasets` writes them into a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = {}
    for name, feature in features.items():
        names = label_names(feature)
        if names:
            found[name] = names
    return found


def label_names(feature: Any) -> tuple[str, ...]:
    """The names of a label, or of a list of them, as `datasets` describes a column."""
    while isinstance(feature, dict):
        if isinstance(feature.get("names"), list):
            return tuple(map(str, feature["names"]))
        feature = feature.get("feature")
    return ()
