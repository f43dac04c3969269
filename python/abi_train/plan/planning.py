"""`plan`: what a recipe will need, phase by phase.

What can be counted is counted: parameters, updates, tokens, the native engine's buffers, the bytes
of checkpoints. What cannot is measured on the machine at hand, or estimated from a table, and says
so.

A phased recipe is anything with `phases`, each with `name` and `spec`; a phase may begin with what
does not exist yet, and is then planned on the first phase's model, which has the same shape.

Does not know: how recipes are read, the terminal.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import AbiTrainError, ConfigError
from ..model import Model
from ..runspec import RunSpec
from . import measuring, native_memory, torch_memory
from .disk import gguf_bytes
from .hardware import DENSE_SHARE, EXPERTS_SHARE, GIB, UNSURE, Flavor, Gpu, Prices, prices
from .model_facts import ModelFacts, facts_of, of_config
from .results import FlavorPlan, Memory, PhasePlan, Plan, Time, before_training

GPU_MARGIN: Final = 0.05
"""Of a GPU's memory kept free when machines are chosen: a formula is not exact."""

NOT_YET: Final = "checkpoint-0"
"""A checkpoint that no run has."""

Prepare = Callable[[Any], tuple[Path, Path | None, str | None]]
"""From a phase to its token files and those it is evaluated on, made somewhere for the plan, and
what is to be known of them."""


def plan(
    recipe: Any,
    *,
    measure: bool = False,
    online: bool = False,
    device: str = "cpu",
    prepare: Prepare | None = None,
    seconds: float = 15.0,
    gguf: str | None = None,
) -> Plan:
    """The plan of a `RunSpec`, or of anything with `phases`.

    measure: make a few real updates in a process beside this one, about `seconds` for each phase.
    online: ask the Hub for prices, and for the shape of a model that is not here. device: `cpu`,
    the name of a GPU (A100) or of a flavour. prepare: makes the token files of a phase that are
    not there; without it such a phase has no counts. gguf: a mix of `abi_train.export.MIXES`, in
    which the result will be exported: its exact size is told with the last phase.

    Raises `ConfigError` for what the recipe or `device` says wrong, `EngineError` when measuring
    fails, and what opening model and data raises.
    """
    known = prices(online=online)
    gpu = gpu_of(device, known)
    phases: Sequence[Any] = getattr(recipe, "phases", None) or ()
    made: list[PhasePlan] = []
    with tempfile.TemporaryDirectory(prefix="abi-train-plan-") as name:
        rest = (known, gpu, measure, online, prepare, seconds, Path(name))
        if not phases:
            only = _plan_one("run", recipe, None, None, *rest)
            only = _exported(only, gguf, recipe.run_dir)
            return Plan(name=recipe.run_dir.name or "run", phases=(only,), prices=known)
        for phase in phases:
            first = made[0] if made else None
            try:
                made.append(_plan_one(phase.name, phase.spec, phase, first, *rest))
            except AbiTrainError as error:
                raise type(error)(f"phase {phase.name}: {error}") from None
        if gguf is not None:  # else a recipe needs no more than its phases
            made[-1] = _exported(made[-1], gguf, recipe.run_dir)
    return Plan(name=str(getattr(recipe, "name", "recipe")), phases=tuple(made), prices=known)


def _exported(phase: PhasePlan, mix: str | None, run_dir: Path) -> PhasePlan:
    """The phase with the size of the file that its result will be exported to."""
    if mix is None:
        return phase
    from ..export import MIXES
    from ..export.handover import ALIASES, name_of

    name = ALIASES.get(mix.lower(), mix.lower())
    if name not in MIXES:
        raise ConfigError(f"gguf is {mix!r}; it must be one of {', '.join(MIXES)}")
    size, note = gguf_bytes(phase.spec, phase.facts.config, mix=name, name=name_of(run_dir))
    notes = [] if note is None else [f"the size of the GGUF in {name} is not known: {note}"]
    disk = dataclasses.replace(phase.disk, export_mix=name, export_bytes=size)
    return dataclasses.replace(phase, disk=disk, notes=(*phase.notes, *notes))


