"""Running a GGUF file: ids in, ids out, and text on top."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import ArgumentError
from .owned import Owned
from .tokenizer import Tokenizer, as_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._native import Handle

__all__ = ["Generator"]


class Generator(Owned):
    """A GGUF model that answers.

    ::

        with Generator.open("tiny.gguf") as model:
            for token in model.generate(prompt_ids, max_new_tokens=32):
                ...
            print(model.complete("Once upon a time"))

    What was computed for an earlier prompt that begins with the same ids is kept.
    """

    _noun = "generator"

    def __init__(self, handle: Handle, path: Path) -> None:
        self._handle: Handle | None = handle
        self._tokenizer: Tokenizer | None = None
        self.path = path
        self.end_reason: str | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        context: int | None = None,
        threads: int = 0,
        exact: bool = False,
        cache: str | None = None,
    ) -> Generator:
        """Opens a `.gguf` file.

        context: ids the model can look back; None: what it was trained for, at most 4096.
        threads: 0: one per CPU. Results have the same bits for any number.
        exact: multiply quantised weights as the floats they stand for. Otherwise activations are
            rounded to 8 bits on the way, as llama.cpp does, which is much faster; the difference is
            about a hundredth of the logits' spread. Weights in f32, f16 and bf16 are always exact.
        cache: how keys and values are kept: 'f32', 'f16' or 'q8_0'. None: f16 under quantised
            weights, f32 under floats and with `exact`.

        Raises MissingFileError, or FormatError naming the key or tensor; ArgumentError for another
        `cache`.
        """
        handle = _native.generator.open(
            path, threads, 0 if context is None else context, exact=exact, cache=cache
        )
        return cls(handle, Path(path))

    def close(self) -> None:
        """Frees the model, its cache and its threads."""
        self._handle = None
        if self._tokenizer is not None:
            self._tokenizer.close()
            self._tokenizer = None

    @property
    def info(self) -> dict[str, Any]:
        """`config` (as in config.json), `context`, `threads`, `parameters`, `cache` (its form),
        `cache_bytes`."""
        return _native.generator.info(self.native)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer inside the file. Raises FormatError when there is none."""
        _ = self.native  # raises when closed
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.path)
        return self._tokenizer

    def generate(
        self,
        prompt_ids: Sequence[int] | npt.NDArray[Any],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        repeat_window: int = 64,
        seed: int = 0,
        stop_ids: Sequence[int] | npt.NDArray[Any] = (),
    ) -> Iterator[int]:
        """Yields the ids that continue `prompt_ids`; `end_reason` then says why they ended.

        temperature: 0: always the most likely id. top_k 0, top_p 1, min_p 0, repeat_penalty 1: off.
        stop_ids: drawing one ends the answer; it is not given out.

        `end_reason`: 'stop_id', 'length' or 'context'. Raises ArgumentError for an empty or too
        long prompt or a foreign id, NumericsError when the model's logits are not numbers.
        """
        handle = self.native
        self.end_reason = None
        _native.generator.start(
            handle,
            as_ids(prompt_ids),
            as_ids(stop_ids),
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            repeat_window=repeat_window,
            seed=seed,
        )
        return self._continue(handle)

    def _continue(self, handle: Handle) -> Iterator[int]:
        step = _native.generator.Step()
        while True:
            found, end = _native.generator.next(handle, step)
            if end is not None:
                self.end_reason = end
                return
            yield found

    def logits(self, ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The logits after the last of `ids`: a copy, one value a vocabulary entry."""
        self.generate(ids, max_new_tokens=0)
        found: npt.NDArray[np.float32] = _native.generator.logits(self.native).copy()
        return found

    def log_probs(
        self, ids: Sequence[int] | npt.NDArray[Any], *, first: int = 1
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """How likely the model finds `ids[first:]`, each behind all before it.

        Two arrays of one value an id: its natural log-probability (float64), and whether no other
        id is likelier. Several ends of one beginning cost little: what was computed is kept.

        Raises ArgumentError for a foreign id, a `first` that is not 1 to the last, or more ids
        than the context holds, NumericsError when the model's logits are not numbers.
        """
        return _native.generator.score(self.native, as_ids(ids), first)

    def score(
        self,
        prompt_ids: Sequence[int] | npt.NDArray[Any],
        continuations: Sequence[Sequence[int] | npt.NDArray[Any]],
    ) -> list[float]:
        """The log-probability of each of these continuations of `prompt_ids`, neither empty.

        Natural logarithm, summed over the ids of the continuation. Raises as `log_probs`.
        """
        import numpy as np

        prompt = as_ids(prompt_ids)
        found = []
        for continuation in continuations:
            more = as_ids(continuation)
            if more.size == 0:
                raise ArgumentError("a continuation has no ids; give at least one")
            if prompt.size == 0:
                raise ArgumentError("the prompt has no ids; give at least one")
            values, _ = self.log_probs(np.concatenate([prompt, more]), first=prompt.size)
            found.append(float(values.sum()))
        return found

    def complete(self, text: str, **options: Any) -> str:
        """Continues `text`; options as for `generate`. Stops at the tokenizer's stop ids."""
        tokenizer = self.tokenizer
        options.setdefault("stop_ids", tokenizer.stop_token_ids)
        found = list(self.generate(tokenizer.encode(text), **options))
        return tokenizer.decode(found, continues=True)

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, format: str | None = None, **options: Any
    ) -> str:
        """Answers a chat (see `Tokenizer.render_chat`); options as for `generate`."""
        tokenizer = self.tokenizer
        ids, _ = tokenizer.render_chat(messages, format=format, add_generation_prompt=True)
        options.setdefault("stop_ids", tokenizer.stop_token_ids)
        return tokenizer.decode(list(self.generate(ids, **options)), continues=True).strip()
