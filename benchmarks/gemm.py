"""The three matrix products of a linear layer: ours, NumPy's and PyTorch's, in turn.

    python benchmarks/gemm.py --threads 2

x [m, k], weight [n, k]: forward x·Wᵀ, input gradient dy·W, weight gradient dyᵀ·x. Ours takes
float32 in and out in both modes (bf16 rounds while it packs) and adds the weight gradient to what
was there, as a step does; PyTorch's bf16 gets operands that are bf16 already, and stores.
`torch-mkl`: MKL is told that the CPU is Intel's. GFLOP/s, median over all samples of all rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from common import (
    Record,
    bench_program,
    finish,
    median,
    mkl_preload,
    parser,
    run_child,
    table,
    thread_environment,
)

SIZES = [
    "512x512x512",
    "1024x1024x1024",
    "2048x2048x2048",
    "2048x576x1536",
    "2048x1536x576",
    "2048x576x49152",
    # A LoRA factor of rank 16, and one token.
    "2048x576x16",
    "1x576x1536",
]
LIBRARIES = ["ours-f32", "ours-bf16", "numpy", "torch", "torch-mkl", "torch-bf16"]
FORMS = ["forward", "input_gradient", "weight_gradient"]


def numbers(size: str) -> tuple[int, int, int]:
    m, k, n = (int(word) for word in size.split("x"))
    return m, k, n


def functions(library: str, m: int, k: int, n: int) -> dict[str, Any]:
    """The three products over arrays of that library."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.random(s, dtype=np.float32) - 0.5 for s in ((m, k), (n, k), (m, n)))
    if library == "numpy":
        return {
            "forward": lambda: x @ w.T,
            "input_gradient": lambda: dy @ w,
            "weight_gradient": lambda: dy.T @ x,
        }
    import torch

    kind = torch.bfloat16 if library == "torch-bf16" else torch.float32
    tx, tw, tdy = (torch.from_numpy(a).to(kind) for a in (x, w, dy))
    return {
        "forward": lambda: tx @ tw.T,
        "input_gradient": lambda: tdy @ tw,
        "weight_gradient": lambda: tdy.T @ tx,
    }


def child(args: argparse.Namespace) -> None:
    """Times one library; one JSON line a product."""
    if args.child.startswith("torch"):
        import torch

        torch.set_num_threads(args.threads)
    for size in args.sizes:
        m, k, n = numbers(size)
        flops = 2.0 * m * k * n
        inner = 1 if args.repeat == 1 else max(1, int(5e8 / flops))
        for form, function in functions(args.child, m, k, n).items():
            function()
            samples = []
            for _ in range(args.repeat):
                start = time.perf_counter()
                for _ in range(inner):
                    function()
                samples.append(flops * inner / (time.perf_counter() - start) * 1e-9)
            record = {"form": form, "m": m, "k": k, "n": n, "gflops": median(samples)}
            print(json.dumps(record | {"best": max(samples)}), flush=True)


def measure(library: str, threads: int, args: argparse.Namespace) -> list[Record]:
    if library == "ours":  # Both modes in one process.
        command = [str(bench_program()), "gemm", "--threads", str(threads)]
        command += ["--repeat", str(args.repeat)]
        for size in args.sizes:
            command += ["--size", size]
        return [r | {"library": "ours-" + r["compute"]} for r in run_child(command)]
    command = [sys.executable, __file__, "--child", library, "--threads", str(threads)]
    command += ["--repeat", str(args.repeat), "--sizes", *args.sizes]
    env = thread_environment(threads) | (mkl_preload() if library == "torch-mkl" else {})
    return [r | {"library": library} for r in run_child(command, env)]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--sizes", nargs="+", default=SIZES, help="MxKxN: x [M, K], weight [N, K]")
    p.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--repeat", type=int, default=7, help="samples a round")
    p.add_argument("--one-thread", action="store_true", help="also with one thread")
    p.add_argument("--child", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        child(args)
        return
    if args.tiny:
        args.sizes, args.rounds, args.repeat = ["8x16x32"], 1, 1
    counts = [1, args.threads] if args.one_thread and args.threads > 1 else [args.threads]
    found: dict[tuple[int, str, str, str], list[Record]] = {}
    for threads in counts:
        for _ in range(args.rounds):
            for library in ["ours", *(n for n in args.libraries if not n.startswith("ours"))]:
                for r in measure(library, threads, args):
                    key = (threads, f"{r['m']}x{r['k']}x{r['n']}", r["form"], r["library"])
                    found.setdefault(key, []).append(r)
    rows = [
        {
            "threads": threads,
            "size": size,
            "form": form,
            "library": library,
            "gflops": median([r["gflops"] for r in records]),
            "best": max(r["best"] for r in records),
            "other_cpu": max(r["other_cpu"] for r in records),
        }
        for (threads, size, form, library), records in found.items()
    ]
    speed = {(r["threads"], r["size"], r["form"], r["library"]): r["gflops"] for r in rows}
    lines = [
        [size, form.replace("_", " "), threads]
        + [speed[threads, size, form, library] for library in args.libraries]
        for threads in counts
        for size in args.sizes
        for form in FORMS
    ]
    head = ["m x k x n", "product", "threads", *args.libraries]
    finish("gemm", {"threads": counts, "rows": rows}, args, table(lines, head))


if __name__ == "__main__":
    main()
