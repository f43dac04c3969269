"""`abi-train plan`: what a recipe needs, before it starts."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import JsonFlag, from_the_command_line, out, print_json, say, size_text

if TYPE_CHECKING:
    from ..plan import Memory, PhasePlan, Plan

EXAMPLES = """[bold]Examples[/]

abi-train plan recipe.yaml

abi-train plan recipe.yaml --device a100-large --no-measure --json
"""

HUB = "hub:"
OfflineFlag = Annotated[
    bool,
    typer.Option("--offline", help="Do not ask the Hub: prices are those of a table with its day."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting of the recipe, as in `abi-train train`; may repeat."),
]


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, or a packaged one's name.")],
    device: Annotated[
        str, typer.Option(help="cpu (this machine), a GPU as A100, or a flavour of Jobs.")
    ] = "cpu",
    engine: Annotated[
        str | None, typer.Option(help="native or trl. (default: the recipe's)")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Another model than the recipe's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, float64 or bf16. (default: the recipe's)")
    ] = None,
    settings: SetOption = None,
    measure: Annotated[
        bool, typer.Option(help="Make a few real updates first, to know time and memory here.")
    ] = True,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds of updates that each phase is measured for.")
    ] = 15.0,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf",
            metavar="TYPE",
            help="Also tell the exact size of the file that `abi-train export --gguf TYPE` makes "
            "of the result.",
        ),
    ] = None,
    offline: OfflineFlag = False,
    all_flavors: Annotated[
        bool, typer.Option("--all", help="Show the machines that do not fit, too.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Tell what a recipe needs before it starts: memory, updates, tokens, time, price, disk.

    Exit code 1 when it does not fit, with what would.
    """
    from ..plan.hardware import prices
    from ..plan.planning import gpu_of

    if device != "cpu":
        with from_the_command_line():
            gpu_of(device, prices(online=not offline))
    with planned(
        recipe,
        {"engine": engine, "model": model, "precision": precision},
        settings or [],
        device=device,
        measure=measure and device == "cpu",
        seconds=seconds,
        online=not offline,
        gguf=gguf,
    ) as made:
        if as_json:
            print_json(made.to_dict())
        else:
            show(made, all_flavors=all_flavors)
        if made.fits is False:
            raise typer.Exit(1)


@contextlib.contextmanager
def planned(
    recipe: Path, options: dict[str, Any], settings: list[str], **how: Any
) -> Iterator[Plan]:
    """The plan of a recipe file. What is prepared for it lives as long as the block."""
    from ..plan import plan as make

    given = {key: value for key, value in options.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="abi-train-plan-") as scratch:
        read = opened(recipe, given, settings)
        prepare = None
        if hasattr(read, "phases"):
            prepare = preparing(read, Path(scratch), online=how.get("online", False))
        yield make(read, prepare=prepare, **how)


def opened(recipe: Path, options: dict[str, Any], settings: list[str]) -> Any:
    """A phased recipe or a run, with what the command line says in place of its own."""
    from ..config import in_file, read_document
    from ..recipes import load
    from ..recipes.document import is_phased
    from ..recipes.places import find
    from .train import build_spec

    with from_the_command_line():
        path = find(recipe)
    with in_file(path):
        phased = is_phased(read_document(path))
    if phased:
        with from_the_command_line():
            return load(path, settings=settings, **options)
    return build_spec(path, options, settings)


def preparing(recipe: Any, scratch: Path, *, online: bool) -> Any:
    """Makes the token files of a phase below `scratch`, as a run would below its own folder;
    guesses where what they are made of is not here."""
    from ..errors import AbiTrainError
    from ..plan import guesses
    from ..plan.model_facts import facts_of, of_config
    from ..recipes.preparing import prepare_phase

    tokenizers: dict[str, Path | None] = {}

    def tokenizer_of(spec: Any) -> Path | None:
        own: Path | None = spec.tokenizer_dir or recipe.phases[0].spec.tokenizer_dir
        model = str(recipe.phases[0].spec.model)
        if own is not None or not online or HUB not in model:
            return own
        if model not in tokenizers:
            tokenizers[model] = _fetched_tokenizer(model.rpartition(HUB)[2])
        return tokenizers[model]

    def made(phase: Any) -> tuple[Path, Path | None, str | None]:
        spec, why = phase.spec, ""
        data = scratch / f"{phase.name}.bin"
        eval_data = scratch / f"{phase.name}_eval.bin" if spec.eval_data is not None else None
        if online or all(rows.kind != "set" for rows in phase.prepared.rows):
            moved = dataclasses.replace(phase, spec=spec.replace(data=data, eval_data=eval_data))
            try:
                tokenizer = tokenizer_of(spec)
                prepare_phase(
                    moved, tokenizer, None, tell=lambda text: say(f"{phase.name}: {text}")
                )
                return data, eval_data, None
            except AbiTrainError as error:
                why = f" ({error})"
        first = recipe.phases[0]
        config = first.model_config
        model = of_config("", config) if config else facts_of(first.spec.model, online=online)
        guessed = guesses.stand_in(phase, data, model.vocabulary)
        if guessed is None:
            return spec.data, spec.eval_data, f"its data cannot be prepared here{why}"
        return data, None, f"{guessed}{why}"

    return made


