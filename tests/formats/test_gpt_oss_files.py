"""gpt-oss between Hugging Face's folders and GGUF: blocks to the bit, both ways, and adapters."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_peer import ask
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from abi_train import Model, _native, quantize_gguf, unpack_gguf
from abi_train.errors import AbiTrainError, ConfigError
from abi_train.export import export_adapter_gguf, export_gguf
from abi_train.sample.tiny import WEIGHTS, TinyShape, expand, make_gpt_oss

SHAPE = TinyShape()
PLAIN: dict[str, Any] = {"verify": False, "modelfile": False, "card": False}
IDS = [(i * 37) % 2000 for i in range(60)]
ASKED = [{"kind": "logprobs", "ids": IDS, "vocab_size": SHAPE.vocabulary}]
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("gpt-oss")
    return {weights: make_gpt_oss(home / weights, weights=weights) for weights in WEIGHTS}


def exported(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    export_gguf(folder, output, **PLAIN, **options)
    return tensors_of(output)


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def repacked(codes: Any, scales: Any) -> Any:
    """GGUF's blocks of 17 bytes of Hugging Face's codes and scales, number by number."""
    numbers = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, 32)
    halves = numbers[..., :16] | (numbers[..., 16:] << 4)
    blocks = np.concatenate([scales[..., None], halves], axis=-1).astype(np.uint8)
    return blocks.reshape(*scales.shape[:-1], -1)


@pytest.mark.parametrize("mix", ["bf16", "mxfp4_moe", "q4_k_m"])
def test_every_block_of_the_folder_is_in_the_file(
    forms: dict[str, Path], tmp_path: Path, mix: str
) -> None:
    source = load_blocks(forms["mxfp4"])
    found = exported(forms["mxfp4"], tmp_path / "m.gguf", mix=mix)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    file_type = reader.get_field("general.file_type")
    assert file_type is not None and file_type.contents() == (15 if mix == "q4_k_m" else 38)
    for layer in range(SHAPE.layers):
        place = f"model.layers.{layer}.mlp.experts."
        for ours, theirs, rows in (
            ("gate", "gate_up_proj", slice(0, None, 2)),
            ("up", "gate_up_proj", slice(1, None, 2)),
            ("down", "down_proj", slice(None)),
        ):
            tensor = found[f"blk.{layer}.ffn_{ours}_exps.weight"]
            codes = source[f"{place}{theirs}_blocks"][:, rows]
            scales = source[f"{place}{theirs}_scales"][:, rows]
            assert tensor.tensor_type.name == "MXFP4"
            assert np.array_equal(tensor.data, repacked(codes, scales))
            numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(numbers, expand(codes, scales))
    for name, tensor in found.items():
        floats = ("_norm.weight", ".bias", "attn_sinks.weight", "ffn_gate_inp.weight")
        if name.endswith(floats):
            assert tensor.tensor_type.name == "F32", name
    assert "output.weight" in found


def test_each_form_gives_a_file_of_the_same_numbers(forms: dict[str, Path], tmp_path: Path) -> None:
    found = {
        weights: exported(folder, tmp_path / f"{weights}.gguf", mix="f32")
        for weights, folder in forms.items()
    }
    for name, tensor in found["f32"].items():
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for weights in ("mxfp4", "bf16"):
            other = found[weights][name]
            assert list(other.shape) == list(tensor.shape)
            got = gguf.quants.dequantize(other.data, other.tensor_type)
            assert np.array_equal(got, want), (weights, name)


def load_blocks(folder: Path) -> dict[str, Any]:
    """The tensors that NumPy has a type for: codes and scales."""
    with safe_open(folder / "model.safetensors", "np") as file:
        names = list(file.keys())
        return {n: file.get_tensor(n) for n in names if n.endswith(("_blocks", "_scales"))}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_from_a_folder_to_a_file_and_back_nothing_changes(
    forms: dict[str, Path], tmp_path: Path, program: Path, weights: str
) -> None:
    import torch

    mix = "f32" if weights == "f32" else "bf16"
    exported(forms[weights], tmp_path / "m.gguf", mix=mix)
    back = tmp_path / "back"
    done = run(program, "unpack", tmp_path / "m.gguf", back, "--dtype", mix, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    made = unpack_gguf(tmp_path / "m.gguf", tmp_path / "again", dtype=mix)
    assert (made.size_bytes, made.tensors) == (report["bytes"], report["tensors"])
    file = "model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (back / file).read_bytes()
    with pytest.raises(AbiTrainError, match='dtype is "q8_0"; it must be bf16'):
        unpack_gguf(tmp_path / "m.gguf", tmp_path / "new", dtype="q8_0")
    assert report["blocks"] == (2 * SHAPE.layers if weights == "mxfp4" else 0)
    with (
        safe_open(forms[weights] / "model.safetensors", "pt") as a,
        safe_open(back / "model.safetensors", "pt") as b,
    ):
        names = list(a.keys())
        assert set(names) == set(b.keys())
        assert report["tensors"] == len(names)
        for name in names:
            x, y = a.get_tensor(name), b.get_tensor(name)
            assert x.dtype == y.dtype and torch.equal(x, y), name


def test_transformers_opens_what_came_back(
    forms: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config

    exported(forms["mxfp4"], tmp_path / "m.gguf", mix="bf16")
    back = tmp_path / "back"
    tokenizer = ("--tokenizer", forms["mxfp4"])
    done = run(program, "unpack", tmp_path / "m.gguf", back, "--shard-size", "1M", *tokenizer)
    assert done.returncode == 0, done.stderr
    assert (back / "tokenizer.json").is_file()
    logits = []
    for folder in (forms["mxfp4"], back):
        model, told = GptOssForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
            output_loading_info=True,
        )
        assert not any(told.values()), told
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([IDS])).logits)
    assert torch.equal(logits[0], logits[1])


def test_a_mix_is_chosen_and_rounded_as_the_quantiser_does(tmp_path: Path) -> None:
    # Rows of 288 are no whole blocks of 256, rows of 256 are.
    shape = TinyShape(layers=3, hidden=288, intermediate=256, experts=8, vocabulary=2048)
    folder = make_gpt_oss(tmp_path / "m", weights="f32", shape=shape)
    whole = tmp_path / "whole.gguf"
    exported(folder, whole, mix="f32")
    kinds = set()
    for mix in ("q4_k_m", "q5_k_s", "q6_k", "q8_0", "q4_0", "mxfp4_moe"):
        ours = exported(folder, tmp_path / "ours.gguf", mix=mix)
        quantize_gguf(whole, tmp_path / "theirs.gguf", mix=mix)
        theirs = tensors_of(tmp_path / "theirs.gguf")
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert tensor.tensor_type == theirs[name].tensor_type, (mix, name)
            assert np.array_equal(tensor.data, theirs[name].data), (mix, name)
            kinds.add(tensor.tensor_type.name)
    assert {"Q4_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "MXFP4"} <= kinds


def test_llama_cpp_reads_the_files_and_says_the_same(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    said = {}
    for weights, mix in (("f32", "f32"), ("mxfp4", "f32"), ("mxfp4", "mxfp4_moe")):
        path = tmp_path / f"{weights}-{mix}.gguf"
        exported(forms[weights], path, mix=mix)
        said[weights, mix] = np.array(ask(path, ASKED)[0])
    spread = np.ptp(said["f32", "f32"])
    for key, limit in ((("mxfp4", "f32"), 0.02), (("mxfp4", "mxfp4_moe"), 0.04)):
        away = np.abs(said[key] - said["f32", "f32"]).max() / spread
        assert away < limit, (key, away)  # it rounds activations to 8 bits in front of blocks


def make_adapter(folder: Path, base: Path, *, still: tuple[int, ...] = ()) -> Path:
    """PEFT's files of an adapter on q, o and all experts but the B of those that are `still`."""
    folder.mkdir()
    rank, e = 4, SHAPE.experts
    draw = np.random.default_rng(3)
    wide = SHAPE.heads * SHAPE.head_dim
    modules = {
        "mlp.experts.base_layer": (SHAPE.hidden, 2 * SHAPE.intermediate, e),
        "mlp.experts": (SHAPE.intermediate, SHAPE.hidden, e),
        "self_attn.q_proj": (SHAPE.hidden, wide, 1),
        "self_attn.o_proj": (wide, SHAPE.hidden, 1),
    }
    values = {}
    for layer in range(SHAPE.layers):
        for module, (into, out, count) in modules.items():
            place = f"base_model.model.model.layers.{layer}.{module}.lora_"
            a = draw.normal(size=(rank * count, into)) * 0.1
            b = draw.normal(size=(out, rank, count)) * 0.1
            if count > 1:
                b[:, :, list(still)] = 0
            values[f"{place}A.weight"] = a.astype(np.float32)
            values[f"{place}B.weight"] = b.reshape(out, -1).astype(np.float32)
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": list(EXPERTS),
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_of_experts_is_the_merged_model_to_llama_cpp_and_comes_back(
    forms: dict[str, Path], tmp_path: Path, program: Path
) -> None:
    from peft import LoraConfig

    base = forms["f32"]
    adapter = make_adapter(tmp_path / "adapter", base)
    export_adapter_gguf(adapter, tmp_path / "adapter.gguf", model=base)
    exported(base, tmp_path / "base.gguf", mix="f32")
    exported(base, tmp_path / "merged.gguf", mix="f32", adapter=adapter, tokenizer=base)
    merged = np.array(ask(tmp_path / "merged.gguf", ASKED)[0])
    beside = np.array(ask(tmp_path / "base.gguf", ASKED, adapter=tmp_path / "adapter.gguf")[0])
    alone = np.array(ask(tmp_path / "base.gguf", ASKED)[0])
    assert np.abs(merged - beside).max() <= 1e-5
    assert np.abs(merged - alone).max() > 0.1

    made = unpack_gguf(tmp_path / "adapter.gguf", tmp_path / "back", model=base)
    assert made.tensors == 8 * SHAPE.layers
    done = run(program, "unpack", tmp_path / "adapter.gguf", tmp_path / "again", "--model", base)
    assert done.returncode == 0, done.stderr
    file = "adapter_model.safetensors"
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    with pytest.raises(AbiTrainError, match="is an adapter: name its base"):
        unpack_gguf(tmp_path / "adapter.gguf", tmp_path / "new")
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    settings = LoraConfig.from_pretrained(str(tmp_path / "back"))
    assert settings.target_parameters == list(EXPERTS)
    assert settings.r == 4 and settings.lora_alpha == 8
    assert set(settings.target_modules or ()) == {"q_proj", "o_proj"}


