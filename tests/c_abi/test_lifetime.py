"""Views keep their owner alive; nothing leaks; nothing crashes at exit or after a fork."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import SETTINGS, TINY, run_child

import abi_train
from abi_train import errors


def test_token_views_outlive_their_data_set(token_file: Path) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    tokens = data.tokens
    batches = list(data.batches(2, 16))
    data.close()
    del data
    gc.collect()
    assert tokens[:3].tolist() == [0, 7, 14]
    assert batches[1].labels[0, 0] == tokens[33]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_batches_are_the_file_itself(token_file: Path) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    tokens = data.tokens
    batch = next(iter(data.batches(2, 16)))
    assert np.shares_memory(batch.input_ids, tokens)
    assert batch.input_ids.shape == (2, 16)
    assert batch.input_ids.dtype == np.uint32


def test_weights_are_one_memory_for_all_views(tiny: dict[str, Any]) -> None:
    model = abi_train.Model.random(tiny, seed=1)
    name = next(iter(model))
    model[name][0, 0] = 42
    assert model.weights[0] == 42
    assert model.state_dict()[name][0, 0] == 42
    view = model[name]
    model.close()
    del model
    gc.collect()
    assert view[0, 0] == 42


def test_a_trainer_keeps_model_and_data_alive(
    tiny: dict[str, Any], settings: dict[str, Any], token_file: Path
) -> None:
    model = abi_train.Model.random(tiny, seed=1)
    weights = model.weights
    before = weights.copy()
    data = abi_train.TokenizedDataset.load(token_file)
    trainer = abi_train.Trainer(settings, model, data)
    model.close()
    data.close()
    gc.collect()
    trainer.next_event()
    assert not np.array_equal(weights, before)
    gradients = trainer.gradients
    trainer.close()
    gc.collect()
    assert np.isfinite(gradients).all() and gradients.any()


def test_closed_objects_say_so(tiny: dict[str, Any], token_file: Path) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    data.close()
    data.close()
    with pytest.raises(errors.ClosedError, match="closed before"):
        _ = data.tokens
    with abi_train.Model.random(tiny, seed=1) as model:
        pass
    with pytest.raises(ValueError, match="closed before"):
        _ = model.weights


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opening_and_closing_leaks_neither_memory_nor_files(
    tiny: dict[str, Any], token_file: Path
) -> None:
    def cycle() -> None:
        data = abi_train.TokenizedDataset.load(token_file)
        list(data.batches(4, 64))
        data.close()
        abi_train.Model.random(tiny, seed=1).close()
        abi_train.parse_instruction_dataset(b'{"instruction": "a", "output": "b"}')
        with pytest.raises(errors.MissingFileError):
            abi_train.TokenizedDataset.load("/no/such/file.bin")

    for _ in range(100):
        cycle()
    files = len(list(Path("/proc/self/fd").iterdir()))
    memory = _resident_bytes()
    for _ in range(1000):
        cycle()
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert _resident_bytes() - memory < 2 << 20


AT_EXIT = """
import sys, json
import abi_train
tiny, settings = json.loads(sys.argv[1])
data = abi_train.TokenizedDataset.load(sys.argv[2])
model = abi_train.Model.random(tiny, seed=1)
trainer = abi_train.Trainer(settings, model, data)
trainer.next_event()
views = [data.tokens, model.weights, trainer.gradients, trainer.moments]
loop = [views, trainer]
loop.append(loop)
"""


def test_objects_may_die_with_the_interpreter(token_file: Path) -> None:
    import json

    for _ in range(3):
        done = run_child(AT_EXIT, json.dumps([TINY, SETTINGS]), str(token_file))
        assert (done.returncode, done.stderr) == (0, "")


FORK = """
import os, sys, json
import abi_train
from abi_train import errors
tiny, settings = json.loads(sys.argv[1])
data = abi_train.TokenizedDataset.load(sys.argv[2])
trainer = abi_train.Trainer(settings, abi_train.Model.random(tiny, seed=1), data)
trainer.next_event()
child = os.fork()
if child == 0:
    try:
        trainer.next_event()
    except errors.UnsupportedError as error:
        assert "fork" in str(error)
        assert data.tokens[1] == 7
        trainer.close()
        os._exit(0)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert trainer.next_event() is not None
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_an_error_and_not_a_deadlock(token_file: Path) -> None:
    import json

    done = run_child(FORK, json.dumps([TINY, SETTINGS]), str(token_file))
    assert done.returncode == 0, done.stderr
