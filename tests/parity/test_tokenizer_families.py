"""Ids against `tokenizers` for what other families bring: cl100k, DeepSeek v3, single words, and
files that `transformers` makes of a SentencePiece model."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import abi_train

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_tokenizers as tiny  # noqa: E402
from token_texts import scripts, sources, texts  # noqa: E402

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
DEEPSEEK[2] = DEEPSEEK[2].replace('\\"', '"')


def trained(folder: Path, patterns: list[str]) -> Path:
    tok = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([*steps, plain])
    tok.decoder = decoders.ByteLevel()
    rng = random.Random(5)
    corpus = [s[:8000] for s in sources()[:25]] + [scripts(rng, 300) for _ in range(25)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2500, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(corpus, trainer)
    tok.save(str(folder / "tokenizer.json"))
    return folder


def assert_same(folder: Path, some: list[str]) -> None:
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = reference.encode_batch_fast(some, add_special_tokens=False)
    with abi_train.Tokenizer.load(folder) as ours:
        ids, starts = ours.encode_batch(some, add_bos=False, add_eos=False, parse_special=True)
        for i, (text, wanted) in enumerate(zip(some, expected, strict=True)):
            got = ids[int(starts[i]) : int(starts[i + 1])].tolist()
            assert got == wanted.ids, (i, text[:500])


def edges(count: int) -> list[str]:
    """Short texts of what the expressions decide on."""
    rng = random.Random(17)
    parts = [*"aZ9²Ⅳ .,'/_$\n\r\t\0\x7f", "  ", "中", "かな", "ー", "न", "ि", "\u0301", "é", "ſ"]
    parts += ["'s", "'LL", "\u00a0", "\u3000", "😀", "12345", "\u0378", "\r\n", "。"]
    return ["".join(rng.choices(parts, k=rng.randrange(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("patterns", [[CL100K], DEEPSEEK], ids=["cl100k", "deepseek"])
def test_other_expressions_cut_as_the_reference(tmp_path: Path, patterns: list[str]) -> None:
    folder = trained(tmp_path, patterns)
    assert_same(folder, edges(6000) + texts(random.Random(3), sources(), 300_000))


def test_single_words_are_found_where_the_reference_finds_them(tmp_path: Path) -> None:
    folder = tiny.make_tokenizer(tmp_path, "llama3")
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tok.add_tokens(
        [
            AddedToken("cat", single_word=True, normalized=False),
            AddedToken("<x>", single_word=True, normalized=False, lstrip=True, rstrip=True),
            AddedToken("dog", single_word=True, normalized=True),
        ]
    )
    tok.save(str(folder / "tokenizer.json"))
    rng = random.Random(2)
    parts = ["cat", "<x>", "dog", *"as9²Ⅳ_ -.é中न‿\u0301\u200d\u24b6😀\n", "ि", "  "]
    assert_same(folder, ["".join(rng.choices(parts, k=rng.randrange(1, 9))) for _ in range(8000)])


def test_a_sentencepiece_model_through_transformers_gives_the_same_ids(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")  # transformers reads the model with it.
    transformers = pytest.importorskip("transformers")
    rng = random.Random(4)
    corpus = [line for s in sources()[:12] for line in s[:6000].splitlines() if line.strip()]
    corpus += [line for _ in range(12) for line in scripts(rng, 200).splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=2000,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    converted = transformers.LlamaTokenizerFast.from_pretrained(tmp_path)
    assert len(converted) >= 2000
    folder = tmp_path / "converted"
    converted.save_pretrained(folder)
    some = [t for t in texts(rng, sources(), 200_000) if t]
    assert_same(folder, [*some, " a", "  a", "a  b ", "<s>", "\n", "▁"])
