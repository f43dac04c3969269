"""HotpotQA: questions whose answer needs facts from two articles.

`context` lists paragraphs as titles and their sentences; `supporting_facts` names sentences by
title and number. Numbers beyond the end of a paragraph occur. In `fullwiki` the paragraphs were
looked up by a machine, and those with the facts may not be among them; its test has no answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .base import (
    Columns,
    Converting,
    DataSet,
    Home,
    Layout,
    Option,
    Record,
    Row,
    chat,
    one_line,
    texts,
)

COLUMNS: Columns = {
    "question": str,
    "answer": str,
    "supporting_facts": {"title": [str], "sent_id": [int]},
    "context": {"title": [str], "sentences": [[str]]},
}


def turned(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The Hub's columns from the authors' JSON, which has pairs in place of tables."""
    facts, context = values["supporting_facts"] or [], values["context"] or []
    return [
        {
            **values,
            "supporting_facts": {
                "title": [title for title, _ in facts],
                "sent_id": [number for _, number in facts],
            },
            "context": {
                "title": [title for title, _ in context],
                "sentences": [sentences for _, sentences in context],
            },
        }
    ]


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each question: paragraphs and question, answered with the facts and the answer."""
    for place, values in records:
        reason = texts(values, "question", "answer")
        if reason is not None:
            job.leave_out(place, reason)
            continue
        paragraphs = _paragraphs(values["context"] or {"title": [], "sentences": []})
        facts = _facts(values["supporting_facts"], paragraphs)
        if not facts:
            job.leave_out(place, "supporting facts are not in the context")
            continue
        used = {title for title, _ in facts}
        chosen = job.options["context"]
        shown = [
            f"{title}: {' '.join(filter(None, sentences))}"
            for title, sentences in paragraphs.items()
            if chosen == "all" or (chosen == "supporting" and title in used)
        ]
        said = [f"{title}: {sentence}" for title, sentence in facts]
        answer = one_line(values["answer"])
        said.append(f"So the answer is {answer}{'' if answer.endswith('.') else '.'}")
        question = "\n\n".join([*shown, one_line(values["question"])])
        yield chat(("user", question), ("assistant", "\n".join(said)))


def _paragraphs(context: dict[str, Any]) -> dict[str, list[str]]:
    """The sentences of each title, empty ones kept because they are counted."""
    pairs = zip(context["title"], context["sentences"], strict=False)
    return {
        one_line(title): [one_line(sentence) for sentence in sentences]
        for title, sentences in pairs
    }


def _facts(
    named: dict[str, Any] | None, paragraphs: dict[str, Sequence[str]] | dict[str, list[str]]
) -> list[tuple[str, str]]:
    """Title and sentence of each fact in order; none unless all are there but a stray number."""
    if named is None:
        return []
    found: dict[tuple[str, str], None] = {}
    for title, number in zip(named["title"], named["sent_id"], strict=False):
        sentences = paragraphs.get(one_line(title))
        if sentences is None:
            return []
        if 0 <= number < len(sentences) and sentences[number]:
            found[one_line(title), sentences[number]] = None
    return list(found)


AUTHORS = Layout(
    columns={
        "_id": str,
        "question": str,
        "answer": str,
        "supporting_facts": [(str, int)],
        "context": [(str, [str])],
    },
    turned=turned,
)
HOTPOT_QA = DataSet(
    name="hotpot-qa",
    title="HotpotQA",
    teaches="naming the facts an answer rests on, from several texts",
    license="CC-BY-SA-4.0",
    commercial_use=True,
    columns={"distractor": COLUMNS, "fullwiki": COLUMNS},
    splits={"train": 90447, "validation": 7405, "test": 7405},
    homes=(
        Home(
            hub_id="hotpotqa/hotpot_qa",
            parts={"distractor": ("distractor",), "fullwiki": ("fullwiki",)},
        ),
    ),
    aliases=("hotpot_qa", "hotpotqa"),
    notes=(
        "HotpotQA asks that what is made of it names its source and is shared alike (CC BY-SA "
        "4.0).",
        "HotpotQA has a split test in fullwiki alone, without answers.",
    ),
    options=(
        Option(
            name="context",
            values=("supporting", "all", "none"),
            help="paragraphs before the question: those with the facts, all ten, or none",
        ),
    ),
    layouts=dict.fromkeys(("distractor", "fullwiki"), AUTHORS),
    evaluations={"validation": ("hotpotqa",)},
    convert=convert,
)
