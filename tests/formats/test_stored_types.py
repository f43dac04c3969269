"""Every stored type means what it means to ggml: bytes by its quantisers, numbers by ``gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggml_quants import requantize
from tiny_models import make_tiny_model

from abi_train import Model, _native
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
