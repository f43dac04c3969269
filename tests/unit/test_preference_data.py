"""Pairs of answers: the split and the truncation TRL makes, the same pairs for both engines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import llama3_tokenizer, smollm_tokenizer

from abi_train import TokenizedDataset, TokenizedWriter
from abi_train.data.info import describe
from abi_train.data.prepare import PrepareReport, prepare
from abi_train.data.rows import PreferenceRows, TokenRows
from abi_train.demo import SAMPLE
from abi_train.errors import DataError

USER = {"role": "user", "content": "Will it rain?"}
GOOD = {"role": "assistant", "content": "I can't know. The forecast says maybe."}
BAD = {"role": "assistant", "content": "Yes. Certainly."}
TEXTS = [
    {"prompt": "The quick brown", "chosen": " fox jumps.", "rejected": " dog sleeps all day."},
    {"prompt": "A border inside a wo", "chosen": "rd is learned.", "rejected": "od is not."},
    {"prompt": "Numbers 12", "chosen": "34 and more", "rejected": " and less"},
    {"chosen": "The sky is blue today", "rejected": "The sky is green"},
]
CHATS = [
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": [USER, GOOD, USER], "chosen": [BAD], "rejected": [GOOD]},
]


def run(
    tmp_path: Path, hf: Any, rows: list[dict[str, Any]], **options: Any
) -> tuple[PrepareReport, Path]:
    folder = tmp_path / "tokenizer"
    hf.save_pretrained(folder)
    source, output = tmp_path / "pairs.jsonl", tmp_path / "pairs.bin"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return prepare([source], folder, output, **options), output


def as_trl_makes_them(hf: Any, rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The columns TRL's trainer prepares, by its own code."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    made = trl.DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=hf),
        datasets.Dataset.from_list(rows),
        hf,
        SimpleNamespace(dataset_num_proc=None, max_length=limit, truncation_mode="keep_start"),
        "train",
    )
    return [{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in made]


@pytest.mark.parametrize("limit", [1024, 7])
@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (smollm_tokenizer, TEXTS[:3]),
        (smollm_tokenizer, TEXTS[3:]),
        (llama3_tokenizer, TEXTS[:3]),
        (smollm_tokenizer, CHATS[:1] + CHATS[2:]),
        (smollm_tokenizer, CHATS[1:2]),
        (llama3_tokenizer, CHATS[:1] + CHATS[2:]),
    ],
)
def test_pairs_are_those_of_trl(
    tmp_path: Path, make: Any, rows: list[dict[str, Any]], limit: int
) -> None:
    hf = make()
    report, path = run(tmp_path, hf, rows)
    assert report.train.pairs == len(rows)
    assert report.train.rows == 2 * len(rows)
    with TokenizedDataset.load(path) as data:
        assert data.is_preference
        assert data.verify() == 3
        keys = ("prompt_ids", "chosen_ids", "rejected_ids")
        whole = [
            dict(zip(keys, (part.tolist() for part in data.pair(i)), strict=True))
            for i in range(len(rows))
        ]
        assert whole == as_trl_makes_them(hf, rows, 1024)
        wanted = as_trl_makes_them(hf, rows, limit)
        pairs = PreferenceRows.open(path, batch_size=2, max_seq_len=limit)
        assert [pairs[at] for at in range(len(pairs))] == wanted
        loader = data.micro_batches(len(rows), limit, shuffle=False)
        assert loader.dropped_rows == len(rows) - len(wanted)
        for batch in loader:
            sequences = [pair["prompt_ids"] + pair["chosen_ids"] for pair in wanted]
            sequences += [pair["prompt_ids"] + pair["rejected_ids"] for pair in wanted]
            borders = 2 * [len(pair["prompt_ids"]) for pair in wanted]
            assert batch.input_ids.shape[0] == 2 * len(wanted)
            for row, (ids, border) in enumerate(zip(sequences, borders, strict=True)):
                cut = ids[:limit]
                learned = [i if at >= border else -1 for at, i in enumerate(cut)][1:]
                padding = batch.input_ids.shape[1] - len(cut)
                assert batch.input_ids[row].tolist() == cut + [0] * padding
                assert batch.targets[row].tolist() == learned + [-1] * (padding + 1)


def test_the_sample_pairs_become_a_data_set(tmp_path: Path) -> None:
    report = prepare(
        [SAMPLE / "abbey_preferences.jsonl"],
        SAMPLE / "tokenizer",
        tmp_path / "pairs.bin",
        eval_fraction=0.1,
    )
    assert report.evaluation is not None
    assert report.train.pairs + report.evaluation.pairs == 62
    facts = describe(tmp_path / "pairs.bin", verify=True)
    assert facts["kind"] == "pairs"
    assert facts["pairs"] == report.train.pairs


def test_both_readers_follow_one_order_over_the_pairs_that_are_left(tmp_path: Path) -> None:
    path = tmp_path / "pairs.bin"
    with TokenizedWriter(path, preference=True) as writer:
        for pair in range(9):
            prompt = [1] * (5 if pair in (2, 6) else 2)
            for answer in (10 + pair, 30 + pair):
                writer.append([*prompt, answer], [False] * len(prompt) + [True])
        writer.finish()
    pairs = PreferenceRows.open(path, batch_size=2, max_seq_len=5)
    assert pairs.kept.tolist() == [0, 1, 3, 4, 5, 7, 8]
    with TokenizedDataset.load(path) as data:
        loader = data.micro_batches(2, 5, seed=3)
        order = loader.order(1)
        loader.seek(1)
        seen = [int(first) for b in loader for first in b.input_ids[: len(b.input_ids) // 2, 2]]
    assert seen == [10 + pair for pair in order.tolist()]
    at = [pairs.kept.tolist().index(pair) for pair in order.tolist()]
    batches = pairs.batches(np.array(at))
    assert [pairs[k]["chosen_ids"][0] for batch in batches for k in batch] == seen


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b"}, "chosen without rejected: a pair needs both"),
        ({"prompt": "a", "rejected": "b"}, "rejected without chosen: a pair needs both"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": [GOOD], "rejected": "b"}, "must both be text or both lists"),
        ({"prompt": [USER], "chosen": "b", "rejected": "c"}, "prompt is a list of messages"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "chosen is empty"),
        ({"prompt": "a", "chosen": [USER], "rejected": [BAD]}, "no assistant turn"),
        ({"chosen": "yes", "rejected": "no"}, "begin with nothing in common"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "begin with nothing in common"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "are the same"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        run(tmp_path, smollm_tokenizer(), [TEXTS[0], row])
    assert "pairs.jsonl:2: " in str(caught.value)
    report, _ = run(tmp_path, smollm_tokenizer(), [TEXTS[0], row], skip_invalid=True)
    assert (report.train.pairs, report.skipped.total) == (1, 1)


def test_pairs_and_rows_do_not_mix(tmp_path: Path) -> None:
    for rows in ([TEXTS[0], {"text": "alone"}], [{"text": "alone"}, TEXTS[0]]):
        with pytest.raises(DataError, match=r"jsonl:2: rows with chosen and rejected do not mix"):
            run(tmp_path, smollm_tokenizer(), rows)
    with pytest.raises(DataError, match="cannot be a stream"):
        run(tmp_path, smollm_tokenizer(), TEXTS[:1], stream=True)


def test_a_cut_drops_pairs_without_an_answer_and_answers_that_became_the_same(
    tmp_path: Path,
) -> None:
    hf = smollm_tokenizer()
    long = "The quick brown fox jumps over the lazy dog. " * 3
    rows = [
        {"prompt": "Go on:", "chosen": long + "yes", "rejected": long + "no"},
        {"prompt": long, "chosen": "yes", "rejected": "no"},
        {"prompt": "Go on:", "chosen": "one", "rejected": long},
    ]
    report, path = run(tmp_path, hf, rows, max_seq_len=10)
    assert (report.train.pairs, report.dropped) == (1, 2)
    with TokenizedDataset.load(path) as data:
        assert data.row(1).size == 10


def test_each_kind_of_data_says_which_objective_it_is_for(tmp_path: Path) -> None:
    _, path = run(tmp_path, smollm_tokenizer(), TEXTS[:2])
    with pytest.raises(DataError, match="preference data"):
        TokenRows.open(path, batch_size=1, max_seq_len=8)
    rows = tmp_path / "rows.bin"
    with TokenizedWriter(rows) as writer:
        writer.append([1, 2, 3])
        writer.finish()
    with pytest.raises(DataError, match="holds no pairs"):
        PreferenceRows.open(rows, batch_size=1, max_seq_len=8)
    with TokenizedDataset.load(rows) as data, pytest.raises(TypeError, match="no preference data"):
        data.pair(0)


def test_two_rows_that_are_no_pair_are_refused_by_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "pairs.bin"
    with TokenizedWriter(path, preference=True) as writer:
        for ids in ([1, 2, 3], [1, 2, 4], [5, 6, 7], [5, 6, 7]):
            writer.append(ids, [False, True, True])
        writer.finish()
    with pytest.raises(DataError, match=r"pair 1 \(rows 2 and 3\)"):
        PreferenceRows.open(path, batch_size=1, max_seq_len=8)
    with (
        TokenizedDataset.load(path) as data,
        pytest.raises(DataError, match=r"pair 1 \(rows 2 and 3\).*are the same"),
    ):
        data.micro_batches(1, 8)
