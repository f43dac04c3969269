"""Both engines give a model the same scores, and the native ones are those of a definition."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from abi_train import (
    Generator,
    LoraConfig,
    Model,
    _native,
    create_adapter,
    evaluate,
    export_gguf,
    sample,
)
from abi_train.cli import main
from abi_train.errors import ArgumentError, CheckpointError, ConfigError, FormatError, NumericsError
from abi_train.evaluate.opening import opened

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agent"))
from tiny_gguf import SHAPES, forward, write_tiny_gguf

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 160,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "vocab_size": 2048,
    "initializer_range": 0.2,
}
TASKS = ("emotion", "answers", "calibration")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the sample's tokenizer: random, and sure enough to have preferences."""
    home = tmp_path_factory.mktemp("evaluated") / "model"
    with Model.random(CONFIG, seed=3) as model:
        model.save(home)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample.TOKENIZER / name, home / name)
    return home


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    return export_gguf(folder, folder.parent / "model.gguf", dtype="f32", modelfile=False).path


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_native_log_probabilities_are_those_of_the_definition(tmp_path: Path, shape: str) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", SHAPES[shape])
    ids = np.random.default_rng(5).integers(0, 256, 170)
    logits = forward(model, [int(i) for i in ids])
    largest = logits.max(axis=1, keepdims=True)
    logs = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    expected = np.array([logs[i, ids[i + 1]] for i in range(ids.size - 1)])
    best = np.array([logits[i].argmax() == ids[i + 1] for i in range(ids.size - 1)])
    with Generator.open(tmp_path / "m.gguf") as generator:
        for first in (1, 2, 130, 169):
            found, likeliest = generator.log_probs(ids, first=first)
            assert np.abs(found - expected[first - 1 :]).max() < 1e-4
            assert (likeliest == best[first - 1 :]).all()
        # What an answer left in the cache changes nothing.
        prompt, ends = ids[:50], [ids[50:53], ids[60:61], ids[50:52]]
        list(generator.generate(ids[:55], max_new_tokens=3))
        scores = generator.score(prompt, ends)
        assert scores[0] == pytest.approx(expected[49:52].sum(), abs=1e-4)
        assert scores[2] == pytest.approx(expected[49:51].sum(), abs=1e-4)
        assert scores[1] == pytest.approx(logs[49, ids[60]], abs=1e-4)
        with pytest.raises(ArgumentError, match="nothing was started"):
            _native.generator.logits(generator.native)


def test_wrong_scoring_calls_are_refused_and_change_nothing(gguf: Path) -> None:
    with Generator.open(gguf) as generator:
        before, _ = generator.log_probs([1, 2, 3])
        for ids, first, said in [
            ([1, 2], 0, "first is 0 of 2 ids"),
            ([1, 2], 2, "first is 2 of 2 ids"),
            ([], 1, "first is 1 of 0 ids"),
            ([1, 5000], 1, "not below the model's vocabulary of 2048"),
            ([5000, 1], 1, "not below the model's vocabulary of 2048"),
            ([1] * 162, 1, "there are 161 ids before the last, the context has 160"),
        ]:
            with pytest.raises(ArgumentError, match=said):
                generator.log_probs(ids, first=first)
        with pytest.raises(ArgumentError, match="a continuation has no ids"):
            generator.score([1], [[]])
        with pytest.raises(ArgumentError, match="the prompt has no ids"):
            generator.score([], [[1]])
        values, _ = generator.log_probs([1] * 161)
        assert values.size == 160
        assert (generator.log_probs([1, 2, 3])[0] == before).all()


