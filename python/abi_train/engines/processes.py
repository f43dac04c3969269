"""Which process this is, when `torchrun` or `accelerate launch` started several for one run.

Read from the variables those programs set; importing this imports nothing of theirs. A run on
several processes is the same run: `batch_size` counts the rows of all of them together.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Any, Final

REST_S: Final = 0.02
"""How long a thread of gloo must have had the interpreter to itself and not wanted it."""
LONGEST_REST_S: Final = 5.0


def count() -> int:
    """Processes that train together; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number, from 0."""
    return _number("RANK", 0)


def is_first() -> bool:
    """True for the process that writes, prints and saves."""
    return rank() == 0


@functools.cache
def leave_at_exit(distributed: Any) -> None:
    """Have the process group of `torch.distributed` taken down before the interpreter ends.

    accelerate keeps its group for the next run of this process. And gloo's threads outlive even a
    group that was destroyed: one that lets go of a finished exchange's tensors while the
    interpreter ends aborts a program that had already done everything.
    """
    atexit.register(_leave, distributed)


def _leave(distributed: Any) -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
    end = time.monotonic() + LONGEST_REST_S
    rested = 0
    while rested < 2 and time.monotonic() < end:
        time.sleep(REST_S)  # whoever waits for the interpreter gets it now
        rested = rested + 1 if _gloo_rests() else 0


def _gloo_rests() -> bool:
    """False while a thread of gloo's runs or could run; True where Linux cannot be asked."""
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            name, _, rest = (thread / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("pt_gloo") and not rest.startswith(" S"):
                return False
    return True


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
