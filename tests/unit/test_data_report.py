"""The report on data: every finding has rows that bring it up and rows that do not, and the counts
are those of a plain loop."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chat_samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama3_tokenizer
from tiny_tokenizers import make_tokenizer

from abi_train import TokenizedWriter
from abi_train._native import dataset as native_set
from abi_train.chat import FORMATS, format_info
from abi_train.data.files import Bits, Ids
from abi_train.data.prepare import prepare
from abi_train.data.report import Report, examine
from abi_train.data.report.histogram import length_histogram, share_histogram
from abi_train.data.report.measure import NOT_LEARNED, measure, repeats
from abi_train.data.report.page import render_page
from abi_train.data.report.text import MARKERS, TextFacts, add_text
from abi_train.data.report.vocabulary import Vocabulary, powers
from abi_train.data.visible import visible
from abi_train.demo import SAMPLE
from abi_train.errors import ArgumentError, DataError, FileAccessError, MissingFileError
from abi_train.tokenizer import Tokenizer

TOKENIZER = SAMPLE / "tokenizer"
END = 2  # <|im_end|>


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def turns(*parts: str) -> dict[str, Any]:
    """`u: …`, `a: …` and `s: …` as a chat."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": names[p[0]], "content": p[3:]} for p in parts]}


def plain(count: int = 12) -> list[dict[str, Any]]:
    """Rows in which nothing is wrong."""
    return [
        chat(f"What comes after {i}, please tell me?", f"After {i} comes {i + 1}, as ever.")
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def report_on(tmp_path: Path, rows: Sequence[Any], **options: Any) -> Report:
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    return examine(source, tokenizer=TOKENIZER, **options)


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


def found(report: Report, code: str) -> Any:
    return next(finding for finding in report.findings if finding.code == code)


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    report = report_on(tmp_path, plain(), max_seq_len=200)
    assert codes(report) == {}
    assert report.errors == 0
    assert report.rows == 12
    assert report.turns == {2: 12}


def pair(better: str, worse: str, prompt: str = "Say something.") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def many_pairs(count: int, *, longer: int) -> list[dict[str, Any]]:
    """Pairs of which the better answer is longer in `longer`."""
    long, short = "a rather long answer with many words in it", "short one"
    return [
        pair(f"{long} {i}", f"{short} {i}", f"Question number {i}.")
        if i < longer
        else pair(f"{short} {i}", f"{long} {i}", f"Question number {i}.")
        for i in range(count)
    ]


# code, rows that bring it up and its count, severity, rows close by that do not
JSONL_CASES: list[tuple[str, list[Any], int, str, list[Any]]] = [
    ("unusable-lines", [*plain(), "{broken", "[]"], 2, "error", plain()),
    (
        "answers-equal",
        [*many_pairs(3, longer=1), pair("the same", "the same")],
        1,
        "error",
        many_pairs(3, longer=1),
    ),
    ("near-empty", [*plain(), chat("yes?", "y")], 1, "warn", [chat("yes?", "It is as you say.")]),
    (
        "near-empty",
        [*plain(300), chat("yes?", "y")],
        1,
        "note",
        plain(),
    ),
    (
        "unlearned-tail",
        [*plain(), turns("u: one", "a: two and three", "u: four, which nobody answers")],
        1,
        "warn",
        [turns("u: one", "a: two and three", "u: four", "a: that somebody answers")],
    ),
    (
        "control-text",
        [*plain(), chat("what is <|im_start|>?", "It is [/INST], is it not?")],
        1,
        "warn",
        [*plain(), chat("what is <im_start>?", "It is [INST , is it not?")],
    ),
    (
        "control-text",
        [chat(f"<|start_header_id|>user{i}", f"answer number {i} here") for i in range(5)],
        5,
        "error",
        plain(),
    ),
    ("broken-text", [*plain(), chat("caf\ufffd", "na\ufffdve it is")], 2, "warn", plain()),
    (
        "hidden-characters",
        [*plain(), chat("a\u202eb", "zero\u200bwidth and \ufeffmark")],
        3,
        "note",
        [*plain(), chat("naïve — “quoted”…", "日本語 and नमस्ते")],
    ),
    ("mixed-kinds", [*plain(), pair("one", "two")], 1, "error", plain()),
    ("mixed-kinds", [pair("one", "two"), *plain()], 12, "error", [pair("one", "two")]),
    (
        "roles-swapped",
        [*plain(), turns("u: How can I help you today?", "a: my screen is black")],
        1,
        "warn",
        [*plain(), turns("u: my screen is black", "a: How can I help you today?")],
    ),
    (
        "unanswered",
        [*plain(), turns("u: one", "a: two or three", "u: four")],
        1,
        "warn",
        [turns("s: be nice", "u: one", "a: two or three")],
    ),
    (
        "role-repeated",
        [*plain(), turns("u: one", "u: two", "a: three or four")],
        1,
        "warn",
        [turns("u: one", "a: two or three", "u: four", "a: five or six")],
    ),
    (
        "answer-first",
        [*plain(), turns("s: be nice", "a: hello and welcome", "u: hi", "a: how are you")],
        1,
        "note",
        [turns("s: be nice", "u: hi", "a: how are you then")],
    ),
    (
        "late-system",
        [*plain(), turns("u: hi", "s: be nice", "a: how are you then")],
        1,
        "note",
        [turns("s: be nice", "u: hi", "a: how are you then")],
    ),
    ("duplicates", [*plain(), plain()[4], plain()[4]], 2, "warn", plain()),
    ("duplicates", [*plain(300), plain()[4]], 1, "note", plain()),
    (
        "near-duplicates",
        [*plain(), chat("what comes AFTER 3 please... tell me", "after 3, comes 4: as ever")],
        1,
        "warn",
        [*plain(), plain()[4]],
    ),
    (
        "repeated-prompts",
        [chat("Which number is large?", f"I say {i} is rather large.") for i in range(4)],
        1,
        "note",
        [*plain(), plain()[4]],
    ),
    ("length-bias", many_pairs(30, longer=25), 25, "warn", many_pairs(30, longer=15)),
    ("length-bias", many_pairs(30, longer=2), 28, "warn", many_pairs(8, longer=8)),
    (
        "many-pairs",
        [pair(f"answer {i}", f"other {i}") for i in range(5)],
        1,
        "note",
        many_pairs(5, longer=2),
    ),
    ("nothing-learned", [*plain(), {"text": "a"}], 0, "warn", plain()),
    ("little-loss", [chat("word " * 400, "yes it is")] * 1, 0, "warn", plain()),
]


@pytest.mark.parametrize(
    ("code", "bad", "count", "severity", "good"),
    JSONL_CASES,
    ids=[f"{case[0]}-{case[3]}" for case in JSONL_CASES],
)
def test_each_finding_about_text_comes_up_and_stays_away(
    tmp_path: Path, code: str, bad: list[Any], count: int, severity: str, good: list[Any]
) -> None:
    report = report_on(tmp_path, bad)
    if code == "nothing-learned":  # a text has its end token to learn, and so never comes up here
        assert code not in codes(report)
        return
    assert codes(report).get(code) == severity
    finding = found(report, code)
    assert count == 0 or finding.count == count
    assert finding.message
    assert finding.next.endswith((".", "?"))
    assert len(finding.lines) <= len(finding.rows) <= 8
    assert code not in codes(report_on(tmp_path, good))


def write_bin(path: Path, rows: Sequence[Any], **manifest: Any) -> Path:
    """Rows of ids, or of (ids, learned), as a token file."""
    with TokenizedWriter(path, **manifest) as writer:
        for row in rows:
            ids, learned = row if isinstance(row, tuple) else (row, [True] * len(row))
            writer.append(np.array(ids, dtype=np.uint32), np.array(learned, dtype=np.bool_))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama3")
    llama3_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def specials(llama3: Path) -> dict[str, int]:
    hf = llama3_tokenizer()
    return {token: hf.convert_tokens_to_ids(token) for token in hf.all_special_tokens} | {
        token.content: number for number, token in hf.added_tokens_decoder.items()
    }


def test_an_answer_without_its_end_token_is_an_error(tmp_path: Path) -> None:
    good = ([1, 30, 40, 50, END, 31], [False, False, True, True, True, False])
    bad = ([1, 30, 40, 50, END, 31], [False, False, True, True, False, False])
    half = ([1, 40, END, 1, 50, END], [False, True, True, False, True, False])
    report = examine(write_bin(tmp_path / "a.bin", [good] * 3), tokenizer=TOKENIZER)
    assert "no-end-token" not in codes(report)
    report = examine(write_bin(tmp_path / "b.bin", [good, bad, half]), tokenizer=TOKENIZER)
    finding = found(report, "no-end-token")
    assert (finding.severity, finding.count, finding.rows) == ("error", 2, (1, 2))
    assert finding.detail["rows_without_any"] == 1
    assert "no-end-token" not in codes(examine(tmp_path / "b.bin"))  # nobody knows without it


def test_a_row_learned_whole_may_have_a_line_break_behind_its_end(tmp_path: Path) -> None:
    rows = [*plain(3), {"text": "Just some text."}]
    for loss in ("assistant", "completion", "all"):
        assert codes(report_on(tmp_path, rows, loss=loss)) == {}


def test_cut_rows_are_no_error_but_a_warning(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", plain(20))
    prepare([source], TOKENIZER, tmp_path / "cut.bin", max_seq_len=24)
    report = examine(tmp_path / "cut.bin", tokenizer=TOKENIZER)
    assert codes(report)["truncated"] == "warn"
    assert found(report, "truncated").count == 20
    assert "no-end-token" not in codes(report)
    prepare([source], TOKENIZER, tmp_path / "whole.bin")
    assert "truncated" not in codes(examine(tmp_path / "whole.bin", tokenizer=TOKENIZER))


def test_begin_tokens_are_counted(tmp_path: Path, llama3: Path, specials: dict[str, int]) -> None:
    bos, end = specials["<|begin_of_text|>"], specials["<|eot_id|>"]
    good = [bos, 300, 301, 302, end]
    report = examine(write_bin(tmp_path / "a.bin", [good] * 2), tokenizer=llama3)
    assert {"double-bos", "inner-bos", "no-bos"}.isdisjoint(codes(report))
    rows = [good, [bos, *good], [*good, *good], good[1:]]
    report = examine(write_bin(tmp_path / "b.bin", rows), tokenizer=llama3)
    assert (codes(report)["double-bos"], found(report, "double-bos").rows) == ("error", (1,))
    assert (codes(report)["inner-bos"], found(report, "inner-bos").rows) == ("warn", (2,))
    assert (codes(report)["no-bos"], found(report, "no-bos").count) == ("warn", 1)


def test_ids_that_do_not_belong_are_found(
    tmp_path: Path, llama3: Path, specials: dict[str, int]
) -> None:
    bos, end = specials["<|begin_of_text|>"], specials["<|eot_id|>"]
    size = Vocabulary(llama3).size
    good = [bos, 300, 301, end]
    odd = next(
        number
        for name, number in specials.items()
        if not Vocabulary(llama3).expected[number] and Vocabulary(llama3).control[number]
    )
    rows = [good, [bos, 300, odd, odd, end], [bos, size + 4, end]]
    report = examine(write_bin(tmp_path / "a.bin", rows), tokenizer=llama3)
    assert codes(report)["foreign-id"] == "error"
    assert found(report, "foreign-id").rows == (2,)
    assert codes(report)["stray-control"] == "warn"
    assert found(report, "stray-control").detail["tokens"] == {str(odd): 2}
    report = examine(write_bin(tmp_path / "b.bin", [good]), tokenizer=llama3)
    assert {"foreign-id", "stray-control"}.isdisjoint(codes(report))


def test_another_tokenizer_than_that_of_the_file_is_an_error(tmp_path: Path, llama3: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", plain(3))
    prepare([source], TOKENIZER, tmp_path / "a.bin")
    assert "other-tokenizer" not in codes(examine(tmp_path / "a.bin", tokenizer=TOKENIZER))
    assert codes(examine(tmp_path / "a.bin", tokenizer=llama3))["other-tokenizer"] == "error"


def test_nothing_learned_is_found(tmp_path: Path) -> None:
    good, silent = ([5, 6, END], [False, True, True]), ([5, 6, 7], [True, False, False])
    report = examine(write_bin(tmp_path / "a.bin", [good, silent]), tokenizer=TOKENIZER)
    assert codes(report)["nothing-learned"] == "warn"  # its first token has nothing before it
    report = examine(write_bin(tmp_path / "b.bin", [silent]), tokenizer=TOKENIZER)
    assert codes(report)["nothing-learned"] == "error"
    report = examine(write_bin(tmp_path / "c.bin", [good]), tokenizer=TOKENIZER)
    assert "nothing-learned" not in codes(report)


def test_what_a_limit_would_cut_is_counted(tmp_path: Path) -> None:
    rows = [*plain(4), chat("word " * 60, "yes, it is"), chat("one", "word " * 60)]
    report = report_on(tmp_path, rows, max_seq_len=50)
    finding = found(report, "over-max-seq-len")
    assert (finding.severity, finding.rows, finding.lines) == ("warn", (4, 5), (5, 6))
    assert found(report, "prompt-over-max-seq-len").rows == (4,)
    assert report.max_seq_len is not None
    assert report.max_seq_len["rows_over"] == 2
    assert report.max_seq_len["tokens_cut"] == finding.detail["tokens_cut"] > 0
    assert codes(report_on(tmp_path, rows)).get("over-max-seq-len") is None


def test_rows_of_the_evaluation_file_are_looked_for(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", plain(10))
    other = [*plain(14)[10:], plain()[3], chat("what comes after 5 PLEASE tell me",
                                               "after 5 comes 6 as ever")]  # fmt: skip
    held = write_jsonl(tmp_path / "held.jsonl", other)
    for path, output in ((train, "t.bin"), (held, "t_eval.bin")):
        prepare([path], TOKENIZER, tmp_path / output)
    report = examine(tmp_path / "t.bin", tokenizer=TOKENIZER)
    assert report.evaluation == tmp_path / "t_eval.bin"
    finding = found(report, "eval-overlap")
    assert (finding.count, finding.detail["exact"]) == (2, 1)
    assert finding.detail["eval_rows"] == [4, 5]
    by_lines = examine(train, tokenizer=TOKENIZER, eval_path=held)
    assert found(by_lines, "eval-overlap").detail["eval_lines"] == [5, 6]
    clean = write_jsonl(tmp_path / "clean.jsonl", plain(14)[10:])
    assert "eval-overlap" not in codes(examine(train, tokenizer=TOKENIZER, eval_path=clean))


def test_equal_answers_in_a_token_file_are_an_error(tmp_path: Path) -> None:
    # Our own writer refuses such a file; somebody else's may not.
    rows = [[1, 30, 40, END], [1, 30, 41, END], [1, 30, 40, END], [1, 30, 40, END]]
    learned = [([*row], [False, False, True, True]) for row in rows]
    path = write_bin(tmp_path / "a.bin", learned)
    manifest = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**manifest, "kind": "preference"}))
    try:
        report = examine(path, tokenizer=TOKENIZER)
    except DataError as error:
        assert "pair" in str(error)  # refused when opened: as good
        return
    assert codes(report)["answers-equal"] == "error"
    assert found(report, "answers-equal").rows == (2,)


def test_an_unknown_token_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    make_tokenizer(folder, "llama")
    vocabulary = Vocabulary(folder)
    unknown, end = vocabulary.unknown, vocabulary.eos
    assert unknown is not None
    assert end is not None
    report = examine(
        write_bin(tmp_path / "a.bin", [[1, 300, unknown, 301, end], [1, 300, 301, end]]),
        tokenizer=folder,
    )
    assert found(report, "unknown-token").rows == (0,)
    report = examine(write_bin(tmp_path / "b.bin", [[1, 300, 301, end]]), tokenizer=folder)
    assert "unknown-token" not in codes(report)


def test_the_character_nul_is_found(tmp_path: Path) -> None:
    nul = int(Tokenizer.load(TOKENIZER).encode("\0")[0])
    report = examine(write_bin(tmp_path / "a.bin", [[30, nul, 40, END]]), tokenizer=TOKENIZER)
    assert codes(report)["nul"] == "warn"
    report = examine(write_bin(tmp_path / "b.bin", [[30, 31, 40, END]]), tokenizer=TOKENIZER)
    assert "nul" not in codes(report)


def test_tools_are_read_and_looked_through(tmp_path: Path) -> None:
    folder = chat_samples.make_home(tmp_path / "t", "qwen", format_info("qwen").jinja)
    tool = {"type": "function", "function": {"name": "f", "description": "<|channel|> here"}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "[INST]"}}}
    row = {
        "tools": [tool],
        "messages": [
            {"role": "user", "content": "What time is it now?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "10:15", "name": "f"},
            {"role": "assistant", "content": "It is a quarter past ten."},
        ],
    }
    source = write_jsonl(tmp_path / "rows.jsonl", [row, *plain(20)])
    report = examine(source, tokenizer=folder, chat_format="qwen")
    assert report.skipped == 0, [finding.message for finding in report.findings]
    assert report.roles["tool"] == 1
    assert set(found(report, "control-text").detail["markers"]) == {"<|channel|>", "[INST]"}


def test_a_stream_is_reported_by_its_documents(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"Some text {i}."} for i in range(5)])
    prepare([source], TOKENIZER, tmp_path / "s.bin", stream=True)
    report = examine(tmp_path / "s.bin", tokenizer=TOKENIZER)
    assert (report.kind, report.rows) == ("stream", 5)
    assert report.tokens_in_loss == report.tokens - 1
    assert codes(report) == {}
    np.arange(300, 400, dtype="<u4").tofile(tmp_path / "bare.bin")
    report = examine(tmp_path / "bare.bin", tokenizer=TOKENIZER)
    assert codes(report) == {"no-end-token": "warn"}
    report = examine(tmp_path / "bare.bin")
    assert (report.rows, report.tokens, codes(report)) == (1, 100, {})
    assert "text, end tokens, control tokens" in report.unchecked


def test_a_token_file_and_its_jsonl_say_the_same(tmp_path: Path) -> None:
    source = SAMPLE / "abbey_conversations.jsonl"
    prepare([source], TOKENIZER, tmp_path / "a.bin")
    one = examine(source, tokenizer=TOKENIZER).to_dict()
    two = examine(tmp_path / "a.bin", tokenizer=TOKENIZER).to_dict()
    for key in ("rows", "tokens", "tokens_in_loss", "lengths", "loss_by_row", "answers_by_row"):
        assert one[key] == two[key]
    assert one["findings"] == two["findings"]


def test_a_set_of_files_is_one_file(tmp_path: Path) -> None:
    rows = [([1, 30 + i, 40, END], [False, False, True, True]) for i in range(20)]
    native_set.join_later(tmp_path / "set.bin")
    names = [f"set-{at:05}-of-00003.bin" for at in range(3)]
    for name, some in zip(names, (rows[:7], rows[7:7], [*rows[7:], rows[3]]), strict=True):
        write_bin(tmp_path / name, some, vocab_size=2048)
    native_set.join(tmp_path / "set.bin", names)
    whole = examine(write_bin(tmp_path / "one.bin", [*rows, rows[3]]), tokenizer=TOKENIZER)
    for path in (tmp_path / "set.bin", tmp_path / "set.json"):
        report = examine(path, tokenizer=TOKENIZER)
        one, two = whole.to_dict(), report.to_dict()
        for key in ("file", "seconds"):
            del one[key], two[key]
        assert one == two
        assert found(report, "duplicates").rows == (3, 20)


