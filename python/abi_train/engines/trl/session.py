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

from ... import _native
from ... import checkpoint as folders
from ...adapters import LoraConfig, create_adapter, other_base
from ...config import broken
from ...data.order import epoch_order
from ...data.rows import PreferenceRows, TokenRows
from ...errors import ConfigError, DataError, FormatError, UnsupportedError
from ...model import Model
from ...preference import require_same_words
from ...progress import Observer
from ...runspec import EvalRecord, RunResult, RunSpec, StepRecord, perplexity
from ...schedule import learning_rate
from .. import LeftOut, Probe, announce, processes, too_little
from ..native import open_any, open_model
from ..resume import resume_point
from . import adapter
from .libraries import torch
from .model import load_model
from .packing import pack
from .rows import left_out
from .saved import require_moments
from .sft import SftLoop


class Session:
    """A run from its spec to its report.

    Raises `DataError` for data that makes no batch, `CheckpointError` for a checkpoint of another
    run.
    """

    def __init__(self, spec: RunSpec, observer: Observer, probe: Probe | None) -> None:
        self.spec = spec
        self.config = spec.config
        self.observer = observer if processes.is_first() else _OnlyStop(observer)
        self.probe = probe
        # A comparison stays on the CPU: a GPU sums in another order each time.
        self.device = "cuda" if torch.cuda.is_available() and probe is None else "cpu"
        self.precision = spec.precision_where(
            bf16_gpu=self.device == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.lora = None if spec.lora is None else spec.lora.resolved(spec.model)
        self.dpo = spec.dpo
        self.head_is_trained = self.lora is not None and "lm_head" in self.lora.target_modules
        self.result = RunResult(engine="trl")
        self.rows = self._open(spec.data)
        self.eval_rows = self._open(spec.eval_data, evaluated=True) if spec.eval_data else None
        self.result.checkpoint = self.resume_from = resume_point(spec, observer)
        if self.resume_from is not None:
            adapter.require_adapter(self.resume_from, self.lora)
        self.start = folders.read_state(self.resume_from) if self.resume_from else None
        self.identity = self._identity()
        if self.start is not None:
            folders.require_same(_ours(self.start)["identity"], self.identity)
        self.updates_per_epoch = -(-self.rows.batch_count // self.config.grad_accum_steps)
        if self.start is not None:
            assert self.resume_from is not None
            folders.require_place(
                self.resume_from,
                _ours(self.start)["state"],
                batches=self.rows.batch_count,
                group=self.config.grad_accum_steps,
            )
        self.total_steps = self.config.max_steps or self.updates_per_epoch * self.config.epochs
        self.state = self._first_state()

    def _open(self, path: Path, *, evaluated: bool = False) -> Any:
        size, length = self.config.batch_size, self.config.max_seq_len
        rows: Any
        if self.spec.objective == "sft":
            rows = TokenRows.open(path, batch_size=size, max_seq_len=length)
            # As TRL does it, evaluation packs as training does; the sequences of a stream are full.
            if self.config.packing != "none" and not (evaluated and rows.is_stream):
                rows = rows.packed(pack, self.config.packing)
        else:
            rows = PreferenceRows.open(path, batch_size=size, max_seq_len=length)
        if rows.batch_count == 0 and self.spec.objective == "dpo":
            raise DataError(
                f"{path}: the prompt of every pair fills max_seq_len ({length}), so no answer is "
                "left; raise max_seq_len, or prepare shorter prompts"
            )
        if rows.batch_count == 0:
            raise too_little(path, rows.token_ids.size, self.config)
        return rows

    def _identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        names = ("batch_size", "grad_accum_steps", "max_seq_len", "shuffle", "seed")
        what: dict[str, Any] = {}
        if self.lora is not None:
            what |= {"method": "lora", "lora": self.lora.identity()}
            base = self._base_checksum(self.lora)
            what |= {} if base is None else {"base_crc32c": base}
        if self.config.packing != "none":
            what["packing"] = self.config.packing
        if self.dpo is not None:
            reference = self.spec.reference
            assert reference is not None
            what |= {
                "objective": "dpo",
                "dpo": self.dpo.identity(),
                "reference": reference.kind,
            }
            compared = self._reference_checksum(reference.kind)
            what |= {} if compared is None else {"reference_crc32c": compared}
        return {
            **{name: getattr(self.config, name) for name in names},
            "data_tokens": int(self.rows.token_ids.size),
            "data_rows": 0 if self.rows.starts is None else int(self.rows.starts.size) - 1,
            "data_crc32c": folders.ends_checksum(self.rows.token_ids),
            **what,
        }

    def _base_checksum(self, lora: LoraConfig) -> int | None:
        """What tells the model under an adapter from another one, once the adapters of the run
        were read on it. None where the native library does not know the model: then PEFT's
        checks have to do."""
        model = self._opened_natively(self.spec.model)
        if model is None:
            return None
        with model:
            for folder in (self.resume_from, lora.adapter):
                if folder is not None:
                    _native.adapter.check_on(model.native, folder)
            return _native.model.fingerprint(model.native)

    def _reference_checksum(self, kind: str) -> int | None:
        """What tells a model that pairs are compared with from another one; None where its base
        says it, or the native library does not know it."""
        assert self.dpo is not None
        paths = {"starting_model": self.spec.model, "ref_model": self.dpo.ref_model}
        path = paths.get(kind.partition(" ")[0])
        if path is None:
            return None
        model = self._opened_natively(path)
        if model is None:
            return None
        with model:
            return _native.model.fingerprint(model.native)

    def _opened_natively(self, path: Path) -> Model | None:
        """A model to look at; None when the native library does not know its kind."""
        dtype = "float32" if path.suffix == ".json" else "stored"
        try:
            return open_any(path, seed=self.config.seed, dtype=dtype)
        except (FormatError, UnsupportedError):
            return None

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
            if self.probe is None and processes.is_first():
                stack.enter_context(folders.run_lock(self.spec.checkpoint_dir))
                run_dir = self.spec.checkpoint_dir
                own = self.resume_from and self.resume_from.resolve().parent == run_dir.resolve()
                if not own:
                    folders.require_unused(run_dir)
            trainer = self._trainer(Path(scratch))
            if self.resume_from is not None and self.config.optimizer != "sgd":
                require_moments(self.resume_from, trainer.model)
            left = None if self.probe is not None else self._left_out()
            announce(self.spec, self.observer, self.total_steps, self._start_info(), left)
            if self.lora is not None and self.lora.adapter is not None and self.start is None:
                base = self.identity.get("base_crc32c")
                said = None if base is None else other_base(self.lora.adapter, base)
                if said is not None:
                    self.observer.on_note(said)
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

    def _trainer(self, scratch: Path) -> Any:
        """The model, with its adapter if it gets one, in TRL's trainer for the objective."""
        source = self.spec.model
        if self.lora is None:
            source = self.resume_from or source
        model = self._load(source, scratch / "model", frozen=self.lora is not None)
        self._check_length(getattr(model.config, "max_position_embeddings", None))
        self._check_vocabulary(model.get_input_embeddings().weight.shape[0])
        before = None
        if self.lora is not None:
            before = self.lora.adapter
            model = self._with_adapter(model, scratch)
        if self.dpo is None:
            return SftLoop(self, model, str(scratch))
        from .dpo import DpoLoop

        reference = self._reference_model(model, scratch)
        return DpoLoop(self, model, str(scratch), ref_model=reference, ref_adapter=before)

    def _load(self, source: Path, scratch: Path, *, frozen: bool) -> Any:
        scratch.mkdir()
        return load_model(
            source,
            seed=self.config.seed,
            precision=self.precision,
            device=self.device,
            attention=self.spec.attention,
            compared=self.probe is not None,
            scratch=scratch,
            frozen=frozen,
        )

    def _with_adapter(self, model: Any, scratch: Path) -> Any:
        """The model with the adapter of the checkpoint, the one to go on from, or a first one."""
        assert self.lora is not None
        torch.manual_seed(self.lora.seed if self.lora.seed is not None else self.config.seed)
        made = adapter.with_adapter(model, self.lora, base=str(self.spec.model.resolve()))
        source = self.resume_from or self.lora.adapter or self._first_adapter(scratch)
        if source is not None:
            adapter.put(made, source)
        return made

    def _first_adapter(self, scratch: Path) -> Path | None:
        """The adapter that the native engine would begin with; None when it does not know the
        model: then PEFT's draw stands."""
        assert self.lora is not None
        try:
            with open_model(self.spec.replace(precision=self.precision)) as model:
                return create_adapter(model, self.lora, scratch / "adapter", seed=self.config.seed)
        except (FormatError, UnsupportedError):
            return None

    def _reference_model(self, model: Any, scratch: Path) -> Any:
        """A second model for DPO to compare with; None when the first one without its adapter,
        or with the adapter it began with, is the reference."""
        assert self.dpo is not None
        source = self.dpo.ref_model
        if source is None:
            if self.lora is not None:
                return None
            source = self.spec.model
        if source != self.spec.model:
            require_same_words(self.spec.model, source)
        reference = self._load(source, scratch / "reference", frozen=True)
        for parameter in reference.parameters():
            parameter.requires_grad_(False)
        words = [made.get_input_embeddings().weight.shape[0] for made in (reference, model)]
        if words[0] != words[1]:
            raise ConfigError(
                f"dpo.ref_model: {source} knows {words[0]} words, the model {words[1]}; the "
                "reference must have the model's vocabulary"
            )
        return reference

    def _start_info(self) -> dict[str, Any]:
        return {
            "engine": "trl",
            "device": self.device,
            "precision": self.precision,
            "start_step": self.state["global_step"],
        }

    def _left_out(self) -> LeftOut:
        rows, dropped, cut = left_out(self.rows, self.config.packing)
        if self.eval_rows is None:
            return LeftOut(rows=rows, dropped=dropped, cut=cut)
        eval_rows, eval_dropped, eval_cut = left_out(self.eval_rows, self.config.packing)
        return LeftOut(
            rows=rows,
            dropped=dropped,
            cut=cut,
            eval_rows=eval_rows,
            eval_dropped=eval_dropped,
            eval_cut=eval_cut,
        )

    def _check_length(self, limit: int | None) -> None:
        if limit is not None and self.config.max_seq_len > limit:
            rule = f"the model's max_position_embeddings is {limit}; lower max_seq_len"
            raise broken("max_seq_len", self.config.max_seq_len, rule)

    def _check_vocabulary(self, limit: int) -> None:
        for rows in (self.rows, self.eval_rows):
            if rows is None:
                continue
            found = rows.token_ids.first_at_least(limit)
            if found is not None:
                raise DataError(
                    f"{rows.path}: token {found[0]} is {found[1]}, but the model knows "
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


class _OnlyStop(Observer):
    """What processes after the first use of an observer: they are silent, but hear a signal."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def stop_requested(self) -> bool:
        return self._observer.stop_requested()


def _ours(state: dict[str, Any]) -> dict[str, Any]:
    return dict(state["stateful_callbacks"]["abi_train"])
