"""What a plan runs beside itself: the real engine on a little of the real data, with a clock.

`main` trains as a request in a file says and leaves a record of when each thing was done and how
much memory the process had at its largest. It is called in a process of its own, so that its memory
is its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AbiTrainError
from ..progress import Observer
from ..runspec import EvalRecord, RunSpec, StepRecord


def peak_bytes() -> int:
    """The largest resident size this process has had."""
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Clock(Observer):
    """Notes when each thing was done; asks to stop when `seconds` are over and there is enough."""

    def __init__(self, seconds: float, least: int) -> None:
        self.events: list[tuple[str, float, int]] = []
        self._seconds = seconds
        self._least = least
        self._begin = 0.0
        self._steps = 0
        self.device = "cpu"

    def _note(self, kind: str) -> None:
        self.events.append((kind, time.time(), peak_bytes()))

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        self.device = str(info.get("device", "cpu"))
        self._note("start")

    def on_step(self, record: StepRecord) -> None:
        self._steps += 1
        if self._steps == 1:
            self._begin = time.monotonic()
        self._note("step")

    def on_evaluation(self, record: EvalRecord) -> None:
        self._note("evaluation")

    def on_checkpoint(self, path: Path) -> None:
        self._note("checkpoint")

    def stop_requested(self) -> bool:
        """Enough was seen; or, of a run whose updates take long, two updates."""
        spent = time.monotonic() - self._begin
        if self._steps >= self._least:
            return spent > self._seconds
        return self._steps >= 2 and spent > 4 * self._seconds + 10


def main() -> None:
    """Run the request and leave the record beside it."""
    request = Path(sys.argv[1])
    wanted = json.loads(request.read_text("utf-8"))
    record: dict[str, Any] = {"entered": time.time()}
    clock = Clock(wanted["seconds"], wanted["least"])
    from .. import engines

    try:
        if wanted["spec"]["engine"] == "trl":
            from ..engines import trl  # noqa: F401  # its libraries are most of what starting costs
        record["imported"] = time.time()
        record["import_bytes"] = peak_bytes()
        engines.run(RunSpec.from_dict(wanted["spec"]), clock)
    except AbiTrainError as error:
        record["error"] = str(error)
    except MemoryError:
        record["error"] = "out of memory"
    record |= {
        "events": clock.events,
        "device": clock.device,
        "peak_bytes": peak_bytes(),
        "left": time.time(),
    }
    request.with_suffix(".out").write_text(json.dumps(record), encoding="utf-8")
