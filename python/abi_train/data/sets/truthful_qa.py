"""TruthfulQA: questions that many answer wrongly, with true and false answers, as pairs.

It is a test: a model that learned these pairs has seen its answers. Every file made of it says so,
and so do the manifest and the model card.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .base import Converting, DataSet, Home, Layout, Option, Record, Row, draw, one_line, texts

CHOICES = {"choices": [str], "labels": [int]}


def turned(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The Hub's columns from the authors' CSV, whose lists are texts with semicolons."""
    return [
        {
            "question": values["Question"],
            "best_answer": values["Best Answer"],
            "incorrect_answers": (values["Incorrect Answers"] or "").split(";"),
        }
    ]


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """The true answer against a false one: one drawn by the seed, or each of them."""
    for place, values in records:
        reason = texts(values, "question")
        if reason is not None:
            job.leave_out(place, reason)
            continue
        question = one_line(values["question"])
        best, wrong = _choices(values) if "mc1_targets" in values else _answers(values)
        if not best:
            job.leave_out(place, "no true answer")
            continue
        wrong = [text for text in dict.fromkeys(wrong) if text and text.lower() != best.lower()]
        if not wrong:
            job.leave_out(place, "no false answer")
            continue
        if job.options["pairs"] == "one":
            wrong = [wrong[draw(job.seed, question) % len(wrong)]]
        for text in wrong:
            yield {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": best}],
                "rejected": [{"role": "assistant", "content": text}],
            }


def _answers(values: dict[str, Any]) -> tuple[str, list[str]]:
    wrong = values["incorrect_answers"] or []
    return one_line(values["best_answer"] or ""), [one_line(text) for text in wrong]


def _choices(values: dict[str, Any]) -> tuple[str, list[str]]:
    targets = values["mc1_targets"] or {"choices": [], "labels": []}
    pairs = list(zip(targets["choices"], targets["labels"], strict=False))
    right = [one_line(text) for text, label in pairs if label == 1]
    return right[0] if right else "", [one_line(text) for text, label in pairs if label == 0]


TRUTHFUL_QA = DataSet(
    name="truthful-qa",
    title="TruthfulQA",
    teaches="a true answer over a common mistake, as preference pairs",
    license="Apache-2.0",
    commercial_use=True,
    columns={
        "generation": {"question": str, "best_answer": str, "incorrect_answers": [str]},
        "multiple_choice": {"question": str, "mc1_targets": CHOICES},
    },
    splits={"validation": 817},
    homes=(
        Home(
            hub_id="truthfulqa/truthful_qa",
            parts={"generation": ("generation",), "multiple_choice": ("multiple_choice",)},
        ),
    ),
    aliases=("truthful_qa", "truthfulqa"),
    layouts={
        "generation": Layout(
            columns={"Question": str, "Best Answer": str, "Incorrect Answers": str}, turned=turned
        )
    },
    options=(
        Option(
            name="pairs",
            values=("one", "all"),
            help="pairs of a question: one, its false answer drawn by the seed, or one for each",
        ),
    ),
    evaluations={"validation": ("truthfulqa",)},
    convert=convert,
)
