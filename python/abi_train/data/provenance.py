"""Where data is from and what it may be used for: from rows to manifest, run and model card.

Rows in `x.jsonl` may have `x.jsonl.source.json` beside them, which says so; `prepare` puts it into
the manifest, a run reads it there. Of several sources the most restrictive counts: one that is not
for commercial use makes the whole so, one that does not say makes the whole unknown.

A model card keeps it, so that the next run which begins from the model knows.

Does not know: what rows hold, engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from ..checkpoint import write_text_atomic
from ..errors import ConfigError, DataError, FileAccessError

if TYPE_CHECKING:
    from ..runspec import RunSpec

SIDE_ENDING: Final = ".source.json"
CARD_FILE: Final = "README.md"
CARD_KEY: Final = "abi_train"
"""In the head of a model card of ours."""
JOIN: Final = " AND "
MAX_DEPTH: Final = 20
"""Runs that began from one another; a circle ends here."""
MAX_SIDE_BYTES: Final = 1 << 20
MAX_ORIGIN_BYTES: Final = 1 << 19
"""Of what a manifest is told, which itself has at most twice that."""

#: Licences people meet with data, and whether they allow commercial use.
LICENSES: Final[Mapping[str, bool]] = {
    "own": True,
    "apache-2.0": True,
    "bsd-3-clause": True,
    "cc-by-3.0": True,
    "cc-by-4.0": True,
    "cc-by-sa-3.0": True,
    "cc-by-sa-4.0": True,
    "cc0-1.0": True,
    "cdla-permissive-2.0": True,
    "mit": True,
    "mit-0": True,
    "odc-by": True,
    "odc-by-1.0": True,
    "odbl-1.0": True,
    "unlicense": True,
    "cc-by-nc-2.0": False,
    "cc-by-nc-3.0": False,
    "cc-by-nc-4.0": False,
    "cc-by-nc-nd-4.0": False,
    "cc-by-nc-sa-3.0": False,
    "cc-by-nc-sa-4.0": False,
}


def allows_commercial_use(license: str) -> bool | None:
    """What is known of a licence by its name; None for one that is not in the table."""
    found = [LICENSES.get(name.strip().lower().replace(" ", "-")) for name in license.split(JOIN)]
    return most_restrictive(found)


def most_restrictive(uses: Iterable[bool | None]) -> bool | None:
    """False when one is False, else None when one is None (or there is none), else True."""
    known = list(uses)
    if any(use is False for use in known):
        return False
    return True if known and all(known) else None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where some data is from.

    source: in words. datasets: ids on the Hub. evaluations: benchmarks whose answers are in it.
    """

    source: str | None = None
    license: str | None = None
    commercial_use: bool | None = None
    notes: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    evaluations: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str | Path) -> Origin:
        """The origin that the keys of a side file or manifest tell.

        Raises `DataError` naming `where` for a key of another kind.
        """
        named = values.get("datasets") or values.get("dataset") or []
        return cls(
            source=_text(values, "source", where),
            license=_text(values, "license", where),
            commercial_use=_use(values, where),
            notes=_texts(values.get("notes"), "notes", where),
            datasets=_texts([named] if isinstance(named, str) else named, "datasets", where),
            evaluations=_texts(values.get("evaluations"), "evaluations", where),
        )

    def to_dict(self) -> dict[str, Any]:
        """The keys of a manifest."""
        return {
            "source": self.source,
            "license": self.license,
            "commercial_use": self.commercial_use,
            "notes": list(self.notes),
            "datasets": list(self.datasets),
            "evaluations": list(self.evaluations),
        }

    @property
    def says_more(self) -> bool:
        """True when it has more than the source and licence that every manifest has."""
        return bool(self.commercial_use is not None or self.notes or self.datasets)


def combine(origins: Sequence[Origin]) -> Origin:
    """The origin of data made of several parts."""
    if len(origins) == 1:
        return origins[0]
    licenses = [name for one in origins if one.license for name in one.license.split(JOIN)]
    return Origin(
        source=", ".join(dict.fromkeys(one.source for one in origins if one.source)) or None,
        license=JOIN.join(dict.fromkeys(licenses)) or None,
        commercial_use=most_restrictive(one.commercial_use for one in origins),
        notes=_once(note for one in origins for note in one.notes),
        datasets=_once(name for one in origins for name in one.datasets),
        evaluations=_once(name for one in origins for name in one.evaluations),
    )


