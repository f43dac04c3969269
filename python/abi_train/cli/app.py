"""The verbs together, and what happens when one of them fails."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import AbiTrainError
from . import (
    chat,
    check,
    data,
    doctor,
    export,
    formats,
    init,
    inspect,
    jobs,
    listen,
    merge,
    pairs,
    plan,
    push,
    runs,
    sets,
    train,
)
from . import demo as demo_verb
from . import eval as evaluation
from .common import HELP_SETTINGS, error_line, say
from .streams import prepare_streams

DEBUG_FLAG = "--debug"

VERBS = (
    "demo",
    "init",
    "data",
    "plan",
    "train",
    "runs",
    "check",
    "merge",
    "export",
    "push",
    "chat",
    "eval",
    "jobs",
    "inspect",
    "doctor",
)


class Interrupted(Exception):
    """Ctrl-C, past typer, which would turn it into a silent exit code."""


class Verbs(TyperGroup):
    """Lists the verbs in the order of the work."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen verb. Raises `Interrupted` for Ctrl-C."""
        listen()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of `VERBS`."""
        return [verb for verb in VERBS if verb in self.commands]


app = typer.Typer(
    name="abi-train",
    cls=Verbs,
    help="Train language models in Python or in Zig, run them in Zig, and prove that both say the "
    "same.\n\nThe verbs stand in the order of the work. Each explains itself with --help.",
    epilog="Exit codes: 0 done, 1 failed or a difference found, 2 wrong command line, 130 stopped "
    f"by Ctrl-C. {DEBUG_FLAG} shows where an error came from.",
    no_args_is_help=True,
    add_completion=False,
    context_settings=HELP_SETTINGS,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"abi-train {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    pass


app.command("demo", epilog=demo_verb.EXAMPLES)(demo_verb.demo)
app.command("init", epilog=init.EXAMPLES)(init.init)
data.app.command("get", epilog=sets.GET_EXAMPLES)(sets.get)
data.app.command("sets", epilog=sets.SETS_EXAMPLES)(sets.sets)
data.app.command("pairs", epilog=pairs.EXAMPLES)(pairs.pairs)
data.app.command("formats", epilog=formats.EXAMPLES)(formats.formats)
app.add_typer(data.app, name="data")
app.command("plan", epilog=plan.EXAMPLES)(plan.plan)
app.command("train", epilog=train.EXAMPLES)(train.train)
runs.app.command("list", epilog=runs.LIST_EXAMPLES)(runs.list_runs)
runs.app.command("show", epilog=runs.SHOW_EXAMPLES)(runs.show)
app.add_typer(runs.app, name="runs")
app.command("check", epilog=check.EXAMPLES)(check.check)
app.command("merge", epilog=merge.EXAMPLES)(merge.merge)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("push", epilog=push.EXAMPLES)(push.push)
app.command(
    "chat",
    epilog=chat.EXAMPLES,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, **HELP_SETTINGS},
)(chat.chat)
app.command("eval", epilog=evaluation.EXAMPLES)(evaluation.evaluate_model)
app.add_typer(jobs.app, name="jobs")
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    debug = DEBUG_FLAG in given[:cut]
    given = [word for word in given[:cut] if word != DEBUG_FLAG] + given[cut:]
    try:
        code = app(args=given, prog_name="abi-train", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        if debug and not isinstance(error, (SystemExit, typer.Exit)) and not _is_usage(error):
            traceback.print_exc()
        code = _code_of(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _is_usage(error: BaseException) -> bool:
    """Whether the command line is wrong, and the error knows how to say it."""
    return hasattr(error, "show") and hasattr(error, "exit_code")


def _code_of(error: BaseException) -> int:
    """Say what went wrong in one line and choose the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, (KeyboardInterrupt, Interrupted, typer.Abort)):
        say("interrupted")
        return 130
    if _is_usage(error):
        usage: Any = error
        usage.show()
        return int(usage.exit_code)
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough and wants no words
        return 1
    if isinstance(error, AbiTrainError):
        error_line(str(error))
        return 1
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        error_line(f"{name}{error.strerror or error}")
        return 1
    if isinstance(error, MemoryError):
        error_line("out of memory. Use a smaller model, batch_size or max_seq_len.")
        return 1
    text = " ".join(str(error).split())[:300]
    error_line(
        f"unexpected {type(error).__name__}: {text}. This is a fault of abi-train: run again with "
        f"{DEBUG_FLAG} and report what it prints."
    )
    return 1
