"""Time of each op of a training step against its floor.

    python benchmarks/roofline.py --shapes 135m

The floor of an op is the larger of its multiply-adds at the measured peak (register-only, all
threads) and its operands at the measured memory bandwidth (the better of reading and copying 512
MiB). Operands that stay in the cache beat the second: a share above 100 % means that. `share of
peak` sets the multiply-adds a step cannot do without (shapes.py) against the time of the whole
step, optimizer and all. The ops are timed inside the real model
(zig/bench/timed_ops.zig).
"""

from __future__ import annotations

from common import Record, bench_program, finish, parser, run_child, table
from shapes import SHAPES, bench_arguments, step_gflop


def ceilings(threads: int, sweep_mib: int) -> Record:
    """Measured peaks: f32_gflops, bf16_gflops, read_gbs, copy_gbs."""
    command = [str(bench_program()), "peak", "--threads", str(threads)]
    return run_child([*command, "--sweep-mib", str(sweep_mib)])[0]


def whole_step(
    shape: str, peak: Record, *, bf16: bool, threads: int, batch: int, length: int, repeat: int
) -> Record:
    """One step: its ops with their floors, and its share of the peak."""
    command = [str(bench_program()), "step", "--threads", str(threads), "--repeat", str(repeat)]
    command += ["--batch", str(batch), "--length", str(length), *bench_arguments(shape)]
    head, *ops = run_child([*command, *(["--bf16"] if bf16 else [])])
    matrix = (peak["bf16_gflops"] if bf16 else peak["f32_gflops"]) or peak["f32_gflops"]
    bandwidth = max(peak["read_gbs"], peak["copy_gbs"])
    merged: dict[str, Record] = {}
    for op in ops:
        floor = max(op["gflop"] / matrix, op["megabytes"] * 1e-3 / bandwidth) * 1e3
        row = merged.setdefault(
            op["op"],
            {"op": op["op"], "calls": 0, "milliseconds": 0.0, "floor_ms": 0.0, "gflop": 0.0}
            | {"megabytes": 0.0},
        )
        row["floor_ms"] += floor
        for key in ("calls", "milliseconds", "gflop", "megabytes"):
            row[key] += op[key]
    total = head["mean_seconds"] * 1e3
    timed = sum(row["milliseconds"] for row in merged.values())
    rest = {"op": "between ops", "calls": 0, "milliseconds": max(0.0, total - timed)}
    merged["rest"] = rest | {"floor_ms": 0.0, "gflop": 0.0, "megabytes": 0.0}
    rows = sorted(merged.values(), key=lambda row: -row["milliseconds"])
    done = sum(row["gflop"] for row in rows)
    gflop = step_gflop(shape, batch, length)
    return {
        "shape": shape,
        "compute": "bf16" if bf16 else "f32",
        "tokens_per_second": head["tokens_per_second"],
        "step_ms": total,
        "gflop": gflop,
        "gflop_recomputed": done - gflop,
        "gflops": gflop / total * 1e3,
        "share_of_peak": gflop / total * 1e3 / matrix,
        "floor_ms": sum(row["floor_ms"] for row in rows),
        "rows": rows,
        "other_cpu": head["other_cpu"],
        "checksum": head["checksum"],
    }


def lines_of(step: Record) -> list[list[object]]:
    """Rows of a table: op, calls, time, share of the step, speed, floor."""
    return [
        [
            row["op"],
            row["calls"],
            f"{row['milliseconds']:.2f}",
            f"{100 * row['milliseconds'] / step['step_ms']:.1f} %",
            f"{row['gflop'] / row['milliseconds'] * 1e3:.0f}" if row["gflop"] else "",
            f"{row['megabytes'] / row['milliseconds']:.1f}" if row["megabytes"] else "",
            f"{100 * row['floor_ms'] / row['milliseconds']:.0f} %" if row["floor_ms"] else "",
        ]
        for row in step["rows"]
        if row["milliseconds"] > 0
    ]


HEAD = ["op", "calls", "ms", "of the step", "GFLOP/s", "GB/s", "floor / time"]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["4m"])
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--repeat", type=int, default=3, help="steps after the first")
    args = p.parse_args()
    if args.tiny:
        args.shapes, args.length, args.repeat = ["tiny"], 16, 1
    peak = ceilings(args.threads, 1 if args.tiny else 512)
    steps: list[Record] = []
    for shape in args.shapes:
        for bf16 in (False, True):
            steps.append(
                whole_step(
                    shape,
                    peak,
                    bf16=bf16,
                    threads=args.threads,
                    batch=args.batch,
                    length=args.length,
                    repeat=args.repeat,
                )
            )
    pool = run_child([str(bench_program()), "pool", "--threads", str(args.threads)])[0]
    text = [
        f"peak, {args.threads} threads: {peak['f32_gflops']:.0f} GFLOP/s f32,"
        f" {peak['bf16_gflops']:.0f} bf16;"
        f" memory {peak['read_gbs']:.1f} GB/s read, {peak['copy_gbs']:.1f} copied;"
        f" fork-join {pool['in_a_row_us']:.2f} us, after a pause {pool['after_a_pause_us']:.0f} us"
    ]
    for step in steps:
        text.append(
            f"{step['shape']} {step['compute']}: {step['step_ms']:.1f} ms,"
            f" {step['gflops']:.0f} GFLOP/s,"
            f" {100 * step['share_of_peak']:.0f} % of the matrix peak\n"
            + table(lines_of(step), HEAD)
        )
    finish("roofline", {"peak": peak, "pool": pool, "steps": steps}, args, "\n\n".join(text))


if __name__ == "__main__":
    main()
