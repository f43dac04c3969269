"""`abi train --dpo`: pairs from the command line, the reference told, a run stopped and gone on."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pair_files import random_pairs, write_pairs

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SMALL = ("--batch-size", "2", "--grad-accum-steps", "2", "--max-seq-len", "32", "--epochs", "2")


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_pairs(tmp_path / "pairs.bin", random_pairs(7, vocab=40))
    data = ("--data", "pairs.bin", "--run-dir", "run", "--checkpoint-interval", "1")
    return ("train", "--model", "config.json", *data, *SMALL)


@pytest.mark.parametrize(
    ("more", "reference"),
    [
        (("--dpo",), "starting_model"),
        (("--dpo-beta", "0.2", "--lora"), "adapter_off"),
        (("--dpo-precompute", "--dpo-loss", "ipo,sft"), "starting_model (precomputed)"),
        (("--methods", "methods.json"), "adapter_off"),
    ],
)
def test_a_run_says_its_reference_and_records_it(
    run: Any, made: tuple[str, ...], tmp_path: Path, more: tuple[str, ...], reference: str
) -> None:
    (tmp_path / "methods.json").write_text('{"dpo": {"beta": 0.3}, "lora": {"r": 2}}')
    done = run(*made, *more)
    assert done.returncode == 0, done.stderr
    assert f"7 pairs, reference: {reference}\n" in done.stderr
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    identity = state["stateful_callbacks"]["abi_train"]["identity"]
    assert (identity["objective"], identity["reference"]) == ("dpo", reference)
    first = state["log_history"][0]
    if "ipo,sft" not in more:
        assert first["loss"] == math.log(2)
    assert first["rewards/accuracies"] == 0
    assert "perplexity" not in first
    kept = (tmp_path / "run" / "reference_logps.safetensors").exists()
    assert kept == ("--dpo-precompute" in more)


def test_a_run_on_pairs_goes_on_where_it_was(
    run: Any, made: tuple[str, ...], tmp_path: Path
) -> None:
    whole = run(*made, "--dpo")
    other = [part if part != "run" else "half" for part in made]
    assert run(*other, "--dpo", "--max-steps", "2").returncode == 0
    rest = run(*other, "--dpo", "--resume")
    assert rest.returncode == 0, rest.stderr
    last = [re.search(r"step 4/4 .*?lr", done.stderr) for done in (whole, rest)]
    assert last[0] is not None and last[1] is not None and last[0][0] == last[1][0]
    weights = [tmp_path / name / "checkpoint-4" / "model.safetensors" for name in ("run", "half")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "pairs.bin holds pairs of answers (preference data)"),
        (("--dpo-beta", "0"), "dpo.beta is 0; it must be a finite number above 0"),
        (("--dpo-loss", "kto"), 'dpo.loss_type is "kto"; it must be one or more of sigmoid'),
        (("--dpo", "--label-smoothing", "0.1"), "label_smoothing is 0.1"),
        (("--dpo-ref-model", "nowhere"), "dpo.ref_model: there is no model at nowhere"),
        (("--methods", "m.json", "--dpo"), "--methods and --dpo cannot be given together"),
        (("--methods", "m.json"), '"bet" is not a key of the table dpo; did you mean "beta"?'),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_update(
    run: Any, made: tuple[str, ...], tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    (tmp_path / "m.json").write_text('{"dpo": {"bet": 0.3}}')
    done = run(*made, *more)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "step 1" not in done.stderr
