"""docs/guide.md: what the guide's snippets became is run, or at least known to the programs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from abi_train import recipes
from abi_train.cli import main

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def blocks(kind: str, page: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_python_of_the_page_runs_in_its_order(tmp_path: Path) -> None:
    program = "".join(blocks("python"))
    printed = run([sys.executable, "-W", "error", "-c", program], tmp_path)
    assert "emotional.bin ['" in printed
    assert "name='pairs.jsonl'" in printed
    assert "Modelfile 4" in printed
    assert "['42.']" in printed


@pytest.mark.parametrize("page", [GUIDE, RECIPES], ids=["guide", "recipes"])
def test_each_training_command_is_one_that_works(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Commands that would train are asked what they would do."""
    monkeypatch.chdir(tmp_path)
    text = "".join([*blocks("console", page), *blocks("sh", page)])
    lines = [line.removeprefix("$ ").partition("  #")[0] for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("abi-train train ")]
    assert len(commands) >= 3
    for command in dict.fromkeys(commands):
        words = shlex.split(command)[1:]
        words += [] if "--dry-run" in words else ["--dry-run"]
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0, command
        assert "begins with" in capsys.readouterr().out, command
    assert list(tmp_path.iterdir()) == []


def test_the_zig_of_the_page_stands_in_examples_that_are_compiled() -> None:
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "examples" / "zig").glob("*.zig")]
    found = blocks("zig")
    assert len(found) == 3
    for snippet in found:
        indented = textwrap.indent(snippet, "    ")
        assert any(indented in source for source in sources), snippet


def test_every_set_recipe_and_script_it_names_is_there() -> None:
    from abi_train.data.sets import find

    for name in re.findall(r"`set:([\w-]+)`", GUIDE + RECIPES):
        if name != "NAME":
            assert find(name).name == name
    for name in re.findall(r"abbey-[a-z-]+\b", GUIDE):
        known = (*recipes.shipped(), "abbey-gpt-oss-", "abbey-trl", "abbey-training")
        assert name in (*known, "abbey-emotional-"), name
    for script in re.findall(r"uv run ([\w/.]+)", GUIDE):
        assert (ROOT / script).is_file()


#: A line of each snippet the guide had, and a line of what stands in its place.
SUCCESSORS = {
    "huggingface-cli login": "hf auth login",
    "hf_whoami()": "hf auth whoami",
    "dependencies = [": 'dependencies = ["abi-train[trl]"]',
    'SFTTrainer(model="openai/gpt-oss-20b")': "model: hub:openai/gpt-oss-20b",
    "warmup_ratio=0.1": "warmup_steps: 50",
    'model="YOUR_USERNAME/abbey-emotional-v1"': "chain: adapter",
    "confidence_data": "abi-train data pairs",
    "hf_jobs(": "abi-train jobs submit",
    "convert-hf-to-gguf.py": "abi-train export RUN --gguf q4_k_m",
    "`Modelfile` by hand": "PARAMETER stop",
    "ABI_OLLAMA_MODEL": "abi agent --model",
    "lighteval/MATH": "set:math",
    'report_to="trackio"': "--trackio abbey-training",
    "a10g-large": "abi-train plan",
}


@pytest.mark.parametrize("old", SUCCESSORS)
def test_each_snippet_has_its_successor_on_the_page(old: str) -> None:
    assert old in GUIDE and SUCCESSORS[old] in GUIDE
