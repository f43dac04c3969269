"""Text of strangers, made harmless to look at.

Whatever would steer a terminal or change the direction of a page is shown by its number. Does not
know: terminals, pages.
"""

from __future__ import annotations

import re
from typing import Final

_STEERING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with control, bidi and zero-width characters spelled out, as `\\x1b` or `\\u202e`.

    Line breaks and tabs stay.
    """
    return _STEERING.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    number = ord(match.group())
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )
