"""GGUF files as others see them: PyPI ``gguf`` for the structure, llama.cpp for the meaning."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llama_peer import ask
from tiny_models import CORPUS, SHAPES, make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from abi_train._native import export

TEXTS = [
    "Hello world's 12345 tests!!",
    "  I'LL go\n\n\tnow   ",
    "Naïve café 東京 🙂",
    "def add(left, right):\n    return left + right\n",
    "",
]


@pytest.fixture(scope="module", params=list(SHAPES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = str(request.param)
    return make_tiny_model(tmp_path_factory.mktemp("models") / shape, shape)


def end_ids(folder: Path) -> list[int]:
    """Ids that llama.cpp takes for an end, by what they are called: it never gives them here."""
    vocab = AutoTokenizer.from_pretrained(folder).get_vocab()
    names = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "</s>")
    return [vocab[name] for name in names if name in vocab]


def random_texts(seed: int, count: int) -> list[str]:
    """Cuts of real text and heaps of awkward signs."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        start = rng.randrange(len(CORPUS) - 10)
        texts.append(CORPUS[start : start + rng.randrange(1, 60)])
        texts.append(
            "".join(rng.choices("ab cdthe  \n\t'sT09.,é🙂東<|im_end|>", k=rng.randrange(1, 30)))
        )
    return texts


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_every_type_is_read_back_by_the_gguf_package(
    folder: Path, tmp_path: Path, dtype: str
) -> None:
    path = tmp_path / "model.gguf"
    size, tensors = export.gguf(folder, path, dtype=dtype)
    assert path.stat().st_size == size == export.gguf_size(folder, path, dtype=dtype)
    reader = gguf.GGUFReader(path)
    assert len(reader.tensors) == tensors
    found = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = model.state_dict()
    # Half a step of 1/127 of the block's largest value, or of the 16-bit mantissa.
    step = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11}[dtype]
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for name, source in pairs.items():
        want = weights[source].numpy()
        assert np.abs(found[name] - want).max() <= step * np.abs(want).max() + 1e-12, name


def test_llama_cpp_computes_the_same_and_speaks_the_same_ids(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    export.gguf(folder, path, dtype="f32")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocab_size = model.config.vocab_size
    rng = random.Random(5)
    prompts = [[rng.randrange(5, 300) for _ in range(12 + 5 * i)] for i in range(6)]
    texts = TEXTS + random_texts(7, 60)
    messages = [{"role": "user", "content": "hi there"}]
    answers = ask(
        path,
        [{"kind": "tokenize", "text": text, "add_special": True} for text in TEXTS]
        + [{"kind": "tokenize", "text": text} for text in texts]
        + [{"kind": "logprobs", "ids": ids, "vocab_size": vocab_size} for ids in prompts]
        + [
            {"kind": "template", "messages": messages},
            {"kind": "greedy", "ids": prompts[0], "count": 32},
        ],
    )
    for text in TEXTS:
        assert answers.pop(0) == tokenizer(text)["input_ids"], text
    for text in texts:
        assert answers.pop(0) == tokenizer(text, add_special_tokens=False)["input_ids"], text

    compared = 0
    for ids in prompts:
        theirs = answers.pop(0)
        if theirs is None:
            continue  # The model ends the text at once; llama.cpp then lists nothing.
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        ours = torch.log_softmax(logits, -1).numpy()
        assert np.abs(np.array(theirs) - ours).max() <= 5e-5
        compared += 1
    assert compared >= 1

    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if tokenizer("")["input_ids"]:  # llama.cpp adds the begin token itself and takes it off here.
        prompt = prompt.removeprefix(tokenizer.bos_token)
    assert answers.pop(0) == prompt

    ids = list(prompts[0])
    ends = end_ids(folder)
    for token in answers.pop(0):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        logits[ends] = -torch.inf
        # The same choice, or one that is as good to the last bits.
        assert logits.max() - logits[token] <= 1e-4
        ids.append(token)


@pytest.mark.parametrize(
    ("shape", "overrides"),
    [
        ("llama_gqa_untied", {"attention_bias": True, "mlp_bias": True}),
        (
            "llama_tied",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        ),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        ),
        ("qwen3", {"attention_bias": False, "tie_word_embeddings": False}),
        ("mistral", {"head_dim": None, "num_key_value_heads": 4}),
    ],
)
def test_rarer_configurations_compute_the_same_in_llama_cpp(
    tmp_path: Path, shape: str, overrides: dict[str, Any]
) -> None:
    folder = make_tiny_model(tmp_path / "model", shape, **overrides)
    path = tmp_path / "model.gguf"
    export.gguf(folder, path, dtype="f32", threads=3)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ends = end_ids(folder)
    rng = random.Random(8)
    ids = [rng.randrange(5, 300) for _ in range(40)]
    tokens = ask(path, [{"kind": "greedy", "ids": ids, "count": 16}])[0]
    assert len(tokens) == 16
    for token in tokens:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        logits[ends] = -torch.inf
        assert logits.max() - logits[token] <= 1e-4
        ids.append(token)
