"""Calibration pairs: a question with a well calibrated answer and a worse one.

From questions with what is known about their answers, from pairs somebody made, and from recorded
conversations (`pair_sources`). Always true: the same questions and seed give the same pairs in the
same order; no question stands in two pairs of the same failure; the better answer is about as often
the shorter one, because a preference for length is easier to learn than any other.

Does not know: files, tokenizers.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .pair_templates import Question, wordings
from .sets.base import draw

FAILURES: Final = ("overconfident", "evasive")
CORRECTED: Final = "corrected"
"""The failure of a recorded answer that was objected to and then given anew."""
GIVEN: Final = "given"
"""Of a pair that somebody made."""

#: Of so many pairs in ten the worse answer is overconfident; in the others it is evasive.
_OVERCONFIDENT_IN_TEN: Final = {"known": 5, "unknowable": 7, "ambiguous": 7, "trick": 8}
_LONG: Final = 10
"""From so many content words on two questions can be nearly the same and not mean other things."""
_ALIKE: Final = 0.9

Turn = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair. accepted: None until somebody has looked at it; then whether it is taken.

    needs_review: it is not taken unless somebody has.
    """

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    kind: str
    failure: str
    source: str | None = None
    accepted: bool | None = None
    needs_review: bool = False

    @property
    def id(self) -> str:
        """Names the pair by question and failure, so that it keeps its name when reworded."""
        told = "\n".join([self.failure, *(f"{t['role']}: {t['content']}" for t in self.prompt)])
        if self.failure == GIVEN:  # somebody's pairs may share a question
            told += f"\n{self.chosen}\n{self.rejected}"
        return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

    @property
    def taken(self) -> bool:
        """Whether it is part of the result."""
        return not self.needs_review if self.accepted is None else self.accepted

    def row(self) -> dict[str, Any]:
        """The pair as `prepare` reads it."""
        return {
            "prompt": [dict(turn) for turn in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "kind": self.kind,
            "failure": self.failure,
        }


@dataclass(frozen=True, kw_only=True)
class Built:
    """Pairs, and what became of everything else."""

    pairs: tuple[Pair, ...]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def taken(self) -> tuple[Pair, ...]:
        """Those which are part of the result."""
        return tuple(pair for pair in self.pairs if pair.taken)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The taken pairs as `prepare` reads them."""
        return [pair.row() for pair in self.taken]

    def to_dict(self) -> dict[str, Any]:
        """Counts and lengths, as plain values."""
        taken = self.taken
        longer = sum(len(pair.chosen) > len(pair.rejected) for pair in taken)
        return {
            "pairs": len(taken),
            "kinds": dict(Counter(pair.kind for pair in taken)),
            "failures": dict(Counter(pair.failure for pair in taken)),
            "left_out": dict(self.left_out),
            "rejected_in_review": sum(pair.accepted is False for pair in self.pairs),
            "waiting_for_review": sum(
                pair.accepted is None and pair.needs_review for pair in self.pairs
            ),
            "chosen_is_longer": longer / len(taken) if taken else None,
            "mean_characters": {
                name: sum(len(getattr(pair, name)) for pair in taken) / len(taken)
                for name in ("chosen", "rejected")
            }
            if taken
            else None,
        }


def build(
    questions: Iterable[Question],
    *,
    others: Iterable[Pair] = (),
    seed: int = 42,
    failures: str = "one",
) -> Built:
    """Pairs of these questions, then the `others`, each once.

    failures: `one` a question, drawn by the seed, or `both` kinds of worse answer. Which wordings
    are taken follows from the seed and from what keeps the lengths even.
    """
    left_out: Counter[str] = Counter()
    balance: Counter[str] = Counter()
    found: list[Pair] = []
    for question in _distinct(questions, left_out):
        chance = draw(seed, "failure", question.question) % 10
        drawn = FAILURES[chance >= _OVERCONFIDENT_IN_TEN[question.kind]]
        for failure in FAILURES if failures == "both" else (drawn,):
            found.append(_pair(question, failure, seed, balance))
    for pair in others:
        if pair.chosen.strip() == pair.rejected.strip():
            left_out["chosen and rejected are the same"] += 1
        else:
            found.append(pair)
    seen: set[str] = set()
    pairs = []
    for pair in found:
        if pair.id in seen:
            left_out["the same pair again"] += 1
            continue
        seen.add(pair.id)
        pairs.append(pair)
    return Built(pairs=tuple(pairs), left_out=left_out)


def _pair(question: Question, failure: str, seed: int, balance: Counter[str]) -> Pair:
    """The pair whose lengths bring those before it back to even."""
    told = (seed, failure, question.question)
    wrong = question.wrong[draw(*told, "wrong") % len(question.wrong)] if question.wrong else None
    ways = [
        (better, worse)
        for better in wordings(question, "calibrated")
        for worse in wordings(question, failure, wrong=wrong)
        if better != worse
    ]
    of = f"{question.kind} {failure}"
    longer, more = balance[f"{of} longer"], balance[of]
    even = [way for way in ways if longer * _sign(way) < 0] or ways
    even.sort(key=lambda way: abs(more + len(way[0]) - len(way[1])))
    better, worse = even[draw(*told, "wording") % ((len(even) + 1) // 2)]
    balance[f"{of} longer"] += _sign((better, worse))
    balance[of] += len(better) - len(worse)
    return Pair(
        prompt=({"role": "user", "content": question.question},),
        chosen=better,
        rejected=worse,
        kind=question.kind,
        failure=failure,
        source=question.source,
    )


def _sign(way: tuple[str, str]) -> int:
    """1 when the better answer is the longer one, -1 when it is the shorter."""
    return (len(way[0]) > len(way[1])) - (len(way[0]) < len(way[1]))


def _distinct(questions: Iterable[Question], left_out: Counter[str]) -> Iterable[Question]:
    """The questions, without those that were asked before in the same or nearly the same words."""
    exact: set[str] = set()
    close: set[tuple[str, ...]] = set()
    long: dict[tuple[str, ...], list[frozenset[str]]] = {}
    for question in questions:
        plain = " ".join(re.findall(r"\w+", question.question.casefold()))
        if plain in exact:
            left_out["the same question again"] += 1
            continue
        exact.add(plain)
        words = content_words(question.question)
        if words in close or _nearly(question.question, words, long):
            left_out["nearly the same question again"] += 1
            continue
        if words:
            close.add(words)
        yield question


def content_words(text: str) -> tuple[str, ...]:
    """The words that carry what a question asks, in order, without endings of plural and time."""
    text = re.sub(r"(?<=\w)['’](s|re|m|ve|ll|d)\b", " ", text.casefold())
    words = re.findall(r"[^\W_]+", re.sub(r"n['’]t\b", " not", text))
    return tuple(re.sub(r"(?<=\w{3})(es|s)$", "", word) for word in words if word not in _EMPTY)


_EMPTY: Final = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be been do does did of to in on at for and or it its that this "
        "please tell me can could would you",
    )
)


def _nearly(
    text: str, words: tuple[str, ...], known: dict[tuple[str, ...], list[frozenset[str]]]
) -> bool:
    """Whether a long question shares nearly all its words with one before, names and numbers too.

    Short ones are left alone: in them a single other word is another question.
    """
    if len(words) < _LONG:
        return False
    own = tuple(sorted({*re.findall(r"\d+", text), *re.findall(r"(?<=\s)[A-Z]\w+", text)}))
    bag = frozenset(words)
    alike = any(
        2 * len(bag & other) >= _ALIKE * (len(bag) + len(other)) for other in known.get(own, ())
    )
    known.setdefault(own, []).append(bag)
    return alike


def reviewed(pairs: Sequence[Pair], marks: Mapping[str, tuple[bool, str, str]]) -> list[Pair]:
    """The pairs with what a review says of them: taken or not, and the answers as they stand there.

    marks: of an id, whether it is accepted, and both answers. A pair that the review does not know
    stays as it was.
    """
    found = []
    for pair in pairs:
        mark = marks.get(pair.id)
        if mark is not None:
            accepted, chosen, rejected = mark
            pair = replace(
                pair,
                accepted=accepted,
                chosen=_corrected(pair.chosen, chosen),
                rejected=_corrected(pair.rejected, rejected),
            )
        found.append(pair)
    return found


def _corrected(text: str, read: str) -> str:
    """What a review says, unless it differs in spaces alone, which the page does not keep."""
    return text if text.split() == read.split() else read
