"""What becomes of a run when the shell's side of a stream is closed, full or gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from token_files import write_rows

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
PROGRAM = [sys.executable, "-c", "from abi_train.cli import main; main()"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_rows(tmp_path / "train.bin", [9, 12, 20, 7, 15, 11], vocab=60)
    return tmp_path


def training(*more: str) -> list[str]:
    words = ["train", "--model", "config.json", "--data", "train.bin", "--run-dir", "run"]
    for setting in ("batch_size=2", "grad_accum_steps=1", "max_seq_len=16", "epochs=2"):
        words += ["--set", setting]
    return [*PROGRAM, *words, *more]


def shell(command: list[str], redirect: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = f'"$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", script, "sh", *command], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"])
def test_a_log_that_cannot_be_written_does_not_end_a_run(made: Path, redirect: str) -> None:
    done = shell(training("--set", "log_interval=1"), redirect, made)
    assert done.returncode == 0
    assert "run/checkpoint-6" in done.stdout
    assert (made / "run" / "checkpoint-6" / "model.safetensors").is_file()


def test_a_log_pipe_that_nobody_reads_does_not_end_a_run(made: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        training("--set", "log_interval=1"), cwd=made, stderr=write, stdout=subprocess.PIPE
    )
    os.close(write)
    assert done.returncode == 0
    assert (made / "run" / "checkpoint-6" / "model.safetensors").is_file()


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_result_that_cannot_be_written_is_a_failure(
    made: Path, redirect: str, flags: list[str]
) -> None:
    done = shell([*PROGRAM, "data", "info", "train.bin", *flags], redirect, made)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: ")
    assert done.stderr.count("\n") == 1


def test_a_training_whose_summary_is_lost_has_saved_first(made: Path) -> None:
    done = shell(training(), ">/dev/full", made)
    assert done.returncode == 1
    assert "error: standard output: No space left on device" in done.stderr
    assert (made / "run" / "checkpoint-6" / "model.safetensors").is_file()


def test_ctrl_c_while_the_program_is_still_loading_is_one_word(tmp_path: Path) -> None:
    # An import hook says when the first import of the command line begins, and waits there.
    program = (
        "import sys, time\n"
        "class Wait:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            print('loading', flush=True)\n"
        "            time.sleep(30)\n"
        "sys.meta_path.insert(0, Wait())\n"
        "from abi_train.cli import main\n"
        "main(['doctor'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background of a script, the tests themselves may ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert (process.returncode, err) == (130, "interrupted\n")


def test_debug_without_a_command_shows_the_help() -> None:
    plain = subprocess.run(PROGRAM, capture_output=True, text=True)
    debug = subprocess.run([*PROGRAM, "--debug"], capture_output=True, text=True)
    assert (debug.returncode, debug.stdout) == (plain.returncode, plain.stdout)
    assert "Usage: abi-train" in debug.stdout + debug.stderr
    assert "Traceback" not in debug.stderr
