"""Mirror of the group Generator."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from .core import Handle, c_path, check, ffi, from_array, json_out, lib, out_handle, view, whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ENDS = {
    lib.ABT_END_NONE: None,
    lib.ABT_END_STOP_ID: "stop_id",
    lib.ABT_END_LENGTH: "length",
    lib.ABT_END_CONTEXT: "context",
}


CACHES = {
    None: lib.ABT_CACHE_USUAL,
    "f32": lib.ABT_CACHE_F32,
    "f16": lib.ABT_CACHE_F16,
    "q8_0": lib.ABT_CACHE_Q8_0,
}


def open(
    path: str | os.PathLike[str],
    threads: int,
    context: int,
    *,
    exact: bool = False,
    cache: str | None = None,
) -> Handle:
    """Opens a GGUF file to run it."""
    options = ffi.new("abt_generator_options *")
    options.struct_size = ffi.sizeof("abt_generator_options")
    options.threads = whole(threads, "threads", 32)
    options.context = whole(context, "context", 32)
    options.exact = exact
    if cache not in CACHES:
        raise ArgumentError(f"cache is {cache!r}; it must be one of f32, f16, q8_0")
    options.cache = CACHES[cache]
    result = out_handle()
    check(lib.abt_generator_open(c_path(path), options, result))
    return Handle(result[0], lib.abt_generator_free)


def info(handle: Handle) -> dict[str, Any]:
    """Configuration, context, threads, number of parameters."""
    return json_out(lib.abt_generator_info_json, handle.value)


def start(
    handle: Handle,
    ids: npt.NDArray[np.uint32],
    stop_ids: npt.NDArray[np.uint32],
    max_tokens: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    repeat_window: int,
    seed: int,
) -> None:
    """Begins to continue `ids`."""
    sampling = ffi.new("abt_sampling *")
    sampling.struct_size = ffi.sizeof("abt_sampling")
    sampling.temperature = temperature
    sampling.top_k = whole(top_k, "top_k", 32)
    sampling.top_p = top_p
    sampling.min_p = min_p
    sampling.repeat_penalty = repeat_penalty
    sampling.repeat_window = whole(repeat_window, "repeat_window", 32)
    sampling.seed = whole(seed, "seed")
    check(
        lib.abt_generator_start(
            handle.value,
            from_array(ids, "uint32_t[]") if ids.size else _EMPTY,
            ids.size,
            sampling,
            from_array(stop_ids, "uint32_t[]"),
            stop_ids.size,
            whole(max_tokens, "max_tokens"),
        )
    )


_EMPTY = ffi.new("uint32_t[1]")


class Step:
    """Room for one answer of `next`, used again and again."""

    __slots__ = ("end", "id")

    def __init__(self) -> None:
        self.id = ffi.new("uint32_t *")
        self.end = ffi.new("abt_end *")


def next(handle: Handle, step: Step) -> tuple[int, str | None]:
    """The next id and None, or 0 and why there is none."""
    check(lib.abt_generator_next(handle.value, step.id, step.end))
    return int(step.id[0]), ENDS[int(step.end[0])]


def logits(handle: Handle) -> npt.NDArray[np.float32]:
    """A view of the last logits; the next call overwrites them."""
    pointer = ffi.new("const float **")
    count = ffi.new("uint64_t *")
    check(lib.abt_generator_logits(handle.value, pointer, count))
    return view(pointer[0], (int(count[0]),), "float32", handle)


def score(
    handle: Handle, ids: npt.NDArray[np.uint32], first: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probability of each id from `first` on, and whether no other is likelier."""
    import numpy as np

    count = max(int(ids.size) - first, 0)
    found = np.zeros(max(count, 1), dtype=np.float64)
    likeliest = np.zeros(max(count, 1), dtype=np.uint8)
    check(
        lib.abt_generator_score(
            handle.value,
            from_array(ids, "uint32_t[]") if ids.size else _EMPTY,
            ids.size,
            whole(first, "first"),
            from_array(found, "double[]"),
            from_array(likeliest, "uint8_t[]"),
        )
    )
    return found[:count], likeliest[:count].astype(np.bool_)
