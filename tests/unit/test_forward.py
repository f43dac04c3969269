"""What a model says by the forward pass of training: the same however it lies in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantised_models import numbers
from safetensors.numpy import load_file, save_file
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM

from abi_train import Generator, Model, _native
from abi_train.adapters import LoraConfig, create_adapter, merge_adapter
from abi_train.errors import ArgumentError, CheckpointError

IDS = [5, 9, 200, 31, 7, 7, 120, 66, 3, 250, 14]
SHAPES = ("llama_gqa_untied", "llama_tied", "qwen2", "qwen3")


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("forward") / request.param, request.param)


def test_logits_are_those_of_transformers_and_of_the_engine_that_runs_files(
    folder: Path, tmp_path: Path
) -> None:
    theirs_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = theirs_model(torch.tensor([IDS])).logits[0].numpy()
    _native.export.gguf(folder, tmp_path / "m.gguf", dtype="f32")
    found = {}
    for dtype in ("float32", "float64", "stored"):
        with Model.load(folder, dtype=dtype) as model:
            found[dtype] = model.logits(IDS)
            assert found[dtype].dtype == ("float64" if dtype == "float64" else "float32")
            last = model.logits(IDS, first=8, threads=1)
            assert last.shape == (3, found[dtype].shape[1])
            np.testing.assert_allclose(last, found[dtype][8:], atol=1e-5)
            logs, best = model.log_probs(IDS, first=4)
        wide = torch.log_softmax(torch.tensor(found[dtype]).double(), -1).numpy()
        np.testing.assert_allclose(logs, [wide[i - 1, IDS[i]] for i in range(4, 11)], atol=1e-5)
        assert best.tolist() == [int(wide[i - 1].argmax()) == IDS[i] for i in range(4, 11)]
        np.testing.assert_allclose(found[dtype], theirs, atol=2e-4)
    with Generator.open(tmp_path / "m.gguf") as file:
        np.testing.assert_allclose(file.logits(IDS), found["stored"][-1], atol=1e-4)


def test_an_adapter_beside_its_base_says_what_the_merged_model_says(
    folder: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(r=4, target_modules=("q_proj", "v_proj", "down_proj"))
    with Model.load(folder) as model:
        adapter = create_adapter(model, lora, tmp_path / "adapter", seed=1)
        bare = model.logits(IDS)
    file = adapter / "adapter_model.safetensors"
    values = {n: numbers(n, v.shape) * np.float32(0.3) for n, v in load_file(file).items()}
    save_file(values, file, metadata={"format": "pt"})
    merged = merge_adapter(folder, adapter, tmp_path / "merged")
    with Model.load(folder, dtype="stored") as model, Model.load(merged) as whole:
        beside = model.logits(IDS, adapter=adapter)
        np.testing.assert_allclose(beside, whole.logits(IDS), atol=2e-4)
        assert float(np.abs(beside - bare).max()) > 1e-2
        with pytest.raises(CheckpointError, match="is no adapter"):
            model.logits(IDS, adapter=tmp_path)


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    with Model.load(folder) as model:
        vocab = int(model.config["vocab_size"])
        with pytest.raises(ArgumentError, match=f"not below the model's vocabulary of {vocab}"):
            model.logits([1, vocab])
        with pytest.raises(ArgumentError, match="not below the model's vocabulary"):
            model.log_probs([1, vocab])
        with pytest.raises(ArgumentError, match="first is 2 of 2 ids"):
            model.logits([1, 2], first=2)
        with pytest.raises(ArgumentError, match="first is 0 of 2 ids; it must be at least 1"):
            model.log_probs([1, 2], first=0)
        with pytest.raises(ArgumentError, match="of 0 ids"):
            model.logits([])
