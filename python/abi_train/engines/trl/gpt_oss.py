"""What transformers' gpt-oss needs put right before it is trained.

Does not know: runs, data, adapters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ...errors import FormatError, UnsupportedError
from ...model import Model
from .libraries import causal_mask, torch, windowed_mask

MODEL_TYPE: Final = "gpt_oss"


def require_sound(folder: Path) -> None:
    """Raise `ConfigError` or `FormatError` naming what is wrong with a folder: more experts a token
    than there are, a tensor that is missing, a scale that is no number. transformers would go on
    without a word, or fail far from the cause."""
    try:
        with Model.load(folder, dtype="stored"):
            pass
    except UnsupportedError:
        return
    except FormatError as error:
        if "not supported natively" not in str(error):
            raise


def put_right(model: Any) -> None:
    """Change a freshly opened gpt-oss in place: its rows, when packed, and what it is saved as."""
    # It remembers that its experts came from blocks, and would save the numbers under the blocks'
    # names, where nothing reads them.
    model._weight_conversions = []
    model.model.register_forward_pre_hook(_each_row_by_itself, with_kwargs=True)


def experts_kind(model_type: str, *, plain: bool) -> dict[str, str]:
    """How experts are multiplied: transformers chooses one product for all of them where torch has
    it, which knows no float64; plain: one expert after the other."""
    return {"experts_implementation": "eager"} if plain and model_type == MODEL_TYPE else {}


def balance(model: Any) -> float:
    """How much of the routers' loss is added: the coefficient of the model's configuration where
    that also asks for their logits (`output_router_logits`), as in transformers, else 0.

    Published models have a coefficient of 0.9 and do not ask.
    """
    asked = getattr(model.config, "output_router_logits", False)
    return float(getattr(model.config, "router_aux_loss_coef", 0.0)) if asked else 0.0


def _each_row_by_itself(
    module: Any, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Rows packed into one sequence, known by positions that begin anew, must not see each other.

    Other models of transformers make such a mask of the positions; this one leaves them out.
    """
    positions, ids = given.get("position_ids"), given.get("input_ids")
    if positions is None or ids is None or given.get("attention_mask") is not None:
        return None
    if given.get("past_key_values") is not None:
        return None
    weight = module.embed_tokens.weight
    about = {
        "config": module.config,
        "inputs_embeds": torch.empty(*ids.shape, 1, dtype=weight.dtype, device=ids.device),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": positions,
    }
    masks = {"full_attention": causal_mask(**about), "sliding_attention": windowed_mask(**about)}
    return args, {**given, "attention_mask": masks}