def test_an_adapter_leaves_the_blocks_of_experts_that_it_does_not_change(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    base = forms["mxfp4"]
    adapter = make_adapter(tmp_path / "adapter", base, still=(1, 3))
    before = exported(base, tmp_path / "base.gguf", mix="mxfp4_moe")
    after = exported(base, tmp_path / "m.gguf", mix="mxfp4_moe", adapter=adapter, tokenizer=base)
    for layer in range(SHAPE.layers):
        for kind in ("gate", "up", "down"):
            x, y = (found[f"blk.{layer}.ffn_{kind}_exps.weight"] for found in (before, after))
            assert y.tensor_type.name == "MXFP4"
            same = [np.array_equal(x.data[e], y.data[e]) for e in range(SHAPE.experts)]
            assert same == [False, True, False, True]


def test_changed_experts_may_be_kept_as_bf16_or_all_be_expanded(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    base = forms["mxfp4"]
    adapter = make_adapter(tmp_path / "adapter", base, still=(0, 1, 2, 3))
    options: dict[str, Any] = {"adapter": adapter, "tokenizer": base}
    kept = exported(base, tmp_path / "same.gguf", experts="changed_as_bf16", **options)
    assert kept["blk.0.ffn_up_exps.weight"].tensor_type.name == "MXFP4"  # none was changed
    shutil.rmtree(adapter)
    make_adapter(adapter, base, still=(1, 3))
    path = tmp_path / "bf16.gguf"
    found = exported(base, path, experts="changed_as_bf16", **options)
    predicted = _native.export.gguf_size(base, path, experts="changed_as_bf16", adapter=adapter)
    assert predicted == path.stat().st_size
    exact = exported(base, tmp_path / "exact.gguf", mix="f32", experts="expand", **options)
    for layer in range(SHAPE.layers):
        for kind in ("gate", "up", "down"):
            name = f"blk.{layer}.ffn_{kind}_exps.weight"
            assert found[name].tensor_type.name == "BF16"
            assert exact[name].tensor_type.name == "F32"
            got = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
            want = exact[name].data
            assert np.array_equal(got[[1, 3]], want[[1, 3]])
            assert np.abs(got - want).max() <= np.abs(want).max() * 2.0**-8
    with pytest.raises(ConfigError, match="experts is 'gone'; it must be one of keep"):
        export_gguf(base, tmp_path / "m.gguf", experts="gone", **PLAIN)


def test_what_is_written_says_what_the_trained_model_says(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    base = forms["mxfp4"]
    adapter = make_adapter(tmp_path / "adapter", base, still=(0,))
    options: dict[str, Any] = {**PLAIN, "verify": True, "adapter": adapter, "tokenizer": base}
    for how, agrees in (("keep", 0.3), ("changed_as_bf16", 0.98)):
        path = tmp_path / f"{how}.gguf"
        found = export_gguf(base, path, mix="bf16", experts=how, **options).verification
        assert found is not None and found.verdict == "pass", found
        assert found.format.how == "copy" and found.format.distance.relative < 1e-5
        assert found.exported.same_choice > agrees


def test_file_and_folder_are_one_model_to_the_trainer(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    exported(forms["mxfp4"], tmp_path / "m.gguf", mix="bf16")
    said = []
    for path in (forms["mxfp4"], tmp_path / "m.gguf", forms["bf16"]):
        for dtype in ("stored", "float32"):
            with Model.load(path, dtype=dtype) as model:
                said.append(np.asarray(model.logits(IDS, first=0)))
    for other in said[1:]:
        np.testing.assert_allclose(other, said[0], rtol=0, atol=1e-5)


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A damage to config.json."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return damage


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A damage to the tensors."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = dict(load_file(path))
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def scale_of_255(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.experts.down_proj_scales"][2, 5, 1] = 255


def turned(tensors: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    tensors[name] = tensors[name].transpose(1, 2).contiguous()


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "expert count": (edited(lambda c: c.update(num_local_experts=8)), r"shape .* asks for .*8"),
    "top-k": (
        edited(lambda c: c.update(num_experts_per_tok=5)),
        r"num_experts_per_tok is 5; .* num_local_experts \(4\)",
    ),
    "window 0": (edited(lambda c: c.update(sliding_window=0)), "sliding_window is 0"),
    "limit": (edited(lambda c: c.update(swiglu_limit=6.0)), "swiglu_limit is 6"),
    "another quantisation": (
        edited(lambda c: c.update(quantization_config={"quant_method": "gptq"})),
        'quant_method "gptq"',
    ),
    "scale": (changed(scale_of_255), "down_proj has a value that is not finite"),
    "shape": (changed(turned), r"gate_up_proj_blocks.* has shape .* config.json asks for"),
    "sinks": (
        changed(lambda t: t.pop("model.layers.1.self_attn.sinks")),
        "model.layers.1.self_attn.sinks is in none",
    ),
    "bias": (
        changed(lambda t: t.pop("model.layers.0.mlp.experts.down_proj_bias")),
        "down_proj_bias is in none",
    ),
    "scales": (
        changed(lambda t: t.pop("model.layers.0.mlp.experts.gate_up_proj_scales")),
        "gate_up_proj_scales is in none",
    ),
    "blocks": (
        changed(lambda t: t.pop("model.layers.0.mlp.experts.gate_up_proj_blocks")),
        "gate_up_proj_blocks is in none",
    ),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_a_damaged_folder_is_refused_by_name_and_nothing_is_written(
    forms: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    damage, words = BAD[fault]
    folder = tmp_path / "m"
    shutil.copytree(forms["mxfp4"], folder)
    damage(folder)
    with pytest.raises(AbiTrainError, match=words):
        export_gguf(folder, tmp_path / "m.gguf", mix="mxfp4_moe", **PLAIN)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.gguf", "m"], "exists already"),
        (["m.gguf", "new", "--dtype", "q8_0"], "must be bf16, f16 or f32"),
        (["m.gguf", "new", "--shard-size", "5"], "must be a number with M or G"),
        (["m.gguf", "new", "--model", "m"], "naming a model is for adapters"),
        (["gone.gguf", "new"], "gone.gguf"),
        (["m", "new"], "m"),
        (["cut.gguf", "new"], "cut.gguf"),
        (["m.gguf"], "name the file and the folder"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_and_leaves_nothing(
    forms: dict[str, Path], tmp_path: Path, program: Path, arguments: list[str], words: str
) -> None:
    exported(forms["mxfp4"], tmp_path / "m.gguf", mix="bf16")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-40])
    (tmp_path / "m").mkdir()
    done = subprocess.run(
        [program, "unpack", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr and "panic" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "cut.gguf", "m"}
