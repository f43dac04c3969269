"""The two engines. `run` takes a `RunSpec` and returns a `RunResult`, whichever engine it names.

Importing this package imports neither engine, so torch is loaded only when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..config import broken
from ..progress import Observer
from ..runspec import RunResult, RunSpec

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Probe:
    """What a comparison wants to see of a run.

    `gradients` gets every gradient of update one, before clipping; `weights` gets every weight at
    the end. Keys are Hugging Face names. Arrays are copies.
    """

    gradients: dict[str, FloatArray] = field(default_factory=dict)
    weights: dict[str, FloatArray] = field(default_factory=dict)


def run(
    spec: RunSpec, observer: Observer | None = None, *, probe: Probe | None = None
) -> RunResult:
    """Train as `spec` says and return the report.

    Raises `ConfigError`, `DataError`, `FormatError`, `CheckpointError`, `NumericsError`, or
    `EngineError` when the engine's packages are not installed.
    """
    spec.check_paths()
    for name in ("enable_tensorboard", "enable_wandb"):
        if getattr(spec.config, name):
            rule = (
                "neither engine writes such logs yet; log.jsonl in the run folder has every figure"
            )
            raise broken(name, True, rule)
    observer = observer or Observer()
    if spec.engine == "trl":
        from . import trl

        result = trl.run(spec, observer, probe)
    else:
        from . import native

        result = native.run(spec, observer, probe)
    if spec.config.export_gguf_path and probe is None and result.model_folder is not None:
        from ..export import export_gguf

        target = spec.config.export_gguf_path
        report = export_gguf(result.model_folder, target, name=spec.config.export_name)
        observer.on_note(f"exported {report.path}")
    observer.on_end(result)
    return result
