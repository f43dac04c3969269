"""What would fit where a run does not: smaller micro-batches, recomputation, bf16, an adapter, or a
rented machine, each with its figure.

Does not know: time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..adapters import LoraConfig
from ..errors import AbiTrainError
from ..runspec import RunSpec
from . import native_memory, torch_memory
from .hardware import GIB, Gpu
from .model_facts import ModelFacts

if TYPE_CHECKING:
    from .results import FlavorPlan, Memory


def changes(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    """Ways to need less, mildest first, each with the words that ask for it; then all together."""
    config = spec.config
    smaller = spec
    if not config.recompute_activations:
        again = dataclasses.replace(config, recompute_activations=True)
        smaller = smaller.replace(config=again)
        yield "--set recompute_activations=true", spec.replace(config=again)
    if config.batch_size > 1:
        whole = config.batch_size * config.grad_accum_steps
        one = dataclasses.replace(config, batch_size=1, grad_accum_steps=whole)
        words = f"--set batch_size=1 --set grad_accum_steps={whole}"
        yield words, spec.replace(config=one)
        smaller = smaller.replace(
            config=dataclasses.replace(smaller.config, batch_size=1, grad_accum_steps=whole)
        )
    if spec.precision == "auto" and not config.mixed_precision:
        yield "--precision bf16", spec.replace(precision="bf16")
        smaller = smaller.replace(precision="bf16")
    if spec.method == "full":
        lora = LoraConfig()
        yield "--method lora", spec.replace(method="lora", lora=lora)
        smaller = smaller.replace(method="lora", lora=lora)
    if smaller != spec:
        yield "all of these together", smaller


def advise(
    spec: RunSpec,
    facts: ModelFacts,
    memory: Memory,
    flavors: Sequence[FlavorPlan],
    gpu: Gpu | None,
) -> Iterator[str]:
    """Lines that say what would fit; nothing where the run fits."""
    if memory.fits is not False:
        return
    room = memory.available or 0
    before = memory.counted - memory.from_files
    for words, other in changes(spec):
        needed = _needed(other, facts, memory, gpu)
        if needed is None or needed >= before:
            continue
        said = "fits" if needed <= room else "is still too much"
        yield f"{words}: {needed / GIB:.2f} GiB in place of {before / GIB:.2f}, which {said}"
    fitting = [item for item in flavors if item.fits]
    if fitting:
        best = min(fitting, key=lambda item: item.flavor.dollars_per_hour)
        yield (
            f"abi-train jobs submit --flavor {best.flavor.name}: {best.flavor.words} at "
            f"${best.flavor.dollars_per_hour:.2f} an hour has room"
        )


def _needed(spec: RunSpec, facts: ModelFacts, memory: Memory, gpu: Gpu | None) -> int | None:
    """Bytes that no file can give back, of a changed run on the same engine and device."""
    try:
        counted = native_memory.count(spec, facts)
    except AbiTrainError:
        return None
    if memory.engine == "native":
        parts, files = counted.native_parts(spec, facts)
        return sum(parts.values()) - files
    shape = torch_memory.Shape(sequences=counted.sequences, time=counted.time)
    found: dict[str, Any] = torch_memory.parts(
        spec,
        facts,
        shape,
        precision=spec.precision_where(bf16_gpu=gpu is not None and gpu.bf16_flops > 0),
        gpu=gpu is not None,
        trained=counted.trained,
    )
    return int(sum(found.values()))
