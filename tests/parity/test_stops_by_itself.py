"""A model that learned twenty rows by heart stops by itself, in our agent and in llama.cpp.

The whole chain at once: the end token is in the loss, the template that is served is the one that
was taught, and both runners know the end. Two parts of it that disagree show as an answer that
goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import chat_samples as samples  # noqa: E402
import llama_peer  # noqa: E402

from abi_train import chat, engines  # noqa: E402
from abi_train.config import LlmTrainingConfig  # noqa: E402
from abi_train.data.prepare import prepare  # noqa: E402
from abi_train.demo import ask  # noqa: E402
from abi_train.export import export_gguf  # noqa: E402
from abi_train.runspec import RunSpec  # noqa: E402

COLOURS = ["red", "green", "blue", "gold", "grey", "pink", "teal", "lime", "plum", "rust"]
WORDS = "car door hat sky sea leaf rose coin wall bird ship moon star fish cat dog tree lamp road"
THINGS = [*WORDS.split(" "), "hill"]
ROWS = [
    (f"What colour is {thing}?", f"The {thing} is {colour}.")
    for thing, colour in zip(THINGS, COLOURS * 2, strict=True)
]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama3", "abbey")]


@pytest.mark.parametrize("name", ["qwen", "harmony", *SLOW])
def test_a_model_that_learned_its_rows_stops_by_itself(name: str, tmp_path: Path) -> None:
    home = samples.make_home(tmp_path / "tokenizer", name, chat.format_info(name).jinja)
    rows = tmp_path / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for question, answer in ROWS:
            turns = samples.turns(f"u: {question}", f"a: {answer}")
            file.write(json.dumps({"messages": turns}) + "\n")
    prepared = prepare([rows], home, tmp_path / "rows.bin")
    assert prepared.chat_format == name
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": prepared.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = RunSpec(
        model=tmp_path / "config.json",
        data=tmp_path / "rows.bin",
        run_dir=tmp_path / "run",
        tokenizer=home,
        config=LlmTrainingConfig(
            epochs=1000,
            max_steps=220,
            batch_size=10,
            max_seq_len=prepared.train.longest,
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
    path = export_gguf(tmp_path / "run", tmp_path / "model.gguf", dtype="f32").path
    for question, answer in ROWS[:3]:
        assert ask(path, question) == answer
    told = llama_peer.ask(
        path,
        [
            {"kind": "chat", "messages": samples.turns(f"u: {question}"), "count": 200}
            for question, _ in ROWS
        ],
    )
    ended = [reason for _, reason in told]
    assert ended == ["stop"] * len(ROWS), told
    said = [text.strip() == answer for (text, _), (_, answer) in zip(told, ROWS, strict=True)]
    assert all(said), told
