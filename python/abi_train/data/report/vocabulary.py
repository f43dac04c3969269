"""What each id of a tokenizer is, as tables that whole arrays of ids can be looked up in.

Which ids are control tokens, which end a turn, which a chat format uses; how many bytes an id
stands for, and a hash of its letters and digits, so that a row can be compared with another one
without spelling either out. Tables are filled for ids that occur. Does not know: rows, files.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...chat import CHOICES, FORMATS, FROM_TOKENIZER, format_info
from ...errors import AbiTrainError
from ...tokenizer import Tokenizer

HASH_BASE = 0x9E3779B97F4A7C15
"""Base of the polynomial whose value modulo 2**64 stands for a text; odd: no power is 0."""
_WORD = 1 << 64
_LETTER_SALT = 0xD6E8FEB86659FD93

_SAMPLE_CHATS: tuple[list[dict[str, str]], ...] = (
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ],
    [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
    [
        {"role": "user", "content": "u"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "a"},
    ],
)


class Vocabulary:
    """A tokenizer folder as tables by id.

    chat_format: name of the format the rows were made with; None or an unknown name: the one of the
    tokenizer's own template. Raises what `Tokenizer.load` raises.
    """

    def __init__(self, folder: Path, chat_format: str | None = None) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self.size = self.tokenizer.vocab_size
        content = (folder / "tokenizer.json").read_bytes()
        self.hash = hashlib.sha256(content).hexdigest()
        self.bos = self.tokenizer.bos_token_id
        self.eos = self.tokenizer.eos_token_id
        self.pad = self.tokenizer.pad_token_id
        described = _described(content)
        self.unknown = self._unknown(described)
        self.control = self._control(described)
        self.stops = np.zeros(self.size, dtype=np.bool_)
        for end in (*self.tokenizer.stop_token_ids, self.eos):
            if end is not None:
                self.stops[end] = True
        rendered = self._rendered(chat_format)
        self.past_end, controls = self._described(chat_format)
        self.begins_with_bos = self._begins_with_bos(rendered)
        self.bos_inside_is_normal = (
            self.bos is None
            or bool(self.stops[self.bos])
            or any(ids.count(self.bos) > 1 for ids in rendered)
        )
        self.expected = np.zeros(self.size, dtype=np.bool_)
        in_chats = (token for ids in rendered for token in ids)
        for token in (self.bos, self.eos, *controls, *in_chats):
            if token is not None:
                self.expected[token] = True
        self._known = np.zeros(self.size, dtype=np.bool_)
        self.byte_length = np.zeros(self.size, dtype=np.int64)
        self.letter_count = np.zeros(self.size, dtype=np.int64)
        self.letter_hash = np.zeros(self.size, dtype=np.uint64)

    def close(self) -> None:
        """Lets go of the tokenizer."""
        self.tokenizer.close()

    def _unknown(self, described: dict[str, Any]) -> int | None:
        model = described.get("model")
        name = model.get("unk_token") if isinstance(model, dict) else None
        return self.tokenizer.token_to_id(name) if isinstance(name, str) else None

    def _control(self, described: dict[str, Any]) -> npt.NDArray[np.bool_]:
        control = np.zeros(self.size, dtype=np.bool_)
        added = described.get("added_tokens")
        for token in added if isinstance(added, list) else []:
            name = token.get("content") if isinstance(token, dict) else None
            found = (
                self.tokenizer.token_to_id(name, control_only=True)
                if isinstance(name, str)
                else None
            )
            if found is not None:
                control[found] = True
        for named in (self.bos, self.eos, self.pad):
            if named is not None:
                control[named] = True
        return control

    def _rendered(self, chat_format: str | None) -> list[list[int]]:
        """Ids of small chats in the format, as far as it takes them."""
        known = chat_format in CHOICES and chat_format != FROM_TOKENIZER
        for name in dict.fromkeys((chat_format if known else None, None)):
            rendered = []
            for chat in _SAMPLE_CHATS:
                try:
                    rendered.append(self.tokenizer.render_chat(chat, format=name)[0].tolist())
                except (AbiTrainError, TypeError):
                    continue
            if rendered:
                return rendered
        return []

    def _described(self, chat_format: str | None) -> tuple[int | None, list[int]]:
        """What stands in place of the end behind an answer of the past, and all controls."""
        name = chat_format
        if name not in FORMATS:
            detected = self.tokenizer.chat_format()
            name = None if detected is None else detected.name
        if name not in FORMATS:
            return None, []
        assert name is not None
        about = format_info(name)
        ids = [self.tokenizer.token_to_id(text, control_only=True) for text in about.controls]
        past = about.past_end
        return (
            None if past is None else self.tokenizer.token_to_id(past, control_only=True),
            [token for token in ids if token is not None],
        )

    def _begins_with_bos(self, rendered: Sequence[Sequence[int]]) -> bool | None:
        """Whether rows begin with the begin token; None: chats do and texts do not, or reverse."""
        text = self.tokenizer.encode("x", add_eos=False)
        as_text = bool(text.size) and int(text[0]) == self.bos
        as_chat = [bool(ids) and ids[0] == self.bos for ids in rendered]
        if self.bos is None:
            return False
        return as_text if all(chat == as_text for chat in as_chat) else None

    def learn(self, occurring: npt.NDArray[np.int64]) -> None:
        """Fill the tables for these ids, all below `size`."""
        for token in occurring[~self._known[occurring]].tolist():
            self._known[token] = True
            if self.control[token]:
                continue
            data = self.bytes_of(token)
            self.byte_length[token] = len(data)
            letters = [byte for byte in data.lower() if byte >= 0x80 or chr(byte).isalnum()]
            value = 0
            for byte in reversed(letters):  # the first letter has power 0
                value = (value * HASH_BASE + (byte + 1) * _LETTER_SALT) % _WORD
            self.letter_count[token] = len(letters)
            self.letter_hash[token] = value

    def bytes_of(self, token: int) -> bytes:
        """What the id stands for; of a control token its name."""
        one = np.array([token], dtype=np.uint32)
        return self.tokenizer.decode_bytes(one, skip_special=False, continues=True)

    def text_of(self, token: int) -> str:
        """The id as text that can be shown."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def ordinary_bytes(self, ids: npt.NDArray[np.uint32]) -> bytes:
        """The text of ids, without control tokens and ids the tokenizer does not have."""
        if ids.size and int(ids.max()) >= self.size:
            ids = ids[ids < self.size]
        return self.tokenizer.decode_bytes(ids, skip_special=True, continues=True)

    def texts(self, ids: Iterable[int]) -> list[str]:
        """One text for each id; a character that spans several stands at the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        shown = []
        for token in ids:
            if token >= self.size:
                shown.append(decoder.decode(b"", True) + f"<id {token}>")
                decoder.reset()
                continue
            if self.control[token]:
                rest = decoder.decode(b"", True)
                decoder.reset()
                shown.append(rest + self.text_of(token))
            else:
                shown.append(decoder.decode(self.bytes_of(token)))
        if shown:
            shown[-1] += decoder.decode(b"", True)
        return shown


def powers(exponents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """`HASH_BASE` to these powers, modulo 2**64."""
    if exponents.size == 0:
        return np.empty(0, dtype=np.uint64)
    low = np.full(4096, HASH_BASE, dtype=np.uint64)
    low[0] = 1
    np.multiply.accumulate(low, out=low)
    step = np.uint64(pow(HASH_BASE, 4096, _WORD))
    high = np.full(int(exponents.max() >> 12) + 1, step, dtype=np.uint64)
    high[0] = 1
    np.multiply.accumulate(high, out=high)
    result: npt.NDArray[np.uint64] = low[exponents & 4095] * high[exponents >> 12]
    return result


def _described(content: bytes) -> dict[str, Any]:
    """`tokenizer.json` as read by Python; empty when only the native reader understands it."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
