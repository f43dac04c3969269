"""docs/lint.md says what `abi lint` says, and every code can be met."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = ROOT / "zig" / "src" / "formats"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    path = ROOT / "tools" / "make_lint_docs.py"
    spec = importlib.util.spec_from_file_location("make_lint_docs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_program_says(maker: ModuleType) -> None:
    stored = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    assert stored == maker.page(), "docs/lint.md is old: run `make docs`"


def test_no_code_is_only_on_the_page() -> None:
    """Each one is reported somewhere in the code, and met in a test of it."""
    code = re.search(
        r"pub const Code = enum \{(.*?)\n\n", (LINT / "lint/rules.zig").read_text("utf-8"), re.S
    )
    assert code is not None
    names = re.findall(r"(\w+),", code[1])
    assert len(names) > 50
    files = [path for path in LINT.rglob("*.zig") if path.name != "rules.zig"]
    checks = "\n".join(p.read_text("utf-8") for p in files if "test" not in p.name)
    tests = (LINT / "lint/lint_test.zig").read_text("utf-8")
    tests += "\n".join(p.read_text("utf-8") for p in (ROOT / "tests").rglob("test_lint*.py"))
    for name in names:
        assert f".{name}" in checks, name
        assert f".{name}" in tests or f'"{name.replace("_", "-")}"' in tests, name
