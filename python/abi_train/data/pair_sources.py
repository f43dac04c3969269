"""What calibration pairs are made from: files of questions, pairs, and recorded conversations.

A question row has `question` and `kind` (known, unknowable, ambiguous or trick); `answers` (true
ones, or `answer`), `wrong` (what an overconfident answer would assert), `why` and `ask` as far as
they are there. Rows of TruthfulQA as published (`best_answer`, `incorrect_answers`) are questions,
too. A row with `chosen` and `rejected` is a pair as it is. A folder of sessions is what the agent
records (`.abi/sessions/<id>.json`).

Does not know: how pairs are worded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import DataError, FileAccessError, MissingFileError
from .pair_builder import CORRECTED, GIVEN, Pair
from .pair_templates import KINDS, Question
from .sources import Preference, _Bad, parse_row

MAX_SESSION_BYTES: Final = 64 << 20
ROLES: Final = ("system", "user", "assistant")
TRUTHFUL_QA: Final = "truthfulqa"

#: A person's turn that says the answer before it was wrong.
_OBJECTS: Final = re.compile(
    r"^\W*(no\b|nope\b|wrong\b|that('s| is| was) (not (right|true|correct|so)|wrong|false)"
    r"|(you are|you're) (wrong|mistaken)|are you sure\b|that can't be\b|this is (wrong|not right))",
    re.IGNORECASE,
)
#: Words of an answer that is surer than anybody can be.
_TOO_SURE: Final = re.compile(
    r"\b(definitely|guaranteed|100 ?%|without (any|a) doubt|no doubt|absolutely certain"
    r"|completely sure|i am certain|will certainly)\b",
    re.IGNORECASE,
)


def read_questions(path: str | Path) -> list[Question]:
    """All questions of a file. Raises `DataError` with file and line for a row that is none."""
    return [question for question, _ in _read(Path(path)) if question is not None]


def read_file(path: str | Path) -> tuple[list[Question], list[Pair], bool]:
    """Questions and pairs of a file, and whether it is the test of TruthfulQA."""
    questions, pairs, test = [], [], False
    for question, other in _read(Path(path), pairs=True):
        if question is not None:
            questions.append(question)
            test = test or other is True
        elif isinstance(other, Pair):
            pairs.append(other)
    return questions, pairs, test


def _read(path: Path, *, pairs: bool = False) -> Iterator[tuple[Question | None, Any]]:
    if path.is_dir():
        raise FileAccessError(f"{path} is a folder; name a file of rows (.jsonl)")
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; check the path")
    found = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                found = True
                yield _row(line, f"{path}:{number}", pairs=pairs)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{path}: no rows; a question is a line as {_EXAMPLE}")


_EXAMPLE: Final = '{"question": "…", "kind": "known", "answers": ["…"]}'


def _row(line: bytes, place: str, *, pairs: bool) -> tuple[Question | None, Any]:
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); each line must be one row") from None
    _require_text(values, place)
    if not isinstance(values, dict):
        raise DataError(f"{place}: not an object; a question is a line as {_EXAMPLE}")
    if "best_answer" in values or "Best Answer" in values:
        return _of_truthful_qa(values, place), True
    if pairs and "chosen" in values:
        return None, _given(line, place)
    return question_of(values, place), False


def _require_text(values: Any, place: str) -> None:
    """Raise `DataError` for half a character, which JSON can spell and no file can hold."""
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{place}: half of a surrogate pair; correct the text") from None


def question_of(values: Mapping[str, Any], place: str) -> Question:
    """The question of a row. Raises `DataError` naming place, key and rule."""
    asked = values.get("question")
    if not isinstance(asked, str) or not asked.strip():
        raise DataError(f"{place}: no question; a row is as {_EXAMPLE}")
    kind = values.get("kind")
    if kind not in KINDS:
        raise DataError(f"{place}: kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    given = values.get("answers", values.get("answer"))
    answers = _texts([given] if isinstance(given, str) else given, "answers", place)
    wrong = _texts(values.get("wrong"), "wrong", place)
    if kind in ("known", "trick") and not answers:
        raise DataError(f"{place}: a question of the kind {kind} without answers; add them")
    if kind in ("unknowable", "ambiguous") and answers:
        raise DataError(
            f"{place}: answers to a question of the kind {kind}; take them out, or make it known"
        )
    both = {a.casefold() for a in answers} & {w.casefold() for w in wrong}
    if both:
        raise DataError(f"{place}: {both.pop()!r} is both among answers and wrong")
    return Question(
        question=asked.strip(),
        kind=kind,
        answers=answers,
        wrong=wrong,
        why=_text(values.get("why"), "why", place),
        ask=_text(values.get("ask"), "ask", place),
        source=place,
    )


def _of_truthful_qa(values: Mapping[str, Any], place: str) -> Question:
    """A row of TruthfulQA, in the Hub's columns or those of its authors' table."""
    asked = values.get("question", values.get("Question"))
    best = values.get("best_answer", values.get("Best Answer"))
    more = values.get("correct_answers", values.get("Correct Answers"))
    wrong = values.get("incorrect_answers", values.get("Incorrect Answers"))
    lists = [part.split(";") if isinstance(part, str) else part for part in (more, wrong)]
    if not isinstance(best, str) or not best.strip():
        raise DataError(f"{place}: best_answer is empty; leave the row out")
    true = _once([best, *_texts(lists[0], "correct_answers", place)])
    known = {text.casefold() for text in true}
    false = [t for t in _texts(lists[1], "incorrect_answers", place) if t.casefold() not in known]
    return question_of(
        {"question": asked, "kind": "trick", "answers": list(true), "wrong": false}, place
    )


def _given(line: bytes, place: str) -> Pair:
    """A pair that somebody made, as chats."""
    try:
        row = parse_row(line)
    except _Bad as bad:
        raise DataError(f"{place}: {bad}") from None
    if not isinstance(row, Preference):
        raise DataError(f"{place}: chosen without rejected; a pair needs both")
    if isinstance(row.prompt, str) or isinstance(row.chosen, str) or isinstance(row.rejected, str):
        prompt = str(row.prompt)
        if not prompt.strip():
            raise DataError(f"{place}: a pair of texts without a prompt; add one")
        turns: tuple[dict[str, str], ...] = ({"role": "user", "content": prompt},)
        return Pair(
            prompt=turns,
            chosen=str(row.chosen),
            rejected=str(row.rejected),
            kind=GIVEN,
            failure=GIVEN,
            source=place,
        )
    if len(row.chosen) != 1 or len(row.rejected) != 1:
        raise DataError(f"{place}: answers of several turns; calibration compares single ones")
    return Pair(
        prompt=tuple({"role": turn.role, "content": turn.content} for turn in row.prompt),
        chosen=row.chosen[0].content,
        rejected=row.rejected[0].content,
        kind=GIVEN,
        failure=GIVEN,
        source=place,
    )


def read_sessions(folder: str | Path) -> tuple[list[Pair], list[str]]:
    """Pairs of the conversations in a folder, and the files that are none, each with the reason.

    An answer that was objected to and then given anew is a pair: the new one is the better one. An
    answer that is too sure becomes one with a doubtful answer, which waits for a person.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder}: no such folder; the agent records conversations in .abi/sessions"
        )
    pairs: list[Pair] = []
    damaged: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            turns = _session(path)
        except DataError as error:
            damaged.append(str(error))
            continue
        pairs += _of_session(turns, str(path))
    return pairs, damaged


