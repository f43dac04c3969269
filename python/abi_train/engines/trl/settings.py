"""Our settings in TRL's words. What TRL must not do itself is switched off.

Does not know: rows, models, the loop.
"""

from __future__ import annotations

from typing import Any

from ...config import LlmTrainingConfig
from .libraries import PreTrainedTokenizerFast, SFTConfig, tokenizers


def sft_config(config: LlmTrainingConfig, folder: str, *, device: str, precision: str) -> Any:
    """Our settings in TRL's words; what TRL must not do itself is switched off."""
    return SFTConfig(
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
        use_cpu=device == "cpu",
        bf16=precision == "bf16",
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
