"""Standard streams that survive the shell: closed, on a full disk, or read by a program that left.

What goes wrong with stderr is lost without an error, so that a broken log never ends a run. What
goes wrong with stdout is an error that names it, once: a result that got lost is a failure.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Lossy(io.FileIO):
    """Stderr: what cannot be written is given up."""

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Strict(io.FileIO):
    """Stdout: the first failure names the stream; later writes, as at exit, are given up."""

    failed = False

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        if self.failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            raise OSError(error.errno, error.strerror, "standard output") from None


def prepare_streams() -> None:
    """Put the guarded streams in place of Python's own; a stream of somebody else's stays."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:  # `>&-`: the next file to be opened would get its number
            # Read only for stdout: writing the result must fail, not vanish.
            null = os.open(os.devnull, os.O_RDONLY if number < 2 else os.O_RDWR)
            os.set_inheritable(null, True)  # `inspect` and `chat` hand it to the other program
        if number == 0:
            if sys.stdin is None:
                sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            continue
        old = getattr(sys, name)
        if old is not None and old is not getattr(sys, f"__{name}__"):
            continue
        raw = (_Strict if number == 1 else _Lossy)(number, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=old.encoding if old is not None else "utf-8",
            errors="backslashreplace" if number == 2 or old is None else old.errors,
            line_buffering=number == 2 or raw.isatty(),
        )
        if old is not None:
            old.flush()
        setattr(sys, name, stream)