def test_nothing_is_left_of_a_file_without_a_usable_line(tmp_path: Path) -> None:
    report = report_on(tmp_path, ["{", "[]"])
    assert codes(report) == {"unusable-lines": "error", "no-rows": "error"}
    assert report.to_dict()["lengths"]["max"] is None
    assert "<html" in render_page(report)


def test_what_cannot_be_reported_on_is_refused_by_name(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", plain(2))
    with pytest.raises(ArgumentError, match=r"rows.jsonl holds text: name a folder"):
        examine(source)
    with pytest.raises(MissingFileError, match=r"gone.jsonl: no such file"):
        examine(tmp_path / "gone.jsonl", tokenizer=TOKENIZER)
    with pytest.raises(FileAccessError, match="is a folder"):
        examine(tmp_path, tokenizer=TOKENIZER)
    with pytest.raises(ArgumentError, match=r"row is 9; .* has 2, counted from 0"):
        examine(source, tokenizer=TOKENIZER, show=[9])
    with pytest.raises(ArgumentError, match="max_seq_len is 1"):
        examine(source, tokenizer=TOKENIZER, max_seq_len=1)
    with pytest.raises(MissingFileError, match=r"no.bin"):
        examine(source, tokenizer=TOKENIZER, eval_path=tmp_path / "no.bin")


# ---- counts against a plain loop ----

Row = tuple[list[int], list[bool]]
IDS = st.integers(0, 12)


@st.composite
def files(draw: st.DrawFn) -> list[Row]:
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(IDS, min_size=1, max_size=30))
        rows.append((ids, [draw(st.booleans()) for _ in ids]))
    return rows


