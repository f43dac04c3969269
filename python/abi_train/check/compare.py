"""The comparison of two runs of one spec: pure arithmetic over what the engines reported.

A figure is within tolerance or it is not; the first one that is not, in the order in which training
computes them, is named together with what usually causes it. Does not know: engines, files,
terminals.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..runspec import StepRecord

NOISE_SHARE: Final = 1e-6
"""A gradient tensor smaller than this share of the whole gradient is rounding noise by itself; its
difference is then measured against that share of the whole."""


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Largest differences that count as agreement. Learning rates must be equal to the bit."""

    loss: float = 2e-6
    """Absolute, in nats."""
    grad_norm: float = 2e-6
    """Relative."""
    weights: float = 2e-6
    """Absolute, the largest element."""
    gradients: float = 1e-5
    """Relative L2, each tensor at update one."""
    metrics: float = 1e-6
    """What a preference run tells besides, see `metric_difference`."""


@dataclass(frozen=True, kw_only=True)
class StepDifference:
    """One update on both engines."""

    step: int
    loss: tuple[float, float]
    grad_norm: tuple[float, float]
    learning_rate: tuple[float, float]
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def metrics_difference(self) -> float:
        """The largest of any metric."""
        found = (metric_difference(name, *pair) for name, pair in self.metrics.items())
        return max((_rank(value) for value in found), default=0.0)

    @property
    def loss_difference(self) -> float:
        """Absolute, in nats."""
        return _distance(*self.loss)

    @property
    def grad_norm_difference(self) -> float:
        """Relative to the second engine."""
        return _distance(*self.grad_norm) / max(abs(self.grad_norm[1]), 1e-30)


def metric_difference(name: str, left: float, right: float) -> float:
    """Absolute for rewards and shares; relative to its size, if that is above 1, for the rest."""
    size = 1.0 if name.startswith("rewards/") else max(1.0, abs(right))
    return _distance(left, right) / size


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """One tensor on both engines; the list it stands in decides the measure."""

    name: str
    shape: tuple[int, ...]
    difference: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first figure out of tolerance."""

    kind: str
    """`loss`, `metric`, `grad_norm`, `learning_rate`, `gradient`, `weight` or `shape`."""
    where: str
    difference: float
    tolerance: float
    cause: str

    def sentence(self) -> str:
        """One sentence for a person."""
        return (
            f"{self.where}: difference {self.difference:.2e}, allowed {self.tolerance:.0e}. "
            f"Usual cause: {self.cause}."
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything two runs of one spec showed. `ok` is True when nothing left its tolerance."""

    engines: tuple[str, str]
    precision: str
    tolerances: Tolerances
    steps: Sequence[StepDifference]
    gradients: Sequence[TensorDifference]
    weights: Sequence[TensorDifference]
    fault: Fault | None
    spec: Mapping[str, Any] = field(default_factory=dict)
    seconds: tuple[float, float] = (math.nan, math.nan)
    in_float64: Comparison | None = None
    """The same run of both in float64, made when only rounding can explain the fault."""

    @property
    def ok(self) -> bool:
        """Within tolerance, or out of it by rounding alone as the float64 runs show."""
        return self.fault is None or self.rounding_only

    @property
    def rounding_only(self) -> bool:
        """Out of tolerance in float32, but the same runs in float64 agree."""
        return self.fault is not None and self.in_float64 is not None and self.in_float64.ok

    def worst(self) -> dict[str, float]:
        """The largest difference of each kind."""
        return {
            "loss": max((s.loss_difference for s in self.steps), default=0.0),
            "grad_norm": max((s.grad_norm_difference for s in self.steps), default=0.0),
            "learning_rate": max((_distance(*s.learning_rate) for s in self.steps), default=0.0),
            "gradients": max((t.difference for t in self.gradients), default=0.0),
            "weights": max((t.difference for t in self.weights), default=0.0),
            **(
                {"metrics": max(s.metrics_difference for s in self.steps)}
                if self.has_metrics
                else {}
            ),
        }

    @property
    def has_metrics(self) -> bool:
        """True for runs that tell more than their loss."""
        return any(step.metrics for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ok": self.ok,
            "rounding_only": self.rounding_only,
            "engines": list(self.engines),
            "precision": self.precision,
            "tolerances": dataclasses.asdict(self.tolerances),
            "worst": _finite(self.worst()),
            "fault": _finite(dataclasses.asdict(self.fault)) if self.fault else None,
            "seconds": [None if math.isnan(value) else value for value in self.seconds],
            "spec": dict(self.spec),
            "steps": [
                _finite(
                    {
                        "step": s.step,
                        "loss": list(s.loss),
                        "grad_norm": list(s.grad_norm),
                        "learning_rate": list(s.learning_rate),
                        "loss_difference": s.loss_difference,
                        "grad_norm_difference": s.grad_norm_difference,
                        **(
                            {"metrics": {k: list(v) for k, v in s.metrics.items()}}
                            if s.metrics
                            else {}
                        ),
                    }
                )
                for s in self.steps
            ],
            "gradients": [_finite(dataclasses.asdict(tensor)) for tensor in self.gradients],
            "weights": [_finite(dataclasses.asdict(tensor)) for tensor in self.weights],
            "float64": self.in_float64.to_dict() if self.in_float64 else None,
        }


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one engine showed."""

    engine: str
    history: Sequence[StepRecord]
    gradients: Mapping[str, npt.NDArray[Any]]
    weights: Mapping[str, npt.NDArray[Any]]
    seconds: float = math.nan


def compare(
    left: Side,
    right: Side,
    *,
    precision: str = "float32",
    tolerances: Tolerances | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compare two runs; `right` is the reference of relative figures."""
    limits = tolerances or Tolerances()
    steps = [
        StepDifference(
            step=b.step,
            loss=(a.loss, b.loss),
            grad_norm=(a.grad_norm, b.grad_norm),
            learning_rate=(a.learning_rate, b.learning_rate),
            metrics=_metrics(a.metrics, b.metrics, limits.metrics),
        )
        for a, b in zip(left.history, right.history, strict=False)
    ]
    gradients = _tensors(left.gradients, right.gradients, _relative_to_whole(right.gradients))
    weights = _tensors(left.weights, right.weights, _largest)
    fault = (
        _counts_fault(left, right)
        or _first_fault(steps, gradients, limits)
        or _weight_fault(weights, limits)
    )
    return Comparison(
        engines=(left.engine, right.engine),
        precision=precision,
        tolerances=limits,
        steps=steps,
        gradients=gradients,
        weights=weights,
        fault=fault,
        spec=spec or {},
        seconds=(left.seconds, right.seconds),
    )