def gpu_of(name: str, known: Prices) -> Gpu | None:
    """The GPU meant by a name, None for the CPU here. Raises `ConfigError` for no such machine."""
    from .hardware import GPUS

    if name == "cpu":
        return None
    for gpu in GPUS.values():
        if gpu.name.lower().replace(" ", "-") == name.lower().replace(" ", "-"):
            return gpu
    try:
        return known.find(name).gpu
    except ConfigError as error:
        said = str(error).removeprefix("flavor: ")
        raise ConfigError(
            f"device: {said}; a GPU is {', '.join(GPUS)}, and this machine is cpu"
        ) from None


def _plan_one(
    name: str,
    spec: RunSpec,
    phase: Any,
    first: PhasePlan | None,
    known: Prices,
    gpu: Gpu | None,
    measure: bool,
    online: bool,
    prepare: Prepare | None,
    seconds: float,
    scratch: Path,
) -> PhasePlan:
    notes: list[str] = []
    facts = _facts(spec, phase, first, online)
    if getattr(phase, "after", None) is not None:
        spec = _not_begun(spec)
    if phase is not None and not spec.data.exists() and prepare is not None:
        data, eval_data, note = prepare(phase)
        notes += [note] if note else []
        spec = spec.replace(data=data, eval_data=eval_data)
    if not spec.data.exists():
        if phase is None:
            raise ConfigError(f"data: {spec.data} does not exist; check the path")
        notes.append(f"{spec.data} is not there yet: updates, tokens and time are not known")
    counted = native_memory.count(spec, facts)
    trained = counted.trained
    precision = spec.precision_where(bf16_gpu=gpu is not None and gpu.bf16_flops > 0)
    measurement = None
    room = _memories(spec, facts, counted, trained, gpu, None)[0].fits is not False
    here = None
    if measure and counted.micro_batches and gpu is None and room:
        here = _stand_in(spec, facts, first, scratch)
    if here is not None:
        positions = counted.positions_per_micro_batch
        measurement = measuring.measure(
            here, positions=positions, operations=6 * facts.active * positions, seconds=seconds
        )
    elif measure:
        notes.append("not measured: " + _why_not(counted.micro_batches, gpu, room))
    disk = native_memory.disk(spec, facts, counted)
    if disk.gguf_note is not None:
        notes.append(f"the size of the GGUF is not known: {disk.gguf_note}")
    memories = _memories(spec, facts, counted, trained, gpu, measurement)
    time = _time(spec, facts, counted, gpu, measurement)
    from .advice import advise

    flavors = tuple(
        _on(flavor, spec, facts, counted, trained, memories, time, phase is None)
        for flavor in known.flavors
    )
    return PhasePlan(
        name=name,
        spec=spec,
        facts=facts,
        precision=precision,
        trained=trained,
        updates=counted.updates,
        updates_per_epoch=counted.updates_per_epoch,
        tokens=counted.tokens,
        positions=counted.positions,
        targets=counted.targets,
        sequences=counted.sequences,
        longest=counted.time,
        data=counted.data,
        memories=memories,
        time=time,
        disk=disk,
        flavors=flavors,
        measurement=measurement,
        notes=tuple(notes),
        advice=tuple(advise(spec, facts, memories[0], flavors, gpu)),
    )


def _not_begun(spec: RunSpec) -> RunSpec:
    """A phase that goes on from another one, as if that had left nothing yet: the folders it is
    named by are no models, and what an earlier run put there may be of another shape."""
    model, lora = spec.model, spec.lora
    if lora is not None and lora.adapter is not None:
        lora = lora.replace(adapter=lora.adapter / NOT_YET)
    if model.suffix != ".json" and spec.run_dir in (model.parent, model.parent / spec.run_dir.name):
        model = model / NOT_YET
    return spec.replace(model=model, lora=lora, tokenizer=spec.tokenizer_dir)


def _why_not(micro_batches: int, gpu: Gpu | None, room: bool) -> str:
    if gpu is not None:
        return "the GPU is not on this machine"
    if not micro_batches:
        return "the data is not there yet"
    if not room:
        return "it does not fit into the memory there is now"
    return "the model is not on this machine"


