"""What was computed is used again: between turns, after a load, and from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_gguf import SHAPES, write_tiny_gguf
from tiny_gpt_oss import Shape, write_tiny_gpt_oss

from abi_train import Generator
from abi_train.errors import FileAccessError, FormatError, MissingFileError

IDS = [i % 250 for i in range(1, 150, 3)]
QUIET = ("--max-tokens", "9", "--seed", "4")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, SHAPES["llama"], dtype=gguf.GGMLQuantizationType.Q8_0)
    return path


def test_a_file_gives_the_same_bits_without_the_work(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "kept"
    longer = [*IDS, 7, 8]
    with Generator.open(model) as first:
        answer = list(first.generate(IDS, max_new_tokens=6))
        assert first.save_cache(cache) == len(IDS)
        expected = first.logits(longer)
    with Generator.open(model, threads=1) as second:
        assert second.load_cache(cache) == len(IDS)
        assert second.logits(longer).tobytes() == expected.tobytes()
        assert second.counts["reused"] == len(IDS)
        assert second.load_cache(cache) == len(IDS)
        assert list(second.generate(IDS, max_new_tokens=6)) == answer
        assert second.counts["reused"] == len(IDS) - 1
        # It serves every prompt of a batch that begins so.
        found = second.generate_batch([longer, [*IDS, 9]], lanes=2, max_new_tokens=1)
        assert [a.counts["reused"] for a in found] == [len(IDS)] * 2
    with Generator.open(model, context=20) as small:
        assert small.load_cache(cache) == 20


def test_a_mixture_of_experts_is_kept_as_well(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gpt_oss(path, Shape(layers=2))
    with Generator.open(path, context=256) as model:
        expected = [a.ids for a in model.generate_batch([IDS, IDS[:30]], max_new_tokens=12)]
        model.logits(IDS)
        model.save_cache(tmp_path / "kept")
    with Generator.open(path, context=256) as model:
        model.load_cache(tmp_path / "kept")
        for lanes, drafts in ((1, 0), (2, 4)):
            found = model.generate_batch(
                [IDS, IDS[:30]], max_new_tokens=12, lanes=lanes, drafts=drafts
            )
            assert [a.ids for a in found] == expected
            # The second run finds what the shorter prompt, in the same lane, left of it.
            assert found[0].counts["reused"] == (len(IDS) - 1 if lanes == 1 else 30)


def test_files_that_cannot_be_used_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "kept"
    with Generator.open(model) as first:
        first.logits(IDS)
        first.save_cache(cache)
        whole = cache.read_bytes()
        for data, text in (
            (whole[:-1], "kept: it is cut off"),
            (whole[:300], "kept: it is cut off"),
            (b"", "kept: it is cut off"),
            (b"GGUF" + whole[4:], "no prompt cache"),
            (whole[:-40] + b"\x01" + whole[-39:], "checksum"),
        ):
            cache.write_bytes(data)
            with pytest.raises(FormatError, match=text):
                first.load_cache(cache)
        with pytest.raises(MissingFileError, match="missing"):
            first.load_cache(tmp_path / "missing")
        with pytest.raises(FileAccessError):
            first.load_cache(tmp_path)
        with pytest.raises((FileAccessError, MissingFileError)):
            first.save_cache(tmp_path / "no" / "folder")
        cache.write_bytes(whole)
        # None of it took away what was there.
        first.logits([*IDS, 3])
        assert first.counts["reused"] == len(IDS)
    for options in ({"exact": True}, {"cache": "f32"}):
        with (
            Generator.open(model, **options) as other,  # type: ignore[arg-type]
            pytest.raises(FormatError, match="another way"),
        ):
            other.load_cache(cache)
    # The same shape and names, and other weights.
    write_tiny_gguf(model, SHAPES["llama"], dtype=gguf.GGMLQuantizationType.Q8_0, seed=5)
    with (
        Generator.open(model) as trained,
        pytest.raises(FormatError, match=r"kept: it belongs to another model"),
    ):
        trained.load_cache(cache)


def test_abi_generate_keeps_a_prompt(generate: Any, run: Any, model: Path, tmp_path: Path) -> None:
    options = ("-n", "8", "--temperature", "0", "--logits", "--ignore-stop")
    plain = generate(model, IDS, *options)
    cached = (*options, "--prompt-cache", "kept")
    first = generate(model, IDS, *cached)
    written = (tmp_path / "kept").read_bytes()
    second = generate(model, IDS, *cached)
    longer = generate(model, [*IDS, 5], *cached)
    shorter = generate(model, IDS[:20], *cached)
    reused = [answer.pop("reused") for answer in (first, second, longer, shorter)]
    assert reused == [0, len(IDS) - 1, len(IDS), 19]
    assert first == second == plain
    assert longer == generate(model, [*IDS, 5], *options)
    assert shorter == generate(model, IDS[:20], *options)
    # The longest prompt stays: shorter ones are part of it.
    assert len((tmp_path / "kept").read_bytes()) > len(written)
    (tmp_path / "kept").write_bytes(written[:99])
    done = run("generate", "--model", model, "--ids", "1", "--prompt-cache", "kept")
    assert (done.returncode, done.stdout) == (1, "")
    assert "kept: it is cut off" in done.stderr
    assert (tmp_path / "kept").read_bytes() == written[:99]


def turns(text: str) -> list[tuple[int, int]]:
    """Of each `/info`: tokens in, and those of them that were remembered."""
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+) tokens in \((\d+) remembered\)", text)]


def test_a_conversation_is_not_computed_again(run: Any, model: Path) -> None:
    agent = ("agent", "--model", model, "-s", "diary", "--temperature", "0", *QUIET)
    done = run(*agent, stdin="hello\n/info\nand now?\n/info\n")
    [(first, none), (second, kept)] = turns(done.stderr)
    assert none == 0
    assert second > first
    assert kept >= first
    # Another program knows nothing of it without a file, and all of what was asked with one.
    keep = ("--prompt-cache", "kept")
    [(third, none)] = turns(run(*agent, *keep, stdin="more\n/info\n").stderr)
    assert none == 0
    assert third > second
    [(fourth, kept)] = turns(run(*agent, *keep, stdin="more\n/info\n").stderr)
    assert third <= kept < fourth
    # Loading it within a program that just spoke of something with the same beginning counts, too.
    system = ("--system", "You are kind and patient. " * 3)
    run("agent", "--model", model, *system, "-s", "one", *QUIET, "-m", "a")
    run("agent", "--model", model, *system, "-s", "two", *QUIET, "-m", "b")
    done = run(
        "agent", "--model", model, "-s", "one", *QUIET, stdin="x\n/info\n/load two\nx\n/info\n"
    )
    [_, (_, kept)] = turns(done.stderr)
    assert kept > 70


def test_a_prompt_cache_of_the_agent_that_cannot_be_used(
    run: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_bytes(b"something else")
    agent = ("agent", "--model", model, *QUIET, "-m", "hello", "--prompt-cache")
    done = run(*agent, "kept")
    assert (done.returncode, done.stdout) == (1, "")
    assert "kept: it is no prompt cache" in done.stderr
    assert (tmp_path / "kept").read_bytes() == b"something else"
    done = run(*agent, "no/folder/kept")
    assert done.returncode == 1
    assert len(done.stdout) > 1
    assert "no/folder/kept" in done.stderr
    done = run("agent", "-m", "hello", "--prompt-cache", "kept", ABI_OLLAMA_MODEL="x")
    assert done.returncode == 2
    assert "needs --model" in done.stderr
    # What was forgotten by command does not come back from the file.
    (tmp_path / "kept").unlink()
    done = run(
        "agent", "--model", model, *QUIET, *agent[-1:], "kept", stdin="secret words\n/clear\n"
    )
    assert done.returncode == 0
    done = run(
        "agent", "--model", model, *QUIET, *agent[-1:], "kept", stdin="secret words\n/info\n"
    )
    assert turns(done.stderr)[0][1] == 0
