"""How training scales: threads, length of rows, vocabulary, size of the model.

    python benchmarks/scaling.py --parts threads length

threads: the same step with one thread and with all, in turn. length: rows of 512 to 4096 tokens,
equally many tokens in a step; the working memory of attention must grow with the length, not with
its square. vocabulary: head and loss over 4096 to 200,064 entries; the logits of a whole batch
would be `tokens · vocabulary · 4` bytes. size: the step of each model shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from common import Record, bench_program, finish, median, parser, run_child, table
from shapes import SHAPES, bench_arguments, parameter_count, step_gflop
from step import measure


def zig_step(shape: str, *, threads: int, repeat: int, vocab: int = 0, **numbers: int) -> Record:
    """The summary record of the Zig benchmark `step`."""
    command = [str(bench_program()), "step", "--threads", str(threads), "--repeat", str(repeat)]
    command += bench_arguments(shape, vocab)
    for name, value in numbers.items():
        command += [f"--{name}", str(value)]
    return run_child(command)[0]


def threads_part(args: argparse.Namespace) -> tuple[list[Record], str]:
    engines = ["native", "native-bf16", *args.peers]
    counts = [1, args.threads]
    rows: list[Record] = []
    for shape in args.shapes:
        long = shape not in ("tiny", "4m")
        for engine in engines:
            if long and engine in args.peers:
                continue
            seconds: dict[int, list[float]] = {n: [] for n in counts}
            other = 0.0
            for _ in range(args.rounds):
                for n in counts:
                    run = measure(
                        engine,
                        shape,
                        threads=n,
                        length=args.length,
                        steps=2 if long or args.tiny else 8,
                        warmup=1,
                    )
                    seconds[n] += run["seconds"]
                    other = max(other, run["other_cpu"])
            speed = {n: 4 * args.length / median(seconds[n]) for n in counts}
            row = {"shape": shape, "engine": engine, "counts": counts, "other_cpu": other}
            row["tokens_per_second"] = [speed[n] for n in counts]
            row["gain"] = speed[counts[1]] / speed[counts[0]]
            rows.append(row)
    lines = [[r["shape"], r["engine"], *r["tokens_per_second"], f"{r['gain']:.2f}x"] for r in rows]
    head = ["shape", "engine", *(f"tok/s, {n} threads" for n in counts), "gain"]
    return rows, table(lines, head)


def length_part(args: argparse.Namespace) -> tuple[list[Record], str]:
    tokens = 64 if args.tiny else 4096
    lengths = [16, 64] if args.tiny else [512, 1024, 2048, 4096]
    shape = "tiny" if args.tiny else "4m"
    rows: list[Record] = []
    for length in lengths:
        numbers = {"batch": tokens // length, "length": length}
        zig = zig_step(shape, threads=args.threads, repeat=1 if args.tiny else 3, **numbers)
        row: Record = {"length": length, **numbers}
        row["attention_scratch_mib"] = zig["attention_scratch_bytes"] / 2**20
        row["score_matrix_mib"] = tokens * length * SHAPES[shape]["num_attention_heads"] * 4 / 2**20
        for engine in ("native", *args.peers):
            run = measure(
                engine,
                shape,
                threads=args.threads,
                steps=2 if args.tiny else 5,
                warmup=1,
                **numbers,
            )
            row[engine] = tokens / median(run["seconds"])
            row[engine + "_peak_mib"] = run["peak_mib"]
            row["other_cpu"] = max(row.get("other_cpu", 0.0), run["other_cpu"])
        rows.append(row)
    lines = [
        [
            r["length"],
            r["native"],
            r.get("pytorch", ""),
            r["native_peak_mib"],
            r.get("pytorch_peak_mib", ""),
            r["attention_scratch_mib"],
            r["score_matrix_mib"],
        ]
        for r in rows
    ]
    head = ["length", "native tok/s", "pytorch tok/s", "native peak MiB", "pytorch peak MiB"]
    head += ["attention scratch MiB", "T x T matrices would be MiB"]
    return rows, table(lines, head)


def vocabulary_part(args: argparse.Namespace) -> tuple[list[Record], str]:
    shape = "tiny" if args.tiny else "4m"
    tokens = 4 * args.length
    rows: list[Record] = []
    for vocab in [300, 1000] if args.tiny else [4096, 49152, 200064]:
        numbers = {"batch": 4, "length": args.length}
        zig = zig_step(shape, threads=args.threads, repeat=1, vocab=vocab, **numbers)
        row: Record = {"vocabulary": vocab, "weights": parameter_count(shape, vocab)}
        row["logits_kept_mib"] = zig["logits_bytes"] / 2**20
        row["logits_whole_mib"] = tokens * vocab * 4 / 2**20
        for engine in ("native", *args.peers):
            run = measure(
                engine, shape, threads=args.threads, vocab=vocab, steps=2, warmup=1, **numbers
            )
            row[engine] = tokens / median(run["seconds"])
            row[engine + "_peak_mib"] = run["peak_mib"]
            row["other_cpu"] = max(row.get("other_cpu", 0.0), run["other_cpu"])
        rows.append(row)
    lines = [
        [
            r["vocabulary"],
            r["native"],
            r.get("pytorch", ""),
            r["native_peak_mib"],
            r.get("pytorch_peak_mib", ""),
            r["logits_kept_mib"],
            r["logits_whole_mib"],
        ]
        for r in rows
    ]
    head = ["vocabulary", "native tok/s", "pytorch tok/s", "native peak MiB", "pytorch peak MiB"]
    head += ["logits kept MiB", "whole logits would be MiB"]
    return rows, table(lines, head)


def size_part(args: argparse.Namespace) -> tuple[list[Record], str]:
    rows: list[Record] = []
    for shape in ["tiny"] if args.tiny else ["4m", "135m", "174m"]:
        zig = zig_step(shape, threads=args.threads, repeat=2, batch=4, length=args.length)
        rows.append(
            {
                "shape": shape,
                "weights": zig["weights"],
                "tokens_per_second": zig["tokens_per_second"],
                "gflop": step_gflop(shape, 4, args.length),
                "gflops": step_gflop(shape, 4, args.length) / zig["mean_seconds"],
                "other_cpu": zig["other_cpu"],
            }
        )
    lines = [
        [r["shape"], f"{r['weights'] / 1e6:.1f} M", r["tokens_per_second"], r["gflop"], r["gflops"]]
        for r in rows
    ]
    return rows, table(lines, ["shape", "weights", "tok/s", "GFLOP a step", "GFLOP/s"])


PARTS: dict[str, Callable[[argparse.Namespace], tuple[list[Record], str]]] = {
    "threads": threads_part,
    "length": length_part,
    "vocabulary": vocabulary_part,
    "size": size_part,
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    p.add_argument(
        "--shapes", nargs="+", choices=sorted(SHAPES), default=["4m"], help="of `threads`"
    )
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--rounds", type=int, default=2, help="of `threads`")
    p.add_argument("--peers", nargs="*", choices=["pytorch"], default=["pytorch"])
    args = p.parse_args()
    if args.tiny:
        args.shapes, args.length, args.rounds = ["tiny"], 16, 1
    body: Record = {}
    texts: list[str] = []
    for part in args.parts:
        body[part], text = PARTS[part](args)
        texts.append(f"{part}\n{text}")
    finish("scaling", body, args, "\n\n".join(texts))


if __name__ == "__main__":
    main()
