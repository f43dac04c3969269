"""GGUF files drawn by lot: of every architecture and type, with odd keys, in parts, and broken.

``draw(seed)`` is the same file for the same number. About three in five are sound in some unusual
way; the others have one fault, which the drawing names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    F64,
    FORMATS,
    I8,
    I16,
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

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt-oss")
KINDS = (
    Type.F32,
    Type.F32,
    Type.F16,
    Type.BF16,
    Type.Q8_0,
    Type.Q4_0,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_1,
    Type.Q4_K,
    Type.Q5_K,
    Type.Q6_K,
    Type.MXFP4,
)
NUMBERS: dict[int, list[Any]] = {
    U8: [0, 255],
    I8: [-128, 127],
    U16: [0, 65535],
    I16: [-32768, 32767],
    U32: [0, (1 << 32) - 1],
    I32: [-(1 << 31), (1 << 31) - 1],
    F32: [0.0, -0.0, 1e-45, 3.4e38, 0.1, float("inf"), float("nan")],
    BOOL: [0, 1],
    U64: [0, (1 << 64) - 1],
    I64: [-(1 << 63), (1 << 63) - 1],
    F64: [5e-324, 1.7e308, 0.1, float("-inf"), float("nan")],
}
TEXTS = ["", "plain", "é 東京 🙂", "line\nline\ttab", "x" * 3000, '"quoted"\\', "\x01\x1b[2J"]


@dataclass
class Drawn:
    seed: int
    shape: Shape
    file: File
    #: Empty when nothing is wrong.
    fault: str = ""
    odd: list[str] = field(default_factory=list)
    parts: int = 1

    def write(self, folder: Path) -> Path:
        """One file, or several; the path of the first."""
        if self.parts == 1:
            path = folder / f"f{self.seed}.gguf"
            path.write_bytes(self.file.data())
            return path
        tensors = self.file.tensors
        bounds = np.linspace(0, len(tensors), self.parts + 1).astype(int)
        paths = []
        for i in range(self.parts):
            part = copy.copy(self.file)
            part.keys = dict(self.file.keys) if i == 0 else {}
            if "general.alignment" in self.file.keys:
                part.keys["general.alignment"] = self.file.keys["general.alignment"]
            part.tensors = tensors[bounds[i] : bounds[i + 1]]
            part.put("split.no", U16, i).put("split.count", U16, self.parts)
            part.put("split.tensors.count", I32, len(tensors))
            path = folder / f"f{self.seed}-{i + 1:05d}-of-{self.parts:05d}.gguf"
            path.write_bytes(part.data())
            paths.append(path)
        return paths[0]


def any_value(rng: np.random.Generator) -> tuple[int, Any]:
    kind = int(rng.choice([*NUMBERS, STRING, ARRAY]))
    if kind == STRING:
        return STRING, str(rng.choice(TEXTS))
    if kind == ARRAY:
        element = int(rng.choice([*NUMBERS, STRING]))
        count = int(rng.choice([0, 1, 3, 40]))
        pool: list[Any] = TEXTS if element == STRING else NUMBERS[element]
        return ARRAY, (element, [pool[int(i)] for i in rng.integers(0, len(pool), count)])
    return kind, NUMBERS[kind][int(rng.integers(len(NUMBERS[kind])))]


def draw_shape(rng: np.random.Generator) -> Shape:
    a = str(rng.choice(ARCHITECTURES))
    kind = Type(int(rng.choice([int(k) for k in KINDS])))
    k_type = kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K)
    heads = int(rng.choice([2, 4]))
    head = 64 if k_type else int(rng.choice([8, 16, 32]))
    width = 256 if k_type else heads * head
    if k_type:
        heads = 4
    elif a in ("qwen3", "llama", "gpt-oss"):
        width = int(rng.choice([32, 64, 96]))  # heads need not be as wide as the model over them
    if kind.name not in ("F32", "F16", "BF16"):
        width = max(32, width // 32 * 32)
        head = max(head, 32 // heads)
    if a == "qwen2":
        width = heads * head
    return Shape(
        a,
        width=width,
        inner=256 if k_type else int(rng.choice([32, 64, 160])),
        layers=int(rng.integers(1, 4)),
        heads=heads,
        shared=int(rng.choice([1, heads, heads // 2])),
        head=head,
        vocab=int(rng.choice([261, 264, 300])),
        tied=bool(rng.integers(2)),
        experts=int(rng.choice([1, 2, 5])),
        kind=int(kind),
        embedding_kind=int(kind) if rng.integers(2) and kind != Type.MXFP4 else int(Type.F32),
    )


def optional_keys_left_out(d: Drawn, rng: np.random.Generator) -> None:
    a = d.shape.architecture
    names = ["rope.freq_base", "vocab_size", "rope.dimension_count"]
    if d.shape.heads == d.shape.shared:
        names.append("attention.head_count_kv")
    if d.shape.width == d.shape.heads * d.shape.head:
        names += ["attention.key_length", "attention.value_length"]
    if a == "gpt-oss":
        names.append("feed_forward_length")
    for name in names:
        if rng.integers(2):
            d.file.keys.pop(f"{a}.{name}", None)


def lists_for_numbers(d: Drawn, rng: np.random.Generator) -> None:
    for name in ("feed_forward_length", "attention.head_count", "attention.head_count_kv"):
        key = f"{d.shape.architecture}.{name}"
        if rng.integers(2) and key in d.file.keys:
            element = int(rng.choice([U32, I32]))
            d.file.put(key, ARRAY, (element, [d.file.keys[key][1]] * d.shape.layers))


def extra_keys(d: Drawn, rng: np.random.Generator) -> None:
    for i in range(int(rng.integers(1, 12))):
        d.file.put(f"x.odd.{i}", *any_value(rng))


def shuffled_keys(d: Drawn, rng: np.random.Generator) -> None:
    names = list(d.file.keys)
    order = rng.permutation(len(names))
    d.file.keys = {names[i]: d.file.keys[names[i]] for i in order}


def shuffled_tensors(d: Drawn, rng: np.random.Generator) -> None:
    d.file.tensors = [d.file.tensors[i] for i in rng.permutation(len(d.file.tensors))]


def other_alignment(d: Drawn, rng: np.random.Generator) -> None:
    d.file.alignment = int(rng.choice([32, 64, 128, 4096]))
    d.file.put("general.alignment", U32, d.file.alignment)


def full_rank(d: Drawn, _: np.random.Generator) -> None:
    for t in d.file.tensors:
        t.ne = (*t.ne, *[1] * (4 - len(t.ne)))


def version_2(d: Drawn, _: np.random.Generator) -> None:
    d.file.version = 2


def linear_scaling(d: Drawn, rng: np.random.Generator) -> None:
    if d.shape.architecture != "gpt-oss":
        a = d.shape.architecture
        if rng.integers(2):
            d.file.put(f"{a}.rope.scaling.type", STRING, "linear")
        d.file.put(f"{a}.rope.scaling.factor", F32, float(rng.choice([0.0, 1.0, 2.0, 4.0])))


def frequency_divisors(d: Drawn, _: np.random.Generator) -> None:
    """What Llama 3's rule gives for factor 8."""
    if d.shape.architecture != "llama" or "llama.rope.scaling.factor" in d.file.keys:
        return
    half = d.shape.head // 2
    inverse = 10000.0 ** (-np.arange(half) * 2.0 / d.shape.head)
    wave = 2 * np.pi / inverse
    low, high, factor, context = 1.0, 4.0, 8.0, 32.0
    smooth = (context / wave - low) / (high - low)
    ramp = 1 / ((1 - smooth) / factor + smooth)
    out = np.where(wave < context / high, 1.0, np.where(wave > context / low, factor, ramp))
    d.file.keys["llama.rope.freq_base"] = (F32, 10000.0)
    raw = out.astype("<f4").tobytes()
    d.file.tensors.insert(0, Tensor("rope_freqs.weight", (half,), 0, raw))


