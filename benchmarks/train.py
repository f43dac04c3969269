"""The short look: one training step, ours and PyTorch's in turn, for a 4 M and a 135 M model.

    python benchmarks/train.py

Prints tokens per second, peak memory and the ratio. It is `step.py` with the engines people have
as installed; `step.py --help` has the rest.
"""

from __future__ import annotations

import sys

import step

if __name__ == "__main__":
    sys.argv[1:1] = ["--shapes", "4m", "135m", "--engines", "native", "pytorch", "--rounds", "2"]
    step.main()
