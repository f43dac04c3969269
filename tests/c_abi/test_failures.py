"""Each kind of failure arrives as the exception the documents name, with a sentence that helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import abi_train
from abi_train import errors
from abi_train.trainer import CheckpointEvent, StepEvent


def _data(folder: Path, ids: list[int]) -> abi_train.TokenizedDataset:
    path = folder / "ids.bin"
    np.array(ids, dtype="<u4").tofile(path)
    return abi_train.TokenizedDataset.load(path)


def test_a_file_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"12345")
    with pytest.raises(errors.DataError, match="5 bytes, which is not a multiple of 4"):
        abi_train.TokenizedDataset.load(tmp_path / "x.bin")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        abi_train.TokenizedDataset.load(tmp_path / "x.bin")
    with pytest.raises(errors.MissingFileError):
        abi_train.Model.load(tmp_path / "nothing")
    with pytest.raises(errors.MissingFileError):
        abi_train.Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(errors.MissingFileError):
        abi_train.Generator.open(tmp_path / "nothing.gguf")
    with pytest.raises(errors.MissingFileError):
        abi_train.parse_instruction_dataset(tmp_path / "nothing.jsonl")


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c"\n', encoding="utf-8")
    with pytest.raises(errors.DataError, match=r"rows\.jsonl: line 2 is cut off"):
        abi_train.parse_instruction_dataset(path)
    rows = abi_train.parse_instruction_dataset(path, skip_invalid=True)
    assert [r.instruction for r in rows] == ["a"]
    assert rows.report["skipped"] == 1
    assert rows.report["defects"] == {"cut_off": 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"learning_rate": float("nan")}, "configuration is not valid JSON"),
        ({"lerning_rate": 1e-3}, 'did you mean "learning_rate"'),
        ({"enable_wandb": True}, "enable_wandb is true; it needs log_dir"),
        ({"max_seq_len": 65}, "beyond the model's max_position_embeddings"),
    ],
)
def test_a_wrong_configuration(
    tiny: dict[str, Any],
    settings: dict[str, Any],
    token_file: Path,
    change: dict[str, Any],
    sentence: str,
) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    with pytest.raises(errors.ConfigError, match=sentence):
        abi_train.Trainer(settings | change, abi_train.Model.random(tiny, seed=1), data)


def test_tokens_of_another_model(
    tiny: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    model = abi_train.Model.random(tiny, seed=1)
    with pytest.raises(errors.DataError, match="token 2 has id 64, but the vocabulary has 64"):
        abi_train.Trainer(settings, model, _data(tmp_path, [1, 2, 64] * 50))
    with pytest.raises(errors.DataError, match="no batch"):
        abi_train.Trainer(settings, model, _data(tmp_path, [1, 2]))


def test_weights_that_are_no_numbers(
    tiny: dict[str, Any], settings: dict[str, Any], token_file: Path, tmp_path: Path
) -> None:
    model = abi_train.Model.random(tiny, seed=1)
    data = abi_train.TokenizedDataset.load(token_file)
    trainer = abi_train.Trainer(settings, model, data)
    model["model.norm.weight"][3] = np.nan
    before = model.weights.copy()
    with pytest.raises(errors.NumericsError, match=r"step 1.*model\.norm\.weight"):
        trainer.next_event()
    assert np.array_equal(model.weights, before, equal_nan=True)
    with pytest.raises(errors.NumericsError, match=r"model\.norm\.weight"):
        abi_train.Trainer(settings, model, data)
    with pytest.raises(errors.NumericsError, match=r"model\.norm\.weight"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_another_run(
    tiny: dict[str, Any], settings: dict[str, Any], token_file: Path, tmp_path: Path
) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    settings |= {"max_steps": 2}
    with abi_train.Trainer(
        settings, abi_train.Model.random(tiny, seed=1), data, run_dir=tmp_path / "run"
    ) as trainer:
        saved = [e.path for e in trainer if isinstance(e, CheckpointEvent)]
    open_again: Callable[..., abi_train.Trainer] = lambda **change: abi_train.Trainer(  # noqa: E731
        settings | {"max_steps": 4} | change,
        abi_train.Model.random(tiny, seed=1),
        data,
        run_dir=tmp_path / "run",
        resume_from=saved[-1],
    )
    with pytest.raises(errors.CheckpointError, match="seed was 42"):
        open_again(seed=43)
    with open_again() as trainer:
        steps = [e.global_step for e in trainer if isinstance(e, StepEvent)]
    assert steps == [3, 4]
    with pytest.raises(errors.CheckpointError):
        (saved[-1] / "trainer_state.json").write_text("{}", encoding="utf-8")
        open_again()


def test_a_run_folder_serves_one_trainer(
    tiny: dict[str, Any], settings: dict[str, Any], token_file: Path, tmp_path: Path
) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    model = abi_train.Model.random(tiny, seed=1)
    with abi_train.Trainer(settings, model, data, run_dir=tmp_path / "run") as trainer:
        with pytest.raises(errors.FileAccessError, match="another process is training"):
            abi_train.Trainer(settings, model, data, run_dir=tmp_path / "run")
        path = trainer.save()
        assert path.is_dir() and trainer.save() == path
    without = abi_train.Trainer(settings, model, data)
    with pytest.raises(errors.CheckpointError, match="no folder to save into"):
        without.save()


def test_existing_folders_are_left_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    model = abi_train.Model.random(tiny, seed=1)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(errors.FileAccessError, match="already there"):
        model.save(tmp_path / "work")
    assert (tmp_path / "work" / "thesis.txt").read_text(encoding="utf-8") == "dear"


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(errors.FormatError, match=r"x\.gguf"):
        abi_train.Generator.open(path)
    with pytest.raises(errors.FormatError, match=r"x\.gguf"):
        abi_train.Model.load(path)
    with pytest.raises(errors.FormatError, match=r"x\.gguf"):
        abi_train.Tokenizer.load(path)


def test_abi_checkpoint_files_round_trip(tiny: dict[str, Any], tmp_path: Path) -> None:
    model = abi_train.Model.random(tiny, seed=1)
    other = abi_train.Model.random(tiny, seed=2)
    model.export_checkpoint(tmp_path / "llm_step_7.ckpt", weights_only=False, step=7)
    assert other.import_checkpoint(tmp_path / "llm_step_7.ckpt") == 7
    assert np.array_equal(model.weights, other.weights)
    wider = abi_train.Model.random(tiny | {"intermediate_size": 32}, seed=1)
    with pytest.raises(errors.CheckpointError):
        wider.import_checkpoint(tmp_path / "llm_step_7.ckpt")
