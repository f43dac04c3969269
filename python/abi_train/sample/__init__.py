"""The packaged sample: rows of our own for each phase of the recipe, and a tokenizer.

    from abi_train import sample
    sample.rows("emotional")       # a JSONL file to train on
    sample.held_out("emotional")   # and one to test with; no row stands in both

`generate.py` writes the files of the phases, `tiny.py` a tiny model of random weights; README.md
says what they hold. Needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import ConfigError

FOLDER: Final = Path(__file__).resolve().parent
TOKENIZER: Final = FOLDER / "tokenizer"
HARMONY: Final = FOLDER / "harmony"
LICENSE: Final = "Apache-2.0"
SOURCE: Final = "abi_train sample"

#: Name of rows and their file.
ROWS: Final = {
    "base": "base.jsonl",
    "words": "words.jsonl",
    "emotional": "emotional.jsonl",
    "reasoning": "reasoning.jsonl",
    "calibration": "calibration.jsonl",
    "conversations": "abbey_conversations.jsonl",
    "preferences": "abbey_preferences.jsonl",
}
#: The questions that the pairs of calibration are built from (`abi-train data pairs`).
QUESTIONS: Final = "calibration_questions.jsonl"
#: Name of rows and the file of those that were kept from training.
HELD_OUT: Final = {
    "emotional": "emotional_held_out.jsonl",
    "reasoning": "reasoning_held_out.jsonl",
    "calibration": "calibration_held_out.jsonl",
}


def rows(name: str) -> Path:
    """The file of training rows of this name. Raises `ConfigError` for an unknown one."""
    return _file(name, ROWS, "rows")


def held_out(name: str) -> Path:
    """The file of rows that are in no training file. Raises `ConfigError` for an unknown name."""
    return _file(name, HELD_OUT, "held-out rows")


def _file(name: str, known: dict[str, str], what: str) -> Path:
    if name not in known:
        raise ConfigError(f"the sample has no {what} {name!r}; it has {', '.join(known)}")
    return FOLDER / known[name]
