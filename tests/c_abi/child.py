"""What the tests of the C line share: one tiny model, its settings, and one way to run a child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}

SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 2,
    "max_seq_len": 16,
    "grad_accum_steps": 1,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "decay_steps": 0,
    "threads": 2,
}


def run_child(
    code: str, *arguments: str, timeout: float = 120, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in another interpreter: a crash there is a result here."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )
