"""What a run tells the world while it goes: observers, the log file, the training line.

An engine calls an `Observer` after every update, evaluation and checkpoint and asks it whether to
stop. Progress goes to stderr, and in place only when stderr is a terminal. Does not know: engines,
models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from .runspec import EvalRecord, RunResult, StepRecord, json_safe

LOG_FILE: Final = "log.jsonl"
"""Name of the log in a run folder."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Something went wrong with the numbers of a run, or looks like it.

    kind: `loss_spike`, `clipped` or `not_a_number`. level: `warn`, or `error` where the run ends.
    """

    kind: str
    level: str
    step: int
    title: str
    text: str


class Observer:
    """Told of everything a run does. Each method does nothing; override what matters."""

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        """The run begins; `total_steps` counts updates of the whole run, done ones included."""

    def on_step(self, record: StepRecord) -> None:
        """One update is done."""

    def on_evaluation(self, record: EvalRecord) -> None:
        """One evaluation is done."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint stands under its final name."""

    def on_note(self, text: str) -> None:
        """Something a person should know."""

    def on_alert(self, alert: Alert) -> None:
        """The numbers went wrong, or look like it."""

    def on_failure(self, error: BaseException) -> None:
        """The run ends with an error, after which nothing more is told."""

    def on_end(self, result: RunResult) -> None:
        """The run is over, as planned or as somebody wished."""

    def stop_requested(self) -> bool:
        """True asks the engine to finish the update, save and return."""
        return False


class Observers(Observer):
    """Several observers as one, told in order."""

    def __init__(self, *members: Observer) -> None:
        self.members = members

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        for member in self.members:
            member.on_start(total_steps, info)

    def on_step(self, record: StepRecord) -> None:
        for member in self.members:
            member.on_step(record)

    def on_evaluation(self, record: EvalRecord) -> None:
        for member in self.members:
            member.on_evaluation(record)

    def on_checkpoint(self, path: Path) -> None:
        for member in self.members:
            member.on_checkpoint(path)

    def on_note(self, text: str) -> None:
        for member in self.members:
            member.on_note(text)

    def on_alert(self, alert: Alert) -> None:
        for member in self.members:
            member.on_alert(alert)

    def on_failure(self, error: BaseException) -> None:
        for member in self.members:
            member.on_failure(error)

    def on_end(self, result: RunResult) -> None:
        for member in self.members:
            member.on_end(result)

    def stop_requested(self) -> bool:
        return any(member.stop_requested() for member in self.members)


class JsonlLog(Observer):
    """Writes `log.jsonl`: an object a line, every `interval` updates and for each other event.

    Appends, so that a resumed run continues its log. Each line is flushed: a killed run keeps it.
    A line that a kill cut in half is ended before the next. `time` is in seconds since 1970.
    """

    def __init__(self, path: Path, *, interval: int = 1) -> None:
        self.path = path
        self.interval = interval
        self._total = 0
        self._file: IO[str] | None = None

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            half = _ends_in_half(self.path)
            self._file = self.path.open("a", encoding="utf-8")
            if half:
                self._file.write("\n")
        values = {**json_safe(dict(values)), "time": round(time.time(), 3)}
        text = json.dumps(values, ensure_ascii=False) + "\n"
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self.close()  # tries once more to write and has no name either
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        self._total = total_steps
        self._write({"event": "start", "total_steps": total_steps, **info})

    def on_step(self, record: StepRecord) -> None:
        due = self.interval and (record.step % self.interval == 0 or record.step == 1)
        if due or record.step == self._total:
            self._write({"event": "step", **record.as_dict(), **record.measured()})

    def on_evaluation(self, record: EvalRecord) -> None:
        self._write({"event": "evaluation", **record.as_dict()})

    def on_checkpoint(self, path: Path) -> None:
        self._write({"event": "checkpoint", "path": str(path)})

    def on_note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def on_alert(self, alert: Alert) -> None:
        if self._file is None:
            return  # refused before it began: nothing is touched
        self._write({"event": "alert", **dataclasses.asdict(alert)})

    def on_failure(self, error: BaseException) -> None:
        if self._file is None:
            return  # it never began
        kind = type(error).__name__
        with contextlib.suppress(OSError):  # the error itself may be a full disk
            self._write({"event": "failed", "error": kind, "text": " ".join(str(error).split())})
        self.close()

    def on_end(self, result: RunResult) -> None:
        self._write(
            {
                "event": "end",
                "stop_reason": result.stop_reason,
                "total_steps": result.total_steps,
                "total_tokens": result.total_tokens,
                "final_loss": result.final_loss,
                "total_time_ns": result.total_time_ns,
            }
        )
        self.close()

    def close(self) -> None:
        """Let go of the file; the next line would open it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _ends_in_half(path: Path) -> bool:
    """Whether the last line of a file was cut off."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


