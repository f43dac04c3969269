"""A few real updates of a run, in a process beside this one: how long things take and how much
memory the process has.

The run is the recipe's own, on rows taken from its own data: the longest ones first, which say what
memory is needed, then others as they come. Fewer micro-batches make an update where a recipe's
update is long. Nothing of it stays.

Does not know: what a whole run is made of.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..dataset import TokenizedDataset, TokenizedWriter
from ..errors import EngineError
from ..runspec import RunSpec

MICRO_BATCHES: Final = 8
"""An update of more is measured with so many; the optimizer then weighs a little more."""

MOST_OPERATIONS: Final = 8e12
"""Of an update that is measured: a dozen seconds on two cores."""

LEAST_UPDATES: Final = 4
"""Updates that are made; two of a run whose updates take long."""

MOST_MICRO_BATCHES: Final = 512
EVAL_MICRO_BATCHES: Final = 4
"""Of each evaluation, which is made after every third update."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a few updates told.

    start_seconds: from nothing to the first update, with what that one takes longer than others.
    micro_seconds: of a micro-batch of `micro_positions` positions (padding included) with its share
    of the update. eval_seconds: of one evaluation micro-batch; None without evaluation data.
    checkpoint_seconds: of saving once. end_seconds: from the last thing to the end of the process.
    peak_bytes: the largest resident size while training; saved_bytes: and after saving, when the
    pages of a checkpoint are read back. import_bytes: the interpreter with its libraries.
    """

    device: str
    updates: int
    start_seconds: float
    micro_seconds: float
    micro_positions: float
    eval_seconds: float | None
    checkpoint_seconds: float
    end_seconds: float
    peak_bytes: int
    saved_bytes: int
    import_bytes: int
    wall_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def measure(
    spec: RunSpec,
    *,
    positions: float,
    operations: float = 0.0,
    seconds: float = 15.0,
    limit: float = 900.0,
) -> Measurement:
    """Run a few updates of `spec` in a process beside this one.

    positions: the average micro-batch of the whole run, in tokens with padding: what is measured is
    brought to it. operations: of such a micro-batch, about: of large ones fewer make an update.
    seconds: how long updates are timed. limit: seconds after which it is given up.

    Raises `EngineError` when the run cannot be started here, with what it said.
    """
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="abi-train-plan-") as scratch:
        folder = Path(scratch)
        small, sampled = _small(spec, folder, operations)
        request = folder / "request.json"
        wanted = {"spec": small.to_dict(), "seconds": seconds, "least": LEAST_UPDATES}
        request.write_text(json.dumps(wanted), encoding="utf-8")
        # The command line is part of what a run has in memory.
        code = "import abi_train.cli.app; from abi_train.plan.child import main; main()"
        command = [sys.executable, "-c", code, str(request)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, cwd=Path.cwd(), env=_env()
            )
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"measuring took more than {limit:.0f} s and was given up; plan with --no-measure"
            ) from None
        end = time.time()
        try:
            record = json.loads(request.with_suffix(".out").read_text("utf-8"))
        except (OSError, ValueError):
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
            if done.returncode < 0:
                said = f"it was ended by signal {-done.returncode}, as when memory runs out"
            raise EngineError(f"measuring ended with {done.returncode}: {said}") from None
    if "error" in record:
        said = str(record["error"])
        for name, path in (("train.bin", spec.data), ("eval.bin", spec.eval_data)):
            said = said.replace(str(folder / name), str(path))
        raise EngineError(f"the run would fail: {said}")
    return _read(record, small, sampled, positions, begin, end)


def _env() -> dict[str, str]:
    """Not online: what a run loads is here already. Not one of several processes."""
    values = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**values, "HF_HUB_OFFLINE": "1"}


def _small(spec: RunSpec, folder: Path, operations: float) -> tuple[RunSpec, list[int]]:
    """The run on a little data, and the positions of each of its micro-batches as they come."""
    config = spec.config
    most = MICRO_BATCHES if not operations else int(MOST_OPERATIONS / operations)
    group = min(config.grad_accum_steps, max(1, min(most, MICRO_BATCHES)))
    data = folder / "train.bin"
    batches = _sample(spec.data, data, spec, MOST_MICRO_BATCHES, longest=True)
    eval_data = None
    if spec.eval_data is not None:
        eval_data = folder / "eval.bin"
        _sample(spec.eval_data, eval_data, spec, EVAL_MICRO_BATCHES, longest=False)
    whole = max(len(batches) // group, 1)
    changed = dataclasses.replace(
        config,
        epochs=1,
        max_steps=min(whole, config.max_steps) if config.max_steps else whole,
        grad_accum_steps=group,
        shuffle=False,
        checkpoint_interval=0,
        eval_interval=LEAST_UPDATES - 1,
        log_interval=1,
        checkpoint_path=None,
        export_gguf_path=None,
        early_stopping=False,
    )
    lora = spec.lora
    if lora is not None:
        lora = lora.replace(export_gguf_path=None)
    return (
        spec.replace(
            data=data,
            eval_data=eval_data,
            run_dir=folder / "run",
            resume=None,
            config=changed,
            lora=lora,
            commercial=False,
            tokenizer=spec.tokenizer_dir,
        ),
        batches,
    )


def _sample(source: Path, target: Path, spec: RunSpec, most: int, *, longest: bool) -> list[int]:
    """Write some rows (or pairs, or a stretch of a stream); positions of each micro-batch."""
    config = spec.config
    size, length = config.batch_size, config.max_seq_len
    with TokenizedDataset.load(source) as data:
        rows = data.row_count
        if rows is None:
            count = min(len(data.tokens), most * size * length + 1)
            with TokenizedWriter(target, rows=False, mask=data.mask_bits is not None) as writer:
                mask = data.loss_mask
                writer.append(data.read(0, count), None if mask is None else mask[:count])
                writer.finish()
            return [size * length] * max((count - 1) // (size * length), 1)
        starts = np.asarray(data.row_starts)
        lengths = np.minimum(np.diff(starts.astype(np.int64)), length)
        together = 2 if data.is_preference else 1
        of_unit = lengths[: rows // together * together].reshape(-1, together).max(axis=1)
        order = np.random.default_rng(config.seed).permutation(of_unit.size)
        if longest:  # the first micro-batch is the largest there is
            top = np.argsort(-of_unit, kind="stable")[:size]
            order = np.concatenate([top, order[~np.isin(order, top)]])
        chosen = order[: most * size]
        mask = data.loss_mask
        with TokenizedWriter(
            target, mask=mask is not None, preference=data.is_preference
        ) as writer:
            for unit in chosen:
                for row in range(unit * together, (unit + 1) * together):
                    begin, end = int(starts[row]), int(starts[row + 1])
                    flags = None if mask is None else mask[begin:end]
                    writer.append(data.read(begin, end), flags)
            writer.finish()
        picked = of_unit[chosen]
        groups = [picked[i : i + size] for i in range(0, picked.size, size)]
        if config.packing != "none":
            return [size * length] * max(int(picked.sum()) // (size * length), 1)
        return [int(group.max()) * group.size * together for group in groups]


def _read(
    record: Mapping[str, Any],
    small: RunSpec,
    batches: list[int],
    positions: float,
    begin: float,
    end: float,
) -> Measurement:
    events = record["events"]
    group = small.config.grad_accum_steps
    spent: dict[str, list[float]] = {"step": [], "evaluation": [], "checkpoint": []}
    started = last = 0.0
    for kind, at, _ in events:
        if kind == "start":
            started = at
        elif last:
            spent[kind].append(at - last)
        last = at
    if not spent["step"]:
        raise EngineError("measuring made no update; plan with --no-measure")
    seen = [sum(batches[i : i + group]) for i in range(0, len(batches), group)]
    if len(spent["step"]) > 1:
        # The first update is slower by what is made once.
        timed, passed = sum(spent["step"][1:]), sum(seen[1 : len(spent["step"])])
    else:
        timed, passed = spent["step"][0], seen[0]
    each = timed / max(passed, 1)
    first = max(spent["step"][0] - each * seen[0], 0.0)
    updates = len(spent["step"])
    evaluation = None
    if spent["evaluation"]:
        evaluation = float(np.median(spent["evaluation"])) / EVAL_MICRO_BATCHES
    before = [peak for kind, _, peak in events if kind in ("step", "evaluation")]
    return Measurement(
        device=record["device"],
        updates=updates,
        start_seconds=started - begin + first,
        micro_seconds=each * positions,
        micro_positions=positions,
        eval_seconds=evaluation,
        checkpoint_seconds=sum(spent["checkpoint"]),
        end_seconds=end - last,
        peak_bytes=max(before),
        saved_bytes=int(record["peak_bytes"]),
        import_bytes=int(record["import_bytes"]),
        wall_seconds=end - begin,
    )
