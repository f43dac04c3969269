"""What public data comes to where it cannot be fetched: rows from their cards, tokens by guess.

A token file of random ids with as many rows, of lengths that differ as those of texts do, stands in
for the data: what follows from it is counted like that of any data, and is as good as the guess.

Does not know: recipes; a phase is anything with `spec` and `prepared`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..dataset import TokenizedWriter

OF_FILES_BYTES_PER_TOKEN: Final = 4.0
"""Of JSON lines: keys and quotes take what a token has less than five letters."""


@dataclass(frozen=True, kw_only=True)
class Guess:
    """rows: of the part for training, by the card. tokens: of a row with its chat format, guessed.
    answers: rows that `rows_per: answer` makes of one."""

    rows: int
    tokens: int
    answers: float = 1.0


SETS: Final = {
    "empathetic-dialogues": Guess(rows=17_844, tokens=150, answers=2.1),
    "daily-dialog": Guess(rows=11_118, tokens=180, answers=3.9),
    "go-emotions": Guess(rows=43_410, tokens=70),
    "gsm8k": Guess(rows=7_473, tokens=230),
    "math": Guess(rows=7_500, tokens=320),
    "hotpot-qa": Guess(rows=90_447, tokens=1_400),
    "truthful-qa": Guess(rows=817, tokens=90),
}


def stand_in(phase: Any, target: Path, vocabulary: int) -> str | None:
    """Write a token file like what the phase's rows would become; returns what was guessed, or None
    where a set is not known here."""
    spec, prepared = phase.spec, phase.prepared
    counts: list[tuple[int, int]] = []
    for rows in prepared.rows:
        if rows.path is not None:
            lines = sum(1 for line in rows.path.read_bytes().splitlines() if line.strip())
            size = rows.path.stat().st_size / max(lines, 1) / OF_FILES_BYTES_PER_TOKEN
            counts.append((lines, max(round(size), 2)))
            continue
        guess = SETS.get(rows.name)
        if guess is None:
            return None
        limit = rows.choices.get("limit")
        many = min(guess.rows, limit) if isinstance(limit, int) else guess.rows
        if prepared.rows_per == "answer":
            many = round(many * guess.answers)
        counts.append((many, guess.tokens))
    pairs = spec.objective == "dpo"
    rng = np.random.default_rng(spec.config.seed)
    kept = 1.0 - prepared.eval_split
    with TokenizedWriter(target, vocab_size=vocabulary, preference=pairs) as writer:
        for many, tokens in counts:
            lengths = np.maximum(rng.gamma(6.0, tokens / 6.0, round(many * kept)), 4).astype(int)
            ids = rng.integers(0, min(vocabulary, 1000) & ~1, int(lengths.max(initial=4)))
            for length in lengths:
                learned = np.arange(length) >= length // 2
                writer.append(ids[:length], learned)
                if pairs:  # the same prompt with another answer
                    writer.append(np.where(learned, ids[:length] ^ 1, ids[:length]), learned)
        writer.finish()
    rows_in_all = sum(many for many, _ in counts)
    mean = sum(many * tokens for many, tokens in counts) / max(rows_in_all, 1)
    unit = "pairs" if pairs else "rows"
    why = "its public data is not here"
    return f"guessed: {rows_in_all:,} {unit} of about {mean:.0f} tokens, as {why}"
