"""How much noise each type makes in a model's logits: what `export/verdict.py` calls usual.

``python tools/measure_bands.py FOLDER`` trains small models on the packaged sample, draws deeper
ones from random weights, exports each in every mix and type (or in those named behind FOLDER), and
prints the noise (error of the logits as a part of their spread, see `Distance`) of each, and the
largest. A band lies above all of them. FOLDER keeps the models for another time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import abi_train
from abi_train import LlmTrainingConfig, Model, RunSpec
from abi_train.data.prepare import prepare
from abi_train.demo import MODEL, SAMPLE
from abi_train.export import DTYPES, MIXES
from abi_train.export.making import Types, Weights, make
from abi_train.export.verify import Check

CONFIG = LlmTrainingConfig(
    epochs=8,
    batch_size=8,
    max_seq_len=192,
    grad_accum_steps=1,
    learning_rate=1.5e-3,
    warmup_steps=20,
    lr_schedule="warmup_cosine",
    checkpoint_interval=0,
    max_checkpoints=1,
    early_stopping=False,
)
WIDE: Mapping[str, Any] = {
    **MODEL,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": False,
}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
SMALL_SMOL: Mapping[str, Any] = {
    **MODEL,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "num_hidden_layers": 12,
}
CASES: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "llama, 192 wide, tied, trained": (MODEL, True),
    "llama, 256 wide, trained": (WIDE, True),
    "qwen3, 256 wide, trained": ({**WIDE, **QWEN3}, True),
    "llama, 256 wide, 24 layers, random": ({**WIDE, "num_hidden_layers": 24}, False),
    "llama, 576 wide, 12 layers, tied, random": (SMALL_SMOL, False),
}


def model_of(home: Path, name: str, config: Mapping[str, Any], *, trained: bool) -> Path:
    """The folder of a case, made if it is not there."""
    place = home / name.replace(", ", "-").replace(" ", "-")
    words = SAMPLE / "tokenizer"
    if not trained:
        if not place.exists():
            with Model.random({**config, "vocab_size": vocabulary(words)}, seed=1) as model:
                model.save(place)
        return place
    if not (place / "run").exists():
        place.mkdir(parents=True, exist_ok=True)
        rows = [SAMPLE / "abbey_conversations.jsonl", SAMPLE / "emotional.jsonl"]
        prepare(rows, words, place / "train.bin", max_seq_len=CONFIG.max_seq_len)
        text = json.dumps({**config, "vocab_size": vocabulary(words)})
        (place / "config.json").write_text(text, encoding="utf-8")
        abi_train.run(
            RunSpec(
                model=place / "config.json",
                data=place / "train.bin",
                run_dir=place / "run",
                tokenizer=words,
                config=CONFIG,
            )
        )
    return max((place / "run").glob("checkpoint-*"))


def vocabulary(words: Path) -> int:
    """Ids of a tokenizer."""
    with abi_train.Tokenizer.load(words) as tokenizer:
        return tokenizer.vocab_size


def main(home: Path, wanted: Sequence[str]) -> None:
    """Print the table."""
    types = [Types(mix=mix) for mix in MIXES if mix != "mxfp4_moe"]
    types += [Types(mix=None, dtype=dtype) for dtype in DTYPES if dtype not in MIXES]
    types = [kind for kind in types if not wanted or kind.name in wanted]
    worst: dict[str, float] = {}
    for name, (config, trained) in CASES.items():
        folder = model_of(home, name, config, trained=trained)
        for kind in types:
            made = make(
                Weights(model=folder, tokenizer=SAMPLE / "tokenizer"),
                home / "out.gguf",
                kind,
                name="bands",
                check=Check(threads=1),
            )
            assert made.verification is not None
            found = made.verification.exported
            worst[kind.name] = max(worst.get(kind.name, 0.0), found.noise)
            form = made.verification.format.distance.relative
            print(
                f"{name}: {kind.name:8} noise {found.noise:.4f}  same {found.same_choice:.3f}  "
                f"divergence {found.divergence:.2e}  format {form:.1e}",
                flush=True,
            )
    print()
    for kind_name, noise in worst.items():
        print(f"{kind_name:8} {noise:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
