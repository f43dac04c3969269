"""Which process this is, when `torchrun` or `accelerate launch` started several for one run.

Read from the variables those programs set; importing this imports nothing of theirs. A run on
several processes is the same run: `batch_size` counts the rows of all of them together.
"""

from __future__ import annotations

import os


def count() -> int:
    """Processes that train together; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number, from 0."""
    return _number("RANK", 0)


def is_first() -> bool:
    """True for the process that writes, prints and saves."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