def _fetched_tokenizer(repository: str) -> Path:
    """The tokenizer of a model on the Hub, without its weights."""
    from ..hub import client

    name, _, revision = repository.partition("@")
    hub = client.api()
    with client.asking(f"fetch the tokenizer of {name}"):
        folder = hub.snapshot_download(
            name, revision=revision or None, allow_patterns=["tokenizer*", "*.jinja", "config.json"]
        )
    return Path(folder)


# ---- as text ----


def show(made: Plan, *, all_flavors: bool = False) -> None:
    """For a person, on stdout."""
    for phase in made.phases:
        _show_phase(phase, named=len(made.phases) > 1)
    if len(made.phases) > 1:
        _line("all phases", _together(made))
    _show_flavors(made, all_flavors)
    for note in made.notes:
        _line("note", note)


def _line(name: str, text: str) -> None:
    out().print(f"{name:<13}{text}", markup=False, highlight=False)


def _show_phase(phase: PhasePlan, *, named: bool) -> None:
    from ..progress import short_count

    spec = phase.spec
    if named:
        out().print(f"[bold]{phase.name}[/]", highlight=False)
    what = f"{spec.engine}, {spec.method}, {spec.objective}, {phase.precision}"
    _line("run", what)
    frozen = f", {short_count(phase.facts.parameters)} frozen" if spec.lora is not None else ""
    _line("parameters", f"{short_count(phase.trained)} trained{frozen} ({phase.facts.name})")
    if phase.updates is not None:
        each = f"{phase.updates_per_epoch} an epoch" if phase.updates_per_epoch else ""
        _line("updates", f"{phase.updates:,}" + (f" ({each})" if each else ""))
    if phase.tokens is not None and phase.positions is not None:
        padding = 1 - phase.tokens / max(phase.positions, 1)
        _line(
            "tokens",
            f"{short_count(phase.tokens)} read, {short_count(phase.targets or 0)} learned, "
            f"padding {100 * padding:.0f} %, largest micro-batch "
            f"{phase.sequences} x {phase.longest}",
        )
    _show_memory(phase.memory)
    for other in phase.memories[1:]:
        if other.device == "gpu" and spec.engine == "native":
            continue
        _line("  besides", f"{other.engine} on {other.device}: {_gib(other.counted)}")
    if phase.time is not None:
        _line("time", _time_text(phase))
    _line(
        "disk",
        f"{size_text(phase.disk.while_saving_bytes)} while saving: {phase.disk.checkpoints} kept "
        f"of {size_text(phase.disk.checkpoint_bytes)} and one being written"
        + (f"; GGUF {size_text(phase.disk.gguf_bytes)}" if phase.disk.gguf_bytes else "")
        + (
            f"; exported in {phase.disk.export_mix} {size_text(phase.disk.export_bytes)}"
            if phase.disk.export_bytes
            else ""
        ),
    )
    for note in phase.notes:
        _line("note", note)
    for advice in phase.advice:
        _line("would help", advice)


def _show_memory(memory: Memory) -> None:
    verdict = {True: "fits", False: "DOES NOT FIT", None: ""}[memory.fits]
    room = f" of {_gib(memory.available)}: {verdict}" if memory.available is not None else ""
    how = "" if memory.measured is None else f" measured ({_gib(memory.counted)} counted)"
    files = f", {_gib(memory.from_files)} of it pages of files" if memory.from_files else ""
    place = f"{memory.engine} on {memory.device}"
    _line("memory", f"{place}: {_gib(memory.total)}{how}{files}{room}")
    for name, value in sorted(memory.parts.items(), key=lambda item: -item[1]):
        if value >= 2**20:
            _line("", f"{_gib(value):>10}  {name}")


def _time_text(phase: PhasePlan) -> str:
    from ..progress import short_time

    assert phase.time is not None
    parts = [
        f"{name} {short_time(value)}" for name, value in phase.time.parts.items() if value >= 0.5
    ]
    shown = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return f"{short_time(phase.time.seconds)}{shown}; {phase.time.source}"


def _together(made: Plan) -> str:
    from ..progress import short_time

    time = "time not known" if made.seconds is None else short_time(made.seconds)
    return f"{time}, {size_text(made.disk_bytes)} of disk at the worst moment"


def _show_flavors(made: Plan, everything: bool) -> None:
    from ..progress import short_time

    shown = [item for item in made.flavors if everything or item.fits]
    _line("rented", f"prices: {made.prices.source}")
    if not shown:
        _line("", "no machine of Jobs fits")
    for item in sorted(shown, key=lambda one: (one.dollars or 1e9, one.flavor.dollars_per_hour)):
        cost = "" if item.dollars is None else f"  about ${item.dollars:.2f}"
        time = "time not known" if item.seconds is None else short_time(item.seconds)
        why = f"  {item.why}" if item.why else f"  {time}{cost}"
        _line(
            "",
            f"{item.flavor.name:<15} {item.flavor.words:<22} "
            f"${item.flavor.dollars_per_hour:>5.2f}/h{why}",
        )
    if made.cheapest is not None and made.cheapest.dollars is not None:
        timeout = made.jobs_timeout_seconds(made.cheapest.flavor.name)
        _line(
            "cheapest",
            f"{made.cheapest.flavor.name}, about ${made.cheapest.dollars:.2f}; a job there should "
            f"be given {short_time(timeout or 0)}",
        )


def _gib(count: int | None) -> str:
    value = (count or 0) / 2**20
    return f"{value:.0f} MiB" if value < 10_000 else f"{value / 1024:.1f} GiB"
