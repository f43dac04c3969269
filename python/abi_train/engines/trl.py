"""The TRL engine: a `RunSpec` through `trl.SFTTrainer`. The only file that imports torch.

TRL computes the loss, its gradient, the accumulation over micro-batches and the clipping; torch
computes the update. Ours are the order of the rows, the learning rate of each update, the log and
the checkpoint folder, because those must be the same on both engines. Two cases compute the loss
here, as TRL does but by hand: float64, since TRL's head works in float32, and label smoothing,
which TRL is about to drop.

Runs in one process on one device: the first GPU, or the CPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint as folders
from ..data.rows import IGNORED, TokenRows
from ..errors import CheckpointError, ConfigError, DataError, EngineError, NumericsError
from ..progress import Observer
from ..runspec import EvalRecord, RunResult, RunSpec, StepRecord, perplexity
from . import Probe

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
        from datasets import Dataset
        from safetensors.torch import load_file, save_file
        from torch.utils.data import DataLoader, Sampler
        from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise EngineError(
        f"the trl engine needs {error.name or 'torch'}: pip install 'abi-train[trl]', or use "
        "engine native"
    ) from error

# Their annotations are partial; here they count as untyped.
_Config: Any = SFTConfig
_Trainer: Any = SFTTrainer
_DataLoader: Any = DataLoader
_Scheduler: Any = torch.optim.lr_scheduler.LRScheduler


def run(spec: RunSpec, observer: Observer, probe: Probe | None = None) -> RunResult:
    """Train with TRL. Same contract as `engines.run`."""
    with _quiet(), _threads(spec.config.threads):
        return _Run(spec, observer, probe).train()


def precision_of(spec: RunSpec, device: str) -> str:
    """What `auto` stands for: bf16 on a GPU that has it or when asked for, else float32."""
    if spec.precision != "auto":
        return spec.precision
    if device == "cuda" and torch.cuda.is_bf16_supported():
        return "bf16"
    return "bf16" if spec.config.mixed_precision else "float32"


class _Run:
    """One training run: builds the trainer, and keeps what the report needs."""

    def __init__(self, spec: RunSpec, observer: Observer, probe: Probe | None) -> None:
        self.spec = spec
        self.config = spec.config
        self.observer = observer
        self.probe = probe
        # A comparison stays on the CPU: a GPU sums in another order each time.
        self.device = "cuda" if torch.cuda.is_available() and probe is None else "cpu"
        self.precision = precision_of(spec, self.device)
        self.result = RunResult(engine="trl")
        self.rows = self._open(spec.data)
        if self.rows.batch_count == 0:
            raise DataError(
                f"{spec.data}: {self.rows.token_ids.size} tokens do not fill one batch of "
                f"{self.config.batch_size} x {self.config.max_seq_len}; make batch_size or "
                "max_seq_len smaller"
            )
        self.eval_rows = self._open(spec.eval_data) if spec.eval_data else None
        self.resume_from = folders.resolve_resume(spec.resume, spec.checkpoint_dir)
        self.start = folders.read_state(self.resume_from) if self.resume_from else None
        self.identity = identity_of(self.rows, spec)
        if self.start is not None:
            folders.require_same(self._ours(self.start)["identity"], self.identity)
        self.total_steps = self._count_updates()
        self.state = self._first_state()

    def _open(self, path: Path) -> TokenRows:
        return TokenRows.open(
            path, batch_size=self.config.batch_size, max_seq_len=self.config.max_seq_len
        )

    @staticmethod
    def _ours(state: dict[str, Any]) -> dict[str, Any]:
        return dict(state["stateful_callbacks"]["abi_train"])

    def _count_updates(self) -> int:
        per_epoch = -(-self.rows.batch_count // self.config.grad_accum_steps)
        return self.config.max_steps or per_epoch * self.config.epochs

    def _first_state(self) -> dict[str, Any]:
        state = {
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
            saved = self._ours(self.start)["state"]
            state.update({key: saved[key] for key in state if key in saved})
            state["max_steps"] = self.total_steps
        return state

    def learning_rate(self, step: int) -> float:
        """The rate of update `step`, counted from 0: asked of the native schedule."""
        from ..schedule import learning_rate

        return learning_rate(self.config, step, self.total_steps)

    def order(self, epoch: int) -> Any:
        """The recorded order of an epoch."""
        from ..data.order import epoch_order

        return epoch_order(self.rows.order_count, self.config, epoch)

    def train(self) -> RunResult:
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="abi-train-"))
            if self.probe is None:
                stack.enter_context(folders.run_lock(self.spec.checkpoint_dir))
            model = load_model(self.resume_from or self.spec.model, self, Path(scratch))
            self._check_vocabulary(model)
            trainer = AbiSFTTrainer(self, model, scratch)
            self.observer.on_start(self.total_steps, self._info())
            if self.state["global_step"] < self.total_steps:
                trainer.train(
                    resume_from_checkpoint=str(self.resume_from) if self.resume_from else None
                )
            trainer.finish()
        self._report()
        return self.result

    def _check_vocabulary(self, model: Any) -> None:
        limit = model.get_input_embeddings().weight.shape[0]
        for rows in (self.rows, self.eval_rows):
            if rows is None:
                continue
            largest = int(rows.token_ids.max())
            if largest >= limit:
                at = int(np.argmax(rows.token_ids >= limit))
                raise DataError(
                    f"{rows.path}: token {at} is {int(rows.token_ids[at])}, but the model knows "
                    f"{limit} words. Prepare the data with this model's tokenizer."
                )

    def _info(self) -> dict[str, Any]:
        return {
            "engine": "trl",
            "device": self.device,
            "precision": self.precision,
            "start_step": self.state["global_step"],
        }

    def logged(self) -> list[dict[str, Any]]:
        """Log rows of this session, in the order they happened."""
        interval = self.config.log_interval
        records: list[StepRecord | EvalRecord] = [
            record
            for record in self.result.history
            if record.step in (1, self.total_steps) or (interval and record.step % interval == 0)
        ]
        records += self.result.evaluations
        records.sort(key=lambda record: record.step)
        return [record.as_dict() for record in records]

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


def identity_of(rows: TokenRows, spec: RunSpec) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    return {
        "batch_size": spec.config.batch_size,
        "grad_accum_steps": spec.config.grad_accum_steps,
        "max_seq_len": spec.config.max_seq_len,
        "shuffle": spec.config.shuffle,
        "seed": spec.config.seed,
        "data_tokens": int(rows.token_ids.size),
        "data_rows": 0 if rows.starts is None else int(rows.starts.size) - 1,
        "data_crc32c": folders.ends_checksum(rows.token_ids),
    }


def load_model(source: Path, run: _Run, scratch: Path) -> Any:
    """The model of a folder; a GGUF or a bare config.json goes through the native library first."""
    if source.is_file():
        source = _native_folder(source, run, scratch)
    try:
        with _quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(source),
                dtype=torch.float64 if run.precision == "float64" else torch.float32,
                attn_implementation=_attention(run),
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{source}: transformers cannot open it: {_one_line(error)}") from error
    model.config.use_cache = False
    # transformers gives the pad token's row no gradient. Padding is masked by position here, and
    # where the pad token is also the end token that row has to learn.
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None
    if run.precision == "float64":
        _norms_in_double(model)
    return model


def _norms_in_double(model: Any) -> None:
    """transformers computes RMS norms in float32 whatever the weights are; not here."""

    def forward(self: Any, x: Any) -> Any:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + self.variance_epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = types.MethodType(forward, module)


def _native_folder(source: Path, run: _Run, scratch: Path) -> Path:
    """A Hugging Face folder of what the native library reads or draws: one start for both."""
    from .native import open_any

    folder = scratch / "start"
    dtype = "float64" if run.precision == "float64" else "float32"
    with open_any(source, seed=run.config.seed, dtype=dtype) as model:
        model.save(folder)
    return folder


def _attention(run: _Run) -> str:
    if run.precision == "float64":
        return "sdpa"  # the eager one takes its softmax in float32
    if run.probe is not None:
        return "eager"
    on_gpu = run.device == "cuda" and run.precision == "bf16"
    if on_gpu and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    return "sdpa"


class _Order(Sampler[list[int]]):
    """Gives the row numbers of each micro-batch of the current epoch, in the recorded order."""

    def __init__(self, rows: TokenRows, order: Callable[[int], Any]) -> None:
        self.rows = rows
        self.order = order
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows.batch_count

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows.batches(self.order(self.epoch)))


class _Loader(_DataLoader):  # type: ignore[misc]
    """A loader whose order follows the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch on to the order."""
        self.batch_sampler.set_epoch(epoch)


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Right-padded ids, labels and attention mask of one micro-batch, (rows, longest)."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[at, :length] = torch.tensor(row["input_ids"])
        labels[at, :length] = torch.tensor(row["labels"])
        mask[at, :length] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class _Schedule(_Scheduler):  # type: ignore[misc]
    """Sets every group's learning rate to what the native schedule says for the update."""

    def __init__(self, optimizer: Any, rate: Callable[[int], float], first: int) -> None:
        self._rate = rate
        self._first = first
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The rate of the next update, for every group."""
        return [self._rate(self._first + self.last_epoch)] * len(self.optimizer.param_groups)


def sft_config(run: _Run, folder: str) -> Any:
    """Our settings in TRL's words; what TRL must not do itself is switched off."""
    config = run.config
    return _Config(
        output_dir=folder,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum_steps,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        seed=config.seed % 2**32,
        use_cpu=run.device == "cpu",
        bf16=run.precision == "bf16",
        fp16=False,
        tf32=None,
        max_length=None,
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **_activation_checkpointing(config.recompute_activations),
    )


