"""`abi-train init`: a recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import write_text_atomic
from ..errors import ConfigError
from .common import say

EXAMPLES = """[bold]Examples[/]

abi-train init

abi-train init my-run.yaml --model ./SmolLM2-135M
"""

TEMPLATE = """\
# A training recipe. Run it with:   abi-train train {name}
# Compare both engines on it with:  abi-train check {name}
# Relative paths are taken from this file's folder.

model: {model}          # a Hugging Face folder, a .gguf, or a config.json for random weights
data: {data}         # made by: abi-train data prepare rows.jsonl --tokenizer {model}
# eval_data: data/eval.bin
# tokenizer: path       # whose files go into checkpoints; default: the model's folder
run_dir: runs/first
engine: native          # native (any CPU) or trl (PyTorch, GPU when there is one)

training:
  epochs: 3
  batch_size: 4
  grad_accum_steps: 8   # rows in one update = batch_size x grad_accum_steps
  max_seq_len: 512
  learning_rate: 2.0e-5
  lr_schedule: warmup_cosine
  warmup_steps: 20
  decay_steps: 0        # 0 = until the end of the run
  min_learning_rate: 1.0e-6
  weight_decay: 0.01
  max_grad_norm: 1.0
  optimizer: adamw
  seed: 42
  log_interval: 10
  eval_interval: 100    # updates between evaluations, when there is eval_data
  checkpoint_interval: 100
  max_checkpoints: 3
  # export_gguf_path: runs/first/model.gguf
"""


def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option(help="Model of the recipe.")] = "model",
    data: Annotated[str, typer.Option(help="Token file of the recipe.")] = "data/train.bin",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a starter recipe with every common setting explained."""
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: the name of the recipe must end in .yaml")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; choose another name or add --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, TEMPLATE.format(name=path, model=model, data=data))
    say(f"wrote {path}; next: abi-train train {path}")
