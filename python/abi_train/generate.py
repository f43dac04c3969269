"""Running a GGUF file: ids in, ids out, and text on top."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
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
    from ._native.generator import Request

__all__ = ["Answer", "Generator"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one prompt of a batch got."""

    ids: list[int]
    """The ids given out, without the stop id."""
    end_reason: str | None
    """'stop_id', 'length', 'context' or 'complete'; None while it goes on."""
    counts: dict[str, int]
    """As `Generator.counts`."""


class _Run:
    """Answers in progress."""

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids
        self.ends: dict[int, str] = {}
        self.logits_of: int | None = None


def _request(prompt: Sequence[int] | npt.NDArray[Any], options: Mapping[str, Any]) -> Request:
    known = {f.name for f in fields(_native.generator.Request)} - {"ids"}
    if strange := sorted(set(options) - known):
        raise ArgumentError(f"no such option: {strange[0]}; there are {', '.join(sorted(known))}")
    rest = {name: value for name, value in options.items() if name != "stop_ids"}
    rest["json_schema"] = _schema_text(options.get("json_schema"))
    return _native.generator.Request(
        ids=as_ids(prompt), stop_ids=as_ids(options.get("stop_ids", ())), **rest
    )


def _schema_text(schema: Mapping[str, Any] | bool | str | None) -> str | None:
    if schema is None or isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"json_schema cannot be written as JSON: {error}") from None


