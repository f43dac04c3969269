"""What a public data set is to us: where it lies, which columns it has, and what its rows become.

A module beside this one describes one set in a `DataSet`. Its `convert` takes records (a place and
the values of the columns, checked before) and gives rows as `prepare` reads them. Rows that cannot
be used are counted with a reason, never silently lost; a column that is missing or of another type
is an error, because then the set is not the one that was described.

Nothing here or in the modules reads a file or the network. Always true: the same records, options
and seed give the same rows. Does not know: where records come from, tokenizers, token files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import ConfigError, DataError

Kind = type | list[Any] | tuple[Any, ...] | dict[str, Any]
"""Of a column: `str`, `int`, `bool`, `object` for anything, `[kind]` for a list of any length,
`(kind, kind)` for one of these, `{name: kind}` for a table."""
Columns = Mapping[str, Kind]
Record = tuple[str, dict[str, Any]]
"""Where a record stands, in words, and its columns."""
Row = dict[str, Any]

PARQUET: Final = "refs/convert/parquet"
"""The branch on which the Hub keeps a Parquet copy of sets that were published as a script."""


@dataclass(frozen=True, kw_only=True)
class Home:
    """A repository of the Hub that holds a set.

    parts: for each of our configurations the repository's own, loaded one after another; None for
    a repository without. Without the one asked for, this home does not have it. splits: its names
    of those it calls otherwise.
    """

    hub_id: str
    parts: Mapping[str, tuple[str | None, ...]]
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Option:
    """A choice about what rows become. The first value is the default."""

    name: str
    values: tuple[str, ...]
    help: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Another layout of a set: that of its authors' own files, or of a copy of it.

    It is known by its columns. turned: what a record of it is in the layout described.
    """

    columns: Columns
    turned: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]


@dataclass(kw_only=True)
class Converting:
    """One conversion: what was asked, and the count of what was left out."""

    config: str
    options: Mapping[str, str]
    seed: int
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def leave_out(self, place: str, reason: str) -> None:
        """Count a row that makes no row of ours, keeping the first few places."""
        self.left_out[reason] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{place}: {reason}")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A public data set.

    columns: of each configuration; the first is the default. homes: repositories that have it, the
    best first; none for a set that is only read from files. aliases: other ids people know it by.
    splits: published rows of each split. commercial_use: None where nobody can say. evaluations:
    for each split the benchmarks it is the test of. label_names: of columns whose whole numbers
    stand for words, these words in order.
    """

    name: str
    title: str
    teaches: str
    license: str | None
    commercial_use: bool | None
    columns: Mapping[str, Columns]
    splits: Mapping[str, int]
    convert: Callable[[Iterable[Record], Converting], Iterator[Row]]
    homes: tuple[Home, ...] = ()
    optional: Columns = field(default_factory=dict)
    """Columns that are taken where they are there."""
    aliases: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    """Ids that were taken down; the notes say when and why."""
    notes: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    evaluations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Another layout, of each configuration that has one."""
    raw_csv: bool = False
    """Its published CSV knows no quotes: each comma ends a field."""
    tsv: tuple[str, ...] = ()
    """The columns of its published TSV, which has no head."""

    @property
    def default_config(self) -> str:
        """The configuration taken when none is named."""
        return next(iter(self.columns))

    @property
    def default_split(self) -> str:
        """The split taken when none is named."""
        return "train" if "train" in self.splits or not self.splits else next(iter(self.splits))

    def choose(self, given: Mapping[str, str]) -> dict[str, str]:
        """All options with their values. Raises `ConfigError` for one this set does not have."""
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                has = ", ".join(known) or "no options"
                raise ConfigError(f"{self.name} has no option {name!r}; it has {has}")
            if value not in known[name].values:
                rule = ", ".join(known[name].values)
                raise ConfigError(f"{self.name}: {name} is {value!r}; it must be one of {rule}")
        return {name: given.get(name, option.values[0]) for name, option in known.items()}

    def warnings(self, split: str) -> tuple[str, ...]:
        """What whoever trains on this split has to know."""
        tests = self.evaluations.get(split, ())
        if not tests:
            return self.notes
        return (
            *self.notes,
            f"This is the test data of {', '.join(tests)}: do not report those scores for a model "
            "trained on it.",
        )


def chat(*turns: tuple[str, str], **more: Any) -> Row:
    """A row of turns (role and text), and other keys."""
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def one_line(text: str) -> str:
    """The words of a text with one space between them."""
    return " ".join(text.split())


def draw(seed: int, *key: object) -> int:
    """A whole number below 2^64 that follows from seed and key alone, on any machine."""
    text = json.dumps([seed, *map(str, key)], ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def check_columns(
    found: Iterable[str], wanted: Columns, *, where: str, advice: str
) -> tuple[str, ...]:
    """The columns that are there and not needed. Raises `DataError` for one that is missing."""
    found = tuple(found)
    missing = [name for name in wanted if name not in found]
    extra = tuple(name for name in found if name not in wanted)
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; found {', '.join(found) or 'none'}. {advice}"
        )
    return extra


def checked(
    record: Mapping[str, Any], wanted: Columns, *, where: str, advice: str
) -> dict[str, Any]:
    """The wanted columns of a record. A cell without a value is None.

    Whole numbers may be written as 1.0, as tables do that had gaps. Raises `DataError` for a cell
    of another type.
    """
    values: dict[str, Any] = {}
    for name, kind in wanted.items():
        value = record.get(name)
        try:
            values[name] = None if value is None else _as(value, kind)
        except TypeError:
            shown = json.dumps(value, ensure_ascii=False, default=repr)
            shown = shown if len(shown) <= 60 else shown[:60] + "…"
            raise DataError(
                f"{where}: column {name} is {shown}; it must be {spelled(kind)}. {advice}"
            ) from None
    return values


def _as(value: Any, kind: Kind) -> Any:
    """The value as this kind. Raises `TypeError` for another one."""
    if isinstance(kind, list):
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return [_as(item, kind[0]) for item in value]
    if isinstance(kind, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(kind):
            raise TypeError
        return tuple(_as(item, inner) for item, inner in zip(value, kind, strict=True))
    if isinstance(kind, dict):
        if not isinstance(value, dict) or not set(kind) <= set(value):
            raise TypeError
        return {name: _as(value[name], inner) for name, inner in kind.items()}
    if kind is object:
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError
    return value


def spelled(kind: Kind) -> str:
    """The kind in words."""
    if isinstance(kind, list):
        return f"a list of {spelled(kind[0])}"
    if isinstance(kind, tuple):
        return f"a list of {', '.join(map(spelled, kind))}"
    if isinstance(kind, dict):
        return "a table with " + ", ".join(f"{name} ({spelled(k)})" for name, k in kind.items())
    return {str: "text", int: "a whole number", bool: "true or false"}.get(kind, "anything")


def as_columns(values: Mapping[str, str], wanted: Columns) -> dict[str, Any]:
    """A line of a CSV, where all is text, with the values its columns should have.

    What cannot be read stays text, for `checked` to name.
    """
    return {name: _read_cell(text, wanted.get(name, str)) for name, text in values.items()}


def _read_cell(text: str, kind: Kind) -> Any:
    if kind is str or kind is object:
        return text
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    if isinstance(kind, list) and kind[0] is int and not text.startswith("["):
        text = f"[{text}]"  # 2,27
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def texts(values: Mapping[str, Any], *names: str) -> str | None:
    """The first of these columns that has no text in it, as a reason to leave a row out."""
    for name in names:
        value = values[name]
        if value is None or not str(value).strip():
            return f"{name} is empty"
    return None
