"""Tasks, rows and scores of evaluation, with a runner whose likelihoods are known."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_sets import published

from abi_train import Tokenizer, evaluate, sample
from abi_train.cli import main
from abi_train.data.pair_templates import ABSTENTIONS, Question
from abi_train.data.sets import fetch_set
from abi_train.errors import (
    ConfigError,
    DataError,
    EngineError,
    FileAccessError,
    FormatError,
    MissingFileError,
    NumericsError,
)
from abi_train.evaluate import answers, calibration, emotion, harness, metrics, perplexity, rows
from abi_train.evaluate.scorer import Scorer

EMOTIONS = emotion.LABELS


class Parrot:
    """A runner that finds texts likely by a rule, and says what it is told to."""

    engine = "parrot"

    def __init__(self, tokenizer: Tokenizer, *, context: int = 256) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.vocab_size = tokenizer.vocab_size
        self.likely: dict[str, float] = {}
        """Log-probability of a continuation that holds this text; -20 for any other."""
        self.says: dict[str, str] = {}
        """Answer to a prompt that holds this text."""
        self.ended = "stop_id"
        self.asked: list[str] = []

    def log_probs(self, wanted: Sequence[tuple[Any, int]]) -> list[Any]:
        found = []
        for ids, first in wanted:
            text = self.tokenizer.decode(ids[first:], continues=True)
            self.asked.append(text)
            total = next((v for k, v in self.likely.items() if k == text), -20.0)
            count = ids.size - first
            found.append((np.full(count, total / count), np.zeros(count, dtype=bool)))
        return found

    def answer(self, prompt: Any, stops: Sequence[int], most: int) -> tuple[list[int], str]:
        text = self.tokenizer.decode(prompt)
        said = next((v for k, v in self.says.items() if k in text), "")
        return [int(i) for i in self.tokenizer.encode(said)][:most], self.ended

    def close(self) -> None:
        pass


@pytest.fixture
def parrot() -> Any:
    with Tokenizer.load(sample.TOKENIZER) as tokenizer:
        runner = Parrot(tokenizer)
        yield runner, Scorer(runner, tokenizer, chat_format=None)


def chat(question: str, answer: str, **more: Any) -> rows.ChatItem:
    return rows.ChatItem(
        place="x.jsonl:1", turns=[{"role": "user", "content": question}], answer=answer, **more
    )


# ---- Numbers ----


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8 + 4 = 12\n#### 12", "12"),
        ("#### 3\nwait\n#### 1,200.50 euros, or 7", "1200.50"),
        ("It costs $1,000.", "1000"),
        ("First 3, then -4.5", "-4.5"),
        ("about 16.7.", "16.7"),
        ("#### none, but 5 before", "5"),
        ("no number here", None),
        ("", None),
    ],
)
def test_the_result_is_behind_the_marks_or_the_last_number(text: str, number: str | None) -> None:
    assert metrics.final_number(text) == (None if number is None else Decimal(number))


@given(
    st.lists(st.tuples(st.floats(0, 1, allow_nan=False), st.booleans()), min_size=1, max_size=60)
)
def test_calibration_error_is_its_definition(answers_: list[tuple[float, bool]]) -> None:
    confidences = [c for c, _ in answers_]
    correct = [r for _, r in answers_]
    bins = metrics.calibration_bins(confidences, correct)
    assert sum(one["count"] for one in bins) == len(answers_)
    expected = 0.0
    for at in range(10):
        inside = [(c, r) for c, r in answers_ if min(int(c * 10), 9) == at]
        if inside:
            gap = abs(sum(r for _, r in inside) - sum(c for c, _ in inside)) / len(answers_)
            expected += gap
    assert metrics.calibration_error(bins) == pytest.approx(expected)
    brier = metrics.brier(confidences, correct)
    assert brier == pytest.approx(np.mean((np.array(confidences) - np.array(correct)) ** 2))


def test_a_sure_and_right_model_has_no_calibration_error_and_a_sure_and_wrong_one_all() -> None:
    assert metrics.calibration_error(metrics.calibration_bins([1.0, 1.0], [True, True])) == 0
    assert metrics.calibration_error(metrics.calibration_bins([1.0, 1.0], [False, False])) == 1
    assert metrics.calibration_error(metrics.calibration_bins([], [])) is None


def test_f1_is_the_mean_over_labels_that_occur() -> None:
    table = metrics.confusion("abc", "aabb", "abbb")
    assert table == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    # a: precision 1, recall 1/2; b: precision 2/3, recall 1; c never occurs.
    assert metrics.macro_f1(table) == pytest.approx((2 / 3 + 4 / 5) / 2)


@given(st.lists(st.floats(-800, 5), min_size=1, max_size=8))
def test_sums_of_logarithms_neither_overflow_nor_lose_the_largest(values: list[float]) -> None:
    assert sum(metrics.softmax(values)) == pytest.approx(1)
    shifted = [v - max(values) for v in values]
    expected = max(values) + math.log(sum(map(math.exp, shifted)))
    assert metrics.log_sum(values) == pytest.approx(expected)


# ---- Tasks on a model whose likelihoods are known ----


def test_the_likeliest_label_is_the_emotion_given(parrot: Any) -> None:
    runner, scorer = parrot
    runner.likely = {"playful": -1.0, "anxious": -2.0}
    items = [chat("Haha!", "playful"), chat("I can't sleep.", "anxious"), chat("Hm", "Neutral.")]
    scores, details = emotion.evaluate(scorer, items)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["rows"] == 3
    table = np.array(details["confusion"])
    assert table.sum() == 3 and table[:, EMOTIONS.index("playful")].sum() == 3
    assert [row["wanted"] for row in details["wrong"]] == ["anxious", "neutral"]
    assert set(runner.asked) == set(EMOTIONS)


def test_labels_of_public_sets_count_as_abbeys_and_marked_rows_are_asked_about(
    parrot: Any,
) -> None:
    runner, scorer = parrot
    runner.likely = {"grateful": -1.0}
    marked = chat("You came!", "I am glad to be here.", emotion="grateful")
    scores, _ = emotion.evaluate(scorer, [chat("Thanks!", "gratitude"), marked])
    assert scores["accuracy"] == 1


def test_an_answer_that_is_no_emotion_is_refused_with_its_row(parrot: Any) -> None:
    with pytest.raises(DataError, match=r"x\.jsonl:1: 'bored' is none of the emotions neutral"):
        emotion.evaluate(parrot[1], [chat("Yawn", "bored")])


def test_results_are_compared_as_numbers(parrot: Any) -> None:
    runner, scorer = parrot
    runner.says = {"one": "1 + 1 = 2\n#### 2", "two": "It is 1,200.0", "three": "Who knows"}
    items = [chat("one", "#### 2"), chat("two", "1200"), chat("three", "The answer is 3.")]
    scores, details = answers.evaluate(scorer, items)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["marked"] == pytest.approx(1 / 3)
    assert scores["no_number"] == pytest.approx(1 / 3)
    assert scores["cut_off"] == 0
    assert details["wrong"][0]["wanted"] == "3" and details["wrong"][0]["given"] is None
    runner.ended = "length"
    assert answers.evaluate(scorer, items)[0]["cut_off"] == 1


def test_a_row_whose_answer_has_no_number_is_refused(parrot: Any) -> None:
    with pytest.raises(DataError, match=r"x\.jsonl:1: no number in the answer 'many'"):
        answers.evaluate(parrot[1], [chat("How many?", "many")])


KNOWN = Question(question="Capital of France?", kind="known", answers=("Paris",), wrong=("Rome",))
NOBODY = Question(question="What will I dream?", kind="unknowable", wrong=("A horse",))
WHICH = Question(question="How long does it take?", kind="ambiguous", wrong=("Two hours",))


def test_doubt_takes_from_the_confidence_in_an_answer(parrot: Any) -> None:
    runner, scorer = parrot
    sure = {"Paris": -0.1, "Rome": -4.0, "A horse": -0.1}
    runner.likely = dict(sure)
    overconfident, _ = calibration.evaluate(scorer, [KNOWN, NOBODY])
    assert overconfident["accuracy_of_choice"] == 1
    assert overconfident["calibration_error"] == pytest.approx(0.5, abs=0.02)
    runner.likely = {**sure, "A horse": -6.0, ABSTENTIONS[0]: -0.1}
    runner.likely["Paris"] = 4.0  # against the same doubt
    calibrated, details = calibration.evaluate(scorer, [KNOWN, NOBODY])
    assert calibrated["calibration_error"] < 0.05
    assert calibrated["brier"] < overconfident["brier"]
    assert details["scored"] == 2


def test_what_it_says_is_told_from_what_it_declines(parrot: Any) -> None:
    runner, scorer = parrot
    runner.says = {"France": "Paris.", "dream": "I don't know.", "take": "Where do you go?"}
    good, _ = calibration.evaluate(scorer, [KNOWN, NOBODY, WHICH])
    assert good["answers_known"] == good["accuracy_known"] == good["abstains_unknowable"] == 1
    assert good["accuracy_when_answering"] == good["asks_ambiguous"] == 1
    runner.says = {"France": "I'm not sure.", "dream": "A horse, surely.", "take": "Two hours."}
    bad, details = calibration.evaluate(scorer, [KNOWN, NOBODY, WHICH])
    assert bad["answers_known"] == bad["accuracy_known"] == bad["abstains_unknowable"] == 0
    assert bad["asks_ambiguous"] == 0
    assert "accuracy_when_answering" not in bad  # nothing known was answered
    assert [row["kind"] for row in details["wrong"]] == ["known", "unknowable", "ambiguous"]


@pytest.mark.parametrize(
    ("text", "no"),
    [
        ("I can’t know that. Nobody can.", True),
        ("That depends. Where does it go?", True),
        ("No one can predict it.", True),
        ("I am not sure about it", True),
        ("I'm unable to say", True),
        ("Paris.", False),
        ("You know the answer: Paris.", False),
        ("The knot is tight.", False),
    ],
)
def test_declining_is_heard_in_words(text: str, no: bool) -> None:
    assert calibration.declines(text) is no


def test_an_answer_counts_as_whole_words_only() -> None:
    assert calibration.names("It is PARIS!", ["Paris"])
    assert not calibration.names("A parisian one", ["Paris"])
    assert not calibration.names("anything", [" . "])


# ---- Rows and tasks that are wrong ----


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["emotions"], "'emotions' is no task; known are emotion, .* did you mean emotion"),
        (["perplexity"], "task perplexity needs perplexity:FILE"),
        ([], "no task to evaluate"),
        (["answers:rows.txt"], "the rows must be a .jsonl file, or set:NAME"),
        (["emotion:set:nope"], "'nope' is no data set known here"),
    ],
)
def test_a_wrong_task_is_refused_before_a_model_is_opened(
    tmp_path: Path, tasks: list[str], said: str
) -> None:
    (tmp_path / "no.gguf").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=said):
        evaluate.run(tmp_path / "no.gguf", tasks)


@pytest.mark.parametrize(
    ("task", "line", "said"),
    [
        ("emotion", "", "no rows; an evaluation needs at least one"),
        ("emotion", '{"text": "plain"}', ":1: no chat with an answer at its end"),
        ("answers", '{"instruction": "x"}', ":1: instruction without output"),
        ("calibration", "", "no rows; a question is a line as"),
        ("calibration", '{"question": "x"}', ":1: kind is None; it must be one of known"),
        (
            "calibration",
            '{"question": "x", "kind": "known"}',
            ":1: a question of the kind known without answers",
        ),
        (
            "calibration",
            '{"question": "x", "kind": "unknowable", "answers": ["y"]}',
            "answers to a question of the kind unknowable",
        ),
        ("calibration", "[1]", ":1: not an object"),
        ("calibration", "{", ":1: not valid JSON"),
    ],
)
def test_rows_that_are_no_test_are_refused_with_their_line(
    tmp_path: Path, task: str, line: str, said: str
) -> None:
    (tmp_path / "no.gguf").write_bytes(b"not a model")
    (tmp_path / "rows.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        evaluate.run(tmp_path / "no.gguf", [f"{task}:{tmp_path / 'rows.jsonl'}"])
    assert said in str(caught.value)


def test_a_missing_model_a_file_that_is_none_and_an_unknown_engine_are_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(MissingFileError, match="no such file or folder"):
        evaluate.run(tmp_path / "missing", ["emotion"])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FormatError, match="neither a"):
        evaluate.run(tmp_path / "a.txt", ["emotion"])
    with pytest.raises(ConfigError, match="engine is 'jax'; it must be one of auto, native"):
        evaluate.run(tmp_path / "a.txt", ["emotion"], engine="jax")


def test_a_prompt_that_leaves_no_room_is_named_with_its_row(parrot: Any) -> None:
    runner, scorer = parrot
    runner.context = 20
    long = [chat("word " * 50, "anxious")]
    with pytest.raises(DataError, match=r"x\.jsonl:1: \d+ ids with its answer, .* looks back 20"):
        emotion.evaluate(scorer, long)
    with pytest.raises(DataError, match=r"x\.jsonl:1: \d+ ids with its answer"):
        answers.evaluate(scorer, [chat("word " * 50, "7")])


def test_likelihoods_that_are_not_numbers_are_refused(parrot: Any) -> None:
    runner, scorer = parrot
    runner.likely = {"playful": math.nan}
    with pytest.raises(NumericsError, match="the model's logits are not numbers"):
        emotion.evaluate(scorer, [chat("Haha", "playful")])


def test_the_trained_on_test_is_refused_and_marked_when_it_is_wanted(tmp_path: Path) -> None:
    pairs = tmp_path / "truthful.jsonl"
    row = {"question": "Are cats dogs?", "best_answer": "No", "incorrect_answers": ["Yes"]}
    pairs.write_text(json.dumps(row) + "\n", encoding="utf-8")
    side = {"source": "TruthfulQA", "evaluations": ["truthfulqa"]}
    (tmp_path / "truthful.jsonl.source.json").write_text(json.dumps(side), encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    card = {"abi_train": {"data": [{"source": "TruthfulQA", "evaluations": ["truthfulqa"]}]}}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="was trained on the test data of truthfulqa"):
        evaluate.run(folder, [f"calibration:{pairs}"])
    with pytest.raises(FormatError, match="neither a model folder"):  # past the refusal
        evaluate.run(folder, [f"calibration:{pairs}"], even_if_seen=True)


def test_lm_eval_that_is_not_there_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else found(name, *a)
    )
    (tmp_path / "no.gguf").write_bytes(b"x")
    with pytest.raises(EngineError, match=r"pip install 'abi-train\[eval\]'"):
        evaluate.run(tmp_path / "no.gguf", ["lm-eval:gsm8k"])


@pytest.mark.parametrize(
    ("task", "name", "config"),
    [
        ("emotion", "go-emotions", "simplified"),
        ("answers", "gsm8k", "main"),
        ("calibration", "truthful-qa", "generation"),
    ],
)
def test_a_public_set_is_a_test_and_a_file_of_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parrot: Any, task: str, name: str, config: str
) -> None:
    home = published(tmp_path / "hub", name, config).parent
    asked: list[dict[str, Any]] = []

    def from_disk(data_set: Any, output: Path, **choices: Any) -> Any:
        asked.append(dict(choices))
        choices["split"] = "validation" if name == "truthful-qa" else "train"  # all that is here
        return fetch_set(data_set, output, source=home, config=config, **choices)

    monkeypatch.setattr(rows, "fetch_set", from_disk)
    source = rows.resolve(task, f"set:{name}", tmp_path, limit=None)
    assert asked[0]["split"] == ("validation" if name == "truthful-qa" else "test")
    kept = rows.resolve(task, str(source.path), tmp_path, limit=None)
    assert kept.path == source.path
    module = {"emotion": emotion, "answers": answers, "calibration": calibration}[task]
    _, scorer = parrot
    if task == "calibration":
        questions = rows.questions(source, None)
        assert kept.evaluations == source.evaluations == ("truthfulqa",)
        assert len({q.question for q in questions}) == len(questions)
        assert all(q.answers and q.wrong for q in questions)
        assert any(len(q.wrong) > 1 for q in questions)
        items: list[Any] = questions
    else:
        items = rows.chats(source, None)
    scorer.runner.context = 4096
    scores, _ = module.evaluate(scorer, items)
    assert scores["rows"] == len(items) >= 1
    assert len(rows.questions(source, 1) if task == "calibration" else rows.chats(source, 1)) == 1


def test_a_context_and_its_continuation_are_encoded_together_for_lm_eval(parrot: Any) -> None:
    _, scorer = parrot
    words = scorer.tokenizer
    for context, more in (("Tom has", " 3 apples"), ("Tom has ", "3 apples")):
        ids, first = harness._joined(scorer, context, more)
        assert list(ids) == list(words.encode("Tom has 3 apples"))
        assert words.decode(ids[first:], continues=True) == " 3 apples"
    ids, first = harness._joined(scorer, "", "Hello")
    assert first == 1 and int(ids[0]) == words.eos_token_id
    assert words.decode(ids[1:]) == "Hello"
    scorer.runner.context = 12
    ids, first = harness._joined(scorer, "one two three " * 20, "four")
    assert ids.size == 12 and words.decode(ids[first:], continues=True).strip() == "four"
    with pytest.raises(DataError, match=r"a question of lm-eval: .* looks back 12"):
        harness._joined(scorer, "one", " two" * 30)


def test_an_answer_for_lm_eval_ends_where_it_asks(parrot: Any) -> None:
    runner, scorer = parrot
    runner.says = {"Why": "Because.\nQ: next"}
    assert harness._until(scorer, "Why?", {"until": ["\n"]}) == "Because."
    assert harness._until(scorer, "Why?", {"until": "Q:"}) == "Because.\n"
    assert harness._until(scorer, "Why?", {"max_gen_toks": 1}) != "Because.\nQ: next"


# ---- Perplexity's windows ----


@given(st.integers(1, 300), st.integers(2, 64))
def test_windows_hold_every_id_but_the_first_once_behind_half_a_window(
    count: int, width: int
) -> None:
    ids = np.arange(count, dtype=np.uint32)
    seen: list[int] = []
    for window, first in perplexity.windows(ids, width):
        assert 1 <= first < window.size <= width
        assert first >= min(int(window[first]), max(1, width // 2))
        seen += [int(i) for i in window[first:]]
    assert seen == list(range(1, count))


def test_a_text_an_empty_one_and_one_that_is_none(parrot: Any, tmp_path: Path) -> None:
    _, scorer = parrot
    path = tmp_path / "a.txt"
    path.write_text("Hello there, how are you?", encoding="utf-8")
    scores, _ = perplexity.evaluate(scorer, path)
    count = scorer.tokenizer.encode(path.read_text()).size - 1
    assert scores["tokens"] == count
    assert scores["nll_per_token"] == pytest.approx(20.0 / count)
    assert scores["perplexity"] == pytest.approx(math.exp(20.0 / count))
    assert scores["bits_per_byte"] == pytest.approx(20.0 / math.log(2) / 25)
    path.write_text(" \n")
    with pytest.raises(DataError, match="empty; there is nothing to predict"):
        perplexity.evaluate(scorer, path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8 text"):
        perplexity.evaluate(scorer, path)
    with pytest.raises(MissingFileError, match="no such file"):
        perplexity.evaluate(scorer, tmp_path / "none.txt")


# ---- Reports ----


def report(**scores: float) -> evaluate.EvalReport:
    return evaluate.EvalReport(
        model="m", engine="native", scores={"emotion": dict(scores)}, notes=("n",), limit=3
    )


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    saved = report(accuracy=0.5, macro_f1=0.25)
    assert evaluate.EvalReport.load(saved.save(tmp_path / "deep" / "r.json")) == saved
    with pytest.raises(MissingFileError):
        evaluate.EvalReport.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        evaluate.EvalReport.load(tmp_path / "bad.json")
    for text in ("[]", '{"scores": {}}', '{"format": "abi_train evaluation 1", "scores": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="report"):
            evaluate.EvalReport.load(tmp_path / "bad.json")


def test_a_report_replaces_nothing_but_an_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    report(accuracy=0.5).save("before.json")
    rows_ = '{"messages": [{"role": "user", "content": "a"}]}\n'
    held = {
        "m.gguf": "GGUF",
        "rows.jsonl": rows_,
        "data.json": rows_,
        "empty.json": "",
        "run/config.json": "{}",
        "list.json": "[]",
    }
    for name, text in held.items():
        Path(name).write_text(text)
    Path("link.json").symlink_to("before.json")
    for output, code, said in (
        ("m.gguf", 2, "must end in .json"),
        ("rows.jsonl", 2, "must end in .json"),
        ("run/log.jsonl", 2, "must end in .json"),
        ("data.json", 1, "no report of abi-train eval"),
        ("empty.json", 1, "no report of abi-train eval"),
        ("list.json", 1, "no report of abi-train eval"),
        ("run/config.json", 2, "file of models and runs"),
        ("run/adapter_config.json", 2, "file of models and runs"),
        ("before.json", 2, "is read by this evaluation"),
        ("link.json", 2, "is read by this evaluation"),
        ("t.json", 2, "is read by this evaluation"),
        ("run", 2, "must end in .json"),
    ):
        task = "emotion:rows.jsonl,perplexity:t.json"
        wanted = ["--task", task, "--compare", "before.json", "--output", output]
        assert command("eval", "m.gguf", *wanted) == code, output
        assert said in " ".join(capsys.readouterr().err.replace("│", " ").split()), output
    assert all(Path(name).read_text() == text for name, text in held.items())
    assert evaluate.EvalReport.load("before.json") == report(accuracy=0.5)
    assert not Path("t.json").exists() and not Path("run/adapter_config.json").exists()
    evaluate.EvalReport.check_output("before.json")
    evaluate.EvalReport.check_output("run/report.json", reads=["m.gguf"])


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_an_unknown_engine_and_a_name_with_nul_are_mistakes_of_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path)
    assert command("eval", model, "--engine", "nope") == 2
    assert "auto, native, torch" in capsys.readouterr().err
    for task in ("perplexity:a\0b", "emotion:a\0b.jsonl", "answers:set:a\0b", "lm-eval:a\0b"):
        assert command("eval", model, "--task", task) == 2
        assert "NUL" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="NUL in its name"):
            evaluate.run(model, [task])


def test_without_the_network_a_public_set_says_how_its_files_become_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abi_train.data.sets import hub

    def offline(*_: Any, **__: Any) -> Any:
        raise hub._said(ConnectionError("no"), "openai/gsm8k", "main", "test", None)

    monkeypatch.setattr(hub, "read", offline)
    with pytest.raises(FileAccessError, match="cannot be reached") as said:
        rows.resolve("answers", "set:gsm8k", tmp_path, limit=None)
    text = str(said.value)
    assert "data get gsm8k --split test --option final=hashes --from FOLDER" in text
    assert text.endswith("then the task answers:gsm8k.jsonl")


def test_the_table_shows_each_report_and_its_change() -> None:
    from rich.console import Console

    shown = Console(width=100, record=True, file=io.StringIO())
    before = report(accuracy=0.25, calibration_error=0.3)
    after = report(accuracy=0.75, calibration_error=0.1, rows=8)
    shown.print(evaluate.table({"before": before, "emotional": after, "again": after}))
    text = shown.export_text()
    assert "before" in text and "emotional" in text
    assert "75.0 % (+50.0)" in text
    assert "0.100 (-0.2)" in text
    assert "(=)" in text
    assert "rows" not in text


def test_every_metric_is_known_as_better_or_worse() -> None:
    named = {"accuracy", "macro_f1", "marked", "no_number", "cut_off", "calibration_error"}
    named |= {"brier", "accuracy_of_choice", "answers_known", "accuracy_known"}
    named |= {"accuracy_when_answering", "abstains_unknowable", "asks_ambiguous", "perplexity"}
    assert named <= set(evaluate.BETTER)