def biases(d: Drawn, rng: np.random.Generator) -> None:
    if d.shape.architecture not in ("llama", "qwen3"):
        return
    for layer in range(d.shape.layers):
        for part, heads in (("q", d.shape.heads), ("k", d.shape.shared), ("v", d.shape.shared)):
            rows = heads * d.shape.head
            raw = (rng.standard_normal(rows) / 8).astype("<f4").tobytes()
            d.file.tensors.append(Tensor(f"blk.{layer}.attn_{part}.bias", (rows,), 0, raw))


def mixed_types(d: Drawn, rng: np.random.Generator) -> None:
    """Some matrices in f16 or f32 beside the others."""
    from raw_gguf import stored

    for t in d.file.tensors:
        if len(t.ne) > 1 and t.type == d.shape.kind and rng.integers(3) == 0:
            if "gate_inp" in str(t.name) or str(t.name).endswith("bias"):
                continue
            t.type = int(rng.choice([int(Type.F16), int(Type.F32)]))
            t.data = stored(rng, t.ne, t.type)


def in_parts(d: Drawn, rng: np.random.Generator) -> None:
    d.parts = int(rng.integers(2, 5))


def scores(d: Drawn, rng: np.random.Generator) -> None:
    element = int(rng.choice([F32, I32]))
    d.file.put("tokenizer.ggml.scores", ARRAY, (element, [0] * d.shape.vocab))


