"""Micro-batches from a file in page cache: ours beside NumPy over a memory map and torch's loader.

    python benchmarks/batches.py --rounds 5

stream: sequences of one stream of ids. masked stream: the same with a loss mask. rows: documents of
20 to 600 tokens with a loss mask, padded to the longest of a micro-batch. Every side gives inputs
and targets of the same micro-batches in the same shuffled order. native: the loader as the trainer
drives it, one call a micro-batch. native-arrays: the same as NumPy views, in Python. numpy: slices
of a memory map, as int64, which is what torch's embedding takes. torch: a `Dataset` and a
`DataLoader` in this process. Tokens are positions that are not padding; one thread; in turn, A B
A B. A checksum over inputs and targets must agree on all sides. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import Record, finish, median, parser, spread, table

import abi_train
from abi_train._native import dataset as native

KINDS = ("stream", "masked stream", "rows")
ENGINES = ("native", "native-arrays", "numpy", "torch")
VOCAB = 50_000
BATCH = 32
SEED = 1

Pair = tuple[Any, Any]


def write(folder: Path, kind: str, tokens: int) -> Path:
    """Random ids of this kind."""
    draw = np.random.default_rng(0)
    path = folder / f"{kind.replace(' ', '-')}.bin"
    rows, mask = kind == "rows", kind != "stream"
    with abi_train.TokenizedWriter(path, rows=rows, mask=mask, vocab_size=VOCAB) as out:
        left = tokens
        while left > 0:
            size = min(left, int(draw.integers(20, 601)) if rows else 1 << 20)
            ids = draw.integers(0, VOCAB, size)
            # The first half of a row is its prompt.
            flags = np.arange(size) % 600 >= (size // 2 if rows else 300)
            out.append(ids, flags if mask else None)
            left -= size
        out.finish()
    return path


class Side:
    """One way to the micro-batches of an epoch."""

    def __init__(self, path: Path, kind: str, length: int) -> None:
        self.kind, self.length = kind, length
        self.data = abi_train.TokenizedDataset.load(path)
        self.batches = self.data.micro_batches(BATCH, length, shuffle=True, seed=SEED)
        self.ids = np.memmap(path, dtype="<u4", mode="r")
        mask = path.with_suffix(".mask")
        self.mask = np.memmap(mask, dtype="u1", mode="r") if mask.exists() else None
        starts = path.with_suffix(".idx")
        self.starts = np.fromfile(starts, dtype="<u8").astype(np.int64) if starts.exists() else None

    def flags(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """Whether each of these tokens is in the loss."""
        assert self.mask is not None
        bits = np.unpackbits(self.mask[begin >> 3 : (end + 7) >> 3], bitorder="little")
        return bits[begin & 7 :][: end - begin].view(np.bool_)

    def pieces(self, unit: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Inputs and targets of a row, or of one sequence of a stream."""
        if self.starts is None:
            begin = unit * self.length
            end = begin + self.length
            inputs = self.ids[begin:end].astype(np.int64)
            targets = self.ids[begin + 1 : end + 1].astype(np.int64)
            if self.mask is not None:
                targets[~self.flags(begin + 1, end + 1)] = -1
            return inputs, targets
        begin = int(self.starts[unit])
        end = min(int(self.starts[unit + 1]), begin + self.length)
        inputs = self.ids[begin:end].astype(np.int64)
        targets = np.full(end - begin, -1, dtype=np.int64)
        kept = self.flags(begin + 1, end)
        targets[:-1][kept] = inputs[1:][kept]
        return inputs, targets

    def order(self, epoch: int) -> list[npt.NDArray[np.uint32]]:
        """Units of each micro-batch."""
        order = self.batches.order(epoch)
        if self.starts is None:
            return [np.arange(BATCH, dtype=np.uint32) + BATCH * batch for batch in order]
        return [order[at : at + BATCH] for at in range(0, order.size, BATCH)]

    def numpy(self, epoch: int) -> Iterator[Pair]:
        """Slices of the memory map, padded together."""
        for units in self.order(epoch):
            if self.starts is None:  # the sequences of a micro-batch follow each other
                begin = int(units[0]) * self.length
                size = BATCH * self.length
                inputs = self.ids[begin : begin + size].astype(np.int64)
                targets = self.ids[begin + 1 : begin + size + 1].astype(np.int64)
                if self.mask is not None:
                    targets[~self.flags(begin + 1, begin + size + 1)] = -1
                yield inputs.reshape(BATCH, -1), targets.reshape(BATCH, -1)
                continue
            rows = [self.pieces(int(unit)) for unit in units]
            longest = max(row[0].size for row in rows)
            inputs = np.zeros((len(rows), longest), dtype=np.int64)
            targets = np.full((len(rows), longest), -1, dtype=np.int64)
            for at, (ids, labels) in enumerate(rows):
                inputs[at, : ids.size] = ids
                targets[at, : ids.size] = labels
            yield inputs, targets

    def torch(self, epoch: int) -> Iterator[Pair]:
        """torch's loader over the same units."""
        import torch
        from torch.nn.utils.rnn import pad_sequence
        from torch.utils.data import DataLoader, Dataset

        side = self

        class Units(Dataset):  # type: ignore[type-arg]
            def __getitem__(self, unit: int) -> Pair:
                inputs, targets = side.pieces(unit)
                return torch.from_numpy(inputs), torch.from_numpy(targets)

        def collate(rows: list[Pair]) -> Pair:
            inputs = pad_sequence([row[0] for row in rows], batch_first=True)
            targets = pad_sequence([row[1] for row in rows], batch_first=True, padding_value=-1)
            return inputs, targets

        units = [batch.tolist() for batch in self.order(epoch)]
        return iter(DataLoader(Units(), batch_sampler=units, collate_fn=collate))

    def native_arrays(self, epoch: int) -> Iterator[Pair]:
        """Our loader in Python."""
        self.batches.seek(epoch)
        for batch in self.batches:
            yield batch.input_ids, batch.targets

    def seconds(self, engine: str, epoch: int, limit: int) -> tuple[float, int]:
        """Time and micro-batches of one pass over at most `limit` micro-batches."""
        if engine == "native":
            batch = native.new_batch()
            handle = self.batches._handle
            self.batches.seek(epoch)
            start = time.perf_counter()
            done = 0
            while done < limit and native.loader_next(handle, batch):
                done += 1
            return time.perf_counter() - start, done
        given = getattr(self, engine.replace("-", "_"))(epoch)
        start = time.perf_counter()
        done = 0
        for _ in given:
            done += 1
            if done == limit:
                break
        return time.perf_counter() - start, done

    def checksum(self, engine: str, batches: int) -> list[int]:
        """Sums over the first micro-batches: equal on every side."""
        name = "native_arrays" if engine == "native" else engine.replace("-", "_")
        found = []
        for at, (inputs, targets) in enumerate(getattr(self, name)(0)):
            if at == batches:
                break
            weights = np.arange(1, np.asarray(inputs).size + 1)
            parts = (np.asarray(inputs).reshape(-1), np.asarray(targets).reshape(-1))
            found += [int((part.astype(np.int64) * weights).sum()) for part in parts]
        return found


