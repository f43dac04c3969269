"""Do both engines compute the same? The native one and TRL train side by side and are compared.

    python examples/03_check.py [folder]      after 02_train.py; needs: pip install 'abi-train[trl]'

`abi-train check` is the same as a command and can write an HTML page with curves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from abi_train import LlmTrainingConfig, RunSpec, crosscheck
from abi_train.check.report import verdict

TRAINING = LlmTrainingConfig(
    batch_size=2,
    grad_accum_steps=3,
    max_seq_len=96,
    learning_rate=2e-4,
    warmup_steps=2,
    decay_steps=0,
    seed=7,
)


def main(folder: Path) -> None:
    spec = RunSpec(
        model=folder / "config.json",  # random weights, drawn from the seed: the same for both
        data=folder / "train.bin",
        run_dir=folder / "unused",  # the check writes nothing there
        config=TRAINING,
    )
    result = crosscheck(spec, steps=5)

    for step in result.steps:
        native, trl = step.loss
        print(f"update {step.step}: loss {native:.7f} native, {trl:.7f} TRL")
    for name, difference in result.worst().items():
        print(f"largest difference, {name}: {difference:.1e}")
    print(*verdict(result), sep="\n")
    raise SystemExit(0 if result.ok else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
