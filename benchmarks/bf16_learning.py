"""Does bf16 learn as float32 does? The same run twice: packaged conversations, a small Llama.

    python benchmarks/bf16_learning.py --seeds 0 1

Same rows in the same order, same start, same settings; only `mixed_precision` differs. Compared
are the mean training loss of the last 50 updates and the loss on held-out conversations. The goal
is a difference within 1 %.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import Record, finish, parser, table

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "initializer_range": 0.02,
}
LAST = 50


def learn(folder: Path, vocab_size: int, seed: int, bf16: bool, args: argparse.Namespace) -> Record:
    """One run; its training losses and its loss on held-out rows."""
    import abi_train
    from abi_train.trainer import EvaluationEvent, FinishedEvent, StepEvent

    config = abi_train.LlmTrainingConfig(
        epochs=1,
        batch_size=4,
        grad_accum_steps=1,
        max_seq_len=192,
        learning_rate=1e-3,
        lr_schedule="warmup_cosine",
        warmup_steps=min(20, args.steps - 1),
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta2=0.99,
        seed=seed,
        max_steps=args.steps,
        eval_interval=0,
        checkpoint_interval=0,
        early_stopping=False,
        mixed_precision=bf16,
        threads=args.threads,
    )
    losses: list[float] = []
    held_out, seconds = 0.0, 0.0
    with (
        abi_train.Model.random({**MODEL, "vocab_size": vocab_size}, seed=seed) as model,
        abi_train.TokenizedDataset.load(folder / "train.bin") as rows,
        abi_train.TokenizedDataset.load(folder / "eval.bin") as others,
        abi_train.Trainer(config, model, rows, eval_dataset=others) as trainer,
    ):
        for event in trainer:
            if isinstance(event, StepEvent):
                losses.append(event.loss)
            elif isinstance(event, EvaluationEvent):
                held_out = event.loss
            elif isinstance(event, FinishedEvent):
                seconds = event.total_time
    last = losses[-LAST:]
    return {
        "seed": seed,
        "compute": "bf16" if bf16 else "f32",
        "steps": len(losses),
        "first_loss": losses[0],
        "last_losses_mean": sum(last) / len(last),
        "held_out_loss": held_out,
        "seconds": seconds,
        "losses": [round(loss, 5) for loss in losses],
    }


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    args = p.parse_args()
    if args.tiny:
        args.steps, args.seeds = 3, [0]
    from abi_train import sample
    from abi_train.data.prepare import prepare

    source = Path(next(iter(sample.__path__)))
    runs: list[Record] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare(
            [source / "abbey_conversations.jsonl"],
            source / "tokenizer",
            folder / "train.bin",
            max_seq_len=192,
            eval_output=folder / "eval.bin",
            eval_fraction=0.1,
        )
        for seed in args.seeds:
            for bf16 in (False, True):
                runs.append(learn(folder, prepared.vocab_size, seed, bf16, args))
    lines, differences = [], []
    for full, low in zip(runs[::2], runs[1::2], strict=True):
        of = {
            key: (low[key] - full[key]) / full[key] for key in ("last_losses_mean", "held_out_loss")
        }
        differences.append({"seed": full["seed"], **of})
        for what, key in (("last updates", "last_losses_mean"), ("held out", "held_out_loss")):
            difference = f"{100 * of[key]:+.2f} %"
            lines.append([full["seed"], what, f"{full[key]:.4f}", f"{low[key]:.4f}", difference])
    head = ["seed", "loss", "float32", "bf16", "difference"]
    finish("bf16_learning", {"runs": runs, "differences": differences}, args, table(lines, head))


if __name__ == "__main__":
    main()
