"""A model to evaluate: which engine runs it, and getting it there.

A GGUF file is run as it is. A folder is opened by transformers, or written as a GGUF in float32
beside the temporary files, whose numbers are the same. A run folder means what its run ended with;
an adapter stands on its base.

Does not know: tasks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..adapters import base_of, is_adapter, merge_adapter, read_adapter_config
from ..errors import ConfigError, FormatError, MissingFileError
from ..export import model_folder
from .scorer import NativeRunner, Runner, Scorer, open_tokenizer

ENGINES: Final = ("auto", "native", "torch")
SMALL_BYTES: Final = 32 << 20
SAME_AS: Final = {"trl": "torch"}
"""The name recipes have for the engine that torch computes."""


@contextlib.contextmanager
def opened(
    model: Path, *, engine: str = "auto", chat_format: str | None = None, threads: int = 0
) -> Iterator[Scorer]:
    """The model, ready to be asked; freed at the end.

    engine: `auto` is native for a GGUF file, and for a folder torch, or native without it.
    Raises `ConfigError`, `FormatError`, `MissingFileError`, `EngineError`.
    """
    if engine in SAME_AS:  # a recipe's engine also trains from a GGUF file, which torch cannot run
        engine = "auto" if model.is_file() else SAME_AS[engine]
    if not model.exists():
        raise MissingFileError(f"{model}: no such file or folder; check the path")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abi-train-eval-")))
        if model.is_file():
            runner, home = _file(model, engine, threads)
        else:
            runner, home = _folder(model, engine, threads, scratch)
        stack.callback(runner.close)
        tokenizer = open_tokenizer(home)
        stack.callback(tokenizer.close)
        if tokenizer.vocab_size > runner.vocab_size:
            raise FormatError(
                f"{home}: the tokenizer has {tokenizer.vocab_size} ids, the model "
                f"{runner.vocab_size}; they do not belong together"
            )
        yield Scorer(runner, tokenizer, chat_format=chat_format)


def _file(model: Path, engine: str, threads: int) -> tuple[Runner, Path]:
    if model.suffix != ".gguf":
        raise FormatError(f"{model}: neither a .gguf file nor a model folder; name one of these")
    if engine == "torch":
        raise ConfigError(f"{model} is run by the native engine; leave out the engine torch")
    return NativeRunner(model, threads=_threads(threads, model)), model


def _folder(model: Path, engine: str, threads: int, scratch: Path) -> tuple[Runner, Path]:
    folder = model if is_adapter(model) else model_folder(model)
    adapter = folder if is_adapter(folder) else None
    weights = folder if adapter is None else _base(adapter)
    home = folder if (folder / "tokenizer.json").is_file() else weights
    if engine == "auto":
        engine = "torch" if _has_torch() else "native"
    if engine == "torch":
        from ..engines.trl.runner import TorchRunner

        own = _threads(threads, weights)
        return TorchRunner(weights, adapter=adapter, scratch=scratch, threads=own), home
    return _exported(weights, adapter, home, scratch, threads), home


def _base(adapter: Path) -> Path:
    try:
        return base_of(adapter)
    except ConfigError as error:
        said = str(error).removesuffix("; name the folder with --model")
        raise ConfigError(
            f"{said}; correct base_model_name_or_path there, or merge the adapter first"
        ) from None


def _has_torch() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "trl"))


def _exported(
    weights: Path, adapter: Path | None, home: Path, scratch: Path, threads: int
) -> Runner:
    """The folder as a GGUF in float32 (experts in MXFP4 stay so), with the adapter added on the
    way, run natively and without rounding what goes into a product."""
    from .. import _native

    # Experts that an adapter changes would be rounded on the way, to the type of the others.
    if adapter is not None and (
        weights.is_file() or read_adapter_config(adapter).target_parameters
    ):
        merge_adapter(weights, adapter, scratch / "merged")
        weights, adapter = scratch / "merged", None
    if weights.is_file():
        return NativeRunner(weights, threads=_threads(threads, weights))
    words = None if home.is_file() else home
    if words is not None and not (words / "tokenizer.json").is_file():
        open_tokenizer(words)
    path = scratch / "model.gguf"
    try:
        _native.export.gguf(
            weights, path, dtype="f32", name="model", adapter=adapter, tokenizer_dir=words
        )
    except FormatError as error:
        if "not supported natively" not in str(error):
            raise
        said = str(error).split(". The TRL engine")[0]
        raise FormatError(f"{said}. Torch may know it: --engine torch") from None
    return NativeRunner(path, threads=_threads(threads, path), exact=True)


def _threads(asked: int, weights: Path) -> int:
    """One for a model so small that handing work over takes longer than doing it."""
    if asked:
        return asked
    files = [weights] if weights.is_file() else list(weights.glob("*.safetensors"))
    return 1 if sum(file.stat().st_size for file in files) < SMALL_BYTES else 0
