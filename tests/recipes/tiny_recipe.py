"""A recipe of three phases that is trained in about a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abi_train import recipes

MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TRAINING = {
    "max_steps": 4,
    "batch_size": 2,
    "grad_accum_steps": 1,
    "max_seq_len": 64,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "early_stopping": False,
    "checkpoint_interval": 2,
    "max_checkpoints": 0,
    "threads": 1,
}

Make = Callable[..., recipes.Recipe]


def write_chats(path: Path, count: int, *, word: str = "pears", answers: int = 1) -> Path:
    rows = []
    for number in range(count):
        turns = []
        for at in range(answers):
            turns += [
                {"role": "user", "content": f"How many {word} are {number} and {at}?"},
                {"role": "assistant", "content": f"There are {number + at} {word}."},
            ]
        rows.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(rows) + "\n")
    return path


def write_pairs(path: Path, count: int) -> Path:
    rows = [
        {"prompt": f"Will it be {n}?", "chosen": f"I can't know, maybe {n}.", "rejected": "Yes."}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def document() -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": MODEL,
        "tokenizer": "sample:tokenizer",
        "precision": "float32",
        "training": TRAINING,
        "lora": {"r": 2},
        "phases": [
            {"name": "base", "method": "full", "rows": "base.jsonl"},
            {"name": "talk", "rows": "talk.jsonl", "eval_split": 0.25},
            {"name": "choose", "rows": "pairs.jsonl", "dpo": {"beta": 0.1}},
        ],
    }
