"""What an evaluation asks: rows of a file, of the packaged sample, or of a public set.

A task is `NAME` (the packaged rows), `NAME:FILE.jsonl` or `NAME:set:SET`. Every row has an answer:
one that has none is an error, with its place.

Does not know: models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from .. import sample
from ..data import provenance
from ..data.pair_builder import Pair
from ..data.pair_sources import read_file
from ..data.pair_templates import Question
from ..data.sets import fetch_set, find
from ..data.sets.hub import FILES
from ..data.sources import Chat, read_rows
from ..errors import ConfigError, DataError, EngineError, FileAccessError

SET: Final = "set:"
PACKAGED: Final = {"emotion": "emotional", "answers": "reasoning", "calibration": "calibration"}
#: Split and options of a public set when it is used as a test.
SPLITS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "gsm8k": ("test", {"final": "hashes"}),
    "go-emotions": ("test", {"words": "abbey"}),
    "truthful-qa": ("validation", {"pairs": "all"}),
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ChatItem:
    """Turns to answer, and the answer that is wanted. place: where the row stands."""

    place: str
    turns: list[dict[str, Any]]
    answer: str
    emotion: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows and where they are from. evaluations: public benchmarks whose test they are."""

    name: str
    path: Path
    evaluations: tuple[str, ...] = ()


def chats(source: Source, limit: int | None) -> list[ChatItem]:
    """The rows as chats whose last turn is the answer. Raises `DataError`."""
    found: list[ChatItem] = []
    for _, place, row in read_rows([source.path]):
        if limit is not None and len(found) >= limit:
            break
        if not isinstance(row, Chat) or not row.messages or row.messages[-1].role != "assistant":
            raise DataError(
                f"{place}: no chat with an answer at its end (messages, or instruction and "
                "output); this task needs one"
            )
        turns = [_turn(message.role, message.content) for message in row.messages[:-1]]
        if not any(turn["role"] == "user" for turn in turns):
            raise DataError(f"{place}: nobody asks anything before the answer")
        emotion = row.emotion or next((m.emotion for m in row.messages if m.emotion), None)
        found.append(
            ChatItem(
                place=place, turns=turns, answer=row.messages[-1].content.strip(), emotion=emotion
            )
        )
    return _some(found, source)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def questions(source: Source, limit: int | None) -> list[Question]:
    """The rows as questions with what is known about their answers. Raises `DataError`.

    Pairs become questions again: the better answers are true, the worse ones wrong.
    """
    found, pairs, _ = read_file(source.path)
    if pairs:
        found = [*found, *_of_pairs(pairs)]
    return _some(found[:limit], source)


def _of_pairs(pairs: Iterable[Pair]) -> list[Question]:
    best: dict[str, str] = {}
    wrong: dict[str, dict[str, None]] = {}
    for pair in pairs:
        asked = pair.prompt[-1]["content"]
        best.setdefault(asked, pair.chosen)
        wrong.setdefault(asked, {})[pair.rejected] = None
    return [
        Question(
            question=asked, kind="trick", answers=(answer,), wrong=tuple(wrong[asked]), source=asked
        )
        for asked, answer in best.items()
    ]


def _some(found: list[T], source: Source) -> list[T]:
    if not found:
        raise DataError(f"{source.path}: no rows; an evaluation needs at least one")
    return found


def resolve(task: str, rest: str, folder: Path, *, limit: int | None, seed: int = 42) -> Source:
    """The rows of a task: packaged, of a file, or of a public set written into `folder`.

    Raises `ConfigError` for a set that is not known, `EngineError` and `FileAccessError` where it
    cannot be had.
    """
    if not rest:
        name = PACKAGED[task]
        return Source(name=f"sample:{name}", path=sample.held_out(name))
    if not rest.startswith(SET):
        path = Path(rest)
        if path.suffix != ".jsonl":
            raise ConfigError(f"task {task}:{rest}: the rows must be a .jsonl file, or set:NAME")
        beside = provenance.side_file(path)
        known = provenance.of_rows([path]).evaluations if beside.is_file() else ()
        return Source(name=rest, path=path, evaluations=known)
    data_set = find(rest.removeprefix(SET))
    split, options = SPLITS.get(data_set.name, (data_set.default_split, {}))
    path = folder / f"{data_set.name}.jsonl"
    # Pairs of one question are several rows: all are needed, and the limit counts questions.
    drawn = None if data_set.name == "truthful-qa" else limit
    try:
        fetch_set(data_set, path, split=split, options=options, limit=drawn, seed=seed)
    except (EngineError, FileAccessError) as error:
        if FILES not in str(error):
            raise
        chosen = "".join(f" --option {key}={value}" for key, value in options.items())
        raise type(error)(
            f"{error}. Here that is: `abi-train data get {data_set.name} --split {split}{chosen} "
            f"--from FOLDER --output {data_set.name}.jsonl`, then the task "
            f"{task}:{data_set.name}.jsonl"
        ) from None
    return Source(
        name=f"{SET}{data_set.name}",
        path=path,
        evaluations=tuple(data_set.evaluations.get(split, ())),
    )
