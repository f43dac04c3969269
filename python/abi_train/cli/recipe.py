"""`abi-train train` on a recipe of several phases: what is shown, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..data.visible import visible
from ..recipes.listener import Listener
from .common import err, from_the_command_line, out, print_json, say
from .rows import DataLines

if TYPE_CHECKING:
    from ..progress import Observer
    from ..recipes import Phase, Recipe
    from ..recipes.runner import RecipeResult
    from ..runspec import RunSpec

NOT_FOR_ALL = ("data", "eval_data", "method", "objective", "adapter")
"""Options of `train` that each phase has its own of."""


def phased(recipe: Path | None) -> Path | None:
    """The file of a recipe with phases; None for any other."""
    from ..config import in_file, read_document
    from ..recipes import places
    from ..recipes.document import is_phased

    if recipe is None:
        return None
    path = places.find(recipe)
    with in_file(path):
        return path if is_phased(read_document(path)) else None


def train_phases(
    path: Path,
    options: Mapping[str, Any],
    monitor: Mapping[str, Any],
    settings: Sequence[str],
    *,
    only: Sequence[str],
    resume: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run the recipe at `path`, or go on with it; with `dry_run` only say what it comes to."""
    from ..errors import PhaseError
    from ..recipes import load, run

    given = {key: value for key, value in options.items() if value is not None}
    for key in NOT_FOR_ALL:
        if given.get(key) is not None:
            option = "--" + key.replace("_", "-")
            raise typer.BadParameter(
                f"{option} is not for a recipe with phases; write --set phases.NAME.{key}=VALUE"
            )
    if resume not in (None, "latest"):
        raise typer.BadParameter(
            f"--resume {resume}: a recipe with phases goes on by itself; run the same command again"
        )
    settings = [
        *settings,
        *(f"monitor.{key}={value}" for key, value in monitor.items() if value is not None),
    ]
    command = _command(path, given, settings, only)
    run_dir = given.pop("run_dir", None)
    if settings or given:
        with from_the_command_line():
            recipe = load(path, settings=settings, run_dir=run_dir, **given)
    else:
        recipe = load(path, run_dir=run_dir)
    with from_the_command_line():
        for name in only:
            recipe.phase(name)
    if dry_run:
        _dry_run(recipe, path, given, settings, only, as_json=as_json)
        return
    listener = Shown()
    with listener.stop.installed():
        try:
            result = run(recipe, phases=only or None, listener=listener, command=command)
        except PhaseError:
            print_scores(listener.names, listener.scores)
            raise
    if as_json:
        print_json(result.to_dict())
    else:
        _summary(result)
    if result.interrupted is not None:
        say(f"phase {result.interrupted} was stopped; go on with: {command}")
        raise typer.Exit(128 + (listener.stop.signal or 2))


def _command(
    path: Path, given: Mapping[str, Any], settings: Sequence[str], only: Sequence[str]
) -> str:
    """What to type to go on."""
    from ..recipes import places

    name = path.stem if path == places.HERE / path.name else str(path)
    words = ["abi-train", "train", name]
    for key, value in given.items():
        option = "--" + key.replace("_", "-")
        words += [option] if value is True else [option, str(value)]
    for phase in only:
        words += ["--phase", phase]
    for setting in settings:
        words += ["--set", setting]
    return shlex.join(words)


class Shown(Listener):
    """A recipe's listener that writes to stderr, as a single run does."""

    def __init__(self) -> None:
        from ..progress import StopOnSignal

        self.stop = StopOnSignal()
        self.names: list[str] = []
        self.scores: dict[str, Mapping[str, Any]] = {}

    def on_phase(self, phase: Phase, number: int, count: int) -> None:
        """A heading."""
        spec = phase.spec
        console = err()
        console.print(f"phase {number} of {count}: {phase.name}", style="bold", end="  ")
        after = f", after {phase.after}" if phase.after else ""
        console.print(f"{spec.objective}, {_trained(phase)}, {spec.engine}{after}", highlight=False)

    def on_kept(self, phase: Phase, checkpoint: Path) -> None:
        """One line."""
        say(f"phase {phase.name} is finished: {checkpoint}")

    def on_note(self, text: str) -> None:
        """One line."""
        say(text)

    def on_scores(self, name: str | None, scores: Mapping[str, Any]) -> None:
        """Kept, for when a later phase fails."""
        self.names.append(name or START)
        self.scores[name or START] = scores

    def observer(self, phase: Phase, spec: RunSpec) -> Observer:
        """The lines of a single run."""
        from ..progress import Observers, TrainingLine

        return Observers(
            DataLines(spec), TrainingLine(interval=spec.config.log_interval), self.stop
        )

    def stop_requested(self) -> bool:
        """True after Ctrl-C."""
        return self.stop.stop_requested()


START = "start"
"""Heading of the evaluations before the first phase."""


def _trained(phase: Phase) -> str:
    if phase.spec.method == "full":
        return "all weights"
    went_on = phase.spec.lora is not None and phase.spec.lora.adapter is not None
    return "the same adapter" if went_on else "a new adapter"


