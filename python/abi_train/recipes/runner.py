"""Runs the phases of a recipe in order, on either engine, and goes on where it was stopped.

Finished phases are kept; an interrupted one resumes from its latest checkpoint. A phase whose
settings, data or beginning changed since is refused and not quietly trained otherwise. Whatever
stops a phase names it, leaves the finished ones as they are and says the command that goes on.

Does not know: the terminal, how an engine works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import engines
from ..adapters import merge_adapter
from ..checkpoint import STATE_FILE as TRAINER_STATE
from ..checkpoint import list_checkpoints, run_lock, write_text_atomic
from ..errors import AbiTrainError, CheckpointError, ConfigError, FileAccessError, PhaseError
from ..runspec import RunResult, RunSpec, json_safe
from . import places
from .listener import Listener
from .preparing import fingerprint, prepare_phase
from .recipe import START, Phase, Recipe
from .state import PhaseState, RecipeState, difference, json_plain, settings_of


@dataclass(kw_only=True)
class RecipeResult:
    """What came of a recipe. before, scores: evaluations, of the start and of each phase.

    interrupted: the phase that was stopped on request; None when all that was asked for is done.
    checkpoints: the result of each finished phase.
    """

    name: str
    run_dir: Path
    checkpoints: dict[str, Path] = field(default_factory=dict)
    results: dict[str, RunResult] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    interrupted: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "run_dir": str(self.run_dir),
            "phases": {name: str(path) for name, path in self.checkpoints.items()},
            "runs": {name: result.to_dict() for name, result in self.results.items()},
            "before": self.before,
            "scores": self.scores,
            "interrupted": self.interrupted,
        }


def run(
    recipe: Recipe,
    *,
    phases: Sequence[str] | None = None,
    listener: Listener | None = None,
    command: str | None = None,
) -> RecipeResult:
    """Run a recipe, or go on with it. phases: only these. command: what goes on, for messages.

    Raises `PhaseError` naming the phase for whatever kept one from finishing, with the error itself
    as its cause; `ConfigError` and `CheckpointError` for a run folder of something else or phases
    that no longer fit.
    """
    if engines.processes.count() > 1:
        raise ConfigError(
            "a recipe with phases is run by one process. Start several on one phase at a time: "
            f"its own recipe is run.json in {recipe.run_dir}/PHASE once it was begun"
        )
    chosen = [recipe.phase(name) for name in phases] if phases else list(recipe.phases)
    chosen.sort(key=recipe.phases.index)
    command = command or f"abi-train train {recipe.source or recipe.name}"
    work = _Work(recipe, listener or Listener(), command)
    with _locked(recipe.run_dir):
        work.state = RecipeState(recipe)
        work.check(chosen)
        work.state.save()
        for phase in chosen:
            if not work.do(phase):
                break
    return work.result


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(run_lock(folder))
        except AbiTrainError:
            raise
        except OSError as error:
            raise FileAccessError(
                f"{folder}: cannot be made ({error.strerror}); name another folder with --run-dir"
            ) from None
        yield


class _ChangedError(ConfigError):
    """A phase that was begun or finished is not the one the recipe describes now."""


class _Work:
    """One call of `run`."""

    state: RecipeState

    def __init__(self, recipe: Recipe, listener: Listener, command: str) -> None:
        self._recipe = recipe
        self._listener = listener
        self._command = command
        self._fetched: dict[str, Path] = {}
        self.result = RecipeResult(name=recipe.name, run_dir=recipe.run_dir)

    def check(self, chosen: Sequence[Phase]) -> None:
        """Raise for what can be known to go wrong before anything is trained."""
        for phase in chosen:
            if any(task.startswith("lm-eval:") for task in phase.evals):
                from ..evaluate import harness

                harness.require()
            found = self.state[phase]
            if phase.after is not None and self._recipe.phase(phase.after) not in chosen:
                before = self._recipe.phase(phase.after)
                if self.state.result_of(before) is None:
                    raise ConfigError(
                        f"phase {phase.name} goes on from {before.name}, which is not finished in "
                        f"{self._recipe.run_dir}. Run {before.name} first (--phase {before.name}), "
                        f"or begin with the recipe's model (--set phases.{phase.name}.chain=none)"
                    )
                if not found.finished:
                    self._require_below(phase, chosen)
            if phase.after is not None and found.began is not None:
                before = self._recipe.phase(phase.after)
                if before in chosen and self.state.result_of(before) is None:
                    what = f"the result of {before.name}, which is to be trained again"
                    if found.finished or list_checkpoints(phase.spec.run_dir):
                        raise self._changed(phase, what)
            if found.settings and (found.finished or list_checkpoints(phase.spec.run_dir)):
                changed = difference(found.settings, settings_of(phase.spec))
                if changed is not None:
                    raise self._changed(phase, changed)
            elif list_checkpoints(phase.spec.run_dir):
                raise ConfigError(
                    f"{phase.spec.run_dir} holds checkpoints of another run; name another folder "
                    "with --run-dir"
                )

    def _require_below(self, phase: Phase, chosen: Sequence[Phase]) -> None:
        """Raise when the model below the adapter that a phase goes on with is gone."""
        one = phase
        while one.after is not None and one.chain != "merge":
            one = self._recipe.phase(one.after)
            if one.spec.method == "full":
                if one not in chosen:
                    self._required(phase, one)
                return

    def _changed(self, phase: Phase, what: str) -> ConfigError:
        said = "finished" if self.state[phase].finished else "begun"
        later = [phase, *self._later(phase)]
        folders = " ".join(str(one.spec.run_dir) for one in later if one.spec.run_dir.exists())
        return _ChangedError(
            f"phase {phase.name} was {said} with something else: {what}. Train into another folder "
            f"(--run-dir), or delete {folders or phase.spec.run_dir} to train it again"
        )

    def _later(self, phase: Phase) -> list[Phase]:
        """The phases that go on from this one, directly or not."""
        found = [phase.name]
        later = []
        for one in self._recipe.phases:
            if one.after in found:
                found.append(one.name)
                later.append(one)
        return later

    def do(self, phase: Phase) -> bool:
        """Run a phase unless it is finished; False when it was stopped on request."""
        found = self.state[phase]
        number = self._recipe.phases.index(phase) + 1
        if not phase.spec.run_dir.exists() and not found.finished:
            found = self.state.phases[phase.name] = PhaseState(data=found.data)
        try:
            done = self.state.result_of(phase)
            if done is not None:
                self._require_same(phase)
                self._listener.on_kept(phase, done)
                self._evaluate(phase, done)
                self._finished(phase, done)
                return True
            self._listener.on_phase(phase, number, len(self._recipe.phases))
            return self._train(phase, found)
        except KeyboardInterrupt:
            found.state = "interrupted"
            with contextlib.suppress(AbiTrainError):
                self.state.save()
            self._listener.on_note(f"go on with: {self._command}")
            raise
        except (AbiTrainError, OSError, MemoryError) as error:
            if isinstance(error, _ChangedError):
                raise
            raise self._failed(phase, error) from error

    def _failed(self, phase: Phase, error: BaseException) -> PhaseError:
        text = str(error)
        if isinstance(error, OSError) and not isinstance(error, AbiTrainError):
            name = f"{error.filename}: " if error.filename else ""
            text = f"{name}{error.strerror or error}"
        elif isinstance(error, MemoryError) and not isinstance(error, AbiTrainError):
            text = "out of memory; use a smaller model, batch_size or max_seq_len"
        found = self.state[phase]
        if not found.finished:
            found.state, found.error = "failed", text
        with contextlib.suppress(AbiTrainError):  # a full disk may keep this from being said
            self.state.save()
        kept = [one.name for one in self._recipe.phases if self.state.result_of(one)]
        finished = f"finished and kept: {', '.join(kept)}. " if kept else ""
        return PhaseError(
            f"phase {phase.name}: {text.rstrip('.')}. {finished}Go on with: {self._command}",
            phase=phase.name,
            command=self._command,
        )

    def _require_same(self, phase: Phase) -> None:
        """Raise when a phase would be made from other rows or another beginning today than it was.
        Rows of a finished phase may be gone: it needs them no more."""
        if self.state[phase].began != self._began(phase):
            what = f"the result of {phase.after}" if phase.after else "the model"
            raise self._changed(phase, f"{what}, with which it began, is another one")
        try:
            self._require_same_rows(phase)
        except _ChangedError:
            raise
        except (AbiTrainError, OSError):
            if not self.state[phase].finished:
                raise

    def _require_same_rows(self, phase: Phase) -> None:
        now = json_plain(fingerprint(phase, self._tokenizer(phase)))
        changed = difference(self.state[phase].data.get("fingerprint", {}), now)
        if changed is not None:
            raise self._changed(phase, f"of its data {changed}")

    def _tokenizer(self, phase: Phase) -> Path | None:
        spec = phase.spec
        if spec.tokenizer is not None:
            return spec.tokenizer
        return spec.replace(model=self._model(self._first_of(phase))).tokenizer_dir

    def _first_of(self, phase: Phase) -> Phase:
        while phase.after is not None:
            phase = self._recipe.phase(phase.after)
        return phase

    def _model(self, phase: Phase) -> Path:
        """The model of a phase that begins with the recipe's, made or fetched where it has to."""
        spec = phase.spec
        if phase.model_config is not None:
            text = json.dumps(phase.model_config, indent=2) + "\n"
            if not spec.model.is_file() or spec.model.read_text(encoding="utf-8") != text:
                spec.model.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomic(spec.model, text)
        elif str(spec.model).startswith(places.HUB):
            name = str(spec.model)
            if name not in self._fetched:
                self._fetched[name] = places.download_model(name)
            return self._fetched[name]
        return spec.model

    def _began(self, phase: Phase) -> str | None:
        """What tells that with which a phase begins from anything else."""
        if phase.after is None:
            return _identity(phase)
        folder = self.state.result_of(self._recipe.phase(phase.after))
        if folder is None:
            return None
        return hashlib.sha256((folder / TRAINER_STATE).read_bytes()).hexdigest()

    def _resolved(self, phase: Phase) -> RunSpec:
        """The run of a phase with the places that are known now."""
        spec = phase.spec
        if phase.after is None:
            return spec.replace(model=self._model(phase))
        before = self._recipe.phase(phase.after)
        result = self._required(phase, before)
        if before.spec.method == "full":
            return spec.replace(model=result)
        below = self._base_below(before)
        if phase.chain == "merge":
            return spec.replace(model=self._merged(phase, below, result))
        assert spec.lora is not None
        return spec.replace(model=below, lora=spec.lora.replace(adapter=result))

    def _base_below(self, phase: Phase) -> Path:
        """The model under the adapter of a finished phase."""
        if phase.after is None:
            return self._model(phase)
        before = self._recipe.phase(phase.after)
        if phase.chain == "merge":
            start = phase.spec.run_dir / START
            if not start.is_dir():
                raise ConfigError(
                    f"{start}, the model below the adapter of {phase.name}, is gone; bring it back"
                    ", or train into another folder (--run-dir)"
                )
            return start
        if before.spec.method == "full":
            return self._required(phase, before)
        return self._base_below(before)

    def _required(self, phase: Phase, before: Phase) -> Path:
        """The result that a phase begins with or its adapter is for."""
        result = self.state.result_of(before)
        if result is None:
            raise ConfigError(
                f"phase {phase.name} stands on what {before.name} left, which is not in "
                f"{self._recipe.run_dir} any more. Run {before.name} first "
                f"(--phase {before.name}), or bring its folder back"
            )
        return result

    def _merged(self, phase: Phase, base: Path, adapter: Path) -> Path:
        target = phase.spec.run_dir / START
        if (target / "config.json").is_file() and self.state[phase].began == self._began(phase):
            return target
        if target.exists():
            shutil.rmtree(target)
        phase.spec.run_dir.mkdir(parents=True, exist_ok=True)
        self._listener.on_note(f"merging {adapter} into its model")
        return merge_adapter(base, adapter, target)

    def _train(self, phase: Phase, found: PhaseState) -> bool:
        if self._listener.stop_requested():
            return self._stopped(phase, found)
        begun = list_checkpoints(phase.spec.run_dir)
        if begun:
            self._require_same(phase)
        prepared = prepare_phase(
            phase,
            self._tokenizer(phase),
            found.data.get("fingerprint"),
            tell=self._listener.on_note,
            stop=self._listener.stop_requested,
        )
        found.data = {"fingerprint": json_plain(prepared.fingerprint), **prepared.summary}
        spec = self._resolved(phase)
        if phase is self._recipe.phases[0] and not begun:
            self._evaluate_start(phase, spec)
        found.settings = settings_of(phase.spec)
        found.began, found.state, found.error = self._began(phase), "running", None
        self.state.save()
        if begun:
            spec = spec.replace(resume="latest")
            self._listener.on_note(f"going on from {begun[-1]}")
        result = engines.run(spec, self._listener.observer(phase, spec))
        self.result.results[phase.name] = result
        if result.stop_reason == "interrupted":
            return self._stopped(phase, found)
        folder = result.model_folder
        if folder is None:
            raise CheckpointError(f"{spec.run_dir}: the run left no checkpoint")
        found.state = "finished"
        found.checkpoint = str(folder.relative_to(self._recipe.run_dir))
        found.result = json_safe(
            {
                "engine": result.engine,
                "loss": result.final_loss,
                "best_eval_loss": None
                if math.isinf(result.best_val_loss)
                else result.best_val_loss,
                "updates": result.total_steps,
                "tokens": result.total_tokens,
                "seconds": result.total_time_ns / 1e9,
                **(result.history[-1].metrics if result.history else {}),
            }
        )
        self.state.save()
        self._evaluate(phase, folder)
        self._finished(phase, folder)
        return True

    def _stopped(self, phase: Phase, found: PhaseState) -> bool:
        found.state = "interrupted"
        self.state.save()
        self.result.interrupted = phase.name
        return False

    def _finished(self, phase: Phase, folder: Path) -> None:
        self.result.checkpoints[phase.name] = folder
        self.result.before = dict(self.state.before)
        if self.state[phase].scores:
            self.result.scores[phase.name] = dict(self.state[phase].scores)

    def _evaluate_start(self, phase: Phase, spec: RunSpec) -> None:
        """Evaluations of the model the recipe begins with; a random start has none."""
        tasks = self._missing(phase, self.state.before)
        if not tasks or phase.model_config is not None:
            return
        self.state.before.update(self._scores(spec.model, tasks, spec.engine))
        self.state.save()
        self._listener.on_scores(None, self.state.before)

    def _evaluate(self, phase: Phase, folder: Path) -> None:
        found = self.state[phase]
        tasks = self._missing(phase, found.scores)
        if not tasks:
            return
        found.scores.update(self._scores(folder, tasks, phase.spec.engine))
        self.state.save()
        self._listener.on_scores(phase.name, found.scores)

    def _missing(self, phase: Phase, scores: Mapping[str, Any]) -> list[str]:
        return [task for task in phase.evals if task not in scores]

    def _scores(self, model: Path, tasks: Sequence[str], engine: str) -> dict[str, Any]:
        from .. import evaluate

        self._listener.on_note(f"evaluating {model}: {', '.join(tasks)}")
        scores: dict[str, Any] = json_plain(evaluate.run(model, tasks, engine=engine).scores)
        return scores


def _identity(phase: Phase) -> str:
    """What tells a model from another one without reading its weights; it may be moved."""
    model = phase.spec.model
    if phase.model_config is not None:
        return hashlib.sha256(json.dumps(phase.model_config).encode()).hexdigest()
    if str(model).startswith(places.HUB):
        return str(model)
    digest = hashlib.sha256()
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    for path in files:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    config = model / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()
