"""A report as one HTML file: inline style, inline SVG, no script, nothing from the network.

Everything from the data passes through `_text`, which spells out what steers a page and escapes the
rest. Does not know: files, tokenizers.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..visible import visible
from . import Report
from .example import Example, Token
from .findings import ERROR, NOTE, WARN, Finding
from .histogram import Histogram

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#5b6577; --line:#d9dee7; --paper:#fff;
  --card:#f6f7f9; --bar:#2563eb; --learned:#d3f2dd; --learned-ink:#0d4a23; --control:#7c3aed;
  --error:#b42318; --warn:#a15c07; --note:#2563eb; --edge:#00000022; }
@media (prefers-color-scheme: dark) { :root { --ink:#e7eaf0; --soft:#a0a9b8; --line:#333b49;
  --paper:#12161d; --card:#1a202a; --bar:#7aa7ff; --learned:#153d27; --learned-ink:#b9f2cd;
  --control:#c4a6ff; --error:#ff8f85; --warn:#f2b857; --note:#8fb4ff; --edge:#ffffff2a; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 23px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 10px; } h3 { font-size: 15px; margin: 0; }
p { margin: 6px 0; } .soft { color: var(--soft); } .small { font-size: 13px; }
.verdict { border-left: 5px solid var(--note); background: var(--card); padding: 12px 18px;
  margin: 18px 0; border-radius: 0 8px 8px 0; font-size: 17px; font-weight: 600; }
.verdict.error { border-color: var(--error); } .verdict.warn { border-color: var(--warn); }
.tiles { display:grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { background: var(--card); border-radius: 10px; padding: 12px 14px; }
.tile span, .tile i { display:block; color: var(--soft); font-size: 13px; font-style: normal; }
.tile b { font-size: 20px; font-variant-numeric: tabular-nums; }
.finding { background: var(--card); border-radius: 10px; padding: 12px 16px; margin: 10px 0;
  border-left: 5px solid var(--note); overflow-wrap: anywhere; }
.finding.error { border-color: var(--error); } .finding.warn { border-color: var(--warn); }
.badge { font-size: 12px; font-weight: 700; text-transform: uppercase; letter-spacing: .04em;
  color: var(--note); margin-right: 8px; }
.error .badge { color: var(--error); } .warn .badge { color: var(--warn); }
.charts { display:grid; gap: 18px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 10px; padding: 12px; min-width: 0; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .bar { fill: var(--bar); } svg .axis { stroke: var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); }
td.n { text-align: right; }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--soft); font-size: 13px; }
.row { background: var(--card); border-radius: 10px; padding: 12px 16px; margin: 12px 0; }
.tokens { font: 13px/1.9 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 8px 0 0;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; color: var(--soft); }
.tokens mark { background: none; color: inherit; }
.tokens span { border-left: 1px solid var(--edge); border-radius: 2px; }
.tokens span:hover { outline: 2px solid var(--bar); }
.tokens mark span { background: var(--learned); color: var(--learned-ink);
  border-bottom: 2px solid var(--learned-ink); padding: 1px 0; }
.tokens .c { color: var(--control); font-weight: 600; }
.ids { font: 12px/1.6 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.key span { margin-right: 14px; }
.hidden { position:absolute; width:1px; height:1px; overflow:hidden; clip-path: inset(50%); }
"""

_WORDS = {ERROR: "error", WARN: "warning", NOTE: "note"}


def render_page(report: Report) -> str:
    """The whole page."""
    name = _text(report.path.name)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>What {name} teaches</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>What {name} teaches</h1><p class='soft small'>{_text(_subtitle(report))}</p>",
        _verdict(report),
        _tiles(report),
        "<h2>Findings</h2>",
        *[_finding(finding, report) for finding in report.findings],
        "" if report.findings else "<p>Nothing was found.</p>",
        _unchecked(report),
        "<h2>Distributions</h2><div class='charts'>",
        *_charts(report),
        "</div>",
        "<h2>Rows</h2>",
        "<p class='key small'><span class='tokens'><mark><span>learned</span></mark></span>"
        "<span class='tokens'><span>read only</span></span>"
        "<span class='tokens'><span class='c'>control token</span></span>"
        "<span class='soft'>A token's id shows when the pointer rests on it.</span></p>",
        *[_row(example, f"row-{example.row}") for example in report.examples],
        _extremes(report),
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(value: object) -> str:
    """Anything as harmless HTML."""
    return html.escape(visible(str(value)), quote=True)


