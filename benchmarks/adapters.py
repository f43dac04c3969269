"""Training an adapter, and training on pairs: ours beside PEFT and TRL, in turn.

    python benchmarks/adapters.py --parts lora --rounds 2

lora: an adapter of rank 16 on q, k, v and o of the 135 M model, float32 and bf16. quantised: the
same adapter on a 1.1 B model, one row of 512 tokens; our base stays in its file of q4_K, PEFT's is
bfloat16 in memory, with and without gradient checkpointing. dpo: pairs on an adapter of the 135 M
model with the adapter switched off as the reference; the other side is TRL's DPOTrainer, driven by
`abi-train` on the same file of pairs. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import HERE, Record, finish, median, parser, run_child, table, thread_environment
from engine import memory_mib
from shapes import model_config, parameter_count
from step import in_turn

LORA = ["native-lora", "pytorch-lora", "native-lora-bf16", "pytorch-lora-bf16"]
QUANTISED = [
    "native-lora-q4k",
    "native-lora-q4k-bf16",
    "native-lora-q4k-bf16-recompute",
    "pytorch-lora-bf16base",
    "pytorch-lora-bf16base-checkpoint",
]


def ratios(rows: list[Record]) -> list[Record]:
    """Each line with how many times our best line of the same precision is faster."""

    def low(row: Record) -> bool:
        return "bf16" in row["engine"]

    for row in rows:
        ours = [
            r["tokens_per_second"]
            for r in rows
            if r["engine"].startswith("native") and low(r) == low(row)
        ]
        row["native_is"] = max(ours) / row["tokens_per_second"] if ours else None
    return rows


def adapter_part(
    args: argparse.Namespace, shape: str, engines: list[str], batch: int, steps: int
) -> Record:
    settings = argparse.Namespace(**vars(args))
    settings.batch, settings.steps, settings.warmup = batch, steps, 1
    shape = "tiny" if args.tiny else shape
    return {
        "shape": shape,
        "weights": parameter_count(shape),
        "batch": batch,
        "length": args.length,
        "rows": ratios(in_turn(shape, engines, settings)),
    }


def pairs_run(engine: str, shape: str, length: int, updates: int, precision: str) -> Record:
    """One run on random pairs through `abi_train.train`, in this process."""
    import numpy as np

    import abi_train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with abi_train.Model.random(model_config(shape), seed=0) as model:
            model.save(folder / "model")
        rng = np.random.default_rng(0)
        vocabulary = model_config(shape)["vocab_size"]
        half = length // 2
        with abi_train.TokenizedWriter(
            folder / "pairs.bin", vocab_size=vocabulary, preference=True
        ) as out:
            for _ in range(2 * updates):
                prompt = rng.integers(3, vocabulary, half)
                for _ in range(2):
                    answer = rng.integers(3, vocabulary, length - half)
                    row = np.concatenate([prompt, answer]).astype("<u4")
                    mask = np.r_[np.zeros(half, bool), np.ones(length - half, bool)]
                    out.append(row, mask)
            out.finish()
        spec = abi_train.RunSpec(
            model=folder / "model",
            data=folder / "pairs.bin",
            run_dir=folder / "run",
            engine=engine,
            method="lora",
            objective="dpo",
            lora=abi_train.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0),
            dpo=abi_train.DpoConfig(),
            precision=precision,
            config=abi_train.LlmTrainingConfig(
                batch_size=2,
                max_seq_len=length,
                grad_accum_steps=1,
                max_steps=updates,
                lr_schedule="constant",
                warmup_steps=0,
                checkpoint_interval=0,
                mixed_precision=precision == "bf16",
            ),
        )
        result = abi_train.run(spec)
    tokens = 4 * length
    return {
        "seconds": [tokens / record.tokens_per_second for record in result.history],
        "losses": [record.loss for record in result.history],
        "peak_mib": memory_mib("VmHWM"),
    }


def dpo_part(args: argparse.Namespace) -> Record:
    shape = "tiny" if args.tiny else "135m"
    length = 16 if args.tiny else 512
    updates = 2 if args.tiny else 3
    engines = [(e, p) for p in ("float32", "bf16") for e in ("native", "trl")]
    runs: dict[tuple[str, str], list[Record]] = {key: [] for key in engines}
    for turn in range(args.rounds):
        for engine, precision in engines:
            command = [sys.executable, str(HERE / "adapters.py"), "--one-dpo", engine, precision]
            command += [shape, str(length), str(updates)]
            run = run_child(command, thread_environment(args.threads))[0]
            runs[engine, precision].append(run)
            note = f"dpo {shape} round {turn + 1} {engine} {precision}: {run['seconds']}"
            print(note, file=sys.stderr, flush=True)
    rows: list[Record] = []
    for (engine, precision), list_ in runs.items():
        seconds = median([s for run in list_ for s in run["seconds"][1:]])
        rows.append(
            {
                "engine": engine + ("-bf16" if precision == "bf16" else ""),
                "tokens_per_second": 4 * length / seconds,
                "first_loss": list_[0]["losses"][0],
                "peak_mib": max(run["peak_mib"] for run in list_),
                "other_cpu": max(run["other_cpu"] for run in list_),
            }
        )
    return {"shape": shape, "batch": 4, "length": length, "rows": ratios(rows)}


PARTS: dict[str, Callable[[argparse.Namespace], Record]] = {
    "lora": lambda args: adapter_part(args, "135m", LORA, 4, 2),
    "quantised": lambda args: adapter_part(args, "1b", LORA if args.tiny else QUANTISED, 1, 2),
    "dpo": dpo_part,
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--one-dpo", nargs=5, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one_dpo:
        engine, precision, shape, length, updates = args.one_dpo
        print(json.dumps(pairs_run(engine, shape, int(length), int(updates), precision)))
        return
    if args.tiny:
        args.length, args.rounds = 16, 1
    body: Record = {}
    texts: list[str] = []
    for part in args.parts:
        body[part] = PARTS[part](args)
        lines = [
            [
                row["engine"],
                row["tokens_per_second"],
                row["peak_mib"],
                f"{row['first_loss']:.4f}",
                row["other_cpu"],
                "" if row["native_is"] is None else f"{row['native_is']:.2f}x",
            ]
            for row in body[part]["rows"]
        ]
        head = ["engine", "tok/s", "peak MiB", "first loss", "other CPUs", "native is"]
        texts.append(f"{part}, {body[part]['shape']}\n{table(lines, head)}")
    finish("adapters", body, args, "\n\n".join(texts))


if __name__ == "__main__":
    main()
