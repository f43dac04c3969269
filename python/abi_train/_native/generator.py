"""Mirror of the group Generator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from .core import (
    Handle,
    c_path,
    c_string,
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

ENDS = {
    lib.ABT_END_NONE: None,
    lib.ABT_END_STOP_ID: "stop_id",
    lib.ABT_END_LENGTH: "length",
    lib.ABT_END_CONTEXT: "context",
    lib.ABT_END_COMPLETE: "complete",
}


CACHES = {
    None: lib.ABT_CACHE_USUAL,
    "f32": lib.ABT_CACHE_F32,
    "f16": lib.ABT_CACHE_F16,
    "q8_0": lib.ABT_CACHE_Q8_0,
}

YARNS = {"exact": lib.ABT_YARN_EXACT, "ggml": lib.ABT_YARN_GGML}


def open(
    path: str | os.PathLike[str],
    threads: int,
    context: int,
    *,
    exact: bool = False,
    cache: str | None = None,
    yarn: str = "exact",
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
    if yarn not in YARNS:
        raise ArgumentError(f"yarn is {yarn!r}; it must be exact or ggml")
    options.yarn = YARNS[yarn]
    result = out_handle()
    check(lib.abt_generator_open(c_path(path), options, result))
    return Handle(result[0], lib.abt_generator_free)


def info(handle: Handle) -> dict[str, Any]:
    """Configuration, context, threads, number of parameters."""
    return json_out(lib.abt_generator_info_json, handle.value)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted; the defaults are greedy and without any filter."""

    ids: npt.NDArray[np.uint32]
    stop_ids: npt.NDArray[np.uint32]
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64
    seed: int = 0
    drafts: int = 0
    json_schema: str | None = None

    def fill(self, request: Any) -> list[Any]:
        """Writes this into a C struct; what must live as long as it is given back."""
        sampling = ffi.new("abt_sampling *")
        sampling.struct_size = ffi.sizeof("abt_sampling")
        sampling.temperature = self.temperature
        sampling.top_k = whole(self.top_k, "top_k", 32)
        sampling.top_p = self.top_p
        sampling.min_p = self.min_p
        sampling.repeat_penalty = self.repeat_penalty
        sampling.repeat_window = whole(self.repeat_window, "repeat_window", 32)
        sampling.seed = whole(self.seed, "seed")
        ids = from_array(self.ids, "uint32_t[]") if self.ids.size else _EMPTY
        stop_ids = from_array(self.stop_ids, "uint32_t[]")
        request.struct_size = ffi.sizeof("abt_request")
        request.ids = ids
        request.count = self.ids.size
        request.sampling = sampling
        request.stop_ids = stop_ids
        request.stop_count = self.stop_ids.size
        request.max_tokens = whole(self.max_new_tokens, "max_new_tokens")
        request.drafts = whole(self.drafts, "drafts", 32)
        schema = None if self.json_schema is None else c_string(self.json_schema, "json_schema")
        request.json_schema = ffi.NULL if schema is None else schema
        return [sampling, ids, stop_ids, schema]


_EMPTY = ffi.new("uint32_t[1]")


def start(handle: Handle, requests: Sequence[Request], lanes: int) -> None:
    """Begins to answer `requests`, at most `lanes` at a time."""
    array = ffi.new("abt_request[]", max(len(requests), 1))
    kept = [request.fill(array[i]) for i, request in enumerate(requests)]
    check(lib.abt_generator_start(handle.value, array, len(requests), whole(lanes, "lanes", 32)))
    del kept


class Tokens:
    """Room for the answers of `next`, used again and again."""

    __slots__ = ("capacity", "count", "list")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.list = ffi.new("abt_token[]", capacity)
        self.count = ffi.new("size_t *")


def next(handle: Handle, tokens: Tokens) -> list[tuple[int, int, str | None]]:
    """The next (request, id, why there is none); empty when all answers are over."""
    check(lib.abt_generator_next(handle.value, tokens.list, tokens.capacity, tokens.count))
    found = [tokens.list[i] for i in range(tokens.count[0])]
    return [(int(token.request), int(token.id), ENDS[int(token.end)]) for token in found]


def logits(handle: Handle, request: int = 0) -> npt.NDArray[np.float32]:
    """A view of the logits of a request's last token; the next call overwrites them."""
    pointer = ffi.new("const float **")
    count = ffi.new("uint64_t *")
    check(lib.abt_generator_logits(handle.value, whole(request, "request"), pointer, count))
    return view(pointer[0], (int(count[0]),), "float32", handle)


def counts(handle: Handle, request: int = 0) -> dict[str, int]:
    """What a request took so far."""
    found = ffi.new("abt_counts *")
    found.struct_size = ffi.sizeof("abt_counts")
    check(lib.abt_generator_counts(handle.value, whole(request, "request"), found))
    names = ("prompt", "reused", "answer", "guessed", "accepted")
    return {name: int(getattr(found, name)) for name in names}


def save_cache(handle: Handle, path: str | os.PathLike[str]) -> int:
    """Keeps what was computed of the last prompt in a file; of how many ids."""
    ids = ffi.new("uint64_t *")
    check(lib.abt_generator_save_cache(handle.value, c_path(path), ids))
    return int(ids[0])


def load_cache(handle: Handle, path: str | os.PathLike[str]) -> int:
    """Takes over what `save_cache` kept; how many ids there are."""
    ids = ffi.new("uint64_t *")
    check(lib.abt_generator_load_cache(handle.value, c_path(path), ids))
    return int(ids[0])


def all_logits(
    handle: Handle, ids: npt.NDArray[np.uint32], first: int, vocab: int
) -> npt.NDArray[np.float32]:
    """The logits behind every id from ids[first] on: a row of `vocab` each."""
    import numpy as np

    rows = max(int(ids.size) - whole(first, "first"), 0)
    found = np.zeros((max(rows, 1), vocab), dtype=np.float32)
    check(
        lib.abt_generator_all_logits(
            handle.value,
            from_array(ids, "uint32_t[]") if ids.size else _EMPTY,
            ids.size,
            first,
            from_array(found, "float[]"),
            found.size,
        )
    )
    return found


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
