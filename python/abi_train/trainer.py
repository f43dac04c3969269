"""The native training loop, one event at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import ArgumentError
from .owned import Owned

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._native import Handle
    from ._native.model import Parameter
    from .adapters import LoraConfig
    from .config import LlmTrainingConfig
    from .dataset import TokenizedDataset
    from .model import Model
    from .preference import DpoConfig

__all__ = [
    "CheckpointEvent",
    "EvaluationEvent",
    "Event",
    "FinishedEvent",
    "LeftOut",
    "ReferenceEvent",
    "StepEvent",
    "Trainer",
]


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step.

    loss: nats per target, label smoothing included. grad_norm: global L2 norm before clipping.
    learning_rate: the rate this step used. epoch: epochs done, as a fraction. time: seconds.
    tokens_processed: since the start of the run. metrics: of a run on pairs, under TRL's names
    (`rewards/chosen`, ...), means over the update's micro-batches; else empty.
    """

    global_step: int
    epoch: float
    loss: float
    accuracy: float
    perplexity: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    tokens_processed: int
    micro_steps: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationEvent:
    """One pass over the evaluation data: means over all targets, without label smoothing, or means
    over all pairs.

    metrics: see `StepEvent`.
    """

    global_step: int
    epoch: float
    loss: float
    accuracy: float
    perplexity: float
    num_batches: int
    total_tokens: int
    improved: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointEvent:
    """A checkpoint was saved, whole and synced."""

    global_step: int
    path: Path


@dataclass(frozen=True)
class ReferenceEvent:
    """Before the first update: the reference was asked about so many pairs. Comes only where that
    takes long."""

    asked: int
    pairs: int


@dataclass(frozen=True)
class FinishedEvent:
    """The run is over. stop_reason: 'completed', 'early_stopped' or 'interrupted'.

    total_time: seconds inside updates and evaluations, all sessions of a resumed run together.
    best_val_loss: infinity if no evaluation ran; best_step is then None.
    """

    stop_reason: str
    total_steps: int
    total_tokens: int
    total_time: float
    tokens_per_second: float
    final_loss: float
    final_accuracy: float
    final_perplexity: float
    best_val_loss: float
    best_val_accuracy: float
    best_step: int | None
    checkpoints_saved: int


Event = StepEvent | EvaluationEvent | CheckpointEvent | ReferenceEvent | FinishedEvent


@dataclass(frozen=True)
class LeftOut:
    """Rows (of pairs: pairs) that teach nothing within `max_seq_len`, and rows that lose their end
    to it; of evaluation data the same."""

    dropped: int
    truncated: int
    eval_dropped: int
    eval_truncated: int


