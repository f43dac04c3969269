"""`abi-train push`: what was trained, on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import JsonFlag, from_the_command_line, out, print_json, say, size_text

EXAMPLES = """[bold]Examples[/]

abi-train push runs/abbey --to me/abbey --dry-run

abi-train push runs/abbey --to me/abbey-gguf --gguf
"""


def push(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run folder (of a phased one the last finished phase), model or adapter folder, "
            ".gguf, .bin or .jsonl file."
        ),
    ],
    to: Annotated[str, typer.Option(help="USER/NAME, or NAME for a repository of yours.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Send the LoRA adapter.")] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Send the whole model, an adapter merged into it.")
    ] = False,
    gguf: Annotated[
        bool,
        typer.Option("--gguf", help="Send the GGUF files there, with Modelfile and reports."),
    ] = False,
    data: Annotated[
        bool, typer.Option("--data", help="Send the token files, as a data set.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(help="With --merged: the base, where the adapter does not say it."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public. (default: private)")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Put an adapter, a model, GGUF files or data on the Hugging Face Hub, with a card.

    Private unless --public is given. The token is that of `hf auth login`, or HF_TOKEN. Without a
    word for what to send it is what the run trained: its adapter, or its model.
    """
    from ..hub.push import push as send

    chosen = {"adapter": adapter, "model": merged, "gguf": gguf, "data": data}
    kinds = [kind for kind, wanted in chosen.items() if wanted]
    if len(kinds) > 1:
        raise typer.BadParameter("--adapter, --merged, --gguf and --data: name one")
    if base is not None and not merged:
        raise typer.BadParameter("--base belongs to --merged")
    with from_the_command_line():
        made = send(
            source,
            to,
            kind=kinds[0] if kinds else None,
            public=public,
            base=base,
            dry=dry_run,
            tell=say,
        )
    for note in made.notes:
        say(f"note: {note}")
    if as_json:
        print_json(made.to_dict())
        return
    if dry_run:
        shown = "private" if made.private else "PUBLIC"
        say(f"would send to {made.repo} ({shown} if it is new), in one commit:")
        for name, size in made.files:
            shown = "not known" if size is None else size_text(size)
            out().print(f"{shown:>10}  {name}", markup=False, highlight=False)
        return
    out().print(made.url, markup=False, highlight=False)
    say(f"sent {len(made.files)} files, {size_text(made.size_bytes)}")
