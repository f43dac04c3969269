"""EmpatheticDialogues: somebody tells of a situation, somebody listens.

One record is one utterance. Records of a conversation share `conv_id`; `utterance_idx` counts from
1, and the odd ones are the person's. `speaker_idx` is the number of a worker, not a role. Commas
are stored as `_comma_`. `context` is the emotion of the whole conversation, one of 32.

`Estwld/empathetic_dialogues_llm` is a copy with one record a conversation. Its page says
Apache-2.0; a copy cannot give what its source does not, so the licence stays that of the set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from . import emotions
from .base import PARQUET, Converting, DataSet, Home, Layout, Record, Row, one_line

LABELS: Final = tuple(emotions.EMPATHETIC_DIALOGUES)


def turned(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The utterances of a record of the copy, which are roles and texts in order."""
    said = values["conversations"] or []
    begins = 2 if said and said[0]["role"] == "assistant" else 1
    return [
        {
            "conv_id": values["conv_id"],
            "utterance_idx": begins + at,
            "context": values["emotion"],
            "speaker_idx": 1 if one["role"] == "assistant" else 0,
            "utterance": one["content"],
        }
        for at, one in enumerate(said)
    ]


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each conversation: the person is the user, the listener the assistant."""
    conversations: dict[str, list[Record]] = {}
    for place, values in records:
        name, number = values["conv_id"], values["utterance_idx"]
        if not name or number is None:
            job.leave_out(place, "conv_id or utterance_idx is empty")
            continue
        conversations.setdefault(name, []).append((place, values))
    for parts in conversations.values():
        row = _conversation(parts, job)
        if row is not None:
            yield row


def _conversation(parts: list[Record], job: Converting) -> Row | None:
    place, first = parts[0]
    label = str(first["context"] or "").strip().lower()
    if label not in LABELS:
        job.leave_out(place, "context is none of the 32 emotions")
        return None
    spoken = _in_order(parts, job)
    if len({values["speaker_idx"] for values in spoken}) > 2:
        job.leave_out(place, "more than two speakers")
        return None
    turns = _turns(spoken)
    if len(turns) < 2:
        job.leave_out(place, "fewer than two turns")
        return None
    return {"messages": turns, "emotion": emotions.abbey(label), "label": label}


def _in_order(parts: list[Record], job: Converting) -> list[dict[str, Any]]:
    """The utterances by their number, those given twice and those without words left out."""
    by_number: dict[int, dict[str, Any]] = {}
    for place, values in parts:
        text = cleaned(values["utterance"] or "")
        if not text:
            job.leave_out(place, "utterance is empty")
        elif values["utterance_idx"] in by_number:
            job.leave_out(place, "utterance given twice")
        else:
            by_number[values["utterance_idx"]] = {**values, "utterance": text}
    return [by_number[number] for number in sorted(by_number)]


def _turns(spoken: list[dict[str, Any]]) -> list[dict[str, str]]:
    """From the person's first turn to the listener's last; one speaker's in a row are one."""
    if not spoken:
        return []
    begins = spoken[0]["speaker_idx"]
    person_begins = spoken[0]["utterance_idx"] % 2 == 1
    turns: list[dict[str, str]] = []
    for values in spoken:
        person = (values["speaker_idx"] == begins) == person_begins
        role = "user" if person else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += " " + values["utterance"]
        elif turns or person:
            turns.append({"role": role, "content": values["utterance"]})
    if turns and turns[-1]["role"] == "user":
        turns.pop()  # nobody answers it
    return turns


def cleaned(text: str) -> str:
    """The text as it was typed: commas, quotes that lost their partner, pipes."""
    text = re.sub(r"(?<=\d)_comma_(?=\d{3}\b)", ",", text)
    text = re.sub(r"\s*_comma_\s*", ", ", text)
    text = one_line(text.replace('""', '"')).strip("| ,").strip()
    if text.count('"') % 2:
        at = 0 if text.startswith('"') else text.rfind('"')
        text = one_line(text[:at] + text[at + 1 :])
    elif len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    return text


EMPATHETIC_DIALOGUES = DataSet(
    name="empathetic-dialogues",
    title="EmpatheticDialogues",
    teaches="answering feelings: 32 emotions, mapped to Abbey's 14",
    license="CC-BY-NC-4.0",
    commercial_use=False,
    columns={
        "default": {
            "conv_id": str,
            "utterance_idx": int,
            "context": str,
            "speaker_idx": int,
            "utterance": str,
        }
    },
    splits={"train": 76673, "validation": 12030, "test": 10943},
    homes=(
        Home(
            hub_id="facebook/empathetic_dialogues",
            parts={"default": ("default",)},
            revision=PARQUET,
        ),
        Home(
            hub_id="Estwld/empathetic_dialogues_llm",
            parts={"default": (None,)},
            splits={"validation": "valid"},
        ),
    ),
    layouts={
        "default": Layout(
            columns={
                "conv_id": str,
                "emotion": str,
                "conversations": [{"role": str, "content": str}],
            },
            turned=turned,
        )
    },
    aliases=("empathetic_dialogues", "empatheticdialogues"),
    notes=("EmpatheticDialogues is for non-commercial use (CC BY-NC 4.0).",),
    convert=convert,
    raw_csv=True,
)
