"""The public data sets: rows of the published shape in, canonical rows and a side file out."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import published_sets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_sets import SHAPES, published, write_jsonl, write_parquet

from abi_train.data import provenance
from abi_train.data.sets import SETS, fetch, find
from abi_train.data.sets.base import draw
from abi_train.data.sets.daily_dialog import repaired
from abi_train.data.sets.emotions import (
    ABBEY,
    DAILY_DIALOG,
    EMPATHETIC_DIALOGUES,
    GO_EMOTIONS,
    abbey,
)
from abi_train.data.sets.empathetic_dialogues import cleaned
from abi_train.data.sets.fetch import Fetched
from abi_train.data.sources import parse_row
from abi_train.errors import (
    AbiTrainError,
    ConfigError,
    DataError,
    FileAccessError,
    MissingFileError,
)


def turns(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


def get(folder: Path, name: str, config: str, **choices: Any) -> tuple[list[Any], Fetched]:
    """The rows of a set, read from a Parquet file of its published shape."""
    file = published(folder, name, config)
    report = fetch(name, folder / "rows.jsonl", config=config, source=file, **choices)
    return read(report.path), report


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def side(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(provenance.side_file(path).read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize(("name", "config"), sorted(SHAPES))
def test_every_row_is_one_that_prepare_reads_and_every_other_is_counted(
    tmp_path: Path, name: str, config: str
) -> None:
    rows, report = get(tmp_path, name, config)
    assert rows and len(rows) == report.rows
    for line in report.path.read_bytes().splitlines():
        parse_row(line)
    assert report.read == len(SHAPES[name, config][0])
    told = side(report.path)
    assert told["rows"] == report.rows and told["left_out"] == dict(report.left_out)
    assert told["license"] == find(name).license
    assert told["commercial_use"] is find(name).commercial_use
    first = report.path.read_bytes(), report.side_file.read_bytes()
    again = fetch(name, report.path, config=config, source=published(tmp_path, name, config))
    assert (again.path.read_bytes(), again.side_file.read_bytes()) == first
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "rows.jsonl",
        "rows.jsonl.source.json",
    ]


def test_utterances_become_conversations_in_order(tmp_path: Path) -> None:
    rows, report = get(tmp_path, "empathetic-dialogues", "default")
    assert rows == [
        {
            "messages": turns(
                "I heard steps behind me, in the dark.",
                "That sounds scary! Did you run?",
                "I did, for 1,000 metres",
                "I am glad you are home.",
            ),
            "emotion": "anxious",
            "label": "terrified",
        },
        {
            "messages": turns(
                "My sister helped me move.", "What did she do? I hope, you thanked her."
            ),
            "emotion": "grateful",
            "label": "grateful",
        },
        {
            "messages": turns("I ran the whole way.", "And you trained for it."),
            "emotion": "enthusiastic",
            "label": "proud",
        },
    ]
    assert report.left_out == {
        "utterance given twice": 1,
        "utterance is empty": 1,
        "fewer than two turns": 2,
        "context is none of the 32 emotions": 1,
        "more than two speakers": 1,
    }
    assert report.unused_columns == ("prompt", "selfeval", "tags")
    assert report.license == "CC-BY-NC-4.0" and report.commercial_use is False


def test_the_order_of_records_does_not_matter_to_a_conversation(tmp_path: Path) -> None:
    rows, _ = get(tmp_path, "empathetic-dialogues", "default")
    mixed = sorted(published_sets.EMPATHETIC, key=lambda one: draw(3, one["utterance"]))
    file = write_jsonl(tmp_path / "mixed.jsonl", mixed)
    again = fetch("empathetic-dialogues", tmp_path / "again.jsonl", source=file)
    assert sorted(map(str, read(again.path))) == sorted(map(str, rows))


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("Well_comma_ yes", "Well, yes"),
        ("Well _comma_ yes_comma_no", "Well, yes, no"),
        ("10_comma_000 and 2_comma_3", "10,000 and 2, 3"),
        ('"Half a quote', "Half a quote"),
        ('He said "no', "He said no"),
        ('"All of it"', "All of it"),
        ('"Yes" and "no"', '"Yes" and "no"'),
        ('He said ""no""', 'He said "no"'),
        ("| a | b |", "a | b"),
        ("_comma_", ""),
        ("Héllo\xa0 you", "Héllo you"),
    ],
)
def test_stored_text_is_cleaned(stored: str, typed: str) -> None:
    assert cleaned(stored) == typed


def test_a_published_csv_knows_no_quotes(tmp_path: Path) -> None:
    columns = list(published_sets.EMPATHETIC_FEATURES)
    lines = [",".join(columns)]
    lines += [",".join(str(row[name]) for name in columns) for row in published_sets.EMPATHETIC]
    lines[1] += ",one field more,and another"
    file = tmp_path / "train.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = fetch("empathetic-dialogues", tmp_path / "rows.jsonl", source=file)
    assert read(report.path) == get(tmp_path / "other", "empathetic-dialogues", "default")[0]


def test_a_dialogue_is_written_as_one_would_write_it(tmp_path: Path) -> None:
    rows, report = get(tmp_path, "daily-dialog", "default")
    first = turns(
        "Say, Jim, shall we meet at 9:30?",
        "I’m afraid I can't. I've a train at 10 p.m.",
        "That's a pity! It costs $5 (or less).",
        "You don’t say.",
    )
    first[0]["emotion"], first[2]["emotion"] = "neutral", "excited"
    last = turns("One. Two.", "Three.")
    last[0]["emotion"] = "frustrated"
    assert rows[0] == {"messages": first}
    assert rows[1]["messages"][0] == {"role": "user", "content": "Hello!", "emotion": "excited"}
    assert rows[2] == {"messages": last}
    assert report.left_out == {
        "dialog, act and emotion differ in length": 1,
        "fewer than two turns": 1,
    }


@pytest.mark.parametrize(
    ("split", "whole"),
    [
        ("I don ' t know . ", "I don't know."),
        ("We ' re late , aren ’ t we ?", "We're late, aren’t we?"),
        ("the boys ' room", "the boys ' room"),
        ("At ten o ' clock , ma ’ am ?", "At ten o'clock, ma’am?"),
        ("The U . S . A . is large .", "The U.S.A. is large."),
        ("1 , 000 or 1 , 2", "1,000 or 1, 2"),
        ("It is 3 . 5 % ; more !", "It is 3.5%; more!"),
        ('He said " go away " to me .', 'He said "go away" to me.'),
        ("Wait ... what ?", "Wait... what?"),
        ("Yes,I do.Really ?", "Yes, I do. Really?"),
        ("already whole, isn't it?", "already whole, isn't it?"),
        ("", ""),
    ],
)
def test_split_words_are_put_together(split: str, whole: str) -> None:
    assert repaired(split) == whole
    assert repaired(whole) == whole


@given(st.text(alphabet="abcI 1 0.,:;!?'’\"()$%-", max_size=40))
def test_repairing_loses_and_moves_no_letter(text: str) -> None:
    def letters(text: str) -> str:
        return "".join(text.split())

    once = repaired(text)
    assert letters(once) == letters(text)
    assert "  " not in once and once == once.strip()


@given(st.text(max_size=60))
def test_cleaned_text_has_no_border_and_no_code_for_a_comma(text: str) -> None:
    once = cleaned(text.replace("_comma_", "") + "_comma_" + text)
    assert once == once.strip() and "|" not in (once[:1], once[-1:])
    assert "_comma_" not in cleaned("a_comma_b_comma_ c")


def test_a_comment_asks_for_its_emotion_and_does_not_tell_it(tmp_path: Path) -> None:
    rows, report = get(tmp_path, "go-emotions", "simplified")
    assert [row["messages"][1]["content"] for row in rows] == [
        "grateful",
        "frustrated",
        "disappointed",
        "neutral",
    ]
    assert rows[0]["messages"][0]["content"].endswith("\n\nThanks for the ride!")
    assert all(set(row) == {"messages"} for row in rows)
    assert all(word in rows[0]["messages"][0]["content"] for word in ABBEY)
    assert report.left_out == {
        "labels of several emotions": 1,
        "text is empty": 1,
        "labels is empty": 1,
    }
    own, _ = get(tmp_path, "go-emotions", "simplified", options={"words": "own"})
    assert [row["messages"][1]["content"] for row in own] == [
        "gratitude",
        "disappointment",
        "neutral",
    ]


def test_raters_vote_on_a_comment(tmp_path: Path) -> None:
    rows, report = get(tmp_path, "go-emotions", "raw")
    assert [row["messages"][1]["content"] for row in rows] == ["curious", "neutral"]
    assert report.left_out == {"the rater found it unclear": 1, "labels of several emotions": 1}


def test_calculator_marks_and_results(tmp_path: Path) -> None:
    rows, report = get(tmp_path, "gsm8k", "main")
    assert rows[0]["messages"][1]["content"] == (
        "She gave 48/2 = 24 pears away.\nSo she has 48-24 = 24 pears.\nThe answer is 24."
    )
    assert rows[1]["messages"] == turns(
        "A house costs $1,000 and a door $80. What is the sum?",
        "The sum is $1000+80=$1080.\nThe answer is 1,080.",
    )
    assert report.left_out == {
        "no #### and result at the end of the answer": 1,
        "question is empty": 1,
        "no step before the result": 1,
    }
    kept, _ = get(tmp_path, "gsm8k", "main", options={"marks": "keep", "final": "hashes"})
    assert kept[0]["messages"][1]["content"] == published_sets.GSM[0]["answer"]
    bare, _ = get(tmp_path, "gsm8k", "main", options={"final": "drop"})
    assert bare[1]["messages"][1]["content"] == "The sum is $1000+80=$1080."


def test_the_takedown_of_math_is_said_wherever_it_goes(tmp_path: Path) -> None:
    _, report = get(tmp_path, "math", "algebra")
    told = side(report.path)
    assert "taken down in January 2025" in told["notes"][0]
    assert told["license"] is None and told["commercial_use"] is None
    assert find("lighteval/MATH") is find("math")
    with pytest.raises(ConfigError, match=r"taken down.*Use EleutherAI/hendrycks_math"):
        fetch("math", tmp_path / "x.jsonl", hub_id="lighteval/MATH")


def test_facts_come_before_the_answer_they_carry(tmp_path: Path) -> None:
    rows, report = get(tmp_path, "hotpot-qa", "distractor")
    assert rows == [
        {
            "messages": turns(
                "Aa: The Aa is 40 km long. It is cold.\n\n"
                "Bode: The Bode rises in the Harz. It is 169 km long.\n\n"
                "Which river is longer, the Aa or the Bode?",
                "Aa: The Aa is 40 km long.\nBode: It is 169 km long.\nSo the answer is the Bode.",
            )
        }
    ]
    assert report.left_out == {
        "supporting facts are not in the context": 1,
        "answer is empty": 1,
    }
    everything, _ = get(tmp_path, "hotpot-qa", "distractor", options={"context": "all"})
    assert "Harz: The Harz is a mountain range." in everything[0]["messages"][0]["content"]
    nothing, _ = get(tmp_path, "hotpot-qa", "distractor", options={"context": "none"})
    assert nothing[0]["messages"][0]["content"] == "Which river is longer, the Aa or the Bode?"


def test_a_true_answer_stands_against_a_false_one(tmp_path: Path) -> None:
    best = [{"role": "assistant", "content": "It passes through you"}]
    every, report = get(tmp_path, "truthful-qa", "generation", options={"pairs": "all"})
    assert [row["rejected"][0]["content"] for row in every] == [
        "A tree grows in you",
        "You fall ill",
    ]
    assert all(row["chosen"] == best for row in every)
    assert report.left_out == {"no false answer": 1}
    drawn = {
        get(tmp_path, "truthful-qa", "generation", seed=seed)[0][0]["rejected"][0]["content"]
        for seed in range(12)
    }
    assert drawn == {"A tree grows in you", "You fall ill"}
    told = side(report.path)
    assert told["evaluations"] == ["truthfulqa"]
    assert any("do not report those scores" in note for note in told["notes"])
    rows, report = get(tmp_path, "truthful-qa", "multiple_choice", options={"pairs": "all"})
    assert [row["rejected"][0]["content"] for row in rows] == ["A tree grows.", "You fall ill."]
    assert report.left_out == {"no true answer": 1}


def test_pairs_of_ones_own_become_turns(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "mine.jsonl", published_sets.PREFERENCES)
    report = fetch("preferences", tmp_path / "rows.jsonl", source=file)
    assert read(report.path) == [
        {
            "prompt": turns("Is it safe?"),
            "chosen": [{"role": "assistant", "content": "I would have to see it first."}],
            "rejected": [{"role": "assistant", "content": "Yes."}],
        },
        published_sets.PREFERENCES[1],
        {
            "prompt": turns("Mixed?"),
            "chosen": [{"role": "assistant", "content": "A"}],
            "rejected": [{"role": "assistant", "content": "B"}],
        },
        {
            "prompt": turns("Whole?"),
            "chosen": [{"role": "assistant", "content": "Y"}],
            "rejected": [{"role": "assistant", "content": "N"}],
        },
    ]
    assert report.left_out == {
        "chosen and rejected are the same": 1,
        "prompt is empty": 1,
        "prompt: a turn whose role is not system, user, assistant": 1,
    }
    assert report.commercial_use is None and report.license is None
    owned = fetch("preferences", tmp_path / "rows.jsonl", source=file, license_note="own")
    assert owned.commercial_use is True and side(owned.path)["license"] == "own"
    plain = fetch("preferences", tmp_path / "rows.jsonl", source=file, options={"shape": "text"})
    assert read(plain.path)[0] == published_sets.PREFERENCES[0]
    assert plain.left_out["texts and turns in one pair"] == 1
    with pytest.raises(ConfigError, match="name it with --from"):
        fetch("preferences", tmp_path / "rows.jsonl")


def test_a_limit_draws_and_a_larger_one_holds_the_smaller(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "answer": f"Step {n}.\n#### {n}"} for n in range(200)]
    file = write_jsonl(tmp_path / "train.jsonl", rows)

    def lines(**choices: Any) -> list[str]:
        report = fetch("gsm8k", tmp_path / "rows.jsonl", source=file, **choices)
        assert report.rows + report.not_drawn == 200
        return report.path.read_text(encoding="utf-8").splitlines()

    every, some = lines(), lines(limit=20)
    assert len(every) == 200 and lines(limit=500) == every
    assert len(some) == 20 and set(some) < set(lines(limit=60))
    assert some == [line for line in every if line in set(some)]
    assert some != every[:20] and lines(limit=20, seed=7) != some


# ---- where records come from ----


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_any_form_of_file_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    wanted, _ = get(tmp_path / "parquet", "go-emotions", "simplified")
    rows = published_sets.GO
    file = tmp_path / f"train.{ending}"
    if ending == "jsonl":
        write_jsonl(file, rows)
    elif ending == "json":
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as out:
            table = csv.DictWriter(out, ["id", "text", "labels"])
            table.writeheader()
            table.writerows({**row, "labels": json.dumps(row["labels"])} for row in rows)
    report = fetch("go-emotions", tmp_path / "rows.jsonl", source=file)
    assert read(report.path) == wanted


def test_a_folder_is_read_by_split_and_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    features = published_sets.GSM_FEATURES
    one, two = ([row] for row in published_sets.GSM[:2])
    write_parquet(folder / "main" / "train-00000-of-00002.parquet", one, features)
    write_parquet(folder / "main" / "train-00001-of-00002.parquet", two, features)
    write_parquet(folder / "main" / "test-00000-of-00001.parquet", one, features)
    write_parquet(
        folder / "socratic" / "train-00000-of-00001.parquet", published_sets.GSM_SOCRATIC, features
    )
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "README.md").write_text("# GSM8K\n")

    def count(**choices: Any) -> int:
        return fetch("gsm8k", tmp_path / "rows.jsonl", source=folder, **choices).rows

    assert (count(), count(split="test"), count(config="socratic")) == (2, 1, 1)
    with pytest.raises(DataError, match="no file of the split test; there are train"):
        count(config="socratic", split="test")
    with pytest.raises(DataError, match="no file in it ends in"):
        (tmp_path / "empty").mkdir()
        fetch("gsm8k", tmp_path / "rows.jsonl", source=tmp_path / "empty")


def test_subjects_of_a_folder_are_told_apart_and_together(tmp_path: Path) -> None:
    folder = tmp_path / "math"
    for at, subject in enumerate(("algebra", "intermediate_algebra", "prealgebra")):
        row = {**published_sets.MATH_ROWS[0], "problem": f"{subject} {at}"}
        file = folder / subject / "train-00000-of-00001.parquet"
        write_parquet(file, [row], published_sets.MATH_FEATURES)

    def problems(config: str) -> list[str]:
        report = fetch("math", tmp_path / "rows.jsonl", source=folder, config=config)
        return [row["messages"][0]["content"] for row in read(report.path)]

    assert problems("algebra") == ["algebra 0"]
    assert problems("all") == ["algebra 0", "intermediate_algebra 1", "prealgebra 2"]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps goes below the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("own_cache")
def test_a_repository_is_loaded_as_from_the_hub(tmp_path: Path) -> None:
    """A folder laid out as the Hub lays out a set, through `datasets`."""
    repository = tmp_path / "repository"
    head = ["---", "configs:"]
    for config in ("simplified", "raw"):
        file = repository / config / "train-00000-of-00001.parquet"
        write_parquet(file, *SHAPES["go-emotions", config])
        head += [f"- config_name: {config}", "  data_files:"]
        head += ["  - split: train", f"    path: {config}/train-*"]
    (repository / "README.md").write_text("\n".join([*head, "---", ""]))

    def get(**choices: Any) -> Fetched:
        hub_id = str(repository)
        return fetch("go-emotions", tmp_path / "rows.jsonl", hub_id=hub_id, **choices)

    report = get()
    assert report.rows == 4 and report.left_out["text is empty"] == 1
    assert side(report.path)["dataset"] == "google-research-datasets/go_emotions"
    assert side(report.path)["read_from"] == str(repository)
    assert get(config="raw").rows == 2
    with pytest.raises(ConfigError, match="does not have what was asked for"):
        get(split="validation")


@pytest.mark.usefixtures("own_cache")
def test_the_parquet_branch_of_a_repository_is_read_either_way(tmp_path: Path) -> None:
    rows, features = SHAPES["daily-dialog", "default"]
    copy = tmp_path / "copy"
    for at, split in enumerate(("train", "validation", "test")):
        file = copy / "default" / split / "0000.parquet"
        write_parquet(file, rows[: len(rows) - at], features)

    def count(split: str, **choices: Any) -> int:
        return fetch("daily-dialog", tmp_path / "rows.jsonl", split=split, **choices).read

    for at, split in enumerate(("train", "validation", "test")):
        assert count(split, source=copy) == len(rows) - at
        assert count(split, hub_id=str(copy)) == len(rows) - at


def test_the_authors_own_files_give_the_same_rows(tmp_path: Path) -> None:
    wanted, _ = get(tmp_path / "hub", "hotpot-qa", "distractor")
    file = tmp_path / "hotpot_train_v1.1.json"
    authors = [hotpot_of_the_authors(row) for row in published_sets.HOTPOT]
    file.write_text(json.dumps(authors), encoding="utf-8")
    report = fetch("hotpot-qa", tmp_path / "rows.jsonl", source=file)
    assert read(report.path) == wanted and report.read == 3
    authors[0]["supporting_facts"][0].append("more")
    file.write_text(json.dumps(authors), encoding="utf-8")
    with pytest.raises(DataError, match="must be a list of a list of text, a whole number"):
        fetch("hotpot-qa", tmp_path / "rows.jsonl", source=file)

    wanted, _ = get(tmp_path / "hub", "go-emotions", "simplified")
    lines = [
        "\t".join([row["text"], ",".join(map(str, row["labels"])), row["id"]])
        for row in published_sets.GO
    ]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = fetch("go-emotions", tmp_path / "rows.jsonl", source=tmp_path / "train.tsv")
    assert read(report.path) == wanted

    wanted, _ = get(tmp_path / "hub", "truthful-qa", "generation", options={"pairs": "all"})
    with (tmp_path / "TruthfulQA.csv").open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        answers = ["Best Answer", "Correct Answers", "Incorrect Answers"]
        table.writerow(["Type", "Category", "Question", *answers, "Source"])
        for row in published_sets.TRUTHFUL:
            lists = ["; ".join(row[name]) for name in ("correct_answers", "incorrect_answers")]
            first = [row[name] for name in ("type", "category", "question", "best_answer")]
            table.writerow([*first, *lists, row["source"]])
    csv_file = tmp_path / "TruthfulQA.csv"
    options = {"pairs": "all"}
    report = fetch("truthful-qa", tmp_path / "rows.jsonl", source=csv_file, options=options)
    assert read(report.path) == wanted


@pytest.mark.usefixtures("own_cache")
def test_a_copy_with_whole_conversations_gives_the_same_rows(tmp_path: Path) -> None:
    features = {
        "conv_id": "string",
        "situation": "string",
        "emotion": "string",
        "conversations": [{"content": "string", "role": "string"}],
    }
    wanted, _ = get(tmp_path / "hub", "empathetic-dialogues", "default")
    rows = [
        {
            "conv_id": f"hit:{at}_conv:{at}",
            "situation": "It happened_comma_ once.",
            "emotion": row["label"],
            "conversations": row["messages"],
        }
        for at, row in enumerate(wanted)
    ]
    rows[0]["conversations"] = [*wanted[0]["messages"], {"role": "user", "content": "Bye."}]
    copy = tmp_path / "copy"
    (copy / "data").mkdir(parents=True)
    for split in ("train", "valid"):
        write_parquet(copy / "data" / f"{split}-00000-of-00001.parquet", rows, features)
    for choices in ({"source": copy}, {"source": copy, "split": "validation"}):
        report = fetch("empathetic-dialogues", tmp_path / "rows.jsonl", **choices)
        assert read(report.path) == wanted
        assert report.license == "CC-BY-NC-4.0", "a copy gives no more than its source"
    report = fetch("empathetic-dialogues", tmp_path / "rows.jsonl", hub_id=str(copy))
    assert read(report.path) == wanted


def test_a_copy_is_asked_for_its_own_name_of_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[str] = []

    def answer(*_: Any, split: str) -> Any:
        asked.append(split)
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", answer)
    for split in ("validation", "test"):
        with pytest.raises(FileAccessError):
            fetch(
                "empathetic-dialogues",
                tmp_path / "rows.jsonl",
                split=split,
                hub_id="Estwld/empathetic_dialogues_llm",
            )
    assert asked == ["valid", "test"]


def hotpot_of_the_authors(row: dict[str, Any]) -> dict[str, Any]:
    facts, context = row["supporting_facts"], row["context"]
    return {
        "_id": row["id"],
        **{name: row[name] for name in ("question", "answer", "type", "level")},
        "supporting_facts": [
            list(pair) for pair in zip(facts["title"], facts["sent_id"], strict=True)
        ],
        "context": [
            list(pair) for pair in zip(context["title"], context["sentences"], strict=True)
        ],
    }


def test_a_file_for_each_problem_in_folders_by_split_and_subject(tmp_path: Path) -> None:
    for split, subject, name in (
        ("train", "algebra", "1.json"),
        ("train", "algebra", "2.json"),
        ("train", "prealgebra", "1.json"),
        ("test", "algebra", "7.json"),
    ):
        file = tmp_path / "MATH" / split / subject / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(published_sets.MATH_ROWS[0], indent=1), encoding="utf-8")

    def count(**choices: Any) -> int:
        return fetch("math", tmp_path / "rows.jsonl", source=tmp_path / "MATH", **choices).rows

    assert (count(), count(config="algebra"), count(split="test")) == (3, 2, 1)


def test_a_repository_whose_labels_changed_is_refused(tmp_path: Path) -> None:
    features = dict(published_sets.GO_FEATURES)
    names = features["labels"][0]
    features["labels"] = [(*names[:5], "calm", *names[5:])]
    file = write_parquet(tmp_path / "train.parquet", published_sets.GO, features)
    with pytest.raises(DataError, match="5 in column labels stands for calm, expected caring"):
        fetch("go-emotions", tmp_path / "rows.jsonl", source=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.parquet"]


@pytest.mark.parametrize(("name", "config"), sorted(SHAPES))
def test_a_column_that_is_missing_or_of_another_type_is_named(
    tmp_path: Path, name: str, config: str
) -> None:
    rows, _ = SHAPES[name, config]
    for column in find(name).columns[config]:
        gone = [{key: row[key] for key in row if key != column} for row in rows]
        file = write_jsonl(tmp_path / "gone.jsonl", gone)
        with pytest.raises(DataError, match=f"no column {column}; found .*docs/datasets.md"):
            fetch(name, tmp_path / "rows.jsonl", config=config, source=file)
        broken = [{**row, column: {"strange": [1.5]}} for row in rows]
        file = write_jsonl(tmp_path / "broken.jsonl", broken)
        with pytest.raises(DataError, match=f"broken.jsonl:1: column {column} is .*must be"):
            fetch(name, tmp_path / "rows.jsonl", config=config, source=file)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a.jsonl", b'{"question": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", b'{"question": \n', "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'["question"]\n', "a.jsonl:1: not an object"),
        ("a.jsonl", b"\n", "no record in it"),
        ("a.json", b"[1]", "record 1: not an object"),
        ("a.json", b"", "not valid JSON"),
        ("a.json", b"[" * 100000, "not valid JSON"),
        ("a.csv", b"", "no line with the names"),
        ("a.csv", b"question,answer\na,b,c\n", "a.csv:2: more fields"),
        ("a.csv", b'question,answer\n"a,b\n', "not valid CSV"),
        ("a.parquet", b"PAR1 no", "not a Parquet file"),
        ("a.txt", b"x", "cannot tell what it holds"),
        ("a.jsonl", b'{"question": "Q", "answer": "A"}\n', "no row is left; left out: 1 x no ####"),
    ],
)
def test_a_file_that_is_no_such_set_is_refused_with_a_reason(
    tmp_path: Path, file: str, text: bytes, said: str
) -> None:
    (tmp_path / file).write_bytes(text)
    with pytest.raises(DataError, match=said):
        fetch("gsm8k", tmp_path / "rows.jsonl", source=tmp_path / file)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_what_the_set_does_not_have_is_said_before_anything_is_read(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    asked: list[tuple[str, dict[str, Any]]] = [
        ("has no split 'dev'; it has train, test", {"split": "dev"}),
        ("has no configuration 'x'; it has main, socratic", {"config": "x"}),
        ("has no option 'tone'; it has marks, final", {"options": {"tone": "x"}}),
        ("marks is 'x'; it must be one of remove, keep", {"options": {"marks": "x"}}),
        ("limit is 0", {"limit": 0}),
        ("is under MIT; leave out --license", {"license_note": "own"}),
        ("leave out --id and --revision", {"source": rows, "revision": "main"}),
    ]
    for said, choices in asked:
        with pytest.raises(ConfigError, match=said):
            fetch("gsm8k", rows, **choices)
    with pytest.raises(ConfigError, match=r"must end in \.jsonl"):
        fetch("gsm8k", tmp_path / "rows.json")
    with pytest.raises(ConfigError, match="known are empathetic-dialogues"):
        fetch("gsm9k", rows)
    with pytest.raises(MissingFileError, match="no such file or folder"):
        fetch("gsm8k", rows, source=tmp_path / "none")
    rows.write_text("mine\n")
    with pytest.raises(FileAccessError, match="was not made by this"):
        fetch("gsm8k", rows, source=tmp_path)
    assert rows.read_text() == "mine\n"


def test_a_failure_leaves_the_rows_of_before(tmp_path: Path) -> None:
    _, report = get(tmp_path, "gsm8k", "main")
    before = report.path.read_bytes(), report.side_file.read_bytes()
    bad = [*published_sets.GSM[:1], {"question": 3, "answer": "x"}]
    with pytest.raises(DataError):
        fetch("gsm8k", report.path, source=write_jsonl(tmp_path / "bad.jsonl", bad))
    assert (report.path.read_bytes(), report.side_file.read_bytes()) == before


def test_a_disk_that_fills_leaves_the_rows_of_before_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = get(tmp_path, "gsm8k", "main")
    before = report.path.read_bytes(), report.side_file.read_bytes()
    names = sorted(tmp_path.iterdir())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    source = published(tmp_path, "gsm8k", "socratic")
    with pytest.raises(FileAccessError, match=r"rows.jsonl: cannot be written \(No space left"):
        fetch("gsm8k", report.path, source=source, config="socratic")
    assert (report.path.read_bytes(), report.side_file.read_bytes()) == before
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == [
        path for path in names if path.is_file()
    ]


def test_without_the_hub_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom abi_train.cli import main\n"
        "main(['data', 'get', sys.argv[1], '--output', sys.argv[2]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "gsm8k", str(tmp_path / "rows.jsonl")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "openai/gsm8k: the Hub cannot be reached; check the network" in done.stderr
    assert "data get SET --from FOLDER" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "text", "wanted", "said"),
    [
        (
            RuntimeError,
            "Dataset scripts are no longer supported, but found x.py",
            DataError,
            "add --revision refs/convert/parquet",
        ),
        (ValueError, "Unknown split \"dev\". Should be one of ['train'].", ConfigError, "dev"),
        (ValueError, "BuilderConfig 'x' not found. Available: ['main']", ConfigError, "Available"),
        (ConnectionError, "no route", FileAccessError, "cannot be reached"),
        (KeyError, "strange", DataError, "KeyError: 'strange'"),
        (TimeoutError, "too slow", FileAccessError, "cannot be reached"),
        (ValueError, "Revision 'x' doesn't exist for dataset", ConfigError, "no such revision"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    text: str,
    wanted: type[AbiTrainError],
    said: str,
) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise kind(text)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(wanted, match="openai/gsm8k") as caught:
        fetch("gsm8k", tmp_path / "rows.jsonl")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_is_not_called_a_missing_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/file")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileAccessError, match="/cache/file: No space left on device; free space"):
        fetch("gsm8k", tmp_path / "rows.jsonl")


def test_the_hub_is_asked_for_the_parquet_branch_of_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[Any] = []
    real = datasets.Dataset.from_list(
        published_sets.DAILY,
        features=datasets.Features(published_sets.feature(published_sets.DAILY_FEATURES)),
    )
    url = f"hf://datasets/li2017dailydialog/daily_dialog@{'ab' * 20}/default/train/0000.parquet"
    real.info.download_checksums = {url: {}}

    def answer(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return real

    monkeypatch.setattr(datasets, "load_dataset", answer)
    report = fetch("daily_dialog", tmp_path / "rows.jsonl")
    assert asked == [
        (
            ("li2017dailydialog/daily_dialog", "default"),
            {"split": "train", "revision": "refs/convert/parquet"},
        )
    ]
    assert report.rows == 3 and side(report.path)["revision"] == "ab" * 20
    asked.clear()
    fetch("daily_dialog", tmp_path / "rows.jsonl", hub_id="OpenRL/daily_dialog", revision="main")
    assert asked == [(("OpenRL/daily_dialog", None), {"split": "train", "revision": "main"})]


# ---- the tables ----


def test_each_label_of_each_set_has_a_word_of_abbey_and_a_reason() -> None:
    tables = (EMPATHETIC_DIALOGUES, GO_EMOTIONS, DAILY_DIALOG)
    assert [len(table) for table in tables] == [32, 28, 7]
    assert tuple(GO_EMOTIONS) == tuple(published_sets.LABELS.split())
    for table in tables:
        for label, (word, reason) in table.items():
            assert word in ABBEY and reason
            assert abbey(label) == word, "a label means the same in every set"
    assert len(ABBEY) == 14


def test_names_and_ids_of_the_guide_lead_to_the_sets() -> None:
    for known in (
        "facebook/empathetic_dialogues",
        "daily_dialog",
        "go_emotions",
        "openai/gsm8k",
        "lighteval/MATH",
        "hotpot_qa",
        "truthful_qa",
        "DailyDialog",
        "preferences",
    ):
        assert find(known) in SETS
    assert len({data_set.name for data_set in SETS}) == len(SETS)


def test_importing_the_sets_touches_no_library_of_the_hub() -> None:
    script = (
        "import sys, abi_train.data.sets\n"
        "print(sorted({'datasets', 'huggingface_hub', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"
