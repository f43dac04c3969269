"""The demonstration: from text to an answering model in about a minute, on a plain CPU.

Prepares the packaged sample, trains a small Llama from random weights natively, checkpoints,
exports a GGUF and asks the Zig agent a question. Needs neither torch nor the network.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import engines
from .._native.program import program_path
from ..config import LlmTrainingConfig
from ..data.prepare import PrepareReport, prepare
from ..errors import EngineError
from ..export import ExportReport, export_gguf
from ..progress import Observer
from ..runspec import RunResult, RunSpec
from .folder import fresh_results

SAMPLE: Final = Path(__file__).resolve().parents[1] / "sample"
QUESTION: Final = "My exam is tomorrow and I can't calm down."
MODEL: Final[dict[str, Any]] = {
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
"""About 2.4 million parameters: enough to learn the sample by heart."""

TRAINING: Final = LlmTrainingConfig(
    epochs=20,
    batch_size=4,
    grad_accum_steps=1,
    max_seq_len=192,
    learning_rate=1.5e-3,
    min_learning_rate=1e-4,
    lr_schedule="warmup_cosine",
    warmup_steps=20,
    decay_steps=0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    beta2=0.99,
    checkpoint_interval=0,
    max_checkpoints=1,
    log_interval=100,
    early_stopping=False,
)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demonstration made."""

    folder: Path
    prepared: PrepareReport
    trained: RunResult
    exported: ExportReport
    question: str
    answer: str
    seconds: float


def run_demo(
    folder: str | Path,
    *,
    question: str = QUESTION,
    observer: Observer | None = None,
    say: Callable[[str], None] | None = None,
    training: LlmTrainingConfig = TRAINING,
    sample: Path = SAMPLE,
) -> DemoResult:
    """Run everything in `folder`, which must be new, empty, or of an earlier demonstration.

    The results of an earlier one are replaced once the new ones are whole, and come back when this
    one fails or is stopped. say: called with a line before each part. Raises what the parts raise,
    and `FileAccessError` for a folder of somebody else's.
    """
    folder, begun = Path(folder), time.perf_counter()
    tell = say or (lambda text: None)
    with fresh_results(folder, tell):
        return _make(folder, question, observer, tell, training, sample, begun)


def _make(
    folder: Path,
    question: str,
    observer: Observer | None,
    tell: Callable[[str], None],
    training: LlmTrainingConfig,
    sample: Path,
    begun: float,
) -> DemoResult:
    rows = sample / "abbey_conversations.jsonl"
    tell(f"1/4  preparing {rows.name}: text to token ids")
    prepared = prepare(
        [rows],
        sample / "tokenizer",
        folder / "train.bin",
        max_seq_len=training.max_seq_len,
        source_note="abi_train sample",
        license_note="Apache-2.0",
    )
    config = dict(MODEL, vocab_size=prepared.vocab_size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    spec = RunSpec(
        model=folder / "config.json",
        data=folder / "train.bin",
        run_dir=folder / "run",
        tokenizer=sample / "tokenizer",
        config=training,
    )
    spec.save(folder / "recipe.yaml")
    tell(f"2/4  training a small Llama from random weights on {prepared.train.rows} conversations")
    trained = engines.run(spec, observer)
    if trained.stop_reason == "interrupted":
        raise KeyboardInterrupt
    tell("3/4  exporting GGUF")
    exported = export_gguf(folder / "run", folder / "abbey-demo.gguf", name="abbey-demo")
    tell("4/4  asking the agent")
    answer = ask(exported.path, question)
    return DemoResult(
        folder=folder,
        prepared=prepared,
        trained=trained,
        exported=exported,
        question=question,
        answer=answer,
        seconds=time.perf_counter() - begun,
    )


def ask(model: Path, question: str) -> str:
    """One answer of the `abi agent` program, most likely words only."""
    command = [
        str(program_path()),
        "agent",
        "--model",
        str(model),
        "--message",
        question,
        "--temperature",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"abi agent failed with code {done.returncode}: {last}")
    return done.stdout.strip()
