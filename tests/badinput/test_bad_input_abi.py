"""All that can be wrong with what the `abi` program is given: one line, a code, no harm done.

Each case breaks one thing of a sound folder. The message must name the thing and the value, the
exit code is a documented one, and every file that was there is there with the same bytes.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sound import (
    Case,
    change_json,
    change_tensors,
    cut,
    fingerprint,
    ids,
    nothing,
    patch,
    remove,
    u64,
    write,
)


def on(
    *,
    config: str = "train.json",
    model: str = "model",
    data: str = "data.bin",
    run_dir: str = "run",
) -> str:
    """The training command with one of its paths replaced."""
    return f"train --config {config} --model {model} --data {data} --run-dir {run_dir} "


TRAIN = on()
ROWS = on(data="rows.bin")
RANDOM = on(model="config.json")
GGUF = on(model="talker.gguf")
NORM = "model.norm.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"

CASES = [
    # ---- what is named is not there, or is something else ----
    Case("model missing", nothing, on(model="nowhere"), ("nowhere",)),
    Case("data missing", nothing, on(data="no.bin"), ("no.bin", "no such file")),
    Case("eval data missing", nothing, TRAIN + "--eval-data no.bin", ("no.bin", "no such file")),
    Case("config missing", nothing, on(config="no.json"), ("no.json", "no such file")),
    Case("model config missing", nothing, on(model="no.json"), ("no.json", "no such file")),
    Case("data is a folder", nothing, on(data="kept"), ("kept", "folder")),
    Case("model is a text", nothing, on(model="kept/thesis.txt"), ("kept/thesis.txt",)),
    Case("model is a folder of texts", nothing, on(model="kept"), ("kept", "config.json")),
    Case("run folder is a file", nothing, on(run_dir="kept/thesis.txt"), ("thesis.txt",)),
    # ---- token files ----
    Case("5 bytes too many", cut("data.bin", keep=0.5505), TRAIN, ("data.bin", "multiple of 4")),
    Case("no tokens", write("data.bin", b""), TRAIN, ("no batch", "0 tokens")),
    Case("too few tokens", ids("data.bin", [1, 2, 3]), TRAIN, ("no batch", "3 tokens")),
    Case(
        "id beyond the vocabulary",
        ids("data.bin", [1, 2, 99] * 100),
        TRAIN,
        ("token 2 has id 99", "64"),
    ),
    Case(
        "id beyond in eval data",
        ids("rows.bin", [64] * 600),
        TRAIN + "--eval-data rows.bin",
        ("id 64", "64"),
    ),
    Case("manifest cut", cut("rows.json"), ROWS, ("rows.json",)),
    Case("manifest counts wrong", change_json("rows.json", count=601), ROWS, ("601", "600")),
    Case("manifest of another kind", change_json("rows.json", schema="x/2"), ROWS, ("rows.json",)),
    Case("count is a text", change_json("rows.json", count="many"), ROWS, ("count",)),
    Case("row starts missing", remove("rows.idx"), ROWS, ("rows.idx", "not there")),
    Case("row starts cut", cut("rows.idx", keep=0.51), ROWS, ("rows.idx",)),
    Case("row starts fall", patch("rows.idx", 16, u64(3)), ROWS, ("rows.idx", "row")),
    Case("row beyond the end", patch("rows.idx", -8, u64(9999)), ROWS, ("rows.idx", "9999")),
    Case("mask cut", cut("rows.mask"), ROWS, ("rows.mask",)),
    Case(
        "side file outside",
        change_json("rows.json", mask="../../etc/passwd"),
        ROWS,
        ("rows.json", "mask"),
    ),
    # ---- safetensors ----
    Case("weights missing", remove("model/model.safetensors"), TRAIN, ("model.safetensors",)),
    Case("weights cut", cut("model/model.safetensors"), TRAIN, ("model.safetensors",)),
    Case("weights empty", write("model/model.safetensors", b""), TRAIN, ("model.safetensors",)),
    Case(
        "weights without end of header",
        patch("model/model.safetensors", 0, u64(1 << 62)),
        TRAIN,
        ("model.safetensors", "header"),
    ),
    Case(
        "tensor missing",
        change_tensors(lambda t: t.pop(GATE)),
        TRAIN,
        (GATE, "missing"),
    ),
    Case(
        "tensor of another shape",
        change_tensors(lambda t: t.update({GATE: np.zeros((24, 15), "f4")})),
        TRAIN,
        (GATE, "24", "15", "16"),
    ),
    Case(
        "tensor turned around",
        change_tensors(lambda t: t.update({GATE: np.zeros((16, 24), "f4")})),
        TRAIN,
        (GATE, "24", "16"),
    ),
    Case(
        "tensor of whole numbers",
        change_tensors(lambda t: t.update({GATE: np.zeros((24, 16), "i4")})),
        TRAIN,
        (GATE, "i32", "F32"),
    ),
    Case(
        "tensor nobody knows",
        change_tensors(lambda t: t.update({"model.extra": np.zeros(3, "f4")})),
        TRAIN,
        ("model.extra",),
    ),
    Case(
        "not a number in the weights",
        change_tensors(lambda t: t[NORM].__setitem__(3, np.nan)),
        TRAIN,
        (NORM, "nan", "element 3"),
    ),
    Case(
        "endless weight",
        change_tensors(lambda t: t[NORM].__setitem__(0, np.inf)),
        TRAIN,
        (NORM, "inf", "element 0"),
    ),
    Case(
        "weights of a larger model",
        change_json("model/config.json", vocab_size=65),
        TRAIN,
        ("model.embed_tokens.weight", "64", "65"),
    ),
    # ---- the model's config.json ----
    Case("config cut", cut("config.json"), RANDOM, ("config.json",)),
    Case("config is a list", write("config.json", "[1]"), RANDOM, ("config.json", "object")),
    Case("config empty", write("config.json", ""), RANDOM, ("config.json",)),
    Case("width missing", change_json("config.json", hidden_size=...), RANDOM, ("hidden_size",)),
    Case("width is a text", change_json("config.json", hidden_size="16"), RANDOM, ("hidden_size",)),
    Case("width is 0", change_json("config.json", hidden_size=0), RANDOM, ("hidden_size",)),
    Case("width below 0", change_json("config.json", hidden_size=-16), RANDOM, ("hidden_size",)),
    Case(
        "width endless", change_json("config.json", hidden_size=1 << 60), RANDOM, ("hidden_size",)
    ),
    Case(
        "heads do not divide",
        change_json("config.json", num_attention_heads=3, num_key_value_heads=2),
        RANDOM,
        ("head",),
    ),
    Case("model type", change_json("config.json", model_type="mamba"), RANDOM, ("mamba", "llama")),
    Case(
        "activation", change_json("config.json", hidden_act="gelu"), RANDOM, ("gelu", "hidden_act")
    ),
    Case(
        "scaling nobody knows",
        change_json("config.json", rope_scaling={"rope_type": "spiral", "factor": 2.0}),
        RANDOM,
        ("spiral",),
    ),
    # ---- the training configuration ----
    Case("settings cut", cut("train.json"), TRAIN, ("train.json", "cut off")),
    Case("settings are a list", write("train.json", "[]"), TRAIN, ("train.json", "object")),
    Case(
        "unknown setting",
        change_json("train.json", lerning_rate=1.0),
        TRAIN,
        ("lerning_rate", 'did you mean "learning_rate"'),
    ),
    Case("batch of 0", nothing, TRAIN + "--batch-size 0", ("batch_size is 0", "at least 1")),
    Case("batch is a word", nothing, TRAIN + "--batch-size many", ("batch_size", "many", "whole")),
    Case("batch is a part", nothing, TRAIN + "--batch-size 1.5", ("batch_size", "1.5", "whole")),
    Case("rate below 0", nothing, TRAIN + "--learning-rate=-1", ("learning_rate", "-1")),
    Case("rate is nan", nothing, TRAIN + "--learning-rate nan", ("learning_rate", "nan")),
    Case("rate is endless", nothing, TRAIN + "--learning-rate 1e999", ("learning_rate", "1e999")),
    Case("no such schedule", nothing, TRAIN + "--lr-schedule spiral", ("lr_schedule", "spiral")),
    Case("shuffle is a word", nothing, TRAIN + "--shuffle maybe", ("shuffle", "maybe", "true")),
    Case("too long rows", nothing, TRAIN + "--max-seq-len 33", ("max_seq_len is 33", "(32)")),
    Case("wandb", nothing, TRAIN + "--enable-wandb true --log-dir x", ("enable_wandb", "native")),
    # ---- resuming ----
    Case(
        "resume from nowhere",
        nothing,
        TRAIN.replace("--run-dir run", "") + "--resume",
        ("--run-dir",),
    ),
    # ---- the command line ----
    Case("no model", nothing, "train --data data.bin", ("--model is missing",), 2),
    Case("no data", nothing, "train --model model", ("--data is missing",), 2),
    Case("unknown option", nothing, TRAIN + "--lerning-rate 1", ("--learning-rate",), 2),
    Case("option without value", nothing, TRAIN + "--epochs", ("--epochs",), 2),
    Case("a stray word", nothing, TRAIN + "quickly", ("quickly",), 2),
    Case("unknown command", nothing, "trian", ("trian", "abi train"), 2),
    # ---- GGUF ----
    Case("gguf cut", cut("talker.gguf"), "inspect talker.gguf", ("talker.gguf",)),
    Case("gguf cut, to train", cut("talker.gguf"), GGUF, ("talker.gguf",)),
    Case(
        "gguf cut, to talk", cut("talker.gguf"), "agent --model talker.gguf -m x", ("talker.gguf",)
    ),
    Case("gguf empty", write("talker.gguf", b""), "inspect talker.gguf", ("talker.gguf",)),
    Case("not gguf", write("talker.gguf", b"ZIP!" * 99), GGUF, ("talker.gguf", "GGUF")),
    Case("gguf of 2099", patch("talker.gguf", 4, b"\x63\0\0\0"), GGUF, ("version", "99")),
    Case(
        "gguf turned around", patch("talker.gguf", 4, b"\0\0\0\3"), GGUF, ("talker.gguf", "endian")
    ),
    Case("gguf counts tensors", patch("talker.gguf", 8, u64(1 << 60)), GGUF, ("talker.gguf",)),
    Case("gguf counts keys", patch("talker.gguf", 16, u64(1 << 60)), GGUF, ("talker.gguf",)),
    Case("gguf missing", nothing, "agent --model no.gguf -m x", ("no.gguf", "no such file")),
    Case("gguf is a folder", nothing, "inspect kept", ("kept",)),
    Case(
        "broken gguf weights",
        patch("talker.gguf", -4, b"\0\0\xc0\x7f"),
        GGUF,
        ("model.norm.weight", "no number"),
    ),
    # ---- generate ----
    Case("ids are words", nothing, "generate --model talker.gguf --ids 1,x", ("--ids",), 2),
    Case("id too large", nothing, "generate --model talker.gguf --ids 1,257", ("257",)),
    Case("no prompt", nothing, "generate --model talker.gguf", ("--prompt", "--ids"), 2),
    Case("empty message", nothing, "agent --model talker.gguf -m ''", ("--message is empty",), 2),
    Case("temperature", nothing, "agent --model talker.gguf -m x --temperature hot", ("hot",), 2),
    Case("chat format", nothing, "agent --model talker.gguf -m x --chat-format irc", ("irc",), 2),
    Case("no session", nothing, "agent --model talker.gguf -m x --load ../kept", ("../kept",)),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_one_line_names_it_and_nothing_is_touched(program: Path, folder: Path, case: Case) -> None:
    case.break_it(folder)
    before = fingerprint(folder)
    done = subprocess.run(
        [str(program), *shlex.split(case.command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (case.code, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("abi")
    assert len(lines[0]) < 500
    for word in case.words:
        assert word in lines[0], lines[0]
    for word in ("panic", "error.", "Unexpected", "unreachable"):
        assert word not in lines[0], lines[0]
    assert fingerprint(folder) == before


def test_the_sound_folder_trains_and_talks(program: Path, folder: Path) -> None:
    """Otherwise all of the above proves nothing."""
    for command in (
        TRAIN,
        ROWS,
        RANDOM,
        GGUF,
        "generate --model talker.gguf --ids 1,2 --print-ids",
    ):
        done = subprocess.run(
            [str(program), *shlex.split(command)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)
        shutil.rmtree(folder / "run", ignore_errors=True)  # a used one is refused
