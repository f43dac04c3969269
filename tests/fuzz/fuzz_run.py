"""`make fuzz`: sound files with random changes through every reader, until time is up.

    python tests/fuzz/fuzz_run.py [--seconds 600] [--target NAME] [--seed N] [--mode safe|debug]

Builds `abi-fuzz` (zig/fuzz/), writes seeds, and gives each target its share of the time. An input
that ends the program is saved under fuzz-found/, with what was said; the exit code is then 1. Give
such a file to `abi-fuzz` again with `--again FILE` (its name begins with the target's).
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import fuzz_seeds  # noqa: E402

#: Readers that are behind the longest paths get a larger share.
SHARES = {"gguf": 6, "tokenizer": 3, "safetensors": 2, "run": 3}


@dataclass(frozen=True)
class Found:
    """An input that ended the program."""

    target: str
    case: bytes
    code: int
    said: str


def build(prefix: Path, *, mode: str = "safe") -> Path:
    """The fuzzing program. The safe mode keeps every check of bounds, overflow and unreachable."""
    command = [sys.executable, "-m", "ziglang", "build", "fuzz-program", f"-Doptimize={mode}"]
    environment = {"ZIG_DEBUG_CMD": "1", **os.environ}
    subprocess.run(
        [*command, "--prefix", str(prefix)], check=True, timeout=1800, cwd=ROOT, env=environment
    )
    return prefix / "bin" / "abi-fuzz"


def once(
    program: Path,
    target: str,
    folder: Path,
    scratch: Path,
    *,
    seconds: int,
    seed: int,
    cases: int | None = None,
) -> Found | str:
    """One process. Its last line, or the input that ended it."""
    scratch.mkdir(parents=True, exist_ok=True)
    words = [str(program), target, str(folder), str(scratch), str(seconds), str(seed)]
    done = subprocess.run(
        words + ([] if cases is None else [str(cases)]),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds + 600,
    )
    if done.returncode == 0:
        return done.stdout.strip()
    raw = (scratch / f"{target}.case").read_bytes() if done.returncode != 2 else b""
    size = struct.unpack("<Q", raw[:8])[0] if raw else 0
    return Found(target, raw[8 : 8 + size], done.returncode, done.stderr)


def rounds(
    program: Path, folders: dict[str, Path], scratch: Path, *, seconds: int, seed: int
) -> Iterator[Found | str]:
    """Shares of the time in turn, with another seed each."""
    end = time.monotonic() + seconds
    weights = {target: SHARES.get(target, 1) for target in folders}
    turn = max(1, min(20, seconds // sum(weights.values())))
    while (left := end - time.monotonic()) > 0:
        for target, folder in folders.items():
            share = max(1, round(min(turn, left) * weights[target]))
            seed += 1
            yield once(program, target, folder, scratch, seconds=share, seed=seed)
            if time.monotonic() > end:
                return


def save(found: Found, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{found.target}-{abs(hash(found.case)) % 10**8:08d}"
    path.write_bytes(found.case)
    path.with_suffix(".txt").write_text(f"exit {found.code}\n{found.said}", encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every reader of files.")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "600")))
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--mode", default="safe", choices=["safe", "debug"])
    parser.add_argument("--again", type=Path, help="a file that was found before")
    given = parser.parse_args()
    program = build(ROOT / "zig-out", mode=given.mode)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if given.again is not None:
            (folder / "one").mkdir()
            (folder / "one" / "case").write_bytes(given.again.read_bytes())
            target = given.target or given.again.name.partition("-")[0]
            answer = once(program, target, folder / "one", folder, seconds=0, seed=0, cases=0)
            print(answer if isinstance(answer, str) else answer.said)
            return int(not isinstance(answer, str))
        folders = fuzz_seeds.write(folder)
        if given.target:
            folders = {given.target: folders[given.target]}
        print(f"seed {given.seed}", flush=True)
        broken = 0
        for answer in rounds(
            program, folders, folder, seconds=given.seconds, seed=given.seed * 1000
        ):
            if isinstance(answer, str):
                print(answer, flush=True)
                continue
            broken += 1
            path = save(answer, ROOT / "fuzz-found")
            print(f"{answer.target} ended with {answer.code}: {path}\n{answer.said[:1500]}")
        return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
