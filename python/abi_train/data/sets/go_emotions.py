"""GoEmotions: short comments with one or more of 27 emotions, or neutral.

`simplified` has a list of labels for each comment; `raw` has one record for each rater, with a
column for each emotion. A row asks for the emotion and answers with one word. The emotion is not
put on the row itself: the abbey format would show it above the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from . import emotions
from .base import Columns, Converting, DataSet, Home, Option, Record, Row, chat, one_line

LABELS: Final = tuple(emotions.GO_EMOTIONS)
RAW: Final[Columns] = {
    "text": str,
    "id": str,
    "example_very_unclear": bool,
    **dict.fromkeys(LABELS, int),
}


def convert(records: Iterable[Record], job: Converting) -> Iterator[Row]:
    """A row for each comment on whose emotion the labels agree."""
    voted = _raters(records, job) if job.config == "raw" else _labels(records, job)
    words = LABELS if job.options["words"] == "own" else emotions.ABBEY
    for place, text, votes in voted:
        counted: Counter[str] = Counter()
        for label, count in votes.items():
            word = label if words is LABELS else emotions.abbey(label)
            counted[word] += count
        if len(counted) > 1 and job.config != "raw":
            del counted["neutral"]  # raters agreed on the other label, which says more
        best = counted.most_common(2)
        if len(best) == 2 and best[0][1] == best[1][1]:
            job.leave_out(place, "labels of several emotions")
            continue
        question = f"Name the emotion in this message: {', '.join(words)}.\n\n{text}"
        yield chat(("user", question), ("assistant", best[0][0]))


def _labels(records: Iterable[Record], job: Converting) -> Iterator[tuple[str, str, Counter[str]]]:
    for place, values in records:
        text, labels = one_line(values["text"] or ""), values["labels"]
        if not text:
            job.leave_out(place, "text is empty")
        elif not labels:
            job.leave_out(place, "labels is empty")
        elif any(not 0 <= label < len(LABELS) for label in labels):
            job.leave_out(place, "a label is not 0 to 27")
        else:
            yield place, text, Counter(LABELS[label] for label in labels)


def _raters(records: Iterable[Record], job: Converting) -> Iterator[tuple[str, str, Counter[str]]]:
    """The votes of all raters of a comment together; they do not stand side by side."""
    comments: dict[str, tuple[str, str, Counter[str]]] = {}
    for place, values in records:
        if not values["id"] or not one_line(values["text"] or ""):
            job.leave_out(place, "text or id is empty")
        elif values["example_very_unclear"]:
            job.leave_out(place, "the rater found it unclear")
        else:
            known = (place, one_line(values["text"]), Counter[str]())
            votes = comments.setdefault(values["id"], known)[2]
            votes.update(label for label in LABELS if values[label])
    for place, text, votes in comments.values():
        if votes:
            yield place, text, votes
        else:
            job.leave_out(place, "no rater named an emotion")


GO_EMOTIONS = DataSet(
    name="go-emotions",
    title="GoEmotions",
    teaches="naming the emotion of a message",
    license="Apache-2.0",
    commercial_use=True,
    columns={"simplified": {"text": str, "labels": [int], "id": str}, "raw": RAW},
    splits={"train": 43410, "validation": 5426, "test": 5427},
    homes=(
        Home(
            hub_id="google-research-datasets/go_emotions",
            parts={"simplified": ("simplified",), "raw": ("raw",)},
        ),
    ),
    aliases=("go_emotions", "goemotions"),
    notes=(
        "GoEmotions are comments from Reddit: language is rough, and some are hateful.",
        "GoEmotions raw has 211,225 ratings, all in the split train.",
    ),
    options=(
        Option(
            name="words",
            values=("abbey", "own"),
            help="answer with one of Abbey's 14 emotions, or of the set's 28",
        ),
    ),
    label_names={"labels": LABELS},
    tsv=("text", "labels", "id"),
    convert=convert,
)
