"""The review of pairs: a page to read and mark, and what its marks say.

    ## [x] 3f2a91c05b77 unknowable, overconfident

An `x` takes the pair, a space leaves it out; the answers may be corrected where they stand. Texts
are quoted line by line, so nothing in one can look like a heading. Marks are found by the pair's
id, which stays when questions are added or the seed is another one.

Does not know: where pairs come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..checkpoint import write_text_atomic
from ..errors import DataError, FileAccessError
from .pair_builder import Pair

MAX_BYTES: Final = 64 << 20
HEAD: Final = """# Pairs to review

`[x]` takes a pair, `[ ]` leaves it out. The answers may be corrected. Run the same command again
with `--review` and this file to apply it; pairs that are new by then are added at the end.
"""
PARTS: Final = ("asked", "better", "worse")
_HEADING: Final = re.compile(r"^## \[(.)\] ([0-9a-f]{12})\b")

Marks = dict[str, tuple[bool, str, str]]
"""Of an id: whether it is accepted, the better and the worse answer."""


def read(path: str | Path) -> Marks:
    """The marks of a review. Raises `DataError` with file and line for what cannot be read.

    A file without a pair and without the heading of a review is another one, and refused.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES} bytes; is it another file?")
        lines = path.read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; it must be a review written here") from None
    marks: Marks = {}
    open_: tuple[str, bool, int] | None = None
    parts: dict[str, list[str]] = {}
    part = ""

    def close() -> None:
        if open_ is None:
            return
        known, accepted, line = open_
        texts = {name: "\n".join(parts.get(name, ())).strip() for name in PARTS}
        for name in ("better", "worse"):
            if not texts[name]:
                raise DataError(
                    f"{path}:{line}: pair {known} has no {name} answer any more; write it behind "
                    f"'{name}:' as '> text', or leave the pair out with [ ]"
                )
        marks[known] = (accepted, texts["better"], texts["worse"])

    for number, text in enumerate(lines, start=1):
        heading = _HEADING.match(text)
        if heading is not None:
            close()
            mark, known = heading[1], heading[2]
            if mark not in " xX":
                raise DataError(
                    f"{path}:{number}: the mark of pair {known} is {mark!r}; it must be x or a "
                    "space"
                )
            if known in marks:
                raise DataError(f"{path}:{number}: pair {known} stands here a second time")
            open_, parts, part = (known, mark in "xX", number), {}, ""
        elif text.startswith("## "):
            raise DataError(
                f"{path}:{number}: {text[:40]!r} is no heading of a pair; it must be as "
                "'## [x] 3f2a91c05b77'"
            )
        elif text.strip().rstrip(":") in PARTS and text.strip().endswith(":"):
            part = text.strip().rstrip(":")
        elif text.startswith(">") and part:
            parts.setdefault(part, []).append(text[1:].removeprefix(" "))
    close()
    if not marks and lines[0].strip() != HEAD.split("\n", 1)[0]:
        raise DataError(
            f"{path} is no review of pairs; name another file, which will be written, or delete it"
        )
    return marks


def write(path: str | Path, pairs: Sequence[Pair]) -> None:
    """Write all pairs with their marks. Raises `FileAccessError`; what was there stays then."""
    path = Path(path)
    text = HEAD + "".join(map(_section, pairs))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be written ({error.strerror})") from None


def add(path: str | Path, pairs: Sequence[Pair]) -> None:
    """Add pairs at the end of a review, whose other lines stay as somebody left them."""
    path = Path(path)
    try:
        before = path.read_bytes().decode("utf-8")
        write_text_atomic(path, before.rstrip("\n") + "\n" + "".join(map(_section, pairs)))
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be written ({error.strerror})") from None


def _section(pair: Pair) -> str:
    told = f"{pair.kind}, {pair.failure}" + (f" ({pair.source})" if pair.source else "")
    told = " ".join(told.split())
    asked = "\n".join(
        turn["content"] if turn["role"] == "user" else f"{turn['role']}: {turn['content']}"
        for turn in pair.prompt
    )
    texts = {"asked": asked, "better": pair.chosen, "worse": pair.rejected}
    quoted = "".join(f"\n{name}:\n{_quoted(text)}" for name, text in texts.items())
    return f"\n## [{'x' if pair.taken else ' '}] {pair.id} {told}\n{quoted}"


def _quoted(text: str) -> str:
    return "".join(f"> {line}".rstrip() + "\n" for line in text.split("\n"))
