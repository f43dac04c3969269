"""Mixes: each tensor has the type llama.cpp's quantiser gives it, and ggml's bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggml_quants import quantize
from quantised_models import MODELS, numbers, write_model
from safetensors.numpy import load_file, save_file
from tiny_models import make_tiny_model

from abi_train import Model, _native
from abi_train.adapters import LoraConfig, create_adapter, merge_adapter
from abi_train.errors import AbiTrainError, ConfigError
from abi_train.export import MIXES, export_gguf

FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "bf16": 32,
    "mxfp4_moe": 38,
}


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = str(request.param)
    folder = write_model(tmp_path_factory.mktemp("mixes") / kind, kind)
    _native.export.gguf(folder, folder / "f32.gguf", dtype="f32", without_tokenizer=True)
    return folder


def expected(mix: str, name: str, columns: int, layers: int, tied: bool) -> str:
    """The table of llama.cpp's quantiser for dense models, written down once more."""
    base = {"mxfp4_moe": "Q8_0"}.get(mix, mix.upper().removesuffix("_M").removesuffix("_S"))
    if base in ("F32", "F16", "BF16"):
        return base
    wanted = base
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        odd = columns % (256 if base.endswith("K") else 32) != 0
        wanted = "Q8_0" if base == "Q8_0" or odd else "Q6_K"
    elif name.endswith(("attn_v.weight", "ffn_down.weight")):
        few = layer < 4 if "attn_v" in name else layer < eighth
        if mix in ("q4_k_m", "q5_k_m") and more:
            wanted = "Q6_K"
        elif mix == "q4_k_s" and few:
            wanted = "Q5_K"
    if columns % 256 and wanted.endswith("K"):
        wanted = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}[wanted]
    return wanted


@pytest.mark.parametrize("mix", MIXES)
def test_each_tensor_has_llama_cpps_type_and_ggmls_bytes(
    folder: Path, tmp_path: Path, mix: str
) -> None:
    path = tmp_path / "mix.gguf"
    size, _ = _native.export.gguf(folder, path, mix=mix, without_tokenizer=True)
    predicted = _native.export.gguf_size(folder, path, mix=mix, without_tokenizer=True)
    assert path.stat().st_size == size == predicted
    reader = gguf.GGUFReader(path)
    file_type = reader.get_field("general.file_type")
    assert file_type is not None and file_type.contents() == FILE_TYPES[mix]
    version = reader.get_field("general.quantization_version")
    assert (version is None) == (mix in ("f32", "f16", "bf16"))
    floats = {t.name: t for t in gguf.GGUFReader(folder / "f32.gguf").tensors}
    assert len(reader.tensors) == len(floats)
    names = set(floats)
    layers = max(int(name.split(".")[1]) for name in names if name.startswith("blk.")) + 1
    kinds = set()
    for tensor in reader.tensors:
        values: Any = floats[tensor.name].data
        if values.ndim == 1:
            assert tensor.tensor_type.name == "F32", tensor.name
            continue
        want = expected(mix, tensor.name, values.shape[1], layers, "output.weight" not in names)
        assert tensor.tensor_type.name == want, tensor.name
        kinds.add(want)
        bytes_of_ggml = values.view(np.uint8) if want == "F32" else quantize(values, want)
        ours = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(bytes_of_ggml.shape)
        assert np.array_equal(ours, bytes_of_ggml), tensor.name
    if mix in ("q4_k_m", "q5_k_m"):
        assert len(kinds) > 1


def test_names_of_mixes_are_checked_and_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mix is 'q4_k_l'; .*q4_k_m"):
        export_gguf(folder, tmp_path / "m.gguf", mix="Q4_K_L")
    with pytest.raises(AbiTrainError, match=r'mix is "q9"; it must be f32, .* or mxfp4_moe'):
        _native.export.gguf(folder, tmp_path / "m.gguf", mix="q9")
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_added_on_the_way_with_the_bits_of_merging_first(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", "llama_gqa_untied", hidden_size=256)
    lora = LoraConfig(r=4, target_modules=("q_proj", "down_proj", "lm_head"))
    with Model.load(base) as model:
        adapter = create_adapter(model, lora, tmp_path / "adapter", seed=1)
    file = adapter / "adapter_model.safetensors"
    values = load_file(file)
    for name in values:  # B begins as zeros.
        values[name] = numbers(name, values[name].shape) * np.float32(0.1)
    save_file(values, file, metadata={"format": "pt"})
    merged = merge_adapter(base, adapter, tmp_path / "merged", tokenizer_dir=base)
    options: dict[str, Any] = {"mix": "q4_k_m", "name": "m", "modelfile": False, "card": False}
    first = export_gguf(merged, tmp_path / "first.gguf", **options)
    once = export_gguf(base, tmp_path / "once.gguf", adapter=adapter, **options)
    plain = export_gguf(base, tmp_path / "plain.gguf", **options)
    assert once.path.read_bytes() == first.path.read_bytes()
    assert once.path.read_bytes() != plain.path.read_bytes()


def test_an_adapter_that_would_part_head_and_embedding_is_refused(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", "llama_tied")
    lora = LoraConfig(r=4, target_modules=("lm_head",))
    with Model.load(base) as model:
        adapter = create_adapter(model, lora, tmp_path / "adapter", seed=1)
    with pytest.raises(ConfigError, match=r"one matrix for both\. Merge it"):
        export_gguf(base, tmp_path / "m.gguf", adapter=adapter)
    assert not (tmp_path / "m.gguf").exists()
