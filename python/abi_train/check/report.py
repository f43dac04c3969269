"""The comparison as files: `check.json` for machines, `check.html` for people.

The page is one file with inline style and inline SVG: no script, no font, nothing from the network.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint import write_text_atomic
from .compare import Comparison, TensorDifference

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 30

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#667085; --line:#d9dee7; --paper:#fff;
  --card:#f7f8fa; --a:#2563eb; --b:#e0662a; --good:#15803d; --bad:#b91c1c; --limit:#9aa3b2; }
@media (prefers-color-scheme: dark) { :root { --ink:#e7eaf0; --soft:#98a2b3; --line:#333b49;
  --paper:#12161d; --card:#1a202a; --a:#7aa7ff; --b:#ff9d66; --good:#5fd38d; --bad:#ff8080;
  --limit:#667085; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 36px 0 10px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
.verdict { border-left: 5px solid var(--good); background: var(--card); padding: 12px 18px;
  margin: 20px 0; border-radius: 0 8px 8px 0; }
.verdict.bad { border-color: var(--bad); }
.verdict b { font-size: 17px; }
.tiles { display:grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tile { background: var(--card); border-radius: 10px; padding: 12px 14px; }
.tile span { display:block; color: var(--soft); font-size: 13px; }
.tile b { font-size: 20px; font-variant-numeric: tabular-nums; }
.tile i { display:block; font-style: normal; color: var(--soft); font-size: 12px; }
.ok { color: var(--good); } .no { color: var(--bad); }
.charts { display:grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px; }
figure { margin: 0; background: var(--card); border-radius: 10px; padding: 12px; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .axis { stroke: var(--limit); }
.a { stroke: var(--a); fill: none; stroke-width: 2; }
.b { stroke: var(--b); fill: none; stroke-width: 2; stroke-dasharray: 5 4; }
.dot { fill: var(--a); } .limit { stroke: var(--bad); stroke-dasharray: 3 3; }
.swatch { display:inline-block; width: 18px; height: 0; border-top: 3px solid var(--a);
  vertical-align: middle; margin: 0 4px 0 10px; }
.swatch.two { border-top: 3px dashed var(--b); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%;
  font-variant-numeric: tabular-nums; font-size: 13px; }
th { text-align: right; color: var(--soft); font-weight: 600; } td { text-align: right; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.name { font-family: ui-monospace, monospace; font-size: 12px; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); }
"""


