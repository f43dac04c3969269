"""gpt-oss: a NumPy definition, transformers and llama.cpp on the same random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import Wide
from tiny_gpt_oss import Shape, TinyModel, as_transformers, forward, write_tiny_gpt_oss

from abi_train.errors import ArgumentError, FormatError
from abi_train.generate import Generator

TYPES = gguf.GGMLQuantizationType
SMALL = Shape(layers=3, experts=5, chosen=2, window=9)


def ids_of_length(count: int, seed: int = 1) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 256, count)]


def log_softmax(logits: Wide) -> Wide:
    shifted = logits - logits.max(-1, keepdims=True)
    out: Wide = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    path = tmp_path_factory.mktemp("gpt_oss") / "model.gguf"
    return path, write_tiny_gpt_oss(path, plain_tokens=True)


@pytest.mark.parametrize("yarn", ["exact", "ggml"])
def test_logits_are_those_of_the_definition(
    generate: Any, tiny: tuple[Path, TinyModel], yarn: str
) -> None:
    """Both ways of feeding, far past the window."""
    path, model = tiny
    ids = ids_of_length(300)
    expected = forward(model, ids, rounded=yarn == "ggml")
    single = generate(path, ids, "-n", "0", "--prompt-logits", "--yarn", yarn)
    wrong = np.abs(np.array(single["prompt_logits"]) - expected).max(-1)
    assert wrong.max() < 2e-5 * expected.std()
    with Generator.open(path, yarn=yarn) as opened:
        for count in (1, 2, 24, 25, 150, 300):
            last = opened.logits(ids[:count])
            assert np.abs(last - expected[count - 1]).max() < 2e-5 * expected.std()
        found, _ = opened.log_probs(ids)
    wanted = log_softmax(expected[:-1])[np.arange(299), ids[1:]]
    assert np.abs(found - wanted).max() < 4e-5
    other = forward(model, ids, rounded=yarn != "ggml")
    assert np.abs(other - expected).max() > 0.01  # The switch does something.


def test_a_prompt_of_several_blocks_beyond_the_window(tiny: tuple[Path, TinyModel]) -> None:
    path, model = tiny
    ids = ids_of_length(560)
    expected = forward(model, ids)[-1]
    with Generator.open(path, context=1024) as opened:
        assert np.abs(opened.logits(ids) - expected).max() < 4e-5 * expected.std()
        # What is kept of an earlier prompt that begins alike.
        again = ids[:530] + ids_of_length(10, 2)
        expected = forward(model, again)[-1]
        assert np.abs(opened.logits(again) - expected).max() < 4e-5 * expected.std()


def test_windowed_layers_keep_their_window_only(tmp_path: Path) -> None:
    """And go back before it when an earlier prompt begins alike."""
    path = tmp_path / "model.gguf"
    shape = Shape(layers=2, heads=2, kv_heads=1, experts=2, chosen=1, window=9)
    model = write_tiny_gpt_oss(path, shape)
    ids = ids_of_length(1700)
    again = [*ids[:1000], 5, 6, 7]
    with Generator.open(path, context=4096) as opened:
        # One of the two layers has the window: 9, and room to go back and to go on.
        a_position = 2 * shape.kv_heads * shape.head_dim * 4
        assert opened.info["cache_bytes"] == (4096 + 9 + 512 + 1024) * a_position
        expected = forward(model, ids)[-1]
        assert np.abs(opened.logits(ids) - expected).max() < 1e-4 * expected.std()
        with Generator.open(path, context=len(again)) as fresh:  # without such layers
            assert np.array_equal(fresh.logits(again), opened.logits(again))


def test_the_definition_is_transformers(tiny: tuple[Path, TinyModel]) -> None:
    import torch

    path, model = tiny
    ids = ids_of_length(200)
    with torch.no_grad():
        theirs = as_transformers(model)(torch.tensor([ids])).logits[0].numpy()
    # transformers makes its table of angles in float32 whatever the model's precision.
    assert np.abs(forward(model, ids) - theirs).max() < 1e-4 * theirs.std()
    with Generator.open(path) as opened:
        assert np.abs(opened.logits(ids) - theirs[-1]).max() < 1e-4 * theirs.std()


PEER = """
import json, sys, urllib.request, xllamacpp
path, ids, count, vocab = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx = 512
params.n_parallel = 1
params.cpuparams.n_threads = 1
params.warmup = False
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
body = {"prompt": ids, "n_predict": count, "temperature": 0, "n_probs": vocab,
        "return_tokens": True, "repeat_penalty": 1.0, "ignore_eos": True}