@dataclass
class Naive:
    """What `measure` says of one row, from its definition."""

    trained: int = 0
    prompt: int = NOT_LEARNED
    tail: int = 0
    stretches: int = 0
    ended: int = 0
    open_end: bool = False
    double: int = 0
    inner: int = 0
    stray: int = 0
    letters: bytes = field(default=b"")


def naive(ids: list[int], mask: list[bool], vocabulary: Vocabulary) -> Naive:
    said = Naive()
    learned = [False, *mask[1:]]
    said.trained = sum(learned)
    at = [index for index, kept in enumerate(learned) if kept]
    said.prompt = at[0] if at else NOT_LEARNED
    said.tail = len(ids) - 1 - at[-1] if at else len(ids)
    for index in at:
        if index + 1 < len(ids) and learned[index + 1]:
            continue
        said.stretches += 1
        run = itertools.takewhile(lambda i: learned[i], range(index, -1, -1))
        if any(vocabulary.stops[ids[i]] for i in itertools.islice(run, 3)):
            said.ended += 1
        elif index == len(ids) - 1:
            said.open_end = True
    for index, token in enumerate(ids[1:], start=1):
        if token == vocabulary.bos:
            said.double += index == 1
            said.inner += index > 1
    said.stray = sum(bool(vocabulary.control[t] and not vocabulary.expected[t]) for t in ids)
    text = b"".join(vocabulary.bytes_of(t) for t in ids if not vocabulary.control[t])
    said.letters = bytes(b for b in text.lower() if b >= 0x80 or chr(b).isalnum())
    return said