def _session(path: Path) -> list[dict[str, str]]:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_SESSION_BYTES:
        raise DataError(f"{path}: not a recorded session")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        turns = [
            {"role": str(turn["role"]), "content": str(turn["content"])}
            for turn in values["messages"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path}: not a recorded session") from None
    _require_text(turns, str(path))
    if any(turn["role"] not in ROLES for turn in turns):
        raise DataError(f"{path}: a turn whose role is not {', '.join(ROLES)}")
    return turns


def _of_session(turns: Sequence[dict[str, str]], source: str) -> Iterator[Pair]:
    for at, turn in enumerate(turns):
        if turn["role"] != "assistant" or not turn["content"].strip():
            continue
        before = tuple(turns[:at])
        if not before or before[-1]["role"] != "user":
            continue
        place = f"{source}: turn {at + 1}"
        after = turns[at + 1 : at + 3]
        if (
            len(after) == 2
            and (after[0]["role"], after[1]["role"]) == ("user", "assistant")
            and _OBJECTS.search(after[0]["content"])
            and after[1]["content"].strip()
        ):
            yield Pair(
                prompt=before,
                chosen=after[1]["content"].strip(),
                rejected=turn["content"].strip(),
                kind="recorded",
                failure=CORRECTED,
                source=place,
            )
        elif _TOO_SURE.search(turn["content"]):
            yield Pair(
                prompt=before,
                chosen="I'm not sure about that. What makes you ask?",
                rejected=turn["content"].strip(),
                kind="recorded",
                failure="overconfident",
                source=place,
                needs_review=True,
            )


def _texts(value: Any, key: str, place: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{place}: {key} is not a list of texts; correct it")
    return _once([item for item in value if item.strip()])


def _text(value: Any, key: str, place: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DataError(f"{place}: {key} is not text; correct it")
    return value.strip() or None if value is not None else None


def _once(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(text.split()) for text in texts))
