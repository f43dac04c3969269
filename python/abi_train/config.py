"""`LlmTrainingConfig`: every knob of a training run, once, for both engines.

Field names and defaults are ABI's; the native trainer has the same struct and a test compares the
two field by field. A file may be YAML, JSON or TOML and may also use TRL's names for the same thing
(`per_device_train_batch_size`, `num_train_epochs`, ...). An unknown key is an error with a
suggestion.

Does not know: models, data files, folders of a run (see `runspec`), or how a step is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from .errors import ConfigError
from .rules import (
    U64_MAX,
    Rule,
    broken,
    check_field,
    choice,
    count,
    flag,
    not_negative,
    positive,
    share,
    text,
    unknown_key,
)

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the older interpreter's own job runs this line
    import tomli as tomllib

__all__ = [
    "LR_SCHEDULES",
    "OPTIMIZERS",
    "PACKINGS",
    "TRL_ALIASES",
    "TRL_SCHEDULE_KEY",
    "LlmTrainingConfig",
    "Rule",
    "YamlLoader",
    "broken",
    "in_file",
    "read_document",
    "unknown_key",
    "write_document",
]

OPTIMIZERS: Final = ("sgd", "adam", "adamw")
PACKINGS: Final = ("none", "bfd", "bfd_split", "wrapped")
LR_SCHEDULES: Final = (
    "constant",
    "cosine",
    "warmup_cosine",
    "step",
    "polynomial",
    "cosine_warm_restarts",
)
MAX_MICRO_BATCH_TOKENS: Final = 1 << 30

TRL_ALIASES: Final[Mapping[str, str]] = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum_steps",
    "max_length": "max_seq_len",
    "max_seq_length": "max_seq_len",
    "optim": "optimizer",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "label_smoothing_factor": "label_smoothing",
    "min_lr": "min_learning_rate",
    "logging_steps": "log_interval",
    "logging_dir": "log_dir",
    "eval_steps": "eval_interval",
    "save_steps": "checkpoint_interval",
    "save_total_limit": "max_checkpoints",
    "output_dir": "checkpoint_path",
    "bf16": "mixed_precision",
    "run_name": "wandb_run_name",
    "early_stopping_threshold": "early_stopping_min_delta",
    "gradient_checkpointing": "recompute_activations",
    "activation_checkpointing": "recompute_activations",
}
"""TRL's key on the left, ours with the same meaning on the right."""

TRL_SCHEDULE_KEY: Final = "lr_scheduler_type"
"""TRL's key for the schedule: taken where it means the same, refused elsewhere."""
_OPTIMIZER_ALIASES: Final = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}
_NOT_OURS: Final = {
    "warmup_ratio": "write the number of updates as warmup_steps",
    "learning_rate_scheduler": "the key is lr_schedule",
    "lr": "the key is learning_rate",
    "packing_strategy": "packing itself is the strategy: none, bfd, bfd_split or wrapped",
}


