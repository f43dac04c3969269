"""Rounded products beside llama.cpp's: how far both are from exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_peer import ask
from tiny_gguf import Shape, write_tiny_gguf

from abi_train import Generator

TYPES = gguf.GGMLQuantizationType
# Rows of whole superblocks, and several stretches of 16-bit numbers.
SHAPE = Shape(width=256, inner=768, heads=4, kv_heads=2, head_dim=64)
IDS = [int(i) for i in np.random.default_rng(4).integers(0, 256, 90)]


def log_probs(path: Path, **options: Any) -> np.ndarray[Any, Any]:
    """After a prompt, with a cache that rounds nothing."""
    with Generator.open(path, threads=2, cache="f32", **options) as model:
        wide = model.logits(IDS).astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_rounding_is_no_coarser_than_llama_cpps(run: Any, tmp_path: Path, kind: str) -> None:
    """Against exact products of the same file, by the root of the mean square over all ids."""
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    stored = {"f16": TYPES.F16, "bf16": TYPES.BF16}.get(kind, TYPES.F32)
    model = write_tiny_gguf(path, SHAPE, dtype=stored, plain_tokens=True)
    if stored is TYPES.F32:
        smaller = tmp_path / "smaller.gguf"
        done = run("quantize", path, smaller, kind)
        assert done.returncode == 0, done.stderr
        path = smaller
    (found,) = ask(path, [{"kind": "logprobs", "ids": IDS, "vocab_size": model.vocab}])
    assert found is not None
    exact = log_probs(path, exact=True)
    errors = [(np.asarray(values) - exact).std() for values in (log_probs(path), found)]
    assert 0 <= errors[0] < 2 * errors[1]
    assert errors[1] < 0.1 * exact.std()
