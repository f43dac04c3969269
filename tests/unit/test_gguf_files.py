"""GGUF files made coarser, cut, joined and looked into from Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from quantised_files import write_importance, write_source

from abi_train import _native, inspect_gguf, join_gguf, quantize_gguf, split_gguf
from abi_train.errors import (
    ArgumentError,
    FileAccessError,
    FormatError,
    MissingFileError,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("files") / "source.gguf", "wide-tied")


def test_quantising_says_what_it_wrote_and_is_what_the_program_writes(
    program: Path, source: Path, tmp_path: Path
) -> None:
    made = quantize_gguf(source, tmp_path / "small.gguf", mix="Q4_K_M", threads=1)
    assert (made.path, made.mix) == (tmp_path / "small.gguf", "q4_k_m")
    assert made.size_bytes == made.path.stat().st_size
    assert made.size_bytes == _native.export.quantize_size(source, made.path, "q4_k_m")
    tensors = gguf.GGUFReader(source).tensors
    assert made.tensors == len(tensors)
    assert made.parameters == sum(int(t.n_elements) for t in tensors)
    assert made.source_bytes == sum(int(t.n_bytes) for t in tensors)
    assert made.fallbacks > 0 and 4 < made.bits_per_parameter < 9
    command = [program, "quantize", source, tmp_path / "program.gguf", "q4_k_m"]
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=120)
    assert (tmp_path / "program.gguf").read_bytes() == made.path.read_bytes()
    types = {t["name"]: t["dtype"] for t in inspect_gguf(made.path)["tensors"]}
    assert types["blk.0.ffn_up.weight"] == "q5_0" and types["token_embd.weight"] == "q8_0"


def test_choices_of_types_are_taken(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    quantize_gguf(source, out, mix="q8_0", embedding_type="f16")
    types = {t["name"]: t["dtype"] for t in inspect_gguf(out)["tensors"]}
    assert types["token_embd.weight"] == "f16" and types["blk.0.attn_q.weight"] == "q8_0"
    quantize_gguf(source, out, mix="q6_k", pure=True)
    types = {t["name"]: t["dtype"] for t in inspect_gguf(out)["tensors"]}
    assert types["blk.0.ffn_down.weight"] == "q6_k" and types["token_embd.weight"] == "q8_0"
    again = quantize_gguf(out, tmp_path / "again.gguf", mix="q4_0", allow_requantize=True)
    assert again.size_bytes < out.stat().st_size
    weights = write_importance(tmp_path / "imatrix.gguf", "wide-tied")
    plain = quantize_gguf(source, tmp_path / "plain.gguf", mix="q4_0")
    told = quantize_gguf(source, tmp_path / "told.gguf", mix="q4_0", imatrix=weights)
    assert told.path.read_bytes() != plain.path.read_bytes()
    keys = inspect_gguf(told.path)["keys"]
    assert keys["quantize.imatrix.file"] == str(weights)[:127]


def test_parts_are_joined_to_what_was_cut(source: Path, tmp_path: Path) -> None:
    parts = split_gguf(source, tmp_path / "part", max_bytes=1_000_000)
    assert len(parts) > 2 and all(part.is_file() for part in parts)
    assert parts[0].name == f"part-00001-of-{len(parts):05d}.gguf"
    joined = join_gguf(parts[1], tmp_path / "joined.gguf")
    assert joined.read_bytes() == source.read_bytes()
    few = split_gguf(source, tmp_path / "few", max_tensors=5)
    assert [len(inspect_gguf(part)["tensors"]) for part in few[:-1]] == [5] * (len(few) - 1)
    small = quantize_gguf(parts[2], tmp_path / "small.gguf", mix="q8_0")
    whole = quantize_gguf(source, tmp_path / "whole.gguf", mix="q8_0")
    assert small.path.read_bytes() == whole.path.read_bytes()


def test_parts_that_are_there_are_kept_and_none_is_left_of_a_failed_cut(
    source: Path, tmp_path: Path
) -> None:
    parts = split_gguf(source, tmp_path / "part", max_tensors=6)
    before = {part: part.read_bytes() for part in parts}
    with pytest.raises(FileAccessError, match="is there already, and parts of two models"):
        split_gguf(source, tmp_path / "part", max_tensors=6)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    broken = tmp_path / "broken.gguf"
    raw = bytearray(source.read_bytes())
    first = min(gguf.GGUFReader(source).tensors, key=lambda t: int(t.data_offset))
    assert first.tensor_type in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32)
    nan = np.array([np.nan], "<f4" if int(first.tensor_type) == 0 else "<f2").tobytes()
    raw[int(first.data_offset) : int(first.data_offset) + len(nan)] = nan
    broken.write_bytes(raw)
    with pytest.raises(FormatError, match="has a value that is no number"):
        split_gguf(broken, tmp_path / "other", max_tensors=2)  # fails with the last one, part 1
    assert not list(tmp_path.glob("other*"))


def test_what_cannot_be_done_is_refused_in_words(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ArgumentError, match=r'mix is "q4_k_l"; it must be f32, .* or mxfp4_moe'):
        quantize_gguf(source, out, mix="q4_k_l")
    with pytest.raises(ArgumentError, match='output_type is "q2_k"; it must be f32'):
        quantize_gguf(source, out, output_type="q2_k")
    with pytest.raises(MissingFileError, match=r"no\.gguf"):
        quantize_gguf(tmp_path / "no.gguf", out)
    with pytest.raises(FileAccessError, match="are the same file, which would be lost"):
        quantize_gguf(source, source)
    with pytest.raises(FormatError, match="no importance matrix"):
        quantize_gguf(source, out, imatrix=source)
    small = quantize_gguf(source, tmp_path / "small.gguf", mix="q8_0").path
    with pytest.raises(FormatError, match="rounds a second time"):
        quantize_gguf(small, out)
    with pytest.raises(ArgumentError, match="neither max_bytes nor max_tensors"):
        split_gguf(source, tmp_path / "part")
    with pytest.raises(ArgumentError, match="max_bytes is 0; it must be at least 1"):
        split_gguf(source, tmp_path / "part", max_bytes=0)
    parts = split_gguf(source, tmp_path / "part", max_tensors=10)
    with pytest.raises(FileAccessError, match="is one of the parts"):
        join_gguf(parts[0], parts[1])
    parts[1].unlink()
    with pytest.raises(MissingFileError, match="part-00002-of-"):
        join_gguf(parts[0], out)
    assert not out.exists()
    (tmp_path / "text.gguf").write_text("a text that is no model, and long enough")
    with pytest.raises(FormatError, match="not a GGUF file"):
        inspect_gguf(tmp_path / "text.gguf")
