"""`abi-train data report` on the command line: what it prints, writes and leaves with."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from abi_train.cli import main
from abi_train.cli.rows import explain_marks, pieces_text
from abi_train.dataset import TokenizedWriter
from abi_train.demo import SAMPLE

CHATS = SAMPLE / "abbey_conversations.jsonl"
PAIRS = SAMPLE / "abbey_preferences.jsonl"
TOKENIZER = SAMPLE / "tokenizer"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data-report.md"


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["data", *[str(argument) for argument in arguments]])
    return int(left.value.code or 0)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    turns = [
        {"role": "user", "content": "\x1b[31m<|im_start|> \u202eq"},
        {"role": "assistant", "content": "a\x07b <script>"},
    ]
    path.write_text(json.dumps({"messages": turns}) + "\n{broken \x1b[2J\n")
    return path


def test_a_report_says_what_is_learned_and_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", CHATS, "--tokenizer", TOKENIZER, "--rows", "1") == 0
    shown = capsys.readouterr().out
    assert "in the loss  13,168 (64.6%)" in shown
    assert "nothing found" in shown
    assert "⟦That tight, racing feeling" in shown
    assert "What subject is it?<|im_end|>⟧↵" in shown
    assert "\x1b" not in shown


def test_a_row_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("report", CHATS, "--tokenizer", TOKENIZER, "--row", "7", "--row", "3", "--json")
    assert call(*arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert [example["row"] for example in values["examples"]] == [7, 3]
    assert [example["line"] for example in values["examples"]] == [8, 4]
    assert call("report", CHATS, "--tokenizer", TOKENIZER, "--row", "999") == 1
    assert "row is 999" in capsys.readouterr().err


def test_json_is_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    documented = set(re.findall(r"^\| `([a-z_.]+)` ", DOCUMENT.read_text(), re.MULTILINE))
    for path in (CHATS, PAIRS):
        assert call("report", path, "--tokenizer", TOKENIZER, "--max-seq-len", "60", "--json") == 0
        values = json.loads(capsys.readouterr().out)
        assert values["schema"] == "abi_train/data-report/1"
        keys = set(values)
        for group in ("file", "text", "max_seq_len", "pairs", "lengths", "vocabulary"):
            keys |= {f"{group}.{key}" for key in values[group] or {}}
        keys |= {f"findings.{key}" for key in values["findings"][0]}
        keys |= {f"examples.{key}" for key in values["examples"][0]}
        assert keys <= documented, keys - documented


def test_every_finding_is_documented() -> None:
    source = Path(__file__).resolve().parents[2] / "python/abi_train/data/report"
    text = (source / "findings.py").read_text() + (source / "__init__.py").read_text()
    codes = set(
        re.findall(r'(?:self\.add\(|code=|^            \()\s*"([a-z-]+)"', text, re.MULTILINE)
    )
    assert len(codes) > 25
    documented = set(re.findall(r"^\| `([a-z-]+)` ", DOCUMENT.read_text(), re.MULTILINE))
    assert codes <= documented, codes - documented


def test_strict_leaves_with_code_one_for_errors_only(bad: Path, tmp_path: Path) -> None:
    assert call("report", bad, "--tokenizer", TOKENIZER) == 0
    assert call("report", bad, "--tokenizer", TOKENIZER, "--strict") == 1
    assert call("report", CHATS, "--tokenizer", TOKENIZER, "--strict") == 0
    assert call("report", PAIRS, "--tokenizer", TOKENIZER, "--strict") == 0  # a warning only


def test_the_page_is_written(bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert call("report", bad, "--tokenizer", TOKENIZER, "--html", page) == 0
    streams = capsys.readouterr()
    assert f"wrote {page}" in streams.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "&lt;" in text
    assert "<script" not in text
    before = bad.read_bytes()
    assert call("report", bad, "--tokenizer", TOKENIZER, "--html", bad) == 2
    assert bad.read_bytes() == before
    assert call("report", bad, "--tokenizer", TOKENIZER, "--html", tmp_path / "no" / "x.html") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_nothing_in_the_data_steers_the_terminal(
    bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--json",)):
        assert call("report", bad, "--tokenizer", TOKENIZER, *more) == 0
        streams = capsys.readouterr()
        for character in "\x1b\x07":
            assert character not in streams.out + streams.err
    assert call("prepare", bad, "--tokenizer", TOKENIZER, "--output", bad.with_suffix(".bin"),
                "--skip-invalid") == 0  # fmt: skip
    streams = capsys.readouterr()
    assert "\\x1b[31m" in streams.err
    for character in "\x1b\x07\u202e":
        assert character not in streams.out + streams.err


def test_prepare_shows_the_first_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prepare", CHATS, "--tokenizer", TOKENIZER, "--output", tmp_path / "a.bin") == 0
    shown = capsys.readouterr().err
    assert "⟦That tight, racing feeling" in shown
    assert "<|im_end|>⟧" in shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("colour", [True, False])
def test_learned_text_is_marked_with_and_without_colour(encoding: str, colour: bool) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    console = Console(file=file, force_terminal=colour, color_system="standard" if colour else None)
    console.print(explain_marks(console))
    console.print(pieces_text(console, [("read\n", False), ("learned", True), ("more", False)]))
    file.flush()
    text = Text.from_ansi(raw.getvalue().decode(encoding)).plain
    opens, closes = ("⟦", "⟧") if encoding == "utf-8" else ("{{", "}}")
    assert f"{opens}learned{closes}more" in text
    assert ("\x1b[" in raw.getvalue().decode(encoding)) == colour


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gone.bin"], 1, "gone.bin"),
        (["."], 1, "folder"),
        ([str(CHATS)], 1, "--tokenizer"),
        ([str(CHATS), "--tokenizer", "nowhere"], 1, "nowhere"),
        ([str(CHATS), "--tokenizer", str(TOKENIZER), "--loss", "user"], 2, "--loss"),
        ([str(CHATS), "--tokenizer", str(TOKENIZER), "--chat-format", "x"], 1, "chat_format"),
        ([str(CHATS), "--tokenizer", str(TOKENIZER), "--max-seq-len", "1"], 2, "max-seq-len"),
        ([str(CHATS), "--tokenizer", str(TOKENIZER), "--eval", "gone.jsonl"], 1, "gone.jsonl"),
        (["/dev/null", "--tokenizer", str(TOKENIZER)], 1, "not a regular file"),
    ],
)
def test_a_wrong_command_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("report", *arguments) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_training_says_what_it_learns_and_what_it_cuts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("prepare", CHATS, "--tokenizer", TOKENIZER, "--output", tmp_path / "a.bin") == 0
    config = {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    def train(limit: int, *more: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["train", "--model", str(tmp_path / "config.json"), "--data",
                  str(tmp_path / "a.bin"), "--run-dir", str(tmp_path / f"run{limit}"), "--set",
                  "max_steps=1", "--set", f"max_seq_len={limit}", *map(str, more)])  # fmt: skip
        assert not left.value.code
        return capsys.readouterr().err

    shown = train(64, "--tokenizer", TOKENIZER)
    assert "data: 171 of 311 rows are longer than max_seq_len 64 and lose their end" in shown
    assert "row 0 teaches ⟦That tight, racing feeling" in shown
    shown = train(128, "--tokenizer", TOKENIZER)
    assert "longer than" not in shown
    assert "subject is it?<|im_end|>⟧" in shown
    assert "row 0" not in train(127)
    assert "longer than" not in train(63, "--set", "packing=wrapped")


def test_info_spells_out_what_steers_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"text": "\x1b[2J here \u202e and on"}) + "\n")
    output = tmp_path / "a.bin"
    assert call("prepare", source, "--tokenizer", TOKENIZER, "--output", output) == 0
    capsys.readouterr()
    assert call("info", output, "--tokenizer", TOKENIZER, "--rows", "1") == 0
    shown = capsys.readouterr().out
    assert "\\x1b[2J here \\u202e and on" in shown
    assert "\x1b" not in shown


def test_info_shows_ids_that_the_tokenizer_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TokenizedWriter(tmp_path / "a.bin", rows=True, mask=False) as writer:
        writer.append([5, 70_000, 6])
        writer.finish()
    told = call("info", tmp_path / "a.bin", "--tokenizer", TOKENIZER, "--rows", "1")
    shown = capsys.readouterr()
    assert told == 0
    assert "no id 70000" in shown.err
    assert "[5, 70000, 6]" in shown.out


@pytest.mark.parametrize("begun", [True, False])
def test_a_stopped_preparation_says_when_it_goes_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        if begun:
            (tmp_path / "a.bin.journal").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("abi_train.data.prepare.prepare", stopped)
    code = call("prepare", CHATS, "--tokenizer", TOKENIZER, "--output", tmp_path / "a.bin")
    assert code == 130
    assert ("the same command goes on" in capsys.readouterr().err) == begun


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": "x"}, "vocab_size"),
        ({"truncated": "many"}, "truncated"),
        ({"kind": "elf"}, "elf"),
        ({"incomplete": True}, "interrupted"),
        ({"count": 3}, "3 tokens"),
        ({"mask": "../a.mask"}, "mask"),
    ],
)
def test_a_faulty_manifest_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    output = tmp_path / "a.bin"
    assert call("prepare", CHATS, "--tokenizer", TOKENIZER, "--output", output) == 0
    manifest = output.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    capsys.readouterr()
    assert call("report", output, "--tokenizer", TOKENIZER) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert "unexpected" not in shown
    manifest.write_text("[" * 100_000)
    assert call("report", output) == 1
    assert "unexpected" not in capsys.readouterr().err
