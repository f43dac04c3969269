"""Texts and vocabularies of real size for tokenizer tests and benchmarks.

Prose and code come from this machine's Python, other scripts are sampled, vocabularies are trained
on the spot or are Mistral's own.
"""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

import tiny_tokenizers as tiny
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

EDGES = " \t\n\r  a1.,'\u00a0\u3000\u2028\x85\x0b\x1c/ſ's'LL'rE//\n/"
MARKS = "aAbBéÉçÇßſ'ǅʰ中न्ि\u0301\u0323\u0327e sStTdDrReEvVlLmM1²٣Ⅳ/\n "


def sources() -> list[str]:
    """Prose and code that is on every machine with Python."""
    found = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        found.append(path.read_text(encoding="utf-8", errors="replace"))
    return found


def scripts(rng: random.Random, length: int) -> str:
    """Words in scripts beyond Latin, some words more often than others."""
    ranges = [
        (0x4E00, 0x5200), (0x905, 0x950), (0x430, 0x450), (0xAC00, 0xAD00),
        (0x3041, 0x30FA), (0x621, 0x64B), (0x1F600, 0x1F650), (0xE0, 0x180),
    ]  # fmt: skip
    low, high = rng.choice(ranges)
    words = []
    for _ in range(length):
        count = min(int(rng.expovariate(0.5)) + 1, 9)
        words.append("".join(chr(rng.randrange(low, high)) for _ in range(count)))
        words.append(rng.choice([" ", " ", "", "，", "。", ", ", "।\n", "😀", "👩\u200d👧 "]))
    return "".join(words)


def junk(rng: random.Random, length: int) -> str:
    """Anything at all: code points, bytes, spaces, what sits on the expressions' edges."""
    kind = rng.randrange(5)
    if kind == 0:
        points = (rng.randrange(0x110000) for _ in range(length // 3))
        return "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)
    if kind == 1:
        return "".join(chr(rng.randrange(0x3000)) for _ in range(length // 2))
    if kind == 2:
        return rng.randbytes(length).decode("utf-8", "replace")
    return "".join(rng.choice(EDGES if kind == 3 else MARKS) for _ in range(length))


def texts(rng: random.Random, known: list[str], total: int) -> list[str]:
    """Mixed texts of `total` bytes together."""
    out, size = [], 0
    while size < total:
        kind = rng.random()
        if kind < 0.5:
            source = rng.choice(known)
            start = rng.randrange(max(len(source) - 100, 1))
            text = source[start : start + rng.randrange(1, 40_000)]
        elif kind < 0.85:
            text = scripts(rng, rng.randrange(1, 600))
        else:
            text = junk(rng, rng.randrange(1, 4000))
        out.append(text)
        size += len(text.encode())
    return out


def make(folder: Path, kind: str, size: int = 8000) -> Path:
    """A vocabulary of `kind` trained on this machine's text."""
    rng = random.Random(5)
    corpus = [s[:20_000] for s in sources()[:60]] + [scripts(rng, 400) for _ in range(60)]
    return train(folder, kind, corpus, size)


def split_as(tok: Tokenizer, kind: str, pattern: str) -> None:
    """Gives the tokenizer the normalizer and the pre-tokenizer of `kind`."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tok.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    elif kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tok.pre_tokenizer = pre_tokenizers.Sequence([digits, by_regex])
    else:
        tok.pre_tokenizer = by_regex
    if kind == "qwen2":
        tok.normalizer = normalizers.NFC()


def train(folder: Path, kind: str, corpus: list[str], size: int) -> Path:
    tok = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    split_as(tok, kind, tiny.REGEX.get(kind, ""))
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(corpus, trainer)
    tok.add_special_tokens([AddedToken(t, normalized=False) for t in tiny.SPECIALS[kind]])
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    return folder


def tekken(folder: Path, kind: str = "tekken") -> tuple[Path, dict[bytes, int], str]:
    """Mistral's own 131072 tokens as tokenizer.json; also its ranks and its expression.

    Another `kind` cuts text as that one does, with the same tokens: then the only vocabulary of
    real size and real languages that is here tells how quick each pre-tokenizer is.
    Raises ImportError without `mistral_common`, which brings the file.
    """
    import mistral_common

    file = Path(str(mistral_common.__file__)).parent / "data" / "tekken_240911.json"
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config = state["config"]
    special = int(config["default_num_special_tokens"])
    count = int(config["default_vocab_size"]) - special
    ranks = {base64.b64decode(t["token_bytes"]): int(t["rank"]) for t in state["vocab"][:count]}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    chars = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}

    def spell(token: bytes) -> str:
        return "".join(chars[b] for b in token)

    merges = []
    for token, rank in ranks.items():
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        both = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [(rank, *one) for one in sorted(both)]
    merges.sort(key=lambda m: m[0])
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    names += [f"<SPECIAL_{i}>" for i in range(len(names), special)]
    vocabulary = {spell(t): r + special for t, r in ranks.items()} | {
        n: i for i, n in enumerate(names)
    }
    pairs = [(spell(a), spell(b)) for *_, a, b in merges]
    tok = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=True))
    pattern = str(config["pattern"]) if kind == "tekken" else tiny.REGEX.get(kind, "")
    split_as(tok, kind, pattern)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(n, normalized=False) for n in names])
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    return folder, ranks, pattern
