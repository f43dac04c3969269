"""The packaged rows of the phases: reproducible, right, and nothing held out is trained on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abi_train import sample
from abi_train.data.sets.emotions import ABBEY
from abi_train.data.sources import Chat, Preference, Text, read_rows
from abi_train.errors import ConfigError
from abi_train.sample.generate import FEELINGS, generate

MADE = ("base", "words", "emotional", "reasoning", "calibration")
KINDS = {"words": Text, "calibration": Preference}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(row: dict[str, Any]) -> str:
    """What the user says first in a row of any shape."""
    if "prompt" in row:
        return str(row["prompt"][0]["content"])
    if "messages" in row:
        return str(row["messages"][0]["content"])
    return str(row.get("instruction") or row.get("text") or row["question"])


def test_the_packaged_files_are_those_of_the_generator_byte_for_byte(tmp_path: Path) -> None:
    counts = generate(tmp_path)
    assert len(counts) == 9
    for name, count in counts.items():
        packaged = sample.FOLDER / name
        assert (tmp_path / name).read_bytes() == packaged.read_bytes(), name
        assert len(lines(packaged)) == count
    readme = (sample.FOLDER / "README.md").read_text(encoding="utf-8")
    for name, count in counts.items():
        assert re.search(rf"`{name}` \| {count}\b", readme), f"README.md: rows of {name}"


def test_nothing_held_out_is_asked_in_any_training_row() -> None:
    trained = {asked(row) for name in sample.ROWS for row in lines(sample.rows(name))}
    trained |= {asked(row) for row in lines(sample.FOLDER / sample.QUESTIONS)}
    for name in sample.HELD_OUT:
        kept = [asked(row) for row in lines(sample.held_out(name))]
        assert len(kept) >= 100
        assert len(set(kept)) == len(kept)
        assert not trained & set(kept), name
        # The message itself may not stand in a row without the question about it either.
        assert not trained & {text.split("\n\n")[-1] for text in kept}, name


def test_each_emotion_is_there_equally_often_in_abbeys_order() -> None:
    assert tuple(FEELINGS) == ABBEY
    kept = Counter(row["output"] for row in lines(sample.held_out("emotional")))
    assert kept == dict.fromkeys(ABBEY, 10)
    learned = Counter(
        row["output"] for row in lines(sample.rows("emotional")) if "instruction" in row
    )
    assert set(learned) == set(ABBEY) and len(set(learned.values())) == 1


@pytest.mark.parametrize("path", [sample.rows("reasoning"), sample.held_out("reasoning")])
def test_every_sum_is_right_and_its_last_line_is_the_result(path: Path) -> None:
    count = 0
    for row in lines(path):
        if "####" not in row.get("output", ""):
            continue
        *steps, last = row["output"].split("\n")
        results = []
        for step in steps:
            found = re.fullmatch(r"(\d+) ([+*-]) (\d+) = (\d+)", step)
            assert found, step
            a, b, result = int(found[1]), int(found[3]), int(found[4])
            assert {"+": a + b, "-": a - b, "*": a * b}[found[2]] == result, step
            results.append(result)
        assert last == f"#### {results[-1]}"
        count += 1
    assert count >= 100


def test_prepare_reads_all_training_files_and_they_are_small() -> None:
    for name in MADE:
        rows = [row for _, _, row in read_rows([sample.rows(name)])]
        assert all(isinstance(row, KINDS.get(name, Chat)) for row in rows)
    files = [*map(sample.rows, MADE), *map(sample.held_out, sample.HELD_OUT)]
    files.append(sample.FOLDER / sample.QUESTIONS)
    assert sum(path.stat().st_size for path in files) < 480_000


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no rows 'emotion'; it has base, words"):
        sample.rows("emotion")
    with pytest.raises(ConfigError, match="no held-out rows 'base'; it has emotional"):
        sample.held_out("base")
