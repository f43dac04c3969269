"""Adapter files and checkpoints with random changes: taken or refused by name, never a crash."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from abi_train import LlmTrainingConfig, LoraConfig, Model, TokenizedDataset, _native
from abi_train.adapters import create_adapter
from abi_train.checkpoint import read_state
from abi_train.errors import AbiTrainError, InternalError
from abi_train.trainer import Trainer

SHAPE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
ODD = [
    "-1",
    "0",
    "1e999",
    "NaN",
    "1e18",
    "18446744073709551616",
    "null",
    "true",
    "[]",
    "{}",
    '"x"',
    "4294967296",
    "0.5",
    "-0",
]
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=("q_proj", "v_proj"))
CONFIG = LlmTrainingConfig(
    batch_size=2, max_seq_len=16, grad_accum_steps=1, max_steps=2, threads=1, checkpoint_interval=0
)
TIMES = 150


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    with Model.random(SHAPE, seed=1) as model:
        model.save(folder / "model")
    np.random.default_rng(1).integers(0, 64, 600).astype("<u4").tofile(folder / "data.bin")
    with (
        Model.load(folder / "model", dtype="stored") as stored,
        TokenizedDataset.load(folder / "data.bin") as data,
        Trainer(CONFIG, stored, data, run_dir=folder / "run", lora=LORA) as trainer,
    ):
        create_adapter(stored, LORA, folder / "adapter", seed=1)
        for _ in trainer:
            pass
    (folder / "run" / "checkpoint-2" / "checksums.json").unlink()
    return folder


def changed(draw: random.Random, content: bytes, *, text: bool) -> bytes:
    """One change: a bit, a byte, a cut, something put in or taken out, or an odd number."""
    kind = draw.randrange(7 if text else 5)
    at = draw.randrange(len(content))
    if kind == 0:
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content[:at] + draw.randbytes(draw.randrange(1, 9)) + content[at:]
    if kind == 4:
        return content[:at] + content[at + draw.randrange(1, 40) :]
    number = draw.choice(list(re.finditer(rb"-?\d+(\.\d+)?", content)))
    odd = draw.choice(ODD).encode()
    return content[: number.start()] + odd + content[number.end() :]


def try_all(folder: Path, name: str, read: Callable[[], object]) -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    file = folder / name
    whole = file.read_bytes()
    text = name.endswith(".json")
    head = whole if text else whole[: 8 + int.from_bytes(whole[:8], "little") + 8]
    refused = 0
    try:
        for _ in range(TIMES):
            file.write_bytes(changed(draw, head, text=text) + whole[len(head) :])
            try:
                read()
            except AbiTrainError as error:
                refused += 1
                assert not isinstance(error, InternalError), (seed, error)
                assert "Errno" not in str(error), (seed, error)
    finally:
        file.write_bytes(whole)
    assert refused > TIMES / 8, seed
    read()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "stored"])
def test_an_adapter(made: Path, name: str, dtype: str) -> None:
    folder = made / "adapter"
    with Model.load(made / "model", dtype=dtype) as model:
        try_all(folder, name, lambda: _native.adapter.check_on(model.native, folder))


def test_its_settings_in_python(made: Path) -> None:
    lora = LoraConfig(adapter=made / "adapter")
    try_all(made / "adapter", "adapter_config.json", lambda: lora.resolved(made / "model"))


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.safetensors"])
def test_a_checkpoint(made: Path, name: str) -> None:
    folder = made / "run" / "checkpoint-2"

    def resume() -> None:
        with Trainer(CONFIG, stored, data, resume_from=folder, lora=LORA):
            pass

    with (
        Model.load(made / "model", dtype="stored") as stored,
        TokenizedDataset.load(made / "data.bin") as data,
    ):
        try_all(folder, name, resume)


def test_a_state_in_python(made: Path) -> None:
    folder = made / "run" / "checkpoint-2"
    try_all(folder, "trainer_state.json", lambda: read_state(folder))
