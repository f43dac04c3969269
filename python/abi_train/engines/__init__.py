"""The two engines. `run` takes a `RunSpec` and returns a `RunResult`, whichever engine it names.

Importing this package imports neither engine, so torch is loaded only when it is asked for.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import LlmTrainingConfig, broken
from ..data import provenance
from ..errors import AbiTrainError, DataError
from ..progress import LOG_FILE, JsonlLog, Observer, Observers
from ..runspec import RECIPE_FILE, RunResult, RunSpec
from . import processes

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Probe:
    """What a comparison wants to see of a run.

    `gradients` gets every gradient of update one, before clipping; `weights` gets every weight at
    the end. Keys are Hugging Face names. Arrays are copies.
    """

    gradients: dict[str, FloatArray] = field(default_factory=dict)
    weights: dict[str, FloatArray] = field(default_factory=dict)


def announce(spec: RunSpec, observer: Observer, total_steps: int, info: Mapping[str, Any]) -> None:
    """Tell the observer that the run begins, and what a run on pairs is compared with."""
    reference = spec.reference
    if reference is None:
        observer.on_start(total_steps, info)
        return
    observer.on_start(total_steps, {**info, "reference": reference.kind})
    observer.on_note(f"reference: {reference.words}")


def too_little(path: Path, tokens: int, config: LlmTrainingConfig) -> DataError:
    """The error for a stream, of training or evaluation, that makes no batch."""
    return DataError(
        f"{path}: {tokens} tokens do not fill one batch of {config.batch_size} x "
        f"{config.max_seq_len}; make batch_size or max_seq_len smaller, or the file larger"
    )


class _KeepRecipe(Observer):
    """Leaves the recipe with the run, once everything is opened and the folder is ours."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        self._spec.run_dir.mkdir(parents=True, exist_ok=True)
        self._spec.save(self._spec.run_dir / RECIPE_FILE)


class _SayNotes(Observer):
    """Tells the others, when the run begins, what is to be known of its data."""

    def __init__(self, notes: Sequence[str], told: Observer) -> None:
        self._notes = notes
        self._told = told

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        for note in self._notes:
            self._told.on_note(note)


def run(
    spec: RunSpec, observer: Observer | None = None, *, probe: Probe | None = None
) -> RunResult:
    """Train as `spec` says and return the report. The run folder keeps the recipe, the log and a
    model card.

    With `commercial` data and weights are refused whose licence does not allow such use.

    With a `probe` nothing is written and `observer.on_end` is not called: it is a comparison's run.

    Raises `ConfigError`, `DataError`, `FormatError`, `CheckpointError`, `NumericsError`, or
    `EngineError` when the engine's packages are not installed.
    """
    spec.check_paths()
    for name in ("enable_tensorboard", "enable_wandb"):
        if getattr(spec.config, name):
            rule = (
                "neither engine writes such logs yet; log.jsonl in the run folder has every figure"
            )
            raise broken(name, True, rule)
    origins = provenance.of_run(spec)
    if spec.commercial:
        provenance.require_commercial_use(origins)
    if probe is not None or not processes.is_first():
        return _engine(spec, observer or Observer(), probe)
    if spec.config.export_gguf_path:
        from ..export import check_export

        check_export(spec)
    if spec.lora is not None and spec.lora.export_gguf_path is not None:
        from ..export import check_adapter_export

        check_adapter_export(spec, spec.lora)
    log = JsonlLog(spec.run_dir / LOG_FILE, interval=spec.config.log_interval)
    told = Observers(log, observer or Observer())
    notes = provenance.combine([origin for _, origin in origins.values()]).notes
    observer = Observers(_KeepRecipe(spec), told, _SayNotes(notes, told))
    with contextlib.closing(log):
        result = _engine(spec, observer, None)
        if spec.config.export_gguf_path and result.model_folder is not None:
            observer.on_note(f"exported {_export(spec, result.model_folder)}")
        if spec.lora is not None and spec.lora.export_gguf_path and result.model_folder is not None:
            from ..export import export_adapter_gguf

            made = export_adapter_gguf(result.model_folder, spec.lora.export_gguf_path)
            observer.on_note(f"exported {made.path}")
        _leave_card(spec, observer)
        observer.on_end(result)
    return result


def _leave_card(spec: RunSpec, observer: Observer) -> None:
    """Write the model card beside the checkpoints; without one the run is as good."""
    from ..export.model_card import write_model_card

    for folder in dict.fromkeys((spec.run_dir, spec.checkpoint_dir)):
        card = folder / provenance.CARD_FILE
        if folder.is_dir() and (not card.exists() or provenance.is_ours(card)):
            try:
                write_model_card(spec.run_dir, card)
            except (AbiTrainError, OSError) as error:
                observer.on_note(f"no model card: {error}")


def _export(spec: RunSpec, source: Path) -> Path:
    """Write the GGUF of what the run ended with; an adapter is added into its model for it."""
    from ..export import export_gguf

    target = Path(str(spec.config.export_gguf_path)).expanduser()
    name = spec.config.export_name
    if spec.method != "lora":
        return export_gguf(source, target, name=name).path
    from ..adapters import merge_adapter
    from .native import open_model

    with tempfile.TemporaryDirectory(prefix="abi-train-merge-") as scratch:
        base = spec.model
        if base.suffix == ".json":
            base = Path(scratch) / "base"
            with open_model(spec) as model:
                model.save(base)
        merged = merge_adapter(base, source, Path(scratch) / "merged")
        return export_gguf(merged, target, name=name).path


def _engine(spec: RunSpec, observer: Observer, probe: Probe | None) -> RunResult:
    if spec.engine == "trl":
        from . import trl

        return trl.run(spec, observer, probe)
    from . import native

    return native.run(spec, observer, probe)
