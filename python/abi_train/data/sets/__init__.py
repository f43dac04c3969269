"""The public data sets of the Abbey guide, each as rows that `prepare` reads.

    from abi_train.data.sets import fetch
    fetch("gsm8k", "gsm8k.jsonl", limit=1000)
    fetch("daily-dialog", "talk.jsonl", source="downloads/daily_dialog")

A module describes one set; `SETS` lists them. Importing this touches neither network nor files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError
from .base import DataSet
from .competition_math import MATH
from .daily_dialog import DAILY_DIALOG
from .empathetic_dialogues import EMPATHETIC_DIALOGUES
from .fetch import Fetched, fetch_set
from .go_emotions import GO_EMOTIONS
from .gsm8k import GSM8K
from .hotpot_qa import HOTPOT_QA
from .preferences import PREFERENCES
from .truthful_qa import TRUTHFUL_QA

SETS: Final[tuple[DataSet, ...]] = (
    EMPATHETIC_DIALOGUES,
    DAILY_DIALOG,
    GO_EMOTIONS,
    GSM8K,
    MATH,
    HOTPOT_QA,
    TRUTHFUL_QA,
    PREFERENCES,
)


def find(name: str) -> DataSet:
    """The set of this name, or of an id people know it by. Raises `ConfigError`."""
    wanted = name.strip().lower()
    for data_set in SETS:
        ids = (home.hub_id for home in data_set.homes)
        names = (data_set.name, data_set.title, *data_set.aliases, *data_set.gone, *ids)
        if wanted in (known.lower() for known in names):
            return data_set
    known = ", ".join(data_set.name for data_set in SETS)
    raise ConfigError(f"{name!r} is no data set known here; known are {known}")


def fetch(name: str, output: str | Path, **choices: Any) -> Fetched:
    """Write the rows of the set `name` to `output`; see `fetch_set` for the choices."""
    return fetch_set(find(name), output, **choices)


__all__ = ["SETS", "DataSet", "Fetched", "fetch", "fetch_set", "find"]
