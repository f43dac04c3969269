"""Mirror of the group Tokenized data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from .core import (
    Handle,
    c_path,
    check,
    ffi,
    from_array,
    json_out,
    lib,
    out_handle,
    view,
    whole,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def open(path: str | os.PathLike[str], use_manifest: bool) -> Handle:
    """Maps a token file and the files beside it."""
    result = out_handle()
    check(lib.abt_dataset_open(c_path(path), use_manifest, result))
    return Handle(result[0], lib.abt_dataset_free)


def size(handle: Handle) -> tuple[int, int, int]:
    """Tokens, rows (0 for a stream), and files."""
    counts = [ffi.new("uint64_t *") for _ in range(3)]
    check(lib.abt_dataset_size(handle.value, *counts))
    tokens, rows, files = (int(count[0]) for count in counts)
    return tokens, rows, files


def read_tokens(handle: Handle, start: int, count: int) -> npt.NDArray[np.uint32]:
    """A copy of `count` ids from `start` on."""
    import numpy as np

    ids = np.empty(count, dtype=np.uint32)
    out = from_array(ids, "uint32_t[]")
    check(lib.abt_dataset_read(handle.value, whole(start, "start"), count, out, ffi.NULL))
    return ids


def read_mask(handle: Handle, start: int, count: int) -> npt.NDArray[np.uint8]:
    """1 or 0 for each of `count` tokens from `start` on."""
    import numpy as np

    flags = np.empty(count, dtype=np.uint8)
    out = from_array(flags, "uint8_t[]")
    check(lib.abt_dataset_read(handle.value, whole(start, "start"), count, ffi.NULL, out))
    return flags


def read_row_starts(handle: Handle, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Where `count` rows from `first` on begin."""
    import numpy as np

    starts = np.empty(count, dtype=np.uint64)
    out = from_array(starts, "uint64_t[]")
    check(lib.abt_dataset_read_row_starts(handle.value, whole(first, "first"), count, out))
    return starts


