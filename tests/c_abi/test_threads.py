"""Python's lock is free during long calls; two calls never change one object at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import abi_train
from abi_train import errors
from abi_train.trainer import FinishedEvent


def _wide(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}


def test_other_threads_run_while_the_trainer_works(
    tiny: dict[str, Any], settings: dict[str, Any], token_file: Path
) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    model = abi_train.Model.random(_wide(tiny), seed=1)
    settings |= {"batch_size": 8, "max_seq_len": 64, "threads": 1}
    trainer = abi_train.Trainer(settings | {"batch_size": 8}, model, data)
    inside = threading.Event()
    ticks = 0

    def work() -> None:
        inside.set()
        trainer.next_event()

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait()
    longest = 0.0
    last = time.perf_counter()
    while worker.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
        ticks += 1
    worker.join()
    assert ticks > 2, "the lock was held during the whole step"


def test_a_second_call_on_a_busy_trainer_is_refused_and_stopping_is_not(
    tiny: dict[str, Any], settings: dict[str, Any], token_file: Path
) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    model = abi_train.Model.random(_wide(tiny), seed=1)
    trainer = abi_train.Trainer(settings | {"epochs": 1000, "early_stopping": False}, model, data)
    reasons: list[str] = []

    def work() -> None:
        for event in trainer:
            if isinstance(event, FinishedEvent):
                reasons.append(event.stop_reason)

    worker = threading.Thread(target=work)
    worker.start()
    busy = 0
    deadline = time.monotonic() + 30
    while busy == 0 and time.monotonic() < deadline:
        try:
            _ = trainer.global_step
            _ = trainer.gradients
        except errors.BusyError:
            busy += 1
    trainer.request_stop()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert busy > 0
    assert reasons == ["interrupted"]


def test_one_tokenized_file_serves_many_threads(token_file: Path) -> None:
    data = abi_train.TokenizedDataset.load(token_file)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(50):
                seen = sorted(b.index for b in data.batches(2, 16, True, seed=seed))
                assert seen == list(range(31))
                data.check_vocabulary(61)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
