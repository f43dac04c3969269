"""The command line: what it prints, how it leaves, and that it never shows a traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_tokenizers import make_tokenizer
from token_files import write_rows

from abi_train.cli import main
from abi_train.cli.app import app

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
VERBS = [
    "demo",
    "init",
    "data",
    "plan",
    "train",
    "runs",
    "check",
    "merge",
    "export",
    "push",
    "chat",
    "eval",
    "jobs",
    "inspect",
    "doctor",
]
GROUPS = {
    "data": ("get", "sets", "pairs", "prepare", "report", "info"),
    "runs": ("list", "show"),
    "jobs": ("submit",),
}


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_rows(tmp_path / "train.bin", [9, 12, 20, 7, 15, 11], vocab=60)
    return tmp_path


def train_arguments(made: Path, *more: str) -> list[str]:
    return [
        "train",
        "--model",
        str(made / "config.json"),
        "--data",
        str(made / "train.bin"),
        "--run-dir",
        str(made / "run"),
        "--set",
        "batch_size=2",
        "--set",
        "grad_accum_steps=1",
        "--set",
        "max_seq_len=16",
        "--set",
        "epochs=2",
        *more,
    ]


def test_every_verb_has_help_with_two_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert [command.name for command in app.registered_commands] == [
        verb for verb in VERBS if verb not in GROUPS
    ]
    for verb in [[v] for v in VERBS if v not in GROUPS] + [
        [group, name] for group, names in GROUPS.items() for name in names
    ]:
        assert call(*verb, "--help") == 0
        shown = capsys.readouterr().out
        assert "Examples" in shown
        assert shown.count("abi-train " + " ".join(verb)) >= 2


def test_training_prints_a_summary_and_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*train_arguments(made, "--json")) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["total_steps"] == 6
    assert result["stop_reason"] == "completed"
    assert (made / "run" / "checkpoint-6" / "model.safetensors").is_file()
    assert "step 6/6  loss " in shown.err
    assert " tok/s  eta " in shown.err
    log = [json.loads(line) for line in (made / "run" / "log.jsonl").read_text().splitlines()]
    events = ["start", "note", "step", "step", "checkpoint", "end"]
    assert [row["event"] for row in log] == events
    assert log[0]["rows_cut"] == 1
    assert ": cut 1 of " in log[1]["text"]
    keys = {"loss", "grad_norm", "learning_rate", "perplexity", "epoch", "tokens_per_second"}
    assert keys <= set(log[2])


def test_both_engines_report_the_same_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for engine in ("native", "trl"):
        arguments = train_arguments(made, "--json", "--engine", engine)
        arguments[arguments.index("--run-dir") + 1] = str(made / engine)
        eval_data = ["--eval-data", str(made / "train.bin")]
        assert call(*arguments, *eval_data, "--set", "eval_interval=2") == 0
        found[engine] = json.loads(capsys.readouterr().out)
    native, trl = found["native"], found["trl"]
    assert list(native) == list(trl)
    for name in ("history", "evaluations"):
        assert [list(row) for row in native[name]] == [list(row) for row in trl[name]]
    for name in ("stop_reason", "total_steps", "total_tokens", "checkpoints_saved", "best_step"):
        assert native[name] == trl[name], name
    for name in ("final_loss", "best_val_loss", "final_perplexity"):
        assert native[name] == pytest.approx(trl[name], abs=1e-4), name


def test_a_recipe_runs_and_can_be_changed_on_the_way(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = made / "r.yaml"
    assert call("init", recipe, "--model", "config.json", "--data", "train.bin") == 0
    assert call("init", recipe) == 1
    assert "--force" in capsys.readouterr().err
    more = ["--set", "max_seq_len=16", "--set", "max_steps=1", "--set", "learning_rate=1e-4"]
    assert call("train", recipe, *more, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total_steps"] == 1
    assert (made / "runs" / "first" / "run.json").is_file()


def test_an_adapter_is_trained_handed_on_and_merged(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*train_arguments(made, "--json")) == 0
    base = json.loads(capsys.readouterr().out)["checkpoint"]
    lora = ["--model", base, "--data", made / "train.bin", "--set", "max_seq_len=16"]
    more = ["--set", "lora.r=2", "--set", "lora.target_modules=[q_proj, down_proj]"]
    assert call("train", *lora, "--run-dir", made / "lora", *more, "--set", "max_steps=2") == 0
    recipe = json.loads((made / "lora" / "run.json").read_text())
    assert (recipe["method"], recipe["lora"]["r"]) == ("lora", 2)
    assert recipe["lora"]["target_modules"] == ["q_proj", "down_proj"]
    settings = json.loads((made / "lora" / "checkpoint-2" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(Path(base).resolve())
    on = ["--run-dir", made / "on", "--adapter", made / "lora" / "checkpoint-2"]
    capsys.readouterr()
    assert call("train", *lora, *on, "--set", "max_steps=1", "--json", "--engine", "trl") == 0
    assert json.loads(capsys.readouterr().out)["total_steps"] == 1
    assert call("merge", made / "on", "--output", made / "merged", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["adapter"] == str(made / "on" / "checkpoint-1")
    assert (made / "merged" / "model.safetensors").is_file()
    assert call("merge", made / "on", "--output", made / "merged") == 1
    assert "merged" in capsys.readouterr().err
    assert call("merge", made / "run", "--output", made / "other") == 1
    assert "no adapter" in capsys.readouterr().err
    # An adapter given as the model is told apart from one.
    assert call("train", "--model", made / "on" / "checkpoint-1", *lora[2:], "--run-dir", "x") == 1
    assert "is an adapter, not a model" in capsys.readouterr().err


def test_pairs_are_prepared_trained_and_checked(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Which is {n}?", "chosen": "The first one.", "rejected": "I do not care."}
        for n in range(6)
    ]
    (made / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer(made / "tokenizer", vocab_size=300)
    (made / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 300}))
    prepared = ["--tokenizer", tokenizer, "--output", made / "pairs.bin"]
    assert call("data", "prepare", made / "pairs.jsonl", *prepared) == 0
    shared = ["--model", made / "config.json", "--data", made / "pairs.bin", "--objective", "dpo"]
    shared += ["--set", "max_seq_len=64", "--method", "lora", "--set", "dpo.beta=0.2"]
    capsys.readouterr()
    for engine in ("native", "trl"):
        run = ["--run-dir", made / engine, "--engine", engine, "--set", "max_steps=2", "--json"]
        assert call("train", *shared, *run) == 0
        shown = capsys.readouterr()
        assert "reference: " in shown.err
        step = json.loads(shown.out)["history"][-1]
        assert {"rewards/margins", "logps/chosen"} <= set(step)
    report = made / "report"
    assert call("check", *shared, "--steps", "2", "--report", report, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["worst"]["metrics"] <= 1e-6
    assert "Margin of rewards" in (report / "check.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], 2, "recipe"),
        (["train", "gone.yaml"], 1, "gone.yaml: no such file"),
        (["train", "--no-such-option"], 2, "No such option"),
        (["nonsense"], 2, "No such command"),
        (["export", "gone"], 1, "gone: no such folder"),
        (["chat", "gone.gguf"], 1, "gone.gguf: no such file"),
        (["inspect", "gone.gguf"], 1, "no such file"),
        (["data", "info", "gone.bin"], 1, "gone.bin"),
        (["data", "prepare", "gone.jsonl", "--tokenizer", "gone"], 1, "gone"),
        (["check", "--precision", "bf16", "--model", "a", "--data", "b"], 2, "float32"),
    ],
)
def test_what_goes_wrong_is_said_in_words(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == code
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_used_run_folder_is_refused_with_the_option_that_goes_on(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*train_arguments(made)) == 0
    capsys.readouterr()
    assert call(*train_arguments(made)) == 1
    said = capsys.readouterr().err
    assert "checkpoint-6 of another run" in said
    assert "--resume latest" in said
    assert call(*train_arguments(made, "--resume", "latest", "--set", "epochs=3")) == 0


def test_a_broken_setting_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*train_arguments(made, "--set", "learning_rate=-1")) == 2
    assert "learning_rate is -1" in capsys.readouterr().err
    assert call(*train_arguments(made, "--set", "lerning_rate=1")) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err


def test_an_unexpected_fault_is_one_line_unless_debugging(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from abi_train import engines

    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr(engines, "run", broken)
    assert call(*train_arguments(made)) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "unexpected KeyError" in shown
    assert call(*train_arguments(made, "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_and_a_gguf_can_be_inspected(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from abi_train import Model

    tokenizer = make_tokenizer(made / "tokenizer", vocab_size=300)
    words = json.loads((tokenizer / "tokenizer.json").read_text())
    rows = 1 + max(
        [*words["model"]["vocab"].values(), *(word["id"] for word in words["added_tokens"])]
    )
    with Model.random({**CONFIG, "vocab_size": rows}, seed=1) as model:
        model.save(made / "model", tokenizer_dir=tokenizer)
        count, names = model.element_count, list(model)
    target = made / "sp äc e.gguf"
    assert call("export", made / "model", "--output", target, "--dtype", "f32") == 0
    assert f"next: abi-train chat '{target}'" in capfd.readouterr().err
    assert call("inspect", target, "--json") == 0
    assert len(json.loads(capfd.readouterr().out)["tensors"]) == len(names)
    assert call("inspect", made / "model", "--json") == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["parameters"] == count
    assert [tensor["name"] for tensor in facts["tensors"]] == names
    assert call("inspect", made / "model") == 0
    assert names[-1] in capfd.readouterr().out


def test_ctrl_c_in_the_middle_of_a_verb_is_one_word(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from abi_train import engines

    def pressed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "run", pressed)
    assert call(*train_arguments(made)) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_info_says_what_a_token_file_holds(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "info", made / "train.bin", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["tokens"], facts["rows"], facts["longest row"]) == (74, 6, 20)


def test_doctor_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_check_leaves_with_one_when_the_engines_differ(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "check",
        "--model",
        made / "config.json",
        "--data",
        made / "train.bin",
        "--steps",
        "4",
        "--set",
        "batch_size=2",
        "--set",
        "max_seq_len=16",
        "--set",
        "learning_rate=1e-3",
        "--report",
        made / "report",
    ]
    assert call(*arguments) == 0
    shown = capsys.readouterr()
    assert "native and trl agree" in shown.out
    native, trl = shown.err.split("trl: 4 updates in float32\n")
    assert native.startswith("native: 4 updates in float32\n")
    assert "step 1/4  loss " in native
    assert "step 4/4  loss " in native
    assert "step 4/4  loss " in trl
    from abi_train.engines.trl import update

    monkeypatch.setattr(update, "spared", lambda name: True)
    assert call(*arguments, "--set", "weight_decay=1.0") == 1
    assert "do not agree" in capsys.readouterr().out
    assert json.loads((made / "report" / "check.json").read_text())["ok"] is False
    assert (made / "report" / "check.html").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_saves_and_says_where(
    made: Path, number: signal.Signals, code: int
) -> None:
    arguments = train_arguments(made, "--set", "epochs=1000000", "--set", "log_interval=1")
    program = "from abi_train.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        log = made / "run" / "log.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if log.is_file() and '"step"' in log.read_text():
                break
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    saved = sorted((made / "run").glob("checkpoint-*"))
    assert len(saved) == 1
    assert f"saved {saved[0]}" in err
    assert str(saved[0]) in out
    assert "Traceback" not in err


def test_the_package_is_quick_and_does_not_import_torch() -> None:
    program = (
        "import sys, abi_train, abi_train.cli; "
        "print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
