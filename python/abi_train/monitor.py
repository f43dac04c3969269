"""Who watches a run besides its log: warnings, and Trackio when the recipe names a project.

Both engines send the same keys, those transformers' own integration has, so that their runs, and
those of a plain TRL script, lie on one another in the dashboard. Everything stays on this machine
unless the recipe names a Space. What goes wrong in Trackio once the run goes on is told, once, and
never ends the run: the log has every figure. Does not know: engines.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .checkpoint import write_text_atomic
from .errors import ConfigError, EngineError
from .monitor_alerts import Watch
from .progress import Alert, Observer
from .runspec import EvalRecord, RunResult, RunSpec, StepRecord, json_safe

TRACKIO_FILE: Final = "trackio.json"
"""In a run's folder: which run of which project it is, so that a resumed one goes on there."""
SPACE_VARIABLE: Final = "TRACKIO_SPACE_ID"
PHASES_FILE: Final = "recipe.json"
"""In the folder above, when the run is one phase of several."""
KEYS: Final[Mapping[str, str]] = {
    "step": "global_step",
    "accuracy": "mean_token_accuracy",
    "tokens": "num_tokens",
}
"""Our names of the log that are others in transformers' and TRL's."""


def observers(spec: RunSpec, told: Observer | None = None) -> list[Observer]:
    """What the table `monitor` of a recipe asks for; `told` hears of what these find.

    Raises `EngineError` when Trackio is asked for and not installed, `ConfigError` for a project
    it does not take.
    """
    told = told or Observer()
    found: list[Observer] = []
    if spec.monitor.trackio is not None:
        trackio = TrackioLog(spec, told)
        found.append(trackio)
        told = _Both(told, trackio)
    found.append(Watch(spec.monitor, told, max_grad_norm=spec.config.max_grad_norm))
    return found[::-1]  # the watch first: a failure is an alert before Trackio's run is finished


class _Both(Observer):
    """Alerts for two."""

    def __init__(self, *members: Observer) -> None:
        self._members = members

    def on_alert(self, alert: Alert) -> None:
        for member in self._members:
            member.on_alert(alert)


def step_values(record: StepRecord) -> dict[str, float]:
    """What Trackio gets of an update."""
    values: dict[str, float] = {f"train/{KEYS.get(k, k)}": v for k, v in record.as_dict().items()}
    for name, size in record.measured().items():
        values[f"train/{name.removesuffix('_bytes')}_gb"] = size / 1e9
    return values


def evaluation_values(record: EvalRecord) -> dict[str, float]:
    """What Trackio gets of an evaluation; the update it was made after is the axis here too."""
    values: dict[str, float] = {"train/global_step": record.step}
    for key, value in record.as_dict().items():
        if key.startswith("eval_"):
            name = key.removeprefix("eval_")
            values[f"eval/{KEYS.get(name, name)}"] = value
    return values


