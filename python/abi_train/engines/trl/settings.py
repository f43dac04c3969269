"""Our settings in TRL's words. What TRL must not do itself is switched off.

Does not know: rows, models, the loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .libraries import DPOConfig, PreTrainedTokenizerFast, SFTConfig, tokenizers

if TYPE_CHECKING:
    from .session import Session


def sft_config(session: Session, folder: str, balance: float) -> Any:
    """The settings of a run on texts. balance: how much of routers' loss is added."""
    return SFTConfig(
        **_common(session, folder),
        max_length=None,
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        router_aux_loss_coef=balance,
    )


def dpo_config(session: Session, folder: str, balance: float) -> Any:
    """The settings of a run on pairs, with balance as above.

    The reference is ours to give, so nothing is precomputed.
    """
    dpo = session.dpo
    assert dpo is not None
    return DPOConfig(
        **_common(session, folder),
        max_length=None,
        beta=dpo.beta,
        loss_type=list(dpo.loss_type),
        loss_weights=None if dpo.loss_weights is None else list(dpo.loss_weights),
        label_smoothing=dpo.label_smoothing,
        precompute_ref_log_probs=False,
        router_aux_loss_coef=balance,
    )


def _common(session: Session, folder: str) -> dict[str, Any]:
    config = session.config
    return {
        "output_dir": folder,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.grad_accum_steps,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "seed": config.seed % 2**32,
        "use_cpu": session.device == "cpu",
        "bf16": session.precision == "bf16",
        "fp16": False,
        "tf32": None,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **_activation_checkpointing(config.recompute_activations),
    }


@contextlib.contextmanager
def hidden_head(model: Any, hide: bool) -> Iterator[None]:
    """Keep TRL from refusing an adapter on the head while its trainer is made: our loss uses it."""
    if not hide:
        yield
        return
    model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_output_embeddings


def _activation_checkpointing(wanted: bool) -> dict[str, bool]:
    fields = getattr(SFTConfig, "__dataclass_fields__", {})
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if name in fields:
            return {name: wanted}
    return {}


def placeholder_tokenizer() -> Any:
    """TRL wants a tokenizer object; rows come as ids, so an empty one will do."""

    words = tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", eos_token="<pad>"
    )
