"""The rows of a phase as token files, made once: skipped while rows and settings are the same.

What they were made from is a *fingerprint*: plain values that change when the tokens might. Public
sets are fetched beside the token files, and only when another choice is made of them.

Does not know: how a phase is run, or where its fingerprint is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..checkpoint import write_bytes_atomic
from ..data import provenance
from ..errors import (
    AbiTrainError,
    ConfigError,
    DataError,
    FileAccessError,
    FormatError,
    MissingFileError,
)
from .recipe import Phase, PhaseData, Rows

FORMAT: Final = 1
"""Of the fingerprint: counts up when the same rows would become other tokens."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of a phase. fresh: made now. summary: rows and tokens, of the files as they are."""

    fingerprint: Mapping[str, Any]
    fresh: bool
    summary: Mapping[str, Any] = field(default_factory=dict)


def fingerprint(phase: Phase, tokenizer: Path | None) -> dict[str, Any]:
    """What the token files of a phase follow from.

    Raises `MissingFileError` for a file of rows that is not there, `ConfigError` without a
    tokenizer.
    """
    if phase.prepared is None:
        return {"data": _checksum_of(phase.spec.data), "eval_data": _of_file(phase.spec.eval_data)}
    if tokenizer is None or not (tokenizer / "tokenizer.json").is_file():
        where = f"{tokenizer} has none" if tokenizer else "the model brings none"
        raise ConfigError(
            f"rows become tokens with a tokenizer.json, and {where}; name its folder as tokenizer"
        )
    data = phase.prepared
    values = {
        "format": FORMAT,
        "rows": [_of_rows(rows) for rows in data.rows],
        "eval_rows": [_of_rows(rows) for rows in data.eval_rows],
        "tokenizer": _sha256(tokenizer / "tokenizer.json"),
        "seed": phase.spec.config.seed,
    }
    template = tokenizer / "chat_template.jinja"
    if data.chat_format is None and template.is_file():
        values["template"] = _sha256(template)
    for key in ("eval_split", "rows_per", "chat_format", "loss", "skip_invalid", "license"):
        values[key] = getattr(data, key)
    return values


