"""`abi-train data formats`: the chat formats, and which of them a model's template is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from .common import JsonFlag, out, print_json

EXAMPLES = """[bold]Examples[/]

abi-train data formats

abi-train data formats qwen --json

abi-train data formats --tokenizer ./model
"""


def formats(
    name: Annotated[
        str | None, typer.Argument(help="One format: also its Jinja template.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Say what this folder's or GGUF's own template is.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the chat formats, show one, or say which one a model's template is."""
    from ..chat import CHOICES, FORMATS, format_info

    if name is not None and name not in FORMATS:
        raise typer.BadParameter(f"{name!r} is no chat format; known are {', '.join(FORMATS)}")
    if tokenizer is not None:
        _template(tokenizer, as_json)
    elif name is not None:
        info = dataclasses.asdict(format_info(name))
        if as_json:
            print_json(info)
            return
        jinja = info.pop("jinja")
        for key in ("jinja_for_training", "go_template"):
            info.pop(key)
        for key, value in info.items():
            shown = ", ".join(map(repr, value)) if isinstance(value, tuple) else value
            out().print(f"{key:>16}  {shown}", highlight=False, markup=False)
        out().print(f"\n{jinja}", highlight=False, markup=False)
    elif as_json:
        print_json({"formats": [dataclasses.asdict(format_info(each)) for each in FORMATS]})
    else:
        for each in FORMATS:
            tools = "tools" if format_info(each).tools else ""
            line = f"{each:<18} {tools:<6} {format_info(each).about}"
            out().print(line, highlight=False, markup=False)
        line = f"{CHOICES[-1]:<18} {'tools':<6} the model's own Jinja template, sandboxed"
        out().print(line, highlight=False, markup=False)


def _template(path: Path, as_json: bool) -> None:
    from ..tokenizer import Tokenizer

    with Tokenizer.load(path) as words:
        found = words.chat_format()
    if found is None:
        raise DataError(f"{path}: the tokenizer has no chat template; name a format where chats go")
    facts: dict[str, Any] = dataclasses.asdict(found)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        out().print(f"{key:>8}  {shown}", highlight=False, markup=False)
