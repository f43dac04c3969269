"""What the benchmarks share: the machine, child processes, tables, the Zig program."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
LIBRARIES = ("abi-train", "numpy", "torch", "transformers", "ziglang")

Record = dict[str, Any]


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> Record:
    """CPU, memory, system and versions: what a figure means nothing without."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cpus": cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "engine": engine_build(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }


def engine_build() -> str:
    """How the native engine was compiled and which kernels it runs, as `fast, v4`."""
    try:
        from abi_train import _native
    except ImportError:
        return "absent"
    info = _native.cpu_info()
    return f"{info['mode']}, {info['level']}"


def _busy_seconds() -> float:
    """CPU seconds all processes together have used since the machine started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = (
        int(word) for word in stat.read_text().splitlines()[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def run_child(command: Sequence[str], env: Mapping[str, str] | None = None) -> list[Record]:
    """Runs a program that prints JSON lines; each record also gets `other_cpu`.

    other_cpu: how many CPUs other programs kept busy meanwhile. Above 0.1 the figures are doubtful.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy, start = _busy_seconds(), time.perf_counter()
    done = subprocess.run(
        list(command), capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    other = max(0.0, (_busy_seconds() - busy - own) / wall)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not records:
        raise SystemExit(f"{' '.join(command)} printed no record:\n{done.stderr[-3000:]}")
    for record in records:
        record["other_cpu"] = round(other, 2)
    return records


@functools.cache
def bench_program() -> Path:
    """The Zig benchmarks, built if need be. `ABI_BENCH` names a built one."""
    given = os.environ.get("ABI_BENCH")
    if given:
        return Path(given)
    subprocess.run(
        [sys.executable, "-m", "ziglang", "build", "bench-program"],
        cwd=ROOT,
        check=True,
        env={"ZIG_DEBUG_CMD": "1", **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("ABI_BENCH_VERBOSE") else subprocess.DEVNULL,
    )
    return ROOT / "zig-out" / "bin" / "abi-bench"


def mkl_preload() -> dict[str, str]:
    """Environment that makes MKL take its fast code on CPUs that are not Intel's."""
    library = ROOT / "build" / "bench" / "mkl_intel.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ziglang",
                "cc",
                "-shared",
                "-fPIC",
                "-nostdlib",
                "-O1",
                str(HERE / "mkl_intel.c"),
                "-o",
                str(library),
            ],
            check=True,
            env={"ZIG_DEBUG_CMD": "1", **os.environ},
            stderr=subprocess.DEVNULL,
        )
    return {"LD_PRELOAD": str(library)}


def thread_environment(threads: int) -> dict[str, str]:
    """Every library gets the same number of threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / median(values)


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """A Markdown table; numbers are set to the right."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 10 else f"{value:,.0f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
        + "|"
    )
    return "\n".join([line(list(head)), rule, *(line(c) for c in cells)])


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--tiny", action="store_true", help="smallest sizes: does it still run?")
    made.add_argument("--json", type=Path, help="write the result here")
    made.add_argument("--threads", type=int, default=cpu_count())
    return made


def finish(name: str, body: Record, args: argparse.Namespace, text: str) -> Record:
    """Prints the table, then the whole result as one JSON line, and writes it if asked."""
    result = {
        "benchmark": name,
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "tiny": args.tiny,
        "machine": machine(),
        **body,
    }
    print(text)
    print(json.dumps(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result