def _summary(result: RecipeResult) -> None:
    console = out()
    for name, path in result.checkpoints.items():
        console.print(f"{name:<16}{path}", markup=False, highlight=False)
    columns: dict[str, Mapping[str, Any]] = {START: result.before} if result.before else {}
    columns.update(result.scores)
    print_scores(list(columns), columns)
    if result.interrupted is None and result.checkpoints:
        last = list(result.checkpoints.values())[-1].parent
        say(f"next: abi-train export {shlex.quote(str(last))}")


def print_scores(names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Evaluations, one a row, before the first phase and after each."""
    if any(columns[name] for name in names):
        from ..evaluate import table

        out().print(table({name: columns[name] for name in names}))


def _dry_run(
    recipe: Recipe,
    path: Path,
    options: Mapping[str, Any],
    settings: Sequence[str],
    only: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """What the recipe comes to, and what it needs. Nothing is written or fetched."""
    from ..errors import AbiTrainError
    from ..recipes.preparing import count_rows
    from .plan import planned, show

    phases = [phase for phase in recipe.phases if not only or phase.name in only]
    counted = {
        phase.name: None if phase.prepared is None else count_rows(phase.prepared.rows)
        for phase in phases
    }
    if as_json:
        values = recipe.to_dict()
        values["phases"] = [
            {**phase.to_dict(), "source_rows": counted[phase.name]} for phase in phases
        ]
        try:
            with planned(path, dict(options), list(settings), **OFFLINE) as made:
                values["plan"] = made.to_dict()
        except AbiTrainError as error:
            values["plan"] = {"error": str(error)}
        print_json(values)
        return
    console = out()
    console.print(f"{recipe.name}, in {recipe.run_dir}", markup=False, highlight=False)
    for phase in phases:
        console.print(f"\n{phase.name}", style="bold", markup=False)
        for key, value in _facts(phase, counted[phase.name]).items():
            console.print(f"  {key:<12}{visible(value)}", markup=False, highlight=False)
    console.print()
    try:
        with planned(path, dict(options), list(settings), **OFFLINE) as made:
            show(made)
    except AbiTrainError as error:
        say(f"no plan of memory and time: {error}")


OFFLINE: dict[str, Any] = {"device": "cpu", "measure": False, "online": False}
"""A plan that asks nobody and takes no time. `abi-train plan` asks the Hub and measures."""


def _facts(phase: Phase, rows: int | None) -> dict[str, str]:
    spec, config = phase.spec, phase.spec.config
    begins = f"the result of {phase.after}" if phase.after else str(spec.model)
    if phase.after and phase.chain == "merge":
        begins += ", merged"
    if phase.model_config is not None and phase.after is None:
        begins = f"random weights ({phase.model_config.get('model_type', 'model')})"
    facts = {
        "begins with": begins,
        "trains": f"{_trained(phase)}, objective {spec.objective}, engine {spec.engine}",
    }
    if phase.prepared is None:
        facts["data"] = str(spec.data)
    else:
        words = ", ".join(one.words for one in phase.prepared.rows)
        facts["rows"] = words + ("" if rows is None else f": {rows} rows")
        if phase.prepared.eval_rows:
            facts["held out"] = ", ".join(one.words for one in phase.prepared.eval_rows)
        elif phase.prepared.eval_split:
            facts["held out"] = f"{phase.prepared.eval_split:.0%} of them"
    size = config.batch_size * config.grad_accum_steps
    facts["updates"] = f"of {size} {'pairs' if spec.objective == 'dpo' else 'rows'}"
    count = _updates(phase, rows)
    if count is not None:
        facts["updates"] = f"{count} {facts['updates']}"
    facts["schedule"] = (
        f"{config.lr_schedule}, learning rate {config.learning_rate:g}, "
        f"{config.epochs} epochs, up to {config.max_seq_len} tokens"
    )
    if spec.lora is not None:
        facts["adapter"] = f"r {spec.lora.r}, alpha {spec.lora.lora_alpha:g}, {_targets(spec.lora)}"
    if phase.evals:
        facts["evaluated"] = ", ".join(phase.evals)
    facts["folder"] = str(spec.run_dir)
    return facts


def _targets(lora: Any) -> str:
    names = lora.target_modules
    shown = names if isinstance(names, str) else ", ".join(names)
    parameters = ", ".join(lora.target_parameters)
    return f"{shown}; {parameters}" if parameters else shown


def _updates(phase: Phase, rows: int | None) -> int | None:
    """Updates of a phase; None where the number of its rows is not known before it is prepared."""
    config = phase.spec.config
    if config.max_steps:
        return config.max_steps
    if rows is None or phase.prepared is None or phase.prepared.rows_per == "answer":
        return None
    kept = rows - round(rows * phase.prepared.eval_split)
    if config.packing != "none":
        return None
    batches = -(-kept // config.batch_size)
    return -(-batches // config.grad_accum_steps) * config.epochs
