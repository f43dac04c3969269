"""GSM8K: sums told as stories, worked out in steps.

An answer has a line for each step with calculator marks, `48/2 = <<48/2=24>>24`, and ends with
`#### 24`. In the configuration `socratic` each step begins with a question, ` ** ` behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .base import Columns, Converting, DataSet, Home, Option, Record, Row, chat, texts

COLUMNS: Columns = {"question": str, "answer": str}


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each question; the answer is the steps and the result."""
    for place, values in records:
        reason = texts(values, "question", "answer")
        if reason is not None:
            job.leave_out(place, reason)
            continue
        steps, mark, result = values["answer"].rpartition("####")
        steps, result = steps.strip(), result.strip()
        if not mark or not result:
            job.leave_out(place, "no #### and result at the end of the answer")
            continue
        if job.options["marks"] == "remove":
            steps = re.sub(r"<<[^<>]*>>", "", steps)
        steps = "\n".join(_step(line) for line in steps.splitlines() if line.strip())
        if not steps:
            job.leave_out(place, "no step before the result")
            continue
        ends = {
            "sentence": f"\nThe answer is {result}.",
            "hashes": f"\n#### {result}",
            "drop": "",
        }
        answer = steps + ends[job.options["final"]]
        yield chat(("user", values["question"].strip()), ("assistant", answer))


def _step(line: str) -> str:
    """One step without its border spaces; a socratic question stands on a line of its own."""
    return re.sub(r" *\*\* +", "\n", line.strip())


GSM8K = DataSet(
    name="gsm8k",
    title="GSM8K",
    teaches="working out a sum step by step",
    license="MIT",
    commercial_use=True,
    columns={"main": COLUMNS, "socratic": COLUMNS},
    splits={"train": 7473, "test": 1319},
    homes=(Home(hub_id="openai/gsm8k", parts={"main": ("main",), "socratic": ("socratic",)}),),
    options=(
        Option(
            name="marks",
            values=("remove", "keep"),
            help="what becomes of the calculator marks <<48/2=24>>",
        ),
        Option(
            name="final",
            values=("sentence", "hashes", "drop"),
            help="the result: as a sentence, as published after ####, or not at all",
        ),
    ),
    evaluations={"test": ("gsm8k",)},
    convert=convert,
)
