"""What `abi-train plan` says beside what the run then does: memory, time, bytes on the disk.

    python benchmarks/plan.py --cases native lora-q8_0 trl

For each case the plan is made with a measurement, then the recipe is run as a person would run it
(`abi-train train`), and its process is watched from outside: the largest resident size the kernel
saw, and the seconds from its start to its end. Memory is told twice: as counted from the engine's
buffers (TRL: from a formula) and as measured by the plan.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Record, finish, parser, table
from shapes import SHAPES, model_config

from abi_train import LlmTrainingConfig, Model, RunSpec, _native
from abi_train.adapters import LoraConfig
from abi_train.dataset import TokenizedWriter
from abi_train.plan import plan
from abi_train.preference import DpoConfig

CASES = [
    *("native", "native-bf16", "native-recompute", "lora-q8_0", "lora-q4_k-bf16", "dpo-lora"),
    *("dpo-full", "trl", "trl-lora"),
]

SHAPES.setdefault(
    "30m",
    {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
)


def make_data(folder: Path, shape: str, rows: int, longest: int) -> None:
    """Rows, held-out rows and pairs of random ids, of lengths that differ."""
    vocabulary = SHAPES[shape]["vocab_size"]
    rng = np.random.default_rng(3)

    def draw(name: str, count: int) -> None:
        with TokenizedWriter(folder / name, vocab_size=vocabulary) as writer:
            for _ in range(count):
                length = int(rng.integers(longest // 4, longest + 1))
                writer.append(rng.integers(0, vocabulary, length), np.arange(length) > 7)
            writer.finish()

    draw("train.bin", rows)
    draw("eval.bin", max(rows // 10, 2))
    with TokenizedWriter(folder / "pairs.bin", vocab_size=vocabulary, preference=True) as writer:
        for _ in range(rows // 2):
            prompt = rng.integers(0, vocabulary, longest // 4)
            for _ in range(2):
                answer = rng.integers(0, vocabulary, int(rng.integers(8, longest // 2)))
                mask = np.arange(prompt.size + answer.size) >= prompt.size
                writer.append(np.concatenate([prompt, answer]), mask)
        writer.finish()


def spec_of(case: str, folder: Path, shape: str, longest: int, threads: int) -> RunSpec:
    """The recipe of a case; makes its base where there is none yet."""
    model = folder / "model"
    if not model.exists():
        with Model.random(model_config(shape), seed=1) as made:
            made.save(model)
    config = LlmTrainingConfig(
        epochs=1,
        batch_size=4,
        max_seq_len=longest,
        grad_accum_steps=2,
        warmup_steps=0,
        learning_rate=1e-4,
        eval_interval=10,
        checkpoint_interval=10,
        log_interval=1,
        early_stopping=False,
        threads=threads,
    )
    values: dict[str, Any] = {
        "model": model,
        "data": folder / "train.bin",
        "eval_data": folder / "eval.bin",
        "engine": "trl" if case.startswith("trl") else "native",
        "precision": "bf16" if "bf16" in case else "float32",
    }
    if "recompute" in case:
        config = dataclasses.replace(config, recompute_activations=True)
    if case.startswith("dpo"):
        config = dataclasses.replace(config, batch_size=2)
        values |= {"objective": "dpo", "dpo": DpoConfig(), "data": folder / "pairs.bin"}
        values["eval_data"] = None
    if "lora" in case:
        values |= {"method": "lora", "lora": LoraConfig(r=16)}
    for dtype in ("q8_0", "q4_k"):
        if dtype in case:
            values["model"] = folder / f"{dtype}.gguf"
            if not values["model"].exists():
                _native.export.gguf(model, values["model"], dtype=dtype, without_tokenizer=True)
    return RunSpec(**values, run_dir=folder / f"run-{case}", config=config)


def watched(recipe: Path) -> tuple[int, float]:
    """Run a recipe; its largest resident size in bytes, and its seconds."""
    command = [sys.executable, "-m", "abi_train.cli", "train", str(recipe)]
    begin = time.time()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status, largest = Path(f"/proc/{child.pid}/status"), 0
    while child.poll() is None:
        try:
            for line in status.read_text("ascii").splitlines():
                if line.startswith("VmHWM:"):
                    largest = max(largest, int(line.split()[1]) * 1024)
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return largest, time.time() - begin


def compare(case: str, folder: Path, shape: str, longest: int, args: Any) -> Record:
    """One case: the plan, the run, and how far they are apart."""
    spec = spec_of(case, folder, shape, longest, args.threads)
    (told,) = plan(spec, measure=True, seconds=args.seconds).phases
    recipe = spec.save(folder / f"{case}.yaml")
    peak, seconds = watched(recipe)
    assert told.time is not None and told.memory.measured is not None
    made = sorted((spec.run_dir).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    there = {file.name: file.stat().st_size for file in made[-1].iterdir()}
    there.pop("trainer_state.json")
    return {
        "case": case,
        "updates": told.updates,
        "counted_mib": told.memory.counted / 2**20,
        "measured_mib": told.memory.measured / 2**20,
        "real_mib": peak / 2**20,
        "counted_off": told.memory.counted / peak - 1,
        "measured_off": told.memory.measured / peak - 1,
        "planned_seconds": told.time.seconds,
        "real_seconds": seconds,
        "seconds_off": told.time.seconds / seconds - 1,
        "measuring_seconds": told.measurement.wall_seconds if told.measurement else None,
        "disk_exact": dict(told.disk.files) == there if spec.engine == "native" else None,
        "parts_mib": {name: value / 2**20 for name, value in told.memory.parts.items()},
        "time_parts": dict(told.time.parts),
    }


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    p.add_argument("--shape", choices=sorted(SHAPES), default="30m")
    p.add_argument("--rows", type=int, default=200)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--seconds", type=float, default=6.0, help="updates are measured for so long")
    args = p.parse_args()
    if args.tiny:
        args.shape, args.rows, args.length, args.seconds = "tiny", 24, 32, 0.0
        args.cases = [case for case in args.cases if not case.startswith("trl")][:1]
    rows = []
    with tempfile.TemporaryDirectory(prefix="abi-train-bench-") as scratch:
        make_data(Path(scratch), args.shape, args.rows, args.length)
        for case in args.cases:
            rows.append(compare(case, Path(scratch), args.shape, args.length, args))
    lines = [
        [
            row["case"],
            round(row["real_mib"]),
            f"{100 * row['counted_off']:+.0f} %",
            f"{100 * row['measured_off']:+.0f} %",
            f"{row['real_seconds']:.1f}",
            f"{100 * row['seconds_off']:+.0f} %",
            {True: "yes", False: "NO", None: ""}[row["disk_exact"]],
        ]
        for row in rows
    ]
    head = ["case", "peak MiB", "counted", "measured", "seconds", "planned", "files to the byte"]
    finish("plan", {"shape": args.shape, "rows": rows}, args, table(lines, head))


if __name__ == "__main__":
    main()
