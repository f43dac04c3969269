"""docs/gpt-oss.md: its commands, recipes and options are there, and it refuses what it says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import abi_train
from abi_train import Model, recipes
from abi_train.errors import AbiTrainError
from abi_train.sample.tiny import make_gpt_oss

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gpt-oss.md").read_text(encoding="utf-8")
ABI = Path(abi_train.__file__).parent / "bin" / "abi"


def test_every_recipe_and_file_it_names_is_there() -> None:
    named = set(re.findall(r"\babbey-gpt-oss-[\w-]+(?=`| |\n)", PAGE))
    assert named == {name for name in recipes.shipped() if "gpt-oss" in name}
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_every_option_it_names_is_one() -> None:
    verbs = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for line in re.findall(r"abi-train [^`\n#]+", PAGE):
        for option in re.findall(r" (--[\w-]+)", line):
            assert f"`{option}" in verbs or option in ("--engine", "--run-dir"), line
    for verb in ("agent", "unpack"):
        done = subprocess.run([ABI, verb, "--help"], capture_output=True, text=True, timeout=60)
        for line in re.findall(rf"`abi {verb} [^`]+", PAGE):
            for option in re.findall(r" (--[\w-]+)", line):
                assert option in done.stdout + done.stderr, line


def test_it_says_what_was_never_run() -> None:
    assert "The real weights." in PAGE and "Nor was anything here run on a GPU" in PAGE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_gpt_oss(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 5, "experts_per_token": 5}, "num_experts_per_tok is 5"),
        ({"num_local_experts": 8}, "router.weight"),
        ({"sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    folder: Path, change: dict[str, int], words: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for dtype in ("stored", "float32"):
        with pytest.raises(AbiTrainError, match=words), Model.load(folder, dtype=dtype):
            pass


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlp.experts.down_proj_scales", "255"),
        ("mlp.experts.gate_up_proj_blocks", "gate_up_proj"),
        ("self_attn.sinks", "sinks"),
        ("mlp.experts.down_proj_bias", "down_proj_bias"),
    ],
)
def test_weights_that_are_damaged_or_missing_are_named(folder: Path, name: str, words: str) -> None:
    file, key = folder / "model.safetensors", f"model.layers.1.{name}"
    tensors = load_file(file)
    if name.endswith("scales"):
        tensors[key][2, 3, 1] = 255
    elif name.endswith("blocks"):
        tensors[key] = tensors[key][:, :, :1].contiguous()
    else:
        del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})
    for dtype in ("stored", "float32"):
        with pytest.raises(AbiTrainError, match=words), Model.load(folder, dtype=dtype):
            pass
