"""Opening the model of a run: a folder by transformers, anything else by the native library first.

So both engines start from the same weights, whatever the model is given as. Does not know: data,
the loop, checkpoints beyond their being model folders.
"""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any, Final

from ...config import broken
from ...errors import ConfigError, FormatError
from ..native import open_any
from . import gpt_oss
from .libraries import Mxfp4Config, SafetensorError, safe_open, torch, transformers
from .surroundings import one_line


def load_model(
    source: Path,
    *,
    seed: int,
    precision: str,
    device: str,
    scratch: Path,
    attention: str = "auto",
    compared: bool = False,
    frozen: bool = False,
) -> Any:
    """The model at `source` in float64 or float32; bf16 is a matter of the products alone.

    frozen: its weights will not be trained, so in a bf16 run weights that are stored as bfloat16,
    or in MXFP4, are bfloat16. attention, compared: see `attention_kind`. scratch: an empty folder
    that outlives the model. Raises `ConfigError` when transformers does not know the model, or its
    attention cannot be computed as asked for.
    """
    dtype = "float64" if precision == "float64" else "float32"
    if source.is_file():
        with open_any(source, seed=seed, dtype=dtype) as native:
            source = scratch / "start"
            native.save(source)
    try:
        known = transformers.AutoConfig.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=False
        )
        if known.model_type == gpt_oss.MODEL_TYPE:
            gpt_oss.require_sound(source)
        if frozen and precision == "bf16" and (known.dtype == torch.bfloat16 or _blocks(known)):
            dtype = "bfloat16"
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(source),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_require_all` names them
            dtype=getattr(torch, dtype),
            attn_implementation=attention_kind(
                attention, known.model_type, device=device, precision=precision, compared=compared
            ),
            local_files_only=True,
            trust_remote_code=False,
            **_expanded(known),
            **gpt_oss.experts_kind(known.model_type, plain=compared or precision == "float64"),
        )
    except SafetensorError as error:
        file = damaged_file(source)
        raise FormatError(
            f"{file}: damaged, or not whole ({one_line(error)}); copy or download it again"
        ) from error
    except (ConfigError, FormatError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigError(f"{source}: transformers cannot open it: {one_line(error)}") from error
    model, told = opened
    _require_all(source, told)
    model.config.use_cache = False
    if known.model_type == gpt_oss.MODEL_TYPE:
        gpt_oss.put_right(model)
    # transformers gives the pad token's row no gradient. Padding is masked by position here, and
    # where the pad token is also the end token that row has to learn.
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None
    if dtype == "float64":
        _norms_in_double(model)
    return model


def _require_all(source: Path, told: Any) -> None:
    """Raise `FormatError` where the files lack a tensor of the model, or have it in another size.

    transformers would go on with random numbers in its place.
    """
    for name, stored, wanted in sorted(told.get("mismatched_keys") or ()):
        raise FormatError(
            f'{source}: tensor "{name}" is {list(stored)} in the file, and {list(wanted)} as '
            "config.json has it; config.json and the weights do not belong together"
        )
    for name in sorted(told.get("missing_keys") or ()):
        raise FormatError(
            f'{source}: tensor "{name}", which config.json asks for, is in no file of weights; '
            "config.json and the weights do not belong together, or a file is missing"
        )


def damaged_file(folder: Path) -> Path:
    """The first file of weights in a folder that cannot be read; the folder if all can."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return file
    return folder


def _blocks(known: Any) -> bool:
    """Whether experts are stored in MXFP4."""
    quantised = getattr(known, "quantization_config", None)
    return isinstance(quantised, dict) and quantised.get("quant_method") == "mxfp4"


def _expanded(known: Any) -> dict[str, Any]:
    """MXFP4 weights cannot be trained as they are, nor run everywhere: expand them."""
    return {"quantization_config": Mxfp4Config(dequantize=True)} if _blocks(known) else {}


SINKS: Final = (gpt_oss.MODEL_TYPE,)
"""Models whose attention has sinks: logits without a key, which take their share of each row."""


def attention_kind(
    wanted: str, model_type: str, *, device: str, precision: str, compared: bool
) -> str:
    """Which of transformers' attentions to use; a comparison takes the one that is plain torch.

    Sinks are in the eager one and, on a GPU, in flex_attention. Raises `ConfigError` for one that
    would leave them out, or that this device, precision or installation does not have.
    """
    flash = wanted.startswith("flash")
    if model_type in SINKS:
        if wanted == "sdpa" or flash:
            rule = f"it has no place for the attention sinks of {model_type}; use eager, or "
            raise broken("attention", wanted, rule + "flex_attention on a GPU")
        if wanted == "auto":
            return "eager"
    elif wanted == "auto":
        return _usual(device, precision, compared=compared)
    if (flash or wanted == "flex_attention") and device != "cuda":
        raise broken("attention", wanted, "it learns on a GPU only; leave it out, or use eager")
    if flash and precision != "bf16":
        raise broken("attention", wanted, f"it needs precision bf16, not {precision}")
    if flash and importlib.util.find_spec(_FLASH[wanted]) is None:
        raise broken("attention", wanted, f"the package {_FLASH[wanted]} is not installed")
    return wanted


_FLASH: Final = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def _usual(device: str, precision: str, *, compared: bool) -> str:
    if precision == "float64":
        return "sdpa"  # the eager one takes its softmax in float32
    if compared:
        return "eager"
    on_gpu = device == "cuda" and precision == "bf16"
    if on_gpu and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    return "sdpa"


def _norms_in_double(model: Any) -> None:
    """transformers computes RMS norms in float32 whatever the weights are; not here."""

    def forward(self: Any, x: Any) -> Any:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + self.variance_epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = types.MethodType(forward, module)