def _facts(spec: RunSpec, phase: Any, first: PhasePlan | None, online: bool) -> ModelFacts:
    random_start = getattr(phase, "model_config", None)
    if random_start is not None:
        return of_config(str(spec.model), random_start)
    if first is not None and getattr(phase, "after", None) is not None:
        stored = first.facts
        whole = spec.lora is None or first.spec.lora is None
        return dataclasses.replace(stored, stored_bytes=4 * stored.parameters) if whole else stored
    return facts_of(spec.model, online=online)


def _stand_in(
    spec: RunSpec, facts: ModelFacts, first: PhasePlan | None, scratch: Path
) -> RunSpec | None:
    """The run on a model that is there: what a recipe draws or an earlier phase leaves is drawn
    here, as large. None where there is no such model, or no room for it."""
    changes: dict[str, Any] = {}
    if not spec.model.exists():
        before = None if first is None else first.spec.model
        if before is not None and before.exists() and before.suffix != ".json":
            changes["model"] = before
        elif facts.is_remote:
            return None
        else:
            changes["model"] = _drawn(spec, facts, scratch)
            if changes["model"] is None:
                return None
    lora = spec.lora
    if lora is not None and lora.adapter is not None and not lora.adapter.exists():
        changes["lora"] = lora.replace(adapter=None)
    return spec.replace(**changes) if changes else spec


def _drawn(spec: RunSpec, facts: ModelFacts, scratch: Path) -> Path | None:
    """A random model of this shape: its configuration where a run draws it, else a folder."""
    if spec.model.suffix == ".json":
        path = scratch / "config.json"
        path.write_text(json.dumps(dict(facts.config)), encoding="utf-8")
        return path
    folder = scratch / "model"
    if not folder.exists():
        room = native_memory.available_bytes()
        if room is not None and 8 * facts.parameters > room:
            return None
        with Model.random(facts.config, seed=spec.config.seed) as model:
            model.save(folder)
    return folder


def _memories(
    spec: RunSpec,
    facts: ModelFacts,
    counted: native_memory.Counted,
    trained: int,
    gpu: Gpu | None,
    measurement: measuring.Measurement | None,
) -> tuple[Memory, ...]:
    """The recipe's engine and the device asked about first, then the other ways."""
    found: dict[tuple[str, str], Memory] = {}
    room = native_memory.available_bytes()
    parts, files = counted.native_parts(spec, facts)
    found["native", "cpu"] = Memory(
        engine="native", device="cpu", parts=parts, available=room, from_files=files
    )
    shape = torch_memory.Shape(sequences=counted.sequences, time=counted.time)
    for device, at in (("cpu", None), (gpu.name if gpu else "gpu", gpu)):
        if device == "gpu" and spec.engine == "native":
            precision = "bf16" if spec.precision == "auto" else spec.precision
        else:
            precision = spec.precision_where(bf16_gpu=device != "cpu")
        found["trl", device] = Memory(
            engine="trl",
            device=device,
            parts=torch_memory.parts(
                spec, facts, shape, precision=precision, gpu=device != "cpu", trained=trained
            ),
            available=room if device == "cpu" else at.memory_bytes if at else None,
        )
    asked = gpu.name if gpu is not None else "cpu"
    key = ("trl" if gpu is not None else spec.engine, asked)
    if key not in found:
        key = ("trl", asked)
    if measurement is not None and key[1] == "cpu":
        found[key] = dataclasses.replace(
            found[key], measured=measurement.saved_bytes + counted.data_file_bytes
        )
    return (found.pop(key), *found.values())


