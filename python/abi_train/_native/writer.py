"""Mirror of the writer in the group Tokenized data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import errors
from .core import Handle, c_path, c_string, check, ffi, from_array, lib, out_handle, whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def open(
    path: str | os.PathLike[str],
    *,
    rows: bool,
    mask: bool,
    vocab_size: int | None,
    seed: int | None,
    tokenizer_hash: str | None,
    format: str | None,
    source: str | None,
    license: str | None,
    preference: bool = False,
) -> Handle:
    """Starts a data set at `path`."""
    options = ffi.new("abt_writer_options *")
    options.struct_size = ffi.sizeof("abt_writer_options")
    options.rows = bool(rows)
    options.mask = bool(mask)
    options.vocab_size = 0 if vocab_size is None else whole(vocab_size, "vocab_size", 32)
    options.has_seed = seed is not None
    options.seed = 0 if seed is None else whole(seed, "seed")
    if preference:
        options.preference = 1
    texts = {
        "tokenizer_hash": tokenizer_hash,
        "format": format,
        "source": source,
        "license": license,
    }
    kept = {name: _optional(text, name) for name, text in texts.items()}
    for name, text in kept.items():
        setattr(options, name, text)
    result = out_handle()
    check(lib.abt_writer_open(c_path(path), options, result))
    return Handle(result[0], lib.abt_writer_free)


def _optional(text: str | None, name: str) -> Any:
    return ffi.NULL if text is None else c_string(text, name)


def append(
    handle: Handle, ids: npt.NDArray[np.uint32], in_loss: npt.NDArray[np.uint8] | None
) -> None:
    """Adds a row, or a piece of the stream."""
    flags = ffi.NULL
    if in_loss is not None:
        if in_loss.shape != ids.shape:
            raise errors.ArgumentError(
                f"in_loss has shape {in_loss.shape}, ids {ids.shape}; they must be the same"
            )
        flags = from_array(in_loss, "uint8_t[]")
    check(lib.abt_writer_append(handle.value, from_array(ids, "uint32_t[]"), ids.size, flags))


def finish(handle: Handle) -> tuple[int, int, int]:
    """Makes everything durable; tokens, rows, tokens in the loss."""
    counts = [ffi.new("uint64_t *") for _ in range(3)]
    check(lib.abt_writer_finish(handle.value, *counts))
    tokens, rows, in_loss = (int(c[0]) for c in counts)
    return tokens, rows, in_loss
