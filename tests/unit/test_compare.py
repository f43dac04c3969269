"""The comparison finds the first figure out of tolerance, and only then says no."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_train.check.compare import Side, compare
from abi_train.check.report import render_page, verdict, write_report
from abi_train.runspec import StepRecord

NAMES = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]


def side(engine: str) -> Side:
    draw = np.random.default_rng(0)
    tensors = {name: draw.normal(size=(4, 3)).astype(np.float32) for name in NAMES}
    history = [
        StepRecord(
            step=at + 1,
            loss=5.0 - at / 10,
            grad_norm=2.0 + at,
            learning_rate=1e-4 * (at + 1),
            epoch=at / 4,
            accuracy=0.1,
            tokens=100 * at,
            tokens_per_second=1e3,
        )
        for at in range(6)
    ]
    return Side(engine=engine, history=history, gradients=tensors, weights=dict(tensors))


def changed(step: int, **values: Any) -> Side:
    given = side("native")
    history = list(given.history)
    history[step - 1] = dataclasses.replace(history[step - 1], **values)
    return dataclasses.replace(given, history=history)


def test_equal_runs_agree() -> None:
    result = compare(side("native"), side("trl"))
    assert result.ok and result.fault is None
    assert set(result.worst().values()) == {0.0}


@pytest.mark.parametrize(
    ("left", "kind", "where", "cause"),
    [
        (changed(1, loss=5.1), "loss", "update 1", "forward"),
        (changed(2, loss=5.1), "loss", "update 2", "optimizer"),
        (changed(4, loss=5.1), "loss", "update 4", "rounding"),
        (changed(1, grad_norm=2.1), "grad_norm", "update 1", "backward"),
        (changed(3, learning_rate=3.0000001e-4), "learning_rate", "update 3", "schedule"),
        (changed(3, loss=float("nan")), "loss", "update 3", ""),
    ],
)
def test_the_first_difference_is_named_with_its_cause(
    left: Side, kind: str, where: str, cause: str
) -> None:
    result = compare(left, side("trl"))
    assert result.fault is not None and not result.ok
    assert result.fault.kind == kind
    assert where in result.fault.where
    assert cause in result.fault.cause


def test_a_wrong_gradient_is_named_by_its_tensor() -> None:
    left = side("native")
    gradients = dict(left.gradients)
    gradients[NAMES[1]] = gradients[NAMES[1]] * 1.001
    result = compare(dataclasses.replace(left, gradients=gradients), side("trl"))
    assert result.fault is not None
    assert NAMES[1] in result.fault.where
    assert "attention" in result.fault.cause


def test_a_gradient_of_pure_noise_is_measured_against_the_whole() -> None:
    left, right = side("native"), side("trl")
    noise = {"model.layers.0.self_attn.k_proj.bias": np.full(3, 1e-9, dtype=np.float32)}
    opposite = {name: -value for name, value in noise.items()}
    result = compare(
        dataclasses.replace(left, gradients={**left.gradients, **noise}),
        dataclasses.replace(right, gradients={**right.gradients, **opposite}),
    )
    assert result.gradients[-1].note.startswith("noise")
    assert result.gradients[-1].difference < 1.0


def test_a_missing_tensor_is_a_fault() -> None:
    left = side("native")
    weights = dict(left.weights)
    del weights[NAMES[2]]
    result = compare(dataclasses.replace(left, weights=weights), side("trl"))
    assert result.fault is not None and NAMES[2] in result.fault.where


def test_another_number_of_updates_is_a_fault() -> None:
    left = side("native")
    result = compare(dataclasses.replace(left, history=left.history[:-1]), side("trl"))
    assert result.fault is not None and result.fault.kind == "shape"


def test_rounding_is_told_from_a_mistake_by_float64() -> None:
    left = side("native")
    weights = {name: value + 1e-5 for name, value in left.weights.items()}
    single = compare(dataclasses.replace(left, weights=weights), side("trl"))
    double = compare(side("native"), side("trl"), precision="float64")
    both = dataclasses.replace(single, in_float64=double)
    assert not single.ok and both.ok and both.rounding_only
    assert "rounding" in verdict(both)[0]


def test_the_report_is_one_page_without_anything_from_outside(tmp_path: Path) -> None:
    left = changed(2, loss=float("inf"))
    document, page = write_report(compare(left, side("trl")), tmp_path / "report")
    assert json.loads(document.read_text())["ok"] is False
    text = page.read_text()
    for foreign in ("http://", "https://", "<script", "src=", "@import", "url("):
        assert foreign not in text
    assert text.count("<svg") == 6


def test_names_are_escaped_on_the_page() -> None:
    left = side("native")
    weights = {"<b>": next(iter(left.weights.values()))}
    same = dataclasses.replace(left, weights=weights)
    text = render_page(compare(same, dataclasses.replace(same, engine="trl")))
    assert "<td class='name'><b>" not in text
