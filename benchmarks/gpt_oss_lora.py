"""An adapter on gpt-oss in its real size: seconds, memory and share of the machine's peak.

    python benchmarks/make_gpt_oss.py FOLDER
    python benchmarks/gpt_oss_lora.py FOLDER --steps 2 --peak 968 --json result.json

MODEL is a folder in MXFP4 or a GGUF file and stays in its file; the adapter has rank 16 on q, k, v
and o of every layer. A step is one row of `--length` random ids: forward, backward, clipping,
AdamW. Memory is what the system says of this process: `anonymous` is the program's own, `file` are
pages of the mapped model, which the system takes back when it needs them. Operations are those of
products that a step cannot do without (no recomputation, nothing expanded).
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

import abi_train
from abi_train.trainer import StepEvent

FIELDS = {"resident": "VmRSS", "anonymous": "RssAnon", "file": "RssFile", "peak": "VmHWM"}


def memory() -> dict[str, float]:
    """GB (10^9) by the system's count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: int(values[name].split()[0]) * 1024e-9 for key, name in FIELDS.items()}


class Sampler(threading.Thread):
    """The most of each kind of memory, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = memory()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            for key, value in memory().items():
                self.most[key] = max(self.most[key], value)


def operations(config: dict[str, Any], length: int, targets: int) -> float:
    """Of matrix products of one step, frozen weights: two a weight and token forward, two back."""
    c, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    wide = config["num_attention_heads"] * config["head_dim"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    attention = 2 * c * wide + 2 * c * narrow
    experts = config["num_experts_per_tok"] * 3 * c * f + config["num_local_experts"] * c
    window = min(config["sliding_window"], length)
    seen = [
        length * window - window * (window - 1) // 2
        if layer % 2 == 0
        else length * (length + 1) // 2
        for layer in range(layers)
    ]
    products = 4 * layers * (attention + experts) * length + 4 * config["vocab_size"] * c * targets
    return float(products + 14 * sum(seen) * wide)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--length", type=int, default=512, help="tokens in the row (512)")
    parser.add_argument("--steps", type=int, default=2, help="counted steps, after one (2)")
    parser.add_argument("--float32", action="store_true", help="products in float32, else bf16")
    parser.add_argument("--recompute", action="store_true", help="keep only each layer's input")
    parser.add_argument("--experts", action="store_true", help="adapt the experts' weights as well")
    parser.add_argument("--peak", type=float, default=0.0, help="GFLOP/s the machine can do")
    args = parser.parse_args()
    started = time.perf_counter()
    sampler = Sampler()
    sampler.start()
    lora = abi_train.LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
        target_parameters=(
            ("mlp.experts.gate_up_proj", "mlp.experts.down_proj") if args.experts else ()
        ),
    )
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "random.bin"
        count = args.length * (args.steps + 1) + 1
        np.random.default_rng(0).integers(0, 2000, size=count, dtype="<u4").tofile(path)
        config = abi_train.LlmTrainingConfig(
            batch_size=1,
            max_seq_len=args.length,
            grad_accum_steps=1,
            learning_rate=1e-4,
            lr_schedule="constant",
            warmup_steps=0,
            mixed_precision=not args.float32,
            recompute_activations=args.recompute,
            shuffle=False,
            checkpoint_interval=0,
            eval_interval=0,
            max_steps=args.steps + 1,
            threads=args.threads,
        )
        losses = []
        with (
            abi_train.Model.load(args.model, dtype="stored") as model,
            abi_train.TokenizedDataset.load(path) as data,
        ):
            opened = time.perf_counter() - started
            shape = dict(model.config)
            with abi_train.Trainer(config, model, data, lora=lora) as trainer:
                before = time.perf_counter()
                while (event := trainer.next_event()) is not None:
                    if isinstance(event, StepEvent):
                        seconds.append(time.perf_counter() - before)
                        losses.append(event.loss)
                        before = time.perf_counter()
                held = memory()
    sampler.over.set()
    best = sorted(seconds[1:])[len(seconds[1:]) // 2]
    total = operations(shape, args.length, args.length)
    result = {
        "layers": shape["num_hidden_layers"],
        "tokens": args.length,
        "compute": "f32" if args.float32 else "bf16",
        "recompute": args.recompute,
        "experts": args.experts,
        "first_step_seconds": seconds[0],
        "seconds": best,
        "all_seconds": seconds[1:],
        "tokens_per_second": args.length / best,
        "tflop": total * 1e-12,
        "gflops": total * 1e-9 / best,
        "share_of_peak": total * 1e-9 / best / args.peak if args.peak else None,
        "opened_after": opened,
        "losses": losses,
        "held_gb": held,
        "most_gb": memory() | sampler.most,
    }
    kept = args.json and args.json.exists()  # other models and ways of the same machine
    others = json.loads(args.json.read_text())["rows"] if kept else []
    same = ("layers", "tokens", "compute", "recompute", "experts")
    others = [row for row in others if any(row[key] != result[key] for key in same)]
    rows = sorted([*others, result], key=lambda row: [row[key] for key in same])
    lines = [
        [*(row[key] for key in same), row["seconds"], row["tokens_per_second"], row["gflops"]]
        for row in rows
    ]
    text = common.table(lines, [*same, "seconds", "tok/s", "GFLOP/s"])
    common.finish("gpt_oss_lora", {"rows": rows}, args, text)


if __name__ == "__main__":
    main()
