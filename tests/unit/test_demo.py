"""The demonstration's folder: nobody else's is touched, and no finished result is lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from abi_train import demo
from abi_train.checkpoint import run_lock
from abi_train.demo import folder as room
from abi_train.errors import FileAccessError


def results(folder: Path, text: str) -> None:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "log.jsonl").write_text(text)
    for name in ("train.bin", "recipe.yaml", "abbey-demo.gguf"):
        (folder / name).write_text(text)


def held(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.lock", room.MARKER)
    }


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    with room.fresh_results(folder):
        results(folder, "old")
    return folder


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    results(tmp_path, "mine")
    before = held(tmp_path)
    with pytest.raises(FileAccessError, match="name a new folder"):
        demo.run_demo(tmp_path)
    assert held(tmp_path) == before
    assert not (tmp_path / room.MARKER).exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileAccessError, match="not a folder"):
        demo.run_demo(tmp_path / "file")


def test_new_results_take_the_place_of_the_old_and_other_files_stay(made: Path) -> None:
    (made / "notes.txt").write_text("my notes")
    with room.fresh_results(made):
        assert not (made / "run").exists()
        results(made, "new")
        assert (made / room.PREVIOUS / "run" / "log.jsonl").read_text() == "old"
    assert set(held(made).values()) == {"new", "my notes"}
    assert not (made / room.PREVIOUS).exists()


def test_the_old_results_return_when_the_new_ones_fail(made: Path) -> None:
    before = held(made)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), room.fresh_results(made, told.append):
        (made / "run").mkdir()
        (made / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert held(made) == before
    assert ["wait in" in told[0], "again" in told[1]] == [True, True]


@pytest.mark.parametrize("moves", range(5))
def test_a_kill_in_any_move_loses_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Killed while the old results are put aside, then the next attempt fails."""
    before, left = held(made), moves
    rename = Path.rename

    def counted(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise SystemExit("killed")
        left -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        with pytest.raises(SystemExit), room.fresh_results(made):
            results(made, "half")
    with pytest.raises(RuntimeError), room.fresh_results(made):
        raise RuntimeError
    assert held(made) == before


def test_a_kill_while_training_loses_nothing(made: Path) -> None:
    before = held(made)
    room._put_aside(made)
    results(made, "half")  # and then the power went
    with pytest.raises(RuntimeError), room.fresh_results(made):
        raise RuntimeError
    assert held(made) == before


def test_two_demonstrations_do_not_share_a_folder(made: Path) -> None:
    before = held(made)
    with run_lock(made), pytest.raises(FileAccessError, match="another process is training"):
        demo.run_demo(made)
    assert held(made) == before


def test_a_second_demonstration_just_works(tmp_path: Path) -> None:
    quick = dataclasses.replace(demo.TRAINING, epochs=1, max_steps=2, log_interval=1)
    for _ in range(2):
        made = demo.run_demo(tmp_path / "demo", training=quick)
        assert made.exported.path.is_file()
        assert made.trained.checkpoint == tmp_path / "demo" / "run" / "checkpoint-2"
    known = {*room.RESULTS, room.MARKER, "run.lock"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} <= known
