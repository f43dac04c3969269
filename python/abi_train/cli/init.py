"""`abi-train init`: a recipe to start from, or a tiny model to try things on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Final

import typer
import yaml

from ..checkpoint import write_text_atomic
from ..config import YamlLoader
from ..errors import ConfigError, FileAccessError
from ..recipes.places import shipped_recipe
from .common import from_the_command_line, say

EXAMPLES = """[bold]Examples[/]

abi-train init

abi-train init my-run.yaml --model ./SmolLM2-135M

abi-train init abbey.yaml --recipe abbey-tiny

abi-train init tiny-gpt-oss --tiny gpt-oss
"""

TEMPLATE = """\
# A training recipe. Run it with:   abi-train train {name}
# Compare both engines on it with:  abi-train check {name}
# Relative paths are taken from this file's folder.

{model}
{data}
# eval_data: data/eval.bin
# tokenizer: path       # folder whose tokenizer files go into checkpoints; default: the model's
run_dir: runs/first
engine: native          # native (any CPU) or trl (PyTorch, GPU when there is one)
# commercial: true      # refuse data whose licence does not allow such use, or is not known
# lora:                 # train an adapter and leave the weights alone
#   r: 16
#   lora_alpha: 32
#   target_modules: [q_proj, k_proj, v_proj, o_proj]
# dpo: {{beta: 0.1}}      # learn which of two answers is better; data then holds pairs

training:
  epochs: 3
  batch_size: 4
  grad_accum_steps: 8   # rows in one update = batch_size x grad_accum_steps
  max_seq_len: 512
  # packing: bfd        # short rows share a sequence, as TRL packs them
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
COMMENTS: Final = {
    "model": "a Hugging Face folder, a .gguf, or a config.json for random weights",
    "data": "made by: abi-train data prepare rows.jsonl --tokenizer FOLDER",
}
TINY: Final = ("gpt-oss",)
"""The kinds of model that `--tiny` makes."""
COLUMN: Final = 24
"""Where comments begin."""


def init(
    path: Annotated[
        Path | None,
        typer.Argument(help="The recipe to write, or the folder of --tiny. (default: recipe.yaml)"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the recipe. (default: model)")] = None,
    data: Annotated[
        str | None, typer.Option(help="Token file of the recipe. (default: data/train.bin)")
    ] = None,
    shipped: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Copy one that comes along: abbey-tiny, abbey-gpt-oss-tiny, abbey-gpt-oss-20b "
            "or abbey-gpt-oss-20b-native.",
        ),
    ] = None,
    tiny: Annotated[
        str | None,
        typer.Option(
            "--tiny",
            help="Write no recipe but a tiny random model, into the folder PATH: gpt-oss.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="What --tiny stores experts as: mxfp4, bf16 or f32. (default: mxfp4)"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a starter recipe with every common setting explained, a copy of a packaged one, or a
    tiny model of random weights to try things on."""
    if tiny is None and weights is not None:
        raise typer.BadParameter("--weights is a choice of --tiny")
    if tiny is not None:
        if not (shipped is None and model is None and data is None):
            raise typer.BadParameter("--tiny writes a model, not a recipe; give nothing else")
        _write_tiny(tiny, path, weights or "mxfp4", force=force)
        return
    if shipped is not None and not (model is None and data is None):
        raise typer.BadParameter("--recipe brings a model and data of its own; edit the copy")
    path = path or Path(f"{shipped or 'recipe'}.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: the name of the recipe must end in .yaml")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; choose another name")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; choose another name or add --force")
    if shipped is not None:
        with from_the_command_line():
            text = shipped_recipe(shipped).read_text(encoding="utf-8")
    else:
        text = recipe(
            path,
            model="model" if model is None else model,
            data="data/train.bin" if data is None else data,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be written ({error.strerror or error})") from None
    say(f"wrote {path}; next: abi-train train {shlex.quote(str(path))}")


def _write_tiny(kind: str, folder: Path | None, weights: str, *, force: bool) -> None:
    from ..sample.tiny import WEIGHTS, make_gpt_oss

    if kind not in TINY:
        raise typer.BadParameter(f"--tiny is {', '.join(TINY)}; {kind} is not there")
    if weights not in WEIGHTS:
        raise typer.BadParameter(f"--weights is one of {', '.join(WEIGHTS)}")
    if force:
        raise typer.BadParameter("--tiny never replaces a folder; choose another name")
    folder = folder or Path(f"tiny-{kind}")
    make_gpt_oss(folder, weights=weights)
    say(f"wrote {folder}; random weights, so what it says means nothing")


def recipe(path: Path, *, model: str, data: str) -> str:
    """The text of the recipe at `path`. Raises `ConfigError` for names YAML cannot hold."""
    lines = {"model": _line("model", model), "data": _line("data", data)}
    name = shlex.quote(str(path))
    if not name.isprintable():  # it stands in a comment, which ends with the line
        name = "RECIPE"
    return TEMPLATE.format(name=name, **lines)


def _line(key: str, value: str) -> str:
    """`key: value  # comment`, quoted where YAML would read the value as something else."""
    plain = re.fullmatch(r"[\w.~/+-]+", value) is not None and _read(value) == value
    shown = value if plain else json.dumps(value, ensure_ascii=False)
    if not value or "\0" in value or _read(shown) != value:
        raise ConfigError(f"{key} is {value!r}; a recipe cannot hold such a name, choose another")
    return f"{key}: {shown}".ljust(COLUMN - 1) + f" # {COMMENTS[key]}"


def _read(text: str) -> object:
    try:
        return yaml.load(text, Loader=YamlLoader)
    except yaml.YAMLError:
        return None
