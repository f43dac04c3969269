"""Looks at the numbers of a run as they come and warns when they go wrong.

Three things are warned of: a spike of the loss, a gradient norm that is above the clip all the
time, and a number that is none, with which a run ends. The thresholds stand in `MonitorConfig` and
below, and in docs/monitoring.md. Warning changes nothing of the run. Does not know: who is told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from .errors import NumericsError
from .monitor_config import MonitorConfig
from .progress import Alert, Observer
from .runspec import StepRecord

SPIKE_WINDOW: Final = 50
"""Updates whose losses a new one is compared with."""
SPIKE_LEAST: Final = 20
"""Updates before a loss can be a spike at all."""
SPIKE_FLOOR: Final = 0.02
"""A deviation is at least this share of the median: very even losses would spike at nothing."""
DEVIATION: Final = 1.4826
"""Median distance from the median, times this, is the standard deviation of a normal spread."""
CLIP_SHARE: Final = 0.9
"""The clip always cuts when it does in this share of the updates looked at."""
CLIP_CALM: Final = 0.5
"""After a warning there is none before the share was down here."""


class Watch(Observer):
    """Finds what is wrong and tells `told`. One warning a spike, and one while the clip cuts."""

    def __init__(self, settings: MonitorConfig, told: Observer, *, max_grad_norm: float) -> None:
        self._settings = settings
        self._told = told
        self._max_norm = max_grad_norm
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._norms: deque[float] = deque(maxlen=settings.clip_updates)
        self._in_spike = False
        self._is_cut = False
        self._step = 0

    def on_step(self, record: StepRecord) -> None:
        self._step = record.step
        if not self._settings.alerts:
            return
        self._look_at_loss(record)
        self._look_at_norm(record)

    def on_failure(self, error: BaseException) -> None:
        if isinstance(error, NumericsError):
            self._warn("not_a_number", "Not a number", str(error), level="error")

    def _look_at_loss(self, record: StepRecord) -> None:
        if not math.isfinite(record.loss):
            text = f"the loss is {record.loss}. Look at this update's data, or lower learning_rate"
            self._warn("not_a_number", "Not a number", text)
            return
        limit = spike_limit(self._losses, self._settings.spike_deviations)
        spike = record.loss > limit
        if spike and not self._in_spike:
            middle = median(self._losses)
            text = (
                f"the loss jumped to {record.loss:.4g}; the median of the {len(self._losses)} "
                f"updates before is {middle:.4g}. Look at this update's data; if it happens again, "
                "lower learning_rate or max_grad_norm"
            )
            self._warn("loss_spike", "Loss spike", text)
        self._in_spike = spike
        self._losses.append(record.loss)

    def _look_at_norm(self, record: StepRecord) -> None:
        if self._max_norm <= 0.0 or not math.isfinite(record.grad_norm):
            return
        self._norms.append(record.grad_norm)
        if len(self._norms) < self._settings.clip_updates:
            return
        above = sum(norm > self._max_norm for norm in self._norms)
        share = above / len(self._norms)
        if share >= CLIP_SHARE and not self._is_cut:
            self._is_cut = True
            text = (
                f"the gradient norm was above max_grad_norm ({self._max_norm:g}) in {above} of the "
                f"last {len(self._norms)} updates (median {median(self._norms):.3g}): it is the "
                "clip that sets the size of each. Lower learning_rate, or raise max_grad_norm"
            )
            self._warn("clipped", "Gradient norm above the clip", text)
        elif share <= CLIP_CALM:
            self._is_cut = False

    def _warn(self, kind: str, title: str, text: str, *, level: str = "warn") -> None:
        self._told.on_alert(Alert(kind=kind, level=level, step=self._step, title=title, text=text))


def median(values: Sequence[float]) -> float:
    """The value in the middle; the mean of both where there are two."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0


def spike_limit(losses: Sequence[float], deviations: float) -> float:
    """The loss from which on the next one is a spike; infinite while there are too few."""
    if len(losses) < SPIKE_LEAST:
        return math.inf
    middle = median(losses)
    spread = DEVIATION * median([abs(loss - middle) for loss in losses])
    return middle + deviations * max(spread, SPIKE_FLOOR * abs(middle), 1e-6)
