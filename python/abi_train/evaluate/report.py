"""What an evaluation found: scores by task, what they rest on, and notes; to a file and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..checkpoint import write_text_atomic
from ..errors import ConfigError, DataError, FileAccessError, MissingFileError

FORMAT: Final = "abi_train evaluation 1"

_OTHERS: Final = frozenset(
    {
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors.index.json",
        "trainer_state.json",
        "run.json",
        "recipe.json",
        "trackio.json",
    }
)
"""Names that mean something in a model's or a run's folder, where a report may stand, too."""

#: Of each metric whether more of it is better; None where neither is.
BETTER: Final[Mapping[str, bool | None]] = {
    "accuracy": True,
    "macro_f1": True,
    "marked": True,
    "no_number": False,
    "cut_off": False,
    "calibration_error": False,
    "brier": False,
    "accuracy_of_choice": True,
    "answers_known": True,
    "accuracy_known": True,
    "accuracy_when_answering": True,
    "abstains_unknowable": True,
    "asks_ambiguous": True,
    "perplexity": False,
    "nll_per_token": False,
    "bits_per_byte": False,
    "rows": None,
    "tokens": None,
}


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Scores of one model.

    scores: for each task its metrics by name. A metric that nothing was there to compute from is
        left out.
    details: for each task what stands behind them: the confusion of labels, the bins of
        calibration, and the first answers that were wrong.
    notes: what a reader of the scores has to know. seconds: for each task.
    """

    model: str
    engine: str
    scores: dict[str, dict[str, float]]
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    limit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, **vars(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str | Path = "report") -> EvalReport:
        """The report that `to_dict` described. Raises `DataError` naming `where`."""
        known = set(cls.__dataclass_fields__)
        if values.get("format") != FORMAT or not isinstance(values.get("scores"), dict):
            raise DataError(
                f"{where}: not a report of abi-train eval; make one with --json, or --output"
            )
        kept = {key: value for key, value in values.items() if key in known}
        scores = {
            str(task): {
                str(name): float(value)
                for name, value in metrics.items()
                if isinstance(value, (int, float))
            }
            for task, metrics in values["scores"].items()
            if isinstance(metrics, dict)
        }
        try:
            return cls(**{**kept, "scores": scores, "notes": tuple(values.get("notes") or ())})
        except TypeError as error:
            raise DataError(f"{where}: not a whole report of abi-train eval ({error})") from None

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, text)
        except OSError as error:
            raise FileAccessError(f"{path}: cannot be written ({error.strerror})") from None
        return path

    @classmethod
    def check_output(cls, path: str | Path, *, reads: Iterable[str | Path] = ()) -> None:
        """Raise now what would make `save` replace something else than an earlier report.

        reads: files the evaluation reads, an earlier report among them. `ConfigError` for a name
        that is not .json or one of `reads`, `FileAccessError` for a folder or another file.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ConfigError(f"{path}: the name of a report must end in .json, as report.json")
        if path.name in _OTHERS:
            raise ConfigError(
                f"{path}: {path.name} is the name of a file of models and runs; name another one, "
                "as report.json"
            )
        if path.is_dir():
            raise FileAccessError(f"{path} is a folder; name a file in it, as report.json")
        for given in map(Path, reads):
            if given.resolve() == path.resolve() or (
                path.exists() and given.exists() and given.samefile(path)
            ):
                raise ConfigError(f"{path} is read by this evaluation; name another file for it")
        if not path.exists():
            return
        try:
            cls.load(path)
        except (DataError, FileAccessError):
            raise FileAccessError(
                f"{path} exists and is no report of abi-train eval; name another file, or delete it"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """A report that was saved. Raises `DataError`, `MissingFileError`, `FileAccessError`."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MissingFileError(f"{path}: no such file; check the path") from None
        except OSError as error:
            raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError):
            raise DataError(f"{path}: not valid JSON; it must be a report of eval") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}: not a JSON object; it must be a report of eval")
        return cls.from_dict(values, where=path)