@dataclass(frozen=True, kw_only=True)
class LlmTrainingConfig:
    """How to train. Immutable; `dataclasses.replace` makes a changed copy, checked again.

    Raises `ConfigError` naming the field, its value and the rule it breaks.

    Learning rate of update s (counted from 0), b = learning_rate, W = warmup_steps,
    D = decay_steps, m = min_learning_rate: `warmup_cosine` rises as b(s+1)/W, then falls as a half
    cosine from b to m between W and D and stays there. ABI dropped to a tenth after the warm-up.
    """

    epochs: int = count(10, "passes over the data", least=1)
    batch_size: int = count(4, "sequences in a micro-batch", least=1)
    max_seq_len: int = count(512, "tokens in a sequence; longer rows keep their start", least=1)
    packing: str = choice(
        "none",
        PACKINGS,
        "`bfd`: rows share a sequence, each with its own positions and attention; `bfd_split`: "
        "longer rows in pieces; `wrapped`: one text, cut",
    )
    learning_rate: float = positive(1e-5, "peak learning rate")
    lr_schedule: str = choice("warmup_cosine", LR_SCHEDULES, "shape of the learning rate")
    warmup_steps: int = count(100, "updates of linear warm-up (warmup_cosine only)")
    decay_steps: int = count(10000, "updates until the schedule ends; 0 = the whole run")
    min_learning_rate: float = not_negative(1e-7, "floor of the learning rate")
    grad_accum_steps: int = count(8, "micro-batches in one update", least=1)
    max_grad_norm: float = not_negative(1.0, "largest gradient norm; 0 = no clipping")
    weight_decay: float = not_negative(
        0.01, "decoupled decay, adamw only; not for norms and biases"
    )
    label_smoothing: float = share(0.0, "share of the target spread over the vocabulary")
    optimizer: str = choice("adamw", OPTIMIZERS, "update rule")
    checkpoint_interval: int = count(1000, "updates between checkpoints; 0 = only at the end")
    checkpoint_path: str | None = text(None, "folder that receives checkpoint-N")
    max_checkpoints: int = count(3, "checkpoints kept, oldest removed first; 0 = all")
    log_interval: int = count(10, "updates between log lines; 0 = none")
    eval_interval: int = count(500, "updates between evaluations; 0 = only at the end")
    mixed_precision: bool = flag(False, "bfloat16 products with float32 sums, weights and moments")
    log_dir: str | None = text(None, "folder for the logs of other programs")
    enable_tensorboard: bool = flag(False, "write TensorBoard event files; needs log_dir")
    enable_wandb: bool = flag(False, "write an offline W&B run; needs log_dir")
    wandb_project: str | None = text(None, "W&B project")
    wandb_run_name: str | None = text(None, "W&B run name")
    wandb_entity: str | None = text(None, "W&B entity")
    export_gguf_path: str | None = text(None, "GGUF file written at the end")
    export_name: str = text("abi-llama", "general.name of the exported file")
    seed: int = count(42, "seed of everything random", largest=U64_MAX)
    shuffle: bool = flag(True, "draw a new order each epoch")
    beta1: float = share(0.9, "decay of the first moment")
    beta2: float = share(0.999, "decay of the second moment")
    eps: float = positive(1e-8, "added to the root of the second moment")
    max_steps: int = count(0, "updates of the whole run; 0 = by epochs", largest=U64_MAX)
    early_stopping: bool = flag(True, "stop when evaluations no longer improve")
    early_stopping_patience: int = count(3, "evaluations without improvement", least=1)
    early_stopping_min_delta: float = not_negative(0.001, "smallest fall that is an improvement")
    early_stopping_monitor_loss: bool = flag(True, "true: watch loss; false: watch perplexity")
    recompute_activations: bool = flag(
        False, "keep only each layer's input, compute the rest again: less memory, same bits"
    )
    threads: int = count(0, "worker threads; 0 = one per CPU", below=257)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "optimizer" and isinstance(value, str):
                value = _OPTIMIZER_ALIASES.get(value, value)
            if item.name == "packing" and isinstance(value, bool):
                value = "bfd" if value else "none"  # TRL's key is a switch
            checked = check_field(item, value)
            object.__setattr__(self, item.name, checked)
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise broken(
                "min_learning_rate",
                self.min_learning_rate,
                f"it must not exceed learning_rate ({self.learning_rate:g})",
            )
        if self.lr_schedule == "warmup_cosine" and 0 < self.decay_steps <= self.warmup_steps:
            raise broken(
                "decay_steps",
                self.decay_steps,
                f"with warmup_cosine it must exceed warmup_steps ({self.warmup_steps}), "
                "or be 0 for the whole run",
            )
        if self.batch_size * self.max_seq_len > MAX_MICRO_BATCH_TOKENS:
            raise broken(
                "batch_size",
                self.batch_size,
                f"times max_seq_len ({self.max_seq_len}) it must be at most "
                f"{MAX_MICRO_BATCH_TOKENS} tokens",
            )
        for name in ("enable_tensorboard", "enable_wandb"):
            if getattr(self, name) and self.log_dir is None:
                raise broken(name, True, "it needs log_dir, which is not set")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LlmTrainingConfig:
        """The configuration these keys describe; TRL's names are understood.

        Raises `ConfigError` for a key that is unknown or given twice under two names.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        taken: dict[str, tuple[str, Any]] = {}
        for key, value in values.items():
            if key == TRL_SCHEDULE_KEY:
                continue
            name = key if key in known else TRL_ALIASES.get(key)
            if name is None:
                if key in _NOT_OURS:
                    raise ConfigError(f"{key!r} is not a key here: {_NOT_OURS[key]}")
                names = known | TRL_ALIASES.keys() | {TRL_SCHEDULE_KEY}
                raise unknown_key(key, names, "the training configuration")
            if name in taken:
                raise ConfigError(
                    f"{name} is given twice, as {taken[name][0]!r} and {key!r}; keep one"
                )
            taken[name] = (key, value)
        plain = {name: value for name, (_, value) in taken.items()}
        if TRL_SCHEDULE_KEY in values:
            plain = _with_trl_schedule(plain, values[TRL_SCHEDULE_KEY])
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name; unset optional fields are None."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> LlmTrainingConfig:
        """The configuration in a `.yaml`, `.yml`, `.json` or `.toml` file."""
        with in_file(path):
            return cls.from_dict(read_document(path))

    def save(self, path: str | Path) -> Path:
        """Write every set field; the name's ending chooses YAML, JSON or TOML. Returns the path."""
        return write_document(path, {k: v for k, v in self.to_dict().items() if v is not None})


