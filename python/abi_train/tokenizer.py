"""The native tokenizer: the same ids as the Hugging Face tokenizer of the same folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import ArgumentError, DataError
from .owned import Owned

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._native import Handle
    from .chat import Detected
    from .chat_template import Template, Vocabulary

__all__ = ["Tokenizer"]


class Tokenizer(Owned):
    """Text to ids and back.

    ::

        with Tokenizer.load("model-folder") as tokenizer:
            ids = tokenizer.encode("Hello")
            tokenizer.decode(ids)

    Any number of threads may use one tokenizer at the same time.
    """

    _noun = "tokenizer"

    def __init__(self, handle: Handle, path: Path) -> None:
        self._handle: Handle | None = handle
        self.path = path
        self._info: dict[str, Any] = _native.tokenizer.info(handle)
        self._compiled: Template | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Opens a folder with `tokenizer.json`, or the tokenizer inside a `.gguf` file.

        Raises MissingFileError, or FormatError naming the file, the value and the rule.
        """
        return cls(_native.tokenizer.open(path), Path(path))

    def close(self) -> None:
        """Frees the native tokenizer."""
        self._handle = None

    def __repr__(self) -> str:
        closed = ", closed" if self._handle is None else ""
        return f"Tokenizer({str(self.path)!r}, {self.vocab_size} tokens{closed})"

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of ids; all are below it."""
        return int(self._info["vocab_size"])

    @property
    def bos_token_id(self) -> int | None:
        """Id that begins a text, if the tokenizer has one."""
        return _optional(self._info["bos"])

    @property
    def eos_token_id(self) -> int | None:
        """Id that ends a text, if the tokenizer has one."""
        return _optional(self._info["eos"])

    @property
    def pad_token_id(self) -> int | None:
        """Id of padding, if the tokenizer has one."""
        return _optional(self._info["pad"])

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        return [int(i) for i in self._info["stops"]]

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template, if there is one."""
        found = self._info["chat_template"]
        return None if found is None else str(found)

    def encode(
        self,
        text: str | bytes,
        *,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        parse_special: bool = False,
        continues: bool = False,
    ) -> npt.NDArray[np.uint32]:
        """Ids of `text`, one-dimensional uint32.

        add_bos, add_eos: whether the begin and the end token are added; None: as the files say.
        parse_special: let control tokens written in the text become ids. Never for text a person
        wrote.
        continues: the text goes on from earlier text, so no leading space is added.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        return _native.tokenizer.encode(
            self.native,
            data,
            add_bos=add_bos,
            add_eos=add_eos,
            parse_special=parse_special,
            continues=continues,
        )

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        parse_special: bool = False,
        threads: int = 0,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
        """Ids of many texts, one after the other, and where those of each begin.

        ::

            ids, starts = tokenizer.encode_batch(texts)
            ids[starts[i] : starts[i + 1]]  # those of texts[i]

        threads: 0 is one for each CPU; a large text is shared out. The ids are those of `encode`
        for any number of threads. Other Python threads run meanwhile.
        """
        return _native.tokenizer.encode_batch(
            self.native,
            [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else bytes(t) for t in texts],
            add_bos=add_bos,
            add_eos=add_eos,
            parse_special=parse_special,
            threads=threads,
        )

    def decode(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        *,
        skip_special: bool = True,
        continues: bool = False,
    ) -> str:
        """Text of `ids`; what is not UTF-8 becomes U+FFFD.

        Raises ArgumentError for a foreign id.
        """
        data = self.decode_bytes(ids, skip_special=skip_special, continues=continues)
        return data.decode("utf-8", "replace")

    def decode_bytes(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        *,
        skip_special: bool = True,
        continues: bool = False,
    ) -> bytes:
        """Bytes of `ids`, exactly."""
        return _native.tokenizer.decode(self.native, as_ids(ids), skip_special, continues)

    def chat_format(self) -> Detected | None:
        """What the tokenizer's own chat template is; None when it has none."""
        from .chat import detect

        source = self.chat_template
        return None if source is None else detect(source, self._vocabulary())

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        format: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        train: bool = False,
        loss: str = "assistant",
        learn_from: int = 0,
        date: str | None = None,
        reasoning: str = "medium",
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """A chat as ids and loss mask, of the same length.

        messages: `{"role": "system" | "user" | "assistant" | "tool", "content": ...}`, and where
            they apply `thinking`, `tool_calls`, `name` and `tool_call_id`, `emotion` (abbey).
        format: one of `abi_train.chat.CHOICES`; None: the one the tokenizer's template is, else
            the template itself (`from-tokenizer`).
        tools: the tools on offer, as `{"type": "function", "function": {...}}`.
        add_generation_prompt: end with the beginning of an assistant turn.
        train: make a loss mask. loss: `assistant` (all its turns, from turn `learn_from` on),
            `completion` (the last of them) or `everything`.
        date: as 2025-06-28, for formats that name the day. (default: today)
        reasoning: `low`, `medium` or `high`: how much the model is asked to think, for formats that
            say it (harmony). A template of the tokenizer's own is asked for `medium`.

        What people wrote never becomes a control token. Raises DataError, with the turn's number,
        for a chat the format cannot write, and ArgumentError.
        """
        from .chat import FROM_TOKENIZER, chat_json

        if format is None:
            found = self.chat_format()
            if found is None:
                raise DataError(f"{self.path}: the tokenizer has no chat template; name a format")
            if tools and not found.tools:
                raise DataError(
                    f"the chat offers tools, and the tokenizer's template, which is {found.name}, "
                    "does not show them; name a format with tools"
                )
            format = found.name
        if format != FROM_TOKENIZER:
            return _native.tokenizer.render_chat(
                self.native,
                chat_json(messages, tools),
                format,
                add_generation_prompt=add_generation_prompt,
                train=train,
                loss=loss,
                learn_from=learn_from,
                date=date,
                reasoning=reasoning,
            )
        segments = self._template().segments(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            train=train,
            loss=loss,
            learn_from=learn_from,
            date=date,
        )
        return self.encode_segments(segments)

    def encode_segments(
        self, segments: Sequence[Mapping[str, Any]]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Ids and loss mask of `{"text": ...}` and `{"control": ...}` pieces with `in_loss`."""
        return _native.tokenizer.encode_segments(
            self.native, json.dumps([dict(segment) for segment in segments])
        )

    def _vocabulary(self) -> Vocabulary:
        from .chat_template import Vocabulary

        special = {
            f"{name}_token": self.decode([self._info[name]], skip_special=False, continues=True)
            for name in ("bos", "eos", "pad", "unk")
            if self._info.get(name) is not None
        }
        return Vocabulary(
            controls=tuple(self._info["controls"]),
            stops=frozenset(
                self.decode([i], skip_special=False, continues=True) for i in self.stop_token_ids
            ),
            special=special,
        )

    def _template(self) -> Template:
        from .chat_template import Template

        if self._compiled is None:
            source = self.chat_template
            if source is None:
                raise DataError(f"{self.path}: the tokenizer has no chat template; name a format")
            self._compiled = Template(source, self._vocabulary())
        return self._compiled

    def token_to_id(self, token: str, *, control_only: bool = False) -> int | None:
        """Id of a token spelled as in the files, or None. `control_only`: only a control token."""
        return _native.tokenizer.token_id(self.native, token.encode("utf-8"), control_only)


def as_ids(ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """`ids` as a contiguous uint32 array. Raises ArgumentError when they are not ids."""
    import numpy as np

    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, dtype=np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"ids are {array.dtype} of shape {array.shape}; they must be a list of whole numbers"
        )
    if int(array.min()) < 0 or int(array.max()) >= 1 << 32:
        raise ArgumentError("an id is negative or does not fit 32 bits")
    return np.ascontiguousarray(array, dtype=np.uint32)


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
