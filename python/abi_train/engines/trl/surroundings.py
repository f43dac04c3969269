"""What surrounds a run in this process: torch's thread count and the libraries' chatter.

Each is put back as it was found. Does not know: runs.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from .libraries import library_log, torch


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' advice off the terminal; errors still come through as exceptions."""
    before = library_log.get_verbosity()
    library_log.set_verbosity_error()
    library_log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library_log.set_verbosity(before)
        library_log.enable_progress_bar()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the `with` block; 0 leaves its own choice."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_line(error: BaseException) -> str:
    """The text of a library's error, short enough for a message of ours."""
    return " ".join(str(error).split())[:300]
