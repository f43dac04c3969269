"""The native tokenizer as `prepare` uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat import CHOICES, format_info
from ..chat import FORMATS as FORMATS_BY_NAME
from ..errors import ArgumentError, DataError
from ..tokenizer import Tokenizer
from .sources import Message

if TYPE_CHECKING:
    from .._native import Handle

FORMATS = CHOICES


class NativeEncoder:
    """A tokenizer folder with the chat format of its template, or another one by name."""

    def __init__(self, folder: Path, chat_format: str | None = None) -> None:
        if chat_format is not None and chat_format not in FORMATS:
            raise ArgumentError(
                f"chat_format is {chat_format!r}; it must be one of {', '.join(FORMATS)}"
            )
        self._tokenizer = Tokenizer.load(folder)
        self.vocab_size = self._tokenizer.vocab_size
        self.end_id = self._tokenizer.eos_token_id
        ends = {*self._tokenizer.stop_token_ids, self.end_id}
        self.end_ids = frozenset(end for end in ends if end is not None)
        self.hash = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        self.past_end_ids: frozenset[int] = frozenset()
        self.shows_tools = True
        """Whether the template, where it decides on the format, shows tools as the format does."""
        self.chat_format = self._format = chat_format or self._name()
        if self.chat_format in FORMATS_BY_NAME:
            past = format_info(self.chat_format).past_end
            token = None if past is None else self._tokenizer.token_to_id(past, control_only=True)
            if token is not None:
                self.past_end_ids = frozenset([token])

    def _name(self) -> str | None:
        """The format the template is, or `from-tokenizer`; None when there is no template."""
        found = self._tokenizer.chat_format()
        if found is None:
            return None
        self.shows_tools = found.tools
        return found.name

    @property
    def tokenizer(self) -> Handle:
        """The native tokenizer."""
        return self._tokenizer.native

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with the begin token where the tokenizer puts one."""
        return [int(i) for i in self._tokenizer.encode(text, add_eos=False)]

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        emotion: str | None,
        answer_next: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        learn_from: int = 0,
        last_only: bool = False,
    ) -> tuple[list[int], list[bool]]:
        """Ids and whether each is in the loss."""
        if tools and not self.shows_tools:
            raise DataError(
                "the chat offers tools, and the tokenizer's template, which is "
                f"{self.chat_format}, does not show them; name a format with tools"
            )
        turns = [turn.to_dict() for turn in messages]
        for turn in turns:
            if turn["role"] == "user":
                if emotion is not None:  # of the row: stands on the first turn alone
                    turn.setdefault("emotion", emotion)
                break
        ids, mask = self._tokenizer.render_chat(
            turns,
            format=self._format,
            tools=list(tools) or None,
            add_generation_prompt=answer_next,
            train=not answer_next,
            learn_from=learn_from,
            loss="completion" if last_only else "assistant",
        )
        return ids.tolist(), mask.tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens shown."""
        return self._tokenizer.decode(ids, skip_special=False, continues=True)
