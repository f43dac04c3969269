"""Tiny random models with working tokenizers, one per shape this project supports.

``make_tiny_model(folder, "qwen3")`` writes what a Hugging Face model folder holds: config, weights,
tokenizer, chat template. The weights are random but not small: norms differ from 1, biases from 0,
and logits spread enough that a wrong permutation, a lost bias or a swapped norm changes the answer.
Everything follows from ``seed``; nothing is downloaded.

``python tests/tiny_models.py FOLDER [SHAPE ...]`` writes them from the command line.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog. It wasn't the first time; it won't be the last.\n"
    "Abbey answers questions about numbers: 1 2 3 10 42 100 1024 2026, and about code.\n"
    "def add(left, right):\n    return left + right\n\nfor index in range(10):\n    print(index)\n"
    "Naïve café, über straße, 東京 and Ελλάδα; emoji 🙂 too. We're here, they'll come, I'd go.\n"
    "Training a small language model takes data, patience and a loss which goes down.\n"
)

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def _wrap(**options: Any) -> PreTrainedTokenizerFast:
    untyped: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = untyped(**options)
    return tokenizer


def _byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, specials: list[str], **options: Any
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(specials) + 100,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    return tokenizer


def _split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def smollm_tokenizer() -> PreTrainedTokenizerFast:
    """Single digits, then GPT-2's regex: what SmolLM2 uses."""
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer = _byte_level(pre, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _wrap(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's regex, whole pieces first, a begin token put in front of each text."""
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    tokenizer = _byte_level(_split(LLAMA3_REGEX), specials, ignore_merges=True)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
        special_tokens=[("<|begin_of_text|>", 0)],
    )
    return _wrap(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=LLAMA3_CHAT,
    )


def qwen2_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's regex, NFC, added tokens behind the vocabulary, one of them not special."""
    tokenizer = _byte_level(_split(QWEN2_REGEX), [])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    return _wrap(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE over pieces with a byte fallback: what Llama 2 and Mistral 7B use."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=240, show_progress=False)
    ascii_only = CORPUS.encode("ascii", "ignore").decode()
    trained.train_from_iterator([ascii_only] * 3, trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [tuple(pair) for pair in learned["merges"]]
    pieces += [left + right for left, right in merges]
    known = set(pieces)
    pieces += [p for p in sorted(learned["vocab"]) if p not in known]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    # SentencePiece has no list of merges: any two pieces that make a piece may join, best first.
    # Converters write all of them out, so that both ways of merging give the same ids.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in dict.fromkeys(left + right for left, right in merges)
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    return _wrap(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=MISTRAL_CHAT,
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How one tiny model is built."""

    config: type[Any]
    model: type[Any]
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    options: dict[str, Any] = field(default_factory=dict)
    extra_vocab: int = 0
    """Rows of the embedding beyond the tokenizer's ids, as published models have."""


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

SHAPES: dict[str, Shape] = {
    "llama_tied": Shape(
        config=LlamaConfig,
        model=LlamaForCausalLM,
        tokenizer=smollm_tokenizer,
        options={"tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "llama_gqa_untied": Shape(
        config=LlamaConfig,
        model=LlamaForCausalLM,
        tokenizer=llama3_tokenizer,
        options={
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "qwen2": Shape(
        config=Qwen2Config,
        model=Qwen2ForCausalLM,
        tokenizer=qwen2_tokenizer,
        options={
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        extra_vocab=19,
    ),
    "qwen3": Shape(
        config=Qwen3Config,
        model=Qwen3ForCausalLM,
        tokenizer=qwen2_tokenizer,
        options={
            "tie_word_embeddings": True,
            "head_dim": 32,
            "intermediate_size": 80,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        extra_vocab=3,
    ),
    "mistral": Shape(
        config=MistralConfig,
        model=MistralForCausalLM,
        tokenizer=sentencepiece_tokenizer,
        options={"tie_word_embeddings": False, "head_dim": 32, "sliding_window": None},
    ),
    "llama3_scaled": Shape(
        config=LlamaConfig,
        model=LlamaForCausalLM,
        tokenizer=llama3_tokenizer,
        options={
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter from the seed: norms near 1, biases near 0, matrices at unit gain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if name.endswith("bias"):
                value = 0.2 * noise
            elif parameter.dim() == 1:
                value = 1.0 + 0.2 * noise
            elif "embed_tokens" in name:
                value = 0.5 * noise
            else:
                value = noise / math.sqrt(parameter.shape[1])
            parameter.copy_(value.to(parameter.dtype))


def make_tiny_model(
    folder: Path | str,
    shape: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Writes a model folder of the shape named and returns its path.

    ``overrides`` replace fields of the model's configuration. Raises ``KeyError`` for a shape that
    ``SHAPES`` does not have.
    """
    spec = SHAPES[shape]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = spec.tokenizer()
    tokenizer.model_max_length = 256
    options: dict[str, Any] = {**SMALL, **spec.options}
    options.update(
        vocab_size=len(tokenizer) + spec.extra_vocab,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    options.update(overrides)
    model = spec.model(spec.config(**options)).to(dtype)
    randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Writes the shapes named on the command line, or all, below a folder."""
    target = Path(sys.argv[1])
    for shape in sys.argv[2:] or list(SHAPES):
        print(make_tiny_model(target / shape, shape))


if __name__ == "__main__":
    main()
