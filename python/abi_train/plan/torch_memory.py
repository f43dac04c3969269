"""Memory of a run through TRL, by part, from what PyTorch keeps of a transformers model between the
forward and the backward pass.

A formula, and so near rather than exact: a measurement on the machine at hand goes before it.

Does not know: data, time, this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..runspec import RunSpec
from .model_facts import ModelFacts

CPU_PROCESS_BYTES: Final = 480 * 2**20
"""Python with torch, transformers, TRL and PEFT imported, on Linux."""

GPU_PROCESS_BYTES: Final = 1 * 2**30
"""CUDA's context and its libraries' workspaces."""

LOSS_ROWS: Final = 256
"""Rows of logits that TRL's loss makes at a time."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The largest micro-batch."""

    sequences: int
    time: int

    @property
    def tokens(self) -> int:
        """With padding."""
        return self.sequences * self.time


def parts(
    spec: RunSpec, facts: ModelFacts, shape: Shape, *, precision: str, gpu: bool, trained: int
) -> dict[str, int]:
    """Bytes by part on one device."""
    low = precision == "bf16"
    wide = 8 if precision == "float64" else 4
    frozen = spec.lora is not None
    stays = frozen and low and facts.dtype == "bfloat16"
    matrices = sum(m.size for m in facts.matrices) * facts.layers + facts.vocabulary * facts.hidden
    found = {
        "process": GPU_PROCESS_BYTES if gpu else CPU_PROCESS_BYTES,
        "weights": facts.parameters * (2 if stays else wide),
        "adapter": trained * wide if frozen else 0,
        "gradients": trained * wide,
        "moments": 0 if spec.config.optimizer == "sgd" else 2 * trained * wide,
        "bf16 copies": 2 * matrices if low and not stays else 0,
        "activations": _activations(spec, facts, shape, low=low, wide=wide),
        "logits": 3 * min(LOSS_ROWS, shape.tokens) * facts.vocabulary * 4,
        "reference": _reference(spec, facts, trained, wide),
    }
    if frozen and spec.lora is not None and spec.lora.target_parameters:
        # PEFT adds such an adapter to a copy of the whole parameter, and keeps it for backward.
        names = spec.lora.target_parameters
        whole = [m.size for m in facts.matrices for name in names if name.endswith(m.name)]
        found["expanded experts"] = 2 * sum(whole) * (2 if stays else wide)
    if gpu:
        found["allocator"] = round(0.06 * sum(found.values()))
    else:
        # What the C library's allocator leaves lying between blocks that come and go.
        found["allocator"] = (sum(found.values()) - found["process"] - found["weights"]) // 2
    return found


def _reference(spec: RunSpec, facts: ModelFacts, trained: int, wide: int) -> int:
    if spec.dpo is None or spec.dpo.precompute_ref_log_probs:
        return 0
    if spec.dpo.ref_model is not None or spec.lora is None:
        return facts.parameters * wide
    return trained * wide if spec.lora.adapter is not None else 0


def _activations(spec: RunSpec, facts: ModelFacts, shape: Shape, *, low: bool, wide: int) -> int:
    n, c = shape.tokens, facts.hidden
    q, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    f = facts.number("intermediate_size")
    narrow = 2 if low else wide
    # Both norms keep what they were given, what they made of it, and what goes on from it.
    layer = n * c * (4 * wide + 2 * narrow)
    # Queries, keys and values as attention takes them, its result, and that once more in a row.
    layer += n * narrow * (3 * q + 2 * kv + (2 * q if facts.heads > facts.kv_heads else 0))
    if facts.experts:
        layer += n * facts.experts_used * narrow * (2 * c + 6 * f)
        # Scores with their sinks: transformers' own attention is the one that has them.
        layer += 6 * shape.sequences * facts.heads * shape.time**2 * narrow
    else:
        layer += 4 * n * f * narrow
    ends = n * c * (2 * wide + 2 * narrow)
    if spec.config.recompute_activations:
        return facts.layers * n * c * wide + layer + ends
    return facts.layers * layer + ends
