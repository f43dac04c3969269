"""The two engines. `run` takes a `RunSpec` and returns a `RunResult`, whichever engine it names.

Importing this package imports neither engine, so torch is loaded only when it is asked for.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import checkpoint as folders
from .. import monitor
from ..adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from ..config import LlmTrainingConfig, broken
from ..data import provenance
from ..errors import AbiTrainError, CheckpointError, DataError
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


def announce(
    spec: RunSpec,
    observer: Observer,
    total_steps: int,
    info: Mapping[str, Any],
    left_out: LeftOut | None = None,
) -> None:
    """Tell the observer that the run begins, what a run on pairs is compared with, and, once, what
    is not learned from."""
    reference = spec.reference
    record = {**info, **({} if left_out is None else left_out.record(spec))}
    if reference is None:
        observer.on_start(total_steps, record)
    else:
        observer.on_start(total_steps, {**record, "reference": reference.kind})
        observer.on_note(f"reference: {reference.words}")
    for note in () if left_out is None else left_out.notes(spec):
        observer.on_note(note)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Rows (of pairs: pairs) of training and of evaluation data that teach nothing within
    `max_seq_len`, of how many, and rows that lose their end to it."""

    rows: int = 0
    dropped: int = 0
    cut: int = 0
    eval_rows: int = 0
    eval_dropped: int = 0
    eval_cut: int = 0

    def record(self, spec: RunSpec) -> dict[str, int]:
        """What there is to tell, for the log."""
        unit = "pairs" if spec.objective == "dpo" else "rows"
        values = {
            f"{unit}_dropped": self.dropped,
            "rows_cut": self.cut,
            f"eval_{unit}_dropped": self.eval_dropped,
            "eval_rows_cut": self.eval_cut,
        }
        return {name: value for name, value in values.items() if value}

    def notes(self, spec: RunSpec) -> Iterator[str]:
        """The same in words."""
        limit = spec.config.max_seq_len
        pairs = spec.objective == "dpo"
        unit = "pairs" if pairs else "rows"
        why = "no answer" if pairs else "nothing to learn"
        for path, rows, dropped, cut in (
            (spec.data, self.rows, self.dropped, self.cut),
            (spec.eval_data, self.eval_rows, self.eval_dropped, self.eval_cut),
        ):
            if dropped:
                yield (
                    f"{path}: left out {dropped} of {rows} {unit}: within max_seq_len ({limit}) "
                    f"there is {why}"
                )
            if cut:
                what = f"{2 * rows} answers" if pairs else f"{rows} rows"
                yield f"{path}: cut {cut} of {what} at max_seq_len ({limit})"


class Asking:
    """Tells now and then how far the asking of a reference is."""

    EVERY_SECONDS = 10.0

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._last = time.monotonic()

    def told(self, asked: int, pairs: int) -> None:
        """So many pairs are asked about."""
        now = time.monotonic()
        if now - self._last >= self.EVERY_SECONDS:
            self._last = now
            self._observer.on_note(f"asking the reference: {asked} of {pairs} pairs")


def too_little(path: Path, tokens: int, config: LlmTrainingConfig) -> DataError:
    """The error for a stream, of training or evaluation, that makes no batch."""
    return DataError(
        f"{path}: {tokens} tokens do not fill one batch of {config.batch_size} x "
        f"{config.max_seq_len}; make batch_size or max_seq_len smaller, or the file larger"
    )


STARTING_ADAPTER: Final = "starting_adapter"
"""In a run's folder: the adapter it began with, where pairs are compared with that one."""


def with_kept_adapter(spec: RunSpec) -> RunSpec:
    """A run that is resumed needs the adapter it began with no more: the checkpoint has what became
    of it, and the run's folder what pairs are compared with. So that folder may be gone, or hold
    another adapter by now."""
    if spec.resume is None or spec.lora is None or spec.lora.adapter is None:
        return spec
    try:
        found = folders.resolve_resume(spec.resume, spec.checkpoint_dir)
    except CheckpointError:
        return spec  # told when the run begins
    if found is None:
        return spec
    kept = found.parent / STARTING_ADAPTER
    if (kept / ADAPTER_CONFIG).is_file():
        return spec.replace(lora=spec.lora.replace(adapter=kept))
    compared = spec.reference is not None and spec.reference.kind.startswith(STARTING_ADAPTER)
    if compared or spec.lora.adapter.is_dir() or not is_adapter(found):
        return spec
    return spec.replace(lora=spec.lora.replace(adapter=found))


class _KeepRecipe(Observer):
    """Leaves the recipe with the run, once everything is opened and the folder is ours, and the
    adapter that pairs are compared with."""

    def __init__(self, spec: RunSpec, given: RunSpec) -> None:
        self._spec = spec
        self._given = given

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        spec = self._spec
        spec.run_dir.mkdir(parents=True, exist_ok=True)
        self._given.save(spec.run_dir / RECIPE_FILE)
        reference = spec.reference
        if spec.lora is None or spec.lora.adapter is None or reference is None:
            return
        kept = spec.checkpoint_dir / STARTING_ADAPTER
        if not reference.kind.startswith(STARTING_ADAPTER) or kept == spec.lora.adapter:
            return
        kept.mkdir(parents=True, exist_ok=True)
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):  # the settings last: they say it is whole
            folders.write_bytes_atomic(kept / name, (spec.lora.adapter / name).read_bytes())


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
    `EngineError` when the packages of the engine, or of what watches it, are not installed.
    """
    given, spec = spec, with_kept_adapter(spec)
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
    watching = monitor.observers(spec, told)
    observer = Observers(_KeepRecipe(spec, given), told, *watching, _SayNotes(notes, told))
    with contextlib.closing(log), _telling_failure(*watching, told):
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


@contextlib.contextmanager
def _telling_failure(*observers: Observer) -> Iterator[None]:
    """Whatever ends the run, those who watch it hear of it."""
    try:
        yield
    except BaseException as error:
        Observers(*observers).on_failure(error)
        raise


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
        return export_gguf(merged, target, name=name, said_of=source).path


def _engine(spec: RunSpec, observer: Observer, probe: Probe | None) -> RunResult:
    if spec.engine == "trl":
        from . import trl

        return trl.run(spec, observer, probe)
    from . import native

    return native.run(spec, observer, probe)
