"""Does the model come to the right result: the likeliest answer, of which the last number counts.

What counts is the number behind `####`, as GSM8K writes it, else the last number there is; equal
means equal as numbers.
"""

from __future__ import annotations

from typing import Any

from ..errors import DataError
from .metrics import final_number, mean
from .rows import ChatItem
from .scorer import Scorer

MAX_NEW_TOKENS = 256
SHOWN_WRONG = 10


def evaluate(
    scorer: Scorer, items: list[ChatItem], *, max_new_tokens: int = MAX_NEW_TOKENS
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and details. Raises `DataError` for a row whose answer has no number."""
    wanted = []
    for item in items:
        number = final_number(item.answer)
        if number is None:
            raise DataError(
                f"{item.place}: no number in the answer {item.answer[:60]!r}; it must end with "
                "'#### 24', or with the result as its last number"
            )
        wanted.append(number)
    asked = [(item.place, item.turns) for item in items]
    right: list[bool] = []
    wrong: list[dict[str, Any]] = []
    marked = silent = cut = 0
    answers = scorer.answers(asked, max_new_tokens=max_new_tokens)
    for item, want, (text, ended) in zip(items, wanted, answers, strict=True):
        got = final_number(text)
        right.append(got == want)
        marked += "####" in text
        silent += got is None
        cut += not ended
        if got != want and len(wrong) < SHOWN_WRONG:
            wrong.append(
                {
                    "row": item.place,
                    "question": item.turns[-1]["content"],
                    "wanted": str(want),
                    "given": None if got is None else str(got),
                    "answer": text,
                }
            )
    count = len(items)
    scores = {
        "accuracy": mean(right) or 0.0,
        "marked": marked / count,
        "no_number": silent / count,
        "cut_off": cut / count,
        "rows": float(count),
    }
    return scores, {"max_new_tokens": max_new_tokens, "wrong": wrong}
