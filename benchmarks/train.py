"""Training speed and memory, ours and PyTorch's, on the same work in one run.

    python benchmarks/train.py --shape 4m --rounds 3
    python benchmarks/train.py --shape 135m --steps 4 --rounds 2 --json result.json

Work: `--batch` rows of `--length` random ids without padding, AdamW (3e-4, betas 0.9/0.95, decay 0.1), clipping at 1.0, no
accumulation, random initialisation. Engines run in turn (A B A B …), each measurement in its own process, so that peak memory
is the process's own and a noisy minute hits both. The first `--warmup` steps are not counted. A figure is the median over all
counted steps of all rounds. PyTorch's settings: SDPA attention, fused AdamW, as many threads as ours; `pytorch-compile` adds
`torch.compile`, `pytorch-bf16` runs under autocast over float32 weights. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from shapes import SHAPES, model_config, parameter_count

ENGINES = ("native", "pytorch", "pytorch-compile", "pytorch-bf16", "pytorch-bf16-compile")


def token_file(folder: Path, shape: str, batch: int, length: int, steps: int) -> Path:
    """A `.bin` of random ids, enough for `steps` updates."""
    path = folder / "random.bin"
    ids = np.random.default_rng(0).integers(
        0, SHAPES[shape]["vocab_size"], size=batch * length * steps + 1, dtype="<u4"
    )
    ids.tofile(path)
    return path


def run_native(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step of the native trainer."""
    import abi_train
    from abi_train.trainer import StepEvent

    steps = args.warmup + args.steps
    bin_path = token_file(folder, args.shape, args.batch, args.length, steps)
    config = abi_train.LlmTrainingConfig(
        epochs=1,
        batch_size=args.batch,
        max_seq_len=args.length,
        grad_accum_steps=1,
        learning_rate=3e-4,
        lr_schedule="constant",
        warmup_steps=0,
        beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        shuffle=False,
        checkpoint_interval=0,
        eval_interval=0,
        max_steps=steps,
        threads=args.threads,
    )
    seconds: list[float] = []
    losses: list[float] = []
    with (
        abi_train.Model.random(model_config(args.shape), seed=0) as model,
        abi_train.TokenizedDataset.load(bin_path) as data,
        abi_train.Trainer(config, model, data) as trainer,
    ):
        for event in trainer:
            if isinstance(event, StepEvent):
                seconds.append(event.time)
                losses.append(event.loss)
    return seconds, losses


def run_pytorch(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step of a plain PyTorch loop over transformers' Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps = args.warmup + args.steps
    ids = np.fromfile(token_file(folder, args.shape, args.batch, args.length, steps), "<u4")
    settings = {k: v for k, v in model_config(args.shape).items() if k != "architectures"}
    config = LlamaConfig(**settings)
    config._attn_implementation = "sdpa"
    model: Any = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    forward = torch.compile(model) if args.engine.endswith("compile") else model
    bf16 = "bf16" in args.engine
    size = args.batch * args.length
    seconds: list[float] = []
    losses: list[float] = []
    for step in range(steps):
        window = torch.from_numpy(ids[step * size : (step + 1) * size + 1].astype(np.int64))
        inputs = window[:-1].view(args.batch, args.length)
        labels = window[1:].view(args.batch, args.length)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = forward(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().view(size, -1), labels.reshape(size)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        losses.append(float(loss))
    return seconds, losses


def child(args: argparse.Namespace) -> None:
    """One measurement; prints one JSON line."""
    with tempfile.TemporaryDirectory() as name:
        run = run_native if args.engine == "native" else run_pytorch
        seconds, losses = run(args, Path(name))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    json.dump({"seconds": seconds[args.warmup :], "losses": losses, "peak_mib": peak}, sys.stdout)


def measure(args: argparse.Namespace, engine: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", "--engine", engine]
    for name in ("shape", "batch", "length", "steps", "warmup", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="4m")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["native", "pytorch"])
    parser.add_argument("--batch", type=int, default=4, help="rows in a batch")
    parser.add_argument("--length", type=int, default=512, help="tokens in a row")
    parser.add_argument("--steps", type=int, default=10, help="counted steps per round")
    parser.add_argument("--warmup", type=int, default=2, help="steps not counted")
    parser.add_argument("--rounds", type=int, default=2, help="how often each engine gets its turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return

    samples: dict[str, list[float]] = {engine: [] for engine in args.engines}
    peaks: dict[str, float] = dict.fromkeys(args.engines, 0.0)
    first_loss: dict[str, float] = {}
    for _ in range(args.rounds):
        for engine in args.engines:
            result = measure(args, engine)
            samples[engine] += result["seconds"]
            peaks[engine] = max(peaks[engine], result["peak_mib"])
            first_loss[engine] = result["losses"][0]

    tokens = args.batch * args.length
    rows = [
        {
            "engine": engine,
            "tokens_per_second": tokens / statistics.median(samples[engine]),
            "best": tokens / min(samples[engine]),
            "peak_mib": peaks[engine],
            "first_loss": first_loss[engine],
        }
        for engine in args.engines
    ]
    report = {
        "shape": args.shape,
        "parameters": parameter_count(args.shape),
        "batch": args.batch,
        "length": args.length,
        "threads": args.threads,
        "counted_steps": args.steps * args.rounds,
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    print(
        f"{args.shape}: {report['parameters'] / 1e6:.1f} M weights, batch {args.batch} x {args.length}, "
        f"{args.threads} threads, {report['counted_steps']} counted steps each"
    )
    base = rows[0]["tokens_per_second"]
    print(f"{'engine':<22}{'tok/s':>10}{'best':>10}{'peak MiB':>10}{'first loss':>12}{'native is':>11}")
    for row in rows:
        print(
            f"{row['engine']:<22}{row['tokens_per_second']:>10.0f}{row['best']:>10.0f}"
            f"{row['peak_mib']:>10.0f}{row['first_loss']:>12.4f}"
            f"{base / row['tokens_per_second']:>10.2f}x"
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
