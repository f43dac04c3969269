"""Learning rates, asked of the native schedule: no engine computes the formulas a second time."""

from __future__ import annotations

import json

from . import _native
from .config import LlmTrainingConfig


def learning_rate(config: LlmTrainingConfig, step: int, total_steps: int) -> float:
    """The rate of update `step`, counted from 0, in a run of `total_steps` updates."""
    rates = _native.learning_rates(json.dumps(config.to_dict()), step, 1, total_steps)
    return float(rates[0])
