"""Data on the terminal: a report as text, and rows with what is learned in green and between marks.

The marks say the same as the colour, for pipes and for eyes that see no green. Does not know: how
anything was measured.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..data.visible import visible
from ..errors import AbiTrainError
from ..progress import Observer
from .common import err, say, size_text

if TYPE_CHECKING:
    from ..data.report import Example, Report
    from ..runspec import RunSpec

STYLES = {"error": "bold red", "warn": "bold yellow", "note": "bold blue"}
WIDEST = 100


def marks(console: Console) -> tuple[str, str]:
    """What stands around learned text."""
    return ("⟦", "⟧") if "utf" in console.encoding.lower() else ("{{", "}}")


def explain_marks(console: Console) -> Text:
    """One line: what the colours and marks mean."""
    opens, closes = marks(console)
    line = Text("learned: ")
    line.append(f"{opens}green, in brackets{closes}", style="bold green")
    line.append("   read only: ")
    line.append("plain", style="dim")
    line.append("   ")
    line.append("control token", style="cyan")
    return line


def pieces_text(console: Console, pieces: Iterable[tuple[str, bool]]) -> Text:
    """Stretches of text, each with whether it is learned."""
    return _marked(console, ((text, learned, False) for text, learned in pieces))


def example_text(console: Console, example: Example) -> Text:
    """A row; without a tokenizer its ids."""
    return _marked(
        console,
        (
            (f"{token.id} " if token.text is None else token.text, token.in_loss, token.control)
            for token in example.tokens
        ),
    )


def _marked(console: Console, pieces: Iterable[tuple[str, bool, bool]]) -> Text:
    """Text with marks around what is learned; the last flag says: a control token."""
    opens, closes = marks(console)
    shown = Text()
    learning = False
    for text, learned, control in pieces:
        if not text:
            continue
        if learned != learning:
            shown.append(opens if learned else closes, style="bold green")
            learning = learned
        words = visible(text).replace("\n", "↵\n" if opens == "⟦" else "\\n\n")
        shown.append(
            words,
            style=("bold green underline" if control else "bold green")
            if learned
            else ("cyan" if control else "dim"),
        )
    if learning:
        shown.append(closes, style="bold green")
    shown.rstrip()
    return shown


class DataLines(Observer):
    """Says at the start of a run what is learned in its first row, and how many rows are cut."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        """Print one or two lines; what cannot be read was or will be refused elsewhere."""
        try:
            for line in data_lines(self.spec):
                say(line)
        except (AbiTrainError, OSError):
            return


def data_lines(spec: RunSpec) -> Iterable[str]:
    """What a person should know of the data of a run before it starts."""
    import numpy as np

    from ..data.files import TokenFiles
    from ..tokenizer import Tokenizer

    data = TokenFiles.open(spec.data)
    if data.starts is None:
        return
    limit, rows = spec.config.max_seq_len, data.starts.size - 1
    over = int(np.count_nonzero(np.diff(data.starts) > limit))
    if over and spec.config.packing in ("none", "bfd"):
        yield (
            f"data: {over:,} of {rows:,} rows are longer than max_seq_len {limit:,} and lose their "
            "end, and with it the end token"
        )
    if rows == 0 or spec.tokenizer_dir is None or spec.resume is not None:
        return
    begin, end = int(data.starts[0]), min(int(data.starts[1]), int(data.starts[0]) + limit)
    learned = np.ones(end - begin, dtype=np.bool_)
    if data.mask is not None:
        learned = data.mask.at(begin, end).view(np.bool_)
    learned[:1] = False
    ids = np.asarray(data.token_ids[begin:end])[learned]
    with Tokenizer.load(spec.tokenizer_dir) as tokenizer:
        text = tokenizer.decode(ids, skip_special=False, continues=True)
    opens, closes = marks(err())
    yield f"row 0 teaches {opens}{_shortened(visible(text))}{closes}"


def _shortened(text: str, size: int = 76) -> str:
    """One line with the beginning and the end, where the end token stands."""
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 27]} … {line[-24:]}"


def print_report(console: Console, report: Report) -> None:
    """The whole report."""
    from ..data.report.page import counted

    width = min(WIDEST, console.width)
    for key, value in _facts(report):
        _hanging(console, f"{key:<13}", value, width)
    _histograms(console, report, width)
    console.print()
    console.print(_headline(report, counted(report)))
    for finding in report.findings:
        _finding(console, finding, width)
    if report.unchecked:
        text = "; ".join(f"{what} ({why})" for what, why in report.unchecked.items())
        console.print()
        _hanging(console, "not checked  ", text, width, style="dim")
    if report.examples:
        console.print()
        console.print(explain_marks(console))
    for example in report.examples:
        place = f"row {example.row}" + (f", {example.answer}" if example.answer else "")
        place += f", line {example.line}" if example.line is not None else ""
        console.print()
        console.print(Text(f"{place}: {example.count:,} tokens", style="bold"))
        console.print(example_text(console, example))
        if len(example.tokens) < example.count:
            rest = example.count - len(example.tokens)
            console.print(Text(f"… {rest:,} more tokens", style="dim"))


def _headline(report: Report, counted: str) -> Text:
    worst = report.findings[0].severity if report.findings else "note"
    return Text(counted, style=STYLES[worst] if report.findings else "bold green")


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    said = report.manifest
    kind = {"pairs": "pairs of answers", "stream": "one stream"}.get(report.kind, "rows")
    about = [kind, *(f"{k} {said[k]}" for k in ("format", "source", "license") if said.get(k))]
    yield "file", f"{report.path} ({', '.join(about)})"
    if report.lines is not None:
        yield "lines", f"{report.lines:,}, {report.skipped:,} of them unusable"
    if report.pairs is not None:
        pairs = report.pairs
        yield (
            "pairs",
            f"{pairs['count']:,}; the better answer is longer in {pairs['chosen_longer']:,}, the "
            f"worse one in {pairs['rejected_longer']:,}; {pairs['chosen_tokens_mean']:.0f} and "
            f"{pairs['rejected_tokens_mean']:.0f} tokens on average",
        )
    yield "documents" if report.kind == "stream" else "rows", f"{report.rows:,}"
    yield "tokens", f"{report.tokens:,}"
    yield "in the loss", f"{report.tokens_in_loss:,} ({report.share_in_loss:.1%})"
    if report.lengths["max"] is not None:
        spread, at = report.lengths, report.lengths["percentiles"]
        yield (
            "row length",
            f"{spread['min']:,} to {spread['max']:,}, mean {spread['mean']:,.1f}; half up to "
            f"{at['50']:,}, 90% up to {at['90']:,}, 99% up to {at['99']:,}",
        )
    if report.max_seq_len is not None:
        limit = report.max_seq_len
        yield (
            "max_seq_len",
            f"{limit['value']:,}: {limit['rows_over']:,} rows are longer "
            f"({limit['share_over']:.1%}), {limit['tokens_cut']:,} tokens would be cut",
        )
    if report.kind != "stream":
        yield "answers", _by_count(report.answers)
    if report.turns:
        yield "turns", _by_count(report.turns)
    if report.vocabulary["used"] is not None:
        size = report.vocabulary["size"]
        yield "vocabulary", f"{report.vocabulary['used']:,} of {size:,} ids occur"
    if report.text is not None:
        yield "text", _text_fact(report)


def _text_fact(report: Report) -> str:
    text = report.text
    assert text is not None
    total = max(1, sum(text.scripts.values()))
    mix = ", ".join(
        f"{name} {max(count / total, 0.001):.1%}" for name, count in text.scripts.most_common(6)
    )
    code = f"; {text.code_rows:,} rows look like code" if text.code_rows else ""
    share = "" if report.text_share >= 1 else f" ({report.text_share:.0%} looked at)"
    return f"{size_text(text.bytes)}{share}: {mix or 'no letters'}{code}"


def _by_count(counts: dict[int, int]) -> str:
    some = list(counts.items())
    shown = ", ".join(
        f"{key:,} in {value:,} row{'' if value == 1 else 's'}" for key, value in some[:5]
    )
    rest = sum(value for _, value in some[5:])
    return shown + (f", more in {rest:,}" if rest else "")


def _histograms(console: Console, report: Report, width: int) -> None:
    if report.rows < 2:
        return
    shares = [f"{at * 10}–{at * 10 + 10}%" for at in range(10)]
    charts = [("tokens", report.length_histogram.labels(), report.length_histogram.counts)]
    if report.kind != "stream":
        charts.append(("in the loss", shares, report.loss_histogram.counts))
    for title, labels, counts in charts:
        console.print()
        console.print(Text(f"{title:>16}  rows", style="bold"))
        most = max(counts)
        first = next(at for at, count in enumerate(counts) if count)
        last = len(counts) - next(at for at, count in enumerate(reversed(counts)) if count)
        left_out = False
        for at in range(first, last):
            if counts[at] == 0 and 0 in (counts[at - 1], counts[at + 1]):
                if not left_out:
                    console.print(Text(f"{'…':>16}"))
                left_out = True
                continue
            left_out = False
            bar = _bar(console, counts[at] / most, min(40, width - 30))
            console.print(Text(f"{labels[at]:>16}  {bar} {counts[at]:,}".rstrip()))


def _bar(console: Console, share: float, width: int) -> str:
    if "utf" not in console.encoding.lower():
        return "#" * (round(share * width) or (share > 0))
    eighths = round(share * width * 8) or (share > 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _finding(console: Console, finding: object, width: int) -> None:
    from ..data.report import Finding
    from ..data.report.page import where

    assert isinstance(finding, Finding)
    console.print()
    head = Text(f"{finding.severity:<6}", style=STYLES[finding.severity])
    head.append(finding.code, style="bold")
    console.print(head)
    _hanging(console, "      ", finding.message[:1].upper() + finding.message[1:], width)
    _hanging(console, "      ", finding.next, width, style="italic")
    for place in finding.detail.get("places", ()):
        _hanging(console, "      - ", place, width, style="dim")
    if finding.rows:
        _hanging(console, "      ", where(finding), width, style="dim")


def _hanging(console: Console, label: str, text: str, width: int, style: str = "") -> None:
    """A label and its text, wrapped beside it."""
    lines: Sequence[str] = textwrap.wrap(
        visible(text).replace("\n", " "),
        max(20, width - len(label)),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]
    for at, line in enumerate(lines):
        shown = Text(label if at == 0 else " " * len(label), style="dim" if label.strip() else "")
        shown.append(line, style=style)
        console.print(shown)
