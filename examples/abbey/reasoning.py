# /// script
# requires-python = ">=3.10"
# dependencies = ["abi-train[trl]"]
# ///
"""Phase 2, reasoning in steps: the adapter of phase 1 goes on, on sums that are worked out.

    uv run examples/abbey/reasoning.py
    uv run examples/abbey/reasoning.py abbey-gpt-oss-tiny

An adapter is no model: it is gone on from, not loaded as one. For a new adapter on phase 1's sum of
model and adapter say `phases.reasoning.chain=merge`.
"""

from __future__ import annotations

import sys

from abi_train import recipes


def main(name: str = "abbey-gpt-oss-20b", *settings: str) -> None:
    recipe = recipes.load(name, settings=settings)
    phase = recipe.phase("reasoning")
    print(f"goes on from {phase.after}, chain {phase.chain}")
    result = recipes.run(recipe, phases=["reasoning"])
    print(f"adapter: {result.checkpoints['reasoning']}")
    for task, metrics in result.scores.get("reasoning", {}).items():
        print(task, {key: round(value, 3) for key, value in metrics.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