def _time(
    spec: RunSpec,
    facts: ModelFacts,
    counted: native_memory.Counted,
    gpu: Gpu | None,
    measurement: measuring.Measurement | None,
) -> Time | None:
    if counted.updates is None:
        return None
    if gpu is not None:
        rented = _on_gpu(spec, facts, counted, gpu)
        if rented is None:
            return None
        return Time(parts={"updates": rented}, source=_table_words(facts), sure=UNSURE)
    if measurement is None:
        return None
    micro_batches = counted.micro_batches_in_all
    parts = {
        "start": measurement.start_seconds,
        "updates": micro_batches * measurement.micro_seconds,
        "checkpoints": counted.checkpoints(spec) * measurement.checkpoint_seconds,
        "end": measurement.end_seconds,
    }
    if measurement.eval_seconds is not None:
        passes = counted.evaluations(spec) * counted.eval_micro_batches
        parts["evaluations"] = passes * measurement.eval_seconds
    return Time(
        parts=parts,
        source=f"{measurement.updates} updates measured on this machine "
        f"in {measurement.wall_seconds:.0f} s",
        sure=1.2,
    )


def _table_words(facts: ModelFacts) -> str:
    share = EXPERTS_SHARE if facts.experts else DENSE_SHARE
    return f"a table: {100 * share:g} % of the maker's bf16 figure"


def _on_gpu(
    spec: RunSpec, facts: ModelFacts, counted: native_memory.Counted, gpu: Gpu
) -> float | None:
    """Seconds of all updates and evaluations on one GPU, from the operations they are."""
    if counted.positions is None or not gpu.bf16_flops:
        return None
    passes = 4.0 if spec.lora is not None else 6.0  # forward 2, backward 2 for each of its halves
    if spec.config.recompute_activations:
        passes += 2.0
    if spec.dpo is not None and not spec.dpo.precompute_ref_log_probs:
        passes += 2.0
    width = facts.heads * facts.head_dim * facts.layers
    of_position = passes * (facts.active + counted.time * width)
    evaluated = counted.evaluations(spec) * counted.eval_positions * 2 * facts.active
    share = EXPERTS_SHARE if facts.experts else DENSE_SHARE
    return (counted.positions * of_position + evaluated) / (share * gpu.bf16_flops)


def _on(
    flavor: Flavor,
    spec: RunSpec,
    facts: ModelFacts,
    counted: native_memory.Counted,
    trained: int,
    memories: Sequence[Memory],
    time: Time | None,
    shares: bool,
) -> FlavorPlan:
    """One phase on one rented machine: a GPU runs the TRL engine, a CPU the recipe's.

    shares: whether several processes can share the run; those of a phased recipe cannot.
    """
    if flavor.gpu is None:
        own = next((m for m in memories if m.engine == spec.engine and m.device == "cpu"), None)
        if own is None:
            return FlavorPlan(
                flavor=flavor, memory_bytes=0, seconds=None, why="the engine has no such model"
            )
        needed = own.total - own.from_files
        why = _short_of(needed, flavor.memory_bytes, "memory")
        spent = None
        if time is not None and time.source.endswith(" s"):
            spent = time.seconds + before_training(facts)
        return FlavorPlan(flavor=flavor, memory_bytes=needed, seconds=spent, why=why)
    low = flavor.gpu.bf16_flops > 0
    precision = spec.precision if spec.precision != "auto" else "bf16" if low else "float32"
    shape = torch_memory.Shape(sequences=counted.sequences, time=counted.time)
    parts = torch_memory.parts(spec, facts, shape, precision=precision, gpu=True, trained=trained)
    needed = round(sum(parts.values()) * (1 + GPU_MARGIN))
    why = None
    if spec.engine == "native":
        why = "the native engine uses no GPU; use engine trl"
    elif precision == "bf16" and not low:
        why = "the GPU has no bf16, or is not known here"
    why = why or _short_of(needed, flavor.gpu.memory_bytes, "memory of one GPU")
    spent = _on_gpu(spec, facts, counted, flavor.gpu)
    # Each GPU of several takes its share of an update's micro-batches.
    several = max(min(flavor.gpus, spec.config.grad_accum_steps), 1) if shares else 1
    seconds = None if spent is None else spent / several + before_training(facts)
    return FlavorPlan(flavor=flavor, memory_bytes=needed, seconds=seconds, why=why)


def _short_of(needed: int, there: int, what: str) -> str | None:
    if needed <= there:
        return None
    return f"needs {needed / GIB:.1f} GiB, {what} is {there / GIB:.0f} GiB"
