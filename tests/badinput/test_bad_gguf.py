"""Everything that can be wrong inside a GGUF file, refused with the name of the field.

One case for each thing a hostile or broken file can hold: the header, keys, tensors, what the keys
mean together, the tokenizer, parts. The message must name the thing; the linter must find it too.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
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
    text,
)

Change = Callable[[File], object]
BIG = (1 << 63) - 1
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Bad:
    """One fault, what must be said of it, and the code the linter knows it by."""

    name: str
    change: Change
    words: tuple[str, ...]
    code: str | None
    shape: Shape = field(default_factory=Shape)
    #: Reads ids only, or text too.
    prompt: bool = False


def pair(key: str, kind: int, value: bytes) -> Change:
    """A pair of bytes no writer would make."""
    return lambda f: f.pairs.append(text(key) + struct.pack("<I", kind) + value)


def put(name: str, kind: int, value: Any) -> Change:
    return lambda f: f.put(name, kind, value)


def drop(name: str) -> Change:
    return lambda f: f.keys.pop(name)


def attribute(name: str, value: Any) -> Change:
    return lambda f: setattr(f, name, value)


def tensor(which: str, **changes: Any) -> Change:
    def apply(file: File) -> None:
        found = file.tensor(which)
        for key, value in changes.items():
            setattr(found, key, value)

    return apply


def both(*changes: Change) -> Change:
    return lambda f: [change(f) for change in changes]


def without(name: str) -> Change:
    return lambda f: f.tensors.remove(f.tensor(name))


def token(index: int, value: str | bytes) -> Change:
    """One token's text becomes another."""

    def apply(file: File) -> None:
        element, values = file.keys[TOKENS][1]
        values = [*values[:index], value, *values[index + 1 :]]
        file.put(TOKENS, ARRAY, (element, values))

    return apply


def shorter(key: str) -> Change:
    """A list loses its last entry."""

    def apply(file: File) -> None:
        element, values = file.keys[key][1]
        file.put(key, ARRAY, (element, list(values)[:-1]))

    return apply


def filled(name: str, raw: bytes) -> Change:
    """A tensor's first bytes become others."""

    def apply(file: File) -> None:
        found = file.tensor(name)
        found.data = raw + found.data[len(raw) :]

    return apply


GATE = "blk.0.ffn_gate.weight"
NORM = "blk.0.attn_norm.weight"
OSS = Shape("gpt-oss", tied=False, kind=int(Type.MXFP4))
Q8 = Shape(kind=int(Type.Q8_0))
WIDE = Shape(head=32)
EXTRA = Tensor("blk.0.extra.weight", (32,), 0, bytes(128))

