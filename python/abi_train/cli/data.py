"""`abi-train data`: from text to token files, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import HELP_SETTINGS, JsonFlag, err, out, print_json, say, size_text

app = typer.Typer(
    help="Prepare training data and look at it.",
    no_args_is_help=True,
    context_settings=HELP_SETTINGS,
    rich_markup_mode="rich",
)

PREPARE_EXAMPLES = """[bold]Examples[/]

abi-train data prepare chats.jsonl --tokenizer ./model --output data/train.bin --eval-fraction 0.05

abi-train data prepare a.jsonl b.jsonl --tokenizer ./model --output all.bin --skip-invalid --json
"""
INFO_EXAMPLES = """[bold]Examples[/]

abi-train data info data/train.bin

abi-train data info data/train.bin --tokenizer ./model --rows 2
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
    as_json: JsonFlag = False,
) -> None:
    """Turn JSONL into a token file with loss mask, row starts and manifest.

    A row has `messages` (or ShareGPT `conversations`), `prompt` and `completion`, `instruction` and
    `output`, or `text`. In the loss are the assistant's turns, the completion, or all of a text,
    each with its end token; a row that would be learned without one is an error. Rows with
    `prompt`, `chosen` and `rejected` make preference data.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from ..data.native import FORMATS
    from ..data.prepare import LOSSES, prepare

    if not 0.0 <= eval_fraction <= 0.99:
        raise typer.BadParameter(f"--eval-fraction is {eval_fraction}; it must be 0 to 0.99")
    if chat_format is not None and chat_format not in FORMATS:
        raise typer.BadParameter(
            f"--chat-format is {chat_format!r}; it must be one of {', '.join(FORMATS)}"
        )
    if loss not in LOSSES:
        raise typer.BadParameter(f"--loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=err(),
        transient=True,
        disable=not err().is_terminal,
    ) as bar:
        task = bar.add_task("tokenising", total=None)
        report = prepare(
            list(sources),
            tokenizer,
            output,
            max_seq_len=max_seq_len,
            eval_output=eval_output,
            eval_fraction=eval_fraction,
            seed=seed,
            skip_invalid=skip_invalid,
            stream=stream,
            chat_format=chat_format,
            loss=loss,  # type: ignore[arg-type]  # checked above
            source_note=source,
            license_note=license_name,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)


def print_report(report: Any) -> None:
    """What was written, what was left out, and the first row as the model will see it."""
    from rich.text import Text

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
        shown = Text()
        for text, kept in report.first_example:
            shown.append(text, style="bold green" if kept else "dim")
        err().print("first row (green: in the loss):")
        err().print(shown)


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
        console.print(f"{key:>16}  {shown}", highlight=False, markup=False)
    for example in facts.get("examples", []):
        console.print(f"\nrow {example['row']}: {example['tokens']} tokens", highlight=False)
        console.print(example.get("text", example["ids"]), highlight=False, markup=False)
