"""``abi quantize``, ``split``, ``join`` and ``imatrix``: the bytes llama.cpp's tools write."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from ggml_quants import quantize
from quantised_models import MODELS, numbers, tensors_of, write_importance, write_model
from tiny_models import CORPUS, make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from abi_train import _native
from abi_train.errors import AbiTrainError

HASHES: dict[str, str] = json.loads(
    (Path(__file__).parent / "quantised.json").read_text(encoding="utf-8")
)
WEIGHED = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"}


def abi(program: Path, *arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.gguf in f32 and NAME.imatrix.gguf of each model."""
    folder = tmp_path_factory.mktemp("sources")
    for kind in MODELS:
        model = write_model(folder / kind, kind)
        path = folder / f"{kind}.gguf"
        _native.export.gguf(model, path, dtype="f32", without_tokenizer=True)
        write_importance(folder / f"{kind}.imatrix.gguf", path)
    return folder


@pytest.mark.parametrize("kind", list(MODELS))
def test_whole_files_are_those_of_llama_quantize(
    program: Path, sources: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out.gguf"
    for case, want in HASHES.items():
        name, mix, *weighed = case.split()
        if name != kind:
            continue
        options = ["--imatrix", sources / f"{kind}.imatrix.gguf"] if weighed else []
        size = abi(program, "quantize", sources / f"{kind}.gguf", out, mix, "--dry-run", *options)
        abi(program, "quantize", sources / f"{kind}.gguf", out, mix, *options)
        assert int(size) == out.stat().st_size
        assert tensors_of(out) == want, case


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_bytes_are_the_same_on_every_level_and_any_number_of_threads(
    program: Path, sources: Path, tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABI_TRAIN_CPU", level)
    for case in ("llama q4_k_m", "llama q5_0 imatrix", "tied q5_k_s imatrix", "qwen3 q4_0"):
        name, mix, *weighed = case.split()
        options = ["--imatrix", sources / f"{name}.imatrix.gguf"] if weighed else []
        for threads in (1, 3):
            out = tmp_path / "out.gguf"
            arguments = [sources / f"{name}.gguf", out, mix, "--threads", threads, *options]
            abi(program, "quantize", *arguments)
            assert tensors_of(out) == HASHES[case], case


def test_keys_are_the_sources_and_what_was_done(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    source, out = sources / "llama.gguf", tmp_path / "out.gguf"
    abi(program, "quantize", source, out, "Q4_K", "--imatrix", sources / "llama.imatrix.gguf")
    before = [f.name for f in gguf.GGUFReader(source).fields.values()]
    found = {f.name: f for f in gguf.GGUFReader(out).fields.values()}
    kept = [n for n in before if not n.startswith("GGUF.") and n != "general.file_type"]
    added = ["general.quantization_version", "general.file_type"]
    told = [f"quantize.imatrix.{n}" for n in ("file", "dataset", "entries_count", "chunks_count")]
    assert [n for n in found if not n.startswith("GGUF.")] == [*kept, *added, *told]
    assert found["general.file_type"].contents() == 15
    assert found["quantize.imatrix.dataset"].contents() == "text.txt"
    assert found["quantize.imatrix.entries_count"].contents() == 63
    assert found["quantize.imatrix.chunks_count"].contents() == 3


def legacy(path: Path, source: Path) -> Path:
    """The older format, by hand: averages times calls."""
    entries = [
        (t.name.removesuffix(".in_sum2"), np.array(t.data) / np.float32(1536) * np.float32(3))
        for t in gguf.GGUFReader(source).tensors
        if t.name.endswith(".in_sum2")
    ]
    raw = struct.pack("<i", len(entries))
    for name, values in entries:
        raw += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, len(values))
        raw += values.astype("<f4").tobytes()
    path.write_bytes(raw + struct.pack("<ii", 3, 8) + b"text.txt")
    return path


def test_the_older_format_of_importance_guides_as_ggml_is_guided(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    matrix = legacy(tmp_path / "imatrix.dat", sources / "llama.imatrix.gguf")
    for mix in ("q4_k_s", "q5_1", "q4_0"):
        abi(program, "quantize", sources / "llama.gguf", out, mix, "--imatrix", matrix)
        floats = {t.name: t.data for t in gguf.GGUFReader(sources / "llama.gguf").tensors}
        for tensor in gguf.GGUFReader(out).tensors:
            kind = tensor.tensor_type.name
            if kind not in WEIGHED or not tensor.name.startswith("blk."):
                continue
            values: Any = floats[tensor.name]
            squares = np.square(numbers(tensor.name, (values.shape[1],))) * np.float32(1000)
            weights = squares / np.float32(1536) * np.float32(3) / np.float32(3)
            want = quantize(values, kind, weights.astype(np.float32))
            assert np.array_equal(np.array(tensor.data).view(np.uint8).ravel(), want.ravel())


def test_pure_and_named_types_go_before_the_mix(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"

    def types(*options: str) -> dict[str, str]:
        abi(program, "quantize", sources / "llama.gguf", out, "q4_k_m", *options)
        return {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}

    assert set(types("--pure").values()) == {"F32", "Q4_K"}
    found = types("--output-tensor-type", "q8_0", "--token-embedding-type", "f16")
    assert found["output.weight"] == "Q8_0"
    assert found["token_embd.weight"] == "F16"
    assert types("--leave-output-tensor")["output.weight"] == "F32"


def test_parts_are_read_and_joined_to_the_same_file(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    whole, prefix = sources / "llama.gguf", tmp_path / "part"
    parts = abi(program, "split", whole, prefix, "--max-size", "5M").split()
    count = len(parts)
    assert count > 2
    assert parts[0] == f"{prefix}-00001-of-{count:05}.gguf"
    total = sum(len(gguf.GGUFReader(part).tensors) for part in parts)
    reader = gguf.GGUFReader(parts[-1])
    keys = {f.name: f.contents() for f in reader.fields.values() if f.name.startswith("split.")}
    assert keys == {"split.no": count - 1, "split.count": count, "split.tensors.count": total}
    abi(program, "join", parts[1], tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()
    abi(program, "quantize", parts[0], tmp_path / "small.gguf", "q4_k_m")
    assert tensors_of(tmp_path / "small.gguf") == HASHES["llama q4_k_m"]
    by_count = abi(program, "split", whole, tmp_path / "few", "--max-tensors", 40).split()
    assert [len(gguf.GGUFReader(part).tensors) for part in by_count[:-1]] == [40] * (
        len(by_count) - 1
    )
    said = abi(program, "join", parts[0], parts[1], code=1)
    assert "is one of the parts" in said
    Path(parts[1]).unlink()
    assert "part-00002-of-" in abi(program, "join", parts[0], tmp_path / "no.gguf", code=1)
    assert not (tmp_path / "no.gguf").exists()


REFUSALS = [
    (["{s}", "{o}", "q4_k_l"], 2, "the type is"),
    (["{s}", "{o}"], 2, "name both files and the type"),
    (["{s}", "{s}", "q4_0"], 1, "are the same file"),
    (["{s}", "no/such/folder/out.gguf", "q4_0"], 1, "no such file or folder"),
    (["no.gguf", "{o}", "q4_0"], 1, "cannot read no.gguf"),
    (["{s}", "{o}", "q4_0", "--imatrix", "{s}"], 1, "imatrix.datasets is missing"),
    (["{s}", "{o}", "q4_0", "--imatrix", "{other}"], 1, "collected on another model"),
    (["{s}", "{o}", "q4_0", "--imatrix", "{text}"], 1, "no importance matrix"),
    (["{s}", "{o}", "q4_0", "--output-tensor-type", "q2_k"], 2, "--output-tensor-type is"),
    (["{small}", "{o}", "q4_0"], 1, "rounds a second time"),
    (["{text}", "{o}", "q4_0"], 1, "not a GGUF file"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSALS)
def test_what_cannot_be_done_is_refused_in_words(
    program: Path, sources: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "text.txt").write_text("a text that is no model, and long enough", encoding="utf-8")
    abi(program, "quantize", sources / "tied.gguf", tmp_path / "small.gguf", "q8_0")
    names = {
        "s": sources / "llama.gguf",
        "o": tmp_path / "out.gguf",
        "other": sources / "tied.imatrix.gguf",
        "text": tmp_path / "text.txt",
        "small": tmp_path / "small.gguf",
    }
    before = (sources / "llama.gguf").stat()
    filled = [a.format(**names) for a in arguments]
    assert words in abi(program, "quantize", *filled, code=code)
    assert (sources / "llama.gguf").stat().st_mtime_ns == before.st_mtime_ns
    assert {p.name for p in tmp_path.iterdir()} == {"text.txt", "small.gguf"}


def test_an_output_that_is_no_regular_file_is_refused_and_stays(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    """A rename would replace a device for the whole machine; opening a pipe would wait for ever."""
    source, text = sources / "llama.gguf", tmp_path / "text.txt"
    text.write_text("words", encoding="utf-8")
    abi(program, "split", source, tmp_path / "part", "--max-tensors", 100)
    part = tmp_path / "part-00001-of-00001.gguf"
    pipe, link, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "cut-00001-of-00001.gguf")
    link.symlink_to(pipe)
    folder.mkdir()
    before = {p.name: (p.lstat().st_ino, p.lstat().st_mode) for p in tmp_path.iterdir()}
    for out, words in (
        (pipe, "pipe: it is not a regular file"),
        (link, "link: it is not a regular file"),
        (folder, "folder: it is a folder where a file is needed"),
    ):
        assert words in abi(program, "quantize", source, out, "q8_0", code=1)
        assert words in abi(program, "join", part, out, code=1)
        assert words in abi(program, "imatrix", source, text, "-o", out, code=1)
        with pytest.raises(AbiTrainError, match=words):
            _native.export.gguf(sources / "llama", out, dtype="f16", without_tokenizer=True)
    said = abi(program, "split", source, tmp_path / "cut", "--max-tensors", 100, code=1)
    assert "not a regular file" in said and "Name another" in said
    assert {p.name: (p.lstat().st_ino, p.lstat().st_mode) for p in tmp_path.iterdir()} == before
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_killed_run_leaves_nothing_under_the_name(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    for _ in range(5):
        run = subprocess.Popen(
            [program, "quantize", sources / "llama.gguf", out, "q5_k_m", "--threads", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while run.poll() is None and not list(tmp_path.glob("out.gguf.tmp-*")):
            time.sleep(0.0005)
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=60)
        if out.exists():  # It was faster.
            assert tensors_of(out) == HASHES["llama q5_k_m"]
            out.unlink()


def test_a_full_disk_is_told_and_leaves_nothing(
    program: Path, sources: Path, tmp_path: Path
) -> None:
    script = 'ulimit -f 1000; exec "$@"'
    command = ["bash", "-c", script, "x", program, "quantize", sources / "llama.gguf"]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "out.gguf"), "q8_0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert not list(tmp_path.iterdir())


def test_importance_is_the_mean_square_of_what_each_weight_is_multiplied_with(
    program: Path, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "model", "llama_gqa_untied")
    path = tmp_path / "model.gguf"
    _native.export.gguf(folder, path, dtype="f32")
    text = tmp_path / "text.txt"
    text.write_text(CORPUS * 2, encoding="utf-8")
    for name in ("imatrix.gguf", "imatrix.dat"):
        abi(program, "imatrix", path, text, "-o", tmp_path / name, "--chunk", 64, "--chunks", 4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text.read_text(encoding="utf-8"))["input_ids"]
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def see(_: Any, inputs: Any) -> None:
            squares = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1]).square().sum(0)
            sums[name] = sums.get(name, 0) + squares.numpy()

        return see

    places = {
        "attn_q": "self_attn.q_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for ours, theirs in places.items():
        module = model.get_submodule(f"model.layers.1.{theirs}")
        module.register_forward_pre_hook(watch(f"blk.1.{ours}.weight"))
    with torch.no_grad():
        for start in range(0, 4 * 64, 64):
            chunk = list(ids[start : start + 64])
            if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id:
                chunk[0] = tokenizer.bos_token_id
            model(torch.tensor([chunk]))
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    found = {t.name: np.array(t.data) for t in reader.tensors}
    layers = model.config.num_hidden_layers
    assert len(found) == 2 * 7 * layers
    for name, want in sums.items():
        assert found[f"{name}.counts"].tolist() == [256.0]
        np.testing.assert_allclose(found[f"{name}.in_sum2"], want, rtol=2e-3, atol=1e-4)
    fields = {f.name: f.contents() for f in reader.fields.values() if "imatrix" in f.name}
    assert fields == {
        "imatrix.datasets": [str(text)],
        "imatrix.chunk_count": 4,
        "imatrix.chunk_size": 64,
    }
    # Both formats guide alike.
    for name in ("imatrix.gguf", "imatrix.dat"):
        out = tmp_path / f"{name}.out"
        abi(program, "quantize", path, out, "q4_0", "--imatrix", tmp_path / name)
    assert tensors_of(tmp_path / "imatrix.gguf.out") == tensors_of(tmp_path / "imatrix.dat.out")
    said = abi(program, "imatrix", path, text, "-o", tmp_path / "x.gguf", "--chunk", 9999, code=1)
    assert "less than a chunk of 9999" in said
    assert "is read and would be lost" in abi(program, "imatrix", path, text, "-o", text, code=1)
    assert text.read_text(encoding="utf-8") == CORPUS * 2
