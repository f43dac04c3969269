"""Every stored type means what it means to ggml: bytes by its quantisers, numbers by ``gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from ggml_quants import quantize, requantize
from safetensors.numpy import load_file, save_file
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM

from abi_train import Generator, Model, _native
from abi_train.errors import FormatError, NumericsError

TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
    "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    "output.weight": "lm_head.weight",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in f32 whose rows are whole blocks of every type."""
    folder = tmp_path_factory.mktemp("stored")
    base = make_tiny_model(
        folder / "base", "llama_gqa_untied", hidden_size=256, intermediate_size=512
    )
    _native.export.gguf(base, folder / "f32.gguf", dtype="f32")
    return folder / "f32.gguf"


def in_hugging_faces_order(name: str, rows: Any, head_dim: int) -> Any:
    """Undoes the order in which a llama's GGUF keeps the rows of q and k."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return rows
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return heads.swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_those_of_the_gguf_package_to_the_bit(
    kind: str, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    requantize(source, path, {}, kind)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with Model.load(path) as model:
        head_dim = model.config["head_dim"]
        for name, ours in NAMES.items():
            assert stored[name].tensor_type.name == kind
            numbers = gguf.dequantize(stored[name].data, stored[name].tensor_type)
            want = in_hugging_faces_order(name, numbers, head_dim)
            assert np.array_equal(model[ours].view(np.uint32), want.view(np.uint32)), name


@pytest.mark.parametrize("kind", TYPES)
def test_generation_computes_with_the_stored_numbers(
    kind: str, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    requantize(source, path, {}, kind)
    with Model.load(path) as model:
        state = {name: torch.tensor(model[name].copy()) for name in model}
    peer = AutoModelForCausalLM.from_pretrained(source.parent / "base", dtype=torch.float32)
    peer.load_state_dict(state)
    ids = [5, 9, 200, 31]
    with torch.no_grad():
        want = peer(torch.tensor([ids])).logits[0, -1].numpy()
    for exact, tolerance in ((True, 1e-4), (False, 0.2 * want.std())):  # 8-bit activations
        with Generator.open(path, exact=exact) as generator:
            together = generator.logits(ids)
            assert np.abs(together - want).max() < tolerance
            generator.logits(ids[:-1])
            one_by_one = generator.logits(ids)  # Only the last token is fed.
            assert np.abs(one_by_one - want).max() < tolerance
            assert np.abs(one_by_one - together).max() < 0.5 * tolerance


def awkward(seed: int, shape: tuple[int, ...]) -> Any:
    """Numbers of one of many kinds: ordinary, heavy-tailed, sparse, constant, tiny, on a grid."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=shape)
    kinds = [
        normal,
        normal * 1e-3,
        normal**5,
        np.abs(normal),
        -np.abs(normal),
        np.where(rng.random(shape) < 0.05, normal, 0),
        np.full(shape, 0.37),
        np.round(normal * 4) / 4,
        np.zeros(shape),
        np.full(shape, 1e-20),
        rng.uniform(-1, 1, size=shape) * 6e3,
    ]
    return kinds[seed % len(kinds)].astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
def test_written_bytes_are_those_of_ggml(kind: str, source: Path, tmp_path: Path) -> None:
    base = make_tiny_model(
        tmp_path / "base", "mistral", hidden_size=256, intermediate_size=512, head_dim=64
    )
    weights = load_file(base / "model.safetensors")
    for seed, name in enumerate(weights):
        if weights[name].ndim == 2:
            weights[name] = awkward(seed, weights[name].shape)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    _native.export.gguf(base, tmp_path / "f32.gguf", dtype="f32")
    _native.export.gguf(base, tmp_path / "stored.gguf", dtype=kind.lower())
    floats = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "f32.gguf").tensors}
    for tensor in gguf.GGUFReader(tmp_path / "stored.gguf").tensors:
        if floats[tensor.name].ndim == 1:
            continue
        assert tensor.tensor_type.name == kind
        want = quantize(floats[tensor.name], kind)
        ours = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(want.shape)
        assert np.array_equal(ours, want), tensor.name


def test_rows_that_are_no_whole_blocks_get_a_type_they_fit(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", "qwen2")  # 64 wide, 96 in the middle.
    for kind, instead in {"q4_k": "Q5_0", "q5_k": "Q5_1", "q6_k": "Q8_0", "mxfp4": "MXFP4"}.items():
        _native.export.gguf(base, tmp_path / "m.gguf", dtype=kind)
        types = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        assert types == {"F32", instead}


def test_a_scale_that_is_no_number_is_refused_with_the_tensors_name(
    source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    requantize(source, path, {}, "Q6_K")
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    at = int(tensor.data_offset) + 208
    del reader, tensor
    raw = bytearray(path.read_bytes())
    raw[at : at + 2] = b"\x00\x7c"
    path.write_bytes(raw)
    with pytest.raises(NumericsError, match=r"mlp\.down_proj\.weight.*no number"):
        Model.load(path)
    requantize(source, path, {"blk.0.attn_v.weight": "Q2_K"}, "Q8_0")
    with pytest.raises(FormatError, match=r"blk\.0\.attn_v\.weight has type q2_k"):
        Model.load(path)