class Trainer(Owned):
    """Trains a model in place. Iterate over it: each event is one thing done.

    ::

        with Trainer(config, model, data, run_dir="run") as trainer:
            for event in trainer:
                if isinstance(event, StepEvent):
                    print(event.global_step, event.loss)

    Python's lock is free while the trainer works, and `request_stop` may be called from any thread
    or signal handler. Breaking out of the loop and going on later is fine.
    """

    _noun = "trainer"

    def __init__(
        self,
        config: LlmTrainingConfig | Mapping[str, Any],
        model: Model,
        dataset: TokenizedDataset,
        *,
        eval_dataset: TokenizedDataset | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        tokenizer_dir: str | os.PathLike[str] | None = None,
        resume_from: str | os.PathLike[str] | None = None,
        lora: LoraConfig | None = None,
        dpo: DpoConfig | None = None,
        base_name: str | os.PathLike[str] | None = None,
        rank: int = 0,
        ranks: int = 1,
        add_up: Callable[[npt.NDArray[Any]], None] | None = None,
    ) -> None:
        """Begins a run, or resumes one.

        run_dir: receives `checkpoint-N`; None: the configuration's `checkpoint_path`; both None:
            nothing is saved.
        tokenizer_dir: its tokenizer files go into each checkpoint.
        resume_from: a `checkpoint-N` folder of the same run.
        lora: train an adapter with these settings; the model's weights stay as they are.
        dpo: learn pairs of answers; the data sets then hold pairs.
        base_name: what an adapter's files call the model it was made for.
        rank, ranks, add_up: several processes with the same arguments share the micro-batches of
            each update; `add_up` replaces an array by its sum over all of them, in place. Only
            rank 0 saves.

        Raises ConfigError, DataError, NumericsError (a weight is not finite), CheckpointError (the
        checkpoint does not fit), FileAccessError (the run folder is locked or cannot be written).
        """
        self.model = model
        self._handle: Handle | None = _native.trainer.open(
            _config_json(config),
            model.native,
            dataset.native,
            None if eval_dataset is None else eval_dataset.native,
            run_dir=run_dir,
            tokenizer_dir=tokenizer_dir,
            resume_from=resume_from,
            methods_json=_methods_json(config, lora, dpo),
            base_name=None if base_name is None else str(base_name),
            rank=rank,
            ranks=ranks,
        )
        self._add_up = add_up
        self._parameters: list[Parameter] | None = None
        self._event = _native.trainer.new_event()

    def close(self) -> None:
        """Ends the run without saving and lets go of the run folder and the threads.

        Gradient and moment views keep the native trainer alive until they are gone.
        """
        self._handle = None

    def next_event(self) -> Event | None:
        """Does the next thing and says what it was; None after the end.

        Raises NumericsError before any weight changes when loss or gradients are not finite, and
        CheckpointError or FileAccessError when a checkpoint cannot be saved.
        """
        e = self._event
        kind = _native.trainer.next(self.native, e)
        while kind == "gradient":
            if self._add_up is None:
                raise ArgumentError("ranks is above 1, so add_up must say how arrays are added up")
            for array in _native.trainer.exchange(self.native):
                if array.size:
                    self._add_up(array)
            kind = _native.trainer.next(self.native, e)
        if kind == "none":
            return None
        if kind == "step":
            return StepEvent(
                global_step=int(e.global_step),
                epoch=float(e.epoch),
                loss=float(e.loss),
                accuracy=float(e.accuracy),
                perplexity=float(e.perplexity),
                learning_rate=float(e.learning_rate),
                grad_norm=float(e.grad_norm),
                tokens_per_second=float(e.tokens_per_second),
                tokens_processed=int(e.tokens_processed),
                micro_steps=int(e.micro_steps),
                time=e.time_ns / 1e9,
                metrics=_native.trainer.metrics(e),
            )
        if kind == "evaluation":
            return EvaluationEvent(
                global_step=int(e.global_step),
                epoch=float(e.epoch),
                loss=float(e.loss),
                accuracy=float(e.accuracy),
                perplexity=float(e.perplexity),
                num_batches=int(e.num_batches),
                total_tokens=int(e.eval_tokens),
                improved=bool(e.improved),
                metrics=_native.trainer.metrics(e),
            )
        if kind == "reference":
            return ReferenceEvent(int(e.pairs_asked), int(e.pairs))
        if kind == "checkpoint":
            return CheckpointEvent(int(e.global_step), Path(_native.trainer.event_path(e)))
        return FinishedEvent(
            stop_reason=_native.trainer.STOP_REASONS[int(e.stop_reason)],
            total_steps=int(e.global_step),
            total_tokens=int(e.tokens_processed),
            total_time=e.time_ns / 1e9,
            tokens_per_second=float(e.tokens_per_second),
            final_loss=float(e.loss),
            final_accuracy=float(e.accuracy),
            final_perplexity=float(e.perplexity),
            best_val_loss=float(e.best_val_loss),
            best_val_accuracy=float(e.best_val_accuracy),
            best_step=None if e.best_step < 0 else int(e.best_step),
            checkpoints_saved=int(e.checkpoints_saved),
        )

    def __iter__(self) -> Iterator[Event]:
        while (event := self.next_event()) is not None:
            yield event

    def request_stop(self) -> None:
        """Asks the run to end: the step in progress is completed and a checkpoint saved."""
        _native.trainer.request_stop(self.native)

    def save(self) -> Path:
        """Saves a checkpoint now and returns its folder.

        Raises CheckpointError without a run folder.
        """
        return Path(_native.trainer.save(self.native))

    @property
    def left_out(self) -> LeftOut:
        """Rows that the run does not learn from, and rows it learns the beginning of."""
        return LeftOut(*_native.trainer.left_out(self.native))

    @property
    def global_step(self) -> int:
        """Optimizer steps done."""
        return _native.trainer.progress(self.native)[0]

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return _native.trainer.progress(self.native)[1]

    @property
    def parameters(self) -> list[Parameter]:
        """What this run trains, in flat order: the model's parameters, or those of the adapter,
        under the names of PEFT's files."""
        if self._parameters is None:
            self._parameters = _native.trainer.parameters(self.native)
        return self._parameters

    @property
    def weights(self) -> npt.NDArray[Any]:
        """What this run trains, as one flat, writable view."""
        return _native.trainer.weights(self.native)

    def shaped(self, flat: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Views of a flat array laid out like `weights`, by name and in shape."""
        return {
            p.name: flat[p.offset : p.offset + p.size].reshape(p.shape) for p in self.parameters
        }

    def save_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the adapter as it is now, in PEFT's form, into a folder that must not exist.

        Raises ArgumentError in a run without an adapter.
        """
        _native.trainer.save_adapter(self.native, folder)
        return Path(folder)

    @property
    def gradients(self) -> npt.NDArray[Any]:
        """Gradients of the last step before clipping: a flat view, see `shaped`."""
        return _native.trainer.buffers(self.native)[0]

    @property
    def moments(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """First and second moment: flat views, empty with sgd."""
        return _native.trainer.buffers(self.native)[1:]


def _config_json(config: LlmTrainingConfig | Mapping[str, Any]) -> str:
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    return json.dumps(values)


def _methods_json(
    config: LlmTrainingConfig | Mapping[str, Any], lora: LoraConfig | None, dpo: DpoConfig | None
) -> str | None:
    tables: dict[str, Any] = {}
    if lora is not None:
        seed = config.get("seed", 42) if isinstance(config, Mapping) else config.seed
        tables["lora"] = lora.for_native(seed=int(seed))
    if dpo is not None:
        tables["dpo"] = dpo.for_native()
    return json.dumps(tables) if tables else None
