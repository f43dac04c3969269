"""`abi-train train`: run a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import LlmTrainingConfig
from ..errors import CheckpointError
from ..recipes.document import name_and_value
from .common import JsonFlag, from_the_command_line, print_json, say
from .recipe import phased, train_phases
from .rows import DataLines

EXAMPLES = """[bold]Examples[/]

abi-train train recipe.yaml

abi-train train abbey-tiny --engine trl --set learning_rate=1e-3 --dry-run

abi-train train --model ./model --data train.bin --run-dir runs/a --set epochs=1 --engine trl

abi-train train --model ./model --data train.bin --run-dir runs/b --method lora --set lora.r=16
"""


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="Recipe file (.yaml, .json, .toml), or the name of one that comes along; see "
            "`abi-train init`."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder, .gguf, or config.json for random weights.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Token file (.bin) to train on.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Token file to evaluate on.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder whose tokenizer files go into checkpoints.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of checkpoints and logs.")] = None,
    engine: Annotated[str | None, typer.Option(help="native or trl. (default: native)")] = None,
    method: Annotated[
        str | None, typer.Option(help="full, or lora for an adapter. (default: full)")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="sft, or dpo for pairs of answers. (default: sft)")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter folder to go on from; means --method lora.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, float64 or bf16. (default: auto)")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Checkpoint folder to go on from, or `latest`.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One training setting, NAME=VALUE, lora.NAME=VALUE, dpo.NAME=VALUE or "
            "monitor.NAME=VALUE; may be repeated.",
        ),
    ] = None,
    commercial: Annotated[
        bool,
        typer.Option("--commercial", help="Refuse data whose licence does not allow such use."),
    ] = False,
    trackio: Annotated[
        str | None,
        typer.Option(help="Trackio project, on this machine, that gets the metrics as well."),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option(help="Name of the run there. (default: the run folder's)")
    ] = None,
    trackio_space: Annotated[
        str | None,
        typer.Option(help="Space on the Hub, USER/NAME, that shows them; private where it is new."),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(help="Only this phase of a recipe with phases; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the recipe comes to, and write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a model as a recipe says, on the native engine or through TRL.

    A recipe with phases runs them in order. The same command again goes on with it: finished phases
    are kept, an interrupted one resumes.

    Ctrl-C finishes the update, saves and says where; a second Ctrl-C leaves at once.
    """
    from .. import engines
    from ..checkpoint import list_checkpoints, run_lock
    from ..progress import Observers, StopOnSignal, TrainingLine

    options = {
        "model": model,
        "data": data,
        "eval_data": eval_data,
        "tokenizer": tokenizer,
        "run_dir": run_dir,
        "engine": engine,
        "method": method,
        "objective": objective,
        "precision": precision,
        "commercial": commercial or None,
    }
    monitor = {"trackio": trackio, "trackio_run": run_name, "trackio_space": trackio_space}
    found = phased(recipe)
    if found is not None:
        train_phases(
            found,
            {**options, "adapter": adapter},
            monitor,
            settings or [],
            only=phase or [],
            resume=resume,
            dry_run=dry_run,
            as_json=as_json,
        )
        return
    if phase:
        raise typer.BadParameter(f"--phase {phase[0]}: the recipe has no phases")
    spec = build_spec(
        recipe,
        {**options, "resume": resume},
        settings or [],
        adapter=adapter,
        monitor=monitor,
    )
    if dry_run:
        show_spec(spec, as_json=as_json)
        return
    if spec.resume is None:
        earlier = list_checkpoints(spec.checkpoint_dir)
        if earlier:
            with run_lock(spec.checkpoint_dir):  # A run still at work is the better reason.
                raise CheckpointError(
                    f"{spec.checkpoint_dir} holds {earlier[-1].name} of another run. Go on with it "
                    "(--resume latest), or train into another folder (--run-dir)."
                )
    stop = StopOnSignal()
    first = engines.processes.is_first()
    shown = [DataLines(spec), TrainingLine(interval=spec.config.log_interval)] if first else []
    observer = Observers(*shown, stop)
    with stop.installed():
        result = engines.run(spec, observer)
    if not first:
        pass
    elif as_json:
        print_json(result.to_dict())
    else:
        _summary(result)
    if result.stop_reason == "interrupted":
        say(f"go on with: --resume {shlex.quote(str(result.checkpoint or 'latest'))}")
        raise typer.Exit(128 + (stop.signal or 2))


TABLES = ("lora", "dpo", "monitor")


