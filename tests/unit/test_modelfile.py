"""Modelfiles: read back as Ollama reads them, refused where its grammar would lose something."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import chat_samples as samples  # noqa: E402
from tiny_gguf_of import write_gguf_of  # noqa: E402

from abi_train import chat  # noqa: E402
from abi_train.errors import ConfigError, FormatError  # noqa: E402
from abi_train.export import export_gguf  # noqa: E402
from abi_train.export.modelfile import FIRST_LINE, modelfile_text, write_modelfile  # noqa: E402


def parse(text: str) -> list[tuple[str, str]]:
    """Commands and values by Ollama's grammar: bare, in quotes, or in three of them; no escapes."""
    found, at = [], 0
    while at < len(text):
        if text[at] == "\n":
            at += 1
        elif text[at] == "#":
            at = text.index("\n", at)
        else:
            word = re.compile(r"[A-Za-z]+").match(text, at)
            assert word and text[word.end()] == " "
            name, at = word[0], word.end() + 1
            if name == "PARAMETER":
                key = re.compile(r"\w+ ").match(text, at)
                assert key
                name, at = f"PARAMETER {key[0].strip()}", key.end()
            quote = next((q for q in ('"""', '"') if text.startswith(q, at)), "")
            end = text.index(quote or "\n", at + len(quote))
            found.append((name, text[at + len(quote) : end]))
            at = end + len(quote)
            assert text[at] == "\n"
    return found


@pytest.fixture(scope="module", params=["abbey", "qwen", "harmony", "llama3_2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = str(request.param)
    folder = tmp_path_factory.mktemp("modelfile")
    home = samples.make_home(folder / "tokenizer", name, chat.format_info(name).jinja)
    (folder / "name").write_text(name)
    return write_gguf_of(home, folder / f"{name} 1.gguf")


def test_a_modelfile_says_what_training_said(made: Path) -> None:
    info = chat.format_info((made.parent / "name").read_text())
    lines = parse((made.parent / "Modelfile").read_text(encoding="utf-8"))
    assert lines[0] == ("FROM", f"./{made.name}")
    eos = {"abbey": "<|endoftext|>"}.get(info.name, "")
    assert lines[1] == ("TEMPLATE", eos.join(info.go_template))
    stops = [value for name, value in lines if name == "PARAMETER stop"]
    assert stops == list(dict.fromkeys([*info.stops, info.end or eos]))


def test_system_and_parameters_survive(made: Path) -> None:
    system = 'You are "Abbey".\nBe kind \\ brief. 🙂'
    text = modelfile_text(made, system=system, parameters={"temperature": 0.7, "top_p": 0.9})
    lines = dict(parse(text))
    assert lines["SYSTEM"] == system
    assert lines["PARAMETER temperature"] == "0.7" and lines["PARAMETER top_p"] == "0.9"
    for bad in ('ends with "\n"', 'has """ inside', "a\u200db", "no\u00a0break", "bell\x07"):
        with pytest.raises(ConfigError, match="SYSTEM"):
            modelfile_text(made, system=bad)


def test_a_modelfile_of_somebody_else_stays(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.gguf"
    copy.write_bytes(made.read_bytes())
    assert write_modelfile(copy).name == "Modelfile"
    assert write_modelfile(copy, system="again").name == "Modelfile"
    (tmp_path / "Modelfile").write_text("FROM mine\n")
    assert write_modelfile(copy).name == "m.Modelfile"
    assert (tmp_path / "Modelfile").read_text() == "FROM mine\n"
    assert (tmp_path / "m.Modelfile").read_text(encoding="utf-8").startswith(FIRST_LINE)


def test_each_gguf_of_a_folder_keeps_its_own(made: Path, tmp_path: Path) -> None:
    for name in ("q4", "q8"):
        (tmp_path / f"{name}.gguf").write_bytes(made.read_bytes())
    assert write_modelfile(tmp_path / "q4.gguf").name == "Modelfile"
    before = (tmp_path / "Modelfile").read_bytes()
    for _ in range(2):
        assert write_modelfile(tmp_path / "q8.gguf").name == "q8.Modelfile"
    assert (tmp_path / "Modelfile").read_bytes() == before
    assert parse((tmp_path / "q8.Modelfile").read_text(encoding="utf-8"))[0] == (
        "FROM",
        "./q8.gguf",
    )
    (tmp_path / "q8.Modelfile").write_text("FROM mine\n")
    assert write_modelfile(tmp_path / "q8.gguf").name == "q8-2.Modelfile"
    assert (tmp_path / "q8.Modelfile").read_text() == "FROM mine\n"


def test_a_template_of_its_own_kind_is_left_to_the_gguf(tmp_path: Path) -> None:
    home = samples.make_home(
        tmp_path / "t", "qwen", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    path = write_gguf_of(home, tmp_path / "m.gguf")
    lines = parse((tmp_path / "Modelfile").read_text(encoding="utf-8"))
    assert [name for name, _ in lines if name == "TEMPLATE"] == []
    assert ("PARAMETER stop", "<|im_end|>") in lines
    assert "TEMPLATE" in modelfile_text(path, chat_format="chatml")


def test_an_end_that_ends_nothing_is_refused(tmp_path: Path) -> None:
    home = samples.make_home(tmp_path / "t", "mistral", chat.format_info("mistral").jinja)
    path = write_gguf_of(home, tmp_path / "m.gguf")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = json.loads((home / name).read_text())
        config.pop("eos_token")
        (home / name).write_text(json.dumps(config))
    with pytest.raises(FormatError, match="never stop"):
        export_gguf(path.parent / "model", tmp_path / "n.gguf", tokenizer=home)
    assert not (tmp_path / "n.gguf").exists()