@pytest.fixture(scope="module")
def vocabulary(llama3: Path) -> Vocabulary:
    """A tokenizer whose first ids are control tokens: a few stray, two that end a turn, a begin."""
    return Vocabulary(llama3)


@settings(deadline=None, max_examples=150)
@given(rows=files(), block=st.sampled_from([1, 3, 7, 64]), shift=st.integers(0, 250))
def test_measures_are_those_of_a_plain_loop(
    vocabulary: Vocabulary, rows: list[Row], block: int, shift: int
) -> None:
    # Small numbers are control tokens, the rest somewhere among bytes and words.
    control = np.flatnonzero(vocabulary.control).tolist()
    pool = [*control[:8], *range(shift + 10, shift + 40)][:13]
    rows = [([pool[t % len(pool)] for t in ids], mask) for ids, mask in rows]
    ids = np.array([token for row, _ in rows for token in row], dtype=np.uint32)
    mask = [kept for _, row in rows for kept in row]
    bits = Bits([np.packbits(mask, bitorder="little")], [0, ids.size])
    starts = np.cumsum([0, *(len(row) for row, _ in rows)])
    made = measure(Ids([ids], [0, ids.size]), starts, bits, vocabulary, block=block)
    wanted = [naive(row, kept, vocabulary) for row, kept in rows]
    assert made.lengths.tolist() == [len(row) for row, _ in rows]
    for name in ("trained", "prompt", "tail", "stretches", "ended", "open_end"):
        assert getattr(made, name).tolist() == [getattr(one, name) for one in wanted], name
    assert made.letters.tolist() == [len(one.letters) for one in wanted]
    assert made.double_begin.count == sum(one.double for one in wanted)
    assert made.inner_begin.count == sum(one.inner for one in wanted)
    assert made.inner_begin.rows == sum(one.inner > 0 for one in wanted)
    assert made.inner_begin.first == [at for at, one in enumerate(wanted) if one.inner][:8]
    assert made.stray.count == sum(one.stray for one in wanted)
    counted = Counter(ids.tolist())
    assert made.id_counts[pool].tolist() == [counted[token] for token in pool]
    # Equal hashes mean equal rows, equal prompts, equal letters.
    prompts = [
        tuple(row[: min(one.prompt, len(row))]) for (row, _), one in zip(rows, wanted, strict=True)
    ]
    texts = [one.letters for one in wanted]
    for hashes, things in (
        (made.hashes, [tuple(row) for row, _ in rows]),
        (made.prompt_hashes, prompts),
        (made.letter_hashes, texts),
    ):
        for a in range(len(rows)):
            for b in range(a):
                assert (hashes[a] == hashes[b]) == (things[a] == things[b])


