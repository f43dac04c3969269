"""Every benchmark, one after the other; results as JSON, and the tables of docs/performance.md.

    python benchmarks/all.py                  an hour on two quiet cores
    python benchmarks/all.py --only step      one of them again
    python benchmarks/all.py --tiny --results /tmp/results      does each still run?

Without `--tiny` and without `--results` the results replace those in benchmarks/results and the
page is written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import HERE, RESULTS
from report import write_page

# In order: what needs a quiet machine most comes first.
RUNS: dict[str, list[str]] = {
    "roofline": ["roofline.py", "--shapes", "4m", "135m", "174m"],
    "step-4m": ["step.py", "--shapes", "4m", "--rounds", "3"],
    "step-135m": [
        *("step.py", "--shapes", "135m", "--rounds", "2", "--warmup", "1", "--engines"),
        *("native", "pytorch", "pytorch-compile", "pytorch-mkl", "native-recompute"),
        *("native-bf16", "pytorch-bf16", "pytorch-bf16-compile"),
    ],
    "step-174m": [
        *("step.py", "--shapes", "174m", "--rounds", "2", "--warmup", "1", "--engines"),
        *("native", "pytorch", "pytorch-compile", "pytorch-mkl"),
        *("native-bf16", "pytorch-bf16", "pytorch-bf16-compile"),
    ],
    "step-moe": [
        *("step.py", "--shapes", "moe", "--rounds", "2", "--engines"),
        *("native", "pytorch", "pytorch-loop", "native-bf16", "pytorch-bf16"),
    ],
    "memory": [
        *("memory.py", "--shapes", "4m", "135m", "--engines", "native", "native-recompute"),
        *("native-bf16", "pytorch", "pytorch-checkpoint", "pytorch-bf16"),
    ],
    "adapters": ["adapters.py"],
    "prepare": ["prepare.py"],
    "scaling": ["scaling.py", "--shapes", "4m", "135m"],
    "gemm": ["gemm.py", "--one-thread", "--rounds", "2", "--repeat", "3"],
    "bf16_learning": ["bf16_learning.py"],
    "batches": ["batches.py", "--threads", "1", "--rounds", "4", "--slow-batches", "60"],
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    p.add_argument("--tiny", action="store_true")
    p.add_argument(
        "--results", type=Path, help="folder of the results; default: benchmarks/results"
    )
    args = p.parse_args()
    if args.tiny and args.results is None:
        p.error("--tiny needs --results: tiny figures do not belong in the page")
    folder = args.results or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.only:
        script, *options = RUNS[name]
        command = [sys.executable, str(HERE / script), *(["--tiny"] if args.tiny else options)]
        start = time.perf_counter()
        load = os.getloadavg()[0]
        print(f"== {name} (load {load:.2f})", file=sys.stderr, flush=True)
        done = subprocess.run([*command, "--json", str(folder / f"{name}.json")])
        if done.returncode != 0:
            failed.append(name)
            continue
        path = folder / f"{name}.json"
        result = json.loads(path.read_text())
        result["load_before"] = round(load, 2)
        result["command"] = f"python benchmarks/all.py --only {name}"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"== {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if args.results is None:
            write_page()
    if failed:
        raise SystemExit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()
