"""Fixtures of the C line's tests: one tiny model, one training configuration, one data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import SETTINGS, TINY


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A `config.json` of a model with a few thousand weights."""
    return dict(TINY)


@pytest.fixture
def settings() -> dict[str, Any]:
    """A training configuration for it."""
    return dict(SETTINGS)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """1 000 ids below 61, in a stream."""
    path = tmp_path / "data.bin"
    (np.arange(1000, dtype="<u4") * 7 % 61).astype("<u4").tofile(path)
    return path