@given(st.lists(st.integers(0, 5), max_size=30))
def test_repeats_are_those_of_a_plain_loop(values: list[int]) -> None:
    made = repeats(np.array(values, dtype=np.uint64), np.arange(len(values)))
    groups = {v: [i for i, w in enumerate(values) if w == v] for v in values}
    large = [group for group in groups.values() if len(group) > 1]
    assert made.extra == sum(len(group) - 1 for group in large)
    assert made.groups == len(large)
    assert sorted(made.largest) == sorted(group[:8] for group in large)


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=20))
def test_powers_are_powers(exponents: list[int]) -> None:
    from abi_train.data.report.vocabulary import HASH_BASE

    wanted = [pow(HASH_BASE, exponent, 1 << 64) for exponent in exponents]
    assert powers(np.array(exponents)).tolist() == wanted


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_a_histogram_counts_every_length_once(lengths: list[int]) -> None:
    made = length_histogram(np.array(lengths))
    assert sum(made.counts) == len(lengths)
    assert len(made.labels()) == len(made.counts) == len(made.edges) - 1 <= 24
    for low, high, count in zip(made.edges, made.edges[1:], made.counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)
    shares = share_histogram(np.array(lengths) // 2, np.array(lengths))
    assert sum(shares.counts) == len(lengths)


SCRIPTS = {
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "CJK": "Han",
    "DEVANAGARI": "Devanagari",
    "HIRAGANA": "Kana",
    "HANGUL": "Hangul",
    "GREEK": "Greek",
    "ARABIC": "Arabic",
}
LETTERS = "abzéñßœЖжёд中文字नमस्ते한글ひらなαβγعرب"
CHARACTERS = st.sampled_from([*LETTERS, *" .,;{}()0123456789\n\t—…🙂<|>[]"])


@given(st.lists(st.text(CHARACTERS, max_size=40), min_size=1, max_size=5))
def test_scripts_are_counted_letter_by_letter(texts: list[str]) -> None:
    data = [text.encode() for text in texts]
    facts = TextFacts()
    add_text(facts, b"".join(data), np.cumsum([0, *map(len, data)]), 0)
    wanted: Counter[str] = Counter()
    for letter in "".join(texts):
        name = unicodedata.name(letter, "").split()[0:1]
        if letter == "🙂":
            wanted["emoji"] += 1
        elif name and name[0] in SCRIPTS and unicodedata.category(letter)[0] in "LM":
            wanted[SCRIPTS[name[0]]] += 1
    assert +facts.scripts == +wanted
    assert facts.rows == len(texts)


MARKER_LIST = [marker for markers in MARKERS.values() for marker in markers]


@given(
    st.lists(
        st.lists(st.sampled_from([*MARKER_LIST, "<|", "|>", "[", "INST", "s>", " a "]), max_size=6),
        min_size=1,
        max_size=5,
    )
)
def test_markers_are_found_wherever_they_stand(parts: list[list[str]]) -> None:
    texts = ["".join(part) for part in parts]
    data = [text.encode() + b"\n" for text in texts]
    facts = TextFacts()
    add_text(facts, b"".join(data), np.cumsum([0, *map(len, data)]), 100)
    pattern = re.compile("|".join(re.escape(m) for m in sorted(MARKER_LIST, reverse=True)))
    hits = [pattern.findall(text) for text in texts]
    assert facts.markers.count == sum(map(len, hits))
    assert facts.markers.first == [100 + at for at, found in enumerate(hits) if found]
    wanted = Counter(marker for row in hits for marker in row)
    assert {marker: n for (_, marker), n in facts.marker_counts.items()} == dict(wanted)


def test_large_files_are_read_in_parts_and_the_report_says_so(tmp_path: Path) -> None:
    rows = [[30 + i % 50, 40, 50, 60, END] for i in range(2000)]
    path = write_bin(tmp_path / "a.bin", rows)
    report = examine(path, tokenizer=TOKENIZER, text_budget=500)
    assert 0.02 < report.text_share < 0.2
    assert "not read" in report.unchecked["text"]
    assert "text" not in examine(path, tokenizer=TOKENIZER).unchecked


# ---- what is shown ----


def test_text_that_steers_a_terminal_is_spelled_out() -> None:
    hostile = "\x1b[31m\x07\u202e\u2066\u200b\ufeff\x9b\r\U000e0041 ok\n\tü🙂"
    shown = visible(hostile)
    assert shown == ("\\x1b[31m\\x07\\u202e\\u2066\\u200b\\ufeff\\x9b\\x0d\\U000e0041 ok\n\tü🙂")
    assert shown.isprintable() or set(shown) & set("\n\t")


class Outline(HTMLParser):
    """The tags of a page, that every one is closed, and what it refers to."""

    VOID = ("meta", "line", "rect", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "xlink:href"):
                self.references.append(str(value))
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "</mark></p></main><img src=x onerror=alert(1)>",
    "\x1b]0;title\x07\x1b[2J",
    "\u202egnp.exe\u2066",
    "'><svg onload='x' & \"",
]


