"""Data larger than the machine's memory: mapped, never read whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from abi_train._native import dataset as native
from abi_train.data.files import TokenFiles
from abi_train.dataset import TokenizedDataset

STATUS = Path("/proc/self/status")


def anonymous_mib() -> float:
    """Memory of this process that is no file's."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def make(path: Path, tokens: int) -> None:
    """A file of zeros that takes no room on the disk."""
    try:
        with path.open("wb") as file:
            file.truncate(4 * tokens)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    manifest = {"schema": "abi_train/token-bin/1", "count": tokens, "crc32c": {"bin": "00000000"}}
    path.with_suffix(".json").write_text(json.dumps(manifest))


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
@pytest.mark.parametrize("files", [1, 3])
def test_data_larger_than_memory_take_little_of_it(tmp_path: Path, files: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    tokens = memory // 4 // files + (1 << 20) + 5
    names = [f"big-{i:05}-of-{files:05}.bin" for i in range(files)]
    for name in names:
        make(tmp_path / name, tokens)
    native.join(tmp_path / "big.bin", names)
    path = tmp_path / ("big.bin" if files > 1 else names[0])
    before = anonymous_mib()
    with TokenizedDataset.load(path) as data:
        assert 4 * len(data) > memory
        batches = data.micro_batches(8, 1024, shuffle=True, seed=3)
        for batch, _ in zip(batches, range(30), strict=False):
            assert not batch.targets.any()
        batches.seek(0, len(batches) - 2)
        assert sum(1 for _ in batches) == 2
        found = TokenFiles.open(path)
        assert found.token_ids.size == files * tokens
        assert not found.token_ids[tokens - 9 : tokens + 9].any()
        # Two orders of 4 bytes a batch, and buffers of one batch.
        assert anonymous_mib() - before < 16 + 8 * len(batches) / 2**20
    for name in names:
        (tmp_path / name).unlink()
