"""`abi-train runs`: what was and is trained on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..data.visible import visible
from .common import HELP_SETTINGS, JsonFlag, out, print_json, say

COLORS = ("blue", "dark_orange", "green", "magenta", "red", "cyan", "yellow", "white")
STATE_COLORS = {"running": "cyan", "finished": "green", "interrupted": "yellow", "failed": "red"}
JSON_POINTS = 1000
NAMED = ("updates", "loss", "evaluation", "began", "took")


class Runs(TyperGroup):
    """A folder in place of a verb is listed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where there is none."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=Runs,
    help="List runs and draw their curves. Without a verb: `list`.",
    context_settings=HELP_SETTINGS,
    rich_markup_mode="rich",
)

LIST_EXAMPLES = """[bold]Examples[/]

abi-train runs

abi-train runs list runs/abbey old --json
"""
SHOW_EXAMPLES = """[bold]Examples[/]

abi-train runs show runs/first

abi-train runs show runs/native runs/trl --html curves.html --png curves.png
"""


def list_runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders to look in. (default: runs, else where you stand)"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the runs in and below folders, with state, updates and last loss.

    running: a process holds the folder. interrupted: stopped on request, or killed.
    """
    from ..runs import find
    from ..runs.listing import Row, row_of

    runs = find(folders or [])
    if as_json:
        print_json({"runs": [run.to_dict() for run in runs]})
        return
    if not runs:
        say("no runs here; `abi-train train` makes one, and a folder can be named")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    rows = [row_of(run).cells for run in runs]
    used = [at for at in range(len(Row.HEAD)) if any(cells[at] for cells in rows)]
    for at in used:
        right = Row.HEAD[at] in ("updates", "loss", "evaluation", "took")
        table.add_column(Row.HEAD[at], justify="right" if right else "left", overflow="fold")
    for cells in rows:
        shown = [Text(visible(cells[at])) for at in used]
        shown[used.index(1)].stylize(STATE_COLORS[cells[1]])
        table.add_row(*shown)
    out().print(table)
    for run in runs:
        if run.error:
            say(f"{run.folder}: {run.error}")


def show(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are overlaid.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write a page with all curves to this file.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write a picture to this file (extra `report`).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw loss, learning rate and gradient norm of runs in the terminal, one over the other.

    A phased run is drawn phase after phase. With --html or --png nothing is drawn here.
    """
    from ..checkpoint import write_bytes_atomic, write_text_atomic
    from ..errors import FileAccessError
    from ..runs import open_curves, page, picture
    from ..runs.curves import distinct

    _check_target("--html", html, (".html", ".htm"))
    _check_target("--png", png, (".png",))
    runs = [open_curves(folder) for folder in dict.fromkeys(folders)]
    names = distinct([run.name for run in runs], [run.parts[0].folder for run in runs])
    for run, name in zip(runs, names, strict=True):
        run.name = name
    for path, made in ((html, page), (png, picture)):
        if path is None:
            continue
        content: Any = made(runs)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write = write_text_atomic if isinstance(content, str) else write_bytes_atomic
            write(path, content)
        except OSError as error:
            raise FileAccessError(f"{path}: cannot be written ({error.strerror})") from None
    if as_json:
        print_json({"runs": [run.to_dict(points=JSON_POINTS) for run in runs]})
    elif html is not None or png is not None:
        for path in (html, png):
            if path is not None:
                out().print(str(path), markup=False, highlight=False)
    else:
        _print_curves(runs)


def _check_target(option: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """No file of a run, of a model or of data has such an ending: what is replaced is a drawing.

    So both options can never name the same file either.
    """
    if path is not None and path.suffix.lower() not in endings:
        raise typer.BadParameter(f"{option} is {str(path)!r}; the name must end in {endings[0]}")
    if path is not None and path.is_symlink() and path.resolve().suffix.lower() not in endings:
        raise typer.BadParameter(f"{option} is {str(path)!r}, which stands for {path.resolve()}")


def _print_curves(runs: list[Any]) -> None:
    from rich.text import Text

    from ..runs.listing import Row, row_of
    from ..runs.terminal import draw

    console = out()
    width = min(console.width, 110)
    # Without colours two lines cannot be told apart, so each is drawn by itself.
    apart = len(runs) > 1 and (console.no_color or not console.is_terminal)
    for number, run in enumerate(runs):
        for part in run.parts:
            cells = [
                visible(f"{head} {cell}" if head in NAMED else cell)
                for head, cell in zip(Row.HEAD, row_of(part).cells, strict=True)
                if cell
            ]
            text = Text("━━ ", style=COLORS[number % len(COLORS)])
            text.append("  ".join(cells), style="default")
            console.print(text)
            for alert in part.alerts:
                said = f"   step {alert.get('step')}: {alert.get('title')}: {alert.get('text')}"
                console.print(Text(visible(said), style="yellow"))
            if part.error:
                console.print(Text(f"   {visible(part.error)}", style="red"))
        if apart:
            console.print()
            _print_drawing(console, [run], width, draw)
    if not apart:
        console.print()
        _print_drawing(console, runs, width, draw)


def _print_drawing(console: Any, runs: list[Any], width: int, draw: Any) -> None:
    from rich.text import Text

    drawn = False
    for row in draw(runs, width=width):
        drawn = True
        text = Text()
        for piece, owner in row:
            text.append(piece, style="dim" if owner is None else COLORS[owner % len(COLORS)])
        console.print(text)
    if not drawn:
        say("no update is logged yet")
