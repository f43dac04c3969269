"""Phased recipes run, stop, go on, and refuse what does not fit any more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import Make, document, write_chats

from abi_train import evaluate, recipes
from abi_train.errors import CheckpointError, ConfigError, MissingFileError, PhaseError
from abi_train.progress import Observer
from abi_train.runspec import RunSpec, StepRecord


class StopAt(recipes.Listener):
    """Asks for a stop once a phase has done so many updates."""

    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step, self.asked = phase, step, False
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def observer(self, phase: recipes.Phase, spec: RunSpec) -> Observer:
        outer = self

        class Watching(Observer):
            def on_step(self, record: StepRecord) -> None:
                if phase.name == outer.phase and record.step == outer.step:
                    outer.asked = True

            def stop_requested(self) -> bool:
                return outer.asked

        return Watching()

    def stop_requested(self) -> bool:
        return self.asked


class Kept(recipes.Listener):
    """Remembers which phases were kept and which were worked on."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.done: list[str] = []

    def on_kept(self, phase: recipes.Phase, checkpoint: Path) -> None:
        self.kept.append(phase.name)

    def on_phase(self, phase: recipes.Phase, number: int, count: int) -> None:
        self.done.append(phase.name)


def digest(folder: Path) -> dict[str, str]:
    """What the phases ended with."""
    files = sorted(folder.glob("*/checkpoint-4/*model.safetensors"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def state_of(folder: Path) -> dict[str, Any]:
    states: dict[str, Any] = json.loads((folder / "run" / "recipe.json").read_text())["phases"]
    return states


def test_phases_are_run_in_order_and_kept(folder: Path, make: Make) -> None:
    result = recipes.run(make())
    assert list(result.checkpoints) == ["base", "talk", "choose"]
    before = digest(folder / "run")
    assert len(before) == 3
    config = json.loads(
        (folder / "run" / "talk" / "checkpoint-4" / "adapter_config.json").read_text()
    )
    assert config["base_model_name_or_path"] == str(folder / "run" / "base" / "checkpoint-4")
    states = state_of(folder)
    assert {one["state"] for one in states.values()} == {"finished"}
    assert states["talk"]["data"]["rows"] == 6 and states["talk"]["data"]["eval_rows"] == 2
    # The pairs are compared with the adapter of the phase before, so the first loss is ln 2.
    assert result.results["choose"].history[0].loss == pytest.approx(0.693147, abs=1e-6)
    kept = Kept()
    again = recipes.run(make(), listener=kept)
    assert kept.kept == ["base", "talk", "choose"] and kept.done == []
    assert digest(folder / "run") == before and again.checkpoints == result.checkpoints


@pytest.mark.parametrize(("phase", "step"), [("base", 3), ("talk", 2), ("choose", 1)])
def test_a_recipe_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    folder: Path, make: Make, phase: str, step: int
) -> None:
    recipes.run(make(run_dir=folder / "whole"))
    listener = StopAt(phase, step)
    result = recipes.run(make(), listener=listener)
    assert result.interrupted == phase
    assert state_of(folder)[phase]["state"] == "interrupted"
    kept = Kept()
    assert recipes.run(make(), listener=kept).interrupted is None
    names = ["base", "talk", "choose"]
    assert kept.kept == names[: names.index(phase)]
    run, whole = digest(folder / "run"), digest(folder / "whole")
    assert run == whole and len(run) == 3


def test_a_failed_phase_names_itself_and_what_to_type(folder: Path, make: Make) -> None:
    rows = (folder / "talk.jsonl").read_text()
    (folder / "talk.jsonl").unlink()
    with pytest.raises(PhaseError) as failed:
        recipes.run(make(), command="abi-train train tiny.json")
    assert "phase talk: " in str(failed.value) and "talk.jsonl: no such file" in str(failed.value)
    assert "finished and kept: base. Go on with: abi-train train tiny.json" in str(failed.value)
    assert failed.value.phase == "talk" and isinstance(failed.value.__cause__, MissingFileError)
    assert state_of(folder)["talk"]["state"] == "failed"
    (folder / "talk.jsonl").write_text(rows)
    kept = Kept()
    recipes.run(make(), listener=kept)
    assert kept.kept == ["base"] and kept.done == ["talk", "choose"]


def test_a_broken_row_is_an_error_of_its_phase(folder: Path, make: Make) -> None:
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(PhaseError, match=r"phase choose: .*pairs.jsonl.*kept: base, talk"):
        recipes.run(make())
    assert not list((folder / "run" / "data").glob("choose*"))


def edited(folder: Path) -> None:
    write_chats(folder / "talk.jsonl", 9)


def no_change(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (edited, {}, "phase talk was finished with something else: of its data rows was"),
        (no_change, {"settings": ["phases.talk.epochs=3"]}, "epochs was 10 and is 3"),
        (no_change, {"settings": ["phases.talk.lora.r=4"]}, r"lora.r was 2 and is 4"),
        (no_change, {"settings": ["phases.base.seed=7"]}, "phase base .*seed was 42 and is 7"),
        (no_change, {"model": "elsewhere"}, "the model, with which it began, is another one"),
    ],
)
def test_what_changed_since_a_phase_was_finished_is_named(
    folder: Path, make: Make, change: Callable[[Path], None], options: dict[str, Any], said: str
) -> None:
    recipes.run(make(), phases=["base", "talk"])
    before = digest(folder / "run")
    change(folder)
    with pytest.raises(ConfigError, match=said) as error:
        recipes.run(make(**options))
    assert "--run-dir" in str(error.value) and str(folder / "run" / "talk") in str(error.value)
    assert digest(folder / "run") == before


