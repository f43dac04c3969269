"""Every program of examples/ runs as its first lines say, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

#: In their order, each with sentences its output must hold (regular expressions).
PYTHON = {
    "01_prepare_data.py": [r"12 conversations, \d+ tokens", r"\[That tight, racing feeling"],
    "02_train.py": [
        r"update 100: loss 0\.\d+",
        r"saved .*checkpoint-120",
        r"completed: loss 0\.\d",
    ],
    "03_check.py": [r"update 5: loss", r"native and trl agree"],
    "04_export_and_chat.py": [r"20 tensors", r"model:  That tight", r"agent:  That tight"],
    "05_adapter_hand_over.py": [
        r"trl on \w+, from update 0",
        r"native on cpu, from update 10",
        r"loss (0\.\d{5})\d handed over, \1\d on one engine",
    ],
    "06_preferences.py": [
        r"reference: a frozen copy of the adapter",
        r"margin 1\.\d+, 100% the right way",
        r"exported .*preferences\.gguf",
    ],
    "07_quantised_base.py": [
        r"base-4-bit\.gguf: \d{6} bytes, as floats \d{7}",
        r"update 1: loss 0\.1",
        r"update 36: loss 0\.[01]",
        r"--lora .*adapter\.gguf",
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run(command: list[str], cwd: Path) -> str:
    environment = os.environ | {"PYTHONWARNINGS": "default", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_python_example_is_in_this_test_and_in_the_readme() -> None:
    present = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert present == sorted(PYTHON)
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*/*.zig"), *EXAMPLES.glob("*/*.c")]:
        assert str(path.relative_to(EXAMPLES)) in page, f"examples/README.md lacks {path.name}"


@pytest.mark.parametrize("name", PYTHON)
def test_examples_are_short_and_keep_to_the_public_interface(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert "_native" not in text
    assert not re.search(r"from abi_train[.\w]* import .*\b_\w", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHON)
def test_python_example(name: str, folder: Path) -> None:
    printed = run([sys.executable, str(EXAMPLES / name), "example-run"], cwd=folder)
    for sentence in PYTHON[name]:
        assert re.search(sentence, printed), f"{sentence!r} is not in:\n{printed}"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Zig and C examples, built into a folder of their own."""
    pytest.importorskip("ziglang")
    prefix = tmp_path_factory.mktemp("programs")
    run(
        [sys.executable, "-m", "ziglang", "build", "examples", "--prefix", str(prefix)],
        cwd=ROOT,
    )
    return prefix / "bin"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        (
            "example-training_config",
            [r"32 sequences of up to 512", r"step\s+99\s+1\.000e-5"],
        ),
        ("example-data_loading", [r"10000 tokens, 4 batches", r"batch \d: input"]),
        ("example-instruction_data", [r"Name the feeling", r"3 good lines, 1 left out"]),
        ("example-c-train", [r"step 10", r"finished after 10 steps"]),
    ],
)
def test_program(name: str, sentences: list[str], programs: Path, tmp_path: Path) -> None:
    printed = run([str(programs / name)], cwd=tmp_path)
    for sentence in sentences:
        assert re.search(sentence, printed), f"{sentence!r} is not in:\n{printed}"


@pytest.mark.slow
def test_the_c_example_compiles_against_what_is_installed(tmp_path: Path) -> None:
    """As docs/c-abi.md says: header and static library, and nothing else of this project."""
    pytest.importorskip("ziglang")
    zig = [sys.executable, "-m", "ziglang"]
    page = (ROOT / "docs" / "c-abi.md").read_text(encoding="utf-8")
    line = re.search(r"python -m ziglang (cc .*)", page)
    assert line is not None
    run([*zig, "build", "lib", "--prefix", str(tmp_path / "zig-out")], cwd=ROOT)
    words = line.group(1).replace("examples/c/train.c", str(EXAMPLES / "c" / "train.c")).split()
    run([*zig, *words], cwd=tmp_path)
    assert "finished after 10 steps" in run([str(tmp_path / "train")], cwd=tmp_path)
