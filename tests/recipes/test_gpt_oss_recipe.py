"""The recipe of a tiny gpt-oss, from random weights to an answer: both engines, both ways out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_peer
import pytest
import torch
from safetensors.numpy import load_file

import abi_train
from abi_train import chat, recipes, sample
from abi_train.cli import main
from abi_train.tokenizer import Tokenizer

ABI = Path(abi_train.__file__).parent / "bin" / "abi"
NAME = "abbey-gpt-oss-tiny"
PHASES = ["base", "emotional", "reasoning", "calibration"]
SETTINGS = [
    "max_steps=3",
    "phases.base.rows=sample:base",
    "phases.reasoning.rows=sample:reasoning",
    "phases.base.max_steps=40",
    "phases.base.batch_size=8",
    "phases.base.warmup_steps=5",
    "batch_size=4",
    "warmup_steps=1",
    "eps=1e-4",  # a gradient that is nothing but rounding would move a weight by a whole step
    "threads=1",
    "evals=[]",
    "phases.emotional.eval_rows=null",
    "phases.emotional.eval_split=0.02",
]
ASKED = "I am late, so late."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, recipes.RecipeResult]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for engine in ("native", "trl"):
        folder = tmp_path_factory.mktemp(engine) / "run"
        recipe = recipes.load(NAME, settings=SETTINGS, engine=engine, run_dir=folder)
        found[engine] = recipes.run(recipe)
    torch.set_num_threads(before)
    yield found


@pytest.fixture(scope="module")
def exported(runs: dict[str, recipes.RecipeResult]) -> dict[str, Path]:
    files = {}
    for engine, result in runs.items():
        with pytest.raises(SystemExit) as left:
            main(["export", str(result.run_dir), "--gguf", "mxfp4_moe", "--name", "abbey"])
        assert left.value.code == 0
        files[engine] = result.run_dir / "abbey-mxfp4_moe.gguf"
    return files


def test_both_engines_go_through_the_phases_together(
    runs: dict[str, recipes.RecipeResult],
) -> None:
    native, trl = runs["native"], runs["trl"]
    assert list(native.checkpoints) == list(trl.checkpoints) == PHASES
    for name in PHASES:
        both = zip(native.results[name].history, trl.results[name].history, strict=True)
        for ours, theirs in both:
            assert ours.loss == pytest.approx(theirs.loss, abs=2e-5), (name, ours.step)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3), (name, ours.step)
            assert ours.learning_rate == theirs.learning_rate
    for result in runs.values():
        first, *_, last = result.results["base"].history
        assert last.loss < first.loss - 3
        assert result.results["calibration"].history[0].loss == pytest.approx(0.693147, abs=1e-5)
        weights = load_file(result.checkpoints["calibration"] / "adapter_model.safetensors")
        assert sum(".experts." in name for name in weights) == 2 * 4


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_its_export_keeps_experts_in_four_bits_and_is_verified(
    exported: dict[str, Path], engine: str
) -> None:
    path = exported[engine]
    opened = gguf.GGUFReader(path)
    types = {tensor.name: tensor.tensor_type.name for tensor in opened.tensors}
    for layer in (0, 1):
        for part in ("gate", "up", "down"):
            assert types[f"blk.{layer}.ffn_{part}_exps.weight"] == "MXFP4"
        assert types[f"blk.{layer}.attn_q.weight"] == "Q8_0"
        assert types[f"blk.{layer}.attn_sinks.weight"] == "F32"
        assert types[f"blk.{layer}.ffn_gate_inp.weight"] == "F32"
    assert "output.weight" in types
    fields = {name: field.contents() for name, field in opened.fields.items()}
    assert fields["general.architecture"] == "gpt-oss"
    assert fields["general.file_type"] == 38
    assert fields["tokenizer.ggml.pre"] == "gpt-4o"
    assert fields["tokenizer.chat_template"] == chat.format_info("harmony").jinja
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == 2048
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<|return|>"
    report = json.loads(path.with_suffix(".export.json").read_text())
    assert "pass" in json.dumps(report)


def test_the_hand_over_speaks_harmony(exported: dict[str, Path]) -> None:
    folder = exported["native"].parent
    modelfile = (folder / "Modelfile").read_text()
    assert "# Written by abi-train. Chat format: harmony." in modelfile
    assert any(text in modelfile for text in chat.format_info("harmony").go_template)
    for stop in ("<|return|>", "<|call|>"):
        assert f'PARAMETER stop "{stop}"' in modelfile
    assert 'stop "<|end|>"' not in modelfile, "it ends a message, not the answer"
    card = (folder / "README.md").read_text()
    assert "abbey-mxfp4_moe.gguf" in card and "mxfp4_moe" in card


def test_our_agent_answers_in_harmony_as_llama_cpp_does(exported: dict[str, Path]) -> None:
    """What our agent shows is the text of the channel `final`, and no word of the format."""
    path = exported["native"]
    command = [str(ABI), "agent", "--model", str(path), "--system", "", "-m", ASKED]
    command += ["--temperature", "0", "--repeat-penalty", "1", "--max-tokens", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    asked = {"messages": [{"role": "user", "content": ASKED}], "tools": None}
    (prompt,) = llama_peer.ask(path, [{"kind": "template", **asked}])
    assert prompt.endswith(f"{ASKED}<|end|><|start|>assistant")
    with Tokenizer.load(sample.HARMONY) as words:
        ids = [int(i) for i in words.encode(prompt, parse_special=True)]
        (greedy,) = llama_peer.ask(path, [{"kind": "greedy", "ids": ids, "count": 24}])
        told = words.decode(greedy, skip_special=False)
    head = "<|channel|>final<|message|>"
    assert told.startswith(head)
    assert "<|" not in done.stdout
    shown, said = done.stdout.split(), told.removeprefix(head).partition("<|")[0].split()
    # Both round what goes into a product, and little was learned: ids may part after some words.
    assert shown and shown[0] == said[0]


def test_the_tokenizer_of_the_sample_is_that_of_the_recipe() -> None:
    recipe = recipes.load(NAME)
    first = recipe.phases[0]
    assert first.spec.tokenizer == sample.HARMONY
    assert first.model_config is not None
    with Tokenizer.load(sample.HARMONY) as opened:
        assert opened.vocab_size < first.model_config["vocab_size"] == 2048
