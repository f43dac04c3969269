"""`abi lint`: faults a reader stops at, files of other times, and what is written by --fix."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_peer import LlamaCppError, ask
from raw_gguf import (
    ARRAY,
    BOOL,
    F16_TYPE,
    F32,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    File,
    Shape,
    Tensor,
    Type,
    sound,
)

GPT_OSS = Shape("gpt-oss", tied=False, kind=int(Type.MXFP4))


def lint(program: Path, *words: str | Path, code: int | None = None) -> dict[str, Any]:
    done = subprocess.run(
        [str(program), "lint", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in ((0, 1, 2) if code is None else (code,)), (done.stdout, done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def codes(report: dict[str, Any]) -> set[str]:
    """Everything found but notes on what this program does not run."""
    return {f["code"] for f in report["findings"]} - {"abi-refuses"}


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = gguf.GGUFReader(path).tensors
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in found}


def test_sound_files_have_no_findings(program: Path, tmp_path: Path) -> None:
    shapes = [Shape(a) for a in ("llama", "qwen2", "qwen3")]
    for shape in [*shapes, GPT_OSS, Shape(kind=int(Type.Q8_0), tied=False)]:
        path = tmp_path / "sound.gguf"
        path.write_bytes(sound(shape).data())
        report = lint(program, path, code=0)
        assert codes(report) == set(), report
        assert ask(path, [{"kind": "tokenize", "text": "the"}]) == [[260]]


def gaps(file: File) -> None:
    """The second tensor's data stands 64 bytes further on."""
    second = file.tensors[1]
    second.offset = len(file.padded(file.tensors[0].data)) + 64
    file.tensors[0].data += bytes(-len(file.tensors[0].data) % 32 + 64)
    at = second.offset + len(file.padded(second.data))
    for t in file.tensors[2:]:
        t.offset = at
        at += len(file.padded(t.data))


def reordered(file: File) -> None:
    """Data in the order of the list turned round."""
    at = 0
    for t in reversed(file.tensors):
        t.offset = at
        at += len(file.padded(t.data))
    bodies = {t.name: t.data for t in file.tensors}
    kept = list(file.tensors)
    turned = [bodies[t.name] for t in reversed(kept)]
    for t, raw in zip(file.tensors, turned, strict=True):
        t.data = raw


def shared(file: File) -> None:
    for t in file.tensors[2:]:
        t.offset = 0


def rename(name: str | bytes) -> Callable[[File], object]:
    return lambda file: setattr(file.tensors[3], "name", name)


def other_alignment(kind: int, value: Any) -> Callable[[File], object]:
    return lambda file: file.put("general.alignment", kind, value)


def huge_alignment(file: File) -> None:
    """Laid out as it says, which llama.cpp takes."""
    file.alignment = 1 << 21
    file.put("general.alignment", U32, 1 << 21)


def small_alignment(file: File) -> None:
    file.alignment = 8
    file.put("general.alignment", U32, 8)


def zero_rows(file: File) -> None:
    file.tensors[0].ne = (32, 0)
    file.tensors[0].data = b""


#: Faults of the container: code, whether --fix mends it.
CONTAINER: list[tuple[str, bool, Callable[[File], object]]] = [
    ("alignment", True, other_alignment(U32, 0)),
    ("alignment", True, other_alignment(U32, 48)),
    ("alignment", True, huge_alignment),
    ("alignment", True, other_alignment(U64, 32)),
    ("alignment", True, other_alignment(STRING, "32")),
    ("alignment-small", True, small_alignment),
    ("key-name", True, lambda f: f.put("", U32, 1)),
    ("key-name", True, lambda f: f.put(b"\xff\xfe", U32, 1)),
    ("key-name", True, lambda f: f.put("k" * 70000, U32, 1)),
    ("key-duplicate", True, lambda f: f.extra.append(("general.architecture", STRING, "x"))),
    ("tensor-name", False, rename("n" * 64)),
    ("tensor-name", False, rename("")),
    ("tensor-name", False, rename("a\0b")),
    ("tensor-name", False, rename(b"\xff")),
    ("tensor-duplicate", False, rename("token_embd.weight")),
    ("tensor-dimension", False, zero_rows),
    ("tensor-offset", True, gaps),
    ("tensor-offset", True, reordered),
    ("tensor-offset", False, shared),
    ("tensor-cut", False, lambda f: setattr(f.tensors[-1], "data", b"")),
    ("trailing-bytes", True, lambda f: setattr(f, "trailing", bytes(4096))),
]


