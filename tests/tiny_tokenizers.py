"""Small tokenizers made on the spot, one for each kind of pre-tokenizer the project knows.

There is no hub in the tests, so vocabularies are trained here, in well under a second, on a few
hundred lines of mixed text (English, code, CJK, Devanagari, accents, emoji).

    make_tokenizer(folder, "llama3")

writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, if given one, a
chat template, so that `AutoTokenizer.from_pretrained(folder)` opens it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"

REGEX: dict[str, str] = {
    "llama3": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _TAIL,
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL,
    "o200k": f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    + _TAIL,
    "tekken": f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*"
    + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    + _TAIL,
}

KINDS = ("gpt2", "llama3", "qwen2", "smollm", "o200k", "tekken", "none", "llama", "llama_legacy")

SPECIALS: dict[str, list[str]] = {
    "gpt2": ["<|endoftext|>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "o200k": [
        "<|startoftext|>",
        "<|endoftext|>",
        "<|return|>",
        "<|constrain|>",
        "<|channel|>",
        "<|start|>",
        "<|end|>",
        "<|message|>",
        "<|call|>",
    ],
    "tekken": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
    "none": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<unk>", "<s>", "</s>"],
    "llama_legacy": ["<unk>", "<s>", "</s>"],
}

_BOS = {"llama3": "<|begin_of_text|>", "tekken": "<s>", "llama": "<s>", "llama_legacy": "<s>"}
_EOS = {
    "gpt2": "<|endoftext|>",
    "llama3": "<|eot_id|>",
    "qwen2": "<|im_end|>",
    "smollm": "<|im_end|>",
    "o200k": "<|return|>",
    "tekken": "</s>",
    "none": "<|im_end|>",
    "llama": "</s>",
    "llama_legacy": "</s>",
}

_LINES = [
    "The quick brown fox doesn't jump; it's tired and we'll wait, I'd say they've 12345 reasons.",
    "I'LL go home now! HelloWorld fooBar x/y//",
    "def f(x):\n    return x ** 2  # squares\n\n\tif True:\r\n\t\tpass",
    "Größe, naïve café, Ångström, ÀÉÎÕÜ çÇ, Dvořák and Łódź",
    "今天天气很好,我们去公园散步吧。東京の夜は明るい。안녕하세요 세계",
    "नमस्ते दुनिया, हिन्दी में लिखना आसान है। क्षत्रिय ज्ञान",
    "Привет, мир! Как дела? Спасибо, хорошо. Γειά σου Κόσμε",
    "😀😃 👩‍👩‍👧 🏳️‍🌈 héllo → ∑ x² ≤ ½ • … — “quoted” ٣٤٥ Ⅳ",
    "[EMOTION: joy]\nUser: I feel great today!\nAbbey: That is wonderful. What made it so?",
]


def corpus(count: int = 400, seed: int = 7) -> list[str]:
    """Returns `count` lines of mixed text, the same ones for the same seed."""
    rng = random.Random(seed)
    words = " ".join(_LINES).split(" ")
    lines = list(_LINES)
    while len(lines) < count:
        lines.append(" ".join(rng.choice(words) for _ in range(rng.randrange(3, 14))))
    return lines


def _byte_level(kind: str, vocab_size: int) -> Tokenizer:
    tok = Tokenizer(models.BPE(ignore_merges=kind in ("llama3", "tekken")))
    if kind in REGEX:
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(REGEX[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind == "smollm":
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=kind == "gpt2"
        )
    if kind == "qwen2":
        tok.normalizer = normalizers.NFC()
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[] if kind == "none" else SPECIALS[kind],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12 if kind == "none" else None,
    )
    tok.train_from_iterator(corpus(), trainer)
    tok.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIALS[kind]])
    if kind == "qwen2":
        tok.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return tok


def _sentencepiece(kind: str, vocab_size: int) -> Tokenizer:
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    tok.pre_tokenizer = metaspace
    alphabet = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS[kind] + alphabet,
        limit_alphabet=120,
        show_progress=False,
    )
    tok.train_from_iterator(corpus(), trainer)
    # Byte tokens belong to the vocabulary, not to the added tokens: rebuild without the latter.
    state: dict[str, Any] = json.loads(tok.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIALS[kind]]
    if kind == "llama":
        state["pre_tokenizer"]["split"] = False
        tok = Tokenizer.from_str(json.dumps(state))
    else:
        tok = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))
        tok.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    tok.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tok


def make_tokenizer(
    folder: str | Path, kind: str = "llama3", *, vocab_size: int = 640, chat_template: str = ""
) -> Path:
    """Trains a tokenizer of `kind` (one of KINDS), writes it to `folder` and returns the folder.

    The vocabulary may be a little smaller than `vocab_size` (the text is short) or, for `none`,
    a few tokens larger. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spm = kind.startswith("llama") and kind != "llama3"
    tok = _sentencepiece(kind, vocab_size) if spm else _byte_level(kind, vocab_size)
    bos = _BOS.get(kind)
    if bos is not None:
        template = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tok.token_to_id(bos))],
        )
        if kind == "llama3":
            tok.post_processor = processors.Sequence(
                [processors.ByteLevel(trim_offsets=False), template]
            )
        else:
            tok.post_processor = template
    elif not spm:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _EOS[kind],
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    special: dict[str, str] = {"eos_token": _EOS[kind]}
    if bos is not None:
        config["bos_token"] = special["bos_token"] = bos
    if "<unk>" in SPECIALS[kind]:
        config["unk_token"] = special["unk_token"] = "<unk>"
    pad = "<|endoftext|>" if "<|endoftext|>" in SPECIALS[kind] else None
    if pad is not None:
        config["pad_token"] = special["pad_token"] = pad
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2), encoding="utf-8")
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder
