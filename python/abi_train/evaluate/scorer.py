"""What an evaluation asks of a model, whatever runs it: how likely texts are, and its answers.

Both engines get the same ids, from the native tokenizer, so they can only differ in arithmetic.
Does not know: tasks, torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..chat import FROM_TOKENIZER, format_info
from ..errors import ConfigError, DataError, FormatError, NumericsError
from ..tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..generate import Generator

    Ids = npt.NDArray[np.uint32]
    Judged = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]

Turns = Sequence[dict[str, Any]]
MAX_CONTEXT: Final = 4096


class Runner(Protocol):
    """An engine with a model in it. Ids in, numbers and ids out; sequences fit the context."""

    @property
    def engine(self) -> str:
        """Its name."""

    @property
    def context(self) -> int:
        """Ids the model can look back."""

    @property
    def vocab_size(self) -> int:
        """All ids are below it."""

    def log_probs(self, wanted: Sequence[tuple[Ids, int]]) -> list[Judged]:
        """Of each (ids, first), for each id from `first` (at least 1) on: its log-probability, and
        whether no other id is likelier."""

    def answer(self, prompt: Ids, stops: Sequence[int], most: int) -> tuple[list[int], str]:
        """The likeliest ids behind `prompt`, at most `most` of them, and why they end."""

    def close(self) -> None:
        """Free it."""


class NativeRunner:
    """A GGUF file by the native engine. exact: nothing that goes into a product is rounded, as a
    folder's numbers are judged; else as the file is run."""

    engine = "native"

    def __init__(self, path: Path, *, threads: int = 0, exact: bool = False) -> None:
        from ..generate import Generator

        self._model: Generator = Generator.open(path, threads=threads, exact=exact)
        info = self._model.info
        self.context = int(info["context"])
        self.vocab_size = int(info["config"]["vocab_size"])

    def log_probs(self, wanted: Sequence[tuple[Ids, int]]) -> list[Judged]:
        """As `Runner`: one after the other; what two of them begin with in common is kept."""
        return [self._model.log_probs(ids, first=first) for ids, first in wanted]

    def answer(self, prompt: Ids, stops: Sequence[int], most: int) -> tuple[list[int], str]:
        """As `Runner`."""
        found = list(self._model.generate(prompt, max_new_tokens=most, stop_ids=stops))
        return found, self._model.end_reason or "length"

    def close(self) -> None:
        """Free the model."""
        self._model.close()


class Scorer:
    """A model with its tokenizer and chat format: turns in, likelihoods and texts out."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, *, chat_format: str | None) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self._format = chat_format
        self._stops: tuple[int, ...] | None = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()
        self.tokenizer.close()

    @property
    def chat_format(self) -> str:
        """The format chats are written in. Raises `ConfigError` where the model names none."""
        if self._format is None:
            found = self.tokenizer.chat_format()
            if found is None:
                raise ConfigError(
                    f"{self.tokenizer.path}: the model has no chat format, and this task asks it "
                    "questions; name one with --chat-format (in Python chat_format)"
                )
            self._format = found.name
        return self._format

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        if self._stops is None:
            found = list(self.tokenizer.stop_token_ids)
            if self.chat_format != FROM_TOKENIZER:
                end = format_info(self.chat_format).end
                known = None if end is None else self.tokenizer.token_to_id(end, control_only=True)
                if known is not None:
                    found.append(known)
            self._stops = tuple(dict.fromkeys(found))
        return self._stops

    def prompt(self, turns: Turns) -> Ids:
        """The ids of turns with the beginning of an answer behind them."""
        ids, _ = self.tokenizer.render_chat(
            turns, format=self.chat_format, add_generation_prompt=True
        )
        return ids

    def continuation(self, turns: Turns, prompt: Ids, text: str, *, whole: bool) -> Ids:
        """The ids of an answer as training writes it; `whole`: with the end of the turn."""
        import numpy as np

        full, mask = self.tokenizer.render_chat(
            [*turns, {"role": "assistant", "content": text}],
            format=self.chat_format,
            train=True,
            loss="completion",
        )
        learned = np.flatnonzero(mask)
        if learned.size and np.array_equal(full[: prompt.size], prompt):
            found = full[prompt.size : int(learned[-1]) + 1]
        else:  # a template that writes past answers in another way than the one to come
            found = self.tokenizer.encode(text, add_bos=False, add_eos=False, continues=True)
            if whole and self.stops:
                found = np.append(found, np.uint32(self.stops[0]))
        if not whole:
            while found.size > 1 and int(found[-1]) in self.stops:
                found = found[:-1]
        return found

    def log_likelihoods(
        self, asked: Sequence[tuple[str, Turns, Sequence[str]]], *, whole: bool
    ) -> list[list[float]]:
        """Of each (place, turns, answers) the log-probability of each answer.

        whole: the answer and nothing behind it, else whatever begins so. Raises `DataError` naming
        the place of what does not fit the context.
        """
        import numpy as np

        flat: list[tuple[Ids, int]] = []
        counts = []
        for place, turns, answers in asked:
            prompt = self.prompt(turns)
            for answer in answers:
                more = self.continuation(turns, prompt, answer, whole=whole)
                self.require_room(place, prompt.size + more.size)
                flat.append((np.concatenate([prompt, more]), int(prompt.size)))
            counts.append(len(answers))
        sums = iter([finite(values) for values, _ in self.runner.log_probs(flat)])
        return [[next(sums) for _ in range(count)] for count in counts]

    def answers(
        self, asked: Sequence[tuple[str, Turns]], *, max_new_tokens: int
    ) -> Iterator[tuple[str, bool]]:
        """The likeliest answer to each (place, turns), and whether it came to its end.

        Raises `DataError` naming the place of a prompt that leaves no room for an answer.
        """
        for place, turns in asked:
            prompt = self.prompt(turns)
            self.require_room(place, prompt.size + 1)
            most = min(max_new_tokens, self.runner.context - int(prompt.size))
            found, why = self.runner.answer(prompt, self.stops, most)
            text = self.tokenizer.decode(found, continues=True).strip()
            cut = self._cut(text)
            yield cut, why == "stop_id" or cut != text

    def _cut(self, text: str) -> str:
        """The text up to where the next turn would begin, for formats whose marks are words."""
        if self.chat_format == FROM_TOKENIZER:
            return text
        for stop in format_info(self.chat_format).stops:
            text = text.split(stop)[0]
        return text.strip()

    def require_room(self, place: str, count: int) -> None:
        """Raise `DataError` for more ids than the model looks back."""
        if count > self.runner.context:
            raise DataError(
                f"{place}: {count} ids with its answer, and the model looks back "
                f"{self.runner.context}; leave the row out, or take a model with a larger context"
            )


def finite(values: npt.NDArray[np.float64]) -> float:
    """Their sum. Raises `NumericsError` when it is no log-probability."""
    total = float(values.sum())
    if math.isnan(total) or total == math.inf:
        raise NumericsError("the model's logits are not numbers: its weights are broken")
    return total


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises `FormatError` where there is none."""
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise FormatError(
            f"{folder}: no tokenizer.json, so text cannot be given to the model; copy the "
            "tokenizer's files there"
        )
    return Tokenizer.load(folder)
