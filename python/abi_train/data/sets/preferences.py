"""Pairs of answers of your own: `prompt`, `chosen`, `rejected` in a file.

The three are texts, or lists of turns. Texts become turns, as a model that talks needs them; with
the option `shape=text` they stay as they are, for one that goes on writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .base import Converting, DataSet, Option, Record, Row

ROLES = ("system", "user", "assistant")


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each pair whose answers are there and differ."""
    for place, values in records:
        row = _row(values, turns=job.options["shape"] == "chat")
        if isinstance(row, str):
            job.leave_out(place, row)
        else:
            yield row


def _row(values: dict[str, Any], *, turns: bool) -> Row | str:
    """The row, or why there is none."""
    parts: dict[str, Any] = {}
    for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        value = values[name]
        if isinstance(value, str):
            if not value.strip():
                return f"{name} is empty"
            parts[name] = [{"role": role, "content": value.strip()}] if turns else value
            continue
        if not isinstance(value, list) or not value:
            return f"{name} is empty" if value in (None, []) else f"{name} is not text or turns"
        reason = _fault(value)
        if reason is not None:
            return f"{name}: {reason}"
        parts[name] = value
    if len({isinstance(part, str) for part in parts.values()}) > 1:
        return "texts and turns in one pair"
    if parts["chosen"] == parts["rejected"]:
        return "chosen and rejected are the same"
    if isinstance(values.get("emotion"), str) and values["emotion"].strip():
        parts["emotion"] = values["emotion"]
    return parts


def _fault(turns: list[Any]) -> str | None:
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            return f"a turn whose role is not {', '.join(ROLES)}"
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            return "a turn without text"
    return None


PREFERENCES = DataSet(
    name="preferences",
    title="pairs of your own",
    teaches="whatever your pairs show; the guide's third phase",
    license=None,
    commercial_use=None,
    columns={"default": {"prompt": object, "chosen": object, "rejected": object}},
    optional={"emotion": object},
    splits={},
    options=(
        Option(
            name="shape",
            values=("chat", "text"),
            help="texts become turns of a chat, or stay texts",
        ),
    ),
    convert=convert,
)
