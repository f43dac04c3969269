"""What stands in the text of rows: scripts, code, broken and hidden characters, and control tokens
that somebody wrote out as text.

Reads bytes with NumPy; a marker is looked for letter by letter only where a cheap search has found
something. Does not know: token ids, files.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from .measure import Hits

MARKERS: Final[dict[str, tuple[str, ...]]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": (
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|python_tag|>",
    ),
    "mistral": ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    "llama2": ("<<SYS>>", "<</SYS>>"),
    "sentencepiece": ("<s>", "</s>", "<unk>"),
    "harmony": ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    "phi": ("<|user|>", "<|assistant|>", "<|system|>"),
    "gpt": ("<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|fim_middle|>", "<|pad|>"),
    "deepseek": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "alpaca": ("### Instruction:", "### Response:"),
    "abbey": ("[EMOTION:",),
}
"""Names of chat formats and the control tokens, or fixed words, they are known by."""

CONTROL_FREE: Final = ("alpaca", "abbey")
"""Formats that write their turns with ordinary text."""

FAMILIES: Final = {"qwen": "chatml", "qwen2": "chatml", "smollm": "chatml", "gpt-oss": "harmony"}

_FAMILY_OF: Final = {
    marker.encode(): family for family, markers in MARKERS.items() for marker in markers
}
_MARKER: Final = re.compile(b"|".join(re.escape(m) for m in sorted(_FAMILY_OF, reverse=True)))
_NEEDLES: Final = (
    b"|>",
    b"INST]",
    b"SYS>>",
    b"s>",  # <s>, </s>, <bos>, <eos>
    b"<unk>",
    b"_of_turn>",
    b"[TOOL_",
    b"[AVAILABLE_TOOLS]",
    "｜>".encode(),
    b"### Instruction:",
    b"### Response:",
    b"[EMOTION:",
)

_RANGES: Final = (
    ("Latin", 0xAA, 0xAB), ("Latin", 0xB5, 0xB6), ("Latin", 0xBA, 0xBB), ("Latin", 0xC0, 0x250),
    ("Latin", 0x250, 0x2B0), ("Greek", 0x370, 0x400), ("Cyrillic", 0x400, 0x530),
    ("Armenian", 0x530, 0x590), ("Hebrew", 0x590, 0x600), ("Arabic", 0x600, 0x700),
    ("Arabic", 0x750, 0x780), ("Arabic", 0x8A0, 0x900), ("Devanagari", 0x900, 0x980),
    ("Bengali", 0x980, 0xA00), ("Gurmukhi", 0xA00, 0xA80), ("Gujarati", 0xA80, 0xB00),
    ("Odia", 0xB00, 0xB80), ("Tamil", 0xB80, 0xC00), ("Telugu", 0xC00, 0xC80),
    ("Kannada", 0xC80, 0xD00), ("Malayalam", 0xD00, 0xD80), ("Sinhala", 0xD80, 0xE00),
    ("Thai", 0xE00, 0xE80), ("Lao", 0xE80, 0xF00), ("Tibetan", 0xF00, 0x1000),
    ("Myanmar", 0x1000, 0x10A0), ("Georgian", 0x10A0, 0x1100), ("Hangul", 0x1100, 0x1200),
    ("Ethiopic", 0x1200, 0x13A0), ("Khmer", 0x1780, 0x1800), ("Mongolian", 0x1800, 0x18B0),
    ("Cyrillic", 0x1C80, 0x1C90), ("Georgian", 0x1C90, 0x1CC0), ("Latin", 0x1E00, 0x1F00),
    ("Greek", 0x1F00, 0x2000), ("Cyrillic", 0x2DE0, 0x2E00), ("Han", 0x2E80, 0x2FE0),
    ("Han", 0x3005, 0x3008), ("Kana", 0x3040, 0x3100), ("Hangul", 0x3130, 0x3190),
    ("Kana", 0x31F0, 0x3200), ("Han", 0x3400, 0x4DC0), ("Han", 0x4E00, 0xA000),
    ("Cyrillic", 0xA640, 0xA6A0), ("Latin", 0xA720, 0xA800), ("Devanagari", 0xA8E0, 0xA900),
    ("Hangul", 0xAC00, 0xD7B0), ("Han", 0xF900, 0xFB00), ("Latin", 0xFB00, 0xFB07),
    ("Hebrew", 0xFB1D, 0xFB50), ("Arabic", 0xFB50, 0xFE00), ("Arabic", 0xFE70, 0xFEFF),
    ("Latin", 0xFF21, 0xFF3B), ("Latin", 0xFF41, 0xFF5B), ("Kana", 0xFF66, 0xFFA0),
    ("emoji", 0x1F000, 0x1FB00), ("Han", 0x20000, 0x32000),
)  # fmt: skip
_OTHER: Final = "other"
_NAMES: Final = (*dict.fromkeys(name for name, _, _ in _RANGES), _OTHER)
_EDGES: Final = np.array([edge for _, low, high in _RANGES for edge in (low, high)])
_BY_SLOT: Final = np.array(
    [len(_NAMES) - 1]
    + [
        value
        for at, (name, _, high) in enumerate(_RANGES)
        for value in (
            _NAMES.index(name),
            _NAMES.index(_RANGES[at + 1][0])
            if at + 1 < len(_RANGES) and _RANGES[at + 1][1] == high
            else len(_NAMES) - 1,
        )
    ]
)
_HIDDEN_EDGES: Final = np.array(
    [
        0x200B,
        0x200C,
        0x202A,
        0x202F,
        0x2060,
        0x2065,
        0x2066,
        0x206A,
        0xFEFF,
        0xFF00,
        0xE0000,
        0xE0080,
    ]
)
"""Zero-width space, bidi controls, word joiners, byte order mark, tags: from, to, in turns."""

_LETTER: Final = np.array([chr(b).isalpha() and b < 0x80 for b in range(256)])
_SPACE: Final = np.array([chr(b).isspace() and b < 0x80 for b in range(256)])
_CODE: Final = np.array([chr(b) in "{}[]();=<>_\\" and b < 0x80 for b in range(256)])
CODE_SHARE: Final = 0.12
"""From this share of brackets and operators on, a row counts as code or markup."""
CODE_BYTES: Final = 40


@dataclass(kw_only=True)
class TextFacts:
    """What was found in the text that was looked at.

    scripts: letters by script, emoji beside them. markers: by control token text, its format and
    where. hidden: zero-width characters and such that change the direction of a text.
    """

    bytes: int = 0
    rows: int = 0
    scripts: Counter[str] = field(default_factory=Counter)
    code_bytes: int = 0
    code_rows: int = 0
    markers: Hits = field(default_factory=Hits)
    marker_counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    replaced: Hits = field(default_factory=Hits)
    hidden: Hits = field(default_factory=Hits)
    nul: Hits = field(default_factory=Hits)


def add_text(
    found: TextFacts,
    data: bytes,
    offsets: npt.NDArray[np.int64],
    first_row: int,
    *,
    leave_out: frozenset[str] = frozenset(),
) -> None:
    """Look at the text of consecutive rows: row `first_row + i` is `data[offsets[i]:offsets[i+1]]`.

    leave_out: formats whose markers are ordinary here.
    """
    found.rows += offsets.size - 1
    found.bytes += len(data)
    if not data:
        return

    def rows_of(at: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        return np.searchsorted(offsets, at, side="right") - 1 + first_row

    array = np.frombuffer(data, dtype=np.uint8)
    by_byte = np.bincount(array, minlength=256)
    _add_count(found.scripts, "Latin", int(by_byte[:128][_LETTER[:128]].sum()))
    if by_byte[0]:
        found.nul.add(rows_of(np.flatnonzero(array == 0)))
    if by_byte[0x80:].any():
        _add_wide(found, array, rows_of)
    _add_code(found, data, array, offsets)
    if any(needle in data for needle in _NEEDLES):
        _add_markers(found, data, rows_of, leave_out)


def _add_count(counts: Counter[str], name: str, count: int) -> None:
    if count:
        counts[name] += count


def _add_wide(found: TextFacts, array: npt.NDArray[np.uint8], rows_of: object) -> None:
    """Characters beyond ASCII."""
    assert callable(rows_of)
    lead = np.flatnonzero(array >= 0xC2)
    padded = np.concatenate((array, np.zeros(4, dtype=np.uint8)))
    first = padded[lead].astype(np.int64)
    more = [padded[lead + at].astype(np.int64) & 0x3F for at in (1, 2, 3)]
    point = np.where(
        first < 0xE0,
        (first & 0x1F) << 6 | more[0],
        np.where(
            first < 0xF0,
            (first & 0x0F) << 12 | more[0] << 6 | more[1],
            (first & 0x07) << 18 | more[0] << 12 | more[1] << 6 | more[2],
        ),
    )
    names = _BY_SLOT[np.searchsorted(_EDGES, point, side="right")]
    for index, count in enumerate(np.bincount(names, minlength=len(_NAMES)).tolist()):
        if _NAMES[index] != _OTHER:
            _add_count(found.scripts, _NAMES[index], count)
    found.replaced.add(rows_of(lead[point == 0xFFFD]))
    hidden = np.searchsorted(_HIDDEN_EDGES, point, side="right") % 2 == 1
    found.hidden.add(rows_of(lead[hidden]))


def _add_code(
    found: TextFacts,
    data: bytes,
    array: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> None:
    sizes = np.diff(offsets)
    full = np.flatnonzero(sizes > 0)
    if full.size == 0:
        return
    begins = offsets[full]
    signs = np.add.reduceat(_CODE[array].astype(np.int64), begins)
    spaces = np.add.reduceat(_SPACE[array].astype(np.int64), begins)
    shown = np.maximum(sizes[full] - spaces, 1)
    code = (signs >= CODE_SHARE * shown) & (sizes[full] >= CODE_BYTES)
    at = data.find(b"```")
    while at >= 0:
        code[np.searchsorted(begins, at, side="right") - 1] = True
        at = data.find(b"```", at + 3)
    found.code_rows += int(code.sum())
    found.code_bytes += int(sizes[full][code].sum())


def _add_markers(found: TextFacts, data: bytes, rows_of: object, leave_out: frozenset[str]) -> None:
    assert callable(rows_of)
    places = []
    for match in _MARKER.finditer(data):
        family = _FAMILY_OF[match.group()]
        if family not in leave_out:
            places.append(match.start())
            found.marker_counts[family, match.group().decode()] += 1
    if places:
        found.markers.add(rows_of(np.array(places)))
