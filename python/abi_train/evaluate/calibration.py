"""Does the model know what it knows.

Two looks at each question. *How sure*: the answers that the row names, true and wrong, and a few
ways to say that one does not know, are compared by their probability. The model's choice is the
likeliest answer among the former, its confidence the share of that answer among all, so doubt
takes from it. A question nobody can answer has only wrong ones: confidence there is always too
much. From choices and confidences come the calibration error and the Brier score.

*What it says*: the likeliest answer as text; it declines, or it answers, rightly or not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from ..data.pair_templates import ABSTENTIONS, Question, inside
from .metrics import brier, calibration_bins, calibration_error, log_sum, mean, softmax
from .scorer import Scorer

MAX_NEW_TOKENS: Final = 48
SHOWN_WRONG: Final = 10
FORMS: Final = ("{}", "The answer is {}", "Definitely {}")
"""How an answer may begin; that none begins another keeps their probabilities apart."""

#: What an answer says that gives none. Looked for in small letters, apostrophes made straight.
_DECLINES: Final = re.compile(
    r"\b(i|we) (do not|don't|can't|cannot|can not|couldn't|could not) "
    r"(really )?(know|say|tell|predict|see|be sure|be certain|talk|judge|answer)"
    r"|\b(i am|i'm) (not|un)[ ]?(sure|certain|able)"
    r"|\b(nobody|no one|no-one) (can|could|knows|will)\b"
    r"|\b(impossible|no way|too early|hard) to (know|say|tell|predict)"
    r"|\bthat depends\b|\bit depends\b|\bno comment\b|\bi have no (idea|way|information)"
    r"|\bi would rather not\b|\bi need to know more\b"
)


def declines(text: str) -> bool:
    """Whether an answer says that it gives none: it does not know, or it would rather not."""
    return _DECLINES.search(_plain(text)) is not None


def names(text: str, answers: Sequence[str]) -> bool:
    """Whether one of these answers stands in the text, as whole words."""
    plain = _plain(text)
    return any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain) is not None
        for answer in answers
        if (word := _plain(answer).strip(" .!?"))
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


def evaluate(
    scorer: Scorer, questions: list[Question], *, max_new_tokens: int = MAX_NEW_TOKENS
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and details; metrics that no question bears on are left out."""
    scores, details = _how_sure(scorer, questions)
    said, more = _what_it_says(scorer, questions, max_new_tokens)
    scores |= said
    scores["rows"] = float(len(questions))
    return scores, {**details, **more}


def _turns(question: Question) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question.question}]


def _how_sure(scorer: Scorer, questions: list[Question]) -> tuple[dict[str, float], dict[str, Any]]:
    choosing = [q for q in questions if q.wrong]
    if not choosing:
        return {}, {"scored": 0}
    asked = [
        (
            q.source or q.question,
            _turns(q),
            [
                *(_said(form, c) for c in (*q.answers[:1], *q.wrong) for form in FORMS),
                *ABSTENTIONS,
            ],
        )
        for q in choosing
    ]
    found = scorer.log_likelihoods(asked, whole=False)
    confidences, correct = [], []
    for question, values in zip(choosing, found, strict=True):
        choices = len(question.answers[:1]) + len(question.wrong)
        groups = [log_sum(values[at * len(FORMS) : (at + 1) * len(FORMS)]) for at in range(choices)]
        shares = softmax([*groups, log_sum(values[choices * len(FORMS) :])])
        best = max(range(choices), key=groups.__getitem__)
        confidences.append(shares[best])
        correct.append(best < len(question.answers[:1]))
    bins = calibration_bins(confidences, correct)
    answerable = [right for q, right in zip(choosing, correct, strict=True) if q.answers]
    scores = {
        "calibration_error": calibration_error(bins),
        "brier": brier(confidences, correct),
        "accuracy_of_choice": mean(answerable),
    }
    kept = {name: value for name, value in scores.items() if value is not None}
    return kept, {"bins": bins, "scored": len(choosing)}


def _said(form: str, answer: str) -> str:
    """The beginning of an answer, without the full stop that may or may not follow."""
    answer = answer.strip().rstrip(".!")
    return form.format(answer if form.startswith("{}") else inside(answer))


def _what_it_says(
    scorer: Scorer, questions: list[Question], max_new_tokens: int
) -> tuple[dict[str, float], dict[str, Any]]:
    asked = [(q.source or q.question, _turns(q)) for q in questions]
    answers = scorer.answers(asked, max_new_tokens=max_new_tokens)
    declined: dict[str, list[bool]] = {}
    asks: list[bool] = []
    right: list[bool] = []
    right_of_answered: list[bool] = []
    wrong: list[dict[str, Any]] = []
    for question, (text, _) in zip(questions, answers, strict=True):
        no = declines(text) or not text
        declined.setdefault(question.kind, []).append(no)
        sound = no
        if question.kind == "ambiguous":
            sound = no or text.rstrip().endswith("?")
            asks.append(sound)
        elif question.answers:
            sound = names(text, question.answers) and not no
            right.append(sound)
            if not no:
                right_of_answered.append(sound)
        if not sound and len(wrong) < SHOWN_WRONG:
            wrong.append(
                {
                    "row": question.source,
                    "kind": question.kind,
                    "question": question.question,
                    "wanted": question.answers[0] if question.answers else "no answer",
                    "answer": text,
                }
            )
    known = [*declined.get("known", []), *declined.get("trick", [])]
    scores = {
        "answers_known": None if not known else 1 - sum(known) / len(known),
        "accuracy_known": mean(right),
        "accuracy_when_answering": mean(right_of_answered),
        "abstains_unknowable": mean(declined.get("unknowable", [])),
        "asks_ambiguous": mean(asks),
    }
    kept = {name: value for name, value in scores.items() if value is not None}
    return kept, {"kinds": {kind: len(rows) for kind, rows in declined.items()}, "wrong": wrong}
