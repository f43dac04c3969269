"""`abi-train data`: from text to token files, and what is in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.visible import visible
from .common import HELP_SETTINGS, JsonFlag, err, out, print_json, say, size_text
from .rows import explain_marks, pieces_text
from .rows import print_report as show_report

app = typer.Typer(
    help="Prepare training data and look at it.",
    no_args_is_help=True,
    context_settings=HELP_SETTINGS,
    rich_markup_mode="rich",
)

PREPARE_EXAMPLES = """[bold]Examples[/]

abi-train data prepare chats.jsonl --tokenizer ./model --output data/train.bin --eval-fraction 0.05

abi-train data prepare a.jsonl b.jsonl --tokenizer ./model --output all.bin --skip-invalid --json

abi-train data prepare big.jsonl --tokenizer ./model --output big.bin --shards 16 --workers 4
"""
INFO_EXAMPLES = """[bold]Examples[/]

abi-train data info data/train.bin

abi-train data info data/train.bin --tokenizer ./model --rows 2
"""


REPORT_EXAMPLES = """[bold]Examples[/]

abi-train data report chats.jsonl --tokenizer ./model --max-seq-len 2048

abi-train data report data/train.bin --tokenizer ./model --html report.html --strict
"""


@app.command("prepare", epilog=PREPARE_EXAMPLES)
def prepare_command(
    sources: Annotated[list[Path], typer.Argument(help="JSONL files, read in this order.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with tokenizer.json.")],
    output: Annotated[Path, typer.Option(help="Token file to write.")] = Path("training_data.bin"),
    max_seq_len: Annotated[
        int | None, typer.Option(min=2, help="Cut rows to this many tokens.")
    ] = None,
    eval_fraction: Annotated[
        float, typer.Option(help="Share of the rows kept for evaluation.")
    ] = 0.0,
    eval_output: Annotated[
        Path | None, typer.Option(help="Evaluation file. (default: OUTPUT_eval.bin)")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 42,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Count unusable lines instead of stopping.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="One stream of ids without row starts, as ABI.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="Where the text is from, for the record.")
    ] = None,
    chat_format: Annotated[
        str | None, typer.Option(help="abbey, chatml, llama3 …, in place of the template's.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="What is learned: assistant, completion (last answer) or all.")
    ] = "assistant",
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence of the text, for the record.")
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Write a set of so many files."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that make shards. (default: CPUs)")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads; 0: one for each CPU. The bytes are the same.")
    ] = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again instead of going on after a kill.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn JSONL into a token file with loss mask, row starts and manifest.

    A row has `messages` (or ShareGPT `conversations`), `prompt` and `completion`, `instruction` and
    `output`, or `text`. In the loss are the assistant's turns, the completion, or all of a text,
    each with its end token; a row that would be learned without one is an error. Rows with
    `prompt`, `chosen` and `rejected` make preference data.

    With `--shards` the rows go into several files and one manifest, `OUTPUT` with `.json` at its
    end, whose name is used as that of a token file; `--workers` processes make them.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ..data.native import FORMATS
    from ..data.prepare import LOSSES, prepare
    from ..data.shards import prepare_sharded

    if not 0.0 <= eval_fraction <= 0.99:
        raise typer.BadParameter(f"--eval-fraction is {eval_fraction}; it must be 0 to 0.99")
    if chat_format is not None and chat_format not in FORMATS:
        raise typer.BadParameter(
            f"--chat-format is {chat_format!r}; it must be one of {', '.join(FORMATS)}"
        )
    if loss not in LOSSES:
        raise typer.BadParameter(f"--loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    if workers is not None and shards is None:
        raise typer.BadParameter("--workers makes shards; give --shards, too")
    with (
        _going_on(output),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=err(),
            transient=True,
            disable=not err().is_terminal,
        ) as bar,
    ):
        task = bar.add_task("tokenising", total=None)
        options: dict[str, Any] = {
            "max_seq_len": max_seq_len,
            "eval_output": eval_output,
            "eval_fraction": eval_fraction,
            "seed": seed,
            "skip_invalid": skip_invalid,
            "stream": stream,
            "chat_format": chat_format,
            "loss": loss,
            "source_note": source,
            "license_note": license_name,
        }
        if shards is None:
            report = prepare(
                list(sources),
                tokenizer,
                output,
                **options,
                threads=threads,
                resume=not restart,
                on_progress=lambda now: bar.update(
                    task,
                    description="counting lines" if now.counting else f"{now.rows} rows",
                    completed=now.bytes_done,
                    total=now.bytes_total,
                ),
            )
        else:
            size = sum(path.stat().st_size for path in sources if path.is_file())
            report = prepare_sharded(
                list(sources),
                tokenizer,
                output,
                shards=shards,
                workers=workers or 0,
                **options,
                on_progress=lambda done, total: bar.update(
                    task,
                    description=f"{done} of {total} shards",
                    completed=size * done // total,
                    total=size,
                ),
            )
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)


@contextlib.contextmanager
def _going_on(output: Path) -> Iterator[None]:
    """After Ctrl-C, say that nothing done is lost, where that is so."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (output.with_name(output.name + ".journal"), output.with_suffix(".shards"))
        if any(path.exists() for path in begun):
            say("the same command goes on from here")
        raise


