"""The comparison on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .compare import Comparison, TensorDifference
from .report import verdict


def print_comparison(comparison: Comparison, console: Console) -> None:
    """A table of updates (at most 24 of them), the worst tensors, and the verdict."""
    console.print(_steps(comparison))
    console.print(_summary(comparison))
    if comparison.in_float64 is not None:
        console.print(_summary(comparison.in_float64))
    headline, sentence = verdict(comparison)
    style = "bold green" if comparison.ok else "bold red"
    console.print(f"[{style}]{headline}[/]")
    console.print(sentence, highlight=False)


def _steps(comparison: Comparison) -> Table:
    left, right = comparison.engines
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("update", f"loss {left}", f"loss {right}", "Δ loss", "grad norm", "Δ rel", "lr"):
        table.add_column(title, justify="right")
    limits = comparison.tolerances
    stride = max(1, -(-len(comparison.steps) // 24))
    last = len(comparison.steps) - 1
    for at, step in enumerate(comparison.steps):
        broken = not (
            step.loss_difference <= limits.loss
            and step.metrics_difference <= limits.metrics
            and step.grad_norm_difference <= limits.grad_norm
            and step.learning_rate[0] == step.learning_rate[1]
        )
        if at % stride and at != last and not broken:
            continue
        same = "equal" if step.learning_rate[0] == step.learning_rate[1] else "DIFFERS"
        table.add_row(
            str(step.step),
            f"{step.loss[0]:.6f}",
            f"{step.loss[1]:.6f}",
            _mark(step.loss_difference, limits.loss),
            f"{step.grad_norm[1]:.4f}",
            _mark(step.grad_norm_difference, limits.grad_norm),
            f"{step.learning_rate[1]:.3e} {same}",
        )
    return table


def _summary(comparison: Comparison) -> Table:
    worst, limits = comparison.worst(), comparison.tolerances
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(comparison.precision)
    for title in ("largest difference", "allowed"):
        table.add_column(title, justify="right")
    table.add_column("where")
    rows = [
        ("loss", worst["loss"], limits.loss, ""),
        ("gradient norm", worst["grad_norm"], limits.grad_norm, ""),
        ("learning rate", worst["learning_rate"], 0.0, ""),
        ("gradients, update one", worst["gradients"], limits.gradients, _at(comparison.gradients)),
        ("weights at the end", worst["weights"], limits.weights, _at(comparison.weights)),
    ]
    if comparison.has_metrics:
        rows.insert(1, ("rewards, log probs", worst["metrics"], limits.metrics, ""))
    for title, value, limit, where in rows:
        table.add_row(title, _mark(value, limit), f"{limit:.0e}" if limit else "0", where)
    return table


def _at(tensors: object) -> str:
    rows = list(tensors) if isinstance(tensors, (list, tuple)) else []
    worst: TensorDifference | None = max(rows, key=lambda row: row.difference, default=None)
    return worst.name if worst is not None else ""


def _mark(value: float, limit: float) -> str:
    shown = "0" if value == 0 else f"{value:.1e}"
    return shown if value <= limit else f"[bold red]{shown}[/]"