def _subtitle(report: Report) -> str:
    said = report.manifest
    parts = [str(report.path), report.kind]
    parts += [f"{key} {said[key]}" for key in ("format", "source", "license") if said.get(key)]
    return " · ".join(parts)


def counted(report: Report) -> str:
    """`1 error, 2 warnings`, or that nothing was found."""
    numbers = []
    for severity, word in _WORDS.items():
        count = sum(finding.severity == severity for finding in report.findings)
        if count:
            numbers.append(f"{count} {word}{'' if count == 1 else 's'}")
    return ", ".join(numbers) or "nothing found"


def _verdict(report: Report) -> str:
    worst = report.findings[0].severity if report.findings else NOTE
    return f"<p class='verdict {worst}'>{counted(report)}</p>"


def _tiles(report: Report) -> str:
    spread = report.lengths
    tiles = [
        (
            "Rows" if report.pairs is None else "Pairs",
            f"{report.rows if report.pairs is None else report.pairs['count']:,}",
            f"{report.skipped:,} of {report.lines:,} lines unusable" if report.lines else "",
        ),
        ("Tokens", f"{report.tokens:,}", ""),
        ("In the loss", f"{report.share_in_loss:.1%}", f"{report.tokens_in_loss:,} tokens"),
    ]
    if spread["max"] is not None:
        tiles.append(
            (
                "Row length",
                f"{spread['percentiles']['50']:,}",
                f"median; {spread['min']:,} to {spread['max']:,} tokens",
            )
        )
    if report.max_seq_len is not None:
        limit = report.max_seq_len
        tiles.append(
            (f"Longer than {limit['value']:,}", f"{limit['share_over']:.1%}",
             f"{limit['rows_over']:,} rows, {limit['tokens_cut']:,} tokens")
        )  # fmt: skip
    if report.vocabulary["used"] is not None:
        size = report.vocabulary["size"]
        tiles.append(("Vocabulary used", f"{report.vocabulary['used']:,}", f"of {size:,} ids"))
    shown = "".join(
        f"<div class='tile'><span>{title}</span><b>{value}</b><i>{note}</i></div>"
        for title, value, note in tiles
    )
    return f"<div class='tiles'>{shown}</div>"


def where(finding: Finding) -> str:
    """`rows 3, 8 (lines 4, 9)`; empty when a finding has no rows."""
    if not finding.rows:
        return ""
    more = ", …" if len(finding.rows) < finding.row_count else ""

    def listed(word: str, numbers: Sequence[int]) -> str:
        return f"{word}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}{more}"

    lines = f" ({listed('line', finding.lines)})" if finding.lines else ""
    return listed("row", finding.rows) + lines


def _finding(finding: Finding, report: Report) -> str:
    shown = [report.finding_examples[r] for r in finding.rows[:2] if r in report.finding_examples]
    reasons = "".join(f"<li>{_text(reason)}</li>" for reason in finding.detail.get("places", ()))
    parts = [
        f"<section class='finding {finding.severity}'>",
        f"<h3><span class='badge'>{_WORDS[finding.severity]}</span>{_text(finding.code)}</h3>",
        f"<p>{_text(_capital(finding.message))}</p>",
        f"<p class='soft'>{_text(finding.next)}</p>",
        f"<p class='soft small'>{_text(where(finding))}</p>" if finding.rows else "",
        f"<ul class='small'>{reasons}</ul>" if reasons else "",
    ]
    if shown and shown[0].tokens:
        rows = "".join(_row(example, "") for example in shown)
        names = " and ".join(str(example.row) for example in shown)
        word = f"row{'s' if len(shown) > 1 else ''} {names}"
        parts.append(f"<details><summary>{word}</summary>{rows}</details>")
    parts.append("</section>")
    return "".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unchecked(report: Report) -> str:
    if not report.unchecked:
        return ""
    items = "; ".join(f"{what} ({why})" for what, why in report.unchecked.items())
    return f"<p class='soft small'>Not checked: {_text(items)}.</p>"


def _charts(report: Report) -> list[str]:
    stream = report.kind == "stream"
    charts = []
    if not stream or report.rows > 1:
        what = "Documents" if stream else "Rows"
        charts.append(
            _bars(f"{what} by length in tokens", report.length_histogram.labels(),
                  report.length_histogram.counts)
        )  # fmt: skip
    if not stream:
        charts.append(
            _bars("Rows by the share of them in the loss", _shares(report.loss_histogram),
                  report.loss_histogram.counts)
        )  # fmt: skip
        charts.append(_counts("Rows by answers learned", report.answers))
    if report.turns:
        charts.append(_counts("Chats by turns", report.turns))
    if report.text is not None and report.text.scripts:
        total = sum(report.text.scripts.values())
        some = report.text.scripts.most_common(12)
        charts.append(
            _bars(
                "Letters by script, per cent",
                [name for name, _ in some],
                [100 * count / total for _, count in some],
            )
        )
    return charts


