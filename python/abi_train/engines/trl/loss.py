"""The loss from whole logits: sums over the targets of a batch.

Serves where TRL's own loss does not: evaluation, float64 and label smoothing. Whole logits cost
memory (tokens x vocabulary), so other training leaves the loss to TRL. Does not know: the loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...data.rows import IGNORED
from .libraries import torch


class TokenSums(NamedTuple):
    """Sums over targets: negative log-likelihood, its mean over the vocabulary, hits, count.

    balance: the routers' loss of the batch, before its coefficient; None if not asked for.
    """

    nll: Any
    smooth: Any
    hits: Any
    count: Any
    balance: Any = None


def token_sums(model: Any, inputs: Any, *, balanced: bool = False) -> TokenSums:
    """The sums of a batch; a label of -100 is not a target. balanced: with the routers' loss."""
    given = {key: value for key, value in inputs.items() if key not in ("labels", "use_cache")}
    if balanced:
        given["output_router_logits"] = True
    told = model(**given, use_cache=False)
    logits = told.logits
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    targets = inputs["labels"][:, 1:].reshape(-1)
    kept = targets != IGNORED
    chosen = logits[:, :-1].reshape(-1, logits.shape[-1])[kept].to(kind)
    targets = targets[kept]
    logs = torch.log_softmax(chosen, dim=-1)
    nll = -logs.gather(1, targets[:, None]).sum()
    hits = (chosen.argmax(dim=-1) == targets).sum()
    return TokenSums(
        nll, -logs.mean(dim=-1).sum(), hits, kept.sum(), getattr(told, "aux_loss", None)
    )
