"""torch and its family: the only file that imports them, and says so when they are not there.

Their annotations are partial, so what is inherited from or called without types is handed on as
`Any`. Does not know: training.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ...errors import EngineError

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import peft
        import tokenizers
        import torch
        import transformers
        import trl
        from safetensors import SafetensorError
        from safetensors import safe_open as _safe_open
        from safetensors.torch import load_file as _load_file
        from safetensors.torch import save_file
        from torch.utils.data import DataLoader, Sampler
        from transformers.masking_utils import (
            create_causal_mask,
            create_sliding_window_causal_mask,
        )
        from transformers.utils import logging
        from trl.trainer.dpo_trainer import DataCollatorForPreference
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
except ImportError as error:
    raise EngineError(
        f"the trl engine needs {error.name or 'torch'}: pip install 'abi-train[trl]', or use "
        "engine native"
    ) from error

DPOConfig: Any = trl.DPOConfig
DPOTrainer: Any = trl.DPOTrainer
PairCollator: Any = DataCollatorForPreference
TextCollator: Any = DataCollatorForLanguageModeling
pack_dataset: Any = trl.pack_dataset
SFTConfig: Any = trl.SFTConfig
SFTTrainer: Any = trl.SFTTrainer
adapters: Any = peft
Mxfp4Config: Any = getattr(transformers, "Mxfp4Config", None)
safe_open: Any = _safe_open
Loader: Any = DataLoader
Scheduler: Any = torch.optim.lr_scheduler.LRScheduler
PreTrainedTokenizerFast: Any = transformers.PreTrainedTokenizerFast
causal_mask: Any = create_causal_mask
library_log: Any = logging
windowed_mask: Any = create_sliding_window_causal_mask


def load_file(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file. Raises `ValueError` for one that is damaged."""
    try:
        tensors: dict[str, Any] = _load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors


__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "Loader",
    "Mxfp4Config",
    "PairCollator",
    "PreTrainedTokenizerFast",
    "SFTConfig",
    "SFTTrainer",
    "SafetensorError",
    "Sampler",
    "Scheduler",
    "TextCollator",
    "adapters",
    "causal_mask",
    "datasets",
    "library_log",
    "load_file",
    "pack_dataset",
    "safe_open",
    "save_file",
    "tokenizers",
    "torch",
    "transformers",
    "windowed_mask",
]