def _shares(histogram: Histogram) -> list[str]:
    return [
        f"{low:.0%}–{high:.0%}"
        for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)
    ]


def _counts(caption: str, counts: dict[int, int], limit: int = 12) -> str:
    few = dict(list(counts.items())[:limit])
    labels = [f"{key:,}" for key in few]
    values = list(few.values())
    rest = sum(counts.values()) - sum(values)
    if rest:
        labels.append("more")
        values.append(rest)
    return _bars(caption, labels, values)


def _bars(caption: str, labels: Sequence[str], values: Sequence[float]) -> str:
    """Horizontal bars, and the same numbers as a table for those who cannot see them."""
    width, left, right, step = 460, 96, 66, 18
    most = max([*values, 1e-9])
    bars, cells = [], []
    for at, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = at * step
        size = (width - left - right) * value / most
        number = f"{value:,}" if isinstance(value, int) else f"{value:.1f}"
        bars.append(
            f"<text x='{left - 8}' y='{y + 13}' text-anchor='end'>{_text(label)}</text>"
            f"<rect class='bar' x='{left}' y='{y + 3}' width='{max(size, 1 if value else 0):.1f}' "
            f"height='{step - 5}' rx='2'/>"
            f"<text x='{left + size + 6:.1f}' y='{y + 13}'>{number if value else ''}</text>"
        )
        cells.append(f"<tr><td>{_text(label)}</td><td class='n'>{number}</td></tr>")
    height = step * len(labels) + 4
    return (
        f"<figure><figcaption>{_text(caption)}</figcaption>"
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{_text(caption)}'>"
        f"<line class='axis' x1='{left}' x2='{left}' y1='0' y2='{height}'/>{''.join(bars)}</svg>"
        f"<details><summary>numbers</summary><div class='scroll'><table>{''.join(cells)}</table>"
        "</div></details></figure>"
    )


def _row(example: Example, anchor: str) -> str:
    place = f"Row {example.row}" + (f", {example.answer} answer" if example.answer else "")
    place += f", line {example.line}" if example.line is not None else ""
    learned = sum(token.in_loss for token in example.tokens)
    more = example.count - len(example.tokens)
    rest = f"<p class='soft small'>… {more:,} more tokens</p>" if more else ""
    name = f" id='{anchor}'" if anchor else ""
    of = f"first {len(example.tokens):,}" if more else f"{example.count:,}"
    ids = " ".join(f"[{token.id}]" if token.in_loss else str(token.id) for token in example.tokens)
    return (
        f"<article class='row'{name}><h3>{place}</h3>"
        f"<p class='soft small'>{example.count:,} tokens, {learned:,} of the {of} learned</p>"
        f"<p class='tokens' dir='auto'>{_tokens(example.tokens)}</p>{rest}"
        f"<details><summary>ids, learned ones in brackets</summary><p class='ids'>{ids}</p>"
        "</details></article>"
    )


def _tokens(tokens: Sequence[Token]) -> str:
    parts: list[str] = []
    learning = False
    for token in tokens:
        if token.in_loss != learning:
            parts.append(
                "<mark><span class='hidden'>learned: </span>" if token.in_loss else "</mark>"
            )
            learning = token.in_loss
        parts.append(_token(token))
    if learning:
        parts.append("</mark>")
    return "".join(parts)


def _token(token: Token) -> str:
    kind = " class='c'" if token.control else ""
    if token.text is None:
        return f"<span title='id {token.id}'>{token.id}</span> "
    words = _text(token.text).replace("\n", "↵\n")
    title = f"id {token.id}" + (", control token" if token.control else "")
    return f"<span{kind} title='{title}'>{words}</span>"


def _extremes(report: Report) -> str:
    parts = []
    for word in ("longest", "shortest"):
        found = report.extremes[word]
        if not found or found[0][0] not in report.finding_examples:
            continue
        numbers = ", ".join(f"{row} ({size:,} tokens)" for row, size in found)
        parts.append(
            f"<details><summary>the {word} rows: {numbers}</summary>"
            f"{_row(report.finding_examples[found[0][0]], '')}</details>"
        )
    return "".join(parts)