class TrainingLine(Observer):
    """The one line a person watches, on stderr.

    `step 1200/5000  loss 2.113  lr 2.9e-4  grad 0.81  12.4k tok/s  eta 3m10s`

    On a terminal the line is redrawn with a bar; in a pipe it is printed every `interval` updates.
    A stream that cannot be written (the pipe's reader left, the disk is full) never stops the run.
    """

    def __init__(self, *, interval: int = 10, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._interval = interval
        self._total = 0
        self._rate = 0.0
        self._started = 0.0
        self._done_before = 0
        self._drawn = 0.0
        self._width = 0

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        self._total = total_steps
        self._done_before = int(info.get("start_step", 0))
        self._started = time.monotonic()

    def on_step(self, record: StepRecord) -> None:
        weight = 1.0 if self._rate == 0.0 else 0.2
        self._rate += weight * (record.tokens_per_second - self._rate)
        last = record.step >= self._total
        now = time.monotonic()
        if self._live:
            if not last and now - self._drawn < 0.1:
                return
            self._drawn = now
            self._draw(self._text(record, now), end=last)
        elif last or record.step == 1 or (self._interval and record.step % self._interval == 0):
            self._line(self._text(record, now))

    def on_evaluation(self, record: EvalRecord) -> None:
        self._line(
            f"evaluation at step {record.step}: loss {record.loss:.4f}  "
            f"perplexity {record.perplexity:.2f}  accuracy {100 * record.accuracy:.1f}%"
        )

    def on_checkpoint(self, path: Path) -> None:
        self._line(f"saved {path}")

    def on_note(self, text: str) -> None:
        self._line(text)

    def on_alert(self, alert: Alert) -> None:
        if alert.level != "error":  # one that ends the run is said by the error itself
            self._line(f"warning: step {alert.step}: {alert.text}")

    def on_end(self, result: RunResult) -> None:
        if self._live and self._width:
            self._put("\n")
            self._width = 0

    def _text(self, record: StepRecord, now: float) -> str:
        steps = record.step - self._done_before
        left = (now - self._started) / steps * (self._total - record.step) if steps > 0 else 0.0
        return (
            f"step {record.step}/{self._total}  loss {record.loss:.3f}  "
            f"lr {short_power(record.learning_rate)}  grad {record.grad_norm:.2f}  "
            f"{short_count(self._rate)} tok/s  eta {short_time(left)}"
        )

    def _draw(self, text: str, *, end: bool) -> None:
        done = int(text.split("/", 1)[0].split()[1]) / max(1, self._total)
        filled = round(20 * done)
        shown = f"{'━' * filled}{'╌' * (20 - filled)} {text}"
        self._put("\r" + shown.ljust(self._width) + ("\n" if end else ""))
        self._width = 0 if end else len(shown)

    def _line(self, text: str) -> None:
        blank = "\r" + " " * self._width + "\r" if self._width else ""
        self._width = 0
        self._put(blank + text + "\n")

    def _put(self, text: str) -> None:
        _write_if_possible(self._stream, text)


class StopOnSignal(Observer):
    """Ctrl-C (or SIGTERM) once: finish the update, save, return. Twice: leave at once.

    A context manager, since signal handlers must be put back. Elsewhere than on the main thread it
    only listens to `request()`.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._event = threading.Event()
        self.signal: int | None = None

    def request(self) -> None:
        """Ask for the stop as a signal would."""
        self._event.set()

    def stop_requested(self) -> bool:
        return self._event.is_set()

    @contextlib.contextmanager
    def installed(self) -> Iterator[StopOnSignal]:
        """Listen to SIGINT and SIGTERM inside the `with` block."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, self._handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self.signal = number
        self._event.set()
        text = "\nstopping after this update and saving; again to leave at once\n"
        _write_if_possible(self._stream, text)


def _write_if_possible(stream: IO[str], text: str) -> None:
    """Progress is worth less than the run: what cannot be written is given up."""
    # ValueError: the stream is closed; RuntimeError: a signal came while it was being written.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        stream.write(text)
        stream.flush()


def short_count(value: float) -> str:
    """12400 → `12.4k`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def short_power(value: float) -> str:
    """0.00029 → `2.9e-4`."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def short_time(seconds: float) -> str:
    """190 → `3m10s`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds_left:02d}s" if minutes else f"{seconds_left}s"
