"""The order of an epoch, asked of the native library: both engines read the same permutation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _native
from ..config import LlmTrainingConfig


def epoch_order(count: int, config: LlmTrainingConfig, epoch: int) -> npt.NDArray[np.uint32]:
    """The permutation of 0..count that epoch `epoch`, counted from 0, follows."""
    return _native.epoch_order(count, config.shuffle, config.seed, epoch)
