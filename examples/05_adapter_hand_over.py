"""One LoRA run on two engines: begun on TRL (a GPU if there is one), continued natively on the CPU.

    python examples/05_adapter_hand_over.py [folder]      after 02_train.py; needs the trl extra

Each checkpoint has the adapter, the optimizer's moments and the place in the data, so the second
engine goes on where the first stopped. The same run on one engine shows that nothing was lost.
"""

from __future__ import annotations

import sys
from pathlib import Path

from abi_train import LlmTrainingConfig, LoraConfig, RunSpec, run
from abi_train.progress import Observer

TRAINING = LlmTrainingConfig(
    epochs=8,
    batch_size=4,
    grad_accum_steps=1,
    max_seq_len=128,
    learning_rate=2e-3,
    warmup_steps=4,
    decay_steps=0,
)
ADAPTER = LoraConfig(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj", "down_proj"))


class After(Observer):
    """Asks for a stop after so many updates, and tells where they were computed."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_start(self, total_steps: int, info: object) -> None:
        assert isinstance(info, dict)
        print(f"{info['engine']} on {info['device']}, from update {info['start_step']}")

    def on_step(self, record: object) -> None:
        self.updates -= 1

    def stop_requested(self) -> bool:
        return self.updates == 0


def main(folder: Path) -> None:
    base = max((folder / "run").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    whole = RunSpec(
        model=base, data=folder / "train.bin", run_dir=folder / "lora", config=TRAINING,
        method="lora", lora=ADAPTER, precision="float32",
    )  # fmt: skip
    begun = run(whole.replace(engine="trl"), After(10))
    print(f"stopped: {begun.checkpoint}")
    joined = run(whole.replace(engine="native", resume=str(begun.checkpoint)), After(-1))
    alone = run(whole.replace(run_dir=folder / "lora-alone"), After(-1))
    print(f"loss {joined.final_loss:.6f} handed over, {alone.final_loss:.6f} on one engine")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
