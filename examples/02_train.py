"""Token ids to a trained model: a small Llama from random weights, on the native engine.

    python examples/02_train.py [folder]      after 01_prepare_data.py

The trainer is an iterator: each event is one thing done, and leaving the loop is always safe.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from abi_train import LlmTrainingConfig, Model, TokenizedDataset, Trainer
from abi_train.demo import SAMPLE
from abi_train.trainer import CheckpointEvent, FinishedEvent, StepEvent

SHAPE = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TRAINING = LlmTrainingConfig(
    epochs=40,
    batch_size=4,
    grad_accum_steps=1,
    max_seq_len=128,
    learning_rate=5e-3,
    warmup_steps=10,
    decay_steps=0,  # 0: until the end of the run
)


def main(folder: Path) -> None:
    with TokenizedDataset.load(folder / "train.bin") as data:
        config = folder / "config.json"
        shape = {**SHAPE, "vocab_size": data.manifest["vocab_size"]}
        config.write_text(json.dumps(shape), encoding="utf-8")
        with (
            Model.random(config, seed=TRAINING.seed) as model,
            Trainer(
                TRAINING, model, data, run_dir=folder / "run", tokenizer_dir=SAMPLE / "tokenizer"
            ) as trainer,
        ):
            print(f"{model.element_count} weights, {trainer.max_steps} updates")
            for event in trainer:
                if isinstance(event, StepEvent) and event.global_step % 20 == 0:
                    print(f"update {event.global_step}: loss {event.loss:.3f}")
                elif isinstance(event, CheckpointEvent):
                    print(f"saved {event.path}")
                elif isinstance(event, FinishedEvent):
                    print(f"{event.stop_reason}: loss {event.final_loss:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