def test_the_page_is_whole_refers_to_nothing_and_runs_nothing(tmp_path: Path) -> None:
    rows = [*plain(5), *[chat(text, f"{text} answered") for text in HOSTILE], HOSTILE[0]]
    source = write_jsonl(tmp_path / "<b>'\"&.jsonl", rows)
    report = examine(source, tokenizer=TOKENIZER, max_seq_len=30, rows=20)
    page = render_page(report)
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    assert outline.references == []
    assert outline.handlers == []
    assert {"script", "img", "link", "iframe"}.isdisjoint(outline.tags)
    assert "url(" not in page
    assert "@import" not in page
    assert outline.tags["article"] >= 10
    assert outline.tags["svg"] >= 4
    assert "lang='en'" in page
    assert page.count("aria-label=") == outline.tags["svg"]
    for character in "\x1b\x07\u202e\u2066":
        assert character not in page
    assert "alert(1)" in outline.text


def test_shown_tokens_put_together_are_the_row(tmp_path: Path) -> None:
    row = chat("Привет, 世界 नमस्ते 🙂?", "Ответ: 你好 — ça va 🙂.")
    example = report_on(tmp_path, [row], show=[0]).examples[0]
    text = "".join(token.text or "" for token in example.tokens)
    assert text == (
        "<|im_start|>user\nПривет, 世界 नमस्ते 🙂?<|im_end|>\n"
        "<|im_start|>assistant\nОтвет: 你好 — ça va 🙂.<|im_end|>\n"
    )
    learned = "".join(token.text or "" for token in example.tokens if token.in_loss)
    assert learned == "Ответ: 你好 — ça va 🙂.<|im_end|>"
    assert (example.row, example.line, example.count) == (0, 1, len(example.tokens))


@pytest.mark.parametrize("name", FORMATS)
def test_sound_chats_of_every_format_give_no_finding_about_tokens(
    tmp_path: Path, name: str
) -> None:
    folder = chat_samples.make_home(tmp_path / "tokenizer", name, format_info(name).jinja)
    rows = [
        turns(f"u: question {i}, is it?", f"a: answer {i}, it is", f"u: and {i}?", f"a: also {i}.")
        for i in range(6)
    ]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = examine(source, tokenizer=folder, chat_format=name)
    assert codes(report) == {}, [finding.message for finding in report.findings]
    prepare([source], folder, tmp_path / "rows.bin", chat_format=name)
    assert codes(examine(tmp_path / "rows.bin", tokenizer=folder)) == {}
