"""The loop of transformers' trainer with our order, learning rate, log, evaluation and checkpoints.

Overrides methods of `Trainer` by name, some of them private: those are the places where it does
something of its own that must be the same on both engines. What is decided there stands in
`session`. `sft` and `dpo` put this in front of TRL's trainers. Does not know: where models and data
come from, or what the loss is.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import checkpoint as folders
from ...errors import NumericsError
from ...memory import peak_bytes
from ...runspec import EvalRecord, StepRecord
from .. import processes
from .adapter import trained
from .libraries import torch, transformers
from .rows import loader
from .saved import fill, load_moments, moments_of, set_random_state, weights_of
from .together import added, wait
from .update import Schedule, make_optimizer

if TYPE_CHECKING:
    from .session import Session

Inherited: Any = object
"""TRL's trainer, which stands behind the loop in a class that has both."""


class Loop(Inherited):  # type: ignore[misc]
    """The loop around one model, for one session."""

    def begin(self, session: Session) -> None:
        """Set the counters, before TRL's trainer is made."""
        self.session = session
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self._losses: list[Any] = []
        self._hits = 0.0
        self._targets = 0
        self._tokens = 0
        self._step_began = time.perf_counter_ns()
        self._saved_step = -1
        self._done_step = session.state["global_step"]
        self._resumed = session.resume_from is not None

    def made(self) -> None:
        """Undo what TRL's trainer did that is not wanted here."""
        self.processing_class = None  # or the model's special ids would be set from the placeholder
        for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(callback)

    def collated(self, numbers: list[int], rows: Any, *, shared: bool = True) -> Any:
        """The micro-batch of these rows; if shared, this process's part of it."""
        raise NotImplementedError

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self._resumed:
            self._resumed = False
            self._resume_random()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss)
        return loss

    def _resume_random(self) -> None:
        """Dropout goes on where it was; nothing else is random, as the order is recorded."""
        session = self.session
        assert session.resume_from is not None
        dropped = session.lora is not None and session.lora.dropped
        if dropped and not set_random_state(session.resume_from):
            session.observer.on_note(
                f"{session.resume_from} was saved by the other engine, whose dropout draws other "
                "numbers: this part of the run drops other inputs than one engine alone would"
            )

    def step_metrics(self) -> dict[str, float]:
        """What the objective has to tell of an update besides its loss; begins the next one."""
        return {}

    @property
    def plain_optimizer(self) -> Any:
        """The optimizer without accelerate's wrapping."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # ---- what goes in ----

    def get_train_dataloader(self) -> Any:
        return loader(self.session.rows, self.session.order, self.collated)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                self.model,
                self.session.config,
                rate=self.session.learning_rate(self.session.state["global_step"]),
                fused=self.session.device == "cuda",
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            first = self.session.state["global_step"]
            self.lr_scheduler = Schedule(self.plain_optimizer, self.session.learning_rate, first)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- one update ----

    def _clip_grad_norm(self, model: Any) -> Any:
        self._before_clip()
        return self._finite(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm=grad_norm)
        self._before_clip()
        return self._finite(super()._get_grad_norm(model))

    def _before_clip(self) -> None:
        probe = self.session.probe
        if probe is None or probe.gradients or self.state.global_step > 0:
            return
        for name, parameter in trained(self.model):
            if parameter.grad is not None:
                probe.gradients[name] = parameter.grad.detach().cpu().numpy().copy()

    def _finite(self, norm: Any) -> Any:
        if not math.isfinite(float(norm)):
            culprit = next(
                (
                    name
                    for name, parameter in trained(self.model)
                    if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
                ),
                "the loss",
            )
            raise NumericsError(
                f"update {self.state.global_step + 1}: the gradient of {culprit} is not finite. "
                "The weights are unchanged; lower learning_rate, or look at this update's data."
            )
        return norm

    def _maybe_log_save_evaluate(  # called after each update, and once more after each epoch
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: Any,
        ignore_keys_for_eval: Any,
        start_time: Any,
        learning_rate: Any = None,
    ) -> None:
        if self.state.global_step == self._done_step:
            return
        self._done_step = self.state.global_step
        elapsed_ns = time.perf_counter_ns() - self._step_began
        metrics = self.step_metrics()
        loss, hits, targets, tokens = added(
            [
                math.fsum(float(part) for part in self._losses) / processes.count(),
                self._hits,
                self._targets,
                self._tokens,
            ],
            self.args.device,
        )
        record = StepRecord(
            step=self.state.global_step,
            loss=loss,
            grad_norm=float(grad_norm),
            learning_rate=float(learning_rate),
            epoch=float(self.state.epoch or 0.0),
            accuracy=metrics.get("mean_token_accuracy", hits / max(1, targets)),
            tokens=self.session.state["tokens_processed"] + round(tokens),
            tokens_per_second=tokens / (max(1, elapsed_ns) / 1e9),
            metrics=metrics,
            memory_bytes=peak_bytes(),
            gpu_memory_bytes=(
                int(torch.cuda.max_memory_allocated()) if self.session.device == "cuda" else None
            ),
        )
        self._losses.clear()
        self._hits, self._targets, self._tokens = 0.0, 0, 0
        self.session.update_done(record, elapsed_ns=elapsed_ns)
        self._after_update(record.step)
        self._step_began = time.perf_counter_ns()

    def _after_update(self, step: int) -> None:
        """Evaluate, stop and save as is due."""
        session, config = self.session, self.session.config
        last = step >= session.total_steps
        improved = patience_is_out = False
        (wish,) = added([session.observer.stop_requested()], self.args.device)
        if session.eval_rows is not None and (last or _due(step, config.eval_interval)):
            improved = session.evaluation_done(self.evaluated())
            patience_is_out = session.out_of_patience()
        if patience_is_out:
            self._stop("early_stopped")
        elif wish > 0.0 and not last:
            self._stop("interrupted")
        # The best weights live in the checkpoint of their update, which retention spares; the last
        # state is saved at the end.
        elif (improved and config.early_stopping and session.probe is None) or (
            _due(step, config.checkpoint_interval) and not last
        ):
            self.save()

    def _stop(self, reason: str) -> None:
        self.control.should_training_stop = True
        self.session.stop(reason)

    # ---- evaluation ----

    def make_up_evaluation(self) -> None:
        """Do the evaluation that was due at the checkpoint the run goes on from."""
        assert self.session.start is not None
        self.state.global_step = self.session.state["global_step"]
        self.state.epoch = self.session.start["epoch"]
        self.session.evaluation_done(self.evaluated())

    def evaluated(self) -> EvalRecord:
        """Means over all of the evaluation data."""
        rows = self.session.eval_rows
        assert rows is not None
        self.model.eval()
        with torch.no_grad():
            record = self.evaluate_rows(rows)
        self.model.train()
        if not math.isfinite(record.loss):
            raise NumericsError(
                f"evaluation at update {self.state.global_step}: the loss is {record.loss}; the "
                "last checkpoint is the state to go back to."
            )
        return record

    def evaluate_rows(self, rows: Any) -> EvalRecord:
        """Means over these rows; the model is in evaluation mode."""
        raise NotImplementedError

    # ---- checkpoints ----

    def finish(self) -> None:
        """Save the last state, or hand it to the probe when a comparison is looking."""
        session = self.session
        if session.probe is not None:
            for name, parameter in trained(self.model):
                session.probe.weights[name] = parameter.detach().cpu().numpy().copy()
        elif session.result.history and self._saved_step != session.state["global_step"]:
            self.save()

    def save(self) -> None:
        """Write `checkpoint-N/` as the native engine does, and retire old ones."""
        session, folder = self.session, self.session.spec.checkpoint_dir
        step, best = session.state["global_step"], session.state["best_step"]
        session.state["checkpoints_saved"] += 1
        epoch = float(self.state.epoch or 0.0)
        weights = weights_of(self.model, lora=session.lora is not None)
        moments = moments_of(self.model, self.plain_optimizer)
        path = folder / f"checkpoint-{step}"
        if processes.is_first():
            folders.write_checkpoint(
                folder,
                step,
                lambda work: fill(work, session, self.model, weights, moments, epoch=epoch),
            )
            spare = None if best is None else folder / f"checkpoint-{best}"
            folders.retire(folder, session.config.max_checkpoints, saved=step, spare=spare)
        wait()
        self._saved_step, session.result.checkpoint = step, path
        session.observer.on_checkpoint(path)

    # ---- resume: transformers' own files are not used ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights came from the checkpoint when the model was opened."""

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Done before the first update, see `_resume_random`."""

    def _load_scaler(self, checkpoint: Any) -> None:
        """No loss scaler: bf16 does not need one."""

    def _load_callback_state(self) -> None:
        """Our callbacks keep no state."""

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args[:3], None, None)
        state = self.session.state
        self.state.global_step = state["global_step"]
        return state["epoch"], state["micro_index"]

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is None or self.session.config.optimizer == "sgd":
            return
        step = self.session.state["global_step"]
        load_moments(Path(checkpoint), self.model, self.plain_optimizer, step=step)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