def longer_lists(d: Drawn, _: np.random.Generator) -> None:
    """More kinds than tokens: allowed, and the rest is not looked at."""
    kinds = d.file.keys["tokenizer.ggml.token_type"][1][1]
    d.file.put("tokenizer.ggml.token_type", ARRAY, (I32, [*kinds, 1, 1]))


def last_padding_cut(d: Drawn, _: np.random.Generator) -> None:
    odd = Tensor(f"blk.{d.shape.layers - 1}.attn_norm.weight", (), 0, b"")
    last = d.file.tensor(str(odd.name))
    d.file.tensors.remove(last)
    d.file.tensors.append(last)


ODD: list[Callable[[Drawn, np.random.Generator], None]] = [
    optional_keys_left_out,
    lists_for_numbers,
    extra_keys,
    extra_keys,
    shuffled_keys,
    shuffled_tensors,
    other_alignment,
    full_rank,
    version_2,
    linear_scaling,
    frequency_divisors,
    biases,
    mixed_types,
    in_parts,
    scores,
    longer_lists,
    last_padding_cut,
]

#: Keys that llama.cpp reads while it loads.
READ = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
]
NEEDED = [
    "context_length",
    "embedding_length",
    "block_count",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
]


def wrong_type(d: Drawn, rng: np.random.Generator) -> str:
    key = f"{d.shape.architecture}.{rng.choice(READ)}"
    kind, value = d.file.keys.get(key, (U32, 16))
    others = [k for k in FORMATS if k != kind and k != BOOL]
    new = int(rng.choice([*others, STRING]))
    whole = 16 if kind == ARRAY else min(int(value), 100)
    d.file.put(key, new, str(whole) if new == STRING else FORMATS_OF[new](whole))
    return f"{key} as {new}"


FORMATS_OF: dict[int, Callable[[Any], Any]] = {
    kind: float if kind in (F32, F64) else int for kind in FORMATS
}


def wrong_tokenizer_type(d: Drawn, rng: np.random.Generator) -> str:
    names = ["bos_token_id", "eos_token_id", "add_bos_token", "tokens", "token_type", "model"]
    key = f"tokenizer.ggml.{rng.choice(names)}"
    d.file.put(key, I64, 1)
    return f"{key} as i64"


def missing_key(d: Drawn, rng: np.random.Generator) -> str:
    key = f"{d.shape.architecture}.{rng.choice(NEEDED)}"
    del d.file.keys[key]
    return f"no {key}"


def missing_tensor(d: Drawn, rng: np.random.Generator) -> str:
    optional = ("output.weight", "rope_freqs.weight")
    needed = [t for t in d.file.tensors if t.name not in optional and "bias" not in str(t.name)]
    t = needed[int(rng.integers(len(needed)))]
    d.file.tensors.remove(t)
    return f"no {t.name}"


def extra_tensor(d: Drawn, rng: np.random.Generator) -> str:
    names = ["blk.0.attn_rot_embd", "extra.weight", f"blk.{d.shape.layers}.attn_norm.weight"]
    name = str(rng.choice(names))
    d.file.tensors.append(Tensor(name, (32,), 0, bytes(128)))
    return f"also {name}"


def wrong_shape(d: Drawn, rng: np.random.Generator) -> str:
    flat = [t for t in d.file.tensors if t.type == Type.F32]
    t = flat[int(rng.integers(len(flat)))]
    t.ne = (t.ne[0] + 32, *t.ne[1:])
    t.data = bytes(int(np.prod(t.ne)) * 4)
    return f"{t.name} of another shape"


