"""Writes docs/configuration.md from the definitions of the recipe and the training configuration.

    python tools/make_config_docs.py [docs/configuration.md]     (or: make docs)

A test compares the page with what this file makes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from abi_train.adapters import LoraConfig
from abi_train.config import TRL_ALIASES, LlmTrainingConfig
from abi_train.monitor_config import MonitorConfig
from abi_train.preference import DpoConfig
from abi_train.runspec import ENGINES, METHODS, OBJECTIVES, PRECISIONS, RunSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

HEAD = """\
# Recipes and the training configuration

Made by `make docs` from the definitions; a test compares. A recipe is a YAML, JSON or TOML file
that says what to train on what and how; `abi-train init` writes one to start from. Paths are taken
from the recipe's folder. An unknown key is an error that suggests the nearest known one; a wrong
value is an error that names the key, the value and the rule.

## Recipe

| key | meaning | default |
|---|---|---|
"""

RECIPE = {
    "model": "a Hugging Face folder, a `.gguf`, or a `config.json` for random weights from `seed`",
    "data": "token file (`.bin`) to train on, from `abi-train data prepare`",
    "run_dir": "folder that gets `checkpoint-N/`, `log.jsonl` and `run.json`",
    "eval_data": "token file to evaluate on",
    "tokenizer": "folder whose tokenizer files go into checkpoints; else the model's",
    "engine": "one of " + ", ".join(f"`{word}`" for word in ENGINES),
    "method": "one of " + ", ".join(f"`{word}`" for word in METHODS),
    "objective": "one of " + ", ".join(f"`{word}`" for word in OBJECTIVES),
    "precision": "one of "
    + ", ".join(f"`{word}`" for word in PRECISIONS)
    + "; `auto` is float32 on a CPU and bf16 on a GPU that has it",
    "resume": "a checkpoint folder, or `latest`",
    "attention": "which of transformers' attentions the TRL engine takes: auto, eager, sdpa, "
    "flex_attention, flash_attention_2, flash_attention_3. Those without a place for attention "
    "sinks are refused on gpt-oss",
    "commercial": "true: data and weights that are not for commercial use are refused before the "
    "first update, and so is data whose licence is not known ([data sets](datasets.md))",
    "lora": "the table `lora` below; given without `method`, it means `lora`",
    "dpo": "the table `dpo` below; given without `objective`, it means `dpo`",
    "monitor": "the table `monitor` below ([watching a run](monitoring.md))",
    "training": "the table `training` below",
}

MIDDLE = """
## `training`: `LlmTrainingConfig`

Names and defaults are those of ABI of January 2026; the native trainer has the same struct, and a
test compares the two field by field. TRL's name for the same thing may be written instead. One
update sees `batch_size` × `grad_accum_steps` rows; the loss is averaged over all their tokens.

| key | meaning | default | rule | TRL's name |
|---|---|---|---|---|
"""

LORA = """
## `lora`: `LoraConfig`

For method `lora`. The keys are PEFT's and mean the same; the last three are ours. The native
engine and PEFT begin with the same adapter, because it is drawn once and handed to both. With
`adapter` the sizes are those of that adapter; any that are given besides must agree.

| key | meaning | default | rule |
|---|---|---|---|
"""

DPO = """
## `dpo`: `DpoConfig`

For objective `dpo`. The keys are TRL's and mean the same; `data` then holds pairs, and `batch_size`
counts pairs. The reference is `ref_model`, else a frozen copy of `lora.adapter`, else, with method
`lora`, the model without its adapter, else the model as it was at the start; the run's log says
which (`ref_model`, `starting_adapter`, `adapter_off`, `starting_model`). Not decided by the path
inside a model, as in TRL, so a merged model is compared with itself and never with its base.

| key | meaning | default | rule |
|---|---|---|---|
"""

MONITOR = """
## `monitor`: `MonitorConfig`

Who watches the run besides its log, and when there is a warning ([watching a run](monitoring.md)).
Nothing of it changes what is computed.

| key | meaning | default | rule |
|---|---|---|---|
"""

TAIL = """
## Learning rate

Of update s, counted from 0, with b = `learning_rate`, m = `min_learning_rate`, W = `warmup_steps`
and D = `decay_steps` (0 stands for all updates of the run). Both engines call the same function.

| `lr_schedule` | learning rate |
|---|---|
| `constant` | b |
| `cosine` | m + (b − m) · ½(1 + cos(π · min(1, s/D))) |
| `warmup_cosine` | b (s + 1)/W, from W on m + (b − m) · ½(1 + cos(π · min(1, (s − W)/(D − W)))) |
| `step` | max(m, b · 0.1^⌊s/D⌋) |
| `polynomial` | m + (b − m)(1 − min(1, s/D))^0.9 |
| `cosine_warm_restarts` | m + (b − m) · ½(1 + cos(π t/T)), t in a cycle of T = D, 2D, 4D, … |

TRL's key `lr_scheduler_type` is taken where it means the same: `constant`, and `cosine` without
warm-up (then `decay_steps` and `min_learning_rate` are 0 unless given). Its other schedules, and a
warm-up whose first update has rate 0, have no equal here and are refused with what to write
instead.
"""


def shown(value: Any) -> str:
    """A default as one writes it in YAML."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "" if value is None else f"`{value}`"


def recipe_rows() -> list[str]:
    """One line a key of a recipe."""
    rows = []
    for item in dataclasses.fields(RunSpec):
        name = "training" if item.name == "config" else item.name
        needed = item.default is dataclasses.MISSING
        default = (
            ""
            if name in ("training", "lora", "dpo", "monitor")
            else "required"
            if needed
            else shown(item.default)
        )
        rows.append(f"| `{name}` | {RECIPE[name]} | {default} |")
    return rows


def training_rows() -> list[str]:
    """One line a field of the training configuration."""
    trl: dict[str, list[str]] = {}
    for theirs, ours in TRL_ALIASES.items():
        trl.setdefault(ours, []).append(f"`{theirs}`")
    rows = []
    for item in dataclasses.fields(LlmTrainingConfig):
        rule = item.metadata["rule"]
        words = rule.words.removeprefix("it ")
        names = ", ".join(trl.get(item.name, []))
        rows.append(f"| `{item.name}` | {rule.note} | {shown(item.default)} | {words} | {names} |")
    return rows


def table_rows(kind: Any) -> list[str]:
    """One line a field of a table beside the training configuration."""
    rows = []
    for item in dataclasses.fields(kind):
        rule = item.metadata["rule"]
        default: Any = item.default
        if default is dataclasses.MISSING:
            default = None
        if isinstance(default, tuple):
            default = ", ".join(default) or None
        rows.append(
            f"| `{item.name}` | {rule.note} | {shown(default)} | {rule.words.removeprefix('it ')} |"
        )
    return rows


def page() -> str:
    """The whole document."""
    parts = (
        (HEAD, recipe_rows()),
        (MIDDLE, training_rows()),
        (LORA, table_rows(LoraConfig)),
        (DPO, table_rows(DpoConfig)),
        (MONITOR, table_rows(MonitorConfig)),
    )
    return "".join(head + "\n".join(rows) + "\n" for head, rows in parts) + TAIL


def main() -> None:
    """Write the page."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