def test_what_only_watches_may_change(folder: Path, make: Make) -> None:
    recipes.run(make(), phases=["base"])
    kept = Kept()
    recipes.run(make(settings=["log_interval=1", "threads=2"]), phases=["base"], listener=kept)
    assert kept.kept == ["base"]


def test_data_that_changes_under_an_interrupted_phase_is_refused(folder: Path, make: Make) -> None:
    recipes.run(make(), listener=StopAt("talk", 2))
    write_chats(folder / "talk.jsonl", 9)
    with pytest.raises(ConfigError, match=r"phase talk was begun .* of its data rows was"):
        recipes.run(make())


def test_a_phase_that_is_trained_again_is_noticed_by_those_after_it(
    folder: Path, make: Make
) -> None:
    import shutil

    recipes.run(make())
    shutil.rmtree(folder / "run" / "talk")
    with pytest.raises(ConfigError, match=r"phase choose was finished .* delete .*choose"):
        recipes.run(make(settings=["phases.talk.learning_rate=1e-3"]))
    assert not (folder / "run" / "talk").exists(), "told before anything was trained"
    shutil.rmtree(folder / "run" / "choose")
    kept = Kept()
    recipes.run(make(settings=["phases.talk.learning_rate=1e-3"]), listener=kept)
    assert kept.kept == ["base"] and kept.done == ["talk", "choose"]


def test_a_phase_can_be_run_alone(folder: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match=r"goes on from base, .*--phase base.*talk.chain=none"):
        recipes.run(make(), phases=["talk"])
    recipes.run(make(), phases=["base"])
    result = recipes.run(make(), phases=["talk"])
    assert list(result.checkpoints) == ["talk"]
    alone = make(run_dir=folder / "alone", settings=["phases.talk.chain=none"])
    assert list(recipes.run(alone, phases=["talk"]).checkpoints) == ["talk"]


def test_a_merged_adapter_begins_where_the_adapter_stood(folder: Path, make: Make) -> None:
    values = document()
    values["phases"][2] = {"name": "more", "rows": "base.jsonl"}
    first = []
    for chain in ("adapter", "merge"):
        values["phases"][2]["chain"] = chain
        recipe = recipes.from_dict(values, base=folder, run_dir=folder / chain)
        first.append(recipes.run(recipe).results["more"].history[0].loss)
        starts = (folder / chain / "more" / "start" / "config.json").is_file()
        assert starts == (chain == "merge")
    assert first[0] == pytest.approx(first[1], abs=2e-6)