def _with_trl_schedule(plain: dict[str, Any], name: Any) -> dict[str, Any]:
    """Settings with TRL's schedule in our words. A near miss would train with other rates than
    the recipe says, so only what means the same is taken; the native reader has the same rule."""
    if "lr_schedule" in plain:
        raise ConfigError(
            f"lr_schedule and {TRL_SCHEDULE_KEY} are the same setting; give one of them"
        )
    if name == "constant":
        return {**plain, "lr_schedule": "constant"}
    if name != "cosine":
        rule = f"it has no equal here; write lr_schedule with one of {', '.join(LR_SCHEDULES)}"
        raise broken(TRL_SCHEDULE_KEY, name, rule)
    if plain.get("warmup_steps", 0) != 0:
        rule = (
            f"with warmup_steps {plain['warmup_steps']} its first update has learning rate 0, ours "
            "do not; write lr_schedule: warmup_cosine, decay_steps: 0, min_learning_rate: 0"
        )
        raise broken(TRL_SCHEDULE_KEY, name, rule)
    # Without warm-up transformers' cosine is half a wave from the peak to 0 over the whole run.
    return {"decay_steps": 0, "min_learning_rate": 0.0, **plain, "lr_schedule": "cosine"}


@contextlib.contextmanager
def in_file(path: str | Path) -> Iterator[None]:
    """A `ConfigError` raised inside names the file."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


class YamlLoader(yaml.SafeLoader):
    """Safe YAML that reads `1e-5` as a number, as YAML 1.2 does and PyYAML does not.

    A key that stands twice is an error, where PyYAML would take the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises `ConfigError` for a repeated key."""
        keys = [(key, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, (key, name) in enumerate(keys):
            if any(name == earlier for _, earlier in keys[:index]):
                line = key.start_mark.line + 1
                raise ConfigError(f"{name!r} is given twice, again in line {line}; keep one")
        return super().construct_mapping(node, deep)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `ConfigError` for a repeated key."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ConfigError(f"{name!r} is given twice; keep one")
        table[name] = value
    return table


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_document(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML, JSON or TOML file. Raises `ConfigError` when it is not one."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".yaml", ".yml", ".json", ".toml"):
        raise ConfigError(f"{path}: the name must end in .yaml, .json or .toml")
    try:
        text = path.read_text(encoding="utf-8")
        if kind == ".toml":
            document: Any = tomllib.loads(text)
        elif kind == ".json":
            document = json.loads(text, object_pairs_hook=_once_each)
        else:
            # It derives from SafeLoader: no tags that build objects.
            document = yaml.load(text, Loader=YamlLoader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid {kind[1:].upper()}: {reason}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{path}: must hold a table of names and values")
    return document


def write_document(path: str | Path, document: Mapping[str, Any]) -> Path:
    """Write a mapping as YAML, JSON or TOML by the ending of the name, through a temporary name."""
    from .checkpoint import write_text_atomic

    path = Path(path)
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        text = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)
    elif kind == ".json":
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    elif kind == ".toml":
        import tomli_w

        text = tomli_w.dumps(document)
    else:
        raise ConfigError(f"{path}: the name must end in .yaml, .json or .toml")
    write_text_atomic(path, text)
    return path