def test_both_engines_give_the_same_likelihoods_and_the_same_answers(
    folder: Path, gguf: Path
) -> None:
    rows = [json.loads(line) for line in sample.held_out("emotional").read_text().splitlines()[:12]]
    asked = [
        (f"row {at}", [{"role": "user", "content": row["instruction"]}], ["anxious", "I can't"])
        for at, row in enumerate(rows)
    ]
    found: dict[str, Any] = {}
    for name, model, engine in (
        ("file", gguf, "native"),
        ("exported", folder, "native"),
        ("torch", folder, "torch"),
    ):
        with opened(model, engine=engine, threads=1) as scorer:
            assert scorer.runner.engine == engine
            whole = scorer.log_likelihoods(asked, whole=True)
            begun = scorer.log_likelihoods(asked, whole=False)
            turns = [(place, turns) for place, turns, _ in asked]
            found[name] = (whole, begun, list(scorer.answers(turns, max_new_tokens=12)))
    assert found["file"] == found["exported"]
    for at in (0, 1):
        ours, theirs = np.array(found["file"][at]), np.array(found["torch"][at])
        assert np.abs(ours - theirs).max() < 1e-4
        assert ours.std() > 0.1
    assert found["file"][2] == found["torch"][2]
    # An answer and no more is less likely than all that begins so.
    assert (np.array(found["file"][0]) < np.array(found["file"][1])).all()


def test_the_reports_of_both_engines_agree(folder: Path, gguf: Path) -> None:
    options: dict[str, Any] = {"limit": 8, "max_new_tokens": 8, "threads": 1}
    native = evaluate.run(gguf, TASKS, **options)
    torch = evaluate.run(folder, TASKS, engine="torch", **options)
    assert (native.engine, torch.engine) == ("native", "torch")
    assert set(native.scores) == set(TASKS)
    for task, scores in native.scores.items():
        assert scores["rows"] == 8
        assert scores == pytest.approx(torch.scores[task], abs=1e-4), task
    assert native.details["emotion"]["confusion"] == torch.details["emotion"]["confusion"]