def prepare_phase(
    phase: Phase,
    tokenizer: Path | None,
    earlier: Mapping[str, Any] | None,
    *,
    tell: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Make the token files of a phase, unless `earlier` is the fingerprint they have.

    tell: called with a line about what is done. stop: asked now and then; True raises
    `KeyboardInterrupt`. Raises what fetching and preparing raise.
    """
    now = fingerprint(phase, tokenizer)
    spec, data = phase.spec, phase.prepared
    wanted = [path for path in (spec.data, spec.eval_data) if path is not None]
    if data is None:
        for path in wanted:
            _verify(path)
        return Prepared(fingerprint=now, fresh=False)
    there = all(path.is_file() and provenance.manifest_of(path).is_file() for path in wanted)
    if there and earlier == now:
        try:
            for path in wanted:
                _verify(path)
            return Prepared(fingerprint=now, fresh=False, summary=_summary(phase))
        except (DataError, FormatError) as error:
            tell(f"{str(error).partition('. ')[0].rstrip('.')}; it is prepared again from its rows")
    assert tokenizer is not None
    spec.data.parent.mkdir(parents=True, exist_ok=True)
    _retire(wanted)
    tell(f"preparing {', '.join(rows.words for rows in data.rows)}")

    def going_on(progress: object) -> None:
        if stop():
            raise KeyboardInterrupt

    beside = spec.data.with_suffix("")
    train = [_file(rows, beside, number, going_on) for number, rows in enumerate(data.rows)]
    held = [
        _file(rows, Path(f"{beside}_eval"), number, going_on)
        for number, rows in enumerate(data.eval_rows)
    ]
    split = data.eval_split
    if data.rows_per == "answer":
        train, held = _by_answer(data, train, held, beside, seed=spec.config.seed)
        split = 0.0
    loss = "completion" if data.rows_per == "answer" else data.loss
    options: dict[str, Any] = {
        "chat_format": data.chat_format,
        "loss": loss,
        "skip_invalid": data.skip_invalid,
        "license_note": data.license,
        "seed": spec.config.seed,
        "on_progress": going_on,
    }
    from ..data.prepare import prepare

    if held:
        assert spec.eval_data is not None
        prepare(held, tokenizer, spec.eval_data, **options)
    if split:
        options.update(eval_fraction=split, eval_output=spec.eval_data)
    report = prepare(train, tokenizer, spec.data, **options)
    if split and report.evaluation is None:
        raise DataError(f"eval_split {split} keeps no row of {report.lines}; raise it")
    summary = _summary(phase)
    if report.skipped.total:
        tell(f"left out {report.skipped.total} of {report.lines} rows that cannot be used")
    return Prepared(fingerprint=now, fresh=True, summary=summary)


def count_rows(rows: Sequence[Rows]) -> int | None:
    """Lines of rows, without preparing them; None where that takes a network."""
    total = 0
    for one in rows:
        if one.path is None:
            limit = one.choices.get("limit")
            if not isinstance(limit, int):
                return None
            total += limit
            continue
        total += sum(1 for _ in _lines(one.path))
    return total


def _verify(path: Path) -> None:
    """Raise `DataError` for a token file that is not what its manifest says."""
    from ..dataset import TokenizedDataset

    with TokenizedDataset.load(path) as opened:
        opened.verify()


def _summary(phase: Phase) -> dict[str, Any]:
    from ..dataset import TokenizedDataset

    values: dict[str, Any] = {}
    for key, path in (("", phase.spec.data), ("eval_", phase.spec.eval_data)):
        if path is not None:
            with TokenizedDataset.load(path) as opened:
                starts = opened.row_starts
                values[f"{key}rows"] = 0 if starts is None else len(starts) - 1
                values[f"{key}tokens"] = len(opened.tokens)
    return values


def _retire(paths: Sequence[Path]) -> None:
    """Earlier token files, whose manifests say that they are ours, go: a half new pair of training
    and evaluation data must not look like a whole old one."""
    for path in paths:
        manifest = provenance.manifest_of(path)
        if not manifest.is_file():
            continue
        for ending in (".json", ".bin", ".idx", ".mask"):
            path.with_suffix(ending).unlink(missing_ok=True)


def _file(rows: Rows, beside: Path, number: int, going_on: Callable[[object], None]) -> Path:
    """The file of some rows; a public set is fetched beside the token file."""
    if rows.path is not None:
        return rows.path
    from ..data import sets

    target = beside.with_name(f"{beside.name}.{number}.{rows.name}.jsonl")
    note = target.with_name(target.name + ".choices.json")
    choices = json.dumps(rows.to_dict(), sort_keys=True, default=str)
    if target.is_file() and note.is_file() and note.read_text(encoding="utf-8") == choices:
        return target
    note.unlink(missing_ok=True)
    given = dict(rows.choices)
    if "id" in given:
        given["hub_id"] = given.pop("id")
    try:
        sets.fetch(rows.name, target, on_progress=going_on, **given)
    except AbiTrainError as error:
        raise type(error)(_in_a_recipe(str(error))) from None
    write_bytes_atomic(note, choices.encode())
    return target


def _in_a_recipe(text: str) -> str:
    """What is said of a set's options, with the keys that a recipe has for them."""
    for option, key in (
        ("--from (in Python source)", "the key source beside set"),
        ("--from", "the key source beside set"),
        ("--revision", "the key revision"),
        ("--id", "the key id"),
    ):
        text = text.replace(option, key)
    return text


def _by_answer(
    data: PhaseData, train: list[Path], held: list[Path], beside: Path, *, seed: int
) -> tuple[list[Path], list[Path]]:
    """Files with a row of each answer. Conversations are split first: two rows of one talk never
    stand on both sides."""
    origin = provenance.of_rows(train, license=data.license)
    talks = [line for path in train for line in _lines(path)]
    kept: list[bytes] = []
    if data.eval_split:
        count = int(np.ceil(data.eval_split * len(talks)))
        drawn = set(np.random.default_rng(seed).permutation(len(talks))[:count].tolist())
        kept = [talk for number, talk in enumerate(talks) if number in drawn]
        talks = [talk for number, talk in enumerate(talks) if number not in drawn]
    made = _write_answers(talks, beside.with_name(beside.name + ".answers.jsonl"), origin)
    target = beside.with_name(beside.name + "_eval.answers.jsonl")
    if kept:
        return [made], [_write_answers(kept, target, origin)]
    if held:
        of_held = provenance.of_rows(held, license=data.license)
        talks = [line for path in held for line in _lines(path)]
        return [made], [_write_answers(talks, target, of_held)]
    return [made], []


def _write_answers(talks: Sequence[bytes], target: Path, origin: provenance.Origin) -> Path:
    rows = b"".join(row for talk in talks for row in _answers(talk))
    side = json.dumps(origin.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_bytes_atomic(provenance.side_file(target), side.encode())
    write_bytes_atomic(target, rows)
    return target


def _answers(talk: bytes) -> Iterator[bytes]:
    """A row for each answer of a conversation; other rows, and broken ones, as they are."""
    try:
        row = json.loads(talk)
        turns = row["messages"]
        ends = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    except (ValueError, KeyError, TypeError, RecursionError):
        ends = []
    if not ends:
        yield talk + b"\n"  # `prepare` says what is wrong with it
        return
    for end in ends:
        part = {**row, "messages": turns[: end + 1]}
        yield json.dumps(part, ensure_ascii=False).encode() + b"\n"


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield line.rstrip(b"\r\n")
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None


def _of_rows(rows: Rows) -> dict[str, Any]:
    if rows.path is None:
        return {key: _plain(value) for key, value in rows.to_dict().items()}
    beside = provenance.side_file(rows.path)
    found = {"name": rows.path.name, "sha256": _sha256(rows.path)}
    return {**found, "origin": _sha256(beside)} if beside.is_file() else found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _of_file(path: Path | None) -> str | None:
    return None if path is None else _checksum_of(path)


def _checksum_of(path: Path) -> str:
    """Of a token file: of its manifest, which has the checksums; else of its bytes."""
    manifest = provenance.manifest_of(path)
    return _sha256(manifest if manifest.is_file() else path)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