def _activation_checkpointing(wanted: bool) -> dict[str, bool]:
    fields = getattr(_Config, "__dataclass_fields__", {})
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if name in fields:
            return {name: wanted}
    return {}


def _placeholder_tokenizer() -> Any:
    """TRL wants a tokenizer object; rows come as ids, so an empty one will do."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    core = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    untyped: Any = transformers.PreTrainedTokenizerFast
    return untyped(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


class AbiSFTTrainer(_Trainer):  # type: ignore[misc]
    """`SFTTrainer` with our order, learning rate, log, evaluation and checkpoints."""

    def __init__(self, run: _Run, model: Any, folder: str) -> None:
        self.run_of = run
        self._losses: list[Any] = []
        self._hits = 0.0
        self._targets = 0
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self._tokens = 0
        self._step_began = time.perf_counter_ns()
        self._save_due = False
        self._saved_step = -1
        self._done_step = run.state["global_step"]
        super().__init__(
            model=model,
            args=sft_config(run, folder),
            data_collator=_collate,
            train_dataset=Dataset.from_dict({"input_ids": [[0, 0]], "labels": [[0, 0]]}),
            processing_class=_placeholder_tokenizer(),
        )
        self.processing_class = None  # or the model's special ids would be set from the placeholder
        for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(callback)

    # ---- what goes in ----

    def get_train_dataloader(self) -> Any:
        rows = self.run_of.rows
        return _Loader(
            rows,
            batch_sampler=_Order(rows, self.run_of.order),
            collate_fn=_collate,
        )

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.run_of)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            first = self.run_of.state["global_step"]
            inner = getattr(self.optimizer, "optimizer", self.optimizer)
            self.lr_scheduler = _Schedule(inner, self.run_of.learning_rate, first)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- loss ----

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"]
        targets = int((labels[:, 1:] != IGNORED).sum())
        stream = self.run_of.rows.is_stream
        self._tokens += int(inputs["attention_mask"].sum()) - (len(labels) if stream else 0)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss)
        self._targets += targets
        shares = self._metrics["train"]["mean_token_accuracy"]
        if shares:
            self._hits += shares[-1] * targets
        self._metrics["train"].clear()
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        run = self.run_of
        if run.precision != "float64" and run.config.label_smoothing == 0.0:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits
        nll, smooth, hits, count = _token_sums(logits, inputs["labels"])
        share = run.config.label_smoothing
        total = count if num_items_in_batch is None else num_items_in_batch
        loss = ((1.0 - share) * nll + share * smooth) / total
        self._metrics["train"]["mean_token_accuracy"].append(float(hits) / max(1, int(count)))
        return loss

    # ---- one update ----

    def _clip_grad_norm(self, model: Any) -> Any:
        self._before_clip(model)
        return self._finite(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm=grad_norm)
        self._before_clip(model)
        return self._finite(super()._get_grad_norm(model))

    def _before_clip(self, model: Any) -> None:
        probe = self.run_of.probe
        if probe is None or probe.gradients or self.state.global_step > 0:
            return
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                probe.gradients[name] = parameter.grad.detach().cpu().numpy().copy()

    def _finite(self, norm: Any) -> Any:
        if not math.isfinite(float(norm)):
            culprit = next(
                (
                    name
                    for name, parameter in self.model.named_parameters()
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
        run, config = self.run_of, self.run_of.config
        now = time.perf_counter_ns()
        step = self._done_step = self.state.global_step
        self._advance(now - self._step_began)
        loss = math.fsum(float(part) for part in self._losses)
        accuracy = self._hits / max(1, self._targets)
        run.state.update(last_loss=loss, last_accuracy=accuracy)
        record = StepRecord(
            step=step,
            loss=loss,
            grad_norm=float(grad_norm),
            learning_rate=float(learning_rate),
            epoch=float(self.state.epoch or 0.0),
            accuracy=accuracy,
            tokens=run.state["tokens_processed"],
            tokens_per_second=self._tokens / (max(1, now - self._step_began) / 1e9),
        )
        self._losses.clear()
        self._hits, self._targets, self._tokens = 0.0, 0, 0
        run.result.history.append(record)
        run.observer.on_step(record)

        last = step >= run.total_steps
        evaluate_now = run.eval_rows is not None and (
            last or (config.eval_interval and step % config.eval_interval == 0)
        )
        if evaluate_now and self._evaluate_and_judge():
            self.control.should_training_stop = True
            run.result.early_stopped = True
            run.result.stop_reason = "early_stopped"
        elif run.observer.stop_requested() and not last:
            self.control.should_training_stop = True
            run.result.stop_reason = "interrupted"
        elif self._save_due or (
            config.checkpoint_interval and step % config.checkpoint_interval == 0 and not last
        ):
            self.save()
        self._save_due = False
        self._step_began = time.perf_counter_ns()

    def _advance(self, elapsed_ns: int) -> None:
        run = self.run_of
        per_epoch = -(-run.rows.batch_count // run.config.grad_accum_steps)
        epoch, update = divmod(self.state.global_step, per_epoch)
        run.state.update(
            global_step=self.state.global_step,
            epoch=epoch,
            micro_index=update * run.config.grad_accum_steps,
            tokens_processed=run.state["tokens_processed"] + self._tokens,
            time_ns=run.state["time_ns"] + elapsed_ns,
        )

    # ---- evaluation ----

    def evaluate_tokens(self) -> EvalRecord:
        """Token means over all of the evaluation data."""
        rows = self.run_of.eval_rows
        assert rows is not None
        nll_sum, hits_sum, count_sum = 0.0, 0, 0
        self.model.eval()
        with torch.no_grad():
            for numbers in rows.batches(np.arange(rows.order_count)):
                inputs = self._prepare_inputs(_collate([rows[number] for number in numbers]))
                with self.accelerator.autocast():
                    logits = self.model(
                        input_ids=inputs["input_ids"],
                        attention_mask=inputs["attention_mask"],
                        use_cache=False,
                    ).logits
                nll, _, hits, count = _token_sums(logits, inputs["labels"])
                nll_sum += float(nll)
                hits_sum += int(hits)
                count_sum += int(count)
        self.model.train()
        if not math.isfinite(nll_sum):
            raise NumericsError(
                f"evaluation at update {self.state.global_step}: the loss is {nll_sum}; the last "
                "checkpoint is the state to go back to."
            )
        return EvalRecord(
            step=self.state.global_step,
            epoch=float(self.state.epoch or 0.0),
            loss=nll_sum / count_sum if count_sum else 0.0,
            accuracy=hits_sum / count_sum if count_sum else 0.0,
            tokens=count_sum,
        )

    def _evaluate_and_judge(self) -> bool:
        """Evaluate; True when patience has run out."""
        run, config, state = self.run_of, self.run_of.config, self.run_of.state
        record = self.evaluate_tokens()
        run.result.evaluations.append(record)
        run.observer.on_evaluation(record)
        metric = record.loss if config.early_stopping_monitor_loss else record.perplexity
        best = state["best_metric"]
        if best is None or metric < best - config.early_stopping_min_delta:
            state.update(
                best_metric=metric,
                best_accuracy=record.accuracy,
                best_step=record.step,
                evaluations_without_improvement=0,
            )
            # The best weights live in the checkpoint of this update, which retention spares.
            self._save_due = config.early_stopping and run.probe is None
            return False
        if not config.early_stopping:
            return False
        state["evaluations_without_improvement"] += 1
        return bool(
            state["evaluations_without_improvement"] >= config.early_stopping_patience
            and record.step < run.total_steps
        )

    # ---- checkpoints ----

    def finish(self) -> None:
        """Save the last state, or hand it to the probe when a comparison is looking."""
        run = self.run_of
        if run.probe is not None:
            for name, parameter in self.model.named_parameters():
                run.probe.weights[name] = parameter.detach().cpu().numpy().copy()
        elif run.result.history and self._saved_step != run.state["global_step"]:
            self.save()

    def save(self) -> Path:
        """Write `checkpoint-N/` as the native engine does, and retire old ones."""
        run = self.run_of
        run.state["checkpoints_saved"] += 1
        folder = run.spec.checkpoint_dir
        path = folders.write_checkpoint(folder, run.state["global_step"], self._fill)
        self._saved_step = run.state["global_step"]
        best = run.state["best_step"]
        spare = None if best is None else folder / f"checkpoint-{best}"
        folders.retire(folder, run.config.max_checkpoints, spare=spare)
        run.observer.on_checkpoint(path)
        return path

    def _fill(self, folder: Path) -> None:
        run = self.run_of
        self.model.save_pretrained(folder)
        folders.copy_tokenizer(run.resume_from or run.spec.tokenizer_dir, folder)
        save_file(self._moments(), folder / folders.OPTIMIZER_FILE, metadata={"format": "pt"})
        history = run.logged()
        earlier = run.start["log_history"] if run.start is not None else []
        from .. import __version__

        best = run.state["best_step"]
        document = folders.trainer_state(
            engine="trl",
            version=__version__,
            identity=run.identity,
            state=run.state,
            config=run.config.to_dict(),
            epoch=float(self.state.epoch or 0.0),
            history=[*earlier, *history],
            best_path=None if best is None else f"checkpoint-{best}",
        )
        text = json.dumps(document, indent=2) + "\n"
        (folder / folders.STATE_FILE).write_text(text, encoding="utf-8")

    def _moments(self) -> dict[str, Any]:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        tensors: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
            for moment in folders.MOMENTS:
                if moment in state:
                    tensors[f"{moment}.{name}"] = state[moment].detach().cpu().contiguous()
        return tensors

    # ---- resume: transformers' own files are not used ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights came from the checkpoint when the model was opened."""

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Nothing random is left: the order is recorded and there is no dropout."""

    def _load_scaler(self, checkpoint: Any) -> None:
        """No loss scaler: bf16 does not need one."""

    def _load_callback_state(self) -> None:
        """Our callbacks keep no state."""

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        kwargs.pop("resume_from_checkpoint", None)
        max_steps, per_epoch, epochs = args[:3]
        super()._init_training_state(max_steps, per_epoch, epochs, None, None)
        self.state.global_step = self.run_of.state["global_step"]
        return self.run_of.state["epoch"], self.run_of.state["micro_index"]

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is None:
            return
        path = Path(checkpoint) / folders.OPTIMIZER_FILE
        try:
            tensors = load_file(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({_one_line(error)}). Resume from another checkpoint."
            ) from error
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        step = torch.tensor(float(self.run_of.state["global_step"]))
        moments = () if self.run_of.config.optimizer == "sgd" else folders.MOMENTS
        for name, parameter in self.model.named_parameters():
            for moment in moments:
                key = f"{moment}.{name}"
                if key not in tensors or tensors[key].shape != parameter.shape:
                    raise CheckpointError(
                        f'{path}: tensor "{key}" is missing or has another shape than its weight. '
                        "Resume from another checkpoint."
                    )
                value = tensors[key].to(device=parameter.device, dtype=parameter.dtype)
                optimizer.state[parameter][moment] = value.clone()
            if moments:
                optimizer.state[parameter]["step"] = step.clone()


def make_optimizer(model: Any, run: _Run) -> Any:
    """torch's optimizer with our numbers; norms and biases are not decayed."""
    config = run.config
    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    rate = run.learning_rate(run.state["global_step"])
    if config.optimizer == "sgd":
        return torch.optim.SGD([p for _, p in parameters], lr=rate, foreach=False)
    betas, eps = (config.beta1, config.beta2), config.eps
    if config.optimizer == "adam":
        return torch.optim.Adam(
            [p for _, p in parameters], lr=rate, betas=betas, eps=eps, foreach=False
        )
    decayed = {name for name, _ in parameters if not _spared(name)}
    groups = [
        {
            "params": [p for name, p in parameters if name in decayed],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for name, p in parameters if name not in decayed], "weight_decay": 0.0},
    ]
    fused = run.device == "cuda"
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=betas,
        eps=eps,
        fused=fused,
        foreach=False,
    )


def _spared(name: str) -> bool:
    """True for names transformers leaves out of weight decay."""
    parts = name.lower().split(".")
    return (
        any(word in name.lower() for word in ("bias", "layernorm", "rmsnorm"))
        or "norm" in parts
        or any(part.endswith("_norm") for part in parts)
    )


def _token_sums(logits: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
    """Sums over targets: negative log-likelihood, its mean over the vocabulary, hits, count."""
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    targets = labels[:, 1:].reshape(-1)
    kept = targets != IGNORED
    chosen = logits[:, :-1].reshape(-1, logits.shape[-1])[kept].to(kind)
    targets = targets[kept]
    logs = torch.log_softmax(chosen, dim=-1)
    nll = -logs.gather(1, targets[:, None]).sum()
    hits = (chosen.argmax(dim=-1) == targets).sum()
    return nll, -logs.mean(dim=-1).sum(), hits, kept.sum()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' advice off the terminal; errors still come through as exceptions."""
    from transformers.utils import logging as module

    logging: Any = module
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
