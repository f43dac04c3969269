"""Counts of a run, and its memory on the native engine: both as the native library tells them.

Does not know: seconds, prices.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import _native
from ..dataset import TokenizedDataset
from ..errors import ConfigError
from ..runspec import RunSpec
from . import disk as disks
from .model_facts import ModelFacts

PROCESS_BYTES: Final = 40 * 2**20
"""The interpreter with this package and NumPy, on Linux."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the native library told. Counts are None or 0 where there is no data yet."""

    told: Mapping[str, Any]
    updates: int | None
    updates_per_epoch: int | None
    micro_batches: int
    micro_batches_in_all: int
    tokens: int | None
    positions: int | None
    targets: int | None
    eval_micro_batches: int
    eval_positions: int
    data_file_bytes: int
    """Of the token file, which is mapped and read through in an epoch."""

    @property
    def trained(self) -> int:
        """Numbers that learn."""
        return int(self.told["trained"])

    @property
    def sequences(self) -> int:
        """Of the largest micro-batch."""
        return int(self.told["sequences"])

    @property
    def time(self) -> int:
        """Positions of its longest sequence."""
        return int(self.told["time"])

    @property
    def positions_per_micro_batch(self) -> float:
        """On average, padding included."""
        training = self.told["training"]
        return float(training["positions"] / max(training["micro_batches"], 1))

    @property
    def data(self) -> dict[str, Any]:
        """Of one epoch, and of one evaluation, under the native names."""
        return {name: self.told[name] for name in ("training", "evaluation")}

    def checkpoints(self, spec: RunSpec) -> int:
        """How often the run saves."""
        return _times(self.updates or 0, spec.config.checkpoint_interval)

    def evaluations(self, spec: RunSpec) -> int:
        """How often it evaluates."""
        if spec.eval_data is None:
            return 0
        return _times(self.updates or 0, spec.config.eval_interval)

    def native_parts(self, spec: RunSpec, facts: ModelFacts) -> tuple[dict[str, int], int]:
        """Bytes by part, and how many of them are pages of files."""
        memory = {name: int(value) for name, value in self.told["memory"].items() if value}
        files = self.data_file_bytes
        parts = {"process": PROCESS_BYTES, **memory}
        if is_mapped(spec):
            parts["base file"] = facts.stored_bytes or 0
            files += parts["base file"]
        other = None if spec.dpo is None else spec.dpo.ref_model
        if other is not None and spec.precision != "float64":
            parts["reference file"] = _size(other)
            files += parts["reference file"]
        parts["data file"] = self.data_file_bytes
        # A saved file is read back and compared before it counts.
        parts["checkpoint read back"] = max(item["bytes"] for item in self.told["files"])
        files += parts["checkpoint read back"]
        return {name: value for name, value in parts.items() if value}, files


def _times(updates: int, every: int) -> int:
    if not updates:
        return 0
    return updates // every + (1 if updates % every else 0) if every else 1


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return path.stat().st_size if path.is_file() else 0


def is_mapped(spec: RunSpec) -> bool:
    """Whether the native engine leaves the model in its file."""
    return spec.method == "lora" and spec.precision != "float64" and spec.model.suffix != ".json"


def available_bytes() -> int | None:
    """Memory that programs can have on this machine now; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def count(spec: RunSpec, facts: ModelFacts) -> Counted:
    """Ask the native library. Raises `ConfigError` for what it cannot do, `DataError` for data."""
    told = ask(spec, facts)
    updates = int(told["updates"]) or None
    training, evaluation = told["training"], told["evaluation"]
    in_all = 0
    if training is not None and updates is not None:
        if training["micro_batches"] == 0:
            raise ConfigError(
                f"{spec.data} gives no batch at batch_size {spec.config.batch_size} and "
                f"max_seq_len {spec.config.max_seq_len}; make them smaller, or the file larger"
            )
        epochs, rest = divmod(updates, int(told["updates_per_epoch"]))
        in_all = epochs * training["micro_batches"] + rest * spec.config.grad_accum_steps

    def whole(name: str) -> int | None:
        if training is None or not in_all:
            return None
        whole_run: int = round(training[name] * in_all / training["micro_batches"])
        return whole_run

    return Counted(
        told=told,
        updates=updates,
        updates_per_epoch=int(told["updates_per_epoch"]) or None,
        micro_batches=0 if training is None else int(training["micro_batches"]),
        micro_batches_in_all=in_all,
        tokens=whole("tokens"),
        positions=whole("positions"),
        targets=whole("targets"),
        eval_micro_batches=0 if evaluation is None else int(evaluation["micro_batches"]),
        eval_positions=0 if evaluation is None else int(evaluation["positions"]),
        data_file_bytes=_size(spec.data),
    )


def ask(spec: RunSpec, facts: ModelFacts) -> dict[str, Any]:
    """The native library's own plan of a run, in its words."""
    config = dataclasses.replace(
        spec.config,
        mixed_precision=spec.precision_where(bf16_gpu=False) == "bf16",
    )
    methods: dict[str, Any] = {}
    if spec.lora is not None:
        lora = spec.lora
        adapter = lora.adapter
        if adapter is not None and not adapter.is_dir():
            lora = lora.replace(adapter=None)
        table = lora.resolved(spec.model, experts=facts.experts > 0).for_native(
            seed=spec.config.seed
        )
        table["adapter"] = None if adapter is None else str(adapter)
        methods["lora"] = table
    if spec.dpo is not None:
        methods["dpo"] = spec.dpo.for_native()
    model = dict(facts.config)
    dtype = "float64" if spec.precision == "float64" else "float32"
    if is_mapped(spec):
        dtype = "stored"
    opened: list[TokenizedDataset] = []
    try:
        for path in (spec.data, spec.eval_data):
            if path is not None and path.exists():
                opened.append(TokenizedDataset.load(path))
        data = opened[0].native if spec.data.exists() else None
        evaluated = spec.eval_data is not None and spec.eval_data.exists()
        return _native.plan.plan(
            json.dumps(config.to_dict()),
            json.dumps(model),
            data,
            opened[-1].native if evaluated else None,
            methods_json=json.dumps(methods) if methods else None,
            base_name=str(spec.model.resolve()),
            tokenizer_dir=spec.tokenizer_dir,
            dtype=dtype,
        )
    finally:
        for data_set in opened:
            data_set.close()


def disk(spec: RunSpec, facts: ModelFacts, counted: Counted) -> disks.Disk:
    """What the run leaves on the disk."""
    return disks.native_disk(spec, counted.told, counted.updates, facts.config)