def _metrics(
    left: Mapping[str, float], right: Mapping[str, float], noise: float
) -> dict[str, tuple[float, float]]:
    """Each metric on both engines.

    Before the first update model and reference are the same; if rewards are then not 0 but rounding
    noise, which answer has the larger one means nothing, and the share of right pairs is left out.
    """
    pairs = {name: (left.get(name, math.nan), value) for name, value in right.items()}
    rewards = [pairs.get(f"rewards/{name}", (math.inf,)) for name in ("chosen", "rejected")]
    if all(abs(value) <= noise for pair in rewards for value in pair):
        pairs.pop("rewards/accuracies", None)
    return pairs


def _counts_fault(left: Side, right: Side) -> Fault | None:
    if len(left.history) != len(right.history):
        return Fault(
            kind="shape",
            where=f"{left.engine} made {len(left.history)} updates, {right.engine} "
            f"{len(right.history)}",
            difference=float(abs(len(left.history) - len(right.history))),
            tolerance=0.0,
            cause="how batches, the last short group or epochs are counted",
        )
    for what, a, b in (
        ("gradients", left.gradients, right.gradients),
        ("weights", left.weights, right.weights),
    ):
        odd = sorted(set(a) ^ set(b))
        odd += sorted(name for name in set(a) & set(b) if a[name].shape != b[name].shape)
        if odd:
            return Fault(
                kind="shape",
                where=f"{what}: {odd[0]} is not the same tensor on both engines",
                difference=float(len(odd)),
                tolerance=0.0,
                cause="the table of tensor names and shapes",
            )
    return None


