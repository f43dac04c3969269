"""How far are float32 figures of a run on pairs from those of float64, natively and in PyTorch?

    python benchmarks/pairs_float32.py --steps 30

The same DPO run four times: on each engine in float32 and in float64. The two float64 runs agree to
nine digits, so they are the truth here. Two models of one shape: random weights, and the same with
larger ones, whose logits are as large as a trained model's. An answer's log-probability is a sum of
tens to hundreds of nats; float32 has seven digits, and a reward is the difference of two such sums.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import Record, finish, parser, table

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
RANGES = {"small logits": 0.02, "large logits": 0.25}
FIGURES = ("loss", "rewards/chosen", "rewards/margins", "logps/chosen")


def write_pairs(path: Path, count: int) -> None:
    """Pairs of random ids, as `abi-train data prepare` writes them."""
    from abi_train import TokenizedWriter

    draw = np.random.default_rng(0)
    with TokenizedWriter(path, vocab_size=300, preference=True) as out:
        for _ in range(count):
            prompt = draw.integers(0, 300, draw.integers(3, 10))
            for _ in range(2):
                answer = draw.integers(0, 300, draw.integers(5, 24))
                row = np.concatenate([prompt, answer]).astype("<u4")
                out.append(row, np.arange(row.size) >= prompt.size)
        out.finish()


def history(folder: Path, engine: str, precision: str, args: argparse.Namespace) -> list[Any]:
    """The figures of each update."""
    from abi_train import LlmTrainingConfig, RunSpec, engines

    config = LlmTrainingConfig(
        epochs=20,
        batch_size=2,
        grad_accum_steps=3,
        max_seq_len=40,
        learning_rate=2e-3,
        warmup_steps=5,
        decay_steps=0,
        max_grad_norm=0.5,
        max_steps=args.steps,
        early_stopping=False,
        threads=1,
    )
    spec = RunSpec(
        model=folder / "model",
        data=folder / "pairs.bin",
        run_dir=folder / "run",
        engine=engine,
        precision=precision,
        config=config,
        objective="dpo",
        method="lora",
    )
    result = engines.run(spec, probe=engines.Probe())
    return [{"loss": record.loss, **record.metrics} for record in result.history]


def furthest(run: list[Any], truth: list[Any], figure: str) -> float:
    return float(max(abs(a[figure] - b[figure]) for a, b in zip(run, truth, strict=True)))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--steps", type=int, default=30)
    args = p.parse_args()
    if args.tiny:
        args.steps = 2
    import torch

    from abi_train import Model

    torch.set_num_threads(1)
    found: list[Record] = []
    lines = []
    for name, width in RANGES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            with Model.random({**MODEL, "initializer_range": width}, seed=1) as model:
                model.save(folder / "model")
            write_pairs(folder / "pairs.bin", 9)
            runs = {
                (engine, precision): history(folder, engine, precision, args)
                for engine in ("native", "trl")
                for precision in ("float32", "float64")
            }
        truth = runs["native", "float64"]
        for figure in FIGURES:
            record = {
                "model": name,
                "figure": figure,
                "size": max(abs(line[figure]) for line in truth),
                "native": furthest(runs["native", "float32"], truth, figure),
                "trl": furthest(runs["trl", "float32"], truth, figure),
                "apart": furthest(runs["native", "float32"], runs["trl", "float32"], figure),
                "apart_in_float64": furthest(runs["trl", "float64"], truth, figure),
            }
            found.append(record)
            numbers = [f"{record[key]:.1e}" for key in list(record)[3:]]
            lines.append([name, figure, f"{record['size']:.3g}", *numbers])
    head = ["model", "figure", "size", "native from float64", "PyTorch from float64", "apart"]
    finish("pairs_float32", {"rows": found}, args, table(lines, [*head, "apart in float64"]))


if __name__ == "__main__":
    main()
