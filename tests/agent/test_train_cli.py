"""`abi train`: what is refused before the first update, and logs that break while it runs."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
SMALL = ("--batch-size", "1", "--grad-accum-steps", "1", "--max-seq-len", "8", "--max-steps", "3")


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, ...]:
    """A command that trains in a moment and saves."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    ids = [i % 40 for i in range(200)]
    (tmp_path / "train.bin").write_bytes(struct.pack(f"<{len(ids)}I", *ids))
    data = ("--data", "train.bin", "--run-dir", "run")
    return ("train", "--model", "config.json", *data, *SMALL)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--tokenizer", "nope"), "--tokenizer: cannot read nope: no such file or folder"),
        (("--tokenizer", "config.json"), "--tokenizer: cannot read config.json"),
        (("--tokenizer", "."), "neither tokenizer.json nor tokenizer.model"),
        (("--export-gguf-path", "out.bin"), 'export_gguf_path is "out.bin"; it must end in .gguf'),
        (("--export-gguf-path", "no/out.gguf"), "cannot write no/out.gguf: no such file or folder"),
        (("--export-gguf-path", "train.bin/x.gguf"), "export_gguf_path: cannot"),
        (("--export-gguf-path", "folder.gguf"), "it is a folder where a file is needed"),
        (
            ("--export-gguf-path", "out.gguf", "--model", "sub/config.json"),
            "export_gguf_path: sub: there is no tokenizer.json",
        ),
        (("--epochs", "-1"), "epochs is -1; it must be at least 1"),
        (("--epochs", "0"), "epochs is 0; it must be at least 1"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    run: Any, made: tuple[str, ...], tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text(json.dumps(CONFIG))
    command = [a for a in made if not ("--model" in more and a in ("--model", "config.json"))]
    done = run(*command, *more)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert words in done.stderr
    assert "step 1" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_export_may_lie_in_the_run_folder_that_is_not_there_yet(
    run: Any, made: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*made, "--export-gguf-path", "run/model.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.gguf").stat().st_size > 0


@pytest.mark.parametrize("log", ["full", "left"])
def test_a_log_that_cannot_be_written_does_not_end_the_run(
    program: Path, made: tuple[str, ...], tmp_path: Path, log: str
) -> None:
    if log == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, fd = os.pipe()
        os.close(reader)
    command = [str(program), *made]
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=fd, timeout=60, check=False
    )
    os.close(fd)
    assert done.returncode == 0
    assert b"3 updates" in done.stdout
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def test_a_report_nobody_gets_is_a_failure_of_a_run_that_is_kept(
    program: Path, made: tuple[str, ...], tmp_path: Path
) -> None:
    reader, fd = os.pipe()
    os.close(reader)
    command = [str(program), *made]
    done = subprocess.run(command, cwd=tmp_path, stdout=fd, stderr=fd, timeout=60, check=False)
    os.close(fd)
    assert done.returncode == 1
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
