"""What several processes of one run do together: share a micro-batch, add figures, gather tensors.

Rows of a micro-batch are dealt out, so two processes see what one would, at the same time. With one
process nothing is done. Does not know: the loop, losses.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import EngineError
from .. import processes
from .libraries import torch


def share(numbers: Sequence[int]) -> list[int]:
    """This process's part of a micro-batch; empty when there are fewer rows than processes."""
    return list(numbers[processes.rank() :: processes.count()])


def added(values: Sequence[float], device: Any) -> list[float]:
    """Each value summed over all processes."""
    if processes.count() == 1:
        return list(values)
    kind = torch.float32 if torch.device(device).type == "mps" else torch.float64
    total = torch.tensor(list(values), dtype=kind, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]


def wait() -> None:
    """Go on when every process is here."""
    if processes.count() > 1:
        torch.distributed.barrier()


@contextlib.contextmanager
def gathering(accelerator: Any, real: int) -> Iterator[None]:
    """Let `accelerator.gather` take the first `real` entries of each process, however many those
    are: the plain one wants as many from everyone, and would count a stand-in."""
    if processes.count() == 1:
        yield
        return
    plain = accelerator.gather

    def gather(values: Any) -> Any:
        if getattr(values, "dim", lambda: 0)() == 0:
            return plain(values)
        parts: list[Any] = [None] * processes.count()
        torch.distributed.all_gather_object(parts, values[:real].detach().cpu().tolist())
        return torch.tensor([value for part in parts for value in part], dtype=values.dtype)

    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather


def whole(tensor: Any) -> Any:
    """A tensor on the CPU, put together when processes hold parts of it. All must ask."""
    if in_parts_by_deepspeed(tensor):
        return _deepspeed("safe_get_full_fp32_param", tensor)
    value = tensor.detach()
    if hasattr(value, "full_tensor"):  # FSDP2
        value = value.full_tensor()
    return value.cpu().contiguous()


def in_parts_by_deepspeed(parameter: Any) -> bool:
    """True for a parameter that ZeRO-3 has taken apart; its own shape is then empty."""
    return hasattr(parameter, "ds_id")


def whole_moment(parameter: Any, state: Any, name: str) -> Any:
    """A moment of the optimizer for a parameter, put together; None without one. All must ask."""
    if in_parts_by_deepspeed(parameter):
        return _deepspeed("safe_get_full_optimizer_state", parameter, name)
    return whole(state[name]) if name in state else None


def _deepspeed(function: str, parameter: Any, *arguments: Any) -> Any:
    value = getattr(importlib.import_module("deepspeed.utils"), function)(parameter, *arguments)
    if value is None or tuple(value.shape) != tuple(parameter.ds_shape):
        raise EngineError(
            "DeepSpeed does not hand out a whole tensor, so no checkpoint can be saved; use the "
            "fsdp2 or ddp configuration, or another version of deepspeed"
        )
    return value.detach().cpu().contiguous()


def parted(value: Any, like: Any) -> Any:
    """A whole tensor as `like` is: on its device, in its type, parted as it is parted."""
    value = value.to(device=like.device, dtype=like.dtype)
    if hasattr(like, "device_mesh"):
        return torch.distributed.tensor.distribute_tensor(value, like.device_mesh, like.placements)
    return value.clone()
