"""GGUF files written byte by byte, sound or not: no writer stands between a test and the file.

``sound(architecture, ...)`` gives a small model that llama.cpp loads; a test changes what it likes
and asks for ``data()``. Everything a file says of itself (counts, offsets, versions) can be set to
something else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "<B",
    I8: "<b",
    U16: "<H",
    I16: "<h",
    U32: "<I",
    I32: "<i",
    F32: "<f",
    BOOL: "<B",
    U64: "<Q",
    I64: "<q",
    F64: "<d",
}
Type = gguf.GGMLQuantizationType
F16_TYPE = Type.F16


def text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind: int, value: Any) -> bytes:
    """The value without its type; of an array `(element type, values)`."""
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        element, items = value
        head = struct.pack("<IQ", element, len(items))
        if element in (F32, I32, U32, F64) and not isinstance(items, list):
            return head + np.asarray(items, FORMATS[element]).tobytes()
        return head + b"".join(value_bytes(element, item) for item in items)
    return struct.pack(FORMATS[kind], value)


@dataclass
class Tensor:
    """`ne` in ggml's order; `offset` and `type` may lie."""

    name: str | bytes
    ne: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None


@dataclass
class File:
    """Keys as `name -> (type, value)`; `extra` keys are written behind them, doubles too."""

    keys: dict[str | bytes, tuple[int, Any]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    extra: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_keys: int | None = None
    trailing: bytes = b""
    #: Whole pairs as they stand in the file, for those that no writer would make.
    pairs: list[bytes] = field(default_factory=list)

    def put(self, name: str | bytes, kind: int, value: Any) -> File:
        self.keys[name] = (kind, value)
        return self

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def head(self) -> bytes:
        """All before the padding of the data section."""
        pairs = [(name, kind, value) for name, (kind, value) in self.keys.items()] + self.extra
        out = [
            self.magic,
            struct.pack("<I", self.version),
            struct.pack("<q", len(self.tensors) if self.n_tensors is None else self.n_tensors),
            struct.pack("<q", len(pairs) + len(self.pairs) if self.n_keys is None else self.n_keys),
        ]
        for name, kind, value in pairs:
            out += [text(name), struct.pack("<I", kind), value_bytes(kind, value)]
        out += self.pairs
        at = 0
        for t in self.tensors:
            out += [text(t.name), struct.pack("<I", len(t.ne))]
            out += [struct.pack("<q", n) for n in t.ne]
            out += [struct.pack("<IQ", t.type, at if t.offset is None else t.offset)]
            at += len(self.padded(t.data))
        return b"".join(out)

    def padded(self, raw: bytes) -> bytes:
        return raw + bytes(-len(raw) % self.alignment)

    def data(self) -> bytes:
        head = self.head()
        body = b"".join(self.padded(t.data) for t in self.tensors)
        return (self.padded(head) if self.tensors else head) + body + self.trailing


#: 256 letters for 256 bytes, as every byte-level tokenizer writes them.
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
LETTERS = [chr(b) for b in PRINTED] + [chr(0x100 + i) for i in range(256 - len(PRINTED))]
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "th", "the"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_keys(vocab: int) -> dict[str | bytes, tuple[int, Any]]:
    """A byte-level tokenizer of exactly `vocab` tokens, at least 261."""
    tokens = [*LETTERS, *WORDS]
    kinds = [1] * 256 + [3, 3, 3, 1, 1]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab)]
    kinds += [5] * (vocab - len(kinds))
    end = tokens.index("<|im_end|>")
    return {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (I32, kinds)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, ["t h", "th e"])),
        "tokenizer.ggml.bos_token_id": (U32, tokens.index("<|endoftext|>")),
        "tokenizer.ggml.eos_token_id": (U32, end),
        "tokenizer.ggml.add_bos_token": (BOOL, 0),
        "tokenizer.chat_template": (STRING, TEMPLATE),
    }


