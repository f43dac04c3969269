"""The command `abi-train`. One file a verb, each thin over the public modules.

Results go to stdout, everything else to stderr. Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | the check found a difference, or the work failed; one line on stderr says why |
| 2 | the command line is wrong: an unknown option, or a value an option does not take |
| 130, 143 | stopped by Ctrl-C or SIGTERM; a training run is saved first |

Progress that cannot be written (a full disk, a closed pipe) never ends a run; a result that cannot
be written is code 1. No error prints a traceback unless `--debug` is given.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # Reading the program's files takes a moment. An exception thrown in the middle of an import
    # may come out as another one, so Ctrl-C leaves at once until a verb begins (`app.Verbs`).
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread: Ctrl-C is not ours
        pass
    try:
        from .app import run

        run(arguments)
    finally:
        listen()


def listen() -> None:
    """From here on Ctrl-C is an exception again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(number: int, frame: Any) -> None:
    """Leave at once: nothing has been done that could be half done."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(130)
