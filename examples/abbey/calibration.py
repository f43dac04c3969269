# /// script
# requires-python = ">=3.10"
# dependencies = ["abi-train[trl]"]
# ///
"""Phase 3, calibration: DPO on pairs of answers; then one model out of it, as GGUF.

    uv run examples/abbey/calibration.py
    uv run examples/abbey/calibration.py abbey-gpt-oss-tiny

The reference that pairs are compared with is a frozen copy of phase 2's adapter, so nothing has to
be loaded twice. At the end the adapter is added to its model on the way into the file; experts of
gpt-oss stay in four bits there, to the bit where the adapter leaves them alone.
"""

from __future__ import annotations

import sys

from abi_train import export_gguf, recipes
from abi_train.adapters import base_of


def main(name: str = "abbey-gpt-oss-20b", *settings: str) -> None:
    recipe = recipes.load(name, settings=settings)
    result = recipes.run(recipe, phases=["calibration"])
    adapter = result.checkpoints["calibration"]
    for run in result.results.values():
        last = run.history[-1].metrics
        share = f"{last['rewards/accuracies']:.0%} of the pairs the right way"
        print(f"margin {last['rewards/margins']:.3f}, {share}")
    mix = "mxfp4_moe" if "gpt-oss" in recipe.name else "q8_0"
    file = recipe.run_dir / "abbey.gguf"
    print(f"exported {export_gguf(base_of(adapter), file, mix=mix, adapter=adapter).path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
