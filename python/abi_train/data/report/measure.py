"""One pass over the ids of a token file, in blocks of one size: numbers by row.

Rows may be longer than a block: what a block adds to a row is a sum, so memory does not depend on
the file, apart from some hundred bytes a row. A row's hash is a sum of mixed (id, position) pairs
modulo 2**64: two rows with equal hashes are taken for equal. The letter hash is a polynomial over a
row's letters and digits without case, spaces and punctuation, whatever the ids. Does not know: what
is good or bad, text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..files import Bits, Ids
from .vocabulary import Vocabulary, powers

BLOCK = 1 << 20
"""Tokens looked at at once."""
NOT_LEARNED = np.iinfo(np.int64).max

Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Number = TypeVar("Number", np.int64, np.uint64)


@dataclass(kw_only=True)
class Hits:
    """Where something was found: how often, in how many rows, and the first few rows."""

    count: int = 0
    rows: int = 0
    first: list[int] = field(default_factory=list)

    LIMIT = 8

    def add(self, rows: npt.NDArray[np.integer]) -> None:
        """Count one hit for each entry, which must not fall from call to call."""
        self.count += int(rows.size)
        if rows.size == 0:
            return
        different = np.unique(rows)
        last = self.first[-1] if self.first else -1
        self.rows += int(different.size) - (self._last == int(different[0]))
        self._last = int(different[-1])
        for row in different[: self.LIMIT + 1].tolist():
            if len(self.first) < self.LIMIT and row > last:
                self.first.append(row)

    _last: int = -1


@dataclass(kw_only=True)
class Measures:
    """Numbers by row, and where ids stand that should not.

    trained: tokens of the row in the loss. prompt: tokens before the first one; NOT_LEARNED without
    any. tail: tokens after the last one. stretches: runs of learned tokens, an answer each. ended:
    those of them that end with an end token. open_end: the row's last token is learned, and the run
    it ends has no end token. hashes, prompt_hashes, letter_hashes: see the module.
    """

    lengths: Numbers
    trained: Numbers
    prompt: Numbers
    tail: Numbers
    stretches: Numbers
    ended: Numbers
    open_end: npt.NDArray[np.bool_]
    letters: Numbers
    hashes: Hashes
    prompt_hashes: Hashes
    letter_hashes: Hashes
    id_counts: Numbers
    """How often each id occurs, as far as the vocabulary is known; else up to the largest id."""
    largest_id: int = -1
    begun: int = 0
    """Rows whose first token is the begin token."""
    foreign: Hits = field(default_factory=Hits)
    double_begin: Hits = field(default_factory=Hits)
    inner_begin: Hits = field(default_factory=Hits)
    unknown: Hits = field(default_factory=Hits)
    stray: Hits = field(default_factory=Hits)
    stray_ids: dict[int, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.lengths.size)

    @property
    def tokens_in_loss(self) -> int:
        """Targets of all rows together."""
        return int(self.trained.sum())


def measure(
    tokens: Ids,
    starts: npt.NDArray[np.integer],
    mask: Bits | None,
    vocabulary: Vocabulary | None,
    *,
    vocab_size: int | None = None,
    stream: bool = False,
    block: int = BLOCK,
) -> Measures:
    """Measure rows `tokens[starts[r]:starts[r + 1]]`.

    A row's first token is never learned, in a stream only the very first one. mask: None: all is
    learned. vocab_size: ids at or above it are foreign; by default the vocabulary's size.
    """
    begins = np.asarray(starts, dtype=np.int64)
    size = vocabulary.size if vocabulary is not None else 0
    limit = vocab_size if vocab_size is not None else size or None
    found = _empty(np.diff(begins), size)
    for begin in range(0, int(begins[-1]), block):
        end = min(begin + block, int(begins[-1]))
        piece = _Piece(tokens, begins, mask, begin, end, stream)
        _count_ids(found, piece, limit, size)
        _add_loss(found, piece, vocabulary)
        _add_hashes(found, piece, vocabulary)
        if vocabulary is not None:
            _add_special(found, piece, vocabulary)
    return found


def _empty(lengths: Numbers, size: int) -> Measures:
    def zeros() -> Numbers:
        return np.zeros(lengths.size, dtype=np.int64)

    def hashes() -> Hashes:
        return np.zeros(lengths.size, dtype=np.uint64)

    return Measures(
        lengths=lengths,
        trained=zeros(),
        prompt=np.full(lengths.size, NOT_LEARNED),
        tail=lengths.copy(),
        stretches=zeros(),
        ended=zeros(),
        open_end=np.zeros(lengths.size, dtype=np.bool_),
        letters=zeros(),
        hashes=hashes(),
        prompt_hashes=hashes(),
        letter_hashes=hashes(),
        id_counts=np.zeros(size, dtype=np.int64),
    )


class _Piece:
    """The tokens `begin` to `end` and the rows they belong to.

    near_ids, near_learned: with the `before` tokens in front of them and one behind.
    """

    def __init__(
        self,
        tokens: Ids,
        starts: Numbers,
        mask: Bits | None,
        begin: int,
        end: int,
        stream: bool,
    ) -> None:
        self.before = min(2, begin)
        more = min(end + 1, int(starts[-1]))
        self.near_ids = tokens[begin - self.before : more]
        self.ids = self.near_ids[self.before : self.before + end - begin]
        self.near_learned = _flags(mask, begin - self.before, more)
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, end, side="left"))
        edges = np.clip(starts[first : last + 1], begin, end) - begin
        full = np.flatnonzero(np.diff(edges) > 0)  # a row may be empty
        self.rows = full + first
        self.edges = edges[full]
        self.sizes = np.diff(edges)[full]
        self.offset = begin - starts[self.rows]
        self.position = np.arange(end - begin) + np.repeat(self.offset, self.sizes)
        self.row = np.repeat(self.rows, self.sizes)
        learned = self.near_learned[self.before :].copy()
        if not stream:
            learned[: end - begin][self.position == 0] = False
        elif begin == 0:
            learned[0] = False
        self.learned = learned[: end - begin]
        follows = np.zeros(end - begin, dtype=np.bool_)
        follows[: more - begin - 1] = learned[1 : more - begin]
        ends = self.position + 1 == np.repeat(starts[self.rows + 1] - starts[self.rows], self.sizes)
        self.run_ends = np.flatnonzero(self.learned & ~(follows & ~ends))

    def sums(self, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """The sum of values over each row's part."""
        result: npt.NDArray[Number] = np.add.reduceat(values, self.edges)
        return result


