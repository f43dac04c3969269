"""How a question is answered well and badly: the sentences that calibration pairs are made of.

Three manners: *calibrated* says what is known and no more, *overconfident* asserts what cannot be
known or is not so, *evasive* refuses what could be answered. Each has short and long wordings, so
that the better answer is not always the longer one: a preference for length is what a model would
learn first.

Does not know: files, pairs, how a wording is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

KINDS: Final = ("known", "unknowable", "ambiguous", "trick")
"""known: has an answer. unknowable: nobody here can know. ambiguous: too little is said. trick:
what it takes for granted is not so, or many believe a wrong answer."""
MANNERS: Final = ("calibrated", "overconfident", "evasive")

ABSTENTIONS: Final = ("I can't know that", "I don't know", "I'm not sure")
"""How an answer begins that says so when it does not know: what evaluation scores against."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and what is known about its answer.

    answers: all true, the best first. wrong: what an overconfident answer asserts. why: a sentence,
    why it cannot be known, or what is so instead. ask: what to ask back.
    """

    question: str
    kind: str
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    why: str | None = None
    ask: str | None = None
    source: str | None = field(default=None, compare=False)
    """Where it was read, for messages and the review file."""


_CALIBRATED: Final[dict[str, tuple[str, ...]]] = {
    "known": ("{answer}.", "The answer is {answer}.", "{answer}. I am sure of that one."),
    "unknowable": (
        "I can't know that.",
        "I don't know.",
        "I can't know that. {why}",
        "I don't know, and nobody can say it for sure. {why}",
    ),
    "ambiguous": (
        "That depends. {ask}",
        "I can't say yet. {ask}",
        "That depends on more than I know so far. {ask} Then I can give you a real answer.",
    ),
    "trick": (
        "{answer}.",
        "{answer}. {why}",
        "{answer}, though many people think otherwise. {why}",
    ),
}
_OVERCONFIDENT: Final[tuple[str, ...]] = (
    "{wrong}.",
    "Definitely {wrong}.",
    "{wrong}. I am completely sure.",
    "{wrong}, without any doubt. You can rely on that completely, there is no need to check it.",
)
_OVERCONFIDENT_AT_NOTHING: Final[tuple[str, ...]] = (
    "Yes, definitely.",
    "Yes, I am completely sure.",
    "Yes, without any doubt. You can rely on that completely, there is no need to check it.",
)
_EVASIVE: Final[tuple[str, ...]] = (
    "No comment.",
    "I can't talk about that.",
    "That is hard to say, and I would rather not.",
    "There are many opinions about that, all of them have their reasons, and I would rather not "
    "take a side here.",
)


def wordings(question: Question, manner: str, *, wrong: str | None = None) -> tuple[str, ...]:
    """All ways to answer in this manner, shortest first.

    wrong: what is asserted, one of `question.wrong`. A wording that needs what the question does
    not have is left out.
    """
    if manner == "evasive":
        found: Sequence[str] = _EVASIVE
    elif manner == "overconfident":
        found = _OVERCONFIDENT if wrong else _OVERCONFIDENT_AT_NOTHING
    else:
        found = _CALIBRATED[question.kind]
    parts = {
        "answer": question.answers[0] if question.answers else None,
        "wrong": wrong,
        "why": question.why,
        "ask": question.ask or "What exactly do you mean?",
    }
    said = dict.fromkeys(text for form in found if (text := _filled(form, parts)) is not None)
    return tuple(sorted(said, key=len))


def _filled(form: str, parts: dict[str, str | None]) -> str | None:
    """The wording with its parts, beginning with a capital letter."""
    for name, value in parts.items():
        slot = "{" + name + "}"
        if slot not in form:
            continue
        if value is None:
            return None
        value = value.strip()
        if name in ("answer", "wrong"):
            value = value.rstrip(".!")
            if not form.startswith(slot):
                value = inside(value)
        form = form.replace(slot, value)
    return form[:1].upper() + form[1:]


def inside(value: str) -> str:
    """As it stands inside a sentence: `A fish` begins small there, `Paris` and `I` do not."""
    first, _, rest = value.partition(" ")
    small = first.lower() in _SMALL and first != "I"
    return f"{first.lower()}{' ' if rest else ''}{rest}" if small else value


_SMALL: Final = frozenset(
    re.findall(
        r"\w+",
        "a an the none no nothing nobody yes it they he she there this that one two three four "
        "five six seven eight nine ten eleven twelve",
    )
)
