"""The native engine: a `RunSpec` through the trainer written in Zig, on any CPU.

Turns the trainer's events into the records both engines report. Needs neither torch nor a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _native
from .. import checkpoint as folders
from ..adapters import LoraConfig, other_base
from ..dataset import TokenizedDataset
from ..memory import peak_bytes
from ..model import Model
from ..progress import Observer
from ..runspec import EvalRecord, RunResult, RunSpec, StepRecord
from ..trainer import (
    CheckpointEvent,
    EvaluationEvent,
    FinishedEvent,
    ReferenceEvent,
    StepEvent,
    Trainer,
)
from . import Asking, LeftOut, Probe, announce, processes, too_little
from .gloo import adding
from .resume import resume_point

if TYPE_CHECKING:
    from ..trainer import Event


def run(spec: RunSpec, observer: Observer, probe: Probe | None = None) -> RunResult:
    """Train natively. Same contract as `engines.run`."""
    result = RunResult(engine="native")
    config = spec.config
    precision = spec.precision_where(bf16_gpu=False)
    config = dataclasses.replace(config, mixed_precision=precision == "bf16")
    lora = None if spec.lora is None else native_lora(spec.lora, spec.model)
    result.checkpoint = resume = resume_point(spec, observer)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(open_model(spec))
        data = stack.enter_context(TokenizedDataset.load(spec.data))
        eval_data = None
        if spec.eval_data is not None:
            eval_data = stack.enter_context(TokenizedDataset.load(spec.eval_data))
            tokens = len(eval_data.tokens)
            if eval_data.row_starts is None and tokens <= config.batch_size * config.max_seq_len:
                raise too_little(spec.eval_data, tokens, config)
        ranks = 1 if probe is not None else processes.count()
        add_up = stack.enter_context(adding()) if ranks > 1 else None
        trainer = stack.enter_context(
            Trainer(
                config,
                model,
                data,
                eval_dataset=eval_data,
                run_dir=None if probe is not None else spec.checkpoint_dir,
                tokenizer_dir=None if probe is not None else spec.tokenizer_dir,
                resume_from=resume,
                lora=lora,
                dpo=spec.dpo,
                base_name=spec.model.resolve(),
                rank=0 if ranks == 1 else processes.rank(),
                ranks=ranks,
                add_up=add_up,
            )
        )
        start = {
            "engine": "native",
            "device": "cpu",
            "precision": precision,
            "start_step": trainer.global_step,
        }
        if ranks > 1:
            start["processes"] = ranks
        left = None if probe is not None else _left_out(spec, trainer, data, eval_data)
        announce(spec, observer, trainer.max_steps, start, left)
        if lora is not None and lora.adapter is not None and resume is None:
            said = other_base(lora.adapter, _native.model.fingerprint(model.native))
            if said is not None:
                observer.on_note(said)
        stopping = False
        asking = Asking(observer)
        for event in trainer:
            if isinstance(event, ReferenceEvent):
                asking.told(event.asked, event.pairs)
            _note(event, observer, result)
            if probe is not None and isinstance(event, StepEvent) and event.global_step == 1:
                views = trainer.shaped(trainer.gradients)
                probe.gradients.update({name: view.copy() for name, view in views.items()})
                del views
            if not stopping and observer.stop_requested():
                trainer.request_stop()
                stopping = True
        if probe is not None:
            views = trainer.shaped(trainer.weights)
            probe.weights.update({name: view.copy() for name, view in views.items()})
            del views
    if probe is None:
        result.checkpoints = folders.list_checkpoints(spec.checkpoint_dir)
    return result


def _left_out(
    spec: RunSpec, trainer: Trainer, data: TokenizedDataset, eval_data: TokenizedDataset | None
) -> LeftOut:
    size = 2 if spec.dpo is not None else 1
    counts = trainer.left_out
    return LeftOut(
        rows=(data.row_count or 0) // size,
        dropped=counts.dropped,
        cut=counts.truncated,
        eval_rows=0 if eval_data is None else (eval_data.row_count or 0) // size,
        eval_dropped=counts.eval_dropped,
        eval_cut=counts.eval_truncated,
    )


def open_model(spec: RunSpec) -> Model:
    """The model of a spec in its precision: of a folder, a GGUF, or random by a config.json.

    One that only carries an adapter stays in its file, in the types it has there.
    """
    dtype = "float64" if spec.precision == "float64" else "float32"
    if spec.method == "lora" and dtype == "float32" and spec.model.suffix != ".json":
        dtype = "stored"
    return open_any(spec.model, seed=spec.config.seed, dtype=dtype)


def native_lora(lora: LoraConfig, model: Path) -> LoraConfig:
    """The adapters of a run on `model`, with the sizes of one to go on from.

    Raises `ConfigError` for what this engine does not have.
    """
    return lora.resolved(model)


def open_any(path: Path, *, seed: int, dtype: str) -> Model:
    """The model at `path`; for a `.json` configuration the weights are drawn from `seed`."""
    if path.suffix == ".json" and path.is_file():
        return Model.random(path, seed=seed, dtype=dtype)
    return Model.load(path, dtype=dtype)


def _note(event: Event, observer: Observer, result: RunResult) -> None:
    """Record an event and tell the observer."""
    if isinstance(event, StepEvent):
        record = StepRecord(
            step=event.global_step,
            loss=event.loss,
            grad_norm=event.grad_norm,
            learning_rate=event.learning_rate,
            epoch=event.epoch,
            accuracy=event.accuracy,
            tokens=event.tokens_processed,
            tokens_per_second=event.tokens_per_second,
            metrics=event.metrics,
            memory_bytes=peak_bytes(),
        )
        result.history.append(record)
        observer.on_step(record)
    elif isinstance(event, EvaluationEvent):
        evaluation = EvalRecord(
            step=event.global_step,
            epoch=event.epoch,
            loss=event.loss,
            accuracy=event.accuracy,
            tokens=event.total_tokens,
            metrics=event.metrics,
        )
        result.evaluations.append(evaluation)
        observer.on_evaluation(evaluation)
    elif isinstance(event, CheckpointEvent):
        result.checkpoint = event.path
        observer.on_checkpoint(event.path)
    elif isinstance(event, FinishedEvent):
        result.stop_reason = event.stop_reason
        result.final_loss = event.final_loss
        result.final_accuracy = event.final_accuracy
        result.final_perplexity = event.final_perplexity
        result.best_val_loss = event.best_val_loss
        result.best_val_accuracy = event.best_val_accuracy
        result.best_step = event.best_step
        result.total_steps = event.total_steps
        result.total_tokens = event.total_tokens
        result.total_time_ns = int(event.total_time * 1e9)
        result.avg_throughput = event.tokens_per_second
        result.checkpoints_saved = event.checkpoints_saved
        result.early_stopped = event.stop_reason == "early_stopped"