def wrong_offset(d: Drawn, rng: np.random.Generator) -> str:
    t = d.file.tensors[int(rng.integers(1, len(d.file.tensors)))]
    t.offset = int(rng.choice([1, 32, 1 << 40]))
    return f"{t.name} elsewhere"


def wrong_number(d: Drawn, rng: np.random.Generator) -> str:
    a = d.shape.architecture
    choices = [
        (f"{a}.block_count", U32, 0),
        (f"{a}.block_count", U32, 600),
        (f"{a}.attention.head_count", U32, d.shape.heads * 2),
        (f"{a}.embedding_length", U32, d.shape.width + 32),
        (f"{a}.attention.key_length", U32, d.shape.head + 2),
        (f"{a}.expert_used_count", U32, 99),
        (f"{a}.rope.scaling.type", STRING, "spiral"),
        (f"{a}.attention.head_count_kv", ARRAY, (U32, [1] * (d.shape.layers + 1))),
        ("tokenizer.ggml.model", STRING, "none of them"),
        ("tokenizer.ggml.pre", STRING, "none of them"),
        ("general.architecture", STRING, "none of them"),
        ("general.alignment", U32, 33),
        ("general.alignment", U64, 32),
    ]
    key, kind, value = choices[int(rng.integers(len(choices)))]
    d.file.put(key, kind, value)
    return f"{key} is {value}"


def wrong_lists(d: Drawn, rng: np.random.Generator) -> str:
    tokens = list(d.file.keys["tokenizer.ggml.tokens"][1][1])
    kinds = list(d.file.keys["tokenizer.ggml.token_type"][1][1])
    which = int(rng.integers(5))
    if which == 0:
        tokens[5] = tokens[6]
    elif which == 1:
        tokens.pop()
        kinds.pop()
    elif which == 2:
        kinds.pop()
    elif which == 3:
        tokens.append("more")
        kinds.append(1)
    else:
        del d.file.keys["tokenizer.ggml.merges"]
    d.file.put("tokenizer.ggml.tokens", ARRAY, (STRING, tokens))
    d.file.put("tokenizer.ggml.token_type", ARRAY, (I32, kinds))
    names = ["two of one text", "too few tokens", "too few kinds", "too many tokens", "no merges"]
    return names[which]


def wrong_header(d: Drawn, rng: np.random.Generator) -> str:
    which = str(rng.choice(["magic", "version", "n_tensors", "n_keys", "twice", "cut"]))
    if which == "magic":
        d.file.magic = b"GGUX"
    elif which == "version":
        d.file.version = int(rng.choice([0, 1, 4, 3 << 24]))
    elif which == "n_tensors":
        d.file.n_tensors = int(rng.choice([-1, 1 << 60]))
    elif which == "n_keys":
        d.file.n_keys = int(rng.choice([-1, 1 << 60]))
    elif which == "twice":
        d.file.extra.append(("general.architecture", STRING, "llama"))
    else:
        d.file.tensors[-1].data = d.file.tensors[-1].data[:16]
    return f"header: {which}"


def small_alignment(d: Drawn, rng: np.random.Generator) -> str:
    """llama.cpp takes it where the data happens to lie right, and else dies."""
    d.file.alignment = int(rng.choice([8, 16]))
    d.file.put("general.alignment", U32, d.file.alignment)
    return f"alignment {d.file.alignment}"


FAULTS: list[Callable[[Drawn, np.random.Generator], str]] = [
    wrong_type,
    wrong_type,
    wrong_tokenizer_type,
    missing_key,
    missing_tensor,
    extra_tensor,
    wrong_shape,
    wrong_offset,
    wrong_number,
    wrong_number,
    wrong_lists,
    wrong_header,
    small_alignment,
]


def draw(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    shape = draw_shape(rng)
    d = Drawn(seed, shape, sound(shape, seed=seed))
    faulty = rng.integers(5) < 2
    for i in rng.permutation(len(ODD))[: int(rng.integers(0, 2 if faulty else 6))]:
        ODD[i](d, rng)
        d.odd.append(ODD[i].__name__)
    if faulty:
        d.parts = 1
        d.fault = FAULTS[int(rng.integers(len(FAULTS)))](d, rng)
    return d
