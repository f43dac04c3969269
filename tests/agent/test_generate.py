"""Generation against a NumPy definition and against llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import SHAPES, forward, write_tiny_gguf

TYPES = gguf.GGMLQuantizationType
EOS = 258


def ids_of_length(count: int, seed: int = 1) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 256, count)]


@pytest.mark.parametrize("dtype", [TYPES.F32, TYPES.F16, TYPES.BF16, TYPES.Q8_0])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_definition(
    generate: Any, tmp_path: Path, shape: str, dtype: TYPES
) -> None:
    """Both ways of feeding, id by id and in blocks, over a block's border."""
    path = tmp_path / "model.gguf"
    model = write_tiny_gguf(path, SHAPES[shape], dtype=dtype)
    ids = ids_of_length(150)
    expected = forward(model, ids)
    # Exact to float32's rounding; otherwise block types are multiplied with 8-bit activations, and
    # where the CPU has a product of 16-bit numbers, f16 and bf16 prompts through such.
    usual = {TYPES.F32: 1e-5, TYPES.Q8_0: 0.2}.get(dtype, 5e-3)
    for flags, tolerance in ((["--exact"], 1e-5), ([], usual)):
        single = generate(path, ids, "-n", "0", "--prompt-logits", *flags)
        blocks = generate(path, ids, "-n", "1", "--logits", "--ignore-stop", *flags)
        wrong = np.array(single["prompt_logits"]) - expected
        assert np.abs(wrong).max() < tolerance * expected.std()
        assert wrong.std() < 0.2 * tolerance * expected.std()
        last = np.array(blocks["logits"][0])
        assert np.abs(last - expected[-1]).max() < tolerance * expected.std()
        assert np.abs(last - single["prompt_logits"][-1]).max() < 0.5 * tolerance * expected.std()


def test_any_number_of_threads_gives_the_same_bits(generate: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["qwen3"], dtype=TYPES.Q8_0)
    answers = [
        generate(path, ids_of_length(140), "-n", "8", "--logits", "--seed", "5", "--threads", n)
        for n in ("1", "2", "3", "7")
    ]
    assert all(answer == answers[0] for answer in answers)


def test_a_seed_repeats_its_answer_and_another_gives_another(generate: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["llama"])
    options = ("-n", "40", "--temperature", "1.5", "--ignore-stop")
    first, again, other = (
        generate(path, [1, 2], *options, "--seed", seed)["ids"] for seed in ("1", "1", "2")
    )
    assert first == again
    assert first != other


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it(generate: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["llama"])
    for seed in range(50):
        options = ("-n", "60", "--temperature", "2", "--top-k", "0", "--top-p", "1")
        free = generate(path, [3], *options, "--seed", str(seed), "--ignore-stop")["ids"]
        at = next((i for i, token in enumerate(free) if token in (256, EOS)), None)
        if at is None:
            continue
        stopped = generate(path, [3], *options, "--seed", str(seed))
        assert stopped["ids"] == free[:at]
        assert stopped["end"] == "stop_id"
        return
    pytest.fail("no seed reached a stop id")


def test_the_context_ends_the_answer(generate: Any, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["llama"])
    answer = generate(path, [1, 2, 3], "--context", "8", "--ignore-stop")
    assert answer["end"] == "context"
    # Five fed, and one that was sampled when no room was left.
    assert len(answer["ids"]) == 6
    done = run("generate", "--model", path, "--ids", "1,2,3", "--context", "2")
    assert done.returncode == 1
    assert "do not fit in a context of 2" in done.stderr


PEER = """
import json, sys, urllib.request, xllamacpp
path, ids = sys.argv[1], json.loads(sys.argv[2])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx = 512
params.n_parallel = 1
params.cpuparams.n_threads = 1
params.warmup = False
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
body = {"prompt": ids, "n_predict": 64, "temperature": 0, "n_probs": int(sys.argv[3]),
        "return_tokens": True, "repeat_penalty": 1.0}
request = urllib.request.Request(server.listening_address + "/completion",
    json.dumps(body).encode(), {"content-type": "application/json"})
answer = json.loads(urllib.request.urlopen(request).read())
print("\\n" + json.dumps([answer["tokens"], answer["completion_probabilities"]]), flush=True)
"""


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_gives_the_same_tokens_and_probabilities(
    generate: Any, tmp_path: Path, shape: str
) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    model = write_tiny_gguf(path, SHAPES[shape], plain_tokens=True)
    ids = ids_of_length(40)
    peer = subprocess.run(
        [sys.executable, "-c", PEER, str(path), json.dumps(ids), str(model.vocab)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=True,
    )
    line = next(line for line in reversed(peer.stdout.splitlines()) if line.startswith("[["))
    tokens, probabilities = json.loads(line)
    ours = generate(path, ids, "-n", "64", "--temperature", "0", "--logits")
    assert ours["ids"] == [token for token in tokens if token != EOS]
    assert len(probabilities) >= len(ours["ids"]) > 0
    for logits, theirs in zip(ours["logits"], probabilities, strict=False):
        wide = np.array(logits, np.float64)
        logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        top = theirs["top_logprobs"]
        difference = max(abs(logprobs[t["id"]] - t["logprob"]) for t in top)
        assert difference < 2e-5
