"""Several processes of the native engine: arrays added up over all of them by `torch.distributed`.

The arrays are the native library's own memory and nothing is copied on the way to gloo and back.
torch is asked for only when a launcher started more than one process. Does not know: training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from ..errors import EngineError

AddUp = Callable[[npt.NDArray[Any]], None]
"""Replaces an array by its sum over all processes; every process calls it in the same order."""


@contextlib.contextmanager
def adding() -> Iterator[AddUp]:
    """Joins the other processes; at the end waits for them.

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
    first = not joined.is_initialized()
    if first:
        joined.init_process_group("gloo")
    group = joined.new_group(backend="gloo")  # the default one may be a GPU's

    def add_up(array: npt.NDArray[Any]) -> None:
        joined.all_reduce(torch.from_numpy(array), group=group)

    try:
        yield add_up
        joined.barrier(group=group)
    finally:
        if first:
            joined.destroy_process_group()
