"""An adapter on a quantised base: the 4-bit blocks stay in their file, and training goes on.

    python examples/07_quantised_base.py [folder]      after 02_train.py

The base is mapped and expanded a panel of rows at a time inside each product, so memory is the
file's size, the adapter and the activations. The adapter is left as GGUF, for llama.cpp's --lora.
"""

from __future__ import annotations

import sys
from pathlib import Path

from abi_train import LlmTrainingConfig, LoraConfig, RunSpec, export_gguf, run
from abi_train.progress import Observer

TRAINING = LlmTrainingConfig(
    epochs=12, batch_size=4, grad_accum_steps=1, max_seq_len=128, learning_rate=4e-3, warmup_steps=2
)


class Loss(Observer):
    """Prints the loss now and then; the first is that of the base alone, as B begins at zero."""

    def on_step(self, record: object) -> None:
        step, loss = getattr(record, "step", 0), getattr(record, "loss", 0.0)
        if step == 1 or step % 12 == 0:
            print(f"update {step}: loss {loss:.4f}")


def main(folder: Path) -> None:
    base = export_gguf(folder / "run", folder / "base-4-bit.gguf", dtype="q4_0")
    floats = sum(path.stat().st_size for path in (folder / "run").glob("*/model.safetensors"))
    print(f"{base.path}: {base.size_bytes} bytes, as floats {floats}")
    adapter = folder / "adapter.gguf"
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",), export_gguf_path=adapter)
    spec = RunSpec(
        model=base.path, data=folder / "train.bin", run_dir=folder / "on-4-bit", config=TRAINING,
        method="lora", lora=lora,
    )  # fmt: skip
    result = run(spec, Loss())
    print(f"{result.model_folder}, and for llama.cpp: --lora {adapter}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
