"""Reading a prompt and generating: abi and llama.cpp on the same GGUF files, in turn.

    python benchmarks/generate.py FILE.gguf … [--threads N]

pp: tokens a second over a prompt of 512 ids; tg: over 64 ids generated greedily after 8. llama.cpp
is the one of the `xllamacpp` wheel, or with `--llama-bench PROGRAM` one built here, as its own
benchmark measures it (`-p 512 -n 64 -r 1`); `--abi-bench PROGRAM` (`zig build bench-generate`)
measures abi without Python around it, too. Each measurement is a process of its own; the engines
take turns and medians count. `read` is the file's size times tg: what is read a second at least.
Both together add `first`: seconds of a whole process from its start to its end that opens the file,
reads 8 ids and gives one, and its largest memory, without llama.cpp's warm-up. `--add` joins the
rounds with those that the file of `--json` has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from common import Record, finish, machine, parser, table

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


def run_abi_bench(program: str, path: str, threads: int, prompt: int, count: int) -> Record:
    """abi without Python: the best of two goes after one that nothing is warm in."""
    sizes = ["--prompt", str(prompt), "--count", str(count), "--repeat", "2"]
    done = subprocess.run(
        [program, path, "--threads", str(threads), *sizes],
        capture_output=True,
        text=True,
        check=True,
    )
    found: Record = json.loads(done.stdout)
    return found


def first_token(command: list[str]) -> Record:
    """Seconds and MB of a whole process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode})")
    return {"first_s": time.perf_counter() - start, "first_mb": usage.ru_maxrss / 1e3}


def first_commands(path: str, threads: int, args: argparse.Namespace) -> dict[str, list[str]]:
    """One id behind a few, with an engine's own program."""
    few = ["--prompt", "8", "--count", "1", "--repeat", "1"]
    ours = [args.abi_bench, path, "--threads", str(threads), *few]
    once = ["-p", "0", "-n", "0", "-pg", "8,1", "-r", "1", "--no-warmup"]
    theirs = [args.llama_bench, "-m", path, "-t", str(threads), *once]
    return {"abi": ours, "llama-bench": theirs}


def child(engine: str, path: str, threads: int, args: argparse.Namespace) -> Record:
    """One measurement in a process of its own."""
    if engine == "llama-bench":
        return run_llama_bench(args.llama_bench, path, threads, args.prompt, args.count)
    if args.abi_bench:
        return run_abi_bench(args.abi_bench, path, threads, args.prompt, args.count)
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
    options.add_argument("--abi-bench", help="abi-bench-generate, built here")
    options.add_argument("--add", action="store_true", help="keep the rounds in the --json file")
    options.add_argument("--alone", action="store_true", help="measure abi only")
    args = options.parse_args()
    if args.tiny:
        args.prompt, args.count, args.rounds = 16, 4, 1
    known: list[Record] = []
    if args.add and args.json and args.json.exists():
        known = json.loads(args.json.read_text())["rows"]
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or [tiny_file(Path(folder))]
        rows = known + [row for path in files for row in measure(path, args, known)]
    shown = ("file", "threads", "engine", "pp", "tg", "read_gb_s", "first_s", "first_mb")
    text = table(
        [[row.get(key, "") for key in shown] for row in rows],
        ["file", "threads", "engine", "pp tok/s", "tg tok/s", "read GB/s", "first s", "MB"],
    )
    body: Record = {"rows": rows}
    if args.abi_bench:
        # Where the programs lie says nothing, and this Python's extension is not what is measured.
        programs = ["--abi-bench PROGRAM"] + ["--llama-bench PROGRAM"] * bool(args.llama_bench)
        names = sorted({row["file"] for row in rows})
        body["command"] = " ".join(["python benchmarks/generate.py", *names, *programs, "--add"])
        body["machine"] = {**machine(), "engine": "fast, abi-bench-generate"}
    args.files = [path.name for path in args.files]
    finish("generate", body, args, text)


def tiny_file(folder: Path) -> Path:
    """A small random model, to see that all this runs."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "agent"))
    from tiny_gguf import SHAPES, write_tiny_gguf

    write_tiny_gguf(folder / "tiny.gguf", SHAPES["llama"])
    return folder / "tiny.gguf"


def measure(path: Path, args: argparse.Namespace, known: list[Record]) -> list[Record]:
    """One row an engine, the engines taking turns. Rows of `known` are taken out and joined."""
    peer = [] if args.alone else ["llama-bench" if args.llama_bench else "xllamacpp"]
    found: dict[str, list[Record]] = {engine: [] for engine in ["abi", *peer]}
    for row in [*known]:
        if (row["file"], row["threads"]) == (path.name, args.threads) and row["engine"] in found:
            found[row["engine"]] += row["rounds"]
            known.remove(row)
    for _ in range(args.rounds):
        for engine, measured in found.items():
            measured.append(child(engine, str(path), args.threads, args))
            if args.abi_bench and args.llama_bench:
                command = first_commands(str(path), args.threads, args)[engine]
                measured[-1].update(first_token(command))
    size = path.stat().st_size / 1e9
    rows = []
    for engine, measured in found.items():
        keys = [key for key in ("pp", "tg", "first_s", "first_mb") if key in measured[0]]
        middle: Record = {key: statistics.median(one[key] for one in measured) for key in keys}
        rows.append(
            {
                "file": path.name,
                "file_gb": size,
                "threads": args.threads,
                "engine": engine,
                **middle,
                "read_gb_s": size * middle["tg"],
                "rounds": measured,
            }
        )
    return rows


if __name__ == "__main__":
    main()
