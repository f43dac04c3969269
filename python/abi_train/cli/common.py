"""What every verb shares: consoles, the JSON switch, the way an error looks."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from ..data.visible import visible
from ..errors import ConfigError

HELP_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]


def out() -> Console:
    """Results: stdout. Colour only on a terminal; `NO_COLOR` is respected."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width: cut nothing
    return console


def err() -> Console:
    """Everything else: stderr."""
    return Console(stderr=True, soft_wrap=True)


def error_line(text: str) -> None:
    """One line that says what went wrong."""
    console = err()
    console.print("error:", style="bold red", end=" ")
    console.print(visible(text), markup=False, highlight=False)


@contextlib.contextmanager
def from_the_command_line() -> Iterator[None]:
    """A `ConfigError` raised inside is a mistake of usage: exit code 2, not 1."""
    try:
        yield
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def print_json(values: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """A line for a person, on stderr."""
    err().print(visible(text), markup=False, highlight=False)


def size_text(count: float) -> str:
    """1536000 → `1.5 MB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} bytes"


def called_as() -> str:
    """What to type to call this program again: its name if the shell finds it, else its path."""
    return "abi-train" if shutil.which("abi-train") else sys.argv[0]
