"""An adapter merged and taken out again: the base to one rounding, or a refusal with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from abi_train import LoraConfig, Model, create_adapter, export_gguf, merge_adapter
from abi_train.adapters import unmerge_adapter
from abi_train.cli import main
from abi_train.demo import SAMPLE
from abi_train.errors import ConfigError

SHAPE = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A folder with `base`, `adapter` (whose B is not zero) and `merged`."""
    from safetensors.numpy import load_file, save_file

    with Model.random(SHAPE, seed=3) as model:
        model.save(tmp_path / "base")
        lora = LoraConfig(r=4, lora_alpha=8)
        base = str(tmp_path / "base")
        create_adapter(model, lora, tmp_path / "adapter", seed=1, base_name=base)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    draw = np.random.default_rng(2)
    tensors = {name: draw.normal(size=t.shape).astype("f4") for name, t in load_file(file).items()}
    save_file(tensors, file)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    return tmp_path


def test_the_base_comes_back_within_what_is_told(merged: Path) -> None:
    bound = unmerge_adapter(merged / "merged", merged / "adapter", merged / "back")
    with (
        Model.load(merged / "base") as base,
        Model.load(merged / "back") as back,
        Model.load(merged / "merged") as sum_of_both,
    ):
        found = 0.0
        for name in base:
            exact, again = base[name].astype("f8"), back[name].astype("f8")
            units = np.spacing(np.abs(sum_of_both[name])) + np.spacing(np.abs(back[name]))
            assert (np.abs(exact - again) <= units / 2).all(), name
            found = max(found, float(np.abs(exact - again).max()))
            if not name.endswith(
                ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
            ):
                assert np.array_equal(base[name], back[name]), name
    assert 0.0 < found <= bound


def test_the_command_tells_the_difference(
    merged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(merged)
    with pytest.raises(SystemExit) as left:
        main(["merge", "adapter", "--undo", "--model", "merged", "--output", "back", "--json"])
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert 0.0 < told["difference"] <= told["bound"] < 1e-5
    with pytest.raises(SystemExit) as left:
        main(["merge", "adapter", "--undo", "--output", "again"])
    assert left.value.code == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["q8_0", "bf16", "f16"])
def test_rounded_weights_are_refused(merged: Path, dtype: str) -> None:
    export_gguf(merged / "merged", merged / "m.gguf", dtype=dtype, tokenizer=SAMPLE / "tokenizer")
    with pytest.raises(ConfigError, match=f"(?i)stores .* as {dtype}.*cannot be taken out"):
        unmerge_adapter(merged / "m.gguf", merged / "adapter", merged / "back")
    assert not (merged / "back").exists()
