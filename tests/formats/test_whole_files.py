"""Whole files, to the byte: what llama.cpp's own tools wrote of the same input."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from quantised_files import (
    CHUNK,
    CHUNKS,
    MIXES,
    SOURCES,
    SPEECH,
    sha256,
    write_importance,
    write_source,
    write_speaker,
)

from abi_train import quantize_gguf

HOME = Path(__file__).parent
HASHES: dict[str, dict[str, str]] = json.loads((HOME / "whole_files.json").read_text("utf-8"))


def abi(program: Path, folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [program, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_model_and_mix_has_a_hash() -> None:
    cases = {"", "imatrix", *MIXES, *(f"{mix} imatrix" for mix in MIXES)}
    assert {kind: set(found) for kind, found in HASHES.items()} == dict.fromkeys(SOURCES, cases)


@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_quantised_file_is_llama_quantizes_to_the_byte(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the importance matrix's name stands in the file
    wanted = HASHES[kind]
    source = write_source(tmp_path / "source.gguf", kind)
    weights = write_importance(tmp_path / "imatrix.gguf", kind)
    assert sha256(source) == wanted[""], "the package gguf wrote another source than for the hashes"
    assert sha256(weights) == wanted["imatrix"]
    for mix in MIXES:
        for imatrix in (None, weights.name):
            made = quantize_gguf(source.name, "out.gguf", mix=mix, imatrix=imatrix)
            case = f"{mix} imatrix" if imatrix else mix
            assert sha256(made.path) == wanted[case], case
            assert made.size_bytes == made.path.stat().st_size


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_importance_is_what_llama_imatrix_collected(
    program: Path, tmp_path: Path, form: str
) -> None:
    write_speaker(tmp_path / "speaker.gguf")
    (tmp_path / "text.txt").write_text(SPEECH, encoding="utf-8")
    out = f"ours.{form}"
    options = ["--chunk", CHUNK, "--chunks", CHUNKS]
    abi(program, tmp_path, "imatrix", "speaker.gguf", "text.txt", "-o", out, *options)
    theirs = HOME / f"speaker.imatrix.{form}"
    left, right = theirs.read_bytes(), (tmp_path / out).read_bytes()
    assert len(left) == len(right)
    if form == "gguf":  # keys and descriptions of tensors, to the byte
        begin = gguf.GGUFReader(theirs).data_offset
        assert left[:begin] == right[:begin]
    a, b = values(theirs, form), values(tmp_path / out, form)
    assert list(a) == list(b) and len(a) == 14 * (2 if form == "gguf" else 1)
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # Both guide alike: where sums differ in the last bits no code of this model does.
    made = []
    for path in (theirs, tmp_path / out):
        arguments = ["quantize", "speaker.gguf", "small.gguf", "q4_0", "--imatrix", path]
        abi(program, tmp_path, *arguments)
        reader = gguf.GGUFReader(tmp_path / "small.gguf")
        made.append({t.name: (t.tensor_type, np.array(t.data)) for t in reader.tensors})
    assert {t for t, _ in made[0].values()} >= {gguf.GGMLQuantizationType.Q4_0}
    for name, (kind, data) in made[0].items():
        assert made[1][name][0] == kind
        differ = float((made[1][name][1] != data).mean())
        assert differ < 0.01, f"{name}: {differ:.2%} of the bytes differ"


def values(path: Path, form: str) -> dict[str, Any]:
    """The numbers of an importance matrix by name, in the order of the file."""
    if form == "gguf":
        return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    raw, found, at = path.read_bytes(), dict[str, Any](), 4
    for _ in range(int.from_bytes(raw[:4], "little")):
        size = int.from_bytes(raw[at : at + 4], "little")
        name = raw[at + 4 : at + 4 + size].decode()
        calls, count = np.frombuffer(raw, "<i4", 2, at + 4 + size)
        begin = at + 12 + size
        found[name] = np.append(np.frombuffer(raw, "<f4", int(count), begin), calls)
        at = begin + 4 * int(count)
    assert int.from_bytes(raw[at : at + 4], "little") == CHUNKS
    return found