class Generator(Owned):
    """A GGUF model that answers.

    ::

        with Generator.open("tiny.gguf") as model:
            for token in model.generate(prompt_ids, max_new_tokens=32):
                ...
            print(model.complete("Once upon a time"))

    What was computed for an earlier prompt that begins with the same ids is kept. Answers do not
    depend on that: the same ids, options and seed give the same ids, with the same bits of every
    logit, whatever was asked before, with any number of threads, alone or in a batch.
    """

    _noun = "generator"

    def __init__(self, handle: Handle, path: Path) -> None:
        self._handle: Handle | None = handle
        self._tokenizer: Tokenizer | None = None
        self._run: _Run | None = None
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
        yarn: str = "exact",
    ) -> Generator:
        """Opens a `.gguf` file.

        context: ids the model can look back; None: what it was trained for, at most 4096.
        threads: 0: one per CPU. Results have the same bits for any number.
        exact: multiply weights as the floats they stand for. Otherwise activations are rounded on
            the way, which is much faster: to 8 bits for quantised weights, as llama.cpp does (an
            error of about a hundredth of the logits' spread), and to 16 bits for prompts of f16
            and bf16 weights on CPUs with AVX-512 (half a thousandth, below llama.cpp's).
            Weights in f32 are always exact.
        cache: how keys and values are kept: 'f32', 'f16' or 'q8_0'. None: f16 under quantised
            weights, f32 under floats and with `exact`.
        yarn: gpt-oss only. 'exact': the rotary frequencies the model was trained with; 'ggml': with
            the ramp between its two kinds rounded to whole numbers, as llama.cpp runs every such
            file. At 200 tokens the two differ by a few hundredths of the logits' spread.

        Raises MissingFileError, or FormatError naming the key or tensor; ArgumentError for another
        `cache` or `yarn`.
        """
        handle = _native.generator.open(
            path,
            threads,
            0 if context is None else context,
            exact=exact,
            cache=cache,
            yarn=yarn,
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
        drafts: int = 0,
        json_schema: Mapping[str, Any] | bool | str | None = None,
    ) -> Iterator[int]:
        """Yields the ids that continue `prompt_ids`; `end_reason` then says why they ended.

        temperature: 0: always the most likely id. top_k 0, top_p 1, min_p 0, repeat_penalty 1: off.
        stop_ids: drawing one ends the answer; it is not given out.
        drafts: ids guessed from what was there before and confirmed by the model in one pass, 0 to
            15; they change no id, only how long it takes (docs/generation.md says when it pays).

        json_schema: a JSON schema, as an object or its text: nothing but JSON it allows is given
            out. `end_reason` is then 'complete' when the value is whole, or 'stop_id' where it was
            whole and could have gone on (a number); after 'length' or 'context' it is cut off.

        `end_reason`: 'stop_id', 'length', 'context' or 'complete'; `counts` says what it took.
        Raises ArgumentError for an empty or too long prompt, a foreign id, an option out of its
        range or a schema that is none; UnsupportedError for a keyword of a schema that is not
        understood, naming it; FormatError when there is a schema and the file has no tokenizer;
        NumericsError when the model's logits are not numbers. An iterator that another call of this
        generator has overtaken raises ArgumentError.
        """
        request = _native.generator.Request(
            ids=as_ids(prompt_ids),
            stop_ids=as_ids(stop_ids),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            repeat_window=repeat_window,
            seed=seed,
            drafts=drafts,
            json_schema=_schema_text(json_schema),
        )
        run = self._start([request], 1)
        return self._single(run)

    def _start(self, requests: list[Request], lanes: int) -> _Run:
        handle = self.native
        self._run = None
        self.end_reason = None
        _native.generator.start(handle, requests, lanes)
        self._run = _Run([[] for _ in requests])
        return self._run

    def _tokens(self, run: _Run, capacity: int) -> Iterator[tuple[int, int, str | None]]:
        room = _native.generator.Tokens(capacity)
        while True:
            handle = self.native
            if self._run is not run:
                raise ArgumentError(
                    "this answer was overtaken: another one was begun with the same generator; "
                    "take all of an answer first, or open a second generator"
                )
            run.logits_of = None
            tokens = _native.generator.next(handle, room)
            if not tokens:
                return
            for index, found, end in tokens:
                if end is None:
                    run.ids[index].append(found)
                    run.logits_of = index if capacity == 1 else None
                else:
                    run.ends[index] = end
                yield index, found, end

    def _single(self, run: _Run) -> Iterator[int]:
        for _, found, end in self._tokens(run, 1):
            if end is not None:
                self.end_reason = end
                return
            yield found

    def stream_batch(
        self,
        prompts: Sequence[Sequence[int] | npt.NDArray[Any]],
        *,
        lanes: int = 8,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, int]]:
        """Continues several prompts at once; yields (index of the prompt, id) as they come.

        One pass over the weights steps every answer in progress, at most `lanes` (1 to 32) of them;
        the next prompt begins when an answer ends. Each lane keeps a cache of `context` ids.
        options: as for `generate`, for all prompts; `each[i]` overrides them for prompts[i].

        What a prompt gets is, to the bit, what `generate` gives it alone. `answers` holds what came
        so far and how it ended. Raises as `generate`.
        """
        given = list(each) if each is not None else [{}] * len(prompts)
        if len(given) != len(prompts):
            raise ArgumentError(f"each has {len(given)} entries, there are {len(prompts)} prompts")
        requests = [
            _request(prompt, {**options, **own}) for prompt, own in zip(prompts, given, strict=True)
        ]
        if not requests:
            self._run = _Run([])
            return iter(())
        run = self._start(requests, lanes)
        return ((index, found) for index, found, end in self._tokens(run, 2 * 64) if end is None)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int] | npt.NDArray[Any]],
        *,
        lanes: int = 8,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Continues several prompts at once, see `stream_batch`, and returns their answers."""
        for _ in self.stream_batch(prompts, lanes=lanes, each=each, **options):
            pass
        return self.answers

    @property
    def answers(self) -> list[Answer]:
        """What the last `generate` or batch has given so far, one a prompt, in their order."""
        if self._run is None:
            return []
        return [
            Answer(
                ids=list(ids),
                end_reason=self._run.ends.get(index),
                counts=_native.generator.counts(self.native, index),
            )
            for index, ids in enumerate(self._run.ids)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """What the last `generate` took so far.

        `prompt`: ids of the prompt; `reused`: those of them that were computed before; `answer`:
        ids given out; `guessed` and, of these, `accepted`: see `drafts`. Raises ArgumentError
        before the first.
        """
        return _native.generator.counts(self.native)

    @property
    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits the last id yielded by `generate` was chosen from.

        A copy, one value a vocabulary entry, before penalty and temperature. Raises ArgumentError
        when no id was yielded.
        """
        if self._run is None or self._run.logits_of is None:
            raise ArgumentError("no id was yielded last; ask while going through generate()")
        found: npt.NDArray[np.float32] = _native.generator.logits(
            self.native, self._run.logits_of
        ).copy()
        return found

    def logits(
        self, ids: Sequence[int] | npt.NDArray[Any], *, first: int | None = None
    ) -> npt.NDArray[np.float32]:
        """The logits behind the last of `ids`: a copy, one value a vocabulary entry.

        With `first` those behind every id from ids[first] on: (len(ids) - first, vocabulary). The
        rows have the same bits as one call an id.

        Raises ArgumentError for no ids, foreign ids, more than the context holds, or a `first` that
        is not the index of an id.
        """
        if first is None:
            self.generate(ids, max_new_tokens=0)
            found: npt.NDArray[np.float32] = _native.generator.logits(self.native).copy()
            return found
        self._run = None
        vocab = int(self.info["config"]["vocab_size"])
        return _native.generator.all_logits(self.native, as_ids(ids), first, vocab)

    def save_cache(self, path: str | os.PathLike[str]) -> int:
        """Keeps what was computed of the last prompt in a file, and returns of how many ids.

        The file appears whole or not at all. It takes, for each id, layers x key-value heads x
        head size x 2 numbers of the cache's type: 23 KB an id in f16 for a model of 1.1 billion
        parameters. Raises FileAccessError when it cannot be written.
        """
        return _native.generator.save_cache(self.native, path)

    def load_cache(self, path: str | os.PathLike[str]) -> int:
        """Takes over what `save_cache` kept, and returns the number of ids.

        A prompt that begins with the same ids is computed from where they differ, with the same
        bits (`counts["reused"]`). Raises MissingFileError, or FormatError when the file is damaged
        or belongs to another model, another CPU level, or another `cache` or `exact`; what was kept
        before then stays.
        """
        self._run = None
        return _native.generator.load_cache(self.native, path)

    def log_probs(
        self, ids: Sequence[int] | npt.NDArray[Any], *, first: int = 1
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """How likely the model finds `ids[first:]`, each behind all before it.

        Two arrays of one value an id: its natural log-probability (float64), and whether no other
        id is likelier. Several ends of one beginning cost little: what was computed is kept.

        Raises ArgumentError for a foreign id, a `first` that is not 1 to the last, or more ids
        than the context holds, NumericsError when the model's logits are not numbers.
        """
        self._run = None
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

    def complete_batch(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Continues several texts at once; options as for `stream_batch`."""
        tokenizer = self.tokenizer
        options.setdefault("stop_ids", tokenizer.stop_token_ids)
        found = self.generate_batch([tokenizer.encode(text) for text in texts], **options)
        return [tokenizer.decode(answer.ids, continues=True) for answer in found]

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, format: str | None = None, **options: Any
    ) -> str:
        """Answers a chat (see `Tokenizer.render_chat`); options as for `generate`."""
        tokenizer = self.tokenizer
        ids, _ = tokenizer.render_chat(messages, format=format, add_generation_prompt=True)
        options.setdefault("stop_ids", tokenizer.stop_token_ids)
        return tokenizer.decode(list(self.generate(ids, **options)), continues=True).strip()
