"""Calibration pairs: from questions, pairs and conversations; even in length; reviewed by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_train import sample
from abi_train.cli import main
from abi_train.data import pair_review, provenance
from abi_train.data.pair_builder import Pair, build, content_words
from abi_train.data.pair_files import make_pairs
from abi_train.data.pair_sources import read_file, read_sessions
from abi_train.data.pair_templates import KINDS, MANNERS, Question, wordings
from abi_train.data.sources import Preference, read_rows
from abi_train.errors import ConfigError, DataError, FileAccessError, MissingFileError

QUESTIONS = sample.FOLDER / sample.QUESTIONS
KNOWN = {"question": "What is the capital of France?", "kind": "known", "answers": ["Paris"]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- Wordings ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manner", MANNERS)
def test_every_kind_can_be_answered_in_every_manner(kind: str, manner: str) -> None:
    bare = Question(question="q?", kind=kind, answers=("A fish.",) if "n" in kind[:2] else ())
    if kind in ("known", "trick"):
        bare = Question(question="q?", kind=kind, answers=("A fish.",))
    for wrong in (None, "Rome"):
        found = wordings(bare, manner, wrong=wrong)
        assert found
        for text in found:
            assert "{" not in text and ".." not in text and "None" not in text
            assert text[0].isupper() and text == text.strip()


def test_an_answer_inside_a_sentence_begins_small_unless_it_is_a_name() -> None:
    said = wordings(Question(question="q", kind="known", answers=("A fish",)), "calibrated")
    assert "The answer is a fish." in said and "A fish." in said
    said = wordings(Question(question="q", kind="known", answers=("Paris",)), "calibrated")
    assert "The answer is Paris." in said


# ---- Building ----


def test_pairs_of_the_sample_are_even_in_length_in_every_kind_and_failure() -> None:
    questions, _, _ = read_file(QUESTIONS)
    for seed in (1, 2, 3):
        built = build(questions, seed=seed, failures="both")
        assert len(built.pairs) == 2 * len(questions)
        for key in ("kind", "failure"):
            groups: dict[str, list[int]] = {}
            for pair in built.pairs:
                gap = len(pair.chosen) - len(pair.rejected)
                groups.setdefault(getattr(pair, key), []).append(gap)
            for name, gaps in groups.items():
                share = sum(gap > 0 for gap in gaps) / len(gaps)
                assert 0.4 <= share <= 0.6, (seed, name, share)
                assert abs(sum(gaps) / len(gaps)) < 8, (seed, name)


def test_the_same_seed_gives_the_same_pairs_and_another_gives_others() -> None:
    questions, _, _ = read_file(QUESTIONS)
    first = build(questions, seed=5)
    assert first.rows == build(questions, seed=5).rows
    assert first.rows != build(questions, seed=6).rows
    # Which failure a question is given does not depend on the questions before it.
    tail = {p.prompt[0]["content"]: p.failure for p in build(questions[100:], seed=5).pairs}
    whole = {p.prompt[0]["content"]: p.failure for p in first.pairs}
    assert all(whole[asked] == failure for asked, failure in tail.items())


def test_worse_answers_to_known_questions_are_never_right() -> None:
    questions, _, _ = read_file(QUESTIONS)
    true = {q.question: q.answers for q in questions}
    for pair in build(questions, failures="both").pairs:
        answers = true[pair.prompt[0]["content"]]
        if answers:
            assert answers[0].lower() in pair.chosen.lower()
            if answers[0] != "None":
                assert answers[0] not in pair.rejected
        if pair.failure == "evasive":
            assert not any(word in pair.rejected for word in answers if word != "None")


@pytest.mark.parametrize(
    ("first", "second", "left_out"),
    [
        ("What is 2 + 2?", "what is 2 +  2", "the same question again"),
        ("What's the capital of France?", "What is the capital of France", "nearly the same"),
        ("Can you tell me who wrote Hamlet?", "Who wrote Hamlet?", "nearly the same"),
        ("What is the capital of France?", "What is the capital of Italy?", None),
        ("Is Ben taller than Anna?", "Is Anna taller than Ben?", None),
        ("What is 2 + 2?", "What is 2 + 3?", None),
    ],
)
def test_questions_asked_before_are_left_out(first: str, second: str, left_out: str | None) -> None:
    asked = [Question(question=text, kind="known", answers=("x",)) for text in (first, second)]
    built = build(asked)
    assert len(built.pairs) == (2 if left_out is None else 1)
    assert [reason for reason in built.left_out if left_out and left_out in reason] == [
        *built.left_out
    ]


def test_long_questions_may_differ_in_a_word_but_not_in_a_name_or_number() -> None:
    long = "If a long red train with {} wagons leaves {} early every morning, when does it arrive?"
    other = long.replace("early every", "early each")
    texts = [
        (long.format(12, "Paris"), other.format(12, "Paris"), 1),
        (long.format(12, "Paris"), long.format(13, "Paris"), 2),
        (long.format(12, "Paris"), long.format(12, "Rome"), 2),
    ]
    for first, second, count in texts:
        asked = [Question(question=t, kind="known", answers=("x",)) for t in (first, second)]
        assert len(build(asked).pairs) == count, (first, second)


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_text_has_content_words(text: str) -> None:
    assert content_words(text) == content_words(text.casefold())


# ---- Files ----


def test_rows_are_preference_rows_with_a_side_file_and_nothing_is_overwritten(
    tmp_path: Path,
) -> None:
    source = write(
        tmp_path / "q.jsonl", KNOWN, {**KNOWN, "question": "what is the capital of  FRANCE"}
    )
    side = {"source": "my school", "license": "cc-by-nc-4.0", "commercial_use": False}
    (tmp_path / "q.jsonl.source.json").write_text(json.dumps(side), encoding="utf-8")
    report = make_pairs([source], tmp_path / "p.jsonl")
    assert [type(row) for _, _, row in read_rows([tmp_path / "p.jsonl"])] == [Preference] * 1
    origin = provenance.of_rows([tmp_path / "p.jsonl"])
    assert origin.license == "cc-by-nc-4.0" and origin.commercial_use is False
    assert report.built.left_out.total() == 1
    (tmp_path / "other.jsonl").write_text("mine\n")
    with pytest.raises(FileAccessError, match="exists and was not made by this"):
        make_pairs([source], tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_text() == "mine\n"
    before = (tmp_path / "p.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        make_pairs([write(tmp_path / "bad.jsonl", {"question": 1})], tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_rows_of_truthful_qa_are_questions_and_stay_marked_as_a_test(tmp_path: Path) -> None:
    row = {
        "question": "Do cats have nine lives?",
        "best_answer": "No, cats have one life",
        "correct_answers": ["No, cats have one life", "Cats have one life"],
        "incorrect_answers": ["Yes, cats have nine lives", "Cats have seven lives"],
    }
    report = make_pairs([write(tmp_path / "t.jsonl", row)], tmp_path / "p.jsonl", failures="both")
    assert report.origin.evaluations == ("truthfulqa",)
    assert "do not report those scores" in " ".join(report.origin.notes)
    told = lines(tmp_path / "p.jsonl")
    assert {r["failure"] for r in told} == {"overconfident", "evasive"}
    assert all(r["kind"] == "trick" and "one life" in r["chosen"][0]["content"] for r in told)


def test_pairs_somebody_made_go_along_once(tmp_path: Path) -> None:
    given_ = {"prompt": "How are you?", "chosen": "Well, and you?", "rejected": "Fine."}
    same = {"prompt": "Hm?", "chosen": "x", "rejected": "x "}
    source = write(tmp_path / "g.jsonl", given_, given_, same, KNOWN)
    report = make_pairs([source], tmp_path / "p.jsonl")
    assert report.to_dict()["failures"]["given"] == 1
    assert report.built.left_out == Counter(
        {"the same pair again": 1, "chosen and rejected are the same": 1}
    )


def session(folder: Path, name: str, *turns: tuple[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    values = {
        "id": name,
        "name": name,
        "created_at": 0,
        "updated_at": 0,
        "config": {},
        "messages": [{"role": r, "content": c, "timestamp": 0} for r, c in turns],
    }
    (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")


def test_a_corrected_answer_is_a_pair_and_a_too_sure_one_waits(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    session(
        folder,
        "a",
        ("system", "Be kind."),
        ("user", "Capital of Australia?"),
        ("assistant", "Sydney."),
        ("user", "No, that's wrong."),
        ("assistant", "You are right, it is Canberra."),
        ("user", "Will I win?"),
        ("assistant", "Definitely, 100 %."),
        ("user", "Nice weather."),
        ("assistant", "It is."),
    )
    (folder / "broken.json").write_text("{")
    pairs, damaged = read_sessions(folder)
    assert len(damaged) == 1 and "broken.json: not a recorded session" in damaged[0]
    corrected, sure = pairs
    assert corrected.rejected == "Sydney." and "Canberra" in corrected.chosen
    assert [turn["role"] for turn in corrected.prompt] == ["system", "user"]
    assert corrected.taken and not sure.taken and "100 %" in sure.rejected
    report = make_pairs([], tmp_path / "p.jsonl", sessions=folder, review=tmp_path / "review.md")
    assert len(lines(tmp_path / "p.jsonl")) == 1
    assert report.built.to_dict()["waiting_for_review"] == 1
    assert "recorded conversations" in report.origin.notes[0]
    page = tmp_path / "review.md"
    page.write_text(page.read_text().replace("## [ ]", "## [x]"), encoding="utf-8")
    again = make_pairs([], tmp_path / "p.jsonl", sessions=folder, review=page)
    assert len(lines(tmp_path / "p.jsonl")) == 2 and again.new_in_review == 0
    with pytest.raises(MissingFileError, match="records conversations in"):
        read_sessions(tmp_path / "none")


# ---- Review ----


def test_a_review_is_written_then_followed_and_new_pairs_are_added(tmp_path: Path) -> None:
    page, output = tmp_path / "r.md", tmp_path / "p.jsonl"
    more = {"question": "What is the capital of Italy?", "kind": "known", "answers": ["Rome"]}
    third = {"question": "Who will call tonight?", "kind": "unknowable", "wrong": ["Ben"]}
    source = write(tmp_path / "q.jsonl", KNOWN, more)
    assert make_pairs([source], output, review=page).new_in_review == 2
    first, second = lines(output)
    text = page.read_text(encoding="utf-8").replace("## [x]", "## [ ]", 1)
    better = second["chosen"][0]["content"]
    text = text.replace(f"> {better}\n", "> It is Rome,\n>\n> as far as I know.\n")
    page.write_text(text, encoding="utf-8")
    write(source, KNOWN, more, third)
    report = make_pairs([source], output, review=page)
    assert report.new_in_review == 1
    kept = lines(output)
    assert kept[0]["prompt"] == second["prompt"] != first["prompt"]
    assert kept[0]["chosen"][0]["content"] == "It is Rome,\n\nas far as I know."
    assert len(kept) == 2 and report.built.to_dict()["rejected_in_review"] == 1
    assert page.read_text(encoding="utf-8").startswith(text.rstrip("\n"))
    assert make_pairs([source], output, review=page).new_in_review == 0


def test_a_review_and_the_rows_replace_nothing_that_is_read(tmp_path: Path) -> None:
    source, output = write(tmp_path / "q.jsonl", KNOWN), tmp_path / "p.jsonl"
    side = tmp_path / "q.jsonl.source.json"
    side.write_text('{"source": "me", "license": "mit", "commercial_use": true}')
    text = source.read_bytes()
    notes = tmp_path / "notes.md"
    notes.write_text("# Mine\n\n## [x] is a heading\n")
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "void.md").write_text("")
    for rows, review, error, said in (
        (source, None, ConfigError, "is read"),
        (tmp_path / "link.jsonl", None, (ConfigError, FileAccessError), "is read|not made by"),
        (output, source, ConfigError, "is read as a source"),
        (output, tmp_path / "link.jsonl", ConfigError, "is read as a source"),
        (output, side, ConfigError, "is read as a source"),
        (output, output, ConfigError, "files of their own"),
        (output, tmp_path / "p.jsonl.source.json", ConfigError, "files of their own"),
        (output, notes, DataError, "no heading of a pair"),
        (output, tmp_path / "void.md", DataError, "is no review of pairs"),
    ):
        with pytest.raises(error, match=said):
            make_pairs([source], rows, review=review)
        assert source.read_bytes() == text and not output.exists(), said
    notes.write_text("Mine\n")
    with pytest.raises(DataError, match=r"notes\.md is no review of pairs"):
        make_pairs([source], output, review=notes)
    assert notes.read_text() == "Mine\n" and (tmp_path / "void.md").read_bytes() == b""
    page = tmp_path / "r.md"
    page.write_text(pair_review.HEAD)  # all its pairs are deleted, and come again
    assert make_pairs([source], output, review=page).new_in_review == 1


@given(
    chosen=st.text(min_size=1).filter(lambda t: t.strip()),
    rejected=st.text(min_size=1).filter(lambda t: t.strip()),
    asked=st.text(),
)
@settings(max_examples=80, deadline=None)
def test_any_texts_survive_an_untouched_review(
    tmp_path_factory: pytest.TempPathFactory, chosen: str, rejected: str, asked: str
) -> None:
    pair = Pair(
        prompt=({"role": "user", "content": asked},),
        chosen=chosen,
        rejected=rejected,
        kind="given",
        failure="given",
    )
    from abi_train.data.pair_builder import reviewed

    path = tmp_path_factory.mktemp("review") / "r.md"
    try:
        pair_review.write(path, [pair])
    except UnicodeEncodeError:
        return  # half of a surrogate pair cannot be in a row either
    marks = pair_review.read(path)
    assert set(marks) == {pair.id}
    (back,) = reviewed([pair], marks)
    assert (back.chosen, back.rejected, back.accepted) == (chosen, rejected, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("## [x]", "## [?]"), r"r\.md:6: the mark of pair [0-9a-f]{12} is '\?'"),
        (("## [x] ", "## [x] zz"), r"r\.md:6: .* is no heading of a pair"),
        (("better:\n> Paris.", "better:\n"), r"r\.md:6: pair [0-9a-f]{12} has no better answer"),
    ],
)
def test_a_review_that_cannot_be_read_names_its_line(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    page = tmp_path / "r.md"
    pair = Pair(
        prompt=({"role": "user", "content": "?"},),
        chosen="Paris.",
        rejected="Rome.",
        kind="known",
        failure="evasive",
    )
    pair_review.write(page, [pair])
    text = page.read_text()
    assert change[0] in text
    page.write_text(text.replace(*change))
    with pytest.raises(DataError, match=said):
        pair_review.read(page)
    page.write_text(text + text)
    with pytest.raises(DataError, match="stands here a second time"):
        pair_review.read(page)


# ---- The command ----


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "p.jsonl"
    assert call("data", "pairs", QUESTIONS, "--output", output, "--json", "--limit", 50) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == 50 and sum(told["kinds"].values()) == 50
    assert 0.3 < told["chosen_is_longer"] < 0.7
    assert call("data", "pairs", QUESTIONS, "--output", output) == 0
    shown = capsys.readouterr()
    assert f"{output}: 323 pairs" in shown.out
    assert "the better answer is the longer one in" in shown.err
    assert call("data", "pairs") == 2
    assert call("data", "pairs", QUESTIONS, "--failures", "all") == 2
    assert call("data", "pairs", tmp_path / "none.jsonl", "--output", output) == 1
    assert "none.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe{\x00", "not valid JSON"),
        (b'{"question": "\\ud83d", "kind": "unknowable"}', "half of a surrogate pair"),
        (
            b'{"question": "q", "kind": "known", "answers": "a", "wrong": "b"}',
            "wrong is not a list",
        ),
        (
            b'{"question": "q", "kind": "known", "answers": ["a"], "wrong": ["A"]}',
            "both among answers and wrong",
        ),
        (b'{"question": "q", "kind": "ambiguous", "ask": 3}', "ask is not text"),
        (b'{"chosen": "x"}', "chosen without"),
        (b'{"best_answer": " ", "question": "q"}', "best_answer is empty"),
    ],
)
def test_a_row_that_cannot_be_used_names_its_place(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(b"\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        make_pairs([tmp_path / "q.jsonl"], tmp_path / "p.jsonl")
    assert f"{tmp_path / 'q.jsonl'}:2: " in str(caught.value) and said in str(caught.value)
    assert not (tmp_path / "p.jsonl").exists()


def test_nothing_left_to_write_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    source = write(tmp_path / "q.jsonl", {"prompt": "a", "chosen": "x", "rejected": " x"})
    with pytest.raises(DataError, match="1 x chosen and rejected are the same"):
        make_pairs([source], tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
    with pytest.raises(ConfigError, match="nothing to make pairs of"):
        make_pairs([], tmp_path / "p.jsonl")
    with pytest.raises(ConfigError, match="must end in"):
        make_pairs([source], tmp_path / "p.json")