def _flags(mask: Bits | None, begin: int, end: int) -> npt.NDArray[np.bool_]:
    if mask is None:
        return np.ones(end - begin, dtype=np.bool_)
    return mask.at(begin, end).view(np.bool_)


def _tally(target: Numbers, rows: Numbers) -> None:
    """Add one for each entry; rows do not fall."""
    if rows.size:
        counts = np.bincount(rows - rows[0])
        target[rows[0] : rows[0] + counts.size] += counts


def _count_ids(found: Measures, piece: _Piece, limit: int | None, size: int) -> None:
    largest = int(piece.ids.max())
    found.largest_id = max(found.largest_id, largest)
    if limit is not None and largest >= limit:
        found.foreign.add(piece.row[piece.ids >= limit])
    if not size:
        return
    known = piece.ids if largest < size else piece.ids[piece.ids < size]
    found.id_counts += np.bincount(known, minlength=size)


def _add_loss(found: Measures, piece: _Piece, vocabulary: Vocabulary | None) -> None:
    rows = piece.rows
    found.trained[rows] += piece.sums(piece.learned.astype(np.int64))
    at = np.flatnonzero(piece.learned)
    in_row = piece.row[at]
    position = piece.position[at]
    if at.size:
        opens = np.flatnonzero(np.diff(in_row, prepend=-1))
        closes = np.append(opens[1:] - 1, at.size - 1)
        some = in_row[opens]
        found.prompt[some] = np.minimum(found.prompt[some], position[opens])
        found.tail[some] = found.lengths[some] - 1 - position[closes]
    ends = piece.run_ends
    _tally(found.stretches, piece.row[ends])
    if vocabulary is None:
        return
    # A line break may follow the end token inside what is learned.
    good = np.zeros(ends.size, dtype=np.bool_)
    inside = np.ones(ends.size, dtype=np.bool_)
    for back in range(3):
        inside &= piece.position[ends] - back > 0
        reach = np.where(inside, piece.before + ends - back, 0)
        inside &= piece.near_learned[reach]
        ids = np.minimum(piece.near_ids[reach], vocabulary.size - 1)
        good |= inside & vocabulary.stops[ids]
    if vocabulary.past_end is not None:
        # In a chat of several turns another token may stand for the end, outside the loss.
        behind = piece.position[ends] + 1 < found.lengths[piece.row[ends]]
        after = np.where(behind, piece.before + ends + 1, 0)
        good |= behind & (piece.near_ids[after] == vocabulary.past_end)
    _tally(found.ended, piece.row[ends[good]])
    bad = ends[~good]
    last = piece.position[bad] + 1 == found.lengths[piece.row[bad]]
    found.open_end[piece.row[bad[last]]] = True


