"""Records of a set from the Hugging Face Hub, through `datasets`; the only file that imports it.

Nothing is imported or asked before `read` is called. What can go wrong out there becomes one
sentence with the next move.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ...errors import AbiTrainError, ConfigError, DataError, EngineError, FileAccessError
from .base import Record
from .local import Table, label_names

NETWORK: Final = (
    "aiohttp",
    "fsspec",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "requests",
    "urllib3",
)
"""Libraries whose errors mean that the Hub did not answer."""
FILES: Final = (
    "download its files elsewhere and make rows of them: "
    "`abi-train data get SET --from FOLDER --output ROWS.jsonl` (`source` in Python)"
)
"""What can be done without the network, wherever a set was asked for."""


def read(
    hub_id: str,
    part: str | None,
    wanted: Iterable[str],
    *,
    split: str,
    revision: str | None,
) -> tuple[Table, str]:
    """A split of a repository, and the commit it was read at (empty where that is not known).

    hub_id: also a folder that is laid out like a repository. wanted: the columns records need.
    Raises `EngineError` without `datasets`, `FileAccessError` when the Hub cannot be reached or has
    no such set, `ConfigError` for a configuration or split it does not have.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        raise EngineError(
            f"reading from the Hub needs datasets: pip install 'abi-train[sets]', or {FILES}"
        ) from None
    if not os.isatty(2):
        datasets.disable_progress_bars()
    known = {} if revision is None or Path(hub_id).is_dir() else {"revision": revision}
    with _hushed():
        try:
            loaded = datasets.load_dataset(hub_id, part, split=split, **known)
        except Exception as error:
            raise _said(error, hub_id, part, split, revision) from None
    names = [name for name in wanted if name in loaded.features]
    table = Table(
        where=hub_id,
        columns=tuple(loaded.features),
        records=_records(loaded, names, f"{hub_id}{f' {part}' if part else ''} {split}"),
        label_names={
            name: labels
            for name, feature in loaded.features.to_dict().items()
            if (labels := label_names(feature))
        },
    )
    return table, commit_of(getattr(loaded.info, "download_checksums", None) or {})


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """What the libraries would say of each attempt; the one sentence at the end says it all."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _records(loaded: Any, names: list[str], where: str) -> Iterator[Record]:
    """Rows as plain values, taken from Arrow in pieces: labels stay numbers."""
    number = 0
    if not names:
        return
    for piece in loaded.select_columns(names).with_format("arrow").iter(batch_size=1000):
        for values in piece.to_pylist():
            number += 1
            yield f"{where}, row {number}", values


def commit_of(checksums: dict[str, Any]) -> str:
    """The commit in the addresses of the files that were read, when all are of the same one."""
    found = {match[1] for url in checksums if (match := re.search(r"@([0-9a-f]{40})/", url))}
    return found.pop() if len(found) == 1 else ""


def _said(
    error: Exception, hub_id: str, part: str | None, split: str, revision: str | None
) -> AbiTrainError:
    """The error in our words."""
    name = hub_id + (f" at {revision}" if revision else "")
    text = " ".join(str(error).split())
    kind = type(error).__name__
    files = FILES
    asked = f"configuration {part or 'default'}, split {split}"
    if "scripts are no longer supported" in text:
        return DataError(
            f"{name} is published as a script, which is not run; add --revision "
            "refs/convert/parquet, where the Hub keeps the same rows as Parquet"
        )
    if "Revision" in kind or ("evision" in text and "exist" in text):
        return ConfigError(f"{name}: no such revision; check --revision")
    if kind in ("DataFilesNotFoundError", "EmptyDatasetError"):
        return DataError(f"{name}: no data files for {asked}; try another --revision, or {files}")
    if kind == "DatasetNotFoundError" or "RepositoryNotFound" in kind:
        return FileAccessError(
            f"{name}: no such data set on the Hub, or it is private or gone; try another --id, or "
            f"{files}"
        )
    if isinstance(error, ValueError) and ("split" in text.lower() or "config" in text.lower()):
        return ConfigError(f"{name} does not have what was asked for ({asked}): {text[:200]}")
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, (ConnectionError, TimeoutError)) or library in NETWORK:
        return FileAccessError(
            f"{name}: the Hub cannot be reached; check the network (HF_HUB_OFFLINE must not be "
            f"set), or {files}"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else "the cache of datasets: "
        return FileAccessError(f"{name}: {where}{error.strerror}; free space, or set HF_HOME")
    return DataError(
        f"{name} cannot be loaded ({kind}: {text[:200]}); try another --revision, or {files}"
    )
