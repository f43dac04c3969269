"""DPO: learning which of two answers is better, from the adapter of the phase before.

    python examples/06_preferences.py [folder]      after 05_adapter_hand_over.py

The adapter goes on; the reference it is compared with is a frozen copy of itself as it was. At the
end it is merged into its model and exported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from abi_train import (
    DpoConfig,
    LlmTrainingConfig,
    LoraConfig,
    RunSpec,
    export_gguf,
    merge_adapter,
    prepare,
    run,
)
from abi_train.adapters import adapter_folder
from abi_train.demo import SAMPLE
from abi_train.progress import Observer

TRAINING = LlmTrainingConfig(
    epochs=4, batch_size=4, grad_accum_steps=2, max_seq_len=128, learning_rate=5e-4, warmup_steps=4
)


class Margins(Observer):
    """Prints how far the better answers are ahead."""

    def on_note(self, text: str) -> None:
        print(text)

    def on_step(self, record: object) -> None:
        metrics = getattr(record, "metrics", {})
        if getattr(record, "step", 0) % 8 == 0:
            share = metrics["rewards/accuracies"]
            print(f"margin {metrics['rewards/margins']:.3f}, {share:.0%} the right way round")


def main(folder: Path) -> None:
    base = max((folder / "run").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    prepare([SAMPLE / "abbey_preferences.jsonl"], SAMPLE / "tokenizer", folder / "pairs.bin")
    before = adapter_folder(folder / "lora")
    spec = RunSpec(
        model=base, data=folder / "pairs.bin", run_dir=folder / "dpo", config=TRAINING,
        method="lora", lora=LoraConfig(adapter=before), objective="dpo", dpo=DpoConfig(beta=0.1),
    )  # fmt: skip
    result = run(spec, Margins())
    merged = merge_adapter(base, adapter_folder(result.checkpoint or ""), folder / "merged")
    print(f"exported {export_gguf(merged, folder / 'preferences.gguf').path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
