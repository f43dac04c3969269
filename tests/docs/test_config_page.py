"""docs/configuration.md says what the definitions say."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_definitions_say() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "make_config_docs.py"))["page"]()
    stored = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert stored == made, "docs/configuration.md is old: run `make docs`"
    assert "| `learning_rate` | peak learning rate | `1e-05` |" in stored
