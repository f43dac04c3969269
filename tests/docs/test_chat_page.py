"""docs/formats/chat.md says what the descriptions say, and names every error."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_descriptions_say() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "make_chat_docs.py"))["page"]()
    stored = (ROOT / "docs" / "formats" / "chat.md").read_text(encoding="utf-8")
    assert stored == made, "docs/formats/chat.md is old: run `make docs`"


def test_every_error_of_a_chat_is_on_the_page() -> None:
    page = (ROOT / "docs" / "formats" / "chat.md").read_text(encoding="utf-8")
    source = (ROOT / "zig/src/tokenizer/chat/conversation.zig").read_text(encoding="utf-8")
    block = re.search(r"pub const Error = error\{(.*?)\n\};", source, re.S)
    assert block
    names = set(re.findall(r"^    (\w+),$", block[1], re.M)) - {"OutOfMemory"}
    names |= {"InvalidChat", "MissingControlToken"}
    assert set(re.findall(r"^\| `(\w+)` \|", page.split("## Refused")[1], re.M)) == names
