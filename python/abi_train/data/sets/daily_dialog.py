"""DailyDialog: everyday talk of two people, each utterance with an act and an emotion.

`dialog`, `act` and `emotion` are lists of one length. The text was split into words: there are
spaces before punctuation and inside of "I ' m".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from . import emotions
from .base import PARQUET, Converting, DataSet, Home, Record, Row, one_line

EMOTIONS: Final = tuple(emotions.DAILY_DIALOG)
ACTS: Final = ("__dummy__", "inform", "question", "directive", "commissive")


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each dialogue: who begins is the user, whose turns carry their emotion."""
    for place, values in records:
        said, acts, felt = values["dialog"], values["act"], values["emotion"]
        if not said:
            job.leave_out(place, "dialog is empty")
        elif any(marks is None or len(marks) != len(said) for marks in (acts, felt)):
            job.leave_out(place, "dialog, act and emotion differ in length")
        elif any(not 0 <= mark < len(EMOTIONS) for mark in felt):
            job.leave_out(place, "an emotion is not 0 to 6")
        else:
            turns = _turns(said, felt)
            if len(turns) < 2:
                job.leave_out(place, "fewer than two turns")
            else:
                yield {"messages": turns}


def _turns(said: list[str], felt: list[int]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for at, (text, mark) in enumerate(zip(said, felt, strict=True)):
        words = repaired(text or "")
        if not words:
            continue
        role = "assistant" if at % 2 else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += " " + words
        elif role == "user":
            turns.append(
                {"role": role, "content": words, "emotion": emotions.abbey(EMOTIONS[mark])}
            )
        elif turns:
            turns.append({"role": role, "content": words})
    if turns and turns[-1]["role"] == "user":
        turns.pop()  # nobody answers it
    return turns


_LETTERS: Final = re.compile(r"\b[A-Za-z] \.(?: [A-Za-z] \.)+")  # p . m . or U . S . A .

#: What is put together again, in this order.
_REPAIRS: Final = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"(?<=\w) (['’]) ?([sS]|[mM]|[dD]|[tT]|re|ve|ll)\b", r"\1\2"),  # I ’ m, don ' t
        (r"\b(\w+) (n['’]t)\b", r"\1\2"),  # do n't
        (r"\b([oO]|[yY]|[mM]a) (['’]) (?=(?:clock|all|am)\b)", r"\1\2"),  # o ' clock
        (r"(?<=\d) ([.:]) (?=\d)", r"\1"),  # 9 : 30
        (r"(?<=\d) , (?=\d{3}\b)", ","),  # 1 , 000
        (r"([$£€#]) (?=\d)", r"\1"),
        (r" (?=[,.?!;:%)\]}…])", ""),
        (r"(?<=[(\[{]) ", ""),
        (r'" ([^"]*?) "', r'"\1"'),
        (r"“ (.*?) ”", r"“\1”"),
        (r"(?<=[,;:?!])(?=[A-Za-z])", " "),  # yes,I do
        (r"(?<=[a-z]{2}[.])(?=[A-Z])", " "),  # do.Really
    )
)


def repaired(text: str) -> str:
    """The text as one would write it."""
    text = _LETTERS.sub(lambda found: found[0].replace(" ", ""), one_line(text))
    for pattern, put in _REPAIRS:
        text = pattern.sub(put, text)
    return one_line(text)


DAILY_DIALOG = DataSet(
    name="daily-dialog",
    title="DailyDialog",
    teaches="everyday talk, an emotion on each turn of the person",
    license="CC-BY-NC-SA-4.0",
    commercial_use=False,
    columns={"default": {"dialog": [str], "act": [int], "emotion": [int]}},
    splits={"train": 11118, "validation": 1000, "test": 1000},
    homes=(
        Home(
            hub_id="li2017dailydialog/daily_dialog",
            parts={"default": ("default",)},
            revision=PARQUET,
        ),
        Home(hub_id="OpenRL/daily_dialog", parts={"default": (None,)}),
    ),
    aliases=("daily_dialog", "dailydialog"),
    notes=(
        "DailyDialog is for non-commercial use, and what is made of it is to be shared alike (CC "
        "BY-NC-SA 4.0).",
    ),
    label_names={"emotion": EMOTIONS, "act": ACTS},
    convert=convert,
)
