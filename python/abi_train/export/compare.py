"""The trained model, run by the engine that trained it, and how far another's logits are from it.

Does not know: prompts, files, what is too far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, NumericsError
from ..model import Model

if TYPE_CHECKING:
    from ..generate import Generator

TINY = 1e-30
LARGEST = 1e9
"""In place of more, or of no number, where nothing can be divided by."""


class Trained:
    """A model folder, or a base with an adapter beside it, by the forward pass of training.

    Everything is computed in float32 from the weights as they are stored; they stay in their files.
    It is a `Runner` of `abi_train.evaluate` as far as texts are scored.
    """

    engine = "native"

    def __init__(self, model: Path, adapter: Path | None = None, *, threads: int = 0) -> None:
        self._model = Model.load(model, dtype="stored")
        self._adapter = adapter
        self._threads = threads
        config = self._model.config
        self.path = model if adapter is None else adapter
        self.config = config
        self.vocab_size = int(config["vocab_size"])
        self.context = min(4096, int(config.get("max_position_embeddings") or 4096))

    def logits(self, ids: Sequence[int], first: int) -> Any:
        """Behind each of ids[first:]: (len(ids) - first, vocabulary)."""
        return self._model.logits(ids, first=first, adapter=self._adapter, threads=self._threads)

    def log_probs(self, wanted: Sequence[tuple[Any, int]]) -> list[tuple[Any, Any]]:
        """As `Runner`."""
        return [
            self._model.log_probs(ids, first=first, adapter=self._adapter, threads=self._threads)
            for ids, first in wanted
        ]

    def answer(self, prompt: Any, stops: Sequence[int], most: int) -> tuple[list[int], str]:
        """As `Runner`; without a cache, so for a few tokens."""
        answer, _ = follow(self, lambda path, room: [], [int(i) for i in prompt], set(stops), most)
        return answer, "length" if len(answer) == most else "stop_id"

    def close(self) -> None:
        """Free the model."""
        self._model.close()


def follow(
    trained: Trained | Stand, guess: Any, ids: Sequence[int], stops: set[int], most: int
) -> tuple[list[int], list[Any]]:
    """The trained model's likeliest answer, and its logits at each place of it.

    guess(path, room) proposes tokens that it may say next: a whole guess is looked at in one pass,
    so what comes out does not depend on guesses, only how long it takes.
    """
    answer, rows = list[int](), list[Any]()
    while len(answer) < most:
        path = [*ids, *answer]
        draft = list(guess(path, most - len(answer)))
        found = trained.logits([*path, *draft], len(path) - 1)
        for row, guessed in zip(found, [*draft, None], strict=True):
            if not np.isfinite(row).all():
                raise NumericsError(
                    f"{trained.path}: a logit of the trained model is not a number after "
                    f"{len(ids) + len(answer)} tokens"
                )
            chosen = int(row.argmax())
            rows.append(row)
            if chosen in stops:
                return answer, rows
            answer.append(chosen)
            if len(answer) == most:
                return answer, rows
            if chosen != guessed:
                break
    return answer, rows


def along(file: Generator, ids: Sequence[int], answer: Sequence[int], count: int) -> Any:
    """The logits of a file at the first `count` places of an answer: (count, vocabulary)."""
    return file.logits([*ids, *answer[: count - 1]], first=len(ids) - 1)


class Stand:
    """A file in place of the trained model, for folders that the engine of training does not run.

    It answers as `Trained` does.
    """

    engine = "native"

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        from ..generate import Generator

        self._model = Generator.open(path, threads=threads, exact=True, cache="f32")
        info = self._model.info
        self.path = path
        self.config: dict[str, Any] = info["config"]
        self.vocab_size = int(self.config["vocab_size"])
        self.context = int(info["context"])

    def logits(self, ids: Sequence[int], first: int) -> Any:
        """As `Trained`."""
        return self._model.logits(ids, first=first)

    def log_probs(self, wanted: Sequence[tuple[Any, int]]) -> list[tuple[Any, Any]]:
        """As `Runner`."""
        return [self._model.log_probs(ids, first=first) for ids, first in wanted]

    def answer(self, prompt: Any, stops: Sequence[int], most: int) -> tuple[list[int], str]:
        """As `Runner`."""
        found = list(self._model.generate(prompt, max_new_tokens=most, stop_ids=stops))
        return found, self._model.end_reason or "length"

    def close(self) -> None:
        """Free the model."""
        self._model.close()


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far logits are from the trained model's, with the same tokens before each place.

    largest_logit_difference: of any token at any place. relative: of any place, as a part of the
    range (largest less smallest) of its logits. logit_range: that range, mean. noise: the error as
    a part of the spread, both as root of the mean square over the vocabulary without their mean.
    divergence: Kullback-Leibler, nats, mean. log_prob_difference: of the trained model's likeliest
    token, mean magnitude. same_choice: share of places with the same likeliest token.
    """

    positions: int
    largest_logit_difference: float
    relative: float
    logit_range: float
    noise: float
    divergence: float
    log_prob_difference: float
    same_choice: float


@dataclass
class Tally:
    """Collects a `Distance`, place by place. path: of the other, for errors."""

    path: Path
    _places: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, left: Any, right: Any) -> None:
        """One place: logits of the trained model and of the other."""
        if left.shape != right.shape:
            raise FormatError(
                f"{self.path}: knows {right.size} words, the trained model {left.size}"
            )
        if not np.isfinite(right).all():
            raise NumericsError(f"{self.path}: a logit is not a number")
        a, b = left.astype(np.float64), right.astype(np.float64)
        error = b - a
        largest, reach = float(np.abs(error).max()), float(a.max() - a.min())
        of_error = float(np.square(error - error.mean()).mean())
        of_spread = float(np.square(a - a.mean()).mean())
        log_a, log_b = _log_softmax(a), _log_softmax(b)
        best = int(a.argmax())
        self._places.append(
            (
                largest,
                _part(largest, reach),
                reach,
                _part(of_error, of_spread),
                max(0.0, float((np.exp(log_a) * (log_a - log_b)).sum())),
                abs(float(log_a[best] - log_b[best])),
                float(best == int(b.argmax())),
            )
        )

    def done(self) -> Distance:
        """Over all places; there must be one."""
        columns = list(zip(*self._places, strict=True))
        mean = [math.fsum(column) / len(column) for column in columns]
        return Distance(
            positions=len(self._places),
            largest_logit_difference=max(columns[0]),
            relative=max(columns[1]),
            logit_range=mean[2],
            noise=math.sqrt(mean[3]),
            divergence=mean[4],
            log_prob_difference=mean[5],
            same_choice=mean[6],
        )


def _part(value: float, of: float) -> float:
    return 0.0 if value == 0 else min(LARGEST, value / max(of, TINY))


def _log_softmax(x: Any) -> Any:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())
