"""`Generator`: several prompts at once, guesses, logits, and what is kept between calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import SHAPES, forward, write_tiny_gguf

from abi_train import Generator
from abi_train.errors import ArgumentError, ClosedError, NumericsError

TYPES = gguf.GGMLQuantizationType
RNG = np.random.default_rng(3)
PROMPTS = [
    list(range(40)),
    [7],
    [*range(40), 5, 6, 7],
    RNG.integers(0, 256, 100).tolist(),
    [1, 2, 3, 1, 2, 3, 1, 2, 3],
]
EACH: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 2, "seed": 1},
    {},
    {"temperature": 0.7, "seed": 1, "max_new_tokens": 7},
    {"temperature": 1.0, "top_p": 0.5, "seed": 9, "repeat_penalty": 1.3},
    {"temperature": 0.3, "top_k": 2, "seed": 4, "stop_ids": list(range(0, 200, 9))},
]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_gguf(folder / "model.gguf", SHAPES[request.param], dtype=TYPES.Q8_0)
    return folder / "model.gguf"


@pytest.fixture
def model(path: Path) -> Iterator[Generator]:
    with Generator.open(path, threads=2) as opened:
        yield opened


def alone(path: Path, index: int, **more: Any) -> tuple[list[int], list[bytes], str | None]:
    """Ids, logits and end of one prompt in a generator of its own."""
    with Generator.open(path, threads=1) as fresh:
        ids, logits = [], []
        for found in fresh.generate(PROMPTS[index], **EACH[index], **more):
            ids.append(found)
            logits.append(fresh.last_logits.tobytes())
        return ids, logits, fresh.end_reason


def test_a_batch_gives_each_prompt_what_it_gets_alone(path: Path, model: Generator) -> None:
    expected = [alone(path, i) for i in range(len(PROMPTS))]
    for lanes in (1, 2, 8):
        for drafts in (0, 5):
            answers = model.generate_batch(PROMPTS, each=EACH, lanes=lanes, drafts=drafts)
            assert [a.ids for a in answers] == [ids for ids, _, _ in expected]
            assert [a.end_reason for a in answers] == [end for _, _, end in expected]
            for answer, prompt in zip(answers, PROMPTS, strict=True):
                assert answer.counts["prompt"] == len(prompt)
                assert answer.counts["answer"] == len(answer.ids)
    # The third prompt begins with the first: what is known of that is not computed again.
    assert answers[2].counts["reused"] >= 40


def test_guesses_change_no_id_and_no_logit(path: Path, model: Generator) -> None:
    accepted = 0
    for index in range(len(PROMPTS)):
        ids, logits, end = alone(path, index)
        for drafts in (1, 15):
            found = []
            for at, token in enumerate(
                model.generate(PROMPTS[index], **EACH[index], drafts=drafts)
            ):
                found.append(token)
                assert model.last_logits.tobytes() == logits[at]
            assert (found, model.end_reason) == (ids, end)
            counts = model.counts
            assert counts["accepted"] <= counts["guessed"]
            accepted += counts["accepted"]
    assert accepted > 0


def test_a_stream_gives_ids_as_they_come(model: Generator) -> None:
    answers: dict[int, list[int]] = {}
    order = []
    for index, token in model.stream_batch(PROMPTS[:3], max_new_tokens=5):
        order.append(index)
        answers.setdefault(index, []).append(token)
        assert model.answers[index].ids[: len(answers[index])] == answers[index]
    assert sorted(order) == [0] * 5 + [1] * 5 + [2] * 5
    assert order != sorted(order)
    assert [answers[i] for i in range(3)] == [a.ids for a in model.answers]
    assert model.generate_batch([]) == []


def test_what_was_asked_before_changes_no_bit(path: Path, model: Generator) -> None:
    long = PROMPTS[3]
    with Generator.open(path) as fresh:
        expected = fresh.logits(long)
    list(model.generate(long[:50], max_new_tokens=20))
    assert model.logits(long).tobytes() == expected.tobytes()
    assert model.counts["reused"] == 50
    model.log_probs(long[:70], first=9)
    assert model.logits(long).tobytes() == expected.tobytes()
    # An answer that becomes part of a prompt is read as a prompt.
    answer = list(model.generate(long[:50], max_new_tokens=20))
    with Generator.open(path) as fresh:
        expected = fresh.logits(long[:50] + answer)
    assert model.logits(long[:50] + answer).tobytes() == expected.tobytes()


def test_logits_of_every_position(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny = write_tiny_gguf(path, SHAPES["llama"])
    ids = PROMPTS[3]
    with Generator.open(path) as model:
        rows = model.logits(ids, first=0)
        assert rows.shape == (len(ids), tiny.vocab)
        assert rows.dtype == np.float32
        expected = forward(tiny, ids)
        assert np.abs(rows - expected).max() < 1e-5 * expected.std()
        assert rows[-1].tobytes() == model.logits(ids).tobytes()
        assert rows[60].tobytes() == model.logits(ids[:61]).tobytes()
        assert model.logits(ids, first=97).tobytes() == rows[97:].tobytes()
        for ids_, first, text in (
            (ids, 100, "below their number"),
            ([], 0, "below their number"),
            ([1, 9999], 0, "vocabulary"),
            ([1] * 300, 0, "context has 256"),
        ):
            with pytest.raises(ArgumentError, match=text):
                model.logits(ids_, first=first)


def test_wrong_requests_are_refused_and_nothing_is_lost(model: Generator) -> None:
    before = model.generate_batch(PROMPTS[:2])
    for call, text in (
        (lambda: model.generate_batch([[1], []]), "no ids"),
        (lambda: model.generate_batch([[1], [10**6]]), "vocabulary"),
        (lambda: model.generate_batch([[1], [1] * 400]), "the prompt has 400 ids"),
        (lambda: model.generate_batch([[1]], lanes=0), "lanes is 0"),
        (lambda: model.generate_batch([[1]], lanes=33), "from 1 to 32"),
        (lambda: model.generate_batch([[1]], each=[]), "each has 0 entries"),
        (lambda: model.generate_batch([[1]], warmth=1), "no such option: warmth"),
        (lambda: model.generate_batch([[1]], each=[{"ids": [2]}]), "no such option: ids"),
        (lambda: model.generate_batch([[1]], drafts=16), "drafts is 16"),
        (lambda: model.generate_batch([[1]], temperature=-1.0), "temperature"),
        (lambda: model.generate_batch([[1]], seed=-1), "seed"),
    ):
        with pytest.raises(ArgumentError, match=text):
            call()
    assert [a.ids for a in model.generate_batch(PROMPTS[:2])] == [a.ids for a in before]


def test_an_answer_that_was_overtaken_says_so(model: Generator) -> None:
    first = model.generate([1, 2, 3])
    next(first)
    second = model.generate([1, 2, 3])
    with pytest.raises(ArgumentError, match="overtaken"):
        next(first)
    assert len(list(second)) > 0
    with pytest.raises(ArgumentError, match="no id was yielded"):
        _ = model.last_logits
    third = model.generate([1, 2, 3])
    model.close()
    with pytest.raises(ClosedError):
        next(third)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    norm = np.full(64, np.nan, np.float32)
    write_tiny_gguf(path, SHAPES["llama"], replace={"output_norm.weight": norm})
    with Generator.open(path) as model:
        with pytest.raises(NumericsError, match="not numbers"):
            model.generate_batch([[1], [2]])
        with pytest.raises(NumericsError, match="not numbers"):
            list(model.generate([1]))