request = urllib.request.Request(server.listening_address + "/completion",
    json.dumps(body).encode(), {"content-type": "application/json"})
answer = json.loads(urllib.request.urlopen(request).read())
print("\\n" + json.dumps([answer["tokens"], answer["completion_probabilities"]]), flush=True)
"""


def ask_llama(path: Path, ids: list[int], count: int, vocab: int) -> tuple[list[int], Wide]:
    """The ids llama.cpp goes on with, and the log-probabilities of all before each."""
    peer = subprocess.run(
        [sys.executable, "-c", PEER, str(path), json.dumps(ids), str(count), str(vocab)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = [line for line in reversed(peer.stdout.splitlines()) if line.startswith("[[")]
    assert lines, peer.stderr[-2000:]
    tokens, probabilities = json.loads(lines[0])
    out = np.full((len(probabilities), vocab), np.nan)
    for row, entry in zip(out, probabilities, strict=True):
        for top in entry["top_logprobs"]:
            row[top["id"]] = top["logprob"]
    return tokens, out


def test_llama_cpp_gives_the_same_probabilities_with_its_frequencies(
    generate: Any, tiny: tuple[Path, TinyModel]
) -> None:
    """300 tokens in all, a prompt and what llama.cpp says behind it."""
    pytest.importorskip("xllamacpp")
    path, model = tiny
    prompt = ids_of_length(60)
    tokens, theirs = ask_llama(path, prompt, 240, model.vocab)
    assert len(tokens) == len(theirs) == 240
    ids = [*prompt, *tokens]
    ours = generate(path, ids, "-n", "0", "--prompt-logits", "--yarn", "ggml")["prompt_logits"]
    found = log_softmax(np.array(ours, np.float64))[len(prompt) - 1 : -1]
    assert np.isfinite(theirs).sum() > 0.9 * theirs.size
    difference = np.nanmax(np.abs(found - theirs))
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("matrices", "experts"),
    [(TYPES.F32, TYPES.MXFP4), (TYPES.Q8_0, TYPES.MXFP4), (TYPES.BF16, TYPES.Q4_0)],
)
def test_stored_types(tmp_path: Path, matrices: TYPES, experts: TYPES) -> None:
    """Exact products are those of the stored numbers; with 8-bit activations they come near."""
    path = tmp_path / "model.gguf"
    model = write_tiny_gpt_oss(path, SMALL, dtype=matrices, experts=experts)
    ids = ids_of_length(90)
    wanted = log_softmax(forward(model, ids)[:-1])[np.arange(89), ids[1:]]
    with Generator.open(path, exact=True) as opened:
        found, _ = opened.log_probs(ids)
    assert np.abs(found - wanted).max() < 4e-5
    with Generator.open(path) as opened:
        near, _ = opened.log_probs(ids)
    assert 1e-5 < np.abs(near - wanted).mean() < 0.02


def test_any_number_of_threads_gives_the_same_bits(generate: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gpt_oss(path, SMALL, dtype=TYPES.Q8_0, experts=TYPES.MXFP4)
    answers = [
        generate(path, ids_of_length(40), "-n", "8", "--logits", "--seed", "5", "--threads", n)
        for n in ("1", "2", "3", "7")
    ]
    assert all(answer == answers[0] for answer in answers)


def scale_of_255(shape: Shape) -> Any:
    """Blocks of the second layer's gates, one of which has a scale that is no number."""
    blocks = np.zeros((shape.experts, shape.inner, shape.width // 32 * 17), np.uint8)
    blocks[3, 50, 17] = 255
    return blocks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replace": {"blk.1.attn_sinks.weight": None}}, ["blk.1.attn_sinks.weight is missing"]),
        ({"replace": {"blk.0.attn_q.bias": None}}, ["blk.0.attn_q.bias"]),
        ({"replace": {"blk.2.attn_output.bias": None}}, ["blk.2.attn_output.bias is missing"]),
        ({"replace": {"blk.0.ffn_up_exps.bias": None}}, ["blk.0.ffn_up_exps.bias is missing"]),
        ({"replace": {"output.weight": None}}, ["output.weight"]),
        (
            {"replace": {"blk.0.attn_sinks.weight": np.zeros(5, np.float32)}},
            ["blk.0.attn_sinks.weight", "{ 5, 1, 1, 1 }", "{ 4, 1, 1, 1 }"],
        ),
        (
            {"replace": {"blk.1.ffn_gate_exps.weight": np.zeros((4, 96, 64), np.float32)}},
            ["blk.1.ffn_gate_exps.weight", "{ 64, 96, 4, 1 }", "{ 64, 96, 5, 1 }"],
        ),
        (
            {"replace": {"blk.0.ffn_norm.weight": np.zeros(64, np.float32)}},
            ["blk.0.ffn_norm.weight"],
        ),
        ({"keys": {"expert_count": 6}}, ["ffn_gate_inp.weight", "{ 64, 5, 1, 1 }"]),
        ({"keys": {"expert_count": 0}}, ["expert_count is 0"]),
        ({"keys": {"expert_count": None}}, ["gpt-oss.expert_count"]),
        ({"keys": {"expert_used_count": 6}}, ["num_experts_per_tok is 6"]),
        ({"keys": {"expert_used_count": 0}}, ["num_experts_per_tok is 0"]),
        ({"keys": {"attention.sliding_window": 0}}, ["attention.sliding_window is 0"]),
        ({"keys": {"attention.sliding_window": None}}, ["gpt-oss.attention.sliding_window"]),
        ({"keys": {"rope.scaling.type": None}}, ["rope.scaling.type is not yarn"]),
        ({"keys": {"rope.scaling.factor": 0.5}}, ["rope_scaling.factor is 0.5"]),
    ],
)
def test_a_broken_file_is_refused_when_it_is_opened(
    run: Any, tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gpt_oss(path, SMALL, **change)
    with pytest.raises(FormatError) as caught:
        Generator.open(path)
    done = run("generate", "--model", path, "--ids", "1,2,3")
    assert done.returncode == 1
    for word in words:
        assert word in str(caught.value)
        assert word in done.stderr
    assert "cannot be written" not in done.stderr  # Nobody asked to write one.


def test_a_scale_that_is_no_number_is_refused_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    changed = {"blk.1.ffn_gate_exps.weight": (scale_of_255(SMALL), TYPES.MXFP4)}
    write_tiny_gpt_oss(path, SMALL, blocks=changed)
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_gate_exps\.weight .* 255"):
        Generator.open(path)


def test_no_importance_is_collected_of_experts(run: Any, tiny: tuple[Path, TinyModel]) -> None:
    path, _ = tiny
    (path.parent / "text.txt").write_text("words " * 600, encoding="utf-8")
    text, made = path.parent / "text.txt", path.parent / "made.gguf"
    done = run("imatrix", path, text, "-o", made)
    assert done.returncode == 1, done.stderr
    assert "what each expert is multiplied with is not collected here" in done.stderr
    assert not made.exists()


def test_another_ramp_is_refused(run: Any, tiny: tuple[Path, TinyModel]) -> None:
    path, _ = tiny
    with pytest.raises(ArgumentError, match="yarn is 'llama'; it must be exact or ggml"):
        Generator.open(path, yarn="llama")
    done = run("generate", "--model", path, "--ids", "1", "--yarn", "llama")
    assert done.returncode == 2
    assert "--yarn is llama; it must be exact or ggml" in done.stderr
