"""Train language models in Python or in Zig, run them in Zig, and prove that both say the same.

Everything here is loaded when it is first used, so `import abi_train` is quick and never imports
torch.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # type checkers know the name; `typing` itself takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from .adapters import LoraConfig, create_adapter, merge_adapter, unmerge_adapter
    from .check.crosscheck import crosscheck
    from .config import LlmTrainingConfig
    from .data.prepare import prepare
    from .dataset import (
        Batch,
        Instruction,
        InstructionDataset,
        TokenizedDataset,
        TokenizedWriter,
        parse_instruction_dataset,
    )
    from .engines import run
    from .errors import AbiTrainError
    from .export import export_adapter_gguf, export_gguf
    from .generate import Generator
    from .gguf_files import inspect_gguf, join_gguf, quantize_gguf, split_gguf, unpack_gguf
    from .model import Model
    from .preference import DpoConfig
    from .runspec import RunResult, RunSpec
    from .tokenizer import Tokenizer
    from .trainer import Trainer

__version__ = "0.1.0"

#: Where each public name lives. The order is the order of the pipeline.
_HOME = {
    "LlmTrainingConfig": "config",
    "LoraConfig": "adapters",
    "DpoConfig": "preference",
    "Tokenizer": "tokenizer",
    "TokenizedDataset": "dataset",
    "TokenizedWriter": "dataset",
    "Batch": "dataset",
    "Instruction": "dataset",
    "InstructionDataset": "dataset",
    "parse_instruction_dataset": "dataset",
    "prepare": "data.prepare",
    "Model": "model",
    "Trainer": "trainer",
    "RunSpec": "runspec",
    "RunResult": "runspec",
    "run": "engines",
    "crosscheck": "check.crosscheck",
    "create_adapter": "adapters",
    "merge_adapter": "adapters",
    "unmerge_adapter": "adapters",
    "export_adapter_gguf": "export",
    "export_gguf": "export",
    "quantize_gguf": "gguf_files",
    "split_gguf": "gguf_files",
    "join_gguf": "gguf_files",
    "inspect_gguf": "gguf_files",
    "unpack_gguf": "gguf_files",
    "Generator": "generate",
    "AbiTrainError": "errors",
}

__all__ = [
    "AbiTrainError",
    "Batch",
    "DpoConfig",
    "Generator",
    "Instruction",
    "InstructionDataset",
    "LlmTrainingConfig",
    "LoraConfig",
    "Model",
    "RunResult",
    "RunSpec",
    "TokenizedDataset",
    "TokenizedWriter",
    "Tokenizer",
    "Trainer",
    "__version__",
    "create_adapter",
    "crosscheck",
    "export_adapter_gguf",
    "export_gguf",
    "inspect_gguf",
    "join_gguf",
    "merge_adapter",
    "parse_instruction_dataset",
    "prepare",
    "quantize_gguf",
    "run",
    "split_gguf",
    "unmerge_adapter",
    "unpack_gguf",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
