"""Several processes of the native engine: arrays added up over all of them by `torch.distributed`.

The arrays are the native library's own memory and nothing is copied on the way to gloo and back.
torch is asked for only when a launcher started more than one process. Does not know: training.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from ..errors import EngineError
from . import processes

AddUp = Callable[[npt.NDArray[Any]], None]
"""Replaces an array by its sum over all processes; every process calls it in the same order."""


@contextlib.contextmanager
def adding() -> Iterator[AddUp]:
    """Joins the other processes; waits for them at the end.

    Raises `EngineError` without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise EngineError(
            "several processes of the native engine exchange gradients through torch.distributed, "
            "and torch is not installed: pip install torch, or start one process"
        ) from error
    joined: Any = torch.distributed
    group = _group(joined)

    def add_up(array: npt.NDArray[Any]) -> None:
        joined.all_reduce(torch.from_numpy(array), group=group)

    yield add_up
    joined.barrier(group=group)


@functools.cache
def _group(joined: Any) -> Any:
    """All processes, over gloo. Kept: a second group would find the addresses of the first."""
    if joined.is_initialized():
        return joined.new_group(backend="gloo")  # the one that is there may be a GPU's
    joined.init_process_group("gloo")
    processes.leave_at_exit(joined)
    return joined.group.WORLD
