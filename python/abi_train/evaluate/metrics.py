"""What is told of many answers: plain arithmetic on lists.

Does not know: models, rows, files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

BINS: Final = 10
"""Of equal width between 0 and 1; a confidence of exactly 1 belongs to the last."""


def mean(values: Sequence[float | bool]) -> float | None:
    """The average; None of nothing."""
    return sum(values) / len(values) if values else None


def confusion(
    labels: Sequence[str], wanted: Sequence[str], given: Sequence[str]
) -> list[list[int]]:
    """Counts: one row for each wanted label, one column for each given one, in `labels`' order."""
    at = {label: number for number, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for want, gave in zip(wanted, given, strict=True):
        table[at[want]][at[gave]] += 1
    return table


def macro_f1(table: Sequence[Sequence[int]]) -> float | None:
    """The mean over labels of the F1 score, of those labels that were wanted or given at all."""
    scores = []
    for label, row in enumerate(table):
        right = row[label]
        wanted, given = sum(row), sum(other[label] for other in table)
        if wanted + given:
            scores.append(2 * right / (wanted + given))
    return mean(scores)


def calibration_bins(
    confidences: Sequence[float], correct: Sequence[bool], *, count: int = BINS
) -> list[dict[str, Any]]:
    """For each bin its limits, how many answers fell in it, their mean confidence and accuracy."""
    found: list[list[int]] = [[] for _ in range(count)]
    for number, confidence in enumerate(confidences):
        found[min(int(confidence * count), count - 1)].append(number)
    return [
        {
            "from": at / count,
            "to": (at + 1) / count,
            "count": len(inside),
            "confidence": mean([confidences[i] for i in inside]),
            "accuracy": mean([correct[i] for i in inside]),
        }
        for at, inside in enumerate(found)
    ]


def calibration_error(bins: Sequence[dict[str, Any]]) -> float | None:
    """The expected calibration error: |accuracy - confidence| of the bins, by their counts."""
    total = sum(one["count"] for one in bins)
    if total == 0:
        return None
    gaps = [one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins if one["count"]]
    return float(sum(gaps) / total)


def brier(confidences: Sequence[float], correct: Sequence[bool]) -> float | None:
    """The mean of (confidence - 1 for a right answer, else 0) squared."""
    pairs = zip(confidences, correct, strict=True)
    return mean([(confidence - right) ** 2 for confidence, right in pairs])


def softmax(log_values: Sequence[float]) -> list[float]:
    """The values as shares of their sum."""
    largest = max(log_values)
    if largest == -math.inf:
        return [1 / len(log_values)] * len(log_values)
    powers = [math.exp(value - largest) for value in log_values]
    return [power / sum(powers) for power in powers]


def log_sum(log_values: Sequence[float]) -> float:
    """The logarithm of the sum of what these are the logarithms of."""
    largest = max(log_values)
    if largest == -math.inf:
        return largest
    return largest + math.log(sum(math.exp(value - largest) for value in log_values))


_NUMBER: Final = re.compile(r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?|-?\$?\.\d+")


def final_number(text: str) -> Decimal | None:
    """The result an answer ends with: what stands behind its last `####`, else its last number.

    `$1,200.00` and `1200` are the same. None when there is no number there.
    """
    marked = text.rpartition("####")
    found = _NUMBER.search(marked[2]) if marked[1] else None
    if found is None:
        every = _NUMBER.findall(text)
        if not every:
            return None
        last = every[-1]
    else:
        last = found[0]
    try:
        return Decimal(last.replace(",", "").replace("$", ""))
    except InvalidOperation:  # pragma: no cover - the pattern lets nothing else through
        return None
