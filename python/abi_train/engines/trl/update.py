"""One update: torch's optimizer with our numbers, and the learning rate both engines ask for.

Norms and biases are not decayed; their names are found as transformers finds them, because the
native optimizer goes by the same names. Does not know: the loss, the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...config import LlmTrainingConfig
from .adapter import trained
from .libraries import Scheduler, torch


class Schedule(Scheduler):  # type: ignore[misc]
    """Sets every group's learning rate to what the native schedule says for the update."""

    def __init__(self, optimizer: Any, rate: Callable[[int], float], first: int) -> None:
        self._rate = rate
        self._first = first
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The rate of the next update, for every group."""
        return [self._rate(self._first + self.last_epoch)] * len(self.optimizer.param_groups)


def make_optimizer(model: Any, config: LlmTrainingConfig, *, rate: float, fused: bool) -> Any:
    """The optimizer of a configuration; `rate` is that of the first update."""
    parameters = trained(model)
    if config.optimizer == "sgd":
        return torch.optim.SGD([p for _, p in parameters], lr=rate, foreach=False)
    betas, eps = (config.beta1, config.beta2), config.eps
    if config.optimizer == "adam":
        return torch.optim.Adam(
            [p for _, p in parameters], lr=rate, betas=betas, eps=eps, foreach=False
        )
    decayed = {name for name, _ in parameters if not spared(name)}
    groups = [
        {
            "params": [p for name, p in parameters if name in decayed],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for name, p in parameters if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=betas,
        eps=eps,
        fused=fused,
        foreach=False,
    )


def spared(name: str) -> bool:
    """True for names transformers leaves out of weight decay."""
    parts = name.lower().split(".")
    return (
        any(word in name.lower() for word in ("bias", "layernorm", "rmsnorm"))
        or "norm" in parts
        or any(part.endswith("_norm") for part in parts)
    )