def _add_hashes(found: Measures, piece: _Piece, vocabulary: Vocabulary | None) -> None:
    mixed = _mixed(piece.ids, piece.position)
    rows = piece.rows
    found.hashes[rows] += piece.sums(mixed)
    before = piece.position < np.repeat(found.prompt[rows], piece.sizes)
    found.prompt_hashes[rows] += piece.sums(np.where(before, mixed, np.uint64(0)))
    if vocabulary is None:
        return
    ids = np.minimum(piece.ids, vocabulary.size - 1)
    vocabulary.learn(np.flatnonzero(found.id_counts))
    counts = vocabulary.letter_count[ids]
    running = np.cumsum(counts) - counts
    first = found.letters[rows] - running[piece.edges]
    exponents = running + np.repeat(first, piece.sizes)
    found.letter_hashes[rows] += piece.sums(vocabulary.letter_hash[ids] * powers(exponents))
    found.letters[rows] += piece.sums(counts)


def _mixed(ids: npt.NDArray[np.uint32], position: Numbers) -> Hashes:
    """A well mixed number for each id at its position."""
    value: Hashes = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value ^= position.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    value ^= value >> np.uint64(32)
    value *= np.uint64(0xD6E8FEB86659FD93)
    value ^= value >> np.uint64(29)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(32)
    return value


def _add_special(found: Measures, piece: _Piece, vocabulary: Vocabulary) -> None:
    ids = np.minimum(piece.ids, vocabulary.size - 1)
    if vocabulary.bos is not None:
        at = np.flatnonzero(piece.ids == vocabulary.bos)
        found.begun += int(np.count_nonzero(piece.position[at] == 0))
        inner = at[piece.position[at] > 0]
        if inner.size and not vocabulary.bos_inside_is_normal:
            second = piece.position[inner] == 1
            found.double_begin.add(piece.row[inner[second]])
            found.inner_begin.add(piece.row[inner[~second]])
    if vocabulary.unknown is not None:
        found.unknown.add(piece.row[piece.ids == vocabulary.unknown])
    odd = vocabulary.control & ~vocabulary.expected
    if vocabulary.unknown is not None:
        odd[vocabulary.unknown] = False
    stray = np.flatnonzero(odd[ids])
    found.stray.add(piece.row[stray])
    for token, count in zip(*np.unique(piece.ids[stray], return_counts=True), strict=True):
        found.stray_ids[int(token)] = found.stray_ids.get(int(token), 0) + int(count)


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Rows that have one hash.

    extra: rows beyond the first of each group. groups: how many. largest: the first rows of the
    largest groups, larger groups first.
    """

    extra: int
    groups: int
    largest: list[list[int]]


def repeats(hashes: Hashes, rows: Numbers, *, limit: int = 8) -> Repeats:
    """Which of `rows` share a hash; `hashes` has one for each of them."""
    if hashes.size == 0:
        return Repeats(extra=0, groups=0, largest=[])
    order = np.argsort(hashes, kind="stable")
    opens = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order[0]] + np.uint64(1)) != 0)
    sizes = np.diff(opens, append=hashes.size)
    large = np.flatnonzero(sizes > 1)
    some = large[np.argsort(-sizes[large], kind="stable")][:limit]
    return Repeats(
        extra=int((sizes - 1).sum()),
        groups=int(large.size),
        largest=[
            rows[order[opens[at] : opens[at] + min(int(sizes[at]), limit)]].tolist() for at in some
        ],
    )
