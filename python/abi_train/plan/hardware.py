"""What a run can be rented on: flavours of Hugging Face Jobs, their prices, how fast a GPU is.

Prices are asked of the Hub; where it cannot be reached a table stands in, and its day is told.
Speeds are the makers' figures for dense bf16 products, and a share of them that training reaches.

Does not know: models, runs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ConfigError, HubError

TABLE_DAY: Final = "August 2026"
"""When the prices below were read."""

GB: Final = 10**9
MIB: Final = 2**20
GIB: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """memory_bytes: of one. bf16_flops: dense products a second, the maker's figure."""

    name: str
    memory_bytes: int
    bf16_flops: float


GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="T4", memory_bytes=15_360 * MIB, bf16_flops=0.0),  # has no bf16
        Gpu(name="L4", memory_bytes=23_034 * MIB, bf16_flops=121e12),
        Gpu(name="A10G", memory_bytes=23_028 * MIB, bf16_flops=70e12),
        Gpu(name="L40S", memory_bytes=46_068 * MIB, bf16_flops=362e12),
        Gpu(name="A100", memory_bytes=81_920 * MIB, bf16_flops=312e12),
        Gpu(name="H100", memory_bytes=81_559 * MIB, bf16_flops=989e12),
        Gpu(name="H200", memory_bytes=143_771 * MIB, bf16_flops=989e12),
        Gpu(name="RTX PRO 6000", memory_bytes=97_887 * MIB, bf16_flops=500e12),
    )
}
"""Speeds: the makers' data sheets of T4, L4, A10G, L40S, A100 80GB, H100 SXM, H200 SXM and RTX PRO
6000 Blackwell. Memory: what the driver shows of it, which is less than the name says."""

DENSE_SHARE: Final = 0.35
"""Of a maker's figure, what a dense model's training through transformers reaches. Assumed."""

EXPERTS_SHARE: Final = 0.025
"""The same with experts, which transformers passes one after the other: from OpenAI's cookbook,
which trains gpt-oss-20b with LoRA on 1,000 rows in about 18 minutes on one H100; a row is taken to
have 1,200 tokens."""

UNSURE: Final = 2.0
"""A time from these tables may be wrong by this factor, up or down."""


@dataclass(frozen=True, kw_only=True)
class Flavor:
    """A machine of Hugging Face Jobs. gpu: None for CPUs alone. gpus: how many. dollars_per_hour:
    of the whole machine. memory_bytes: of the machine. disk_bytes: 0 where it is not told."""

    name: str
    gpu: Gpu | None
    gpus: int
    dollars_per_hour: float
    memory_bytes: int
    disk_bytes: int = 0

    @property
    def words(self) -> str:
        """`1 x A100 80 GB`, or `CPU`."""
        if self.gpu is None:
            return "CPU"
        return f"{self.gpus} x {self.gpu.name} {round(self.gpu.memory_bytes / GIB)} GB"


@dataclass(frozen=True, kw_only=True)
class Prices:
    """flavors: cheapest first. source: where and when the prices were read."""

    flavors: tuple[Flavor, ...]
    source: str
    live: bool

    def find(self, name: str) -> Flavor:
        """The flavour of this name. Raises `ConfigError` with those that are like it."""
        for flavor in self.flavors:
            if flavor.name == name:
                return flavor
        names = [flavor.name for flavor in self.flavors]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(
            f"flavor: there is no {name!r}{hint} There are {', '.join(names)} ({self.source})"
        )


def _flavor(name: str, gpu: str | None, gpus: int, price: float, memory: int, disk: int) -> Flavor:
    made = None if gpu is None else GPUS[gpu]
    return Flavor(
        name=name,
        gpu=made,
        gpus=gpus,
        dollars_per_hour=price,
        memory_bytes=memory * GB,
        disk_bytes=disk * GB,
    )


