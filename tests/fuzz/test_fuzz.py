"""A little of `make fuzz`: every target takes its seeds and a few hundred changed ones."""

from __future__ import annotations

from pathlib import Path

import fuzz_run as run
import fuzz_seeds as seeds
import pytest


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.build(tmp_path_factory.mktemp("fuzz"), mode="debug")


def test_no_target_ends_with_a_crash(program: Path, tmp_path: Path) -> None:
    folders = seeds.write(tmp_path)
    assert len(folders) == 14
    for target, folder in folders.items():
        answer = run.once(
            program, target, folder, tmp_path / "scratch", seconds=5, seed=1, cases=64
        )
        assert isinstance(answer, str), (target, answer)
        assert f"{target}: " in answer
        # All but the rows of mixed kinds are sound.
        count = len(list(folder.iterdir()))
        assert f"{count - (target == 'jsonl')} of {count} seeds sound" in answer, answer


def test_what_ends_the_program_is_kept(program: Path, tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "bell").write_bytes(b"sound as a bell, and long enough")
    found = run.once(program, "trip", tmp_path / "seeds", tmp_path, seconds=60, seed=1)
    assert isinstance(found, run.Found)
    assert found.code != 0
    assert "tripped" in found.said
    assert found.case != b"sound as a bell, and long enough"
    path = run.save(found, tmp_path / "found")
    assert path.read_bytes() == found.case
    assert "tripped" in path.with_suffix(".txt").read_text("utf-8")