def test_perplexity_of_text_rows_and_tokens_agrees_with_both_engines(
    folder: Path, gguf: Path, tmp_path: Path
) -> None:
    from abi_train import prepare

    text = tmp_path / "a.md"
    text.write_text("Tom has 3 apples, and Anna has 4 pens. " * 20, encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    lines = sample.held_out("reasoning").read_text(encoding="utf-8").splitlines()[:9]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare([rows], folder, tmp_path / "rows.bin", max_seq_len=128)
    tasks = [f"perplexity:{path}" for path in (text, rows, tmp_path / "rows.bin")]
    native = evaluate.run(gguf, tasks).scores
    torch = evaluate.run(folder, tasks, engine="torch", threads=1).scores
    for task in tasks:
        assert native[task] == pytest.approx(torch[task], rel=1e-5), task
    # Rows and the token file made of them are the same tokens with the same loss.
    assert native[tasks[1]] == native[tasks[2]]
    assert native[tasks[0]]["perplexity"] > 1


def test_an_adapter_is_evaluated_on_its_model_by_both_engines(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    lora = LoraConfig(r=4, lora_alpha=64)
    with Model.load(folder) as model:
        create_adapter(model, lora, adapter, seed=1, base_name=str(folder))
    file = adapter / "adapter_model.safetensors"
    random_ = np.random.default_rng(0)
    tensors = {
        name: random_.normal(0, 0.1, values.shape).astype(np.float32)
        for name, values in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    native = evaluate.run(adapter, ["emotion"], engine="native", limit=8)
    torch = evaluate.run(adapter, ["emotion"], engine="torch", limit=8, threads=1)
    alone = evaluate.run(folder, ["emotion"], engine="native", limit=8)
    assert native.details["emotion"]["confusion"] == torch.details["emotion"]["confusion"]
    assert native.details["emotion"]["confusion"] != alone.details["emotion"]["confusion"]


def test_weights_that_are_not_numbers_are_named_by_both_engines(
    folder: Path, gguf: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    file = shutil.copy(gguf, tmp_path / "broken.gguf")
    reader = GGUFReader(file, "r+")
    next(t for t in reader.tensors if t.name == "output_norm.weight").data[3] = np.nan
    reader.data.flush()
    for model, engine in ((Path(file), "native"), (broken, "torch")):
        for task in ("emotion", "answers", f"perplexity:{sample.held_out('reasoning')}"):
            with pytest.raises(NumericsError, match="logits are not numbers"):
                evaluate.run(model, [task], engine=engine, limit=2)
    with pytest.raises(FormatError, match=r"model\.norm.weight has a value that is not finite"):
        evaluate.run(broken, ["emotion"], engine="native", limit=2)


def test_a_model_only_torch_knows_says_so(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))
    with pytest.raises(FormatError, match=r'"gemma2" is not supported natively.*--engine torch'):
        evaluate.run(other, ["emotion"], engine="native")


def test_weights_that_are_not_whole_or_do_not_fit_are_named_by_torch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, settings = "model.safetensors", "config.json"
    whole = (folder / weights).read_bytes()
    config = json.loads((folder / settings).read_text())
    layers = json.dumps({**config, "num_hidden_layers": 3}).encode()
    narrow = json.dumps({**config, "intermediate_size": 96}).encode()
    for number, (name, content, said) in enumerate(
        (
            (weights, whole[:5000], "model.safetensors: damaged, or not whole"),
            (weights, b"x" * 100, "model.safetensors: damaged, or not whole"),
            (weights, b"", "model.safetensors: damaged, or not whole"),
            (settings, layers, 'tensor "model.layers.2.input_layernorm.weight"'),
            (settings, narrow, "is [64, 128] in the file, and [64, 96] as config.json has it"),
        )
    ):
        broken = tmp_path / str(number)
        shutil.copytree(folder, broken)
        (broken / name).write_bytes(content)
        assert call("eval", broken, "--task", "emotion", "--engine", "torch", "--limit", 1) == 1
        shown = " ".join(capsys.readouterr().err.split())
        assert said in shown and "unexpected" not in shown and "ignore_mis" not in shown
    adapter = tmp_path / "adapter"
    with Model.load(folder) as model:
        lora = LoraConfig(r=2, target_modules=("q_proj",))
        create_adapter(model, lora, adapter, seed=1, base_name=str(folder))
    file = adapter / "adapter_model.safetensors"
    for content, said in (
        (file.read_bytes()[:2000], "adapter_model.safetensors: damaged, or not whole"),
        (None, "adapter_model.safetensors is missing"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises((CheckpointError, FormatError), match=said):
            evaluate.run(adapter, ["emotion"], engine="torch", limit=1)


def test_a_model_without_chat_format_or_tokenizer_says_what_to_do(
    folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has no chat format, .* name one with --chat-format"):
        evaluate.run(bare, ["emotion"], engine="native", limit=1)
    with_format = evaluate.run(bare, ["emotion"], engine="native", limit=3, chat_format="chatml")
    assert with_format.scores["emotion"]["rows"] == 3
    (bare / "tokenizer.json").unlink()
    for engine in ("native", "torch"):
        with pytest.raises(FormatError, match=r"no tokenizer\.json"):
            evaluate.run(bare, ["emotion"], engine=engine, limit=1)


def call(*arguments: str | int | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_command_evaluates_compares_and_writes(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "before.json"
    common = ["--limit", "3", "--max-new-tokens", "4"]
    assert call("eval", gguf, "--output", report, "--json", *common) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["scores"]) == set(TASKS)
    assert evaluate.EvalReport.load(report).scores == told["scores"]
    assert call("eval", gguf, "--task", "emotion,answers", "--compare", report, *common) == 0
    shown = capsys.readouterr().out
    assert "before" in shown and "after" in shown and "(=)" in shown
    assert call("eval", gguf, "--task", "emotoin") == 2
    assert "did you mean emotion?" in " ".join(capsys.readouterr().err.split())
    assert call("eval", tmp_path / "none.gguf") == 1
    assert "no such file or folder" in capsys.readouterr().err
