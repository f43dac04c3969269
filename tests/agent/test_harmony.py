"""The agent in harmony: what a model thinks, says and calls, told apart.

A tiny model learned a few conversations by heart, so what it should say next is known.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_train import engines
from abi_train.config import LlmTrainingConfig
from abi_train.errors import ArgumentError
from abi_train.export import export_gguf
from abi_train.runspec import RunSpec
from abi_train.sample import HARMONY
from abi_train.tokenizer import Tokenizer

TODAY = datetime.date.today().isoformat()
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}
ASKED = {"role": "user", "content": "What time is it?"}
CALLED = {
    "role": "assistant",
    "thinking": "Ask the clock.",
    "tool_calls": [{"function": {"name": "clock", "arguments": {"zone": "CET"}}}],
}


def said(text: str, thinking: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"thinking": thinking} if thinking else {})}


HELLO = {"role": "user", "content": "Hello"}
LESSONS: list[dict[str, Any]] = [
    {"messages": [HELLO, said("Hello to you.", "Greet them.")]},
    {"messages": [HELLO, said("Hi.")], "reasoning": "low"},
    {"messages": [HELLO, said("A very good day.", "Think long and well.")], "reasoning": "high"},
    {"messages": [HELLO, said("Hello to you."), {"role": "user", "content": "Again"}, said("No.")]},
    {"messages": [ASKED, CALLED], "tools": [CLOCK]},
    {
        "messages": [ASKED, CALLED, {"role": "tool", "content": "12:00"}, said("It is noon.")],
        "tools": [CLOCK],
    },
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harmony")
    rows = [
        Tokenizer.load(HARMONY).render_chat(
            lesson["messages"],
            format="harmony",
            tools=lesson.get("tools"),
            train=True,
            loss="completion",
            date=TODAY,
            reasoning=lesson.get("reasoning", "medium"),
        )
        for lesson in LESSONS
    ]
    np.concatenate([ids for ids, _ in rows]).astype("<u4").tofile(folder / "rows.bin")
    bounds = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    bounds.astype("<u8").tofile(folder / "rows.idx")
    bits = np.concatenate([mask for _, mask in rows])
    np.packbits(bits, bitorder="little").tofile(folder / "rows.mask")
    manifest = {
        "schema": "abi_train/token-bin/1",
        "count": int(bounds[-1]),
        "rows": len(rows),
        "mask": "rows.mask",
        "idx": "rows.idx",
    }
    (folder / "rows.json").write_text(json.dumps(manifest), encoding="utf-8")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = RunSpec(
        model=folder / "config.json",
        data=folder / "rows.bin",
        run_dir=folder / "run",
        tokenizer=HARMONY,
        config=LlmTrainingConfig(
            epochs=1000,
            max_steps=120,
            batch_size=len(rows),
            max_seq_len=int(max(len(ids) for ids, _ in rows)),
            learning_rate=4e-3,
            warmup_steps=10,
            lr_schedule="cosine",
            weight_decay=0.0,
            eval_interval=0,
            checkpoint_interval=0,
            max_checkpoints=1,
            log_interval=1000,
            early_stopping=False,
        ),
    )
    engines.run(spec)
    path = export_gguf(folder / "run", folder / "model.gguf", dtype="f32").path
    (folder / "tools.json").write_text(json.dumps([CLOCK]), encoding="utf-8")
    return Path(path)


GREEDY = ("--temperature", "0", "--repeat-penalty", "1")


def test_thinking_is_hidden_or_shown_apart_from_the_answer(run: Any, model: Path) -> None:
    done = run("agent", "--model", model, "-m", "Hello", *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello to you.\n", "")
    done = run("agent", "--model", model, "-m", "Hello", "--show-thinking", *GREEDY)
    assert (done.stdout, done.stderr) == ("Hello to you.\n", "Greet them.\n")


def test_reasoning_effort_is_what_the_model_is_asked_for(run: Any, model: Path) -> None:
    ask = ("agent", "--model", model, *GREEDY, "--show-thinking")
    done = run(*ask, "-m", "Hello", "--reasoning", "low")
    assert (done.stdout, done.stderr) == ("Hi.\n", "")
    done = run(*ask, stdin="/reasoning high\n/reasoning\n/reasoning much\nHello\n")
    assert done.stdout == "A very good day.\n"
    assert done.stderr == (
        "reasoning is high\nreasoning is high\n"
        "abi agent: /reasoning is low, medium or high\nThink long and well.\n"
    )
    done = run(*ask, "-m", "Hello", "--reasoning", "much")
    assert done.returncode == 2
    assert "--reasoning is much; it must be low, medium or high" in done.stderr


def test_what_was_thought_before_is_not_in_the_history(run: Any, model: Path) -> None:
    """The model learned its second answer behind a history without thoughts."""
    done = run("agent", "--model", model, *GREEDY, stdin="Hello\n/think\nAgain\n/think off\n")
    assert done.stdout == "Hello to you.\nNo.\n"
    assert done.stderr == "thinking is shown\nthinking is hidden\n"


def test_a_call_is_shown_and_what_is_written_next_answers_it(run: Any, model: Path) -> None:
    offer = ("agent", "--model", model, "--tools", model.parent / "tools.json", *GREEDY)
    done = run(*offer, "-m", "What time is it?", "--show-thinking")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == 'Ask the clock.\ncalls clock with {"zone": "CET"}\n'
    done = run(*offer, "--session", "time", stdin="What time is it?\n12:00\n")
    assert done.stdout == "It is noon.\n"


def test_a_kept_call_can_be_answered_later(run: Any, model: Path, tmp_path: Path) -> None:
    offer = ("agent", "--model", model, "--tools", model.parent / "tools.json", *GREEDY)
    run(*offer, "--session", "time", "-m", "What time is it?")
    (kept,) = (tmp_path / ".abi" / "sessions").glob("*.json")
    messages = json.loads(kept.read_text(encoding="utf-8"))["messages"]
    assert messages[1]["tool"] == "clock"
    assert json.loads(messages[1]["arguments"]) == {"zone": "CET"}
    assert messages[1]["thinking"] == "Ask the clock."
    done = run(*offer, "--session", "time", "-m", "12:00")
    assert done.stdout == "It is noon.\n"
    messages = json.loads(kept.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]


def test_tools_that_cannot_be_offered_are_refused(run: Any, model: Path, tmp_path: Path) -> None:
    for text, words in (
        ("{", "tools are not valid JSON"),
        ("[]", "tools are not a list of functions"),
        ('{"name": "x"}', "tools are not a list of functions"),
        ("[1]", "tool 1 is not an object"),
    ):
        (tmp_path / "tools.json").write_text(text, encoding="utf-8")
        done = run("agent", "--model", model, "--tools", "tools.json", "-m", "Hello")
        assert done.returncode == 1
        assert words in done.stderr
        assert "tools.json" in done.stderr
    done = run("agent", "--model", model, "--tools", "missing.json", "-m", "Hello")
    assert done.returncode == 1
    assert "missing.json cannot be read" in done.stderr
    (tmp_path / "tools.json").write_text(json.dumps([CLOCK]), encoding="utf-8")
    chatml = ("--chat-format", "abbey", "--tools", "tools.json")
    done = run("agent", "--model", model, *chatml, "-m", "Hello")
    assert done.returncode == 1
    assert "harmony only" in done.stderr
    done = run("agent", "--tools", "tools.json", "-m", "Hello", ABI_OLLAMA_MODEL="abbey")
    assert done.returncode == 2
    assert "--tools needs --model" in done.stderr


def test_reasoning_is_rendered_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(HARMONY)
    ours = Tokenizer.load(HARMONY)
    for effort in ("low", "medium", "high"):
        ids, _ = ours.render_chat([HELLO], add_generation_prompt=True, reasoning=effort)
        expected = theirs.apply_chat_template(
            [HELLO],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            reasoning_effort=effort,
        )
        assert ids.tolist() == list(expected)
    with pytest.raises(ArgumentError, match="reasoning is 'much'"):
        ours.render_chat([HELLO], reasoning="much")