def tokens_of(side: Side, batches: int) -> int:
    """Positions of the first micro-batches of an epoch that are not padding."""
    batch = native.new_batch()
    side.batches.seek(0)
    total = 0
    for _ in range(batches):
        if not native.loader_next(side.batches._handle, batch):
            break
        total += int(batch.token_count)
    return total


def measure(folder: Path, kind: str, args: argparse.Namespace) -> Record:
    path = write(folder, kind, args.tokens)
    side = Side(path, kind, args.length)
    sums = {engine: side.checksum(engine, 3) for engine in args.engines}
    if len({tuple(found) for found in sums.values()}) != 1:
        raise SystemExit(f"{kind}: the sides do not give the same batches: {sums}")
    # The slow sides need not read all of it.
    limits = {
        engine: len(side.batches) if engine.startswith("native") else args.slow_batches
        for engine in args.engines
    }
    tokens = {limit: tokens_of(side, limit) for limit in set(limits.values())}
    times: dict[str, list[float]] = {engine: [] for engine in args.engines}
    for turn in range(args.rounds + 1):
        for engine in args.engines:
            # Always the first epoch, so that each round has the same tokens.
            seconds, _ = side.seconds(engine, 0, limits[engine])
            if turn:  # the first is to warm up
                times[engine].append(seconds)
    rows = [
        {
            "engine": engine,
            "tokens_per_second": tokens[limits[engine]] / median(times[engine]),
            "best": tokens[limits[engine]] / min(times[engine]),
            "spread": spread(times[engine]),
        }
        for engine in args.engines
    ]
    ours = rows[0]["tokens_per_second"]
    for row in rows:
        row["native_is"] = ours / row["tokens_per_second"]
    return {
        "kind": kind,
        "tokens": args.tokens,
        "length": args.length,
        "batch": BATCH,
        "rows": rows,
    }


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    p.add_argument("--tokens", type=int, default=64 << 20)
    p.add_argument("--length", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--slow-batches", type=int, default=600)
    args = p.parse_args()
    if args.tiny:
        args.tokens, args.length, args.rounds, args.slow_batches = 20_000, 64, 1, 5
    body: Record = {"kinds": []}
    texts = []
    with tempfile.TemporaryDirectory() as name:
        for kind in args.kinds:
            part = measure(Path(name), kind, args)
            body["kinds"].append(part)
            lines = [
                [
                    row["engine"],
                    f"{row['tokens_per_second'] / 1e9:.3f}",
                    f"{row['best'] / 1e9:.3f}",
                    f"{row['spread']:.2f}",
                    f"{row['native_is']:.1f}x",
                ]
                for row in part["rows"]
            ]
            head = ["engine", "G tok/s", "best", "spread", "native is"]
            texts.append(f"{kind}\n{table(lines, head)}")
            print(texts[-1], file=sys.stderr, flush=True)
    finish("batches", body, args, "\n\n".join(texts))


if __name__ == "__main__":
    main()
