"""How long `data report` takes, and what it holds in memory.

    python benchmarks/data_report.py

A token file of the packaged sample's rows, many times over with every twentieth learned token
drawn anew, is reported on without and with the tokenizer; and the sample's lines, as often, as
JSONL. A process each. Memory: the most it had that is no mapped file, asked every 20 ms; pages of
the mapped file come on top, as far as the kernel keeps them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Record, finish, median, parser, run_child, table

from abi_train.demo import SAMPLE

CHATS = SAMPLE / "abbey_conversations.jsonl"
TOKENIZER = SAMPLE / "tokenizer"


def write_tokens(path: Path, count: int) -> int:
    """About `count` tokens of rows with mask and manifest; returns how many exactly."""
    from abi_train.data.files import TokenFiles
    from abi_train.data.prepare import prepare

    small = path.with_name("small.bin")
    prepare([CHATS], TOKENIZER, small)
    data = TokenFiles.open(small)
    assert data.starts is not None
    assert data.mask is not None
    size = data.token_ids.size
    times = max(1, count // size)
    learned = data.mask.at(0, size).astype(np.bool_)
    rng = np.random.default_rng(1)
    ids = np.tile(data.token_ids[:size], times)
    drawn = np.tile(learned, times) & (ids > 2) & (rng.random(ids.size, dtype=np.float32) < 0.05)
    ids[drawn] = rng.integers(256, 2048, int(drawn.sum()))
    starts = data.starts[:-1].astype(np.int64) + size * np.arange(times)[:, None]
    ids.tofile(path)
    np.append(starts.ravel(), ids.size).astype("<u8").tofile(path.with_suffix(".idx"))
    np.packbits(np.tile(learned, times), bitorder="little").tofile(path.with_suffix(".mask"))
    manifest = {
        "schema": "abi_train/token-bin/1",
        "count": int(ids.size),
        "rows": int(starts.size),
        "vocab_size": 2048,
        "format": "chatml",
        "mask": path.with_suffix(".mask").name,
        "idx": path.with_suffix(".idx").name,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return int(ids.size)


def write_lines(path: Path, rows: int) -> None:
    """The sample's rows over and over, each with its number."""
    lines = CHATS.read_text(encoding="utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row: dict[str, Any] = json.loads(lines[number % len(lines)])
            row["messages"][0]["content"] += f" ({number})"
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def anonymous_mib() -> float:
    """Memory of this process that is no mapped file; 0 where the kernel does not tell."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def child(path: str, tokenizer: str) -> Record:
    """One report, timed, in one thread; another one watches the memory."""
    from abi_train.data.report import examine

    peak, done = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun, used = time.perf_counter(), time.process_time()
    report = examine(path, tokenizer=tokenizer or None, eval_path=None)
    taken, spent = time.perf_counter() - begun, time.process_time() - used
    done.set()
    watcher.join()
    return {
        "seconds": taken,
        "cpu_seconds": spent,
        "rows": report.rows,
        "tokens": report.tokens,
        "findings": len(report.findings),
        "peak_mib": max(peak),
    }


def measured(path: Path, tokenizer: Path | None, rounds: int) -> Record:
    command = [sys.executable, __file__, "--child", str(path), str(tokenizer or "")]
    runs = [run_child(command)[-1] for _ in range(rounds)]
    first = runs[0]
    seconds = median([run["seconds"] for run in runs])
    return {
        "what": f"{path.suffix[1:]}, {'with' if tokenizer else 'without'} tokenizer",
        **{key: first[key] for key in ("rows", "tokens", "findings", "peak_mib")},
        "mb": path.stat().st_size / 1e6,
        "seconds": seconds,
        "mtokens_per_s": first["tokens"] / seconds / 1e6,
        "runs": runs,
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], sys.argv[3])))
        return
    p = parser(__doc__)
    p.add_argument("--tokens", type=int, default=100_000_000)
    p.add_argument("--lines", type=int, default=40_000)
    p.add_argument("--rounds", type=int, default=1)
    args = p.parse_args()
    if args.tiny:
        args.tokens, args.lines = 50_000, 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder / "rows.bin", args.tokens)
        write_lines(folder / "rows.jsonl", args.lines)
        found = [
            measured(folder / "rows.bin", None, args.rounds),
            measured(folder / "rows.bin", TOKENIZER, args.rounds),
            measured(folder / "rows.jsonl", TOKENIZER, args.rounds),
        ]
    keys = ("what", "rows", "tokens", "mb", "seconds", "mtokens_per_s", "peak_mib")
    head = ["file", "rows", "tokens", "MB", "seconds", "M tokens/s", "peak MiB"]
    cells = [[row[key] for key in keys] for row in found]
    finish("data_report", {"reports": found}, args, table(cells, head))


if __name__ == "__main__":
    main()
