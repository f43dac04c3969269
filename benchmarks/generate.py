"""Reading a prompt and generating: abi and llama.cpp on the same GGUF files, in turn.

    python benchmarks/generate.py FILE.gguf … [--threads N]

pp: tokens a second over a prompt of 512 ids; tg: over 64 ids generated greedily after 8. llama.cpp
is the one of the `xllamacpp` wheel, or with `--llama-bench PROGRAM` one built here, as its own
benchmark measures it (`-p 512 -n 64 -r 1`). Each measurement is a process of its own; the engines
take turns and medians count. `read` is the file's size times tg: what is read a second at least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from common import Record, finish, parser, table

PROMPT = 512


def run_abi(path: str, threads: int, prompt: int, count: int) -> Record:
    """Prompt and generation of abi in this process."""
    import numpy as np

    from abi_train import Generator

    rng = np.random.default_rng(0)
    start = time.perf_counter()
    with Generator.open(path, context=prompt + count + 16, threads=threads) as model:
        opened = time.perf_counter() - start
        list(model.generate([1, 2], max_new_tokens=1, temperature=0.0))  # the file is mapped now
        ids = rng.integers(3, 250, prompt).tolist()
        start = time.perf_counter()
        list(model.generate(ids, max_new_tokens=1, temperature=0.0))
        read = time.perf_counter() - start
        answer = model.generate(ids[:8], max_new_tokens=count + 1, temperature=0.0)
        next(answer)
        start = time.perf_counter()
        made = sum(1 for _ in answer)
        return {
            "open_s": opened,
            "pp": prompt / read,
            "tg": made / (time.perf_counter() - start),
        }


def run_xllamacpp(path: str, threads: int, prompt: int, count: int) -> Record:
    """The same through the server of the xllamacpp wheel, by its own clock."""
    import numpy as np
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = prompt + count + 64
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    start = time.perf_counter()
    server = xllamacpp.Server(params)
    opened = time.perf_counter() - start

    def ask(ids: list[int], made: int) -> Record:
        body = {
            "prompt": ids,
            "n_predict": made,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            timings: Record = json.loads(answer.read())["timings"]
            return timings

    ids = np.random.default_rng(0).integers(3, 250, prompt).tolist()
    return {
        "open_s": opened,
        "pp": ask(ids, 1)["prompt_per_second"],
        "tg": ask(ids[:8], count)["predicted_per_second"],
    }


def run_llama_bench(program: str, path: str, threads: int, prompt: int, count: int) -> Record:
    """The same through llama.cpp's own benchmark."""
    sizes = ["-p", str(prompt), "-n", str(count)]
    done = subprocess.run(
        [program, "-m", path, "-t", str(threads), *sizes, "-r", "1", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {"pp" if row["n_prompt"] else "tg": row["avg_ts"] for row in json.loads(done.stdout)}
    return {"open_s": None, **found}


def child(engine: str, path: str, threads: int, args: argparse.Namespace) -> Record:
    """One measurement in a process of its own."""
    if engine == "llama-bench":
        return run_llama_bench(args.llama_bench, path, threads, args.prompt, args.count)
    request = [engine, path, str(threads), str(args.prompt), str(args.count)]
    done = subprocess.run(
        [sys.executable, __file__, "--child", *request], capture_output=True, text=True
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("MEASURED "):
            record: Record = json.loads(line.removeprefix("MEASURED "))
            return record
    raise SystemExit(f"{engine} on {path}: {done.stderr[-2000:]}")


def main() -> None:
    """Measure, print, keep."""
    if sys.argv[1:2] == ["--child"]:
        engine, path, threads, prompt, count = sys.argv[2:]
        run = {"abi": run_abi, "xllamacpp": run_xllamacpp}[engine]
        print("MEASURED " + json.dumps(run(path, int(threads), int(prompt), int(count))))
        return
    options = parser(__doc__)
    options.add_argument("files", nargs="*", type=Path)
    options.add_argument("--prompt", type=int, default=PROMPT)
    options.add_argument("--count", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--llama-bench", help="llama.cpp's benchmark program, built here")
    options.add_argument("--alone", action="store_true", help="measure abi only")
    args = options.parse_args()
    if args.tiny:
        args.prompt, args.count, args.rounds = 16, 4, 1
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or [tiny_file(Path(folder))]
        rows = [row for path in files for row in measure(path, args)]
    text = table(
        [
            [*(row[key] for key in ("file", "threads", "engine", "pp", "tg")), row["read_gb_s"]]
            for row in rows
        ],
        ["file", "threads", "engine", "pp tok/s", "tg tok/s", "read GB/s"],
    )
    args.files = [path.name for path in args.files]
    finish("generate", {"rows": rows}, args, text)


def tiny_file(folder: Path) -> Path:
    """A small random model, to see that all this runs."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "agent"))
    from tiny_gguf import SHAPES, write_tiny_gguf

    write_tiny_gguf(folder / "tiny.gguf", SHAPES["llama"])
    return folder / "tiny.gguf"


def measure(path: Path, args: argparse.Namespace) -> list[Record]:
    """One row an engine, the engines taking turns."""
    peer = [] if args.alone else ["llama-bench" if args.llama_bench else "xllamacpp"]
    found: dict[str, list[Record]] = {engine: [] for engine in ["abi", *peer]}
    for _ in range(args.rounds):
        for engine, measured in found.items():
            measured.append(child(engine, str(path), args.threads, args))
    size = path.stat().st_size / 1e9
    rows = []
    for engine, measured in found.items():
        pp, tg = (statistics.median(one[key] for one in measured) for key in ("pp", "tg"))
        rows.append(
            {
                "file": path.name,
                "file_gb": size,
                "threads": args.threads,
                "engine": engine,
                "pp": pp,
                "tg": tg,
                "read_gb_s": size * tg,
                "rounds": measured,
            }
        )
    return rows


if __name__ == "__main__":
    main()
