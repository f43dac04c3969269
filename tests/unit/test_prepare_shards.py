"""A job over shards: the bytes of one process, from one, two or none of the workers twice."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import smollm_tokenizer

from abi_train.data import shards as jobs
from abi_train.data.files import TokenFiles
from abi_train.data.prepare import prepare
from abi_train.data.shards import (
    ShardPlan,
    begin_shards,
    join_shards,
    prepare_shard,
    prepare_sharded,
)
from abi_train.dataset import TokenizedDataset
from abi_train.errors import ArgumentError, DataError, EngineError, FileAccessError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "naïve", "café", "🙂"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    smollm_tokenizer().save_pretrained(folder)
    return folder


def write_sources(folder: Path, *, pairs: bool = False) -> list[Path]:
    """Three files: one with blank lines, one without an end of line, one with a side file."""
    draw = random.Random(5)

    def text(least: int = 1) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randrange(least, 30)))

    def row() -> str:
        if pairs:
            return json.dumps(
                {"prompt": text(), "chosen": " " + text(), "rejected": " no " + text()}
            )
        if draw.random() < 0.5:
            return json.dumps({"text": text()})
        return json.dumps({"prompt": text(), "completion": " " + text()})

    found = []
    for number, count in enumerate((30, 1, 50)):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rows{number}.jsonl"
        lines = [
            row() + ("\n" * draw.randrange(1, 3) if number == 0 else "\n") for _ in range(count)
        ]
        joined = "".join(lines)
        path.write_text(joined.rstrip("\n") if number == 1 else joined, encoding="utf-8")
        found.append(path)
    side = {"source": "our own rows", "license": "MIT", "commercial_use": True, "notes": ["tiny"]}
    (folder / "rows2.jsonl.source.json").write_text(json.dumps(side))
    return found


def same(one: Path, all_of: Path) -> None:
    """The set is the file."""
    left, right = TokenFiles.open(one), TokenFiles.open(all_of)
    np.testing.assert_array_equal(left.token_ids[:], right.token_ids[:])
    assert (left.starts is None) == (right.starts is None)
    if left.starts is not None and right.starts is not None:
        np.testing.assert_array_equal(left.starts, right.starts)
    assert left.mask is not None and right.mask is not None
    size = left.token_ids.size
    np.testing.assert_array_equal(left.mask.at(0, size), right.mask.at(0, size))
    keys = ("count", "rows", "kind", "vocab_size", "tokenizer_hash", "format")
    for key in (*keys, "source", "license", "commercial_use", "notes"):
        assert left.manifest.get(key) == right.manifest.get(key), key
    with TokenizedDataset.load(all_of) as data:
        assert data.verify() >= 2


CASES: list[dict[str, Any]] = [
    {},
    {"eval_fraction": 0.1, "seed": 3},
    {"max_seq_len": 12},
    {"stream": True},
    {"license_note": "CC0-1.0", "loss": "all", "eval_fraction": 0.03},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("count", [1, 5])
def test_shards_one_behind_the_other_are_the_file_of_one_process(
    tmp_path: Path, tokenizer: Path, options: dict[str, Any], count: int
) -> None:
    sources = write_sources(tmp_path / "rows")
    told = prepare(sources, tokenizer, tmp_path / "one.bin", **options)
    seen: list[tuple[int, int]] = []
    found = prepare_sharded(
        sources,
        tokenizer,
        tmp_path / "set.bin",
        shards=count,
        workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert seen == [(i + 1, count) for i in range(count)]
    same(tmp_path / "one.bin", tmp_path / "set.bin")
    if "eval_fraction" in options:
        same(tmp_path / "one_eval.bin", tmp_path / "set_eval.bin")
        assert told.evaluation is not None and found.evaluation is not None
        assert found.evaluation.rows == told.evaluation.rows
    for name in ("rows", "tokens", "truncated", "longest", "without_end"):
        assert getattr(found.train, name) == getattr(told.train, name), name
    assert (found.lines, found.dropped) == (told.lines, told.dropped)
    if "eval_fraction" not in options:
        assert found.first_example == told.first_example
    assert not (tmp_path / "set.shards").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("pairs", [False, True])
def test_two_workers_make_the_files_that_one_makes(
    tmp_path: Path, tokenizer: Path, pairs: bool
) -> None:
    pytest.importorskip("datasets")
    sources = write_sources(tmp_path / "rows", pairs=pairs)
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        seen: list[int] = []
        prepare_sharded(
            sources,
            tokenizer,
            folder / "set.bin",
            shards=5,
            workers=workers,
            eval_fraction=0.2,
            on_progress=lambda done, total, seen=seen: seen.append(total - done),  # type: ignore[misc]
        )
        assert seen[-1] == 0
        made.append(files_of(folder))
    assert made[0] == made[1]
    assert len(made[0]) == 2 * (5 * 4 + 1)
    prepare(sources, tokenizer, tmp_path / "one.bin", eval_fraction=0.2)
    same(tmp_path / "one.bin", tmp_path / "2" / "set.bin")
    same(tmp_path / "one_eval.bin", tmp_path / "2" / "set_eval.bin")


def test_a_job_goes_on_with_the_shards_that_are_missing(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = write_sources(tmp_path / "rows")
    plan = ShardPlan(
        sources=tuple(map(str, sources)),
        tokenizer=str(tokenizer),
        output=str(tmp_path / "set.bin"),
        shards=4,
    )
    begin_shards(plan)
    with pytest.raises(DataError, match="interrupted"):
        TokenizedDataset.load(plan.output)
    for index in (2, 0):  # as two machines might
        prepare_shard(plan, index)
    with pytest.raises(DataError, match="shards 1, 3 of 4 are not"):
        join_shards(plan)
    calls = []
    whole = jobs._prepare_one

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[1].name)
        return whole(*arguments)

    monkeypatch.setattr(jobs, "_prepare_one", counted)
    prepare_sharded(sources, tokenizer, tmp_path / "set.bin", shards=4, workers=1)
    assert calls == ["set-00001-of-00004.bin", "set-00003-of-00004.bin"]
    # Another source is another job: nothing of the first is used.
    begin_shards(plan)
    prepare_shard(plan, 0)
    with sources[0].open("a") as file:
        file.write('{"text": "one more"}\n')
    calls.clear()
    prepare_sharded(sources, tokenizer, tmp_path / "set.bin", shards=4, workers=1)
    assert len(calls) == 4
    prepare(sources, tokenizer, tmp_path / "one.bin")
    same(tmp_path / "one.bin", tmp_path / "set.bin")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_named_by_its_place_in_the_source(
    tmp_path: Path, tokenizer: Path, workers: int
) -> None:
    if workers > 1:
        pytest.importorskip("datasets")
    sources = write_sources(tmp_path / "rows")
    lines = sources[2].read_text(encoding="utf-8").splitlines()
    lines[46] = '{"text": 3}'
    sources[2].write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments: dict[str, Any] = {"shards": 4, "workers": workers, "eval_fraction": 0.1}
    with pytest.raises(DataError) as alone:
        prepare(sources, tokenizer, tmp_path / "one.bin")
    with pytest.raises(DataError) as caught:
        prepare_sharded(sources, tokenizer, tmp_path / "set.bin", **arguments)
    assert str(caught.value) == str(alone.value)
    assert f"{sources[2]}:47" in str(caught.value)
    report = prepare_sharded(
        sources, tokenizer, tmp_path / "set.bin", **arguments, skip_invalid=True
    )
    assert report.skipped.total == 1
    assert f"{sources[2]}:47" in report.skipped.examples[0]


def test_a_shard_without_rows_is_an_empty_file(tmp_path: Path, tokenizer: Path) -> None:
    source = tmp_path / "rows.jsonl"
    row = json.dumps({"text": "the quick brown fox " * 200}) + "\n"
    source.write_text('{"text": "a"}\n' + row + "\n" * 300)
    prepare([source], tokenizer, tmp_path / "one.bin")
    prepare_sharded([source], tokenizer, tmp_path / "set.bin", shards=6, workers=1)
    same(tmp_path / "one.bin", tmp_path / "set.bin")
    entries = json.loads((tmp_path / "set.json").read_text())["shards"]
    assert sorted(entry["rows"] for entry in entries) == [0, 0, 0, 0, 0, 2]
    source.write_text("\n" * 10)
    with pytest.raises(DataError, match="no row is left"):
        prepare_sharded([source], tokenizer, tmp_path / "none.bin", shards=2, workers=1)


def test_of_one_line_nothing_is_held_out(tmp_path: Path, tokenizer: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "the quick brown fox"}\n')
    told = prepare([source], tokenizer, tmp_path / "one.bin", eval_fraction=0.5)
    found = prepare_sharded(
        [source], tokenizer, tmp_path / "set.bin", shards=2, workers=1, eval_fraction=0.5
    )
    assert told.evaluation is None and found.evaluation is None
    same(tmp_path / "one.bin", tmp_path / "set.bin")
    assert not (tmp_path / "set_eval.json").exists()


def _killed(row: dict[str, Any], plan: ShardPlan) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return row


def test_a_killed_worker_is_told_and_the_job_goes_on(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    sources = write_sources(tmp_path / "rows")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_shard_of_row", _killed)
        with pytest.raises(EngineError, match="a worker was killed"):
            prepare_sharded(sources, tokenizer, tmp_path / "set.bin", shards=3, workers=2)
    with pytest.raises(DataError, match="interrupted"):
        TokenizedDataset.load(tmp_path / "set.bin")
    prepare_sharded(sources, tokenizer, tmp_path / "set.bin", shards=3, workers=2)
    prepare(sources, tokenizer, tmp_path / "one.bin")
    same(tmp_path / "one.bin", tmp_path / "set.bin")


def test_the_command_line_makes_a_set(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from abi_train.cli import main as run

    def main(arguments: list[str]) -> object:
        with pytest.raises(SystemExit) as left:
            run(arguments)
        return left.value.code

    sources = write_sources(tmp_path / "rows")
    command = ["data", "prepare", *map(str, sources), "--tokenizer", str(tokenizer)]
    command += ["--output", str(tmp_path / "set.bin"), "--workers", "1", "--json"]
    assert main(command) == 2
    assert "give --shards" in capsys.readouterr().err
    assert main([*command, "--shards", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lines"] == 81
    prepare(sources, tokenizer, tmp_path / "one.bin")
    same(tmp_path / "one.bin", tmp_path / "set.bin")
    assert main(["data", "info", str(tmp_path / "set.bin"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 3


def test_what_cannot_be_a_job_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    sources = write_sources(tmp_path / "rows")
    for options, error, words in (
        ({"shards": 0}, DataError, "it must be 1 to 4096"),
        ({"shards": 2, "eval_fraction": 1.0}, DataError, "eval_fraction"),
        ({"shards": 2, "encoder": None}, ArgumentError, "encoder is no option"),
    ):
        with pytest.raises(error, match=words):
            prepare_sharded(sources, tokenizer, tmp_path / "set.bin", **options)  # type: ignore[arg-type]
    (tmp_path / "set.bin").write_bytes(b"1234")
    with pytest.raises(FileAccessError, match="no file of its own name"):
        prepare_sharded(sources, tokenizer, tmp_path / "set.bin", shards=2)
    with pytest.raises(FileAccessError, match="no such file"):
        prepare_sharded([tmp_path / "no"], tokenizer, tmp_path / "new.bin", shards=2)
    (tmp_path / "raw.json").write_text('{"text": "somebody\'s data"}')
    with pytest.raises(DataError, match="would be overwritten"):
        prepare_sharded(sources, tokenizer, tmp_path / "raw.bin", shards=2)
    (tmp_path / "w.shards").mkdir()
    (tmp_path / "w.shards" / "mine.txt").write_text("keep")
    with pytest.raises(FileAccessError, match="in the way"):
        prepare_sharded(sources, tokenizer, tmp_path / "w.bin", shards=2)
