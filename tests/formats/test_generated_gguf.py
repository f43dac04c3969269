"""Files drawn by lot, read by PyPI ``gguf``, by llama.cpp and here: all three agree.

On keys with their values, tensors with their types and every number in them, on whether the file
is taken, and on what the model computes. ``ABI_GGUF_FILES`` says how many (`make gguf-files`: 200),
``ABI_GGUF_SEED`` where to begin.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from generated_gguf import Drawn, draw
from llama_batch import Read, read_all
from raw_gguf import Type

from abi_train import Generator
from abi_train.errors import AbiTrainError

COUNT = int(os.environ.get("ABI_GGUF_FILES", "24"))
FIRST = int(os.environ.get("ABI_GGUF_SEED", "0"))
IDS = [72, 68, 75, 3]

#: What is refused here and taken by llama.cpp, by the code the linter knows it by.
STRICTER = {"trailing-bytes", "special-id-range", "tensor-dimension", "key-value", "bias-missing"}

#: The other way round: what llama.cpp dies of and this program runs.
LAXER = {"alignment-small"}


@dataclass
class Seen:
    """One file through all eyes."""

    drawn: Drawn
    path: Path
    llama: Read
    taken: bool
    refusal: str
    report: dict[str, Any]

    def __str__(self) -> str:
        d = self.drawn
        said = f"here: {self.refusal or 'taken'}\nllama.cpp: {self.llama.said[-600:]}"
        return f"seed {d.seed}: {d.shape} {d.odd} fault: {d.fault!r}\n{said}\n{self.codes}"

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self.report["findings"]}


def taken_here(path: Path) -> str:
    """Why the model or its tokenizer is refused; empty when neither is."""
    try:
        with Generator.open(path, threads=1) as model:
            model.tokenizer.encode("the")
    except AbiTrainError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def seen(program: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    folder = tmp_path_factory.mktemp("drawn")
    all_drawn = [draw(seed) for seed in range(FIRST, FIRST + COUNT)]
    paths = [d.write(folder) for d in all_drawn]
    found = []
    for d, path, llama in zip(all_drawn, paths, read_all(paths, IDS), strict=True):
        readable = path
        if d.parts > 1:  # the generator opens one file
            readable = folder / f"joined-{d.seed}.gguf"
            run(program, "join", path, readable)
        refusal = taken_here(readable)
        report = json.loads(run(program, "lint", path, "--json", check=False))
        report.setdefault("findings", [{"code": "unreadable"}])
        report.setdefault("errors", 1)
        found.append(Seen(d, readable, llama, refusal == "", refusal, report))
    return found


def run(program: Path, *words: str | Path, check: bool = True) -> str:
    done = subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_something_of_everything(seen: list[Seen]) -> None:
    taken = [s for s in seen if s.taken]
    assert len(taken) > COUNT / 3
    assert len(seen) - len(taken) > COUNT / 8
    if COUNT >= 100:
        assert len({s.drawn.shape.kind for s in taken}) > 10
        assert len({s.drawn.shape.architecture for s in taken}) == 4
        assert len({name for s in taken for name in s.drawn.odd}) > 14


def test_whether_a_file_is_taken(seen: list[Seen]) -> None:
    for s in seen:
        if not s.drawn.fault:
            assert s.llama.taken, s
            assert s.taken, s
        if s.llama.taken and not s.taken:
            assert s.codes & STRICTER, s
        if s.taken and not s.llama.taken:
            assert s.codes & LAXER, s


def test_the_linter_knows_what_llama_cpp_refuses(seen: list[Seen]) -> None:
    for s in seen:
        if not s.llama.taken or not s.taken:
            assert s.report["errors"] > 0, s
        if not s.drawn.fault:
            assert s.report["errors"] == 0, s
        if s.report["errors"] == 0:
            assert s.taken, s


def test_keys_are_those_of_the_others(program: Path, seen: list[Seen]) -> None:
    for s in seen:
        if not s.taken:
            continue
        ours = json.loads(run(program, "inspect", s.path, "--json", "--full"))
        reader = gguf.GGUFReader(s.path)
        theirs = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert list(ours["keys"]) == list(theirs), s
        for name, field in theirs.items():
            assert same(ours["keys"][name], field), (name, ours["keys"][name], s)
        listed = {k: kind_of(f) for k, f in theirs.items()}
        split = {"split.no", "split.count", "split.tensors.count", "general.alignment"}
        found = {k: v for k, v in s.llama.keys.items() if k not in split}
        assert found == {k: v for k, v in listed.items() if k not in split}, s


def kind_of(field: gguf.ReaderField) -> str:
    """As llama.cpp lists it."""
    names = {"uint": "u", "int": "i", "float": "f"}

    def short(kind: gguf.GGUFValueType) -> str:
        word = kind.name.lower().rstrip("0123456789")
        if kind == gguf.GGUFValueType.STRING:
            return "str"
        return names[word] + kind.name[len(word) :] if word in names else word

    if field.types[0] != gguf.GGUFValueType.ARRAY:
        return short(field.types[0])
    element = element_type(field)
    return f"arr[{short(element)},{len(field.data)}]"


def element_type(field: gguf.ReaderField) -> gguf.GGUFValueType:
    """Of an empty list the reader keeps only the bytes: type and length."""
    return field.types[1] if field.data else gguf.GGUFValueType(int(field.parts[-2][0]))


def same(ours: Any, field: gguf.ReaderField) -> bool:
    if field.types[0] == gguf.GGUFValueType.ARRAY and not field.data:
        return bool(ours == [])
    theirs = field.contents()
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return alike(ours, theirs)


def alike(a: Any, b: Any) -> bool:
    if isinstance(b, float) and not math.isfinite(b):
        return a is None
    if isinstance(b, float):
        # An f32 comes as f64 from one side, and with its own shortest digits from the other.
        return float(a) == b or (abs(a) < 3.5e38 and np.float32(a) == np.float32(b))
    return bool(a == b)


def test_tensors_are_those_of_the_others(program: Path, seen: list[Seen], tmp_path: Path) -> None:
    for s in seen:
        if not s.taken:
            continue
        ours = json.loads(run(program, "inspect", s.path, "--json"))["tensors"]
        theirs = gguf.GGUFReader(s.path).tensors
        assert [(t["name"], t["type"]) for t in ours] == [
            (t.name, t.tensor_type.name.lower()) for t in theirs
        ], s
        for a, b in zip(ours, theirs, strict=True):
            assert trimmed(a["shape"]) == trimmed([int(n) for n in b.shape]), s
        counts = Counter(t["type"] for t in ours)
        assert {k.lower(): n for k, n in s.llama.types.items()} == counts or s.drawn.parts > 1, s
        plain = tmp_path / "plain.gguf"
        run(program, "quantize", s.path, plain, "f32", "--allow-requantize")
        expanded = {t.name: t.data for t in gguf.GGUFReader(plain).tensors}
        for t in theirs:
            want = gguf.dequantize(t.data, t.tensor_type).reshape(-1)
            got = expanded[t.name].reshape(-1)
            assert np.array_equal(want, got), (t.name, np.abs(want - got).max(), s)


def trimmed(shape: list[int]) -> list[int]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def test_what_is_computed_is_the_same(seen: list[Seen]) -> None:
    compared = 0
    for s in seen:
        if not s.taken or s.llama.log_probs is None:
            continue
        kinds = {t.type for t in s.drawn.file.tensors}
        floats = kinds <= {Type.F32, Type.F16, Type.BF16}
        with Generator.open(s.path, threads=1, yarn="ggml", cache="f32") as model:
            logits = model.logits(IDS).astype(np.float64)
        ours = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        theirs = np.array(s.llama.log_probs)
        assert len(ours) == len(theirs), s
        spread = ours.max() - ours.min()
        # llama.cpp rounds activations to 8 bits under blocks, and to 16 under 16-bit floats.
        bound = 1e-4 if kinds == {Type.F32} else (0.02 if floats else 0.08)
        assert np.abs(ours - theirs).max() <= bound * max(1.0, spread), (
            np.abs(ours - theirs).max() / spread,
            s,
        )
        compared += 1
    assert compared > COUNT / 4