def side_file(rows: str | Path) -> Path:
    """Where a file of rows says where it is from."""
    rows = Path(rows)
    return rows.with_name(rows.name + SIDE_ENDING)


def of_rows(
    paths: Sequence[str | Path], *, source: str | None = None, license: str | None = None
) -> Origin:
    """The origin of rows in these files together.

    source, license: of the files that do not say it themselves; without them their names, and an
    unknown licence. Raises `DataError` for a side file that is not one.
    """
    found = []
    for path in map(Path, paths):
        beside = side_file(path)
        if beside.is_file():
            found.append(Origin.from_dict(_object(beside), where=beside))
            continue
        found.append(
            Origin(
                source=source or path.name,
                license=license,
                commercial_use=None if license is None else allows_commercial_use(license),
            )
        )
    whole = combine(found)
    whole = whole if source is None else Origin(**{**vars(whole), "source": source})
    if len(json.dumps(whole.to_dict())) > MAX_ORIGIN_BYTES:
        raise DataError(
            f"{paths[0]}: what is said about all sources together is longer than "
            f"{MAX_ORIGIN_BYTES} bytes; name them with --source, or shorten their notes"
        )
    return whole


def record(data: str | Path, origin: Origin) -> None:
    """Add to the manifest of a token file what its writer does not put there itself."""
    if not origin.says_more:
        return
    path = manifest_of(data)
    values = {**_object(path), **origin.to_dict()}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    try:
        write_text_atomic(path, text)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be written ({error.strerror})") from None


def of_data(data: str | Path) -> Origin:
    """What the manifest of a token file tells; of a set of files, what those of all tell. Nothing
    without a manifest, or with one that is damaged: whoever opens the data says so.

    A licence that is known by its name tells whether commercial use is allowed.
    """
    path = manifest_of(data)
    try:
        return _of_set(path)
    except (DataError, FileAccessError):
        return Origin()


def _of_set(path: Path) -> Origin:
    if not path.is_file():
        return Origin()
    values = _object(path)
    shards = values.get("shards")
    if isinstance(shards, list) and shards:
        files = [one.get("file") for one in shards if isinstance(one, dict)]
        # A set in a set is none; its name could lead in a circle.
        parts = [path.parent / one for one in files if isinstance(one, str) and one != path.name]
        return combine([_of_manifest(manifest_of(part)) for part in parts])
    return _of_manifest(path)


def _of_manifest(path: Path) -> Origin:
    if not path.is_file():
        return Origin()
    values = _object(path)
    if values.get("commercial_use") is None and isinstance(values.get("license"), str):
        values["commercial_use"] = allows_commercial_use(values["license"])
    return Origin.from_dict(values, where=path)


def manifest_of(data: str | Path) -> Path:
    """The manifest's name for a token file."""
    data = Path(data)
    if data.suffix == ".json":
        return data
    return data.with_suffix(".json") if data.suffix == ".bin" else Path(f"{data}.json")


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_SIDE_BYTES:
            raise DataError(f"{path}: too large to say where data is from; is it another file?")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON; correct it or delete it") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a JSON object; correct it or delete it")
    return values


def _text(values: Mapping[str, Any], key: str, where: str | Path) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {key} is not text; correct it")
    return value or None


def _texts(value: Any, key: str, where: str | Path) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: {key} is not a list of texts; correct it")
    return _once(value)


def _use(values: Mapping[str, Any], where: str | Path) -> bool | None:
    value = values.get("commercial_use")
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{where}: commercial_use is not true, false or null; correct it")
    return value


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def of_model(model: str | Path, *, depth: int = 0) -> Origin:
    """What the card of a model says: that of its own folder, of its run, or beside its file.

    Of a run that left no card the recipe tells, and those of the runs before it. Nothing where
    nothing is said. A card that is not ours tells the licence of the model alone.
    """
    model = Path(model)
    folder = model if model.is_dir() else model.parent
    for card in (
        (folder / CARD_FILE,) if model.is_dir() else (model.with_suffix(".md"), folder / CARD_FILE)
    ):
        if card.is_file() and (model.is_dir() or is_ours(card)):
            return of_card(card)
    run = folder.parent
    if depth > MAX_DEPTH or not model.is_dir() or not folder.name.startswith("checkpoint-"):
        return Origin()
    if is_ours(run / CARD_FILE):
        return of_card(run / CARD_FILE)
    recipe = run / "run.json"
    return _of_recipe(run, _object(recipe), depth) if recipe.is_file() else Origin()


