"""The head and its statistics from whole logits, where TRL's own in tiles does not serve.

TRL's works in float32 and multiplies with the head's weight alone, so it serves neither float64 nor
an adapter on the head. Whole logits cost memory (tokens x vocabulary). Does not know: the loop.
"""

from __future__ import annotations

import types
from typing import Any

from ...data.rows import IGNORED
from .libraries import torch


def use_plain_head(model: Any) -> None:
    """Let `model(..., fused_lm_head=True)` answer from whole logits, in their own precision."""
    inner = model.forward

    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            if labels is not None:
                kwargs["labels"] = labels
            return inner(*args, **kwargs)
        kwargs["use_cache"] = False
        outputs = inner(*args, **kwargs)
        return statistics(outputs.logits, labels, aux_loss=getattr(outputs, "aux_loss", None))

    model.forward = types.MethodType(forward, model)


def statistics(logits: Any, labels: Any, *, aux_loss: Any = None) -> Any:
    """Of each position with a target, one earlier than its label: what TRL's head tells of it."""
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits, labels = logits[:, :-1].to(kind), labels[:, 1:]
    kept = labels != IGNORED
    logs = torch.log_softmax(logits, dim=-1)
    chosen = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(~kept, 0.0)
    with torch.no_grad():
        entropy = -(logs.exp() * logs).sum(-1).masked_fill(~kept, 0.0)
        mean = logits.mean(-1).masked_fill(~kept, 0.0)
        hit = (logits.argmax(-1) == labels) & kept
    return types.SimpleNamespace(
        loss=-chosen.sum() / kept.sum().clamp(min=1),
        log_probs=chosen,
        entropy=entropy,
        mean_logits=mean,
        is_top1=hit,
        label_mask=kept,
        aux_loss=aux_loss,
    )
