"""Pairs of answers of your own: `prompt`, `chosen`, `rejected` in a file.

The three are texts, or lists of turns; answers that are the whole talk need no prompt. Texts become
turns, as a model that talks needs them; with the option `shape=text` they stay as they are, for one
that goes on writing.
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
    answers = values["chosen"], values["rejected"]
    if not isinstance(values["prompt"], list) and all(isinstance(one, list) for one in answers):
        values = _taken_out(values)
    parts: dict[str, Any] = {}
    for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        value = values[name]
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            return f"{name} is empty"
        if isinstance(value, str):
            parts[name] = [{"role": role, "content": value.strip()}] if turns else value
            continue
        reason = _fault(value) if isinstance(value, list) else "neither text nor turns"
        if reason is not None:
            return f"{name}: {reason}"
        parts[name] = value
    if len({isinstance(part, str) for part in parts.values()}) > 1:
        return "texts and turns in one pair"
    if parts["chosen"] == parts["rejected"]:
        return "chosen and rejected are the same"
    if isinstance(values["emotion"], str) and values["emotion"].strip():
        parts["emotion"] = values["emotion"]
    return parts


def _taken_out(values: dict[str, Any]) -> dict[str, Any]:
    """With the turns both answers begin with as the prompt, where they hold the whole talk."""
    shared = 0
    for better, worse in zip(values["chosen"], values["rejected"], strict=False):
        if better != worse:
            break
        shared += 1
    if shared == 0:
        return values
    return {
        **values,
        "prompt": values["chosen"][:shared],
        "chosen": values["chosen"][shared:],
        "rejected": values["rejected"][shared:],
    }


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
    columns={"default": {"chosen": object, "rejected": object}},
    optional={"prompt": object, "emotion": object},
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