TABLE: Final = (
    _flavor("cpu-basic", None, 0, 0.01, 16, 50),
    _flavor("cpu-upgrade", None, 0, 0.03, 32, 50),
    _flavor("cpu-performance", None, 0, 1.90, 256, 0),
    _flavor("cpu-xl", None, 0, 1.00, 124, 0),
    _flavor("t4-small", "T4", 1, 0.40, 15, 50),
    _flavor("t4-medium", "T4", 1, 0.60, 30, 100),
    _flavor("l4x1", "L4", 1, 0.80, 30, 400),
    _flavor("l4x4", "L4", 4, 3.80, 186, 3200),
    _flavor("a10g-small", "A10G", 1, 1.00, 15, 110),
    _flavor("a10g-large", "A10G", 1, 1.50, 46, 200),
    _flavor("a10g-largex2", "A10G", 2, 3.00, 92, 1000),
    _flavor("a10g-largex4", "A10G", 4, 5.00, 184, 2000),
    _flavor("l40sx1", "L40S", 1, 1.80, 62, 380),
    _flavor("l40sx4", "L40S", 4, 8.30, 382, 3200),
    _flavor("l40sx8", "L40S", 8, 23.50, 1534, 6500),
    _flavor("a100-large", "A100", 1, 2.50, 142, 1000),
    _flavor("a100x4", "A100", 4, 10.00, 568, 4000),
    _flavor("a100x8", "A100", 8, 20.00, 1136, 8000),
    _flavor("h200", "H200", 1, 5.00, 256, 3000),
    _flavor("h200x2", "H200", 2, 10.00, 512, 6000),
    _flavor("h200x4", "H200", 4, 20.00, 1024, 12000),
    _flavor("h200x8", "H200", 8, 40.00, 2048, 24000),
    _flavor("rtx-pro-6000", "RTX PRO 6000", 1, 2.75, 256, 0),
    _flavor("rtx-pro-6000x2", "RTX PRO 6000", 2, 5.50, 512, 0),
    _flavor("rtx-pro-6000x4", "RTX PRO 6000", 4, 11.00, 1024, 0),
    _flavor("rtx-pro-6000x8", "RTX PRO 6000", 8, 22.00, 2048, 0),
)
"""As of `TABLE_DAY`. Memory and disk of machines whose makers do not say are generous or 0."""


def prices(*, online: bool = True) -> Prices:
    """Flavours and prices: the Hub's, or the table's where it is not asked or does not answer."""
    stand_in = Prices(flavors=_cheapest_first(TABLE), source=f"table of {TABLE_DAY}", live=False)
    if not online:
        return stand_in
    from ..errors import EngineError

    try:
        return live_prices()
    except (HubError, EngineError):
        return stand_in


def live_prices() -> Prices:
    """The Hub's own list. Raises `HubError`, or `EngineError` without `huggingface_hub`."""
    from ..hub import client

    hub = client.api()
    with client.asking("read the list of Jobs hardware"):
        listed = hub.list_jobs_hardware(token=False)
    flavors = [made for made in map(_of_hub, listed) if made is not None]
    if not flavors:
        raise HubError("the Hub's list of Jobs hardware is empty; try again later")
    return Prices(
        flavors=_cheapest_first(flavors), source=f"asked of {client.endpoint()}", live=True
    )


def _cheapest_first(flavors: Iterable[Flavor]) -> tuple[Flavor, ...]:
    return tuple(sorted(flavors, key=lambda flavor: (flavor.dollars_per_hour, flavor.name)))


_PER_HOUR: Final = {"second": 3600.0, "minute": 60.0, "hour": 1.0, "day": 1 / 24}


def _of_hub(listed: Any) -> Flavor | None:
    """One line of the Hub's list; None for what this version cannot make sense of."""
    per_hour = _PER_HOUR.get(str(listed.unit_label).rstrip("s").lower())
    if per_hour is None:
        return None
    found = listed.accelerator
    gpu, gpus = None, 0
    if found is not None:
        gpus = int(_number(found.quantity) or 1)
        gpu = _gpu(str(found.model), str(found.vram or ""), gpus)
        if gpu is None:
            return None  # not a GPU: neither engine runs on it
    return Flavor(
        name=str(listed.name),
        gpu=gpu,
        gpus=gpus,
        dollars_per_hour=float(listed.unit_cost_usd) * per_hour,
        memory_bytes=round((_number(listed.ram) or 0) * GB),
        disk_bytes=round(_disk(str(listed.ephemeral_storage or ""))),
    )


def _gpu(model: str, vram: str, gpus: int) -> Gpu | None:
    """The GPU of a name as the Hub writes it; its memory as the Hub says when we do not know it."""
    plain = re.sub(r"[^a-z0-9]", "", model.lower())
    if "tpu" in plain or "neuron" in plain or "inf2" in plain:
        return None
    for name in sorted(GPUS, key=len, reverse=True):
        if re.sub(r"[^a-z0-9]", "", name.lower()) in plain:
            return GPUS[name]
    total = (_number(vram) or 0) * GB
    return Gpu(name=model, memory_bytes=round(total / max(gpus, 1)), bf16_flops=0.0)


def _disk(text: str) -> float:
    number = _number(text) or 0.0
    return number * (1000 * GB if "TB" in text.upper() else GB)


def _number(value: object) -> float | None:
    found = re.search(r"[0-9]+(?:[.,][0-9]+)?", str(value))
    return None if found is None else float(found[0].replace(",", "."))


def cheapest(flavors: Sequence[Flavor]) -> Flavor | None:
    """The one with the lowest price an hour; None of none."""
    return min(flavors, key=lambda flavor: flavor.dollars_per_hour, default=None)
