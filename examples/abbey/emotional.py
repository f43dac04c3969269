# /// script
# requires-python = ">=3.10"
# dependencies = ["abi-train[trl]"]
# ///
"""Phase 1, emotional intelligence: LoRA on dialogues in which somebody is listened to.

    uv run examples/abbey/emotional.py                            gpt-oss-20b, one GPU of 80 GB
    uv run examples/abbey/emotional.py abbey-gpt-oss-20b-native   the same, a CPU with 24 GB
    uv run examples/abbey/emotional.py abbey-gpt-oss-tiny         a tiny one of random weights
    uv run examples/abbey/emotional.py abbey-tiny epochs=4        a tiny Llama

After the name or file of a recipe come settings, as of `abi-train train --set`. Run again, it goes
on where it was stopped; what an earlier phase has to leave is made first.
"""

from __future__ import annotations

import sys

from abi_train import recipes


def main(name: str = "abbey-gpt-oss-20b", *settings: str) -> None:
    recipe = recipes.load(name, settings=settings)
    names = [phase.name for phase in recipe.phases]
    result = recipes.run(recipe, phases=names[: names.index("emotional") + 1])
    print(f"adapter: {result.checkpoints['emotional']}")
    for run in result.results.values():
        for record in run.evaluations:
            print(f"update {record.step}: perplexity {record.perplexity:.2f} on rows kept apart")


if __name__ == "__main__":
    main(*sys.argv[1:])
