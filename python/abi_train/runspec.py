"""`RunSpec` says what to train on what and how; `RunResult` says what came of it.

Both engines take the first and return the second, so a run can move from one to the other by
changing one word. A spec can be kept in a file (a *recipe*): the keys below, with the training
configuration under `training`.

Does not know: how either engine works, or the terminal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .adapters import LoraConfig, is_adapter
from .config import (
    LlmTrainingConfig,
    broken,
    in_file,
    read_document,
    unknown_key,
    write_document,
)
from .errors import ConfigError
from .monitor_config import MonitorConfig
from .preference import DpoConfig, Reference

ENGINES: Final = ("native", "trl")
PRECISIONS: Final = ("auto", "float32", "float64", "bf16")
ATTENTIONS: Final = (
    "auto",
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
)
METHODS: Final = ("full", "lora")
OBJECTIVES: Final = ("sft", "dpo")
SPEC_PATHS: Final = ("model", "data", "run_dir", "eval_data", "tokenizer")
CONFIG_PATHS: Final = ("checkpoint_path", "log_dir", "export_gguf_path")
RECIPE_FILE: Final = "run.json"
"""Name of the recipe that a run leaves in its folder."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run.

    model: a Hugging Face folder, a `.gguf` file, or a `config.json` for random weights drawn from
        `config.seed`.
    data, eval_data: token files (`.bin`, with their side files when they have them).
    tokenizer: folder whose tokenizer files travel with every checkpoint; default: the model's.
    run_dir: the folder that gets `checkpoint-N/`, `log.jsonl` and `run.json`.
    resume: a checkpoint folder, or `latest` for the newest one in `run_dir`.
    method: `full` trains the weights, `lora` an adapter beside them, as `lora` says.
    objective: `sft` learns texts, `dpo` pairs of a chosen and a rejected answer, as `dpo` says.
    commercial: refuse data and weights whose licence is not for commercial use or not known.
    monitor: who watches the run besides its log, and when it warns.
    precision: `auto` is bf16 when `config.mixed_precision` asks for it or a GPU has it, else
        float32. bf16 is bfloat16 products with float32 weights, sums and moments.
    attention: which of transformers' attentions the TRL engine takes; `auto` chooses by model and
        device. The native engine has one of its own.

    Raises `ConfigError` for an unknown word, or settings that contradict each other.
    """

    model: Path
    data: Path
    run_dir: Path
    config: LlmTrainingConfig = field(default_factory=LlmTrainingConfig)
    eval_data: Path | None = None
    tokenizer: Path | None = None
    engine: str = "native"
    method: str = "full"
    objective: str = "sft"
    precision: str = "auto"
    attention: str = "auto"
    resume: str | None = None
    lora: LoraConfig | None = None
    dpo: DpoConfig | None = None
    commercial: bool = False
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        for name in SPEC_PATHS:
            value = getattr(self, name)
            if value is not None:
                if "\0" in str(value):
                    raise broken(name, str(value), "it must not hold a NUL character")
                object.__setattr__(self, name, Path(value).expanduser())
        for name, options in (
            ("engine", ENGINES),
            ("method", METHODS),
            ("objective", OBJECTIVES),
            ("precision", PRECISIONS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) not in options:
                raise broken(name, getattr(self, name), "it must be one of " + ", ".join(options))
        if not isinstance(self.commercial, bool):
            raise broken("commercial", self.commercial, "it must be true or false")
        self._check_method()
        if self.config.mixed_precision and self.precision not in ("auto", "bf16"):
            rule = "with mixed_precision it must be auto or bf16"
            raise broken("precision", self.precision, rule)

    def _check_method(self) -> None:
        """Each method and objective brings its table, and neither is left without effect."""
        if self.method == "lora" and self.lora is None:
            object.__setattr__(self, "lora", LoraConfig())
        if self.objective == "dpo" and self.dpo is None:
            object.__setattr__(self, "dpo", DpoConfig())
        if self.method != "lora" and self.lora is not None:
            raise broken("method", self.method, "the table lora needs method: lora")
        if self.objective != "dpo":
            if self.dpo is not None:
                raise broken("objective", self.objective, "the table dpo needs objective: dpo")
            return
        if self.config.label_smoothing:
            rule = "with objective dpo it must be 0; the table dpo has a label_smoothing of its own"
            raise broken("label_smoothing", self.config.label_smoothing, rule)
        if self.config.packing != "none":
            rule = "with objective dpo it must be none: pairs of answers are not packed"
            raise broken("packing", self.config.packing, rule)
        if self.lora is not None and self.lora.dropped:
            rule = (
                "with objective dpo it must be 0: model and reference are compared without dropout"
            )
            raise broken("lora.lora_dropout", self.lora.lora_dropout, rule)

    @property
    def reference(self) -> Reference | None:
        """What a DPO run is compared with; None for any other run."""
        if self.dpo is None:
            return None
        adapter = None if self.lora is None else self.lora.adapter
        return self.dpo.reference(model=self.model, lora=self.lora is not None, adapter=adapter)

    def precision_where(self, *, bf16_gpu: bool) -> str:
        """What `auto` comes to on a machine with or without a GPU that has bf16."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if bf16_gpu or self.config.mixed_precision else "float32"

    def check_paths(self) -> None:
        """Raise `ConfigError` for the first file or folder of the spec that is not there, or is
        not what its name needs."""
        from .data.files import is_set

        for name in ("model", "data", "eval_data", "tokenizer"):
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            if name in ("data", "eval_data") and not path.exists() and is_set(path):
                continue
            if not path.exists():
                raise ConfigError(f"{name}: {path} does not exist; check the path")
            if not path.is_file() and not path.is_dir():
                raise ConfigError(f"{name}: {path} is neither a regular file nor a folder")
            if name in ("data", "eval_data") and path.is_dir():
                raise ConfigError(f"{name}: {path} is a folder; name the token file (.bin) in it")
            if name == "tokenizer" and path.is_file():
                raise ConfigError(f"{name}: {path} is a file; name the folder with tokenizer.json")
        if is_adapter(self.model):
            raise ConfigError(
                f"model: {self.model} is an adapter, not a model; name the model it was made for "
                "as model, and the adapter as lora.adapter with method lora"
            )
        self._check_table_paths()

    def _check_table_paths(self) -> None:
        adapter = None if self.lora is None else self.lora.adapter
        if adapter is not None and not adapter.is_dir():
            said = "is not a folder" if adapter.exists() else "does not exist"
            raise ConfigError(f"lora.adapter: {adapter} {said}; name the folder of an adapter")
        reference = None if self.dpo is None else self.dpo.ref_model
        if reference is not None and not reference.exists():
            raise ConfigError(f"dpo.ref_model: {reference} does not exist; check the path")
        if reference is not None and is_adapter(reference):
            raise ConfigError(
                f"dpo.ref_model: {reference} is an adapter, not a model; merge it into its model "
                "first, or go on from it with lora.adapter, whose copy is then the reference"
            )

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder whose tokenizer files are copied into checkpoints, or None."""
        if self.tokenizer is not None:
            return self.tokenizer
        folder = self.model if self.model.is_dir() else self.model.parent
        if not self.model.name.endswith(".gguf") and (folder / "tokenizer.json").is_file():
            return folder
        return None

    @property
    def checkpoint_dir(self) -> Path:
        """Where `checkpoint-N/` folders go."""
        return Path(self.config.checkpoint_path or self.run_dir)

    def replace(self, **changes: Any) -> RunSpec:
        """A changed copy, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, base: Path | None = None) -> RunSpec:
        """The run these keys describe. Relative paths, those in tables too, are taken from `base`.

        A table `lora` or `dpo` without a method or an objective means that method or objective.
        """
        known = {item.name for item in dataclasses.fields(cls)} - {"config"} | {"training"}
        for key in values:
            if key not in known:
                raise unknown_key(key, known, "a recipe")
        for key in ("model", "data", "run_dir"):
            if values.get(key) is None:
                raise ConfigError(f"{key} is missing; a recipe needs model, data and run_dir")
        tables = ("training", "lora", "dpo", "monitor")
        plain = {k: v for k, v in values.items() if k not in tables}
        for key in SPEC_PATHS:
            if plain.get(key) is None:
                plain.pop(key, None)
                continue
            if not isinstance(plain[key], (str, Path)):
                raise broken(key, plain[key], "it must be a path")
            path = Path(plain[key]).expanduser()
            plain[key] = path if base is None or path.is_absolute() else base / path
        training = values.get("training") or {}
        if not isinstance(training, Mapping):
            raise broken("training", training, "it must be a table of training settings")
        config = LlmTrainingConfig.from_dict(training)
        if base is not None:
            places: dict[str, Any] = {
                name: str(base / Path(value).expanduser())
                for name in CONFIG_PATHS
                if (value := getattr(config, name)) is not None
            }
            config = dataclasses.replace(config, **places)
        lora, dpo = _tables(values, base)
        if lora is not None:
            plain.setdefault("method", "lora")
        if dpo is not None:
            plain.setdefault("objective", "dpo")
        monitor = MonitorConfig.from_dict(_table(values, "monitor"))
        return cls(config=config, lora=lora, dpo=dpo, monitor=monitor, **plain)

    def to_dict(self) -> dict[str, Any]:
        """The recipe form: paths as text, the configuration under `training`."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "config":
                continue
            if isinstance(value, (LoraConfig, DpoConfig)):
                values[item.name] = value.to_dict()
            elif isinstance(value, MonitorConfig):
                if value != MonitorConfig():
                    values[item.name] = value.to_dict()
            elif item.name in ("commercial", "attention") and value in (False, "auto"):
                continue
            elif value is not None:
                values[item.name] = str(value) if isinstance(value, Path) else value
        values["training"] = {k: v for k, v in self.config.to_dict().items() if v is not None}
        return values

    @classmethod
    def load(cls, path: str | Path) -> RunSpec:
        """The run a recipe file describes; relative paths are taken from the recipe's folder."""
        path = Path(path)
        with in_file(path):
            return cls.from_dict(read_document(path), base=path.parent)

    def save(self, path: str | Path) -> Path:
        """Write the recipe; the ending of the name chooses YAML, JSON or TOML.

        Paths below the recipe's folder are written relative to it, others in full, so that the
        recipe means the same wherever it is read from.
        """
        values = self.to_dict()
        folder = Path(path).resolve().parent
        tables = (
            (values, SPEC_PATHS),
            (values["training"], CONFIG_PATHS),
            (values.get("lora", {}), ("adapter", "export_gguf_path")),
            (values.get("dpo", {}), ("ref_model",)),
        )
        for table, names in tables:
            for name in names:
                if table.get(name) is not None:
                    target = Path(table[name]).expanduser().resolve()
                    inside = target.is_relative_to(folder)
                    table[name] = str(target.relative_to(folder) if inside else target)
        return write_document(path, values)


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a recipe; one without settings, or none, is empty."""
    table = values.get(name)
    table = {} if table is None else table
    if not isinstance(table, Mapping):
        raise broken(name, table, "it must be a table of settings")
    return table


def _tables(
    values: Mapping[str, Any], base: Path | None
) -> tuple[LoraConfig | None, DpoConfig | None]:
    """The tables `lora` and `dpo` of a recipe, their paths taken from `base`."""
    made: dict[str, Any] = {"lora": None, "dpo": None}
    kinds: dict[str, Any] = {"lora": LoraConfig, "dpo": DpoConfig}
    paths = {"lora": ("adapter", "export_gguf_path"), "dpo": ("ref_model",)}
    for name, keys in paths.items():
        if name not in values:
            continue
        settings = kinds[name].from_dict(_table(values, name))
        for key in keys:
            place = getattr(settings, key)
            if base is not None and place is not None:
                settings = settings.replace(**{key: base / place})
        made[name] = settings
    return made["lora"], made["dpo"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one update did. Losses are means over the update's target tokens, in nats."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    epoch: float
    accuracy: float
    tokens: int
    tokens_per_second: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the objective has besides, under TRL's names; a run with any has no perplexity."""
    memory_bytes: int = 0
    """Largest resident size of the process so far; 0 where it is not known."""
    gpu_memory_bytes: int | None = None
    """Most that was allocated on the GPU so far; None without one."""

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite when that does not fit."""
        return perplexity(self.loss)

    def as_dict(self) -> dict[str, float | int]:
        """The keys every log of either engine has."""
        values: dict[str, float | int] = {
            "step": self.step,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "perplexity": self.perplexity,
            "epoch": self.epoch,
            "accuracy": self.accuracy,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
        }
        if self.metrics:
            del values["perplexity"]
        return {**values, **self.metrics}

    def measured(self) -> dict[str, int]:
        """What was measured of the machine and not computed: of no meaning to a later run."""
        values = {
            "memory_bytes": self.memory_bytes or None,
            "gpu_memory_bytes": self.gpu_memory_bytes,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation: means over all target tokens of the evaluation data, or over all pairs."""

    step: int
    epoch: float
    loss: float
    accuracy: float
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """As those of an update; in a log their names begin with `eval_`."""

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite when that does not fit."""
        return perplexity(self.loss)

    def as_dict(self) -> dict[str, float | int]:
        """The keys every log of either engine has."""
        values: dict[str, float | int] = {
            "step": self.step,
            "epoch": self.epoch,
            "eval_loss": self.loss,
            "eval_perplexity": self.perplexity,
            "eval_accuracy": self.accuracy,
            "eval_tokens": self.tokens,
        }
        if self.metrics:
            del values["eval_perplexity"]
        return {**values, **{f"eval_{key}": value for key, value in self.metrics.items()}}


@dataclass(kw_only=True)
class RunResult:
    """The report of a run: ABI's `TrainingReport` and where everything is.

    stop_reason: `completed`, `early_stopped` or `interrupted`.
    checkpoint: the last one this run saved; the one it went on from when it saved none.
    checkpoints: all in the folder, by step. A damaged one passed over on resume may be the last.
    """

    engine: str
    stop_reason: str = "completed"
    final_loss: float = math.nan
    final_accuracy: float = math.nan
    final_perplexity: float = math.nan
    best_val_loss: float = math.inf
    best_val_accuracy: float = 0.0
    best_step: int | None = None
    total_steps: int = 0
    total_tokens: int = 0
    total_time_ns: int = 0
    avg_throughput: float = 0.0
    checkpoints_saved: int = 0
    early_stopped: bool = False
    history: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvalRecord] = field(default_factory=list)
    checkpoint: Path | None = None
    checkpoints: list[Path] = field(default_factory=list)

    @property
    def model_folder(self) -> Path | None:
        """The checkpoint with the weights the run ended with: the best after early stopping."""
        if self.early_stopped:
            for folder in self.checkpoints:
                if folder.name == f"checkpoint-{self.best_step}":
                    return folder
        return self.checkpoint

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that JSON cannot hold become None."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in ("history", "evaluations"):
                value = [json_safe(record.as_dict()) for record in value]
            elif item.name == "checkpoints":
                value = [str(path) for path in value]
            elif item.name == "checkpoint":
                value = None if value is None else str(value)
            values[item.name] = value
        return json_safe(values)


def perplexity(loss: float) -> float:
    """exp(loss) without an overflow error."""
    return math.exp(loss) if loss < 700.0 else math.inf if loss == loss else math.nan


def json_safe(values: dict[str, Any]) -> dict[str, Any]:
    """The same mapping with None for NaN and infinity, which JSON has no words for."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
