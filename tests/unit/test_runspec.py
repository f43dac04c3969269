"""Recipes, checkpoint folders, and the line a person watches."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from abi_train import checkpoint as folders
from abi_train.config import LlmTrainingConfig
from abi_train.errors import CheckpointError, ConfigError
from abi_train.progress import JsonlLog, TrainingLine, short_count, short_power, short_time
from abi_train.runspec import RunResult, RunSpec, StepRecord


def spec(folder: Path, **changes: Any) -> RunSpec:
    return RunSpec(model=folder / "m", data=folder / "d.bin", run_dir=folder / "r", **changes)


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=2.113,
        grad_norm=0.81,
        learning_rate=2.9e-4,
        epoch=0.5,
        accuracy=0.4,
        tokens=100,
        tokens_per_second=12400.0,
    )


@pytest.mark.parametrize("ending", ["yaml", "json", "toml"])
def test_a_recipe_gives_back_the_same_run(tmp_path: Path, ending: str) -> None:
    config = LlmTrainingConfig(epochs=2, checkpoint_path=str(tmp_path / "x"))
    whole = spec(tmp_path, config=config, engine="trl", eval_data=tmp_path / "e.bin")
    assert RunSpec.load(whole.save(tmp_path / f"r.{ending}")) == whole


def test_relative_paths_are_taken_from_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "r.yaml"
    path.parent.mkdir()
    path.write_text(
        "model: m\ndata: d.bin\nrun_dir: /abs\n"
        "training:\n  export_gguf_path: m.gguf\n  output_dir: /elsewhere\n"
    )
    found = RunSpec.load(path)
    assert found.model == tmp_path / "sub" / "m"
    assert found.run_dir == Path("/abs")
    assert found.config.export_gguf_path == str(tmp_path / "sub" / "m.gguf")
    assert found.checkpoint_dir == Path("/elsewhere")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model is missing"),
        ({"model": "m", "data": "d", "run_dir": "r", "engin": "trl"}, "did you mean 'engine'"),
        ({"model": "m", "data": "d", "run_dir": "r", "engine": "cuda"}, "native, trl"),
        ({"model": "m", "data": "d", "run_dir": "r", "training": 3}, "table of training"),
        (
            {
                "model": "m",
                "data": "d",
                "run_dir": "r",
                "precision": "float32",
                "training": {"bf16": True},
            },
            "with mixed_precision it must be auto or bf16",
        ),
        ({"model": 3, "data": "d", "run_dir": "r"}, "model is 3; it must be a path"),
        ({"model": "m", "data": "d", "run_dir": "r", "training": {"epochs": 0}}, "epochs is 0"),
    ],
)
def test_a_wrong_recipe_is_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunSpec.from_dict(values)
    assert message in str(caught.value)


def test_paths_of_the_wrong_kind_are_named_before_anything_waits_on_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "m").mkdir()
    (tmp_path / "d.bin").write_bytes(b"")
    spec(tmp_path).check_paths()
    for changes, said in (
        ({"data": tmp_path / "pipe"}, "data: .*pipe is neither"),
        ({"model": tmp_path / "pipe"}, "model: .*pipe is neither"),
        ({"eval_data": tmp_path / "m"}, "eval_data: .*m is a folder"),
        ({"tokenizer": tmp_path / "d.bin"}, "tokenizer: .*d.bin is a file"),
        ({"model": tmp_path / "gone"}, "model: .*gone does not exist"),
    ):
        with pytest.raises(ConfigError, match=said):
            spec(tmp_path).replace(**changes).check_paths()


def test_a_report_is_valid_json_even_without_numbers() -> None:
    text = json.dumps(RunResult(engine="native").to_dict(), allow_nan=False)
    assert json.loads(text)["final_loss"] is None


def test_perplexity_does_not_overflow() -> None:
    assert math.isinf(StepRecord(**{**vars(record(1)), "loss": 1e6}).perplexity)


def fill(text: str) -> Any:
    def write(folder: Path) -> None:
        (folder / folders.STATE_FILE).write_text(text)

    return write


def test_a_failed_save_leaves_the_old_checkpoint_and_no_litter(tmp_path: Path) -> None:
    folders.write_checkpoint(tmp_path, 3, fill("old"))

    def full(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        folders.write_checkpoint(tmp_path, 3, full)
    assert (tmp_path / "checkpoint-3" / folders.STATE_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_checkpoints_are_replaced_listed_and_retired(tmp_path: Path) -> None:
    for step in (2, 10, 9, 9):
        folders.write_checkpoint(tmp_path, step, fill("x"))
    (tmp_path / "checkpoint-11").mkdir()  # not finished: no state
    names = [path.name for path in folders.list_checkpoints(tmp_path)]
    assert names == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    folders.retire(tmp_path, 1, saved=10, spare=tmp_path / "checkpoint-2")
    names = [path.name for path in folders.list_checkpoints(tmp_path)]
    assert names == ["checkpoint-2", "checkpoint-10"]
    assert folders.resolve_resume("latest", tmp_path) == tmp_path / "checkpoint-10"


def test_a_damaged_later_checkpoint_does_not_cost_the_one_just_saved(tmp_path: Path) -> None:
    for step in (3, 4, 5, 9):
        folders.write_checkpoint(tmp_path, step, fill("x"))
    folders.retire(tmp_path, 2, saved=5)
    names = [path.name for path in folders.list_checkpoints(tmp_path)]
    assert names == ["checkpoint-4", "checkpoint-5", "checkpoint-9"]


@pytest.mark.parametrize("text", ["", "{}", '{"stateful_callbacks": {"abi_train": {}}}', "[]"])
def test_a_damaged_state_is_refused(tmp_path: Path, text: str) -> None:
    path = folders.write_checkpoint(tmp_path, 1, fill(text))
    with pytest.raises(CheckpointError, match=r"trainer_state\.json"):
        folders.read_state(path)


def test_resume_from_nothing_is_explained(tmp_path: Path) -> None:
    for resume in ("latest", tmp_path / "gone"):
        with pytest.raises(CheckpointError):
            folders.resolve_resume(resume, tmp_path)


def test_crc32c_has_the_published_value() -> None:
    assert folders.crc32c(b"123456789") == 0xE3069283


def test_the_training_line_says_everything_in_one_line() -> None:
    stream = io.StringIO()
    line = TrainingLine(interval=1, stream=stream)
    line.on_start(5000, {"start_step": 0})
    line.on_step(record(1200))
    shown = stream.getvalue()
    assert shown.startswith("step 1200/5000  loss 2.113  lr 2.9e-4  grad 0.81  12.4k tok/s  eta ")
    assert shown.count("\n") == 1


def test_short_forms() -> None:
    assert [short_count(x) for x in (12, 12400, 3.1e6)] == ["12", "12.4k", "3.1M"]
    assert [short_power(x) for x in (2.9e-4, 0.0, 1.0)] == ["2.9e-4", "0", "1.0e0"]
    assert [short_time(x) for x in (4, 190, 3720)] == ["4s", "3m10s", "1h02m"]


def test_the_log_keeps_to_its_interval_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        log = JsonlLog(tmp_path / "run" / "log.jsonl", interval=4)
        log.on_start(6, {})
        for step in range(1, 7):
            log.on_step(record(step))
        log.on_end(RunResult(engine="native"))
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(text) for text in lines]
    assert [row.get("step") for row in rows if row["event"] == "step"] == [1, 4, 6] * 2


def test_a_saved_recipe_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = RunSpec(
        model=Path("work/config.json"),
        data=Path("work/train.bin"),
        run_dir=Path("elsewhere"),
        config=LlmTrainingConfig(export_gguf_path="work/m.gguf"),
    )
    recipe = spec.save("work/recipe.yaml")
    monkeypatch.chdir(tmp_path / "work")
    again = RunSpec.load(tmp_path / recipe)
    assert again.model.resolve() == tmp_path / "work" / "config.json"
    assert again.data.resolve() == tmp_path / "work" / "train.bin"
    assert again.run_dir.resolve() == tmp_path / "elsewhere"
    assert again.config.export_gguf_path == str(tmp_path / "work" / "m.gguf")