def join(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Writes the manifest of a set over files of the same folder."""
    kept = [c_path(name) for name in names]
    check(lib.abt_dataset_join(c_path(path), ffi.new("const char *[]", kept), len(kept)))


def join_later(path: str | os.PathLike[str]) -> None:
    """Marks a set as being made."""
    check(lib.abt_dataset_join_later(c_path(path)))


def tokens(handle: Handle) -> npt.NDArray[np.uint32]:
    """All ids: a read-only view of the file."""
    return _slice(lib.abt_dataset_tokens, handle, "const uint32_t **", "uint32")


def mask(handle: Handle) -> npt.NDArray[np.uint8] | None:
    """The loss mask's bytes, or None."""
    found = _slice(lib.abt_dataset_mask, handle, "const uint8_t **", "uint8")
    return found if found.size else None


def row_starts(handle: Handle) -> npt.NDArray[np.uint64] | None:
    """Row starts, one more than rows, or None for a stream."""
    found = _slice(lib.abt_dataset_row_starts, handle, "const uint64_t **", "uint64")
    return found if found.size else None


def _slice(function: Any, handle: Handle, c_type: str, dtype: str) -> npt.NDArray[Any]:
    pointer = ffi.new(c_type)
    count = ffi.new("uint64_t *")
    check(function(handle.value, pointer, count))
    return view(pointer[0], (int(count[0]),), dtype, handle)


def manifest(handle: Handle) -> dict[str, Any]:
    """The manifest; empty when there is none."""
    return json_out(lib.abt_dataset_manifest_json, handle.value)


def check_vocabulary(handle: Handle, vocab_size: int) -> None:
    """Raises DataError for the first id that is not below `vocab_size`."""
    check(lib.abt_dataset_check_vocabulary(handle.value, whole(vocab_size, "vocab_size", 32)))


def verify(handle: Handle) -> int:
    """Compares the checksums of the manifest; returns how many."""
    compared = ffi.new("uint64_t *")
    check(lib.abt_dataset_verify(handle.value, compared))
    return int(compared[0])


def epoch_order(count: int, shuffle: bool, seed: int, epoch: int) -> npt.NDArray[np.uint32]:
    """The permutation of 0..count that epoch `epoch`, counted from 0, follows."""
    import numpy as np

    order = np.empty(whole(count, "count", 32), dtype=np.uint32)
    check(
        lib.abt_epoch_order(
            order.size,
            shuffle,
            whole(seed, "seed"),
            whole(epoch, "epoch"),
            from_array(order, "uint32_t[]"),
        )
    )
    return order


PACKINGS = ("none", "bfd", "bfd_split", "wrapped")
"""By their numbers in the header."""


def _options(batch_size: int, seq_len: int, shuffle: bool, seed: int, packing: str = "none") -> Any:
    if packing not in PACKINGS:
        raise ArgumentError(f"packing is {packing!r}; it must be one of {', '.join(PACKINGS)}")
    options = ffi.new("abt_batch_options *")
    options.struct_size = ffi.sizeof("abt_batch_options")
    options.batch_size = whole(batch_size, "batch_size")
    options.seq_len = whole(seq_len, "seq_len")
    options.shuffle = bool(shuffle)
    options.seed = whole(seed, "seed")
    options.packing = PACKINGS.index(packing)
    return options


def new_batch() -> Any:
    """A batch to be filled again and again."""
    batch = ffi.new("abt_batch *")
    batch.struct_size = ffi.sizeof("abt_batch")
    return batch


def batch_array(batch: Any, field: str, dtype: str, owner: object) -> npt.NDArray[Any]:
    """One of a batch's arrays, [rows, columns]."""
    return view(getattr(batch, field), (int(batch.rows), int(batch.columns)), dtype, owner)


def packed_array(batch: Any, field: str, owner: Handle) -> npt.NDArray[np.uint32] | None:
    """Positions or borders of packed rows; None of others."""
    if getattr(batch, field) == ffi.NULL:
        return None
    return batch_array(batch, field, "uint32", owner)


def batches_open(handle: Handle, batch_size: int, seq_len: int, shuffle: bool, seed: int) -> Handle:
    """The plain stream in ABI's layout."""
    result = out_handle()
    options = _options(batch_size, seq_len, shuffle, seed)
    check(lib.abt_batches_open(handle.value, options, result))
    return Handle(result[0], lib.abt_batches_free)


def batches_count(handle: Handle) -> int:
    """Batches in an epoch."""
    count = ffi.new("uint64_t *")
    check(lib.abt_batches_count(handle.value, count))
    return int(count[0])


def batches_next(handle: Handle, batch: Any) -> bool:
    """Fills `batch`; False when the epoch is over."""
    check(lib.abt_batches_next(handle.value, batch))
    return bool(batch.input_ids != ffi.NULL)


def batches_reset(handle: Handle) -> None:
    """Starts the next epoch, in its own order."""
    check(lib.abt_batches_reset(handle.value))


def loader_open(
    handle: Handle, batch_size: int, max_seq_len: int, shuffle: bool, seed: int, packing: str
) -> Handle:
    """The micro-batches the trainer reads."""
    result = out_handle()
    options = _options(batch_size, max_seq_len, shuffle, seed, packing)
    check(lib.abt_loader_open(handle.value, options, result))
    return Handle(result[0], lib.abt_loader_free)


def loader_count(handle: Handle) -> tuple[int, int, int]:
    """Micro-batches in an epoch, rows left out, rows cut."""
    counts = [ffi.new("uint64_t *") for _ in range(3)]
    check(lib.abt_loader_count(handle.value, *counts))
    micro_batches, dropped, truncated = (int(c[0]) for c in counts)
    return micro_batches, dropped, truncated


def loader_next(handle: Handle, batch: Any) -> bool:
    """Fills `batch`; False when the epoch is over."""
    check(lib.abt_loader_next(handle.value, batch))
    return bool(batch.input_ids != ffi.NULL)


def loader_seek(handle: Handle, epoch: int, micro_batch: int) -> None:
    """Goes to a micro-batch of an epoch, both counted from 0."""
    check(
        lib.abt_loader_seek(handle.value, whole(epoch, "epoch"), whole(micro_batch, "micro_batch"))
    )


def loader_order(handle: Handle, epoch: int) -> npt.NDArray[np.uint32]:
    """Row numbers (or batch numbers of a stream) in the order of `epoch`."""
    import numpy as np

    needed = ffi.new("size_t *")
    status = lib.abt_loader_order(handle.value, whole(epoch, "epoch"), ffi.NULL, 0, needed)
    if status != lib.ABT_STATUS_BUFFER_TOO_SMALL:
        check(status)
    order = np.empty(int(needed[0]), dtype=np.uint32)
    check(
        lib.abt_loader_order(
            handle.value, epoch, from_array(order, "uint32_t[]"), order.size, needed
        )
    )
    return order