class TrackioLog(Observer):
    """A run of a Trackio project. Its name is kept in the run's folder, for the resumed run."""

    def __init__(self, spec: RunSpec, told: Observer) -> None:
        assert spec.monitor.trackio is not None
        self._spec = spec
        self._project: str = spec.monitor.trackio
        self._told = told
        self._interval = spec.config.log_interval
        self._trackio = _imported()
        self._run: Any = None
        self._total = 0
        self._seen: set[tuple[str, int]] = set()  # what an earlier part of the run has sent
        self._complaints: list[str] = []
        self._said: set[str] = set()
        self._before: Callable[..., None] | None = None
        if not spec.monitor.trackio_space and os.environ.get(SPACE_VARIABLE):
            told.on_note(
                f"{SPACE_VARIABLE} is not followed: metrics leave this machine only for the Space "
                "named as --trackio-space"
            )

    # ---- what the engine tells ----

    def on_start(self, total_steps: int, info: Mapping[str, Any]) -> None:
        self._total = total_steps
        settings = self._spec.monitor
        try:
            with _quiet(), _without(SPACE_VARIABLE):
                _require_folder()
                name, resumed = self._name(bool(info.get("start_step")))
                if resumed:
                    self._seen = _sent(self._project, name)
                self._run = self._trackio.init(
                    project=self._project,
                    name=name,
                    space_id=settings.trackio_space,
                    private=not settings.trackio_public,
                    resume="allow" if resumed else "never",
                    embed=False,
                    config=_flat({**self._spec.to_dict(), **json_safe(dict(info))}),
                )
        except Exception as error:  # another package's; before the first update it is worth a stop
            raise _refused(self._project, settings.trackio_space, error) from error
        self._keep(name)
        if name != (settings.trackio_run or name):
            self._told.on_note(f"trackio: the name is taken, so this run is {name}")
        elif not resumed:
            self._told.on_note(
                f"trackio: run {name}; to look: trackio show --project {self._project}"
            )
        self._listen()

    def on_step(self, record: StepRecord) -> None:
        due = self._interval and record.step % self._interval == 0
        if (due or record.step in (1, self._total)) and ("train", record.step) not in self._seen:
            self._send(step_values(record), record.step)

    def on_evaluation(self, record: EvalRecord) -> None:
        if ("eval", record.step) not in self._seen:
            self._send(evaluation_values(record), record.step)

    def on_alert(self, alert: Alert) -> None:
        level = "ERROR" if alert.level == "error" else "WARN"
        with self._guarded() as run:
            if run is not None:
                known = self._trackio.AlertLevel[level]
                run.alert(alert.title, text=alert.text, level=known, step=alert.step)

    def on_failure(self, error: BaseException) -> None:
        self._finish()

    def on_end(self, result: RunResult) -> None:
        self._finish()

    # ---- Trackio ----

    def _send(self, values: Mapping[str, float], step: int) -> None:
        with self._guarded() as run:
            if run is not None:
                run.log(dict(values), step=step)

    def _finish(self) -> None:
        with self._guarded() as run:
            if run is not None:
                self._trackio.finish()  # waits for what is not written, half a minute at most
        self._run = None
        self._listen(False)
        self._pass_on()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[Any]:
        """The run of Trackio, or None when there is none any more. Its errors stay inside."""
        try:
            with _quiet():
                yield self._run
        except Exception as error:  # another package's: none of them is worth the run
            self._run = None
            self._complaints.append(
                f"{type(error).__name__}: {error}. Nothing more is sent there; the run goes on"
            )
        self._pass_on()

    def _pass_on(self) -> None:
        """Tell what Trackio complained of, from the thread the run is on."""
        while self._complaints:
            text = " ".join(self._complaints.pop(0).split())
            if text not in self._said and len(self._said) < 5:
                self._said.add(text)
                self._told.on_note(f"trackio: {text}")

    def _listen(self, on: bool = True) -> None:
        """Trackio warns from a thread of its own; its warnings become notes while the run goes."""
        if not on:
            if self._before is not None:
                warnings.showwarning, self._before = self._before, None
            return
        before = self._before = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any
        ) -> None:
            if "trackio" in Path(filename).parts:
                self._complaints.append(str(message))
            else:
                before(message, category, filename, *rest, **named)

        warnings.showwarning = show

    def _name(self, goes_on: bool) -> tuple[str, bool]:
        """The run's name in the project, and whether it is there already and goes on."""
        try:
            kept = json.loads((self._spec.run_dir / TRACKIO_FILE).read_text(encoding="utf-8"))
            name = kept["run"] if kept["project"] == self._project else None
        except (OSError, ValueError, LookupError, TypeError):
            name = None
        taken = _names(self._trackio, self._project)
        if (
            goes_on
            and isinstance(name, str)
            and (name in taken or self._spec.monitor.trackio_space)
        ):
            return name, True
        wanted = self._spec.monitor.trackio_run or run_name(self._spec.run_dir)
        return free_name(wanted, taken), False

    def _keep(self, name: str) -> None:
        """Leave the name with the run; without it a resumed run is only a run of its own."""
        values = {"project": self._project, "run": name}
        try:
            write_text_atomic(self._spec.run_dir / TRACKIO_FILE, json.dumps(values) + "\n")
        except OSError as error:
            self._told.on_note(f"{self._spec.run_dir / TRACKIO_FILE}: {error.strerror}")


def run_name(run_dir: Path) -> str:
    """What a run is called by its folder; a phase's begins with the name of its recipe's run."""
    folder = run_dir.resolve()
    if (folder.parent / PHASES_FILE).is_file():
        return f"{folder.parent.name}-{folder.name}"
    return folder.name or "run"


def free_name(wanted: str, taken: Collection[str]) -> str:
    """The name, or with the first number that makes it a new one: two of a name lie in one line."""
    if wanted not in taken:
        return wanted
    return next(name for at in itertools.count(2) if (name := f"{wanted}-{at}") not in taken)


def _imported() -> Any:
    """Trackio. Raises `EngineError` without it."""
    try:
        return importlib.import_module("trackio")
    except ImportError as error:
        said = f" ({error})" if importlib.util.find_spec("trackio") is not None else ""
        raise EngineError(
            f"monitor.trackio needs the package trackio, which cannot be imported{said}: pip "
            "install 'abi-train[trackio]', or leave --trackio out; log.jsonl has every figure"
        ) from error


def _require_folder() -> None:
    """Trackio's folder, made if need be; later it would only warn. Raises `OSError`."""
    place = getattr(importlib.import_module("trackio"), "TRACKIO_DIR", None)
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def _refused(project: str, space: str | None, error: Exception) -> Exception:
    text = " ".join(str(error).split())
    if space is not None:
        text = text[:300].rstrip(".")
        return EngineError(
            f"trackio cannot send project {project} to the Space {space}: {type(error).__name__}: "
            f"{text}. Look at the connection, at the login (`hf auth login`) and whether "
            "that user may write there, or leave --trackio-space out: the metrics then stay here"
        )
    if isinstance(error, ValueError):
        return ConfigError(f"monitor.trackio is {json.dumps(project)}; Trackio says: {text}")
    return EngineError(
        f"trackio cannot begin a run of project {project}: {type(error).__name__}: {text}. Leave "
        "--trackio out, or set TRACKIO_DIR to a folder that can be written"
    )


def _names(trackio: Any, project: str) -> set[str]:
    """Names of the runs a project has on this machine."""
    try:
        return {str(run.name) for run in trackio.Api().runs(project)}
    except ValueError:
        return set()  # no such project yet


def _sent(project: str, name: str) -> set[tuple[str, int]]:
    """What an earlier part of the run has left there, so that nothing comes twice."""
    try:
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        rows = storage.get_logs(project, name)
        return {
            (kind, int(row["step"]))
            for row in rows
            for kind in ("train", "eval")
            if f"{kind}/loss" in row
        }
    except Exception:  # a part of Trackio that may change: at worst an update is there twice
        return set()


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Tables as names with dots, for a table of two columns."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{before}{key}."))
        else:
            flat[f"{before}{key}"] = value
    return flat


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trackio prints; our stdout is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """The environment without a variable."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value
