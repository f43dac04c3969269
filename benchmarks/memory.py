"""Peak memory of a training process, and what a step allocates.

    python benchmarks/memory.py --shapes 4m 135m

Peak: the highest resident size of the process, interpreter and libraries included (a bare
interpreter with PyTorch and transformers is about 350 MiB, with ours 30). Growth: resident size
and heap in use after the last step less those after the first. `allocations after the first step`
are counted by an allocator of the Zig benchmark around model, optimizer and scratch.
"""

from __future__ import annotations

from common import Record, bench_program, finish, parser, run_child, table
from shapes import SHAPES, bench_arguments, parameter_count
from step import measure, summary

ENGINES = [
    "native",
    "native-recompute",
    "native-bf16",
    "native-bf16-recompute",
    "pytorch",
    "pytorch-checkpoint",
    "pytorch-bf16",
    "pytorch-bf16-compile",
]


def allocations(shape: str, length: int, batch: int, threads: int) -> Record:
    """The Zig benchmark's count for this shape."""
    command = [str(bench_program()), "step", "--repeat", "1", "--threads", str(threads)]
    command += ["--length", str(length), "--batch", str(batch), *bench_arguments(shape)]
    return run_child(command)[0]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["4m"])
    p.add_argument("--engines", nargs="+", default=ENGINES)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--steps", type=int, default=2, help="steps after the first")
    args = p.parse_args()
    if args.tiny:
        args.shapes, args.length = ["tiny"], 16
    shapes: list[Record] = []
    lines: list[list[object]] = []
    for shape in args.shapes:
        rows = []
        for engine in args.engines:
            run = measure(
                engine,
                shape,
                threads=args.threads,
                batch=args.batch,
                length=args.length,
                steps=args.steps,
                warmup=1,
            )
            rows.append(summary(engine, args.batch * args.length, [run]))
        zig = allocations(shape, args.length, args.batch, args.threads)
        shapes.append(
            {
                "shape": shape,
                "weights": parameter_count(shape),
                "batch": args.batch,
                "length": args.length,
                "rows": rows,
                "allocations_after_first": zig["allocations_after_first"],
                "attention_scratch_bytes": zig["attention_scratch_bytes"],
                "logits_bytes": zig["logits_bytes"],
            }
        )
        for row in rows:
            own = row["engine"].startswith("native")
            lines.append(
                [
                    shape,
                    row["engine"],
                    row["peak_mib"],
                    f"{row['rss_growth_mib']:.1f}",
                    row["heap_growth_bytes"],
                    zig["allocations_after_first"] if own else "",
                ]
            )
    head = ["shape", "engine", "peak MiB", "growth MiB", "heap growth bytes", "allocations"]
    finish("memory", {"shapes": shapes}, args, table(lines, head))


if __name__ == "__main__":
    main()
