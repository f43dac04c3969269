"""Phased runs that exist already, were moved, or were damaged by hand; values refused at load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import Make, document

from abi_train import recipes
from abi_train.adapters import base_of
from abi_train.cli import main
from abi_train.errors import AbiTrainError, CheckpointError, ConfigError, DataError, PhaseError
from abi_train.export import model_folder
from abi_train.plan import plan
from abi_train.recipes import places
from abi_train.recipes.preparing import prepare_phase


class Noting(recipes.Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def change_tokens(path: Path) -> None:
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:] = bytes(byte ^ 1 for byte in data[half:])
    path.write_bytes(data)


@pytest.mark.parametrize("finished", [["base"], ["base", "talk"], ["base", "talk", "choose"]])
def test_a_plan_is_the_same_beside_a_run(make: Make, finished: list[str]) -> None:
    recipe = make()

    def planned() -> Any:
        def prepare(phase: Any) -> Any:
            found = prepare_phase(phase, phase.spec.tokenizer_dir, None)
            assert found.fresh
            return phase.spec.data, phase.spec.eval_data, None

        made = plan(recipe, prepare=prepare).phases
        return [(one.name, one.updates, one.tokens, one.trained, one.memory.parts) for one in made]

    before = planned()
    recipes.run(recipe, phases=finished)
    assert planned() == before and len(before) == 3


def test_a_dry_run_plans_beside_a_run(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    recipes.run(make(run_dir="runs/tiny"))
    assert call("train", "tiny.json", "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)["plan"]
    assert "error" not in found and len(found["phases"]) == 3
    assert call("plan", "tiny.json", "--offline", "--seconds", "0.1", "--json") in (0, 1)
    measured = json.loads(capsys.readouterr().out)["phases"]
    assert all(phase["time"] is not None for phase in measured)


@pytest.mark.parametrize("kind", ["changed", "cut"])
def test_damaged_tokens_are_prepared_again(folder: Path, make: Make, kind: str) -> None:
    recipes.run(make(run_dir=folder / "whole"))
    recipes.run(make())
    shutil.rmtree(folder / "run" / "choose")
    path = folder / "run" / "data" / "choose.bin"
    good = path.read_bytes()
    if kind == "cut":
        path.write_bytes(good[: len(good) // 2])
    else:
        change_tokens(path)
    assert path.read_bytes() != good
    listener = Noting()
    recipes.run(make(), listener=listener)
    assert any("choose.bin" in text and "prepared again" in text for text in listener.notes)
    assert path.read_bytes() == good
    left = [
        (folder / name / "choose" / "checkpoint-4" / "adapter_model.safetensors").read_bytes()
        for name in ("run", "whole")
    ]
    assert left[0] == left[1]


def test_damaged_tokens_of_ones_own_are_an_error(folder: Path, make: Make) -> None:
    recipes.run(make(), phases=["base"])
    for path in (folder / "run" / "data").glob("base.*"):
        shutil.copy(path, folder / path.name)
    change_tokens(folder / "base.bin")
    values = document()
    values["phases"] = [{"name": "base", "method": "full", "data": "base.bin"}]
    recipe = recipes.from_dict(values, base=folder, run_dir=folder / "other")
    with pytest.raises(PhaseError, match=r"phase base: .*base\.bin.*checksum") as failed:
        recipes.run(recipe)
    assert isinstance(failed.value.__cause__, DataError)


def test_a_copied_or_moved_run_stands_on_its_own_base(folder: Path, make: Make) -> None:
    recipes.run(make())
    old, new, moved = folder / "run", folder / "copy", folder / "moved"
    shutil.copytree(old, new)
    place = Path("base") / "checkpoint-4"
    for phase in ("talk", "choose"):
        assert base_of(new / phase / "checkpoint-4") == new / place
        assert base_of(old / phase / "checkpoint-4") == old / place
    old.rename(moved)
    assert base_of(moved / "talk" / "checkpoint-4") == moved / place
    shutil.rmtree(moved / "base")
    with pytest.raises(ConfigError, match="not here; name the folder with --base"):
        base_of(moved / "talk" / "checkpoint-4", option="--base")
    # Another base written there by hand is meant.
    file = new / "talk" / "checkpoint-4" / "adapter_config.json"
    values = json.loads(file.read_text())
    values["base_model_name_or_path"] = str(folder)
    file.write_text(json.dumps(values))
    assert base_of(file.parent) == folder


def test_an_adapter_on_random_weights_is_exported_after_a_move(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = document()
    values["phases"] = [values["phases"][1]]
    recipes.run(recipes.from_dict(values, base=folder, run_dir=folder / "run"))
    (folder / "run").rename(folder / "moved")
    assert call("export", folder / "moved", "--gguf", "q8_0") == 0
    assert list((folder / "moved").glob("*.gguf"))


@pytest.mark.parametrize("place", ["../../../../etc", "/etc", "base/../../..", "talk\0"])
def test_a_result_outside_its_phase_is_refused(folder: Path, make: Make, place: str) -> None:
    recipes.run(make(), phases=["base"])
    file = folder / "run" / "recipe.json"
    values = json.loads(file.read_text())
    values["phases"]["base"]["checkpoint"] = place
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"the checkpoint of phase base .*--run-dir"):
        recipes.run(make())
    with pytest.raises(AbiTrainError, match="the checkpoint of phase 'base'"):
        model_folder(folder / "run")


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([], "it lacks what each has"),
        ({"base": 3}, "phase base is no table"),
        ({"base": {"stat": "new"}}, "'stat', which is no key"),
        ({"base": {"scores": []}}, "scores of phase base"),
        ({"base": {"state": "done"}}, "the state 'done'"),
    ],
)
def test_a_damaged_state_is_named(folder: Path, make: Make, phases: Any, said: str) -> None:
    (folder / "run").mkdir()
    values = {"version": 1, "name": "tiny", "phases": phases}
    if phases == []:
        del values["phases"]
    (folder / "run" / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as refused:
        recipes.run(make())
    assert said in str(refused.value) and "PhaseState" not in str(refused.value)
    assert "Name another folder with --run-dir" in str(refused.value)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "a\nb", " a", "", "x" * 300])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name is"):
        recipes.from_dict({**document(), "name": name}, base=tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evals": ["nonsense"]}, "'nonsense' is no task"),
        ({"evals": ["perplexity:nothere"]}, "there is no file"),
        ({"evals": ["emotion:nothere.jsonl"]}, "there is no file"),
        ({"evals": ["answers:set:nope"]}, "no data set"),
        ({"evals": ["perplexity:a\0"]}, "NUL"),
        ({"rows": []}, "at least one"),
        ({"rows": "a\0.jsonl"}, "NUL"),
        ({"rows": {"file": "a\0.jsonl"}}, "NUL"),
        ({"eval_split": 0, "eval_rows": "a\0.jsonl"}, "NUL"),
        ({"rows": {"set": "gsm8k", "limit": 0}}, "limit of gsm8k is 0"),
        ({"rows": {"set": "gsm8k", "limit": 1.5}}, "limit of gsm8k is 1.5"),
        ({"rows": {"set": "gsm8k", "limit": -1}}, "limit of gsm8k is -1"),
        ({"rows": {"set": "gsm8k", "limit": 1e30}}, "limit of gsm8k is 1e"),
        ({"rows": {"set": "gsm8k", "limit": True}}, "limit of gsm8k is true"),
        ({"rows": {"set": "gsm8k", "split": "nope"}}, "split of gsm8k"),
        ({"rows": {"set": "gsm8k", "config": "nope"}}, "config of gsm8k"),
        ({"rows": {"set": "gsm8k", "options": {"final": "nope"}}}, "final is 'nope'"),
        ({"rows": {"set": "gsm8k", "options": "final"}}, "must be a table"),
        ({"rows": {"set": "gsm8k", "source": "/nothere"}}, "no such file or folder"),
    ],
)
def test_what_a_later_phase_would_meet_is_refused_at_load(
    folder: Path, change: dict[str, Any], said: str
) -> None:
    values = document()
    values["phases"][1].update(change)
    with pytest.raises(ConfigError, match="phase talk: ") as refused:
        recipes.from_dict(values, base=folder)
    assert said in str(refused.value)


def test_what_is_right_is_read(folder: Path) -> None:
    (folder / "text.txt").write_text("Pears.")
    values = document()
    values["phases"][1].update(
        evals=["emotion", "perplexity:text.txt", "perplexity:run/data/talk_eval.bin"],
        rows={"set": "gsm8k", "limit": 5, "split": "train", "options": {"final": "hashes"}},
    )
    phase = recipes.from_dict(values, base=folder, run_dir=folder / "run").phase("talk")
    assert phase.evals[1] == f"perplexity:{folder / 'text.txt'}"


def test_the_first_phase_merges_nothing(folder: Path) -> None:
    values = document()
    values["phases"][0]["chain"] = "merge"
    with pytest.raises(ConfigError, match="nothing stands before the first phase"):
        recipes.from_dict(values, base=folder)


def test_a_base_that_is_gone_is_named(folder: Path, make: Make) -> None:
    recipes.run(make())
    shutil.rmtree(folder / "run" / "base")
    shutil.rmtree(folder / "run" / "choose")
    with pytest.raises(ConfigError, match=r"choose stands on what base left.*--phase base"):
        recipes.run(make(), phases=["choose"])


@pytest.mark.parametrize("model", ["hub:", "hub:x", "hub:a/b/c", "hub:@main", "hub:a/"])
def test_a_name_on_the_hub_has_two_parts(folder: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="needs OWNER/NAME"):
        recipes.from_dict({**document(), "model": model}, base=folder)
    assert places.hub_name("hub:a/b@c") == ("a/b", "c")


def test_a_set_that_cannot_be_fetched_advises_the_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise DataError("no network; name them with --from (in Python source)")

    monkeypatch.setattr("abi_train.data.sets.fetch", refused)
    values = document()
    values["phases"] = [{"name": "sums", "method": "full", "rows": "set:gsm8k"}]
    recipe = recipes.from_dict(values, base=folder, run_dir=folder / "run")
    with pytest.raises(PhaseError, match="name them with the key source") as failed:
        recipes.run(recipe)
    assert "--from" not in str(failed.value)


def test_a_refused_run_leaves_no_folder(folder: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match="goes on from talk"):
        recipes.run(make(run_dir=folder / "new" / "run"), phases=["choose"])
    assert not (folder / "new").exists()
    (folder / "there").mkdir()
    with pytest.raises(ConfigError, match="goes on from talk"):
        recipes.run(make(run_dir=folder / "there"), phases=["choose"])
    assert (folder / "there").is_dir()
