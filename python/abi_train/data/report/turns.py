"""Who speaks when in the chats of a JSONL file, and what of it looks wrong.

Does not know: tokens, tokenizers.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ..sources import Chat, Message, Preference
from .measure import Hits

_ASSISTANT_WORDS: Final = re.compile(
    r"\bas an? (ai|artificial|large)( language)? (model|assistant|intelligence)\b"
    r"|\bhow (can|may) i (help|assist) you\b"
    r"|\bi('m| am) an? (ai|language model|virtual assistant)\b",
    re.IGNORECASE,
)


@dataclass(kw_only=True)
class TurnFacts:
    """Chats by number of turns, and the rows whose turns look wrong.

    swapped: a user speaks as an assistant does. unanswered: the last turn is no answer.
    answer_first: an answer comes before any question. repeated: one role twice in a row.
    late_system: a system text that is not the first turn.
    """

    counts: Counter[int] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    swapped: Hits = field(default_factory=Hits)
    unanswered: Hits = field(default_factory=Hits)
    answer_first: Hits = field(default_factory=Hits)
    repeated: Hits = field(default_factory=Hits)
    late_system: Hits = field(default_factory=Hits)

    @property
    def chats(self) -> int:
        """How many rows are chats."""
        return sum(self.counts.values())


def add_turns(found: TurnFacts, row: int, chat: Chat) -> None:
    """Count one chat."""
    turns = chat.messages
    found.counts[len(turns)] += 1
    found.roles.update(turn.role for turn in turns)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    here = np.array([row])
    if spoken and spoken[-1] != "assistant":
        found.unanswered.add(here)
    if spoken and spoken[0] == "assistant":
        found.answer_first.add(here)
    if any(a == b and a in ("user", "assistant") for a, b in itertools.pairwise(spoken)):
        found.repeated.add(here)
    if any(turn.role == "system" for turn in turns[1:]):
        found.late_system.add(here)
    if any(turn.role == "user" and _ASSISTANT_WORDS.search(turn.content) for turn in turns):
        found.swapped.add(here)


def row_text(row: object) -> str:
    """All text of a row as people wrote it, a line break between its parts."""
    parts: list[str] = []
    for value in vars(row).values():
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, tuple):
            for item in value:  # a turn, or a tool on offer
                if isinstance(item, Message):
                    parts += [item.content, item.thinking or "", *map(_written, item.tool_calls)]
                else:
                    parts.append(_written(item))
    return "\n".join(parts)


def _written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def chats_of(row: object) -> list[Chat]:
    """The chats a row holds: one, none, or that with the better answer of a pair."""
    if isinstance(row, Chat):
        return [row]
    if isinstance(row, Preference) and isinstance(row.prompt, tuple):
        assert isinstance(row.chosen, tuple)
        return [Chat(messages=row.prompt + row.chosen)]
    return []
