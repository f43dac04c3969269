"""Writes docs/cli.md from the two programs themselves, so that page and program cannot disagree.

    python tools/make_cli_docs.py [docs/cli.md]     (or: make docs)

`abi-train` is read from its functions: names, types, defaults and help texts as typer gets them.
`abi` is asked for its `--help`. A test compares the page with what this file makes of both.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from abi_train._native.program import program_path
from abi_train.cli import __doc__ as CLI_TEXT
from abi_train.cli.app import VERBS, app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

HEAD = """\
# The command line

Made by `make docs` from the programs; a test compares. Two programs come with the package:
`abi-train` (Python: prepare, train on either engine, check, export) and `abi` (Zig: train, inspect,
generate, talk). Both print help with `--help`.
"""


@dataclass(frozen=True)
class Parameter:
    """One option or argument, in the words of the help."""

    spelled: str
    argument: bool
    required: bool
    default: str
    help: str


def verbs() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Name, function and epilog of each command; groups stand where the pipeline has them."""
    for command in app.registered_commands:
        assert command.name is not None and command.callback is not None
        yield command.name, command.callback, command.epilog or ""
        after = VERBS[VERBS.index(command.name) + 1 :]
        for group in app.registered_groups:
            if not after or group.name != after[0]:
                continue
            assert group.typer_instance is not None
            for inner in group.typer_instance.registered_commands:
                assert inner.callback is not None
                yield f"{group.name} {inner.name}", inner.callback, inner.epilog or ""


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a command in the order of its signature."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, given in inspect.signature(function).parameters.items():
        kind, *extras = typing.get_args(hints[name]) or (hints[name],)
        info = next((e for e in extras if hasattr(e, "param_decls")), None)
        if info is None:  # the context
            continue
        kinds = [k for k in typing.get_args(kind) or (kind,) if k is not types.NoneType]
        argument = type(info).__name__ == "ArgumentInfo"
        required = given.default is inspect.Parameter.empty
        dashed = name.replace("_", "-")
        # Inside Annotated, typer keeps the first spelling where the default would stand.
        names = [str(decl) for decl in (info.default, *(info.param_decls or ()))]
        names = [decl for decl in names if decl.startswith("-")]
        if argument:
            many = typing.get_origin(kind) is list
            spelled = name.upper() + ("..." if many else "")
        elif bool in kinds:
            spelled = ", ".join(decl.split("/")[0] for decl in names) or f"--{dashed}"
        else:
            word = {Path: "PATH", int: "N", float: "X"}.get(kinds[0], "TEXT")
            spelled = (", ".join(names) or f"--{dashed}") + f" {word}"
        shown = not any(given.default is x for x in (None, False, inspect.Parameter.empty))
        yield Parameter(
            spelled=spelled,
            argument=argument,
            required=required,
            default=str(given.default) if shown else "",
            help=plain(info.help or ""),
        )


def plain(text: str) -> str:
    """Without the marks for bold and colour."""
    return Text.from_markup(text).plain.strip()


def paragraphs(text: str) -> str:
    """A docstring with each paragraph on one line."""
    parts = re.split(r"\n\s*\n", plain(inspect.cleandoc(text)))
    return "\n\n".join(" ".join(part.split()) for part in parts)


def abi_train_verb(name: str, function: Callable[..., Any], epilog: str) -> str:
    """The section of one verb."""
    found = list(parameters(function))
    words = [p.spelled if p.required else f"[{p.spelled}]" for p in found if p.argument]
    usage = " ".join([f"abi-train {name}", *words, "[OPTIONS]"])
    lines = [f"### `abi-train {name}`", "", paragraphs(function.__doc__ or ""), ""]
    lines += [f"    {usage}", ""]
    lines += ["| | | default |", "|---|---|---|"]
    for p in found:
        default = "required" if p.required else f"`{p.default}`" if p.default else ""
        lines.append(f"| `{p.spelled}` | {p.help.replace('|', chr(92) + '|')} | {default} |")
    examples = [line for line in plain(epilog).splitlines() if line.startswith("abi-train")]
    if examples:
        lines += ["", *(f"    {line}" for line in examples)]
    return "\n".join(lines)


def abi_help(*words: str) -> str:
    """What the Zig program says about a command."""
    done = subprocess.run(
        [str(program_path()), *words, "--help"], capture_output=True, text=True, check=True
    )
    return (done.stdout or done.stderr).strip()


def abi_commands() -> list[str]:
    """The commands that `abi --help` lists."""
    block = abi_help().split("Commands:\n", 1)[1].split("\n\n", 1)[0]
    return [line.split()[0] for line in block.splitlines()]


def page() -> str:
    """The whole document."""
    parts = [HEAD, "## `abi-train`\n"]
    codes = (CLI_TEXT or "").split("\n", 2)[2].strip()
    parts.append(codes + "\n")
    parts += [abi_train_verb(*verb) + "\n" for verb in verbs()]
    parts.append(f"## `abi`\n\n```text\n{abi_help()}\n```\n")
    for name in abi_commands():
        if name != "version":
            parts.append(f"### `abi {name}`\n\n```text\n{abi_help(name)}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
