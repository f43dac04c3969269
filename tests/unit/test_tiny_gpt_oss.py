"""The tiny gpt-oss: one model in three forms, with all that sets gpt-oss apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer as Peer

from abi_train import chat, sample
from abi_train.cli import main
from abi_train.errors import ConfigError, FileAccessError
from abi_train.sample.tiny import CODES, WEIGHTS, TinyShape, expand, make_gpt_oss
from abi_train.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return {weights: make_gpt_oss(folder / weights, weights=weights) for weights in WEIGHTS}


def test_transformers_reads_the_same_model_from_each_form(made: dict[str, Path]) -> None:
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config

    logits, cut = [], []
    for weights, folder in made.items():
        how = {"quantization_config": Mxfp4Config(dequantize=True)} if weights == "mxfp4" else {}
        model, told = GptOssForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **how,
        )
        assert not any(told.values()), told
        experts = model.model.layers[0].mlp.experts
        seen = experts._apply_gate

        def watch(values: torch.Tensor, seen: object = seen) -> torch.Tensor:
            cut.append(int((values.abs() > 7).sum()))
            return seen(values)  # type: ignore[operator,no-any-return]

        experts._apply_gate = watch
        ids = (torch.arange(60) * 37 % 2021)[None]
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert float(logits[0].std()) > 0.5
    assert sum(cut) > 0, "no value is ever beyond the limit, so nothing would show a lost clamp"


def test_blocks_are_spelled_out_low_half_first() -> None:
    blocks = np.zeros((1, 1, 16), dtype=np.uint8)
    blocks[0, 0, 0] = 0x2F
    blocks[0, 0, 15] = 0x71
    values = expand(blocks, np.array([[128]], dtype=np.uint8))
    assert values.shape == (1, 32)
    assert values[0, :2].tolist() == [-12.0, 2.0]
    assert values[0, 30:].tolist() == [1.0, 12.0]
    assert np.array_equal(CODES[8:], -CODES[:8])


def test_the_ends_of_its_yarn_are_no_whole_numbers() -> None:
    config = TinyShape().config()
    scaling, d = config["rope_scaling"], config["head_dim"]
    for beta in (scaling["beta_fast"], scaling["beta_slow"]):
        turns = scaling["original_max_position_embeddings"] / (2 * math.pi * beta)
        place = d * math.log(turns) / (2 * math.log(config["rope_theta"]))
        assert 0.05 < place % 1 < 0.95, "rounding it would change nothing"
    assert scaling["truncate"] is False


def test_its_tokenizer_is_harmonys(made: dict[str, Path]) -> None:
    folder = made["mxfp4"]
    info = chat.format_info("harmony")
    template = (sample.HARMONY / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == info.jinja, "run tools/make_sample_tokenizer.py again"
    peer = Peer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    with Tokenizer.load(folder) as ours:
        assert ours.vocab_size == peer.get_vocab_size() == 2021 < config["vocab_size"]
        text = "I'M late, so it's 12345 <|start|>reasons<|call|>\n"
        assert (
            list(ours.encode(text, parse_special=True))
            == peer.encode(text, add_special_tokens=False).ids
        )
    for name in info.controls:
        assert peer.token_to_id(name) >= 2000
    assert peer.id_to_token(config["eos_token_id"]) == "<|return|>"
    assert peer.id_to_token(config["pad_token_id"]) == "<|endoftext|>"
    assert peer.id_to_token(config["bos_token_id"]) == "<|startoftext|>"
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert {peer.id_to_token(end) for end in ends} == {"<|return|>", "<|endoftext|>", "<|call|>"}


def test_the_seed_decides(tmp_path: Path, made: dict[str, Path]) -> None:
    again = make_gpt_oss(tmp_path / "again")
    other = make_gpt_oss(tmp_path / "other", seed=1)
    name = "model.safetensors"
    assert (again / name).read_bytes() == (made["mxfp4"] / name).read_bytes()
    assert (other / name).read_bytes() != (again / name).read_bytes()


def test_its_sizes_are_a_choice(tmp_path: Path) -> None:
    shape = TinyShape(layers=3, experts=8, experts_per_token=4, intermediate=32)
    tensors = load_file(make_gpt_oss(tmp_path / "m", shape=shape) / "model.safetensors")
    blocks = tensors["model.layers.2.mlp.experts.gate_up_proj_blocks"]
    assert list(blocks.shape) == [8, 64, 2, 16]
    assert list(tensors["model.layers.2.mlp.experts.down_proj_scales"].shape) == [8, 64, 1]
    assert shape.config()["layer_types"][1:] == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden": 48}, "hidden is 48; it must be a multiple of 32"),
        ({"experts_per_token": 5}, "experts_per_token is 5; there are 4 experts"),
        ({"layers": 0}, "layers is 0; it must be a whole number from 1"),
        ({"heads": 3}, "multiple of kv_heads"),
        ({"vocabulary": 64}, "the tokenizer has 2021 ids"),
    ],
)
def test_sizes_that_fit_no_gpt_oss_are_refused(values: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TinyShape(**values)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        make_gpt_oss(tmp_path)
    with pytest.raises(FileAccessError, match="cannot be written"):
        make_gpt_oss(tmp_path / "note")
    with pytest.raises(ConfigError, match="one of mxfp4, bf16, f32"):
        make_gpt_oss(tmp_path / "m", weights="q4_k_m")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int | str | None:
        with pytest.raises(SystemExit) as left:
            main(["init", *words])
        return left.value.code

    assert run("--tiny", "gpt-oss", "--weights", "bf16") == 0
    assert json.loads(Path("tiny-gpt-oss/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert run("--tiny", "gpt-oss") == 1
    assert "tiny-gpt-oss is not empty" in capsys.readouterr().err
    for words in (
        ["--tiny", "llama"],
        ["--weights", "f32"],
        ["--tiny", "gpt-oss", "--weights", "q8_0"],
        ["--tiny", "gpt-oss", "--recipe", "abbey-tiny"],
        ["--tiny", "gpt-oss", "--force"],
    ):
        assert run("m", *words) == 2, words
    assert not Path("m").exists()