def _of_recipe(run: Path, values: Mapping[str, Any], depth: int) -> Origin:
    """What training data and weights of a recipe tell; their paths are taken from its folder."""
    parts = [of_data(run / values["data"])] if _is_path(values, "data") else []
    lora = values.get("lora")
    for table, key in ((values, "model"), (lora if isinstance(lora, dict) else {}, "adapter")):
        if _is_path(table, key):
            parts.append(of_model(run / table[key], depth=depth + 1))
    found = [part for part in parts if part != Origin()]
    return combine(found) if found else Origin()


def _is_path(table: Mapping[str, Any], key: str) -> bool:
    return isinstance(table.get(key), str) and bool(table[key])


def of_card(card: Path) -> Origin:
    """The origin a model card tells: of all data of the model and of what it was made from."""
    front = front_matter(card)
    ours = front.get(CARD_KEY)
    if isinstance(ours, dict) and isinstance(ours.get("data"), list):
        found = [
            Origin.from_dict(values, where=card)
            for values in ours["data"]
            if isinstance(values, dict)
        ]
        return combine(found)
    license = front.get("license")
    if isinstance(license, list) and all(isinstance(name, str) for name in license):
        license = JOIN.join(license)
    if not isinstance(license, str):
        return Origin()
    use = allows_commercial_use(license)
    return Origin(source=card.parent.name, license=license, commercial_use=use)


def is_ours(card: Path) -> bool:
    """True for a model card that this package wrote."""
    return card.is_file() and CARD_KEY in front_matter(card)


def front_matter(card: Path) -> dict[str, Any]:
    """The head of a model card; empty for a file without one."""
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_SIDE_BYTES)
    except OSError:
        return {}
    found = re.match(r"---\r?\n(.*?)\r?\n---\r?(\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none is a ValueError
        return {}
    return values if isinstance(values, dict) else {}


def require_commercial_use(parts: Mapping[str, tuple[Path, Origin]]) -> None:
    """Raise `ConfigError` for the first part of a commercial run that may not be used for it.

    parts: file and origin of what each key of a recipe names. Data must say that it may; a model
    that says nothing is its user's affair, as its licence rarely lies beside it.
    """
    for key, (path, origin) in parts.items():
        license = origin.license or "an unknown licence"
        source = f" ({origin.source})" if origin.source else ""
        if origin.commercial_use is False:
            raise ConfigError(
                f"commercial: {key} {path} is under {license}{source}, which is not for commercial "
                f"use. Use other {'data' if 'data' in key else 'weights'}, or set commercial to "
                "false if the run is not."
            )
        if origin.commercial_use is None and "data" in key:
            raise ConfigError(
                f"commercial: {key} {path} is under {license}{source}, and nothing says that "
                "commercial use is allowed. Prepare it again with --license NAME (own for data of "
                "your own), or write commercial_use: true into its manifest once you know."
            )


def contamination(model: str | Path, task: str) -> str | None:
    """Why a score of `task` means nothing for this model; None when its data is no test of it."""
    origin = of_model(model)
    if not is_test_of(origin, task):
        return None
    return (
        f"{model} was trained on the test data of {task} ({origin.source}): the score says what "
        "it has seen, not what it can do"
    )


def is_test_of(origin: Origin, task: str) -> bool:
    """True when data of this origin holds the answers of a benchmark."""
    wanted = task.lower().replace("-", "_")
    return any(wanted == name or wanted.startswith(f"{name}_") for name in origin.evaluations)


def of_run(spec: RunSpec) -> dict[str, tuple[Path, Origin]]:
    """File and origin of all a run reads, by the key of its recipe."""
    adapter = None if spec.lora is None else spec.lora.adapter
    reference = None if spec.dpo is None else spec.dpo.ref_model
    found = {"data": (spec.data, of_data(spec.data))}
    if spec.eval_data is not None:
        found["eval_data"] = (spec.eval_data, of_data(spec.eval_data))
    weights = {"model": spec.model, "lora.adapter": adapter, "dpo.ref_model": reference}
    for key, path in weights.items():
        if path is not None:
            found[key] = (Path(path), of_model(path))
    return found
