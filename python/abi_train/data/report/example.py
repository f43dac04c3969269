"""A row as people can look at it: its tokens as text, each with whether it is learned.

Does not know: terminals, pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a shown row. text: None without a tokenizer; empty inside a long character."""

    id: int
    text: str | None
    in_loss: bool
    control: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row to be shown. line: where it stands in the JSONL file, or None.

    answer: `chosen` or `rejected` for a row of a pair. count: tokens of the row; `tokens` may be
    the first of them only.
    """

    row: int
    line: int | None
    answer: str | None
    count: int
    tokens: tuple[Token, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "row": self.row,
            "line": self.line,
            "answer": self.answer,
            "tokens": self.count,
            "shown": [vars(token) for token in self.tokens],
        }


def tokens_of(
    ids: npt.NDArray[np.uint32], learned: Iterable[bool], vocabulary: Vocabulary | None
) -> tuple[Token, ...]:
    """Each id with its text."""
    numbers = [int(token) for token in ids]
    texts: list[str | None] = [None] * len(numbers)
    if vocabulary is not None:
        texts = list(vocabulary.texts(numbers))
    return tuple(
        Token(
            id=token,
            text=text,
            in_loss=bool(kept),
            control=vocabulary is not None
            and token < vocabulary.size
            and bool(vocabulary.control[token]),
        )
        for token, text, kept in zip(numbers, texts, learned, strict=True)
    )
