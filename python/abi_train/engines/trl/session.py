"""One run of the TRL engine: what it reads, where it stands, and its report.

The counters in `state` are the ones every checkpoint of either engine holds. Does not know: torch
beyond asking for a device, or how an update is computed.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ... import checkpoint as folders
from ...config import broken
from ...data.order import epoch_order
from ...data.rows import TokenRows
from ...errors import DataError
from ...progress import Observer
from ...runspec import EvalRecord, RunResult, RunSpec, StepRecord, perplexity
from ...schedule import learning_rate
from .. import Probe, too_little
from ..resume import resume_point
from .libraries import torch
from .model import attention_kind, load_model
from .trainer import Trainer


class Session:
    """A run from its spec to its report.

    Raises `DataError` for data that makes no batch, `CheckpointError` for a checkpoint of another
    run.
    """

    def __init__(self, spec: RunSpec, observer: Observer, probe: Probe | None) -> None:
        self.spec = spec
        self.config = spec.config
        self.observer = observer
        self.probe = probe
        # A comparison stays on the CPU: a GPU sums in another order each time.
        self.device = "cuda" if torch.cuda.is_available() and probe is None else "cpu"
        self.precision = spec.precision_where(
            bf16_gpu=self.device == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.result = RunResult(engine="trl")
        self.rows = self._open(spec.data)
        self.eval_rows = self._open(spec.eval_data) if spec.eval_data else None
        self.result.checkpoint = self.resume_from = resume_point(spec, observer)
        self.start = folders.read_state(self.resume_from) if self.resume_from else None
        self.identity = self._identity()
        if self.start is not None:
            folders.require_same(_ours(self.start)["identity"], self.identity)
        self.updates_per_epoch = -(-self.rows.batch_count // self.config.grad_accum_steps)
        self.total_steps = self.config.max_steps or self.updates_per_epoch * self.config.epochs
        self.state = self._first_state()

    def _open(self, path: Path) -> TokenRows:
        size, length = self.config.batch_size, self.config.max_seq_len
        rows = TokenRows.open(path, batch_size=size, max_seq_len=length)
        if rows.batch_count == 0:
            raise too_little(path, rows.token_ids.size, self.config)
        return rows

    def _identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        names = ("batch_size", "grad_accum_steps", "max_seq_len", "shuffle", "seed")
        return {
            **{name: getattr(self.config, name) for name in names},
            "data_tokens": int(self.rows.token_ids.size),
            "data_rows": 0 if self.rows.starts is None else int(self.rows.starts.size) - 1,
            "data_crc32c": folders.ends_checksum(self.rows.token_ids),
        }

    def _first_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "global_step": 0,
            "epoch": 0,
            "micro_index": 0,
            "max_steps": self.total_steps,
            "tokens_processed": 0,
            "time_ns": 0,
            "best_metric": None,
            "best_accuracy": 0.0,
            "best_step": None,
            "evaluations_without_improvement": 0,
            "last_loss": 0.0,
            "last_accuracy": 0.0,
            "checkpoints_saved": 0,
        }
        if self.start is not None:
            saved = _ours(self.start)["state"]
            state.update({key: saved[key] for key in state if key in saved})
            state["max_steps"] = self.total_steps
        return state

    def learning_rate(self, step: int) -> float:
        """The rate of update `step`, counted from 0: asked of the native schedule."""
        return learning_rate(self.config, step, self.total_steps)

    def order(self, epoch: int) -> Any:
        """The recorded order of an epoch."""
        return epoch_order(self.rows.order_count, self.config, epoch)

    def train(self) -> RunResult:
        """Do the updates that are left and return the report."""
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="abi-train-"))
            if self.probe is None:
                stack.enter_context(folders.run_lock(self.spec.checkpoint_dir))
                run_dir = self.spec.checkpoint_dir
                own = self.resume_from and self.resume_from.resolve().parent == run_dir.resolve()
                if not own:
                    folders.require_unused(run_dir)
            model = load_model(
                self.resume_from or self.spec.model,
                seed=self.config.seed,
                precision=self.precision,
                attention=attention_kind(
                    self.device, self.precision, compared=self.probe is not None
                ),
                scratch=Path(scratch),
            )
            self._check_length(getattr(model.config, "max_position_embeddings", None))
            self._check_vocabulary(model.get_input_embeddings().weight.shape[0])
            trainer = Trainer(self, model, scratch)
            start = {
                "engine": "trl",
                "device": self.device,
                "precision": self.precision,
                "start_step": self.state["global_step"],
            }
            self.observer.on_start(self.total_steps, start)
            if self.out_of_patience():  # it had stopped early; with more patience it goes on
                self.stop("early_stopped")
            elif self.state["global_step"] < self.total_steps:
                if self.evaluation_is_missing():
                    trainer.make_up_evaluation()
                trainer.train(
                    resume_from_checkpoint=str(self.resume_from) if self.resume_from else None
                )
            trainer.finish()
        self._report()
        return self.result

    def _check_length(self, limit: int | None) -> None:
        if limit is not None and self.config.max_seq_len > limit:
            rule = f"the model's max_position_embeddings is {limit}; lower max_seq_len"
            raise broken("max_seq_len", self.config.max_seq_len, rule)

    def _check_vocabulary(self, limit: int) -> None:
        for rows in (self.rows, self.eval_rows):
            if rows is not None and int(rows.token_ids.max()) >= limit:
                at = int(np.argmax(rows.token_ids >= limit))
                raise DataError(
                    f"{rows.path}: token {at} is {int(rows.token_ids[at])}, but the model knows "
                    f"{limit} words. Prepare the data with this model's tokenizer."
                )

    # ---- what happened ----

    def update_done(self, record: StepRecord, *, elapsed_ns: int) -> None:
        """Note an update and move every counter on."""
        epoch, update = divmod(record.step, self.updates_per_epoch)
        self.state.update(
            global_step=record.step,
            epoch=epoch,
            micro_index=update * self.config.grad_accum_steps,
            tokens_processed=record.tokens,
            time_ns=self.state["time_ns"] + elapsed_ns,
            last_loss=record.loss,
            last_accuracy=record.accuracy,
        )
        self.result.history.append(record)
        self.observer.on_step(record)

    def evaluation_done(self, record: EvalRecord) -> bool:
        """Note an evaluation; True when it is the best so far."""
        self.result.evaluations.append(record)
        self.observer.on_evaluation(record)
        metric = record.loss if self.config.early_stopping_monitor_loss else record.perplexity
        best = self.state["best_metric"]
        if best is None or metric < best - self.config.early_stopping_min_delta:
            self.state.update(
                best_metric=metric,
                best_accuracy=record.accuracy,
                best_step=record.step,
                evaluations_without_improvement=0,
            )
            return True
        if self.config.early_stopping:
            self.state["evaluations_without_improvement"] += 1
        return False

    def out_of_patience(self) -> bool:
        """True when evaluations have not improved for as long as the configuration allows."""
        return self.eval_rows is not None and folders.stopped_early(self.state, self.config)

    def evaluation_is_missing(self) -> bool:
        """True when the checkpoint was saved by a stop that left out the evaluation then due."""
        if self.start is None or self.eval_rows is None:
            return False
        step, interval = self.state["global_step"], self.config.eval_interval
        seen = {row["step"] for row in self.start["log_history"] if "eval_loss" in row}
        return interval > 0 and step % interval == 0 and step not in seen

    def stop(self, reason: str) -> None:
        """Note why the run ends before its last update."""
        self.result.stop_reason = reason
        self.result.early_stopped = reason == "early_stopped"

    def log_history(self) -> list[dict[str, Any]]:
        """The log of the whole run, resumed parts included, in the order things happened."""
        interval = self.config.log_interval
        records: list[StepRecord | EvalRecord] = [
            record
            for record in self.result.history
            if record.step in (1, self.total_steps) or (interval and record.step % interval == 0)
        ]
        records += self.result.evaluations
        records.sort(key=lambda record: record.step)
        earlier = self.start["log_history"] if self.start is not None else []
        return [*earlier, *(record.as_dict() for record in records)]

    def _report(self) -> None:
        result, state = self.result, self.state
        result.total_steps = state["global_step"]
        result.total_tokens = state["tokens_processed"]
        result.total_time_ns = state["time_ns"]
        result.final_loss = state["last_loss"]
        result.final_accuracy = state["last_accuracy"]
        result.final_perplexity = perplexity(state["last_loss"])
        seconds = max(1, state["time_ns"]) / 1e9
        result.avg_throughput = result.total_tokens / seconds
        result.checkpoints_saved = state["checkpoints_saved"]
        best = state["best_metric"]
        if best is not None:
            loss = best if self.config.early_stopping_monitor_loss else math.log(best)
            result.best_val_loss = loss
            result.best_val_accuracy = state["best_accuracy"]
        result.best_step = state["best_step"]
        result.checkpoints = folders.list_checkpoints(self.spec.checkpoint_dir)


def _ours(state: dict[str, Any]) -> dict[str, Any]:
    return dict(state["stateful_callbacks"]["abi_train"])
