"""The forms in which keys and values are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import SHAPES, write_tiny_gguf

from abi_train import Generator
from abi_train.errors import ArgumentError, FormatError

TYPES = gguf.GGMLQuantizationType
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 256, 180)]


def logits_of(path: Path, **options: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """What the generator says of itself, and logits after a prompt and after one id more."""
    with Generator.open(path, threads=2, **options) as model:
        found = [model.logits(IDS), model.logits([*IDS, 7])]
        return model.info, np.stack(found).astype(np.float64)


def test_a_smaller_cache_rounds_within_its_form_and_takes_less_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["qwen3"], dtype=TYPES.F32)
    found = {form: logits_of(path, cache=form) for form in ("f32", "f16", "q8_0")}
    exact = found["f32"][1]
    errors = {form: (logits - exact).std() / exact.std() for form, (_, logits) in found.items()}
    assert 0 < errors["f16"] < 2e-3
    assert errors["f16"] < errors["q8_0"] < 0.05
    sizes = {form: info["cache_bytes"] for form, (info, _) in found.items()}
    assert sizes["f32"] == 2 * sizes["f16"]
    assert sizes["q8_0"] * 32 * 4 == sizes["f32"] * 34


@pytest.mark.parametrize(
    ("dtype", "options", "form"),
    [
        (TYPES.F32, {}, "f32"),
        (TYPES.F16, {}, "f32"),
        (TYPES.Q8_0, {}, "f16"),
        (TYPES.Q8_0, {"exact": True}, "f32"),
        (TYPES.Q8_0, {"exact": True, "cache": "f16"}, "f16"),
    ],
)
def test_the_usual_form_follows_the_weights(
    tmp_path: Path, dtype: TYPES, options: dict[str, Any], form: str
) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["llama"], dtype=dtype)
    with Generator.open(path, **options) as model:
        assert model.info["cache"] == form


def test_the_program_takes_the_same_forms(generate: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["qwen3"], dtype=TYPES.F32)
    for form in ("f32", "f16", "q8_0"):
        told = generate(path, IDS, "-n", "1", "--logits", "--ignore-stop", "--cache", form)
        _, logits = logits_of(path, cache=form)
        np.testing.assert_array_equal(np.float32(told["logits"][0]), np.float32(logits[0]))


def test_what_cannot_be_is_refused_with_the_next_move(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["llama"])  # heads of 16 numbers
    with pytest.raises(FormatError, match=r"multiple of 32 numbers, .* have 16; take f16"):
        Generator.open(path, cache="q8_0")
    with pytest.raises(ArgumentError, match="cache is 'f8'; it must be one of f32, f16, q8_0"):
        Generator.open(path, cache="f8")
    done = run("generate", "--model", path, "--ids", "1,2", "--cache", "q8_0")
    assert done.returncode == 1
    assert "take f16" in done.stderr
    done = run("generate", "--model", path, "--ids", "1,2", "--cache", "half")
    assert done.returncode == 2
    assert "--cache is half; it must be f32, f16 or q8_0" in done.stderr
