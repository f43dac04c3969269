"""Real text, real vocabularies and many threads: ids against `tokenizers` and tiktoken.

`ABI_TOKENS_MB=200 pytest tests/parity/test_tokenizer_batches.py` (`make tokens`) compares that
many megabytes for each pre-tokenizer; without it a small share is compared. ABI_TOKENS_LITERALS is
how many texts are made from literals of special tokens.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import abi_train

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_tokenizers as tiny  # noqa: E402
from token_texts import make, sources, tekken, texts  # noqa: E402

KINDS = ["gpt2", "llama3", "qwen2", "smollm", "o200k"]
BYTES = int(float(os.environ.get("ABI_TOKENS_MB", "0.4")) * 1e6)
LITERALS = int(os.environ.get("ABI_TOKENS_LITERALS", "4000"))
SEED = int(os.environ.get("ABI_TEST_SEED", "11"))


def compare(folder: Path, total: int) -> None:
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    known, rng, left = sources(), random.Random(SEED), total
    with abi_train.Tokenizer.load(folder) as ours:
        while left > 0:
            some = texts(rng, known, min(left, 2_000_000))
            left -= sum(len(t.encode()) for t in some)
            ids, starts = ours.encode_batch(some, add_bos=False, add_eos=False, threads=2)
            expected = reference.encode_batch_fast(some, add_special_tokens=False)
            for i, (text, wanted) in enumerate(zip(some, expected, strict=True)):
                got = ids[int(starts[i]) : int(starts[i + 1])].tolist()
                assert got == wanted.ids, (SEED, i, text[:2000])


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_text_has_the_ids_of_the_reference(tmp_path: Path, kind: str) -> None:
    compare(make(tmp_path, kind), BYTES)


def test_the_real_tekken_has_the_ids_of_the_reference_and_of_tiktoken(tmp_path: Path) -> None:
    pytest.importorskip("mistral_common")
    folder, ranks, pattern = tekken(tmp_path)
    compare(folder, BYTES)
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding(
        "tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )
    some = texts(random.Random(SEED + 1), sources(), 200_000)
    with abi_train.Tokenizer.load(folder) as ours:
        ids, starts = ours.encode_batch(some, add_bos=False, add_eos=False)
        for i, text in enumerate(some):
            got = ids[int(starts[i]) : int(starts[i + 1])]
            assert (got - 1000).tolist() == encoding.encode_ordinary(text), text[:2000]


@pytest.mark.parametrize("kind", ["llama3", "qwen2"])
def test_literals_of_special_tokens_never_become_control_ids(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path, kind, 2000)
    rng = random.Random(SEED)
    names = sorted({s for group in tiny.SPECIALS.values() for s in group})
    parts = [*names, *(n[:-1] for n in names), *(n[1:] for n in names), "<|", "|>", " ", "\n", "a"]
    with abi_train.Tokenizer.load(folder) as ours:
        control = [ours.token_to_id(n, control_only=True) for n in names]
        found = np.array([i for i in control if i is not None], dtype=np.uint32)
        assert found.size >= 3
        for start in range(0, LITERALS, 50_000):
            count = min(50_000, LITERALS - start)
            some = ["".join(rng.choices(parts, k=rng.randrange(1, 8))) for _ in range(count)]
            ids, _ = ours.encode_batch(some, add_bos=False, add_eos=False)
            assert not np.isin(ids, found).any()
            asked, _ = ours.encode_batch(some, add_bos=False, add_eos=False, parse_special=True)
            assert np.isin(asked, found).any()


def test_a_batch_is_what_single_calls_give(tmp_path: Path) -> None:
    folder = make(tmp_path, "qwen2", 1000)
    some: list[str | bytes] = ["", "a", b"\xff\x00 b", *texts(random.Random(3), sources(), 100_000)]
    some.append("\n".join(sources())[:900_000])
    with abi_train.Tokenizer.load(folder) as ours:
        ids, starts = ours.encode_batch(some, threads=3)
        assert (ids.dtype, starts.dtype, starts.size) == (np.uint32, np.uint64, len(some) + 1)
        for i, text in enumerate(some):
            assert (ids[int(starts[i]) : int(starts[i + 1])] == ours.encode(text)).all()
        empty, edges = ours.encode_batch([])
        assert (empty.size, edges.tolist()) == (0, [0])


@pytest.mark.parametrize("piece", ["a", " ", "[]", "中", "\n ", "é"])
def test_a_run_of_one_thing_costs_no_more_a_byte_when_it_is_longer(
    tmp_path: Path, piece: str
) -> None:
    """No time is asserted: a quadratic way would take hours for these sizes."""
    folder = make(tmp_path, "llama3", 1000)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with abi_train.Tokenizer.load(folder) as ours:
        short = piece * 3000
        wanted = reference.encode(short, add_special_tokens=False).ids
        assert ours.encode(short, add_bos=False).tolist() == wanted
        text = piece * (400_000 // len(piece.encode()))
        ids = ours.encode(text, add_bos=False)
        assert ours.decode(ids) == text
