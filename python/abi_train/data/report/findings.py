"""What the numbers mean for training: findings with a severity, a count and the next move.

An error is something after which a model is broken (it does not stop, it reads what nobody writes);
a warning is most likely not meant; a note is worth knowing. Does not know: files, pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..visible import visible
from .measure import NOT_LEARNED, Hits, Measures, repeats
from .source import MIXED, Material
from .text import CONTROL_FREE, FAMILIES, TextFacts

ERROR: Final = "error"
WARN: Final = "warn"
NOTE: Final = "note"
SEVERITIES: Final = (ERROR, WARN, NOTE)

MANY: Final = 0.01
"""From this share of the rows on, a note becomes a warning."""
DOUBLY_TEMPLATED: Final = 0.1
"""From this share of rows with control tokens as text on, rows were most likely templated twice."""
NEAR_EMPTY: Final = 3
"""Learned tokens, the end token among them, up to which a row teaches next to nothing."""
LETTERS: Final = 24
"""Letters and digits a row needs to be compared with another one by them alone."""
BIAS: Final = 0.7
"""Share of pairs in which the better answer is the longer one, from which length is the lesson."""
BIASED_PAIRS: Final = 20
TAIL: Final = 4
"""Tokens behind the last answer, from which on they are another turn and not the end of one."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know.

    count: what the message counts. row_count: rows it holds for; rows, lines: the first of them.
    """

    code: str
    severity: str
    count: int
    message: str
    next: str
    row_count: int = 0
    rows: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "rows": list(self.rows), "lines": list(self.lines)}


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def s(count: int) -> str:
    """The ending of a verb: one row holds, two rows hold."""
    return "s" if count == 1 else ""


class Rules:
    """All rules over one file."""

    def __init__(
        self,
        material: Material,
        measures: Measures,
        text: TextFacts,
        *,
        text_share: float,
        max_seq_len: int | None,
    ) -> None:
        self.material = material
        self.measures = measures
        self.text = text
        self.text_share = text_share
        self.max_seq_len = max_seq_len
        self.found: list[Finding] = []
        self.pairs = material.kind == "pairs"
        self.word = "row" if material.documents_known else "stream"
        step = 2 if self.pairs else 1
        self.units: npt.NDArray[np.int64] = np.arange(0, measures.rows, step)
        self.cut = self._cut_rows()

    def all(self) -> list[Finding]:
        """Every finding, errors first."""
        if self.measures.rows == 0:
            self._lines()
            self.add("no-rows", ERROR, 0, "there is no row to learn from.", "Check the source.")
            return self.found
        rules: Iterable[Callable[[], None]] = (
            self._lines,
            self._ends,
            self._begins,
            self._ids,
            self._lengths,
            self._loss,
            self._markers,
            self._characters,
            self._turns,
            self._repeats,
            self._preferences,
        )
        for rule in rules:
            rule()
        self.found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        return self.found

    def add(
        self,
        code: str,
        severity: str,
        count: int,
        message: str,
        move: str,
        rows: Iterable[int] = (),
        row_count: int | None = None,
        **detail: Any,
    ) -> None:
        """Note a finding; rows beyond the first few are left out. row_count: if it is not count."""
        some = [int(row) for _, row in zip(range(Hits.LIMIT), rows, strict=False)]
        known = self.material.lines
        lines = () if known is None else tuple(dict.fromkeys(int(known[row]) for row in some))
        self.found.append(
            Finding(
                code=code,
                severity=severity,
                count=count,
                message=message,
                next=move,
                row_count=(count if row_count is None else row_count) if some else 0,
                rows=tuple(some),
                lines=lines,
                detail=detail,
            )
        )

    def by_share(self, rows: int) -> str:
        """A warning for many rows, a note for few."""
        return WARN if rows >= MANY * self.measures.rows else NOTE

    def _cut_rows(self) -> npt.NDArray[np.bool_]:
        """Rows that lost their end when they were prepared, as far as a file can tell."""
        measures = self.measures
        if self.material.from_jsonl or measures.rows == 0:
            return np.zeros(measures.rows, dtype=np.bool_)
        longest = int(measures.lengths.max())
        at_limit = measures.lengths == longest
        said = int(self.material.manifest.get("truncated") or 0)
        sure = said > 0 or int(np.count_nonzero(at_limit)) > 1
        cut: npt.NDArray[np.bool_] = at_limit & measures.open_end & sure
        return cut

    def _lines(self) -> None:
        skipped = self.material.skipped
        same = sum(n for reason, n in skipped.counts.items() if "the same" in reason)
        if same:
            self.add(
                "answers-equal",
                ERROR,
                same,
                f"{plural(same, 'pair')} of answers say the same twice: nothing can be learned.",
                "Leave them out; `prepare --skip-invalid` does.",
            )
        mixed = skipped.counts.get(MIXED, 0)
        if mixed:
            pairs, rows = ("other rows", "pairs") if self.pairs else ("pairs", "other rows")
            self.add(
                "mixed-kinds",
                ERROR,
                mixed,
                f"{plural(mixed, 'line')} hold{s(mixed)} {pairs} among {rows}; the report is about "
                f"the {rows} only.",
                "Put pairs of answers and other rows into two files, and prepare each.",
            )
        rest = skipped.total - same - mixed
        if rest:
            reasons = [
                f"{count} x {visible(reason)[:300]}"
                for reason, count in skipped.counts.most_common()
                if "the same" not in reason and reason != MIXED
            ]
            self.add(
                "unusable-lines",
                ERROR,
                rest,
                f"{plural(rest, 'line')} cannot be used: {reasons[0]}"
                + (f" (and {plural(len(reasons) - 1, 'more reason')})" if reasons[1:] else "")
                + ".",
                "Correct them, or leave them out with `prepare --skip-invalid`.",
                reasons=reasons[:20],
                places=[visible(place)[:400] for place in skipped.examples],
            )

    def _ends(self) -> None:
        measures = self.measures
        vocabulary = self.material.vocabulary
        if vocabulary is None:
            return
        if not vocabulary.stops.any():
            self.add(
                "no-end-token",
                ERROR,
                measures.rows,
                "the tokenizer names no end token, so no model can learn to stop.",
                "Set eos_token in its tokenizer_config.json and prepare again.",
            )
            return
        if self.material.kind == "stream":
            if not self.material.documents_known:
                self.add(
                    "no-end-token",
                    WARN,
                    1,
                    "the stream holds no end token: where a text ends cannot be learned.",
                    "Prepare it again with this tokenizer.",
                )
            return
        missing = (measures.stretches > measures.ended) & ~self.cut
        count = int(np.count_nonzero(missing))
        if count:
            none = int(np.count_nonzero(missing & (measures.ended == 0)))
            self.add(
                "no-end-token",
                ERROR,
                count,
                f"{plural(count, 'row')} teach{'es' if count == 1 else ''} an answer without its "
                f"end token ({none:,} of them no end token at all): the model would not stop.",
                "Prepare again with the chat format the model is served with; `prepare` refuses "
                "such rows.",
                np.flatnonzero(missing),
                rows_without_any=none,
            )
        cut = int(np.count_nonzero(self.cut))
        said = int(self.material.manifest.get("truncated") or 0)
        if cut or said:
            self.add(
                "truncated",
                WARN,
                max(cut, said),
                f"{plural(max(cut, said), 'row')} lost the end to a limit of "
                f"{int(measures.lengths.max()):,} tokens, and with it the end token.",
                "Prepare with a larger --max-seq-len, or split the rows.",
                np.flatnonzero(self.cut),
            )

    def _begins(self) -> None:
        measures, vocabulary = self.measures, self.material.vocabulary
        if vocabulary is None or vocabulary.bos is None or self.material.kind == "stream":
            return
        name = visible(vocabulary.text_of(vocabulary.bos))
        twice = measures.double_begin
        if twice.count:
            self.add(
                "double-bos",
                ERROR,
                twice.rows,
                f"{plural(twice.rows, 'row')} begin{s(twice.rows)} with two begin "
                f"tokens ({name}): the template writes one and the tokenizer adds another.",
                "Take one away: prepare from messages instead of text that is templated already.",
                twice.first,
            )
        inner = measures.inner_begin
        if inner.count:
            self.add(
                "inner-bos",
                WARN,
                inner.rows,
                f"{plural(inner.rows, 'row')} hold{s(inner.rows)} the begin token ({name}) inside.",
                "Rows joined by hand? Leave joining to packing, which keeps them apart.",
                inner.first,
            )
        missing = measures.rows - measures.begun
        if vocabulary.begins_with_bos and missing and not self.pairs:
            self.add(
                "no-bos",
                WARN,
                missing,
                f"{plural(missing, 'row')} of {measures.rows:,} begin without the begin token "
                f"({name}) that this tokenizer puts first.",
                "Prepare again with this tokenizer, so that training and serving begin alike.",
            )

    def _ids(self) -> None:
        measures, vocabulary = self.measures, self.material.vocabulary
        manifest = self.material.manifest
        if measures.foreign.count:
            self.add(
                "foreign-id",
                ERROR,
                measures.foreign.count,
                f"{plural(measures.foreign.count, 'id')} in {plural(measures.foreign.rows, 'row')} "
                f"are outside the vocabulary; the largest is {measures.largest_id:,}.",
                "The file was made with another tokenizer: name that one, or prepare again.",
                measures.foreign.first,
                measures.foreign.rows,
            )
        made_with = manifest.get("tokenizer_hash")
        if vocabulary is not None and made_with and made_with != vocabulary.hash:
            self.add(
                "other-tokenizer",
                ERROR,
                1,
                "the file was made with another tokenizer.json than the one named here: the text "
                "shown and all findings about tokens may be wrong.",
                "Name the tokenizer the file was made with, or prepare again.",
            )
        if vocabulary is None:
            return
        if measures.unknown.count:
            self.add(
                "unknown-token",
                self.by_share(measures.unknown.rows),
                measures.unknown.count,
                f"{plural(measures.unknown.count, 'place')} in "
                f"{plural(measures.unknown.rows, 'row')} became the unknown token: the tokenizer "
                "cannot write what stood there.",
                "Look at the rows; use a tokenizer that knows the script.",
                measures.unknown.first,
                measures.unknown.rows,
            )
        if measures.stray.count:
            kinds = sorted(measures.stray_ids.items(), key=lambda item: -item[1])
            names = ", ".join(
                f"{visible(vocabulary.text_of(token))} x {count:,}" for token, count in kinds[:5]
            )
            padding = vocabulary.pad in measures.stray_ids
            self.add(
                "stray-control",
                WARN,
                measures.stray.count,
                f"{plural(measures.stray.rows, 'row')} hold{s(measures.stray.rows)} control tokens "
                f"that the chat format does not use: {names}.",
                "Padding does not belong in a token file; write rows without it."
                if padding
                else "Prepare from text, so that what people wrote cannot become a control token.",
                measures.stray.first,
                measures.stray.rows,
                tokens={str(token): count for token, count in kinds[:20]},
            )

    def _lengths(self) -> None:
        measures, limit = self.measures, self.max_seq_len
        if limit is None or self.material.kind == "stream":
            return
        over = measures.lengths > limit
        count = int(np.count_nonzero(over))
        if count:
            lost = int((measures.lengths[over] - limit).sum())
            self.add(
                "over-max-seq-len",
                WARN,
                count,
                f"{plural(count, 'row')} ({count / measures.rows:.1%}) are longer than "
                f"{limit:,} tokens; training would cut {plural(lost, 'token')} and the end token.",
                "Raise max_seq_len, split the rows, or leave them out.",
                np.flatnonzero(over),
                tokens_cut=lost,
            )
            hopeless = int(np.count_nonzero(over & (measures.prompt >= limit)))
            if hopeless:
                self.add(
                    "prompt-over-max-seq-len",
                    WARN,
                    hopeless,
                    f"{plural(hopeless, 'row')} have a prompt that alone fills {limit:,} tokens: "
                    "nothing of them is learned.",
                    "Raise max_seq_len, or shorten the prompts.",
                    np.flatnonzero(over & (measures.prompt >= limit)),
                )

    def _loss(self) -> None:
        measures = self.measures
        if self.material.kind == "stream":
            return
        silent = measures.trained == 0
        count = int(np.count_nonzero(silent))
        if count:
            self.add(
                "nothing-learned",
                ERROR if count == measures.rows else WARN,
                count,
                f"in {plural(count, 'row')} nothing is in the loss.",
                "Check the roles: only assistant turns, completions and texts are learned.",
                np.flatnonzero(silent),
            )
        little = (measures.trained <= NEAR_EMPTY) & ~silent
        count = int(np.count_nonzero(little))
        if count:
            self.add(
                "near-empty",
                self.by_share(count),
                count,
                f"{plural(count, 'row')} teach{'es' if count == 1 else ''} at most {NEAR_EMPTY} "
                "tokens, the end token among them.",
                "Fine for labels and yes or no; otherwise look at the rows.",
                np.flatnonzero(little),
            )
        whole = int(measures.lengths.sum()) - measures.rows
        share = measures.tokens_in_loss / whole if whole else 0.0
        if 0 < share < 0.02:
            self.add(
                "little-loss",
                WARN,
                measures.tokens_in_loss,
                f"only {share:.2%} of the tokens are in the loss.",
                "Check that the answers and not the prompts are learned.",
            )
        tail = (measures.tail > TAIL) & ~silent & ~self.cut
        count = int(np.count_nonzero(tail))
        if count:
            self.add(
                "unlearned-tail",
                self.by_share(count),
                count,
                f"{plural(count, 'row')} end{s(count)} with text that is not "
                "learned, most likely a turn nobody answers.",
                "Leave the last turn out, or give it an answer; are the roles the right way round?",
                np.flatnonzero(tail),
            )

    def _markers(self) -> None:
        markers = self.text.markers
        if not markers.count:
            return
        own = str(self.material.manifest.get("format") or "")
        families: dict[str, int] = {}
        for (family, _), count in self.text.marker_counts.items():
            families[family] = families.get(family, 0) + count
        ordered = sorted(families, key=lambda family: -families[family])
        shown = ", ".join(
            f"{marker} x {count:,}" for (_, marker), count in self.text.marker_counts.most_common(5)
        )
        share = markers.rows / max(1, self.text.rows)
        templated = share >= DOUBLY_TEMPLATED and any(f not in CONTROL_FREE for f in ordered)
        own = FAMILIES.get(own, own)
        says = ", ".join(f"{name} (its own)" if name == own else name for name in ordered[:3])
        double = " The rows look templated already." if templated else ""
        sampled = "" if self.text_share >= 1 else f" in the {self.text_share:.0%} looked at"
        self.add(
            "control-text",
            ERROR if templated else WARN,
            markers.rows,
            f"{plural(markers.rows, 'row')}{sampled} hold{s(markers.rows)} control tokens "
            f"as ordinary text, in the language of {says}: {shown}.{double}",
            "They stay text and train the model to write them out. Give the plain messages and "
            "let the chat format write the tokens.",
            markers.first,
            formats=families,
            markers={marker: count for (_, marker), count in self.text.marker_counts.items()},
        )

    def _characters(self) -> None:
        text = self.text
        if text.replaced.count:
            self.add(
                "broken-text",
                self.by_share(text.replaced.rows),
                text.replaced.count,
                f"{plural(text.replaced.rows, 'row')} hold{s(text.replaced.rows)} "
                f"{plural(text.replaced.count, 'replacement character')} (U+FFFD): text that was "
                "read in the wrong encoding, or cut inside a character.",
                "Read the source again as what it is, most often UTF-8 or Windows-1252.",
                text.replaced.first,
                text.replaced.rows,
            )
        if text.hidden.count:
            self.add(
                "hidden-characters",
                NOTE,
                text.hidden.count,
                f"{plural(text.hidden.rows, 'row')} hold{s(text.hidden.rows)} "
                f"{plural(text.hidden.count, 'character')} nobody sees (zero width, or changing "
                "the direction of a text).",
                "Most often left over from web pages; take them out unless the script needs them.",
                text.hidden.first,
                text.hidden.rows,
            )
        if text.nul.count:
            self.add(
                "nul",
                WARN,
                text.nul.count,
                f"{plural(text.nul.rows, 'row')} hold{s(text.nul.rows)} the character NUL.",
                "Binary data or UTF-16 read as something else: look at the source.",
                text.nul.first,
                text.nul.rows,
            )

    def _turns(self) -> None:
        turns = self.material.turns
        if turns is None:
            return
        for code, hits, severity, message, move in (
            (
                "roles-swapped",
                turns.swapped,
                WARN,
                "the user speaks as an assistant does",
                "Are the roles the right way round? Check what the source calls `from` or `role`.",
            ),
            (
                "unanswered",
                turns.unanswered,
                self.by_share(turns.unanswered.rows),
                "the last turn is not an answer: it is read and never learned",
                "Leave that turn out, or add the answer.",
            ),
            (
                "role-repeated",
                turns.repeated,
                self.by_share(turns.repeated.rows),
                "one side speaks twice in a row",
                "Join such turns; some chat templates refuse them.",
            ),
            (
                "answer-first",
                turns.answer_first,
                NOTE,
                "the assistant speaks first",
                "Fine if the model is to open the talk; otherwise the question is missing.",
            ),
            (
                "late-system",
                turns.late_system,
                NOTE,
                "a system text stands behind the first turn",
                "Most models expect it first, and some chat templates refuse it.",
            ),
        ):
            if hits.rows:
                self.add(
                    code,
                    severity,
                    hits.rows,
                    f"in {plural(hits.rows, 'row')} {message}.",
                    move,
                    hits.first,
                )

    def _repeats(self) -> None:
        if self.material.kind == "stream" and not self.material.documents_known:
            return
        measures, units = self.measures, self.units
        what = "pair" if self.pairs else "row"
        hashes = unit_hashes(measures.hashes, self.pairs)
        exact = repeats(hashes, units)
        if exact.extra:
            severity = WARN if exact.extra >= MANY * units.size else NOTE
            self.add(
                "duplicates",
                severity,
                exact.extra,
                f"{plural(exact.extra, what)} repeat{s(exact.extra)} another one "
                f"token for token ({exact.extra / units.size:.1%}; {exact.groups:,} different ones "
                "are repeated).",
                "Leave the repeats out: they are learned by heart, and leak into evaluation.",
                [row for group in exact.largest for row in group[:2]],
                exact.extra + exact.groups,
                groups=exact.largest,
            )
        long = unit_sums(measures.letters, self.pairs) >= LETTERS
        if self.material.vocabulary is not None and long.any():
            letters = unit_hashes(measures.letter_hashes, self.pairs)
            _, first = np.unique(hashes, return_index=True)
            kept = np.sort(first)
            kept = kept[long[kept]]
            near = repeats(letters[kept], units[kept])
            if near.extra:
                severity = WARN if near.extra >= MANY * units.size else NOTE
                self.add(
                    "near-duplicates",
                    severity,
                    near.extra,
                    f"{plural(near.extra, what)} more differ{s(near.extra)} from "
                    "another one only in case, spaces, punctuation or control tokens "
                    f"({near.extra / units.size:.1%}).",
                    "Most often one text from two sources: keep one of each.",
                    [row for group in near.largest for row in group[:2]],
                    near.extra + near.groups,
                    groups=near.largest,
                )
        self._prompts(hashes)

    def _prompts(self, hashes: npt.NDArray[np.uint64]) -> None:
        measures, units = self.measures, self.units
        prompt = measures.prompt[units]
        _, first = np.unique(hashes, return_index=True)
        kept = np.sort(first)
        kept = kept[(prompt[kept] > 1) & (prompt[kept] < NOT_LEARNED)]
        again = repeats(measures.prompt_hashes[units[kept]], units[kept])
        if not again.extra:
            return
        largest = len(again.largest[0])
        more = " or more" if largest == Hits.LIMIT else ""
        rows = [row for group in again.largest for row in group[:2]]
        if self.pairs:
            self.add(
                "many-pairs",
                NOTE,
                again.groups,
                f"{plural(again.groups, 'prompt')} stand in more than one pair, one in "
                f"{largest}{more}.",
                "Fine when several answers were ranked; they weigh as much as many prompts.",
                rows,
                again.extra + again.groups,
                groups=again.largest,
            )
        else:
            self.add(
                "repeated-prompts",
                NOTE,
                again.groups,
                f"{plural(again.groups, 'prompt')} stand in several rows with different answers, "
                f"one in {largest}{more}.",
                "Fine when a question has many answers; contradicting ones teach neither.",
                rows,
                again.extra + again.groups,
                groups=again.largest,
            )

    def _preferences(self) -> None:
        if not self.pairs:
            return
        measures = self.measures
        equal = measures.hashes[0::2] == measures.hashes[1::2]
        count = int(np.count_nonzero(equal))
        if count:
            self.add(
                "answers-equal",
                ERROR,
                count,
                f"{plural(count, 'pair')} of answers say the same twice: nothing can be learned.",
                "Leave them out.",
                2 * np.flatnonzero(equal),
            )
        better, worse = measures.trained[0::2], measures.trained[1::2]
        longer, shorter = int((better > worse).sum()), int((better < worse).sum())
        if better.size < BIASED_PAIRS or longer + shorter == 0:
            return
        share = max(longer, shorter) / better.size
        if share >= BIAS:
            side = "better" if longer > shorter else "worse"
            self.add(
                "length-bias",
                WARN,
                max(longer, shorter),
                f"in {share:.0%} of the pairs the {side} answer is the longer one "
                f"(on average {better.mean():.0f} and {worse.mean():.0f} tokens): the model may "
                "learn length instead of quality.",
                "Balance the lengths, or use a loss that divides by them (sigmoid_norm).",
                share=round(share, 4),
            )


def unit_hashes(hashes: npt.NDArray[np.uint64], pairs: bool) -> npt.NDArray[np.uint64]:
    """One hash for each row, or for each pair."""
    return hashes[0::2] * np.uint64(3) + hashes[1::2] if pairs else hashes


def unit_sums(values: npt.NDArray[np.int64], pairs: bool) -> npt.NDArray[np.int64]:
    """One sum for each row, or for each pair."""
    return values[0::2] + values[1::2] if pairs else values