def stored(rng: np.random.Generator, ne: tuple[int, ...], kind: int) -> bytes:
    """Random numbers of a sane size in this type."""
    values = (rng.standard_normal(ne[::-1]) / 8).astype(np.float32)
    if kind == Type.F32:
        return values.tobytes()
    if kind == Type.MXFP4:
        codes = rng.integers(0, 256, (values.size // 32, 17), np.uint8)
        codes[:, 0] = rng.integers(118, 124, values.size // 32)
        return codes.tobytes()
    if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return k_blocks(rng, kind, values.size // 256)
    return gguf.quantize(values, Type(kind)).tobytes()


def k_blocks(rng: np.random.Generator, kind: int, count: int) -> bytes:
    """PyPI's package does not make these: random codes under small scales."""
    size = gguf.GGML_QUANT_SIZES[Type(kind)][1]
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    scale = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    places = [208] if kind == Type.Q6_K else [0, 2]
    for place in places:
        blocks[:, place : place + 2] = scale
    return blocks.tobytes()


@dataclass
class Shape:
    """What a sound model is made of."""

    architecture: str = "llama"
    width: int = 32
    inner: int = 64
    layers: int = 1
    heads: int = 2
    shared: int = 1
    head: int = 16
    vocab: int = 264
    tied: bool = True
    experts: int = 2
    kind: int = int(Type.F32)
    embedding_kind: int = int(Type.F32)


def sound(shape: Shape | None = None, *, seed: int = 1) -> File:
    """A file in which everything is right."""
    s = shape or Shape()
    a = s.architecture
    rng = np.random.default_rng(seed)
    harmony = a == "gpt-oss"
    file = File()
    file.put("general.architecture", STRING, a)
    file.put("general.file_type", U32, file_type(s.kind))
    if (s.kind > 1 and s.kind != Type.BF16) or s.embedding_kind > 1:
        file.put("general.quantization_version", U32, 2)
    numbers = {
        "context_length": 64,
        "embedding_length": s.width,
        "block_count": s.layers,
        "feed_forward_length": s.inner,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.shared,
        "attention.key_length": s.head,
        "attention.value_length": s.head,
        "rope.dimension_count": s.head,
        "vocab_size": s.vocab,
    }
    if harmony:
        numbers |= {
            "expert_count": s.experts,
            "expert_used_count": 1,
            "expert_feed_forward_length": s.inner,
            "attention.sliding_window": 8,
            "rope.scaling.original_context_length": 32,
        }
        file.put(f"{a}.rope.scaling.type", STRING, "yarn")
        file.put(f"{a}.rope.scaling.factor", F32, 2.0)
    for name, n in numbers.items():
        file.put(f"{a}.{name}", U32, n)
    file.put(f"{a}.attention.layer_norm_rms_epsilon", F32, 1e-5)
    file.put(f"{a}.rope.freq_base", F32, 10000.0)
    file.keys |= tokenizer_keys(s.vocab)

    def add(name: str, *ne: int, kind: int = int(Type.F32), ones: bool = False) -> None:
        raw = np.ones(ne, np.float32).tobytes() if ones else stored(rng, ne, kind)
        file.tensors.append(Tensor(name, ne, kind, raw))

    queries, keys = s.heads * s.head, s.shared * s.head
    add("token_embd.weight", s.width, s.vocab, kind=s.embedding_kind)
    for n in range(s.layers):
        b = f"blk.{n}."
        add(b + "attn_norm.weight", s.width, ones=True)
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            add(f"{b}attn_{part}.weight", s.width, rows, kind=s.kind)
            if a in ("qwen2", "gpt-oss"):
                add(f"{b}attn_{part}.bias", rows)
        if a == "qwen3":
            add(b + "attn_q_norm.weight", s.head, ones=True)
            add(b + "attn_k_norm.weight", s.head, ones=True)
        add(b + "attn_output.weight", queries, s.width, kind=s.kind)
        if not harmony:
            add(b + "ffn_norm.weight", s.width, ones=True)
            add(b + "ffn_gate.weight", s.width, s.inner, kind=s.kind)
            add(b + "ffn_up.weight", s.width, s.inner, kind=s.kind)
            add(b + "ffn_down.weight", s.inner, s.width, kind=s.kind)
            continue
        add(b + "attn_output.bias", s.width)
        add(b + "attn_sinks.weight", s.heads)
        add(b + "post_attention_norm.weight", s.width, ones=True)
        add(b + "ffn_gate_inp.weight", s.width, s.experts)
        add(b + "ffn_gate_inp.bias", s.experts)
        for part in ("gate", "up"):
            add(f"{b}ffn_{part}_exps.weight", s.width, s.inner, s.experts, kind=s.kind)
            add(f"{b}ffn_{part}_exps.bias", s.inner, s.experts)
        add(b + "ffn_down_exps.weight", s.inner, s.width, s.experts, kind=s.kind)
        add(b + "ffn_down_exps.bias", s.width, s.experts)
    add("output_norm.weight", s.width, ones=True)
    if not s.tied or harmony:
        add("output.weight", s.width, s.vocab, kind=s.embedding_kind)
    return file


def file_type(kind: int) -> int:
    """`general.file_type` of a file whose matrices have this type."""
    names = {
        Type.Q4_K: "MOSTLY_Q4_K_S",
        Type.Q5_K: "MOSTLY_Q5_K_S",
        Type.MXFP4: "MOSTLY_MXFP4_MOE",
    }
    t = Type(kind)
    if t == Type.F32:
        return 0
    return int(gguf.LlamaFileType[names.get(t, f"MOSTLY_{t.name}")])
