"""The program that several folders of tests run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def program() -> Path:
    """``ABI_PROGRAM`` (`make test` sets it to the installed one), or the program in ``zig-out``.

    Without one the tests fail: a missing program must not pass for a tested one.
    """
    path = Path(os.environ.get("ABI_PROGRAM", ROOT / "zig-out" / "bin" / "abi"))
    if not path.is_file():
        pytest.fail(f"{path} is not built: run `python -m ziglang build`, or set ABI_PROGRAM")
    return path
