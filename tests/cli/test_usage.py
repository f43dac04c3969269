"""Whose mistake it was: exit code 2 for the command line, 1 for a file, and both name the place."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from tiny_tokenizers import make_tokenizer

from abi_train import LlmTrainingConfig, Model, RunSpec
from abi_train.checkpoint import write_bytes_atomic
from abi_train.cli import main
from abi_train.config import read_document, unknown_key
from abi_train.errors import ConfigError
from abi_train.progress import JsonlLog

TRAIN = ["train", "--model", "m", "--data", "d", "--run-dir", "r"]
RECIPE = "model: m\ndata: d\nrun_dir: r\n"


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TRAIN, "--precision", "x"], 'precision is "x"; it must be one of auto'),
        ([*TRAIN, "--engine", "x"], 'engine is "x"; it must be one of native, trl'),
        ([*TRAIN, "--set", "epochs"], "write NAME=VALUE"),
        ([*TRAIN, "--set", "epochs=[1"], "--set epochs=[1"),
        ([*TRAIN, "--set", "nosuch=1"], "'nosuch' is not a key"),
        ([*TRAIN, "--method", "qlora"], 'method is "qlora"; it must be one of full, lora'),
        ([*TRAIN, "--objective", "ppo"], 'objective is "ppo"; it must be one of sft, dpo'),
        ([*TRAIN, "--set", "lora.rank=4"], "'rank' is not a key of the table lora"),
        ([*TRAIN, "--set", "lora.r=0"], "lora.r is 0; it must be at least 1"),
        ([*TRAIN, "--set", "dpo.beta=-1"], "dpo.beta is -1.0; it must be a finite number above 0"),
        ([*TRAIN, "--method", "full", "--set", "lora.r=4"], "the table lora needs method: lora"),
        ([*TRAIN, "--set", "epochs=99999999999999999999"], "it must be at most 4294967295"),
        (["export", "folder", "--dtype", "q3_k"], "--dtype is 'q3_k'; it must be one of f32"),
        (["export", "folder", "--output", "a.bin"], "the name must end in .gguf"),
        (["chat"], "name a GGUF file"),
        (
            ["data", "prepare", "a.jsonl", "--tokenizer", "t", "--chat-format", "nope"],
            "--chat-format is 'nope'; it must be one of abbey",
        ),
        (
            ["data", "prepare", "a.jsonl", "--tokenizer", "t", "--eval-fraction", "nan"],
            "--eval-fraction is nan; it must be 0 to 0.99",
        ),
    ],
)
def test_a_wrong_command_line_is_code_two(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ABI_OLLAMA_MODEL", raising=False)
    assert call(*arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: d\nrun_dir: r\n", "model is missing; a recipe needs model, data and run_dir"),
        (RECIPE + "run_dirr: r\n", "'run_dirr' is not a key of a recipe; did you mean 'run_dir'?"),
        (RECIPE + "training:\n  epochs: [1]\n", "epochs is [1]; it must be a whole number"),
        (RECIPE + "model: n\n", "'model' is given twice, again in line 4; keep one"),
        (
            RECIPE + "training:\n  epochs: 1\n  seed: 2\n  epochs: 3\n",
            "'epochs' is given twice, again in line 7; keep one",
        ),
    ],
)
def test_a_fault_of_a_recipe_names_its_file(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    assert call("train", recipe) == 1
    assert capsys.readouterr().err == f"error: {recipe}: {said}\n"


def test_a_configuration_file_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"epochs": 1, "epochs": 2}')
    with pytest.raises(ConfigError) as caught:
        LlmTrainingConfig.load(path)
    assert str(caught.value) == f"{path}: 'epochs' is given twice; keep one"
    path.write_text('{"epochs": 0}')
    with pytest.raises(ConfigError) as caught:
        LlmTrainingConfig.load(path)
    assert str(caught.value).startswith(f"{path}: epochs is 0")
    path.write_text("{}")
    with pytest.raises(ConfigError) as caught:
        RunSpec.load(path)
    assert str(caught.value).startswith(f"{path}: model is missing")
    assert read_document(path) == {}


def test_only_a_near_key_is_suggested() -> None:
    known = ["epochs", "learning_rate", "seed"]
    assert "did you mean" not in str(unknown_key("nosuch", known, "the table"))
    assert "did you mean 'epochs'?" in str(unknown_key("epoch", known, "the table"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "llama"}', 'has no "'),
        ('{"a":', "not valid JSON"),
        (json.dumps({"model_type": "llama", "vocab_size": -1}), ""),
    ],
)
def test_a_model_configuration_goes_by_its_own_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cfg.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Model.random(path, seed=1)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "config.json" not in str(caught.value)


def test_a_command_to_type_next_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sp äc e"
    folder.mkdir()
    assert call("chat", folder) == 1
    assert f"abi-train export '{folder}'" in capsys.readouterr().err


def test_a_full_disk_names_the_file_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        log = JsonlLog(Path("/dev/full"))
        log.on_note("text")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_bytes_atomic(tmp_path / "run.json", b"{}")
    assert caught.value.filename == str(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that refuses reads")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rows.jsonl", ["data", "prepare", "rows.jsonl", "--tokenizer", "{tokenizer}"]),
        ("cfg.json", ["train", "--model", "cfg.json", "--data", "d.bin", "--run-dir", "r"]),
        ("r.yaml", ["train", "r.yaml"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", vocab_size=300)
    (tmp_path / name).symlink_to("/proc/self/mem")
    (tmp_path / "d.bin").touch()
    monkeypatch.chdir(tmp_path)
    assert call(*(word.format(tokenizer=tokenizer) for word in arguments)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name}: cannot be read")
    assert "input/output error" in said.lower()
    assert said.count("\n") == 1
