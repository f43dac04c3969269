"""Each public set from its published shape to training: both engines agree on what it becomes.

`get` → `prepare` → `crosscheck`: losses, gradient norms, rates, the gradients of the first update
and the weights at the end, in the tolerances of every other comparison. Packed where rows may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from published_sets import PREFERENCES, SHAPES, feature, published, write_jsonl
from tiny_models import make_tiny_model

from abi_train import RunSpec, TokenizedDataset, Tokenizer, prepare
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.data.sets import fetch

CONFIG = LlmTrainingConfig(
    epochs=20,
    batch_size=2,
    grad_accum_steps=2,
    max_seq_len=256,
    learning_rate=2e-4,
    warmup_steps=2,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
)
PAIRS = ("truthful-qa", "preferences")
TEXTS = sorted(key for key in SHAPES if key[0] not in PAIRS)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with weights as small as a fresh model's."""
    from safetensors.torch import load_file, save_file

    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "m", "llama_tied")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" in name:
            tensor.mul_(0.2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def prepared(folder: Path, model: Path, name: str, config: str, chat_format: str | None) -> Path:
    rows = folder / "rows.jsonl"
    options = {"pairs": "all"} if name == "truthful-qa" else {}
    fetch(name, rows, config=config, source=published(folder, name, config), options=options)
    prepare([rows], model, folder / "train.bin", chat_format=chat_format)
    return folder / "train.bin"


@pytest.mark.parametrize(
    ("name", "config", "packing"),
    [(*key, packing) for key in TEXTS for packing in ("none", "bfd")]
    + [("gsm8k", "main", "wrapped"), ("daily-dialog", "default", "bfd_split")],
)
def test_a_set_of_texts_trains_alike_on_both_engines(
    tmp_path: Path, model: Path, name: str, config: str, packing: str
) -> None:
    data = prepared(tmp_path, model, name, config, None)
    spec = RunSpec(
        model=model,
        data=data,
        run_dir=tmp_path / "run",
        config=dataclasses.replace(CONFIG, packing=packing),
    )
    result = crosscheck(spec, steps=5)
    assert len(result.steps) == 5
    assert result.ok, result.fault


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_set_of_pairs_trains_alike_on_both_engines(
    tmp_path: Path, model: Path, name: str, method: str
) -> None:
    if name == "preferences":
        mine = write_jsonl(tmp_path / "mine.jsonl", PREFERENCES)
        fetch(name, tmp_path / "rows.jsonl", source=mine, license_note="own")
        prepare([tmp_path / "rows.jsonl"], model, tmp_path / "train.bin")
    else:
        prepared(tmp_path, model, name, "generation", None)
    spec = RunSpec(
        model=model,
        data=tmp_path / "train.bin",
        run_dir=tmp_path / "run",
        objective="dpo",
        method=method,
        config=dataclasses.replace(CONFIG, grad_accum_steps=1, learning_rate=1e-3),
    )
    result = crosscheck(spec, steps=5)
    assert result.ok, result.fault


def learned(data: Path, model: Path) -> tuple[list[str], list[str]]:
    """The whole text of each row, and the text in the loss."""
    with TokenizedDataset.load(data) as opened, Tokenizer.load(model) as tokenizer:
        starts, mask = opened.row_starts, opened.loss_mask
        assert starts is not None and mask is not None
        whole, kept = [], []
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            ids = opened.tokens[begin:end]
            whole.append(tokenizer.decode(ids, skip_special=False))
            kept.append(tokenizer.decode(ids[mask[begin:end]], skip_special=False))
        return whole, kept


def test_what_is_learned_is_what_the_assistant_says(tmp_path: Path, model: Path) -> None:
    _, kept = learned(prepared(tmp_path, model, "gsm8k", "main", None), model)
    assert kept == [
        "She gave 48/2 = 24 pears away.\nSo she has 48-24 = 24 pears.\nThe answer is 24.<|im_end|>",
        "The sum is $1000+80=$1080.\nThe answer is 1,080.<|im_end|>",
    ]
    _, kept = learned(prepared(tmp_path, model, "empathetic-dialogues", "default", None), model)
    assert kept[0] == ("That sounds scary! Did you run?<|im_end|>I am glad you are home.<|im_end|>")


def test_abbey_shows_the_emotion_of_a_row_once_and_of_each_turn(
    tmp_path: Path, model: Path
) -> None:
    feelings = prepared(tmp_path, model, "empathetic-dialogues", "default", "abbey")
    whole, _ = learned(feelings, model)
    assert whole[0].count("[EMOTION: ") == 1
    assert "[EMOTION: anxious]\nUser: I heard steps behind me, in the dark.\nAbbey:" in whole[0]
    whole, kept = learned(prepared(tmp_path, model, "daily-dialog", "default", "abbey"), model)
    assert "[EMOTION: neutral]\nUser: Say, Jim, shall we meet at 9:30?" in whole[0]
    assert "[EMOTION: excited]\nUser: That's a pity!" in whole[0]
    assert not any("EMOTION" in text for text in kept)
    asked, _ = learned(prepared(tmp_path, model, "go-emotions", "simplified", "abbey"), model)
    assert not any("[EMOTION" in text for text in asked), "the answer would stand above it"


def test_rows_of_datasets_have_the_published_types() -> None:
    import datasets

    for rows, features in SHAPES.values():
        made = datasets.Dataset.from_list(rows, features=datasets.Features(feature(features)))
        assert made.to_list() == rows
