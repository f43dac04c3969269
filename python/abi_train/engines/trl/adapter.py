"""Adapters through PEFT: one put beside a model, from a folder, and written as PEFT writes it.

Names are those of PEFT's files everywhere outside this module: the adapter's own name (`default`)
is not in them, and both engines agree on them. Does not know: the loop, checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ...adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraConfig, is_adapter, pattern_value
from ...config import broken
from ...errors import CheckpointError, ConfigError
from .libraries import adapters, load_file, save_file, torch
from .surroundings import one_line

NAME: Final = "default"
REFERENCE: Final = "ref"
"""TRL's name for the frozen copy that a DPO run is compared with."""


def peft_config(lora: LoraConfig, *, base: str | None = None) -> Any:
    """Our settings as PEFT's object."""
    alpha = int(lora.lora_alpha) if float(lora.lora_alpha).is_integer() else lora.lora_alpha
    return adapters.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=lora.r,
        lora_alpha=alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules) or None,
        target_parameters=list(lora.target_parameters) or None,
        use_rslora=lora.use_rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        bias="none",
    )


def with_adapter(model: Any, lora: LoraConfig, *, base: str | None = None) -> Any:
    """`model` with a fresh adapter beside it: A as PEFT draws it from torch's generator, B zero.

    Raises `ConfigError` when the model has nothing of a target's name, or a rank above what its
    matrix can hold.
    """
    _check_targets(model, lora)
    _check_ranks(model, lora)
    try:
        made = adapters.get_peft_model(model, peft_config(lora, base=base))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"lora: PEFT refuses these settings: {one_line(error)}") from error
    return made


def _check_targets(model: Any, lora: LoraConfig) -> None:
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    paths = [name for name, _ in model.named_parameters()]
    for parameter in lora.target_parameters:
        if not any(path == parameter or path.endswith("." + parameter) for path in paths):
            rule = f"this model has no parameter {parameter}; leave it out"
            raise broken("lora.target_parameters", ", ".join(lora.target_parameters), rule)
    for target in lora.target_modules:
        if target.rpartition(".")[2] not in ends:
            rule = f"this model has no {target}; leave it out"
            if any(name.endswith(".experts") for name, _ in model.named_modules()):
                rule = (
                    f"this model has no {target}: its experts are fused weights, named in "
                    "lora.target_parameters as mlp.experts.gate_up_proj and mlp.experts.down_proj"
                )
            raise broken("lora.target_modules", ", ".join(lora.target_modules), rule)


def _check_ranks(model: Any, lora: LoraConfig) -> None:
    """Before PEFT takes memory for them."""
    for name, module in model.named_modules():
        wanted = any(name == one or name.endswith("." + one) for one in lora.target_modules)
        shape = getattr(getattr(module, "weight", None), "shape", ())
        if not wanted or len(shape) != 2:
            continue
        rank = pattern_value(lora.rank_pattern, name, lora.r)
        if rank > min(shape):
            rule = f"the narrower side of {name} is {min(shape)}; a rank above that adds nothing"
            raise broken("lora.r", rank, rule)


def trained(model: Any) -> list[tuple[str, Any]]:
    """What a run trains, by its name in files: all parameters, or those of the adapter."""
    found = []
    for name, parameter in model.named_parameters():
        if f".{REFERENCE}." in name or name.endswith(f".{REFERENCE}"):
            continue
        if parameter.requires_grad:
            found.append((file_key(name), parameter))
    return found


def file_key(name: str) -> str:
    """The name of a parameter in PEFT's files; other names stay as they are."""
    parts = [part for part in name.split(".") if part != NAME]
    return ".".join(parts) if "lora_" in name else name


def put(model: Any, folder: Path, *, name: str = NAME) -> None:
    """Give the adapter `name` of `model` the values in a folder.

    Raises `CheckpointError` naming the first tensor that is missing, left over or of another shape.
    """
    file = folder / ADAPTER_WEIGHTS
    found = _read(file)
    wanted = {
        file_key(full.replace(f".{name}", f".{NAME}")): parameter
        for full, parameter in model.named_parameters()
        if "lora_" in full and (f".{name}." in full or full.endswith(f".{name}"))
    }
    for key, parameter in wanted.items():
        if key not in found:
            raise CheckpointError(f'{file}: tensor "{key}" is missing. {_pair_words(key)}')
        if found[key].shape != parameter.shape:
            shapes = f"{tuple(found[key].shape)}, this model needs {tuple(parameter.shape)}"
            raise CheckpointError(
                f'{file}: tensor "{key}" has shape {shapes}. The adapter was made for another '
                "base model, or its adapter_config.json is another one's."
            )
        if not found[key].is_floating_point():
            raise CheckpointError(
                f'{file}: tensor "{key}" has type {found[key].dtype}; adapters must be floats.'
            )
        if not bool(torch.isfinite(found[key]).all()):
            raise CheckpointError(f'{file}: tensor "{key}" holds a NaN or an infinity.')
    for key in found:
        if key not in wanted:
            raise CheckpointError(
                f'{file}: tensor "{key}" belongs to nothing in this model. The adapter was made '
                "for another base model, or its adapter_config.json is another one's."
            )
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(found[key].to(device=parameter.device, dtype=parameter.dtype))


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: not an adapter ({ADAPTER_WEIGHTS} is missing).")
    try:
        tensors: dict[str, Any] = load_file(file)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({one_line(error)}).") from error
    return tensors


def _pair_words(key: str) -> str:
    other = key.replace("lora_A", "lora_B") if "lora_A" in key else key.replace("lora_B", "lora_A")
    return f"Every module of target_modules needs it and {other.rpartition('.model.')[2]}."


def add_reference(model: Any, folder: Path) -> None:
    """A frozen second adapter with the values in `folder`, for DPO to compare with."""
    if REFERENCE not in model.peft_config:
        model.add_adapter(REFERENCE, model.peft_config[NAME])
    put(model, folder, name=REFERENCE)
    model.set_adapter(NAME)
    for name, parameter in model.named_parameters():
        if f".{REFERENCE}." in name or name.endswith(f".{REFERENCE}"):
            parameter.requires_grad_(False)


def forget_reference(model: Any) -> None:
    """Without the second adapter TRL compares with the model as it is without any."""
    if REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
        model.set_adapter(NAME)


def write(folder: Path, tensors: dict[str, Any], model: Any) -> None:
    """Write an adapter's two files."""
    import copy

    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(model.peft_config[NAME])
    config.inference_mode = True
    config.save_pretrained(folder)
    assert (folder / ADAPTER_CONFIG).is_file()


def require_adapter(checkpoint: Path, lora: LoraConfig | None) -> None:
    """Raise `CheckpointError` when a checkpoint is not of the run's method."""
    if lora is not None and not is_adapter(checkpoint):
        raise CheckpointError(
            f"{checkpoint}: holds whole weights, not an adapter. Resume with method full, or name "
            "it as model and start a new adapter."
        )
    if lora is None and is_adapter(checkpoint):
        raise CheckpointError(
            f"{checkpoint}: holds an adapter, not whole weights. Resume with method lora."
        )
