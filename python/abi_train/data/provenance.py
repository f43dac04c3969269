"""Where data is from and what it may be used for: from rows to manifest, run and model card.

Rows in `x.jsonl` may have `x.jsonl.source.json` beside them, which says so; `prepare` puts it into
the manifest, a run reads it there. Of several sources the most restrictive counts: one that is not
for commercial use makes the whole so, one that does not say makes the whole unknown.

Does not know: what rows hold, engines.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..checkpoint import write_text_atomic
from ..errors import DataError, FileAccessError

SIDE_ENDING: Final = ".source.json"
JOIN: Final = " AND "
MAX_SIDE_BYTES: Final = 1 << 20

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
    return whole if source is None else Origin(**{**vars(whole), "source": source})


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
    """What the manifest of a token file tells; nothing without one.

    A licence that is known by its name tells whether commercial use is allowed.
    """
    path = manifest_of(data)
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


def remove(rows: str | Path) -> None:
    """Forget what was said about a file of rows."""
    with contextlib.suppress(FileNotFoundError):
        side_file(rows).unlink()
