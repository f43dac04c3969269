"""Training speed, ours and PyTorch's, on the same work in one run.

    python benchmarks/step.py --shapes 4m --rounds 3
    python benchmarks/step.py --shapes 135m --engines native pytorch --json result.json

Engines run in turn (A B A B …), each measurement in its own process, so that peak memory is the
process's own and a noisy minute hits all. The first `--warmup` steps of a process are not counted
(compilation, first touch of memory). A figure is the median over all counted steps of all rounds.
What the engines are and do: `engine.py --help`. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import sys

from common import (
    HERE,
    Record,
    finish,
    median,
    mkl_preload,
    parser,
    run_child,
    spread,
    table,
    thread_environment,
)
from engine import flags_of
from shapes import SHAPES, parameter_count

ENGINES = [
    "native",
    "pytorch",
    "pytorch-compile",
    "pytorch-mkl",
    "pytorch-mkl-compile",
    "native-bf16",
    "pytorch-bf16",
    "pytorch-bf16-compile",
    "pytorch-bf16-mkl",
    "native-recompute",
    "pytorch-loop",
]
# Counted steps of one round: short steps are many, long ones few.
STEPS = {"tiny": 2, "4m": 10, "moe": 6, "135m": 2, "174m": 2}


def measure(
    engine: str,
    shape: str,
    *,
    threads: int,
    batch: int = 4,
    length: int = 512,
    steps: int = 10,
    warmup: int = 2,
    vocab: int = 0,
) -> Record:
    """One process of one engine."""
    _, flags = flags_of(engine)
    command = [sys.executable, str(HERE / "engine.py"), "--engine", engine, "--shape", shape]
    numbers = {
        "threads": threads,
        "batch": batch,
        "length": length,
        "steps": steps,
        "warmup": warmup,
        "vocab": vocab,
    }
    for name, value in numbers.items():
        command += [f"--{name}", str(value)]
    env = thread_environment(threads) | (mkl_preload() if "mkl" in flags else {})
    return run_child(command, env)[0]


def summary(engine: str, tokens: int, runs: list[Record]) -> Record:
    """One line of a table from the runs of one engine."""
    seconds = [s for run in runs for s in run["seconds"]]
    return {
        "engine": engine,
        "tokens_per_second": tokens / median(seconds),
        "best": tokens / min(seconds),
        "spread": spread(seconds),
        "counted_steps": len(seconds),
        "first_step_seconds": max(run["first_step_seconds"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "rss_growth_mib": max(run["rss_growth_mib"] for run in runs),
        "heap_growth_bytes": max(run["heap_growth_bytes"] for run in runs),
        "first_loss": runs[0]["losses"][0],
        "last_loss": runs[0]["losses"][-1],
        "other_cpu": max(run["other_cpu"] for run in runs),
    }


def in_turn(shape: str, engines: list[str], args: argparse.Namespace) -> list[Record]:
    """All engines, `args.rounds` times each, A B A B."""
    steps = args.steps or STEPS[shape]
    runs: dict[str, list[Record]] = {engine: [] for engine in engines}
    for turn in range(args.rounds):
        for engine in engines:
            run = measure(
                engine,
                shape,
                threads=args.threads,
                batch=args.batch,
                length=args.length,
                steps=steps,
                warmup=args.warmup,
            )
            runs[engine].append(run)
            speed = args.batch * args.length / median(run["seconds"])
            print(
                f"{shape} round {turn + 1} {engine}: {speed:.0f} tok/s, {run['peak_mib']:.0f} MiB,"
                f" others used {run['other_cpu']} CPUs",
                file=sys.stderr,
                flush=True,
            )
    return [summary(engine, args.batch * args.length, runs[engine]) for engine in engines]


def text_of(shape: str, rows: list[Record], args: argparse.Namespace) -> str:
    head = ["engine", "tok/s", "best", "spread", "peak MiB", "first loss", "native is"]
    own = {"native": rows[0]["tokens_per_second"]}
    own |= {row["engine"]: row["tokens_per_second"] for row in rows}
    lines = []
    for row in rows:
        ours = own.get("native-bf16" if "bf16" in row["engine"] else "native", own["native"])
        lines.append(
            [
                row["engine"],
                row["tokens_per_second"],
                row["best"],
                row["spread"],
                row["peak_mib"],
                f"{row['first_loss']:.4f}",
                f"{ours / row['tokens_per_second']:.2f}x",
            ]
        )
    title = (
        f"{shape}: {parameter_count(shape) / 1e6:.1f} M weights,"
        f" batch {args.batch} x {args.length}, {args.threads} threads,"
        f" {rows[0]['counted_steps']} counted steps each\n"
    )
    return title + table(lines, head)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["4m"])
    p.add_argument("--engines", nargs="+", default=ENGINES, help="see engine.py --help")
    p.add_argument("--batch", type=int, default=4, help="rows in a batch")
    p.add_argument("--length", type=int, default=512, help="tokens in a row")
    p.add_argument("--steps", type=int, default=0, help="counted steps a round; 0: by the shape")
    p.add_argument("--warmup", type=int, default=2, help="steps not counted")
    p.add_argument("--rounds", type=int, default=2, help="how often each engine gets its turn")
    args = p.parse_args()
    if args.tiny:
        args.shapes, args.length, args.steps, args.warmup, args.rounds = ["tiny"], 16, 2, 1, 1
    shapes: list[Record] = []
    texts: list[str] = []
    for shape in args.shapes:
        rows = in_turn(shape, args.engines, args)
        shapes.append(
            {
                "shape": shape,
                "weights": parameter_count(shape),
                "batch": args.batch,
                "length": args.length,
                "threads": args.threads,
                "rounds": args.rounds,
                "rows": rows,
            }
        )
        texts.append(text_of(shape, rows, args))
    finish("step", {"shapes": shapes}, args, "\n\n".join(texts))


if __name__ == "__main__":
    main()
