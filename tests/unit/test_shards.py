"""Sets of token files: both readers take one as the single file of the same rows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from abi_train._native import dataset as native
from abi_train.data.files import TokenFiles, is_set
from abi_train.data.info import describe
from abi_train.data.rows import PreferenceRows, TokenRows
from abi_train.dataset import TokenizedDataset, TokenizedWriter
from abi_train.errors import AbiTrainError, ArgumentError, DataError, MissingFileError

VOCAB = 90
CUTS = [0, 7, 7, 20, 41]
"""Rows before each file; one file has none."""


def write_both(
    folder: Path, *, rows: bool = True, mask: bool = True, preference: bool = False
) -> tuple[Path, Path]:
    """The same rows as one file and as a set."""
    draw = np.random.default_rng(4)
    made = []
    for _ in range(CUTS[-1] if not preference else 20):
        ids = draw.integers(0, VOCAB, int(draw.integers(3, 30)))
        flags = draw.random(ids.size) < 0.6
        if preference:
            flags = np.arange(ids.size) >= 1
            worse = ids.copy()
            worse[-1] = (worse[-1] + 1) % VOCAB
            made.append((worse, flags))
        made.append((ids, flags if mask else None))
    cuts = [0, 6, 20, 40] if preference else CUTS
    names = [f"set-{i:05}-of-{len(cuts) - 1:05}.bin" for i in range(len(cuts) - 1)]

    def write(path: Path, some: list[tuple[np.ndarray, np.ndarray | None]]) -> None:
        with TokenizedWriter(
            path, rows=rows, mask=mask, vocab_size=VOCAB, format="f", preference=preference
        ) as writer:
            for ids, flags in some:
                writer.append(ids, flags)
            writer.finish()

    write(folder / "one.bin", made)
    native.join_later(folder / "set.bin")
    for name, (begin, end) in zip(names, itertools.pairwise(cuts), strict=True):
        write(folder / name, made[begin:end])
    with pytest.raises(DataError, match="interrupted"):
        TokenizedDataset.load(folder / "set.bin")
    with pytest.raises(DataError, match="interrupted"):
        TokenFiles.open(folder / "set.bin")
    native.join(folder / "set.bin", names)
    return folder / "one.bin", folder / "set.bin"


@pytest.mark.parametrize(
    ("rows", "mask"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_a_set_reads_as_one_file(tmp_path: Path, rows: bool, mask: bool) -> None:
    one_path, set_path = write_both(tmp_path, rows=rows, mask=mask)
    assert is_set(set_path) and not is_set(one_path)
    with TokenizedDataset.load(one_path) as one, TokenizedDataset.load(set_path) as all_of:
        assert all_of.is_set and not one.is_set
        assert (one.file_count, all_of.file_count) == (1, len(CUTS) - 1)
        assert len(all_of) == len(one)
        assert "4 files" in repr(all_of)
        np.testing.assert_array_equal(all_of.tokens, one.tokens)
        np.testing.assert_array_equal(all_of.read(5, 90), one.tokens[5:90])
        for name in ("mask_bits", "loss_mask", "row_starts"):
            left, right = getattr(all_of, name), getattr(one, name)
            assert (left is None) == (right is None), name
            if left is not None:
                np.testing.assert_array_equal(left, right)
        assert all_of.row_count == one.row_count
        if rows:
            for row in (0, 6, 7, 19, 20, 40):
                np.testing.assert_array_equal(all_of.row(row), one.row(row))
            with pytest.raises(IndexError):
                all_of.row(41)
        with pytest.raises(IndexError):
            all_of.read(0, len(one) + 1)
        with pytest.raises(DataError, match="set of 4 files"):
            native.tokens(all_of.native)
        for left, right in zip(
            all_of.batches(2, 9, shuffle=True), one.batches(2, 9, shuffle=True), strict=True
        ):
            np.testing.assert_array_equal(left.input_ids, right.input_ids)
            np.testing.assert_array_equal(left.labels, right.labels)
        for left, right in zip(all_of.micro_batches(3, 16), one.micro_batches(3, 16), strict=True):
            np.testing.assert_array_equal(left.input_ids, right.input_ids)
            np.testing.assert_array_equal(left.targets, right.targets)
        assert all_of.verify() == (len(CUTS) - 1) * one.verify()
        all_of.check_vocabulary(VOCAB)
        with pytest.raises(DataError, match="vocabulary"):
            all_of.check_vocabulary(VOCAB // 2)
    ours, theirs = TokenFiles.open(set_path.with_suffix(".json")), TokenFiles.open(one_path)
    np.testing.assert_array_equal(ours.token_ids[:], theirs.token_ids[:])
    np.testing.assert_array_equal(ours.token_ids[-70:], theirs.token_ids[-70:])
    assert ours.token_ids.first_at_least(VOCAB // 2) == theirs.token_ids.first_at_least(VOCAB // 2)
    assert ours.token_ids.first_at_least(VOCAB) is None
    left, right = (
        TokenRows.open(path, batch_size=2, max_seq_len=12) for path in (set_path, one_path)
    )
    assert left.batch_count == right.batch_count
    assert [left[row] for row in range(len(left))] == [right[row] for row in range(len(right))]


@pytest.mark.parametrize("packing", ["bfd", "bfd_split", "wrapped"])
def test_packed_batches_of_a_set_are_those_of_one_file(tmp_path: Path, packing: str) -> None:
    one_path, set_path = write_both(tmp_path)
    with TokenizedDataset.load(one_path) as one, TokenizedDataset.load(set_path) as all_of:
        ours, theirs = (data.micro_batches(3, 16, packing=packing) for data in (all_of, one))
        assert len(ours) == len(theirs)
        seen = 0
        for left, right in zip(ours, theirs, strict=True):
            seen += left.token_count
            for name in ("input_ids", "targets", "positions", "first"):
                a, b = getattr(left, name), getattr(right, name)
                assert (a is None) == (b is None) == (packing == "wrapped" and name[0] in "pf")
                if a is not None:
                    np.testing.assert_array_equal(a, b)
        assert seen == len(one) or packing == "bfd"
        with pytest.raises(ArgumentError, match="must be one of none, bfd"):
            one.micro_batches(3, 16, packing="best")


def test_pairs_may_be_a_set(tmp_path: Path) -> None:
    one_path, set_path = write_both(tmp_path, preference=True)
    with TokenizedDataset.load(one_path) as one, TokenizedDataset.load(set_path) as all_of:
        for pair in (0, 2, 3, 9, 10, 19):
            for left, right in zip(all_of.pair(pair), one.pair(pair), strict=True):
                np.testing.assert_array_equal(left, right)
    ours, theirs = (
        PreferenceRows.open(path, batch_size=2, max_seq_len=12) for path in (set_path, one_path)
    )
    assert len(ours) == len(theirs) > 0
    assert [ours[at] for at in range(len(ours))] == [theirs[at] for at in range(len(theirs))]


def test_info_describes_a_set(tmp_path: Path) -> None:
    one_path, set_path = write_both(tmp_path)
    one, all_of = (describe(path, rows=2, verify=True) for path in (one_path, set_path))
    assert all_of.pop("files") == 4
    assert all_of.pop("checksums") == "12 files agree"
    for key in ("path", "checksums"):
        one.pop(key)
        all_of.pop(key, None)
    assert all_of == one


def _edit(path: Path, **changes: object) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **changes}))


def _swap(folder: Path, left: int, right: int) -> None:
    for suffix in (".bin", ".json", ".mask", ".idx"):
        a, b = (folder / f"set-{i:05}-of-00004{suffix}" for i in (left, right))
        a.rename(folder / "aside")
        b.rename(a)
        (folder / "aside").rename(b)
    for i in (left, right):
        stem = f"set-{i:05}-of-00004"
        _edit(folder / f"{stem}.json", mask=f"{stem}.mask", idx=f"{stem}.idx")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("bin", "not there"),
        ("manifest", "not there|no manifest|missing"),
        ("count", "another run"),
        ("order", "changed places"),
        ("listed", "what its\\s+name says"),
        ("twice", "twice"),
        ("tokenizer", "another tokenizer"),
        ("format", "another format"),
        ("sums", "files\\s+(have|together)"),
        ("beside", "lies beside"),
        ("mask", "mask"),
    ],
)
def test_both_readers_refuse_a_faulty_set(tmp_path: Path, fault: str, words: str) -> None:
    _, set_path = write_both(tmp_path)
    beside = set_path.with_suffix(".json")
    second = tmp_path / "set-00002-of-00004.bin"
    entries = json.loads(beside.read_text())["shards"]
    if fault == "bin":
        second.unlink()
    elif fault == "manifest":
        for suffix in (".json", ".mask", ".idx"):
            second.with_suffix(suffix).unlink()
    elif fault == "count":
        with TokenizedWriter(second, vocab_size=VOCAB, format="f") as writer:
            writer.append([1, 2, 3])
            writer.finish()
    elif fault == "order":
        _swap(tmp_path, 0, 2)
    elif fault == "listed":
        _edit(beside, shards=[entries[1], entries[0], *entries[2:]])
    elif fault == "twice":
        again = [entries[0], entries[0], *entries[2:]]
        sums = {key: sum(entry[key] for entry in again) for key in ("count", "rows")}
        _edit(beside, shards=again, **sums)
    elif fault == "tokenizer":
        _edit(second.with_suffix(".json"), tokenizer_hash="ab" * 32)
    elif fault == "format":
        _edit(second.with_suffix(".json"), format="g")
    elif fault == "sums":
        _edit(beside, count=1)
    elif fault == "beside":
        set_path.write_bytes(b"\0\0\0\0")
    elif fault == "mask":
        _edit(second.with_suffix(".json"), mask=None)
    for read in (TokenizedDataset.load, TokenFiles.open):
        with pytest.raises((DataError, MissingFileError), match=words) as caught:
            read(set_path)
        assert isinstance(caught.value, AbiTrainError)
