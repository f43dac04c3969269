"""What a plan says: of each phase, of the whole, of each machine that can be rented.

Does not know: where the figures come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..runspec import RunSpec
from .disk import Disk
from .hardware import UNSURE, Flavor, Prices
from .measuring import Measurement
from .model_facts import ModelFacts

JOB_START_SECONDS: Final = 240.0
"""Until a rented machine runs: it is found, the image starts, packages are installed."""

DOWNLOAD_BYTES_PER_SECOND: Final = 150e6


def before_training(facts: ModelFacts) -> float:
    """Seconds until a rented machine trains."""
    return JOB_START_SECONDS + (facts.stored_bytes or 0) / DOWNLOAD_BYTES_PER_SECOND


def together(values: Sequence[float | None]) -> float | None:
    """The sum; None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part on one device. measured: what a process of the run really had, None where
    nothing was measured. available: what there is, None where that is not known."""

    engine: str
    device: str
    parts: Mapping[str, int]
    measured: int | None = None
    available: int | None = None
    from_files: int = 0
    """Of the parts, pages of files, which the system can take back and read again."""

    @property
    def counted(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """What was measured, else the sum of the parts."""
        return self.counted if self.measured is None else self.measured

    @property
    def fits(self) -> bool | None:
        """Whether there is room; None where that is not known."""
        if self.available is None:
            return None
        return self.total - self.from_files <= self.available

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "engine": self.engine,
            "device": self.device,
            "parts": dict(self.parts),
            "counted_bytes": self.counted,
            "measured_bytes": self.measured,
            "total_bytes": self.total,
            "from_files_bytes": self.from_files,
            "available_bytes": self.available,
            "fits": self.fits,
        }


@dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds by what they are spent on. source: where they come from. sure: the factor by which
    the whole may be wrong, up or down."""

    parts: Mapping[str, float]
    source: str
    sure: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parts": dict(self.parts),
            "seconds": self.seconds,
            "source": self.source,
            "wrong_by_at_most_a_factor_of": self.sure,
        }


