"""The native tokenizer's ids against `tokenizers`, `transformers` and `sentencepiece`.

A small Zig program is built once; vocabularies are trained on the spot. All differences must be
zero. The seed comes from ABI_TEST_SEED, else from the commit, and is printed on failure.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_tokenizers as tiny  # noqa: E402

Probe = Callable[..., Any]
GGUF_PRE = {
    "gpt2": "gpt-2",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "smollm": "smollm",
    "o200k": "gpt-4o",
    "tekken": "tekken",
}


def seed() -> int:
    """Returns the seed of this run: ABI_TEST_SEED, else one that changes with each commit."""
    given = os.environ.get("ABI_TEST_SEED")
    if given:
        return int(given)
    done = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout.strip() or "1", 16)


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """Builds the probe; the result answers one request."""
    folder = tmp_path_factory.mktemp("probe")
    command = [sys.executable, "-m", "ziglang", "build", "tokenizer-probe", "--prefix", str(folder)]
    command += ["--cache-dir", str(folder / "cache")]
    environment = {"ZIG_DEBUG_CMD": "1", **os.environ}
    subprocess.run(command, check=True, timeout=600, cwd=ROOT, env=environment)
    program = folder / "bin" / "tokenizer-probe"

    def ask(**request: Any) -> Any:
        (folder / "in.json").write_text(json.dumps(request), encoding="utf-8")
        done = subprocess.run(
            [str(program), str(folder / "in.json"), str(folder / "out.json")],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "out.json").read_text(encoding="utf-8"))

    return ask


def random_texts(count: int) -> list[str]:
    """Returns texts of many kinds: ASCII, spaces, any code point, marks, control lookalikes."""
    rng = random.Random(seed())
    words = " ".join(tiny.corpus(60)).split(" ")
    specials = sorted({s for group in tiny.SPECIALS.values() for s in group})
    specials += ["<think>", "</think>", "▁", "<0x0A>", "<|", "|>"]
    marks = "aAbBéÉçÇßſ'ǅʰ中न्ि\u0301\u0323\u0327e sStTdDrReEvVlLmM1²٣Ⅳ/\n "
    spaces = " \t\n\r  a1.,'\u00a0\u3000\u2028\x85\x0b\x1c/"

    def points(low: int, high: int, length: int) -> str:
        found = (rng.randrange(low, high) for _ in range(length))
        return "".join(chr(c) for c in found if not 0xD800 <= c < 0xE000)

    def one() -> str:
        length = rng.randrange(40)
        kind = rng.randrange(8)
        if kind == 0:
            return points(32, 127, length)
        if kind == 1:
            return "".join(rng.choice(spaces) for _ in range(length))
        if kind == 2:
            return points(0, 0x110000, length)
        if kind == 3:
            return points(0x20, 0x3000, length)
        if kind == 4:
            return "".join(rng.choice(marks) for _ in range(length))
        if kind == 5:
            tails = ["", " ", "  ", "\n", "\t", "'s", "'LL"]
            return "".join(rng.choice(words) + rng.choice(tails) for _ in range(length // 3))
        if kind == 6:
            return "".join(rng.choice([*specials, *words, " "]) for _ in range(length // 3))
        return rng.choice("a 1\n'é中") * rng.randrange(1, 300) + rng.choice(["", "x", " "])

    return [one() for _ in range(count)]


def differing(texts: list[str], expected: list[list[int]], got: list[Any]) -> list[Any]:
    pairs = zip(texts, expected, got, strict=True)
    return [(seed(), t, e, g["ids"]) for t, e, g in pairs if e != g["ids"]][:3]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_ids_and_text_are_those_of_the_reference(probe: Probe, tmp_path: Path, kind: str) -> None:
    folder = tiny.make_tokenizer(tmp_path, kind)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = random_texts(1500)
    for special in (False, True):
        reference.encode_special_tokens = not special
        answer = probe(folder=str(folder), texts=texts, parse_special=special)["texts"]
        expected = [e.ids for e in reference.encode_batch(texts, add_special_tokens=True)]
        assert differing(texts, expected, answer) == []
        decoded = [reference.decode(ids, skip_special_tokens=not special) for ids in expected]
        assert decoded == [a["text"] for a in answer]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2", "smollm", "o200k", "tekken"])
def test_characters_are_cut_as_the_reference_cuts_them(
    probe: Probe, tmp_path: Path, kind: str
) -> None:
    folder = tiny.make_tokenizer(tmp_path, kind)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # All of the common ones; of the others every 20th, another twentieth at each commit.
    points = [*range(0x1000), *range(0x1000 + seed() % 20, 0x30000, 20)]
    characters = [chr(c) for c in points if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}b {c}{c} B{c}A'{c} 1{c}2{c}\n {c} '{c}e a\u0301{c}\u0323" for c in characters]
    answer = probe(folder=str(folder), texts=texts, add_bos=False)["texts"]
    expected = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert differing(texts, expected, answer) == []


@pytest.mark.parametrize("kind", GGUF_PRE)
def test_ids_from_gguf_values_equal_those_from_the_folder(
    probe: Probe, tmp_path: Path, kind: str
) -> None:
    folder = tiny.make_tokenizer(tmp_path, kind)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = reference.get_vocab_size()
    types = [1] * size
    for token in model["added_tokens"]:
        types[token["id"]] = 3 if token["special"] else 4
    values = {
        "model": "gpt2",
        "pre": GGUF_PRE[kind],
        "tokens": [reference.id_to_token(i) for i in range(size)],
        "token_types": types,
        "merges": [" ".join(pair) for pair in model["model"]["merges"]],
    }
    texts = random_texts(600)
    reference.encode_special_tokens = True
    answer = probe(gguf=values, texts=texts)["texts"]
    expected = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert differing(texts, expected, answer) == []


def test_scored_merges_give_the_ids_of_sentencepiece(probe: Probe) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.corpus(400)),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.985,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(reference.get_piece_size())

    def kind(i: int) -> int:
        if reference.is_control(i):
            return 3
        return 2 if reference.is_unknown(i) else 6 if reference.is_byte(i) else 1

    values = {
        "model": "llama",
        "pre": "default",
        "tokens": [reference.id_to_piece(i) for i in ids],
        "token_types": [kind(i) for i in ids],
        "scores": [reference.get_score(i) for i in ids],
        "bos": 1,
        "eos": 2,
        "unknown": 0,
        "add_bos": False,
    }
    texts = [t for t in random_texts(1500) if "\0" not in t]
    answer = probe(gguf=values, texts=texts)["texts"]
    assert differing(texts, [reference.encode(t) for t in texts], answer) == []
    for text, got in zip(texts, answer, strict=True):
        assert "▁" in text or got["text"] == text


@pytest.mark.parametrize("bos", [True, False])
def test_the_post_processor_decides_on_the_begin_token(
    probe: Probe, tmp_path: Path, bos: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny.make_tokenizer(tmp_path, "llama3" if bos else "qwen2")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"add_bos_token": not bos}), encoding="utf-8")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    answer = probe(folder=str(folder), texts=["hello world"])["texts"]
    assert answer[0]["ids"] == reference("hello world")["input_ids"]
    assert (reference.bos_token_id in answer[0]["ids"]) == bos