HEADER = [
    Bad("magic", attribute("magic", b"GGML"), ("GGUF",), None),
    Bad("version 0", attribute("version", 0), ("version", "0"), None),
    Bad("version 1", attribute("version", 1), ("version", "1"), None),
    Bad("version of the future", attribute("version", 4), ("version", "4"), None),
    Bad("turned round", attribute("version", 3 << 24), ("version", "big-endian"), None),
    Bad("tensors below 0", attribute("n_tensors", -1), ("n_tensors", "-1"), None),
    Bad("tensors beyond the bytes", attribute("n_tensors", 1 << 40), ("n_tensors",), None),
    Bad("keys below 0", attribute("n_keys", -1), ("n_kv", "-1"), None),
    Bad("keys beyond the bytes", attribute("n_keys", 1 << 40), ("n_kv",), None),
]
KEYS = [
    Bad(
        "text beyond the file",
        pair("x.text", STRING, struct.pack("<Q", 1 << 20) + b"short"),
        ("x.text", "ends"),
        None,
    ),
    Bad(
        "text of 2 GiB",
        pair("x.text", STRING, struct.pack("<Q", 1 << 31) + b"short"),
        ("x.text", str(1 << 31)),
        None,
    ),
    Bad("no name", put("", U32, 1), ("key number", "empty"), "key-name"),
    Bad("name of 70 KB", put("k" * 70000, U32, 1), ("70000",), "key-name"),
    Bad(
        "name twice",
        lambda f: f.extra.append(("general.architecture", STRING, "llama")),
        ("general.architecture", "twice"),
        "key-duplicate",
    ),
    Bad("type 13", pair("x.odd", 13, bytes(8)), ("x.odd", "13"), None),
    Bad("type of 4 billion", pair("x.odd", 0xFFFFFFFF, bytes(8)), ("x.odd", "4294967295"), None),
    Bad(
        "list that wraps",
        pair("x.list", ARRAY, struct.pack("<IQ", U64, (1 << 61) + 1) + bytes(64)),
        ("x.list", str((1 << 61) + 1)),
        None,
    ),
    Bad(
        "list beyond the file",
        pair("x.list", ARRAY, struct.pack("<IQ", U32, 1 << 24)),
        ("x.list", "ends"),
        None,
    ),
    Bad(
        "texts beyond the file",
        pair("x.list", ARRAY, struct.pack("<IQ", STRING, 1 << 24)),
        ("x.list", "ends"),
        None,
    ),
    Bad(
        "list of lists",
        pair("x.list", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", U32, 0)),
        ("x.list", "array of arrays"),
        None,
    ),
    Bad(
        "lists ever deeper",
        pair("x.list", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000),
        ("x.list", "array of arrays"),
        None,
    ),
    Bad(
        "architecture not UTF-8",
        put("general.architecture", STRING, b"\xff\xfe"),
        ("general.architecture", "\\xff"),
        "architecture-unknown",
    ),
    Bad("key not UTF-8", lambda f: f.put(b"\xff", U32, 1), ("key", "\\xff", "UTF-8"), "key-name"),
    *[
        Bad(
            f"alignment {value} as {kind}",
            put("general.alignment", kind, value),
            ("general.alignment", *words),
            "alignment",
        )
        for kind, value, words in [
            (U32, 0, ("0",)),
            (U32, 48, ("48", "power of two")),
            (U32, 1 << 21, (str(1 << 21),)),
            (U32, 0x80000000, ("2147483648",)),
            (U64, 32, ("u64", "u32")),
            (STRING, "32", ("string", "u32")),
        ]
    ],
]
TENSORS = [
    Bad("name of 64 bytes", tensor(GATE, name="n" * 64), ("64", "63"), "tensor-name"),
    Bad("no name", tensor(GATE, name=""), ("no name",), "tensor-name"),
    Bad("zero in the name", tensor(GATE, name="a\0b"), ("a\\x00b", "zero"), "tensor-name"),
    Bad("name twice", tensor(GATE, name=NORM), (NORM, "twice"), "tensor-duplicate"),
    Bad("five dimensions", tensor(GATE, ne=(32, 64, 1, 1, 1)), (GATE, "5"), None),
    Bad("dimension below 0", tensor(GATE, ne=(32, -64)), (GATE, "-64"), None),
    Bad("dimension of 0", tensor(GATE, ne=(32, 0)), (GATE, "0"), "tensor-dimension"),
    Bad("product beyond 64 bits", tensor(GATE, ne=(BIG, 3)), (GATE, "size"), None),
    Bad("product beyond the signed", tensor(GATE, ne=(1 << 62, 2)), (GATE, "size"), None),
    Bad("bytes beyond 64 bits", tensor(GATE, ne=(1 << 61, 2)), (GATE, "size"), None),
    Bad("padding wraps", tensor(GATE, ne=((1 << 62) - 1,)), (GATE,), None),
    Bad("retired type 5", tensor(GATE, type=5), (GATE, "type 5"), None),
    Bad("type 4 of early Ollama", tensor(GATE, type=4), (GATE, "type 4", "abi lint"), None),
    Bad("retired type 31", tensor(GATE, type=31), (GATE, "type 31"), None),
    Bad("type of the future", tensor(GATE, type=43), (GATE, "type 43"), None),
    Bad("row of half a block", tensor(GATE, ne=(33, 64), type=8), (GATE, "33", "32"), None),
    Bad("offset not aligned", tensor(GATE, offset=33), (GATE, "offset 33"), "tensor-offset"),
    Bad("offset with a gap", tensor(GATE, offset=1 << 20), (GATE, "offset"), "tensor-offset"),
    Bad("offset twice", tensor(GATE, offset=0), (GATE, "offset 0"), "tensor-offset"),
    Bad("offset wraps", tensor(GATE, offset=(1 << 64) - 32), (GATE,), None),
    Bad(
        "data beyond the file",
        lambda f: setattr(f.tensors[-1], "data", b""),
        ("output_norm.weight", "ends at"),
        "tensor-cut",
    ),
    Bad(
        "larger than the file",
        lambda f: setattr(f.tensors[-1], "ne", (1 << 40,)),
        ("output_norm.weight",),
        "tensor-cut",
    ),
    Bad("bytes behind the end", attribute("trailing", bytes(999)), ("999",), "trailing-bytes"),
    Bad("no such tensor", without(GATE), (GATE, "missing"), "tensor-missing"),
    Bad("no embedding", without("token_embd.weight"), ("token_embd.weight",), "tensor-missing"),
    Bad(
        "one too many",
        lambda f: f.tensors.append(EXTRA),
        ("blk.0.extra.weight",),
        "tensor-unexpected",
    ),
    Bad("other shape", tensor(GATE, ne=(64, 32)), (GATE, "64", "32"), "tensor-shape"),
    Bad(
        "norm in blocks",
        tensor(NORM, type=2, data=bytes(18)),
        (NORM, "q4_0"),
        "tensor-type",
    ),
    Bad("matrix of whole numbers", tensor(GATE, type=26), (GATE, "i32"), "matrix-type"),
]
MEANING = [
    *[
        Bad(f"{key} is {value}", put(f"llama.{key}", kind, value), (key, *words), "key-value")
        for key, kind, value, words in [
            ("block_count", U32, 0, ("0",)),
            ("block_count", U32, 513, ("513",)),
            ("block_count", U32, (1 << 32) - 1, (str((1 << 32) - 1),)),
            ("attention.head_count", U32, 0, ("0",)),
            ("attention.head_count_kv", U32, 0, ("0",)),
            ("context_length", U32, 0, ("0",)),
            ("embedding_length", U32, 0, ("0",)),
        ]
    ],
    Bad(
        "heads that do not divide",
        both(
            put("llama.attention.head_count", U32, 3), put("llama.attention.head_count_kv", U32, 2)
        ),
        ("head",),
        "key-value",
    ),
    Bad(
        "width over heads, and no width of a head",
        both(
            put("llama.attention.head_count", U32, 3),
            put("llama.attention.head_count_kv", U32, 3),
            drop("llama.attention.key_length"),
            drop("llama.attention.value_length"),
        ),
        ("attention.head_count", "key_length"),
        "key-value",
    ),
    Bad(
        "epsilon 0",
        put("llama.attention.layer_norm_rms_epsilon", F32, 0.0),
        ("eps", "0"),
        "key-value",
    ),
    Bad(
        "epsilon is no number",
        put("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
        ("eps", "nan"),
        "key-value",
    ),
    Bad("base 0", put("llama.rope.freq_base", F32, 0.0), ("rope", "0"), "key-value"),
    Bad("base below 0", put("llama.rope.freq_base", F32, -1.0), ("rope", "-1"), "key-value"),
    Bad("base endless", put("llama.rope.freq_base", F32, float("inf")), ("inf",), "key-value"),
    Bad(
        "list of another length",
        put("llama.feed_forward_length", ARRAY, (U32, [64, 64])),
        ("feed_forward_length", "2", "1 layers"),
        "key-value",
    ),
    Bad(
        "wrong type",
        put("llama.context_length", U64, 64),
        ("llama.context_length", "u64", "u32"),
        "key-type",
    ),
    Bad(
        "wrong float",
        put("llama.attention.layer_norm_rms_epsilon", F64, 1e-5),
        ("layer_norm_rms_epsilon", "f64", "f32"),
        "key-type",
    ),
    Bad(
        "no layers said", drop("llama.block_count"), ("llama.block_count", "missing"), "key-missing"
    ),
    Bad(
        "no architecture",
        drop("general.architecture"),
        ("general.architecture", "missing"),
        "architecture-missing",
    ),
    Bad(
        "vocabulary of another size",
        put("llama.vocab_size", U32, 9),
        ("vocab_size", "9", "264"),
        "vocab-size",
    ),
    Bad(
        "window of 0",
        put("gpt-oss.attention.sliding_window", U32, 0),
        ("sliding_window", "0"),
        "key-value",
        OSS,
    ),
    Bad(
        "more experts used than there are",
        put("gpt-oss.expert_used_count", U32, 3),
        ("expert", "3", "2"),
        "key-value",
        OSS,
    ),
    Bad("no experts", put("gpt-oss.expert_count", U32, 0), ("expert",), "tensor-shape", OSS),
    Bad(
        "scaling nobody knows",
        put("llama.rope.scaling.type", STRING, "spiral"),
        ("spiral",),
        "key-value",
    ),
]
TOKENIZER = [
    Bad("too few tokens", shorter(TOKENS), (TOKENS, "263", "264"), "vocab-length"),
    Bad("two of one text", token(260, "th"), ("259", "260", "th"), "token-duplicate", prompt=True),
    Bad(
        "end beyond the vocabulary",
        put("tokenizer.ggml.eos_token_id", U32, 264),
        ("eos_token_id", "264"),
        "special-id-range",
    ),
    Bad(
        "turn's end beyond the vocabulary",
        put("tokenizer.ggml.eot_token_id", U32, 0xFFFFFFFF),
        ("eot", "4294967295"),
        "special-id-range",
        prompt=True,
    ),
    Bad(
        "kinds too short",
        shorter("tokenizer.ggml.token_type"),
        ("token_type", "263", "264"),
        "token-type-length",
        prompt=True,
    ),
    Bad(
        "kind nobody knows",
        put("tokenizer.ggml.token_type", ARRAY, (I32, [9] * 264)),
        ("token_type", "9"),
        "token-type-value",
        prompt=True,
    ),
    Bad(
        "kinds of another type",
        put("tokenizer.ggml.token_type", ARRAY, (U32, [1] * 264)),
        ("token_type", "u32", "i32"),
        "key-type",
        prompt=True,
    ),
    Bad(
        "scores too short",
        both(
            put("tokenizer.ggml.model", STRING, "llama"),
            put("tokenizer.ggml.token_type", ARRAY, (I32, [2] + [1] * 263)),
            put("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * 9)),
        ),
        ("scores", "9", "264"),
        "scores-length",
        prompt=True,
    ),
    Bad(
        "merge without a space",
        put("tokenizer.ggml.merges", ARRAY, (STRING, ["th"])),
        ("merges", "th"),
        "merges-broken",
        prompt=True,
    ),
    Bad(
        "merge of unknown tokens",
        put("tokenizer.ggml.merges", ARRAY, (STRING, ["th zz"])),
        ("merge", "zz"),
        "merges-broken",
        prompt=True,
    ),
    Bad(
        "merge into nothing",
        put("tokenizer.ggml.merges", ARRAY, (STRING, ["z z"])),
        ("merge", "zz"),
        "merges-broken",
        prompt=True,
    ),
    Bad(
        "kind of tokenizer",
        put("tokenizer.ggml.model", STRING, "gpt9"),
        ("tokenizer.ggml.model", "gpt9"),
        "tokenizer-model",
        prompt=True,
    ),
    Bad(
        "rule of cutting",
        put("tokenizer.ggml.pre", STRING, "martian"),
        ("tokenizer.ggml.pre", "martian"),
        "pre-unknown",
        prompt=True,
    ),
    Bad(
        "no merges",
        drop("tokenizer.ggml.merges"),
        ("tokenizer.ggml.merges", "missing"),
        "merges-missing",
        prompt=True,
    ),
    Bad("no tokens", drop(TOKENS), (TOKENS, "missing"), "tokenizer-missing", prompt=True),
    Bad(
        "tokens are numbers",
        put(TOKENS, ARRAY, (U8, [1] * 264)),
        (TOKENS, "u8", "string"),
        "key-type",
        prompt=True,
    ),
    Bad(
        "add_bos is a number",
        put("tokenizer.ggml.add_bos_token", U32, 1),
        ("add_bos_token", "u32", "bool"),
        "key-type",
        prompt=True,
    ),
]
PARTS = [
    Bad(
        "a part alone",
        put("split.count", U16, 2),
        ("split.count",),
        "split-incomplete",
    ),
    Bad(
        "parts of another type",
        put("split.count", U32, 2),
        ("split.count",),
        "split-incomplete",
    ),
]
CASES = [
    (group, case)
    for group, cases in {
        "header": HEADER,
        "keys": KEYS,
        "tensors": TENSORS,
        "meaning": MEANING,
        "tokenizer": TOKENIZER,
        "parts": PARTS,
    }.items()
    for case in cases
]


def ask(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{g}: {c.name}" for g, c in CASES])
def test_it_is_refused_by_name(program: Path, tmp_path: Path, group: str, case: Bad) -> None:
    file = sound(case.shape)
    case.change(file)
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    prompt = ["--prompt", "the"] if case.prompt else ["--ids", "1,2"]
    done = ask(program, "generate", "--model", path, *prompt, "--max-tokens", "1")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert "m.gguf" in line
    for word in case.words:
        assert word in line, line
    for word in ("panic", "error.", "unreachable", "Segmentation"):
        assert word not in line, line
    report = json.loads(ask(program, "lint", path, "--json").stdout)
    if "error" in report:
        assert case.code is None
        # The linter cannot read it either, and says why in the same words.
        assert all(word in report["error"] for word in case.words), report
    else:
        codes = {finding["code"]: finding for finding in report["findings"]}
        expected = case.code or "ollama-layout"
        assert expected in codes, report
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_the_sound_ones_are_taken(program: Path, tmp_path: Path) -> None:
    """Otherwise all of the above proves nothing."""
    path = tmp_path / "m.gguf"
    odd_bool = sound()
    odd_bool.pairs.append(text("x.flag") + struct.pack("<IB", BOOL, 2))
    for file in (sound(), sound(Q8), sound(WIDE), sound(OSS), odd_bool):
        path.write_bytes(file.data())
        for prompt in (["--prompt", "the"], ["--ids", "1,2"]):
            done = ask(program, "generate", "--model", path, *prompt, "--max-tokens", "1")
            assert done.returncode == 0, done.stderr


def test_a_bool_is_any_byte(program: Path, tmp_path: Path) -> None:
    file = sound()
    file.pairs.append(text("x.flag") + struct.pack("<IB", BOOL, 2))
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    assert json.loads(ask(program, "inspect", path, "--json").stdout)["keys"]["x.flag"] is True


def test_a_file_cut_anywhere_is_refused(program: Path, tmp_path: Path) -> None:
    """Every length of the first hundred bytes, and lengths all over the rest."""
    whole = sound().data()
    rng = np.random.default_rng(1)
    lengths = [*range(0, 100, 7), *rng.integers(100, len(whole) - 32, 40).tolist()]
    path = tmp_path / "m.gguf"
    for length in lengths:
        path.write_bytes(whole[:length])
        done = ask(program, "inspect", path)
        assert done.returncode == 1, length
        assert "m.gguf" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0, Type.Q4_0, Type.MXFP4])
def test_numbers_that_are_none_are_refused_when_they_are_met(
    program: Path, tmp_path: Path, kind: Type
) -> None:
    broken = {
        Type.F32: np.float32(np.nan).tobytes(),
        Type.F16: np.float16(np.inf).tobytes(),
        Type.MXFP4: b"\xff",
    }.get(kind, np.float16(np.nan).tobytes())
    file = sound(Shape(kind=int(kind)))
    filled("blk.0.attn_v.weight", broken)(file)
    path = tmp_path / "m.gguf"
    path.write_bytes(file.data())
    report = json.loads(ask(program, "lint", path, "--json").stdout)
    assert [f["code"] for f in report["findings"]] == ["numbers-broken"]
    assert report["findings"][0]["field"] == "blk.0.attn_v.weight"
    np.arange(8, dtype="<u4").tofile(tmp_path / "data.bin")
    config = '{"max_seq_len": 4, "batch_size": 1, "max_steps": 1, "threads": 1}'
    (tmp_path / "t.json").write_text(config, encoding="utf-8")
    words = ["train", "--config", tmp_path / "t.json", "--data", tmp_path / "data.bin"]
    done = ask(program, *words, "--model", path, "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert "attn_v" in done.stderr or "v_proj" in done.stderr, done.stderr
    quantised = ask(program, "quantize", path, tmp_path / "out.gguf", "q8_0", "--allow-requantize")
    assert quantised.returncode == 1
    assert "blk.0.attn_v.weight" in quantised.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_parts_that_do_not_belong_together(program: Path, tmp_path: Path) -> None:
    def part(index: int, count: int, tensors: int) -> bytes:
        file = sound()
        file.put("split.no", U16, index).put("split.count", U16, count)
        return file.put("split.tensors.count", I32, tensors).data()

    names = [tmp_path / f"m-{i + 1:05d}-of-00002.gguf" for i in range(2)]
    cases = [
        ((0, 2, 22), (0, 2, 22), "part 1 of 2"),
        ((0, 2, 22), (1, 3, 22), "of 3"),
        ((0, 2, 22), None, "00002-of-00002"),
        ((0, 2, 99), (1, 2, 99), "two parts"),
    ]
    for first, second, words in cases:
        names[0].write_bytes(part(*first))
        names[1].unlink(missing_ok=True)
        if second:
            names[1].write_bytes(part(*second))
        done = ask(program, "join", names[0], tmp_path / "out.gguf")
        assert done.returncode == 1
        assert words in done.stderr, done.stderr
        report = json.loads(ask(program, "lint", names[0], "--json").stdout)
        assert "split-incomplete" in {f["code"] for f in report["findings"]}, report
        assert not (tmp_path / "out.gguf").exists()
