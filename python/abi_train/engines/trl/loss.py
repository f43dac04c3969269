"""The loss from whole logits: sums over the targets of a batch.

Serves where TRL's own loss does not: evaluation, float64 and label smoothing. Whole logits cost
memory (tokens x vocabulary), so other training leaves the loss to TRL. Does not know: the loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...data.rows import IGNORED
from .libraries import torch


class TokenSums(NamedTuple):
    """Sums over targets: negative log-likelihood, its mean over the vocabulary, hits, count."""

    nll: Any
    smooth: Any
    hits: Any
    count: Any


def token_sums(model: Any, inputs: Any) -> TokenSums:
    """The sums of a batch; a label of -100 is not a target."""
    given = {key: value for key, value in inputs.items() if key not in ("labels", "use_cache")}
    logits = model(**given, use_cache=False).logits
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    targets = inputs["labels"][:, 1:].reshape(-1)
    kept = targets != IGNORED
    chosen = logits[:, :-1].reshape(-1, logits.shape[-1])[kept].to(kind)
    targets = targets[kept]
    logs = torch.log_softmax(chosen, dim=-1)
    nll = -logs.gather(1, targets[:, None]).sum()
    hits = (chosen.argmax(dim=-1) == targets).sum()
    return TokenSums(nll, -logs.mean(dim=-1).sum(), hits, kept.sum())
