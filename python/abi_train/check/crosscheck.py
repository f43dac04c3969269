"""`crosscheck`: the same training on both engines, compared figure by figure.

Both get the same rows in the same order, the same start and the same learning rates. Compared are
the loss, gradient norm and learning rate of every update, the rewards of pairs, every gradient at
update one, and every weight at the end; with method lora those of the adapter. See `compare` for
the tolerances.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from .. import engines
from ..errors import DataError
from ..progress import Observer
from ..runspec import RunSpec
from .compare import Comparison, Side, Tolerances, compare

__all__ = ["Comparison", "Tolerances", "crosscheck"]


def crosscheck(
    spec: RunSpec,
    *,
    steps: int = 30,
    precision: str = "float32",
    tolerances: Tolerances | None = None,
    explain: bool = True,
    report_dir: str | Path | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Train `steps` updates of `spec` on both engines and compare them.

    precision: `float32` or `float64`, on both. explain: when float32 leaves a tolerance, run both
    again in float64, which tells rounding from a mistake. report_dir: gets `check.json` and
    `check.html`. Nothing else is written; the spec's run folder is not touched.

    Raises `EngineError` when torch and TRL are not installed, and what `engines.run` raises.
    """
    spec.check_paths()
    if tolerances is None and spec.objective == "dpo":
        tolerances = Tolerances(loss=1e-6)
    if spec.lora is not None and spec.lora.dropped:
        # Each engine draws dropout from its own generator.
        spec = spec.replace(lora=spec.lora.replace(lora_dropout=0.0))
        if observer is not None:
            observer.on_note("lora_dropout is left out of the comparison: it is random")
    result = _once(spec, steps, precision, tolerances, observer or Observer())
    late = result.fault is not None and result.fault.kind in (
        "weight",
        "loss",
        "grad_norm",
        "metric",
    )
    if late and explain and precision == "float32":
        double = _once(spec, steps, "float64", tolerances, observer or Observer())
        result = dataclasses.replace(result, in_float64=double)
    if report_dir is not None:
        from .report import write_report

        write_report(result, Path(report_dir))
    return result


def _once(
    spec: RunSpec,
    steps: int,
    precision: str,
    tolerances: Tolerances | None,
    observer: Observer,
) -> Comparison:
    config = dataclasses.replace(
        spec.config,
        max_steps=steps,
        early_stopping=False,
        checkpoint_path=None,
        checkpoint_interval=0,
        mixed_precision=False,
        enable_tensorboard=False,
        enable_wandb=False,
        export_gguf_path=None,
    )
    sides = []
    with tempfile.TemporaryDirectory(prefix="abi-train-check-") as folder:
        for engine in ("native", "trl"):
            observer.on_note(f"{engine}: {steps} updates in {precision}")
            run = spec.replace(
                engine=engine,
                precision=precision,
                config=config,
                eval_data=None,
                resume=None,
                run_dir=Path(folder) / engine,
            )
            probe = engines.Probe()
            begun = time.perf_counter()
            result = engines.run(run, observer, probe=probe)
            if not result.history:
                raise DataError(f"{spec.data}: the run made no update; nothing to compare")
            sides.append(
                Side(
                    engine=engine,
                    history=result.history,
                    gradients=probe.gradients,
                    weights=probe.weights,
                    seconds=time.perf_counter() - begun,
                )
            )
    document = spec.replace(config=config).to_dict()
    document["steps"] = steps
    return compare(*sides, precision=precision, tolerances=tolerances, spec=document)