@dataclass(frozen=True, kw_only=True)
class FlavorPlan:
    """One phase, or a recipe, on one rented machine. why: what is in the way, None if it fits."""

    flavor: Flavor
    memory_bytes: int
    seconds: float | None
    why: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it can be done there."""
        return self.why is None

    @property
    def dollars(self) -> float | None:
        """Of the whole time, start of the machine included."""
        if self.seconds is None:
            return None
        return self.seconds / 3600 * self.flavor.dollars_per_hour

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "flavor": self.flavor.name,
            "machine": self.flavor.words,
            "dollars_per_hour": self.flavor.dollars_per_hour,
            "memory_bytes": self.memory_bytes,
            "fits": self.fits,
            "why": self.why,
            "seconds": self.seconds,
            "dollars": self.dollars,
        }


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """What one run needs. tokens: read in all, without padding; positions: with it. Both None, as
    updates, where the data is not there yet. memories: of each engine and device that can do it,
    that of the recipe first."""

    name: str
    spec: RunSpec
    facts: ModelFacts
    precision: str
    trained: int
    updates: int | None
    updates_per_epoch: int | None
    tokens: int | None
    positions: int | None
    targets: int | None
    sequences: int
    longest: int
    data: Mapping[str, Any]
    memories: tuple[Memory, ...]
    time: Time | None
    disk: Disk
    flavors: tuple[FlavorPlan, ...]
    measurement: Measurement | None = None
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def memory(self) -> Memory:
        """On the recipe's engine, on the device that was asked about."""
        return self.memories[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "engine": self.spec.engine,
            "method": self.spec.method,
            "objective": self.spec.objective,
            "precision": self.precision,
            "model": self.facts.name,
            "model_source": self.facts.source,
            "model_file_bytes": self.facts.stored_bytes,
            "parameters": self.facts.parameters,
            "parameters_trained": self.trained,
            "parameters_frozen": self.facts.parameters if self.spec.lora is not None else 0,
            "updates": self.updates,
            "updates_per_epoch": self.updates_per_epoch,
            "tokens": self.tokens,
            "positions": self.positions,
            "targets": self.targets,
            "largest_micro_batch": [self.sequences, self.longest],
            "data": dict(self.data),
            "memory": [memory.to_dict() for memory in self.memories],
            "time": None if self.time is None else self.time.to_dict(),
            "disk": self.disk.to_dict(),
            "flavors": [flavor.to_dict() for flavor in self.flavors],
            "measurement": None if self.measurement is None else self.measurement.to_dict(),
            "notes": list(self.notes),
            "advice": list(self.advice),
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's plan: its phases one after the other."""

    name: str
    phases: tuple[PhasePlan, ...]
    prices: Prices
    notes: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float | None:
        """Of all phases here; None where one is not known."""
        return together([None if p.time is None else p.time.seconds for p in self.phases])

    @property
    def fits(self) -> bool | None:
        """Whether every phase has room on the device asked about; None where that is not known."""
        found = [phase.memory.fits for phase in self.phases]
        return False if False in found else None if None in found else True

    @property
    def disk_bytes(self) -> int:
        """At the worst moment: what phases leave, and what the one at work takes."""
        left, most = 0, 0
        for phase in self.phases:
            most = max(most, left + phase.disk.total_bytes)
            left += phase.disk.checkpoints * phase.disk.checkpoint_bytes
            left += phase.disk.gguf_bytes or 0
        return most

    @property
    def flavors(self) -> tuple[FlavorPlan, ...]:
        """All phases in one job on each machine. The machine starts, and the model is fetched,
        once."""
        found = []
        for column in zip(*(phase.flavors for phase in self.phases), strict=True):
            flavor = column[0].flavor
            once = before_training(self.phases[0].facts)
            seconds = together([item.seconds for item in column])
            why = next((item.why for item in column if item.why is not None), None)
            if why is None and flavor.disk_bytes and self._disk_there > flavor.disk_bytes:
                why = f"its disk of {flavor.disk_bytes / 1e9:.0f} GB is too small"
            found.append(
                FlavorPlan(
                    flavor=flavor,
                    memory_bytes=max(item.memory_bytes for item in column),
                    seconds=None if seconds is None else seconds - (len(column) - 1) * once,
                    why=why,
                )
            )
        return tuple(found)

    @property
    def _disk_there(self) -> int:
        return self.disk_bytes + (self.phases[0].facts.stored_bytes or 0)

    def on(self, flavor: str) -> FlavorPlan:
        """On one machine. Raises `ConfigError` for one that there is not."""
        name = self.prices.find(flavor).name
        return next(item for item in self.flavors if item.flavor.name == name)

    @property
    def cheapest(self) -> FlavorPlan | None:
        """Of the machines that fit: the one that costs least; None where none does."""
        found = [item for item in self.flavors if item.fits]
        return min(
            found,
            key=lambda item: (
                math.inf if item.dollars is None else item.dollars,
                item.flavor.dollars_per_hour,
            ),
            default=None,
        )

    def jobs_timeout_seconds(self, flavor: str) -> int | None:
        """After how many seconds a job on this machine should be stopped: the time it needs with a
        margin for what the plan may be wrong by, in whole minutes. None where no time is known.

        Raises `ConfigError` for a flavour that there is not.
        """
        found = self.on(flavor)
        if found.seconds is None:
            return None
        sure = max((p.time.sure if p.time else UNSURE) for p in self.phases)
        if found.flavor.gpu is not None:
            sure = UNSURE
        return math.ceil((1.25 * sure * found.seconds + 600) / 60) * 60

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        best = self.cheapest
        return {
            "name": self.name,
            "phases": [phase.to_dict() for phase in self.phases],
            "seconds": self.seconds,
            "fits": self.fits,
            "disk_bytes": self.disk_bytes,
            "prices": {"source": self.prices.source, "live": self.prices.live},
            "flavors": [item.to_dict() for item in self.flavors],
            "cheapest": None if best is None else best.flavor.name,
            "notes": list(self.notes),
        }
