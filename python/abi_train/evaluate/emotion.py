"""Does the model hear how somebody feels: of Abbey's 14 words as answers the likeliest counts.

The model is not asked to write: it could answer with a fifteenth word. What is compared is the
log-probability of each word with the end of the turn behind it.
"""

from __future__ import annotations

from typing import Any

from ..data.sets import emotions
from ..errors import DataError
from .metrics import confusion, macro_f1, mean
from .rows import ChatItem
from .scorer import Scorer

LABELS = emotions.ABBEY
QUESTION = f"Name the emotion in this message: {', '.join(LABELS)}.\n\n"
"""For a message that no row asks about itself."""
SHOWN_WRONG = 10


def evaluate(scorer: Scorer, items: list[ChatItem]) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and details. Raises `DataError` for a row without an emotion among the labels."""
    asked = [_asked(item) for item in items]
    found = scorer.log_likelihoods(
        [(item.place, turns, LABELS) for item, (turns, _) in zip(items, asked, strict=True)],
        whole=True,
    )
    wanted = [label for _, label in asked]
    given = [LABELS[max(range(len(LABELS)), key=row.__getitem__)] for row in found]
    table = confusion(LABELS, wanted, given)
    wrong = [
        {"row": item.place, "message": turns[-1]["content"], "wanted": want, "given": gave}
        for item, (turns, want), gave in zip(items, asked, given, strict=True)
        if want != gave
    ]
    scores = {
        "accuracy": mean([w == g for w, g in zip(wanted, given, strict=True)]),
        "macro_f1": macro_f1(table),
        "rows": float(len(items)),
    }
    details = {"labels": list(LABELS), "confusion": table, "wrong": wrong[:SHOWN_WRONG]}
    return {name: value for name, value in scores.items() if value is not None}, details


def _asked(item: ChatItem) -> tuple[list[dict[str, Any]], str]:
    """The turns to answer and the label: the row's answer, or the emotion it is marked with."""
    label = _label(item.answer)
    if label is not None:
        return item.turns, label
    label = _label(item.emotion or "")
    if label is None:
        said = item.emotion or item.answer[:60]
        raise DataError(
            f"{item.place}: {said!r} is none of the emotions {', '.join(LABELS)}; the row's answer "
            "must be one, or its key emotion"
        )
    message = next((t["content"] for t in item.turns if t["role"] == "user"), "")
    return [{"role": "user", "content": QUESTION + message}], label


def _label(text: str) -> str | None:
    """Abbey's word for an answer: one of hers, or a label of a public set. None for other text."""
    word = text.strip().rstrip(".!").lower()
    if word in LABELS:
        return word
    try:
        return emotions.abbey(word)
    except KeyError:
        return None