def print_report(report: Any) -> None:
    """What was written, what was left out, and the first row as the model will see it."""
    if report.continued_at:
        say(f"went on at {report.continued_at:.0%}, where an earlier run had stopped")
    for split in (report.train, report.evaluation):
        if split is None:
            continue
        pairs = f"{split.pairs} pairs in " if split.pairs else ""
        out().print(
            f"{split.path}: {pairs}{split.rows} rows, {split.tokens} tokens, "
            f"{split.tokens_in_loss} of them in the loss, longest row {split.longest}",
            highlight=False,
        )
        if split.truncated:
            say(f"  {split.truncated} rows were longer and lost their end")
    if report.dropped:
        say(f"dropped {report.dropped} rows with nothing to learn")
    if report.skipped.total:
        say(f"skipped {report.skipped.total} of {report.lines} lines:")
        for reason, count in report.skipped.counts.most_common():
            say(f"  {count} x {reason}")
        for example in report.skipped.examples[:3]:
            say(f"  {example}")
    if report.first_example:
        console = err()
        console.print("first row.", explain_marks(console), highlight=False)
        console.print(pieces_text(console, report.first_example))


@app.command("report", epilog=REPORT_EXAMPLES)
def report_command(
    path: Annotated[Path, typer.Argument(help="Token file (.bin), or JSONL rows.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder; JSONL needs it, text is shown with it.")
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option("--eval", help="Evaluation file. (default: FILE_eval.bin)")
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=2, help="Count what a run with this limit would cut.")
    ] = None,
    chat_format: Annotated[
        str | None, typer.Option(help="For JSONL: abbey, chatml …, in place of the template's.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="For JSONL: assistant, completion (last answer) or all.")
    ] = "assistant",
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 2,
    row: Annotated[
        list[int] | None, typer.Option(min=0, help="Show this row, from 0; may be repeated.")
    ] = None,
    all_text: Annotated[
        bool, typer.Option("--all-text", help="Read all text, not 16 M tokens of it.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Leave with code 1 when a finding is an error.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what a model will learn from a file, and what of it looks wrong.

    Lengths, share in the loss, end tokens, begin tokens, duplicates, control tokens written out as
    text, scripts, roles, overlap with evaluation data; docs/data-report.md has them all. Nothing is
    changed.
    """
    from ..data.prepare import LOSSES
    from ..data.report import TEXT_BUDGET, examine

    if loss not in LOSSES:
        raise typer.BadParameter(f"--loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    with working_bar("reading") as bar:
        report = examine(
            path,
            tokenizer=tokenizer,
            eval_path=eval_data,
            max_seq_len=max_seq_len,
            chat_format=chat_format,
            loss=loss,  # type: ignore[arg-type]  # checked above
            rows=rows,
            show=row or (),
            text_budget=None if all_text else TEXT_BUDGET,
            on_progress=bar,
        )
    if html is not None:
        from ..checkpoint import write_text_atomic
        from ..data.report.page import render_page

        if html.resolve() == path.resolve():
            raise typer.BadParameter(f"--html {html} is the file to report on")
        write_text_atomic(html, render_page(report))
    if as_json:
        print_json(report.to_dict())
    else:
        show_report(out(), report)
    if html is not None:
        say(f"wrote {html}")
    if strict and report.errors:
        raise typer.Exit(1)


@contextlib.contextmanager
def working_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with bytes, MB/s and time left; call it with bytes done and in all."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err(),
        transient=True,
        disable=not err().is_terminal,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command("info", epilog=INFO_EXAMPLES)
def info_command(
    path: Annotated[Path, typer.Argument(help="Token file (.bin).")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder, to show rows as text.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and compare the checksums.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what a token file holds."""
    from ..data.info import describe

    facts = describe(path, tokenizer=tokenizer, rows=rows, verify=verify)
    if as_json:
        print_json(facts)
        return
    console = out()
    for key, value in facts.items():
        if key == "examples":
            continue
        shown = size_text(value) if key == "bytes" else value
        console.print(f"{key:>16}  {visible(str(shown))}", highlight=False, markup=False)
    for example in facts.get("examples", []):
        console.print(f"\nrow {example['row']}: {example['tokens']} tokens", highlight=False)
        if "foreign" in example:
            say(f"the tokenizer has no id {example['foreign'][0]}; another one made this file")
        text = visible(str(example.get("text", example["ids"])))
        console.print(text, highlight=False, markup=False)