@pytest.mark.parametrize(
    ("code", "mends", "break_it"), CONTAINER, ids=[f"{i}-{c[0]}" for i, c in enumerate(CONTAINER)]
)
def test_faults_of_the_container(
    program: Path, tmp_path: Path, code: str, mends: bool, break_it: Callable[[File], object]
) -> None:
    file = sound()
    whole = sound().data()
    break_it(file)
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    path.write_bytes(file.data())
    report = lint(program, path, code=1)
    found = [f for f in report["findings"] if f["code"] == code]
    assert found, report
    assert all(f["mends"] == mends for f in found) or code == "tensor-offset"
    # What is an error here no strict reader takes, but for what only llama.cpp dies of.
    strict = subprocess.run([str(program), "inspect", str(path)], capture_output=True, check=False)
    assert strict.returncode == (code != "alignment-small")
    if not mends:
        done = subprocess.run(
            [str(program), "lint", str(path), "--fix", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert not out.exists()
        return
    fixed = lint(program, path, "--fix", out, code=0)
    assert codes(fixed["fixed"]) == set()
    (tmp_path / "whole.gguf").write_bytes(whole)
    want, got = tensors_of(tmp_path / "whole.gguf"), tensors_of(out)
    assert want.keys() == got.keys()
    for name, values in want.items():
        assert np.array_equal(values, got[name]), name


def test_nothing_that_cannot_be_read_is_a_finding(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    raw = sound().data()
    for content in (b"", b"GGUF", b"ZIP!" + raw[4:], raw[:4] + b"\1\0\0\0" + raw[8:], raw[:300]):
        path.write_bytes(content)
        assert "x.gguf" in lint(program, path, code=2)["error"]
    assert "no such file" in lint(program, tmp_path / "gone.gguf", code=2)["error"]
    assert "folder" in lint(program, tmp_path, code=2)["error"]


def test_types_of_keys_are_mended_and_llama_cpp_takes_the_file(
    program: Path, tmp_path: Path
) -> None:
    file = sound()
    file.put("llama.context_length", U64, 64)
    file.put("llama.rope.freq_base", U32, 10000)
    file.put("tokenizer.ggml.eos_token_id", I32, 258)
    file.put("tokenizer.ggml.add_bos_token", U8, 0)
    kinds = file.keys["tokenizer.ggml.token_type"][1][1]
    file.put("tokenizer.ggml.token_type", ARRAY, (U32, kinds))
    file.put("general.quantization_version", I64, 2)
    del file.keys["llama.feed_forward_length"]
    path = tmp_path / "in.gguf"
    path.write_bytes(file.data())
    with pytest.raises(LlamaCppError):
        ask(path, [{"kind": "tokenize", "text": "the"}])
    report = lint(program, path, "--fix", path, code=0)  # over itself
    assert codes(report) == {"key-type", "key-type-unusual", "key-missing"}
    assert codes(report["fixed"]) == set()
    assert ask(path, [{"kind": "tokenize", "text": "the"}]) == [[260]]
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]
    field = gguf.GGUFReader(path).get_field("llama.rope.freq_base")
    assert field is not None
    assert (field.types, field.contents()) == ([gguf.GGUFValueType.FLOAT32], 10000.0)


def test_norms_in_f16_become_f32_and_nothing_else_changes(program: Path, tmp_path: Path) -> None:
    file = sound(Shape("qwen2", kind=int(Type.Q8_0)))
    for t in file.tensors:
        if len(t.ne) == 1:
            t.data = np.frombuffer(t.data, "<f4").astype("<f2").tobytes()
            t.type = int(F16_TYPE)
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    path.write_bytes(file.data())
    assert codes(lint(program, path, "--fix", out, code=0)) == {"tensor-type"}
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(out)
    for a, b in zip(before.tensors, after.tensors, strict=True):
        if len(a.shape) == 1:
            assert b.tensor_type == Type.F32
            assert np.array_equal(a.data.astype("f4"), b.data)
        else:
            assert a.tensor_type == b.tensor_type
            assert a.data.tobytes() == b.data.tobytes()
    [answer] = ask(out, [{"kind": "greedy", "ids": [1, 2, 3], "count": 2}])
    assert len(answer) == 2


def test_abi_files_are_turned_round(program: Path, tmp_path: Path) -> None:
    """The file that ABI would have written for a model becomes the model's own file again."""
    want = sound(Shape(heads=4, shared=2, head=8, layers=2))
    file = sound(Shape(heads=4, shared=2, head=8, layers=2))
    for t in file.tensors:
        if len(t.ne) != 2:
            continue
        rows = t.ne[1]
        for part in ("attn_q.weight", "attn_k.weight"):
            if str(t.name).endswith(part):
                pairs = np.frombuffer(t.data, "<f4").reshape(rows // 8, 4, 2, t.ne[0])
                t.data = pairs.transpose(0, 2, 1, 3).tobytes()
        t.ne = (t.ne[1], t.ne[0])
    for key in ("feed_forward_length", "attention.key_length", "attention.value_length"):
        del file.keys[f"llama.{key}"]
    path, out = tmp_path / "abi.gguf", tmp_path / "out.gguf"
    path.write_bytes(file.data())
    report = lint(program, path, "--fix", out, code=0)
    assert codes(report) == {"abi-layout", "key-missing"}
    for t, found in zip(want.tensors, gguf.GGUFReader(out).tensors, strict=True):
        assert (t.name, list(t.ne)) == (found.name, [int(n) for n in found.shape])
        assert t.data == found.data.tobytes(), t.name


def to_hf_nibbles(raw: bytes) -> bytes:
    """MXFP4 blocks of ggml with two neighbours in each byte."""
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, 17)
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return np.concatenate([blocks[:, :1], packed], axis=1).astype(np.uint8).tobytes()


def as_early_ollama(file: File, *, fused: bool) -> None:
    """A sound gpt-oss file as Ollama's first converter would have written it."""
    new_keys: dict[str | bytes, tuple[int, Any]] = {}
    for name, value in file.keys.items():
        new_keys[str(name).replace("gpt-oss.", "gptoss.")] = value
    file.keys = new_keys
    file.put("general.architecture", STRING, "gptoss")
    file.put("tokenizer.ggml.pre", STRING, "default")
    for key in ("expert_feed_forward_length", "rope.scaling.type"):
        del file.keys[f"gptoss.{key}"]
    for t in file.tensors:
        name = str(t.name)
        name = name.replace("attn_output", "attn_out").replace("attn_sinks.weight", "attn_sinks")
        t.name = name.replace("post_attention_norm", "ffn_norm")
        if fused and t.type == Type.MXFP4:
            t.data = to_hf_nibbles(t.data)
            t.type = 4
    if not fused:
        return
    for layer in range(2):
        for kind in ("weight", "bias"):
            fuse_rows(file, layer, kind)
            fuse_experts(file, layer, kind)


def fuse_rows(file: File, layer: int, kind: str) -> None:
    parts = [file.tensor(f"blk.{layer}.attn_{p}.{kind}") for p in "qkv"]
    for t in parts:
        file.tensors.remove(t)
    axis = 1 if kind == "weight" else 0
    ne = list(parts[0].ne)
    ne[axis] = sum(t.ne[axis] for t in parts)
    raw = b"".join(t.data for t in parts)
    file.tensors.append(Tensor(f"blk.{layer}.attn_qkv.{kind}", tuple(ne), parts[0].type, raw))


def fuse_experts(file: File, layer: int, kind: str) -> None:
    gate, up = (file.tensor(f"blk.{layer}.ffn_{p}_exps.{kind}") for p in ("gate", "up"))
    file.tensors.remove(gate)
    file.tensors.remove(up)
    axis = 1 if kind == "weight" else 0
    rows = int(np.prod(gate.ne[axis:]))
    pair = [np.frombuffer(t.data, np.uint8).reshape(rows, -1) for t in (gate, up)]
    ne = list(gate.ne)
    ne[axis] *= 2
    raw = np.stack(pair, axis=1).tobytes()
    name = f"blk.{layer}.ffn_gate_up_exps.{kind}"
    file.tensors.append(Tensor(name, tuple(ne), gate.type, raw))


@pytest.mark.parametrize("fused", [False, True])
def test_early_ollama_files_become_those_of_today(
    program: Path, tmp_path: Path, fused: bool
) -> None:
    shape = Shape("gpt-oss", tied=False, kind=int(Type.MXFP4), layers=2, experts=3)
    want, file = sound(shape), sound(shape)
    for each in (want, file):  # attention is bf16 in these files
        for t in each.tensors:
            if "attn_" in str(t.name) and t.type == Type.MXFP4:
                t.type = int(Type.F32)
                t.data = np.random.default_rng(len(t.data)).random(t.ne, np.float32).tobytes()
    as_early_ollama(file, fused=fused)
    path, out = tmp_path / "old.gguf", tmp_path / "out.gguf"
    path.write_bytes(file.data())
    strict = subprocess.run(
        [str(program), "inspect", str(path)], capture_output=True, text=True, check=False
    )
    assert (strict.returncode == 1) == fused
    assert not fused or "abi lint" in strict.stderr
    report = lint(program, path, "--fix", out, code=0)
    assert codes(report) == {"ollama-layout", "key-missing"}
    found = {t.name: t for t in gguf.GGUFReader(out).tensors}
    assert found.keys() == {t.name for t in want.tensors}
    for t in want.tensors:
        other = found[str(t.name)]
        assert list(t.ne) == [int(n) for n in other.shape], t.name
        assert t.data == other.data.tobytes(), t.name
    [ids] = ask(out, [{"kind": "greedy", "ids": [1, 2, 3], "count": 3}])
    want_path = tmp_path / "want.gguf"
    want.put("tokenizer.ggml.pre", STRING, "gpt-4o")
    want_path.write_bytes(want.data())
    assert ask(want_path, [{"kind": "greedy", "ids": [1, 2, 3], "count": 3}]) == [ids]


def test_parts_are_checked_as_one_and_joined(program: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    file = sound(Shape(layers=2))
    file.put("llama.context_length", U64, 64)
    whole.write_bytes(file.data())
    subprocess.run(
        [program, "split", whole, tmp_path / "m", "--max-tensors", "9"],
        check=True,
        capture_output=True,
    )
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 2
    out = tmp_path / "out.gguf"
    report = lint(program, parts[1], "--fix", out, code=0)
    assert codes(report) == {"key-type"}
    assert ask(out, [{"kind": "tokenize", "text": "the"}]) == [[260]]
    assert tensors_of(out).keys() == tensors_of(whole).keys()
    parts[2].unlink()
    report = lint(program, parts[0], code=1)
    assert codes(report) == {"split-incomplete", "key-type"}
    assert parts[2].name in report["findings"][0]["message"]
    alone = tmp_path / "renamed.gguf"
    parts[1].rename(alone)
    assert "split-incomplete" in codes(lint(program, alone, code=1))
    swapped = sound().put("split.count", U16, 2).put("split.no", U16, 1)
    (tmp_path / "s-00001-of-00002.gguf").write_bytes(swapped.data())
    (tmp_path / "s-00002-of-00002.gguf").write_bytes(swapped.data())
    report = lint(program, tmp_path / "s-00001-of-00002.gguf", code=1)
    assert codes(report) == {"split-incomplete"}


def test_a_missing_rule_is_given_by_hand(program: Path, tmp_path: Path) -> None:
    file = sound()
    file.put("tokenizer.ggml.pre", STRING, "martian")
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    report = lint(program, path, code=1)
    assert codes(report) == {"pre-unknown"}
    assert not report["findings"][0]["mends"]
    lint(program, path, "--fix", path, "--pre", "qwen2", code=0)
    field = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
    assert field is not None
    assert field.contents() == "qwen2"
    for words in (["--pre", "qwen2"], ["--fix", "x", "--pre", "martian"]):
        done = subprocess.run(
            [program, "lint", path, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_nothing_is_written_where_nothing_can_be(program: Path, tmp_path: Path) -> None:
    clean, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    clean.write_bytes(sound().data())
    done = subprocess.run(
        [program, "lint", clean, "--fix", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "was not written" in done.stderr
    assert not out.exists()
    file = sound().put("llama.context_length", U64, 64)
    clean.write_bytes(file.data())
    before = clean.read_bytes()
    for target in (tmp_path / "no" / "out.gguf", tmp_path):
        done = subprocess.run(
            [program, "lint", clean, "--fix", target], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert clean.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_names_from_the_file_do_not_reach_the_terminal(program: Path, tmp_path: Path) -> None:
    file = sound()
    file.tensors[4].name = "blk.0.\x1b[2J\x07evil"
    file.put("general.architecture", STRING, "llama")
    file.put("tokenizer.ggml.pre", STRING, "\x1b]0;title\x07")
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    for words in ([], ["--json"]):
        done = subprocess.run([program, "lint", path, *words], capture_output=True, check=False)
        assert done.returncode == 1
        assert b"evil" in done.stdout
        assert b"\x1b" not in done.stdout
        assert b"\x07" not in done.stdout


def test_a_hostile_file_costs_no_memory(program: Path, tmp_path: Path) -> None:
    """Layers, parts and lists on the file's word alone: 300 MB are enough for all of them."""
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))

    huge = (1 << 32) - 1
    path = tmp_path / "m.gguf"
    files = [
        sound().put("llama.block_count", U32, huge),
        sound().put("llama.attention.head_count", U32, huge),
        sound().put("llama.vocab_size", U32, huge),
        sound().put("llama.embedding_length", U32, huge),
        sound().put("split.count", U16, 65535),
        sound().put("llama.expert_count", U32, huge),
        sound().put("general.alignment", U32, 1 << 20),
    ]
    tall = sound()
    tall.tensors[0].ne = (32, 1 << 50)
    files.append(tall)
    for file in files:
        path.write_bytes(file.data())
        for verb in ("lint", "inspect"):
            done = subprocess.run(
                [program, verb, path],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
                preexec_fn=limited,
            )
            assert done.returncode in (0, 1), (verb, done.returncode, done.stderr)
            assert "memory" not in done.stderr or "fit in memory" in done.stderr
    assert path.stat().st_size < 1 << 20


def test_unreadable_numbers_are_found(program: Path, tmp_path: Path) -> None:
    file = sound(GPT_OSS)
    raw = bytearray(file.tensor("blk.0.ffn_up_exps.weight").data)
    raw[17 * 3] = 255
    file.tensor("blk.0.ffn_up_exps.weight").data = bytes(raw)
    file.tensor("blk.0.attn_sinks.weight").data = np.array([1, np.inf], "<f4").tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    report = lint(program, path, code=1)
    assert codes(report) == {"numbers-broken"}
    said = " ".join(f["message"] for f in report["findings"])
    assert "block 3 has exponent 255" in said
    assert "element 1 is NaN or infinity" in said
    assert codes(lint(program, path, "--no-numbers", code=0)) == set()


def test_every_code_has_words(program: Path) -> None:
    done = subprocess.run([program, "lint", "--list", "--json"], capture_output=True, check=True)
    rules = json.loads(done.stdout)
    assert len({rule["code"] for rule in rules}) == len(rules) > 50
    assert {rule["severity"] for rule in rules} == {"error", "warning", "note"}
    plain = subprocess.run([program, "lint", "--list"], capture_output=True, text=True, check=True)
    for rule in rules:
        assert rule["code"] in plain.stdout


def test_scores_may_be_whole_numbers(program: Path, tmp_path: Path) -> None:
    """llama.cpp reads both; so does this program."""
    file = sound()
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "▁", "a", "▁a"]
    vocab = len(tokens)
    shape = Shape(vocab=vocab)
    file = sound(shape)
    for key in ("merges", "pre", "add_bos_token"):
        del file.keys[f"tokenizer.ggml.{key}"]
    file.put("tokenizer.ggml.model", STRING, "llama")
    file.put("tokenizer.ggml.tokens", ARRAY, (STRING, tokens))
    kinds = [2, 3, 3] + [6] * 256 + [1, 1, 1]
    file.put("tokenizer.ggml.token_type", ARRAY, (I32, kinds))
    file.put("tokenizer.ggml.scores", ARRAY, (I32, [0] * 259 + [-3, -2, -1]))
    file.put("tokenizer.ggml.bos_token_id", U32, 1)
    file.put("tokenizer.ggml.eos_token_id", U32, 2)
    file.put("tokenizer.ggml.add_bos_token", BOOL, 1)
    file.put("tokenizer.chat_template", STRING, "{{ messages[0].content }}{{ eos_token }}")
    file.put("llama.rope.scaling.factor", F32, 0.0)
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    assert lint(program, path, code=0)["findings"] == []
    assert ask(path, [{"kind": "tokenize", "text": "a a"}]) == [[261, 261]]