def build_spec(
    recipe: Path | None,
    options: dict[str, Any],
    settings: list[str],
    *,
    adapter: Path | None = None,
    monitor: dict[str, Any] | None = None,
) -> Any:
    """The run of a recipe, with the options given on the command line in place of its own."""
    from ..runspec import RunSpec

    given = {key: value for key, value in options.items() if value is not None}
    if recipe is not None:
        spec = RunSpec.load(recipe)
    else:
        for key in ("model", "data", "run_dir"):
            if key not in given:
                option = "--" + key.replace("_", "-")
                raise typer.BadParameter(f"name a recipe file, or give {option}")
        spec = RunSpec(model=given["model"], data=given["data"], run_dir=given["run_dir"])
    with from_the_command_line():
        flat = [s for s in settings if s.partition(".")[0] not in TABLES or "=" not in s]
        if flat:
            given["config"] = _changed(spec.config, flat)
        given.update(_changed_tables(spec, given, settings, adapter))
        given.update(_changed_monitor(spec, settings, monitor or {}))
        return spec.replace(**given) if given else spec


def _changed_tables(
    spec: Any, given: dict[str, Any], settings: list[str], adapter: Path | None
) -> dict[str, Any]:
    """The tables `lora` and `dpo` with what the command line says of them. A setting of a table
    means its method or objective, unless another one is named."""
    from ..adapters import LoraConfig
    from ..preference import DpoConfig

    changes: dict[str, Any] = {}
    kinds: dict[str, Any] = {"lora": LoraConfig, "dpo": DpoConfig}
    for table, word in (("lora", "method"), ("dpo", "objective")):
        values = _of_table(settings, table)
        if table == "lora" and adapter is not None:
            values["adapter"] = adapter
        if values:
            before = getattr(spec, table)
            old = {} if before is None else before.to_dict()
            changes[table] = kinds[table].from_dict({**old, **values})
            changes[word] = given.get(word, table)
        elif given.get(word) not in (None, table):
            changes[table] = None  # the recipe's table is of the method that was replaced
    return changes


def _changed_monitor(spec: Any, settings: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """The table `monitor` with what the command line says of it."""
    given = {key: value for key, value in options.items() if value is not None}
    values = {**_of_table(settings, "monitor"), **given}
    if not values:
        return {}
    return {"monitor": type(spec.monitor).from_dict({**spec.monitor.to_dict(), **values})}


def _of_table(settings: list[str], table: str) -> dict[str, Any]:
    """What `--set` says of a table."""
    values = {}
    for setting in settings:
        if setting.startswith(f"{table}.") and "=" in setting:
            name, value = name_and_value(setting)
            values[name.removeprefix(f"{table}.")] = value
    return values


def show_spec(spec: Any, *, as_json: bool) -> None:
    """What a recipe of one run comes to."""
    import yaml

    from .common import out

    spec.check_paths()
    values = spec.to_dict()
    if as_json:
        print_json(values)
    else:
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        out().print(text, markup=False, highlight=False, end="")


def _changed(config: LlmTrainingConfig, settings: list[str]) -> LlmTrainingConfig:
    from ..config import TRL_ALIASES, TRL_SCHEDULE_KEY

    # What nobody set stays unset, because TRL's schedule depends on it.
    fresh = LlmTrainingConfig()
    values = {k: v for k, v in config.to_dict().items() if v != getattr(fresh, k)}
    for setting in settings:
        name, value = name_and_value(setting)
        ours = "lr_schedule" if name == TRL_SCHEDULE_KEY else TRL_ALIASES.get(name, name)
        values.pop(ours, None)
        values[name] = value
    return LlmTrainingConfig.from_dict(values)


def _summary(result: Any) -> None:
    from ..progress import short_count, short_time
    from .common import out

    reason = {
        "completed": "all updates done",
        "early_stopped": "evaluation stopped improving",
        "interrupted": "stopped on request",
    }[result.stop_reason]
    metrics = result.history[-1].metrics if result.history else {}
    besides = f"perplexity {result.final_perplexity:.2f}"
    if metrics:
        share = 100 * metrics["rewards/accuracies"]
        besides = f"margin {metrics['rewards/margins']:.4f}, {share:.0f}% of pairs the right way"
    facts = {
        "updates": f"{result.total_steps} ({reason})",
        "loss": f"{result.final_loss:.4f}, {besides}",
    }
    if result.evaluations:
        facts["evaluation"] = f"best loss {result.best_val_loss:.4f} at update {result.best_step}"
    facts["tokens"] = (
        f"{short_count(result.total_tokens)} in {short_time(result.total_time_ns / 1e9)}, "
        f"{short_count(result.avg_throughput)} a second"
    )
    if result.checkpoint is not None:
        facts["checkpoint"] = str(result.checkpoint)
    if result.model_folder != result.checkpoint:
        facts["best weights"] = str(result.model_folder)
    for key, value in facts.items():
        out().print(f"{key:<12}{value}", markup=False, highlight=False)
