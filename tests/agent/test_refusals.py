"""Models that must not be run: each is refused with the tensor or key that is wrong."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import SHAPES, Floats, write_tiny_gguf


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("shape", "tensors", "words"),
    [
        ("llama", {"blk.1.attn_k.weight": None}, "blk.1.attn_k.weight is missing"),
        ("llama", {"output_norm.weight": None}, "output_norm.weight is missing"),
        ("llama", {"token_embd.weight": None}, "token_embd.weight is missing"),
        ("qwen2", {"blk.1.attn_q.bias": None}, "blk.1.attn_q.bias is missing"),
        ("qwen3", {"blk.1.attn_k_norm.weight": None}, "blk.1.attn_k_norm.weight is missing"),
        ("llama", {"blk.0.ffn_up.weight": zeros(96, 32)}, "blk.0.ffn_up.weight has the shape"),
        ("llama", {"blk.0.ffn_up.weight": zeros(64, 96)}, "blk.0.ffn_up.weight has the shape"),
        ("llama", {"blk.0.attn_norm.weight": zeros(65)}, "blk.0.attn_norm.weight has the shape"),
        ("llama", {"blk.0.attn_norm.weight": zeros(64).astype("f2")}, "norms and biases"),
        ("llama", {"blk.0.ffn_up.weight": zeros(96, 64).astype("i4")}, "F32, F16, BF16, Q4_0"),
        ("llama", {"blk.0.ffn_gate_inp.weight": zeros(8, 64)}, "is no part of architecture"),
        ("llama", {"blk.2.attn_q.weight": zeros(64, 64)}, "is no part of architecture"),
        ("llama", {"mystery": zeros(1)}, "is no part of architecture"),
    ],
)
def test_a_wrong_tensor_is_named(
    run: Any, tmp_path: Path, shape: str, tensors: dict[str, Any], words: str
) -> None:
    path = tmp_path / "bad.gguf"
    write_tiny_gguf(path, SHAPES[shape], replace=tensors)
    done = run("generate", "--model", path, "--ids", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "bad.gguf: " in done.stderr
    assert words in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gemma"}, "gemma"),
        ({"heads": 3}, "attn_q.weight has the shape"),
        ({"eps": 0.0}, "rms_norm_eps"),
        ({"theta": -1.0}, "rope_theta"),
        ({"linear_factor": -2.0}, "factor"),
    ],
)
def test_a_wrong_key_is_named(
    run: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """The tensors are those of a sound model; the keys say something else."""
    path = tmp_path / "bad.gguf"
    sound = SHAPES["llama"]
    weights: dict[str, Any] = dict(write_tiny_gguf(tmp_path / "sound.gguf", sound).weights)
    write_tiny_gguf(path, replace(sound, kv_heads=1, **changes), replace=weights)
    done = run("generate", "--model", path, "--ids", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr


def test_broken_weights_are_told_and_not_sampled(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    write_tiny_gguf(path, SHAPES["llama"], replace={"output_norm.weight": zeros(64) + np.nan})
    for arguments in (["generate", "--ids", "1"], ["agent", "-m", "x"]):
        done = run(*arguments, "--model", path)
        assert done.returncode == 1
        assert "not numbers" in done.stderr


def test_types_that_are_not_run_yet_are_named(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "iq4.gguf"
    write_tiny_gguf(path, SHAPES["llama"], dtype=gguf.GGMLQuantizationType.Q4_0)
    # IQ4_NL has blocks of the same size: one number makes a sound file of a type that is not run.
    name = b"blk.0.attn_q.weight"
    data = bytearray(path.read_bytes())
    at = data.index(name) + len(name) + 4 + 2 * 8
    assert data[at : at + 4] == struct.pack("<I", gguf.GGMLQuantizationType.Q4_0)
    data[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType.IQ4_NL)
    path.write_bytes(data)
    done = run("generate", "--model", path, "--ids", "1")
    assert done.returncode == 1
    assert "iq4_nl" in done.stderr