def test_folders_of_others_are_left_alone(folder: Path, make: Make) -> None:
    recipes.run(make(), phases=["base"])
    other = document() | {"name": "other"}
    with pytest.raises(ConfigError, match="is the run folder of the recipe tiny, not of other"):
        recipes.run(recipes.from_dict(other, base=folder, run_dir=folder / "run"))
    with pytest.raises(ConfigError, match="holds checkpoints of another run"):
        recipes.run(make(run_dir=folder / "run" / "base"))
    (folder / "run" / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match="not the state of a recipe"):
        recipes.run(make())


def test_a_row_of_each_answer_keeps_a_talk_on_one_side(folder: Path) -> None:
    write_chats(folder / "talk.jsonl", 8, answers=3)
    values = document()
    values["phases"] = [
        {"name": "talk", "method": "full", "rows": "talk.jsonl", "eval_split": 0.25}
    ]
    values["phases"][0]["rows_per"] = "answer"
    recipes.run(recipes.from_dict(values, base=folder, run_dir=folder / "run"))
    data = state_of(folder)["talk"]["data"]
    assert (data["rows"], data["eval_rows"]) == (18, 6)

    def talks(name: str) -> set[str]:
        lines = (folder / "run" / "data" / name).read_text().splitlines()
        return {json.loads(line)["messages"][0]["content"] for line in lines}

    train, held = talks("talk.answers.jsonl"), talks("talk_eval.answers.jsonl")
    assert len(train) == 6 and len(held) == 2 and not train & held


def test_a_public_set_is_fetched_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder / "gsm8k.jsonl"
    rows = [
        {"question": f"Ann had {n} pears and got 2. How many has she?", "answer": f"So {n} + 2 = "
         f"<<{n}+2={n + 2}>>{n + 2}.\n#### {n + 2}"} for n in range(6)
    ]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = document()
    values["phases"] = [
        {
            "name": "sums",
            "method": "full",
            "rows": {"set": "gsm8k", "source": "gsm8k.jsonl", "limit": 4},
        }
    ]
    recipe = recipes.from_dict(values, base=folder, run_dir=folder / "run")
    recipes.run(recipe)
    fetched = folder / "run" / "data" / "sums.0.gsm8k.jsonl"
    text = fetched.read_text()
    assert len(text.splitlines()) == 4 and "<<" not in text
    card = (folder / "run" / "sums" / "README.md").read_text()
    assert "MIT" in card
    source.unlink()
    kept = Kept()
    recipes.run(recipe, listener=kept)
    assert kept.kept == ["sums"]


def test_evaluations_stand_before_the_first_phase_and_after_each(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    asked: list[tuple[str, tuple[str, ...]]] = []

    def run(model: Path, tasks: Any, **options: Any) -> Any:
        asked.append((Path(model).parent.name, tuple(tasks)))
        return types.SimpleNamespace(scores={task: {"accuracy": 0.5} for task in tasks})

    recipes.run(make(), phases=["base"])
    fake = types.ModuleType("abi_train.evaluate")
    fake.run = run  # type: ignore[attr-defined]
    fake.check_tasks = evaluate.check_tasks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "abi_train.evaluate", fake)
    monkeypatch.setattr(sys.modules["abi_train"], "evaluate", fake, raising=False)
    result = recipes.run(make(settings=["evals=[emotion]"]))
    assert asked == [(name, ("emotion",)) for name in ("base", "talk", "choose")]
    assert result.scores["choose"] == {"emotion": {"accuracy": 0.5}}
    recipes.run(make(settings=["evals=[emotion, answers]"]))
    assert asked[3:] == [(name, ("answers",)) for name in ("base", "talk", "choose")]