def write_report(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write `check.json` and `check.html` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    document, page = folder / "check.json", folder / "check.html"
    write_text_atomic(document, json.dumps(comparison.to_dict(), indent=1) + "\n")
    write_text_atomic(page, render_page(comparison))
    return document, page


def verdict(comparison: Comparison) -> tuple[str, str]:
    """A headline and a sentence."""
    left, right = comparison.engines
    count = len(comparison.steps)
    if comparison.fault is None:
        return (
            f"{left} and {right} agree",
            f"{count} updates in {comparison.precision}: losses, gradient norms, "
            f"{len(comparison.gradients)} gradients and {len(comparison.weights)} weights are all "
            "within tolerance, learning rates are equal to the bit.",
        )
    if comparison.rounding_only:
        return (
            f"{left} and {right} agree, apart from float32 rounding",
            f"{comparison.fault.where}: difference {comparison.fault.difference:.2e} in float32, "
            f"allowed {comparison.fault.tolerance:.0e}. The same {count} updates in float64 are "
            "within every tolerance, so rounding alone explains it.",
        )
    return f"{left} and {right} do not agree", comparison.fault.sentence()


def render_page(comparison: Comparison) -> str:
    """The whole HTML page."""
    headline, sentence = verdict(comparison)
    left, right = comparison.engines
    bad = "" if comparison.ok else " bad"
    legend = f'<span class="swatch"></span>{left}<span class="swatch two"></span>{right}'
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(headline)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>Engine check: {left} and {right}</h1>",
        f"<p class='soft'>{html.escape(_subtitle(comparison))}</p>",
        f"<div class='verdict{bad}'><b>{html.escape(headline)}</b>"
        f"<p>{html.escape(sentence)}</p></div>",
        _tiles(comparison),
    ]
    if comparison.in_float64 is not None:
        parts += ["<h2>The same runs in float64</h2>", _tiles(comparison.in_float64)]
    parts += [
        f"<h2>Curves {legend}</h2><div class='charts'>",
        *_charts(comparison),
        "</div>",
        "<h2>Gradients at update one</h2>",
        "<p class='soft'>Relative L2 difference of each tensor, before clipping.</p>",
        _tensor_table(comparison.gradients, comparison.tolerances.gradients),
        "<h2>Weights after the last update</h2>",
        "<p class='soft'>Largest absolute difference of any element.</p>",
        _tensor_table(comparison.weights, comparison.tolerances.weights),
        "<h2>Every update</h2>",
        _step_table(comparison),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _subtitle(comparison: Comparison) -> str:
    spec = comparison.spec
    seconds = comparison.seconds
    text = f"model {spec.get('model', '?')} · data {spec.get('data', '?')} · {comparison.precision}"
    if not any(math.isnan(value) for value in seconds):
        text += f" · {seconds[0]:.1f} s and {seconds[1]:.1f} s"
    return text


def _tiles(comparison: Comparison) -> str:
    worst, limits = comparison.worst(), comparison.tolerances
    rows = [
        ("Loss", worst["loss"], limits.loss, "absolute"),
        ("Gradient norm", worst["grad_norm"], limits.grad_norm, "relative"),
        ("Learning rate", worst["learning_rate"], 0.0, "must be equal"),
        ("Gradients, update one", worst["gradients"], limits.gradients, "relative L2"),
        ("Weights at the end", worst["weights"], limits.weights, "absolute"),
    ]
    if comparison.has_metrics:
        rows.insert(
            1, ("Rewards, log probabilities", worst["metrics"], limits.metrics, "see below")
        )
    tiles = []
    for title, value, limit, unit in rows:
        kind = "ok" if value <= limit else "no"
        allowed = "equal to the bit" if limit == 0 else f"allowed {limit:.0e}, {unit}"
        shown = "0" if value == 0 else f"{value:.1e}"
        tiles.append(
            f"<div class='tile'><span>{title}</span><b class='{kind}'>{shown}</b>"
            f"<i>{allowed}</i></div>"
        )
    return "<div class='tiles'>" + "".join(tiles) + "</div>"


def _charts(comparison: Comparison) -> list[str]:
    steps = comparison.steps
    x = [float(step.step) for step in steps]
    limits = comparison.tolerances
    return [
        _figure(
            "Loss, nats",
            _lines(x, [s.loss[0] for s in steps], [s.loss[1] for s in steps]),
        ),
        _figure(
            "Loss difference, absolute (log scale; dashed: allowed)",
            _dots(x, [s.loss_difference for s in steps], limits.loss),
        ),
        *_metric_charts(comparison, x),
        _figure(
            "Gradient norm before clipping",
            _lines(x, [s.grad_norm[0] for s in steps], [s.grad_norm[1] for s in steps]),
        ),
        _figure(
            "Gradient norm difference, relative (log scale; dashed: allowed)",
            _dots(x, [s.grad_norm_difference for s in steps], limits.grad_norm),
        ),
        _figure(
            "Learning rate",
            _lines(x, [s.learning_rate[0] for s in steps], [s.learning_rate[1] for s in steps]),
        ),
        _figure(
            "Gradient difference by tensor, in the order of the model (log scale)",
            _dots(
                [float(at) for at in range(1, len(comparison.gradients) + 1)],
                [tensor.difference for tensor in comparison.gradients],
                limits.gradients,
            ),
        ),
    ]


def _metric_charts(comparison: Comparison, x: Sequence[float]) -> list[str]:
    if not comparison.has_metrics:
        return []
    margins = [step.metrics["rewards/margins"] for step in comparison.steps]
    return [
        _figure(
            "Margin of rewards, chosen less rejected",
            _lines(x, [pair[0] for pair in margins], [pair[1] for pair in margins]),
        ),
        _figure(
            "Largest difference of any reward (absolute), log probability or logit (relative)",
            _dots(
                x,
                [step.metrics_difference for step in comparison.steps],
                comparison.tolerances.metrics,
            ),
        ),
    ]


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    share = 0.5 if high == low else (value - low) / (high - low)
    return start + share * (end - start)


def _frame(x: Sequence[float], ticks: Sequence[tuple[float, str]]) -> str:
    """Grid lines with their labels and the first, middle and last x."""
    parts = []
    for y, label in ticks:
        parts.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>"
        )
    marks = sorted({x[0], x[len(x) // 2], x[-1]}) if x else []
    for mark in marks:
        at = _scale(mark, x[0], x[-1], LEFT, WIDTH - RIGHT)
        anchor = "start" if mark == marks[0] else "end" if mark == marks[-1] else "middle"
        parts.append(f"<text x='{at:.1f}' y='{HEIGHT - 10}' text-anchor='{anchor}'>{mark:g}</text>")
    return "".join(parts)


def _svg(body: str) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{body}</svg>"


def _lines(x: Sequence[float], a: Sequence[float], b: Sequence[float]) -> str:
    finite = [value for value in (*a, *b) if math.isfinite(value)]
    if not finite:
        return _svg("<text x='50%' y='50%' text-anchor='middle'>no finite value</text>")
    low, high = min(finite), max(finite)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0)
    ticks = []
    for part in range(5):
        value = low + (high - low) * part / 4
        ticks.append((_scale(value, low, high, HEIGHT - BOTTOM, TOP), f"{value:.3g}"))

    def path(values: Sequence[float]) -> str:
        points = [
            f"{_scale(at, x[0], x[-1], LEFT, WIDTH - RIGHT):.1f},"
            f"{_scale(value, low, high, HEIGHT - BOTTOM, TOP):.1f}"
            for at, value in zip(x, values, strict=True)
            if math.isfinite(value)
        ]
        return " ".join(points)

    return _svg(
        _frame(x, ticks)
        + f"<polyline class='a' points='{path(a)}'/><polyline class='b' points='{path(b)}'/>"
    )


def _dots(x: Sequence[float], values: Sequence[float], limit: float) -> str:
    """Differences on a log scale from 1e-17 up; a difference of 0 sits on the floor."""
    floor = -17
    top = max([math.log10(limit)] + [math.log10(v) for v in values if v > 0 and math.isfinite(v)])
    high = math.ceil(top + 0.3)
    lowest = min(
        (math.log10(v) for v in values if v > 0 and math.isfinite(v)), default=float(high - 4)
    )
    low = max(floor, min(math.floor(lowest) - 1, high - 4))

    def height(value: float) -> float:
        log = low if value <= 0 else math.log10(value) if math.isfinite(value) else high
        return _scale(max(low, log), low, high, HEIGHT - BOTTOM, TOP)

    stride = max(1, (high - low) // 5)
    ticks = [(height(10.0**power), f"1e{power}") for power in range(low, high + 1, stride)]
    dots = "".join(
        f"<circle class='dot' r='3' cx='{_scale(at, x[0], x[-1], LEFT, WIDTH - RIGHT):.1f}' "
        f"cy='{height(value):.1f}'/>"
        for at, value in zip(x, values, strict=True)
    )
    line = height(limit)
    return _svg(
        _frame(x, ticks)
        + f"<line class='limit' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{line:.1f}' y2='{line:.1f}'/>"
        + dots
    )


def _tensor_table(tensors: Sequence[TensorDifference], limit: float) -> str:
    worst = sorted(tensors, key=lambda tensor: -tensor.difference)

    def rows(some: Sequence[TensorDifference]) -> str:
        lines = []
        for tensor in some:
            kind = "ok" if tensor.difference <= limit else "no"
            shape = " × ".join(str(size) for size in tensor.shape)
            lines.append(
                f"<tr><td class='name'>{html.escape(tensor.name)}</td><td>{shape}</td>"
                f"<td class='{kind}'>{tensor.difference:.2e}</td>"
                f"<td>{html.escape(tensor.note)}</td></tr>"
            )
        return "".join(lines)

    head = "<tr><th>tensor</th><th>shape</th><th>difference</th><th></th></tr>"
    first = f"<div class='scroll'><table>{head}{rows(worst[:8])}</table></div>"
    if len(worst) <= 8:
        return first
    return (
        first + f"<details><summary>all {len(worst)} tensors</summary>"
        f"<div class='scroll'><table>{head}{rows(worst)}</table></div></details>"
    )


def _step_table(comparison: Comparison) -> str:
    left, right = comparison.engines
    limits = comparison.tolerances
    lines = []
    for step in comparison.steps:
        loss = "ok" if step.loss_difference <= limits.loss else "no"
        norm = "ok" if step.grad_norm_difference <= limits.grad_norm else "no"
        rate = "ok" if step.learning_rate[0] == step.learning_rate[1] else "no"
        equal = "equal" if rate == "ok" else f"{step.learning_rate[1]:.6e}"
        lines.append(
            f"<tr><td>{step.step}</td><td>{step.loss[0]:.7f}</td><td>{step.loss[1]:.7f}</td>"
            f"<td class='{loss}'>{step.loss_difference:.1e}</td>"
            f"<td>{step.grad_norm[0]:.6f}</td><td>{step.grad_norm[1]:.6f}</td>"
            f"<td class='{norm}'>{step.grad_norm_difference:.1e}</td>"
            f"<td>{step.learning_rate[0]:.6e}</td><td class='{rate}'>{equal}</td></tr>"
        )
    head = (
        f"<tr><th>update</th><th>loss {left}</th><th>loss {right}</th><th>difference</th>"
        f"<th>norm {left}</th><th>norm {right}</th><th>difference</th>"
        f"<th>rate {left}</th><th>rate {right}</th></tr>"
    )
    return f"<div class='scroll'><table>{head}{''.join(lines)}</table></div>"