def _first_fault(
    steps: Sequence[StepDifference], gradients: Sequence[TensorDifference], limits: Tolerances
) -> Fault | None:
    for index, step in enumerate(steps):
        first = index == 0
        if not step.loss_difference <= limits.loss:
            return Fault(
                kind="loss",
                where=f"loss of update {step.step}",
                difference=step.loss_difference,
                tolerance=limits.loss,
                cause="the data (order, mask, truncation) or the forward pass"
                if first
                else "the optimizer or the clipping of the update before"
                if index == 1
                else "an error that grows from update to update: rounding, or a moment of the "
                "optimizer",
            )
        if not step.metrics_difference <= limits.metrics:
            name, pair = next(
                (name, pair)
                for name, pair in step.metrics.items()
                if not metric_difference(name, *pair) <= limits.metrics
            )
            return Fault(
                kind="metric",
                where=f"{name} of update {step.step}",
                difference=metric_difference(name, *pair),
                tolerance=limits.metrics,
                cause="the reference, or how an answer's log probabilities are added"
                if first
                else "rounding in long answers, whose log probabilities are sums of many terms",
            )
        if first:
            worst = max(gradients, key=lambda tensor: _rank(tensor.difference), default=None)
            if worst is not None and not worst.difference <= limits.gradients:
                return Fault(
                    kind="gradient",
                    where=f"gradient of {worst.name} at update one",
                    difference=worst.difference,
                    tolerance=limits.gradients,
                    cause=_cause_of_gradient(worst.name),
                )
        if not step.grad_norm_difference <= limits.grad_norm:
            return Fault(
                kind="grad_norm",
                where=f"gradient norm of update {step.step}",
                difference=step.grad_norm_difference,
                tolerance=limits.grad_norm,
                cause="the backward pass" if first else "the weights after the update before",
            )
        if step.learning_rate[0] != step.learning_rate[1]:
            return Fault(
                kind="learning_rate",
                where=f"learning rate of update {step.step}",
                difference=_distance(*step.learning_rate),
                tolerance=0.0,
                cause="the schedule",
            )
    return None


def _weight_fault(weights: Sequence[TensorDifference], limits: Tolerances) -> Fault | None:
    worst = max(weights, key=lambda tensor: _rank(tensor.difference), default=None)
    if worst is None or worst.difference <= limits.weights:
        return None
    return Fault(
        kind="weight",
        where=f"weight {worst.name} after the last update",
        difference=worst.difference,
        tolerance=limits.weights,
        cause="the optimizer (weight decay groups, epsilon, bias correction), or rounding: AdamW "
        "divides a tiny gradient by its own size, so noise in it becomes a step of full length",
    )


def _cause_of_gradient(name: str) -> str:
    for part, cause in (
        ("embed_tokens", "the backward pass of the embedding, or of the head when they are tied"),
        ("lm_head", "the backward pass of the loss or the head"),
        ("q_norm", "the backward pass of the query norm"),
        ("k_norm", "the backward pass of the key norm"),
        ("norm", "the backward pass of RMS norm or of a residual connection"),
        ("q_proj", "the backward pass of attention or of the rotary embedding"),
        ("k_proj", "the backward pass of attention or of the rotary embedding"),
        ("v_proj", "the backward pass of attention (values)"),
        ("o_proj", "the backward pass of the attention output"),
        ("mlp", "the backward pass of SwiGLU"),
    ):
        if part in name:
            return cause
    return "the backward pass"


def _tensors(
    left: Mapping[str, npt.NDArray[Any]], right: Mapping[str, npt.NDArray[Any]], measure: Any
) -> list[TensorDifference]:
    rows = []
    for name, reference in right.items():
        if name not in left or left[name].shape != reference.shape:
            continue
        a, b = left[name].astype(np.float64), reference.astype(np.float64)
        difference, note = measure(a, b)
        rows.append(
            TensorDifference(
                name=name, shape=tuple(reference.shape), difference=difference, note=note
            )
        )
    return rows


def _relative_to_whole(reference: Mapping[str, npt.NDArray[Any]]) -> Any:
    squares = [float(np.sum(np.square(t.astype(np.float64)))) for t in reference.values()]
    floor = NOISE_SHARE * math.sqrt(math.fsum(squares))

    def measure(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[float, str]:
        size = float(np.linalg.norm(b))
        note = "" if size >= floor else "noise: measured against the whole gradient"
        return float(np.linalg.norm(a - b)) / max(size, floor, 1e-300), note

    return measure


def _largest(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[float, str]:
    if a.size == 0:
        return 0.0, ""
    return float(np.max(np.abs(a - b))), ""


def _distance(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b)


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
