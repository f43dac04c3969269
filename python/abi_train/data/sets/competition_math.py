"""MATH: problems of mathematical competitions with worked solutions, results in `\\boxed{}`.

The set people know as `lighteval/MATH` or `hendrycks/competition_math` was taken down from the Hub
in January 2025; other repositories still hold the same rows. That is said wherever this set goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from .base import Columns, Converting, DataSet, Home, Record, Row, chat, texts

SUBJECTS: Final = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
COLUMNS: Columns = {"problem": str, "level": str, "type": str, "solution": str}


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each problem; the answer is its solution."""
    for place, values in records:
        reason = texts(values, "problem", "solution")
        if reason is not None:
            job.leave_out(place, reason)
        elif "\\boxed" not in values["solution"] and "\\fbox" not in values["solution"]:
            job.leave_out(place, "no boxed result in the solution")
        else:
            yield chat(
                ("user", values["problem"].strip()), ("assistant", values["solution"].strip())
            )


MATH = DataSet(
    name="math",
    title="MATH",
    teaches="solving problems of competitions",
    license=None,
    commercial_use=None,
    columns={"all": COLUMNS, **dict.fromkeys(SUBJECTS, COLUMNS)},
    splits={"train": 7500, "test": 5000},
    homes=(
        Home(
            hub_id="EleutherAI/hendrycks_math",
            parts={"all": SUBJECTS, **{name: (name,) for name in SUBJECTS}},
        ),
        Home(
            hub_id="DigitalLearningGmbH/MATH-lighteval",
            parts={"all": ("default",), **{name: (name,) for name in SUBJECTS}},
        ),
    ),
    aliases=("hendrycks_math", "competition_math"),
    gone=("lighteval/MATH", "hendrycks/competition_math"),
    notes=(
        "lighteval/MATH and hendrycks/competition_math were taken down in January 2025 after a "
        "claim by the owner of the problems. Other repositories hold the same rows; whether they "
        "may is contested, so the licence counts as unknown.",
    ),
    evaluations={"test": ("hendrycks_math", "minerva_math")},
    convert=convert,
)
