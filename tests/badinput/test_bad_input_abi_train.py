"""Everything that can be wrong with what `abi-train` is given: one line, a code, no harm done.

As for the program, and in this process: a start of Python a case would take half a minute in all.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
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

from abi_train.cli import main

TRAIN = "train recipe.json "
PREPARE = "data prepare rows.jsonl --tokenizer tokenizer --output new.bin "
REPORT = "data report r.jsonl --tokenizer tokenizer "
EXPORT = "export talker --output new.gguf "
ROWS = '{"prompt": "a", "completion": "b"}\n'
NORM = "model.norm.weight"


def training(**changes: object) -> Callable[[Path], object]:
    """Changes settings inside the recipe."""
    return lambda folder: change_json(
        "recipe.json", training={"max_steps": 2, "batch_size": 2, "max_seq_len": 16, **changes}
    )(folder)


CASES = [
    # ---- recipes and settings ----
    Case("recipe missing", nothing, "train no.yaml", ("no.yaml", "no such file")),
    Case("recipe cut", cut("recipe.json"), TRAIN, ("recipe.json",)),
    Case("recipe empty", write("recipe.json", ""), TRAIN, ("recipe.json",)),
    Case("recipe is a list", write("recipe.json", "[]"), TRAIN, ("recipe.json",)),
    Case("broken yaml", write("r.yaml", "model: [a\n"), "train r.yaml", ("r.yaml",)),
    Case("broken toml", write("r.toml", "model = \n"), "train r.toml", ("r.toml",)),
    Case("binary recipe", write("r.yaml", b"\xff\xfe\0\1"), "train r.yaml", ("r.yaml",)),
    Case("strange ending", write("r.txt", "model: x"), "train r.txt", ("r.txt", ".yaml")),
    Case(
        "unknown key",
        change_json("recipe.json", modle="x"),
        TRAIN,
        ("modle", "did you mean 'model'"),
    ),
    Case("no model", change_json("recipe.json", model=...), TRAIN, ("model is missing",)),
    Case("model is a number", change_json("recipe.json", model=7), TRAIN, ("model", "7", "path")),
    Case("engine", change_json("recipe.json", engine="jax"), TRAIN, ("engine", "jax", "native")),
    Case("precision", nothing, TRAIN + "--precision f4", ("precision", "f4", "bf16"), 2),
    Case("settings are a list", change_json("recipe.json", training=[1]), TRAIN, ("training",)),
    Case(
        "unknown setting",
        training(lerning_rate=1),
        TRAIN,
        ("lerning_rate", "learning_rate"),
    ),
    Case("batch of 0", training(batch_size=0), TRAIN, ("batch_size", "0", "at least 1")),
    Case("batch is a text", training(batch_size="many"), TRAIN, ("batch_size", "many")),
    Case("batch is a part", training(batch_size=1.5), TRAIN, ("batch_size", "1.5", "whole")),
    Case("batch is a truth", training(batch_size=True), TRAIN, ("batch_size", "whole")),
    Case("rate is a list", training(learning_rate=[1]), TRAIN, ("learning_rate", "number")),
    Case("set without value", nothing, TRAIN + "--set epochs", ("epochs", "NAME=VALUE"), 2),
    Case("set nobody knows", nothing, TRAIN + "--set epoch=1", ("epoch", "epochs"), 2),
    Case("set to nan", nothing, TRAIN + "--set learning_rate=.nan", ("learning_rate", "nan"), 2),
    Case("too long rows", training(max_seq_len=33), TRAIN, ("max_seq_len is 33", "(32)")),
    # ---- models and data ----
    Case("model missing", change_json("recipe.json", model="no"), TRAIN, ("no", "does not exist")),
    Case("data missing", change_json("recipe.json", data="no.bin"), TRAIN, ("no.bin", "exist")),
    Case("data cut", cut("data.bin", keep=0.5505), TRAIN, ("data.bin", "multiple of 4")),
    Case("ids beyond", ids("data.bin", [1, 99] * 99), TRAIN, ("token 1 has id 99", "64")),
    Case("manifest cut", cut("rows.json"), TRAIN + "--data rows.bin", ("rows.json",)),
    Case("weights cut", cut("model/model.safetensors"), TRAIN, ("model.safetensors",)),
    Case("weights gone", remove("model/model.safetensors"), TRAIN, ("model.safetensors",)),
    Case("config cut", cut("model/config.json"), TRAIN, ("model/config.json",)),
    Case(
        "not a number in the weights",
        change_tensors(lambda t: t[NORM].__setitem__(3, np.nan)),
        TRAIN,
        (NORM, "nan", "element 3"),
    ),
    Case("resume from nothing", nothing, TRAIN + "--resume latest", ("run", "no checkpoint")),
    Case("resume from texts", nothing, TRAIN + "--resume kept", ("kept", "checkpoint-N")),
    Case("run folder is a file", nothing, TRAIN + "--run-dir kept/thesis.txt", ("thesis.txt",)),
    # ---- preparing ----
    Case("source missing", nothing, PREPARE.replace("rows.jsonl", "no.jsonl"), ("no.jsonl",)),
    Case("source is a folder", nothing, PREPARE.replace("rows.jsonl", "kept"), ("kept",)),
    Case("line cut", write("rows.jsonl", ROWS + ROWS[:20]), PREPARE, ("rows.jsonl", "2")),
    Case("line is a list", write("rows.jsonl", ROWS + "[1]\n"), PREPARE, ("rows.jsonl", "2")),
    Case("line is of bytes", write("rows.jsonl", b"\xff\xfe\n"), PREPARE, ("rows.jsonl",)),
    Case("no column known", write("rows.jsonl", '{"x": "y"}\n'), PREPARE, ("rows.jsonl", "1", "x")),
    Case("a text is a number", write("rows.jsonl", '{"text": 7}\n'), PREPARE, ("rows.jsonl", "1")),
    Case("no lines", write("rows.jsonl", ""), PREPARE, ("rows.jsonl",)),
    Case("rows in gzip", write("rows.jsonl", b"\x1f\x8b\x08\0"), PREPARE, ("rows.jsonl", "gzip")),
    Case("rows in UTF-16", write("rows.jsonl", b"\xff\xfe{\0"), PREPARE, ("rows.jsonl", "UTF-16")),
    Case(
        "broken UTF-8",
        write("rows.jsonl", ROWS.encode() + b'{"text": "\xc3"}\n'),
        PREPARE,
        ("rows.jsonl:2:11", "not UTF-8"),
    ),
    Case("a NUL byte", write("rows.jsonl", ROWS + '{"text": "\0"}\n'), PREPARE, (":2:11", "NUL")),
    Case(
        "a key twice",
        write("rows.jsonl", ROWS + '{"text": "a", "text": "b"}\n'),
        PREPARE,
        ("rows.jsonl:2:15", "twice"),
    ),
    Case(
        "deep JSON",
        write("rows.jsonl", ROWS + '{"x": ' + "[" * 5000 + "\n"),
        PREPARE,
        ("rows.jsonl:2:134", "nested too deeply"),
    ),
    Case(
        "an empty turn",
        write("rows.jsonl", '{"messages": [{"role": "user", "content": ""}]}\n'),
        PREPARE,
        ("rows.jsonl:1", "messages[0].content is empty"),
    ),
    Case(
        "an answer no call asked for",
        write(
            "rows.jsonl",
            '{"messages": [{"role": "tool", "content": "3"},'
            ' {"role": "assistant", "content": "a"}]}\n',
        ),
        PREPARE + "--chat-format chatml",
        ("rows.jsonl:1", "tool"),
    ),
    Case(
        "tokenizer missing", nothing, PREPARE.replace("tokenizer t", "tokenizer n"), ("nokenizer",)
    ),
    Case("tokenizer cut", cut("tokenizer/tokenizer.json"), PREPARE, ("tokenizer.json",)),
    Case("tokenizer empty", write("tokenizer/tokenizer.json", "{}"), PREPARE, ("tokenizer.json",)),
    Case("output is a folder", nothing, PREPARE.replace("new.bin", "kept"), ("kept",)),
    Case("sequence of 1", nothing, PREPARE + "--max-seq-len 1", ("max-seq-len",), 2),
    Case("unknown format", nothing, PREPARE + "--chat-format irc", ("irc",), 2),
    Case("info of nothing", nothing, "data info no.bin", ("no.bin", "no such file")),
    Case("info of a part", cut("data.bin", keep=0.5505), "data info data.bin", ("multiple of 4",)),
    Case("report on nothing", nothing, "data report no.bin", ("no.bin", "no such file")),
    Case("report on a part", cut("data.bin", keep=0.5505), "data report data.bin", ("data.bin",)),
    Case("report on text alone", write("r.jsonl", ROWS), "data report r.jsonl", ("--tokenizer",)),
    Case("report over its source", write("r.jsonl", ROWS), REPORT + "--html r.jsonl", ("html",), 2),
    Case("report on a row that is not", write("r.jsonl", ROWS), REPORT + "--row 1", ("row is 1",)),
    Case("report with a wrong loss", write("r.jsonl", ROWS), REPORT + "--loss user", ("loss",), 2),
    # ---- exporting, looking, talking ----
    Case("export of nothing", nothing, "export nowhere", ("nowhere",)),
    Case("export of texts", nothing, "export kept --output new.gguf", ("kept",)),
    Case("type nobody knows", nothing, EXPORT + "--dtype q9", ("q9", "q8_0"), 2),
    Case(
        "tokenizer of another model",
        change_json("talker/config.json", vocab_size=300),
        EXPORT,
        ("300", "257"),
    ),
    Case(
        "tokenizer larger than the model",
        nothing,
        "export model --tokenizer tokenizer --output new.gguf",
        ("id 64", "64 rows"),
    ),
    Case("export onto a folder", nothing, "export talker --output kept", ("kept",), 2),
    Case(
        "export below a file",
        nothing,
        "export talker --output kept/thesis.txt/c.gguf",
        ("kept/thesis.txt",),
    ),
    Case("gguf cut", cut("talker.gguf"), "inspect talker.gguf", ("talker.gguf", "cut")),
    Case("not gguf", write("talker.gguf", b"ZIP!" * 99), "inspect talker.gguf", ("talker.gguf",)),
    Case("gguf keys", patch("talker.gguf", 16, u64(1 << 60)), "inspect talker.gguf", ("n_kv",)),
    Case("inspect nothing", nothing, "inspect nowhere", ("nowhere",)),
    Case("inspect texts", nothing, "inspect kept", ("kept", "config.json")),
    Case("check without data", nothing, "check --model model --data no.bin", ("no.bin",)),
    # ---- the command line ----
    Case("unknown verb", nothing, "trian", ("trian",), 2),
    Case("unknown option", nothing, TRAIN + "--modle x", ("--modle",), 2),
    Case("nothing to train", nothing, "train --data data.bin", ("--model",), 2),
    Case("steps are a word", nothing, "check recipe.json --steps many", ("--steps",), 2),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_one_line_names_it_and_nothing_is_touched(
    folder: Path,
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case.break_it(folder)
    before = fingerprint(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        main(shlex.split(case.command))
    out, said = capfd.readouterr()
    assert (left.value.code, out) == (case.code, ""), said
    for word in ("Traceback", "fault of abi-train", "Errno"):
        assert word not in said, said
    lines = said.splitlines()
    if case.code == 1:
        assert len(lines) == 1, said
        assert said.startswith(("error: ", "abi inspect: ")), said
    for word in case.words:
        assert word in lines[-1], said
    assert fingerprint(folder) == before
    assert {p.name for p in folder.iterdir()} - set(_top(before)) <= {"run"}, "litter"


def _top(files: dict[str, str]) -> set[str]:
    return {name.split("/")[0] for name in files}


def test_the_sound_folder_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all of the above proves nothing."""
    monkeypatch.chdir(folder)
    for command in (TRAIN, PREPARE, EXPORT, "inspect talker.gguf", "data info rows.bin"):
        with pytest.raises(SystemExit) as left:
            main(shlex.split(command))
        assert left.value.code == 0, command
