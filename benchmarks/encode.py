"""Text to ids: the native tokenizer, `tokenizers` and tiktoken, on one thread, and native on more.

    python benchmarks/encode.py

Real vocabulary (Mistral's tekken, 131072 tokens) where `mistral_common` is installed, cut by the
expression of each pre-tokenizer in turn; else one trained here. Two texts: code and prose of this
machine's Python, and a mix in which half is in other scripts. Rounds take turns (A B A B); the best
of each counts, in CPU seconds of the process, so that other programs disturb little; what takes
more than half a second is timed once. Each call of ours begins with an empty cache. The ids of all
are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from common import Record, finish, parser, table

KINDS = ["gpt2", "llama3", "qwen2", "smollm", "o200k", "tekken"]


def best(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each call, the calls taking turns."""
    found: dict[str, float] = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds):
        for name, call in calls.items():
            if turn > 0 and found[name] > 0.5:
                continue
            start = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - start)
    return found


def measure(
    folder: Path,
    kind: str,
    name: str,
    text: str,
    ranks: dict[bytes, int] | None,
    pattern: str,
    args: argparse.Namespace,
) -> list[Record]:
    """Rows for one text with the tokenizer in `folder`; ends the program when ids differ."""
    import tokenizers

    import abi_train

    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    ours = abi_train.Tokenizer.load(folder)
    rows: list[Record] = []
    data = text.encode()
    calls: dict[str, Callable[[], object]] = {
        "abi_train": lambda: ours.encode_batch([data], add_bos=False, threads=1),
        "tokenizers": lambda: theirs.encode_batch_fast([text], add_special_tokens=False),
    }
    wanted = theirs.encode(text, add_special_tokens=False).ids
    if ours.encode(data, add_bos=False).tolist() != wanted:
        raise SystemExit(f"{kind}, {name}: the ids differ from those of tokenizers")
    if ranks is not None and pattern:
        import tiktoken

        encoding = tiktoken.Encoding(
            kind, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        calls["tiktoken"] = lambda: encoding.encode_ordinary(text)
    same: Record = {"kind": kind, "text": name, "bytes": len(data), "ids": len(wanted)}
    for engine, spent in best(calls, args.rounds).items():
        speed = round(len(data) / spent / 1e6, 1)
        rows.append(
            {
                **same,
                "engine": engine,
                "threads": 1,
                "cpu_seconds": round(spent, 5),
                "mb_per_second": speed,
            }
        )
    if args.threads > 1:
        wall = float("inf")
        for _ in range(args.rounds):
            start = time.perf_counter()
            ours.encode_batch([data], add_bos=False, threads=args.threads)
            wall = min(wall, time.perf_counter() - start)
        speed = round(len(data) / wall / 1e6, 1)
        rows.append(
            {
                **same,
                "engine": "abi_train",
                "threads": args.threads,
                "wall_seconds": round(wall, 5),
                "mb_per_second": speed,
            }
        )
    return rows


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--megabytes", type=float, default=4.0, help="of each text")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    args = p.parse_args()
    if args.tiny:
        args.megabytes, args.rounds = 0.05, 1

    from token_texts import make, scripts, sources, tekken

    rng = random.Random(1)
    known = sources()
    rng.shuffle(known)
    size = int(args.megabytes * 1e6)
    english = "\n".join(known)[:size]
    parts: list[str] = []
    while sum(map(len, parts)) < size // 2:
        source = rng.choice(known)
        start = rng.randrange(len(source) // 2 + 1)
        parts += [scripts(rng, 300), source[start : start + 2000]]
    mixed = "\n".join(parts)
    rows: list[Record] = []
    vocabulary = ""
    for kind in args.kinds[:1] if args.tiny else args.kinds:
        folder = Path(tempfile.mkdtemp())
        ranks, pattern, vocabulary = None, "", "trained, 8000"
        try:
            if args.tiny:
                raise ImportError("small is enough")
            _, ranks, pattern = tekken(folder, kind)
            vocabulary = "tekken, 131072"
        except ImportError:
            make(folder, kind, 1000 if args.tiny else 8000)
        for name, text in (("code and prose", english), ("mixed scripts", mixed)):
            rows += measure(folder, kind, name, text, ranks, pattern, args)
    lines = [[r["kind"], r["text"], r["engine"], r["threads"], r["mb_per_second"]] for r in rows]
    body: Record = {"vocabulary": vocabulary, "rows": rows}
    finish(
        "encode", body, args, table(lines, ["pre-tokenizer", "text", "engine", "threads", "MB/s"])
    )


if __name__ == "__main__":
    main()
