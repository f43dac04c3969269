"""Mirror of the group Tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    text_out,
    whole,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def open(path: str | os.PathLike[str]) -> Handle:
    """Opens a folder with `tokenizer.json`, or the tokenizer inside a GGUF file."""
    result = out_handle()
    check(lib.abt_tokenizer_open(c_path(path), result))
    return Handle(result[0], lib.abt_tokenizer_free)


def info(handle: Handle) -> dict[str, Any]:
    """Vocabulary size, special ids, chat template."""
    return json_out(lib.abt_tokenizer_info_json, handle.value)


def encode(
    handle: Handle,
    text: bytes,
    *,
    add_bos: bool | None,
    add_eos: bool | None,
    parse_special: bool,
    continues: bool,
) -> npt.NDArray[np.uint32]:
    """Ids of a text."""
    import numpy as np

    options = ffi.new("abt_encode_options *")
    options.struct_size = ffi.sizeof("abt_encode_options")
    options.add_bos = -1 if add_bos is None else int(add_bos)
    options.add_eos = -1 if add_eos is None else int(add_eos)
    options.parse_special = bool(parse_special)
    options.continues = bool(continues)
    needed = ffi.new("size_t *")
    capacity = len(text) + 8
    while True:
        ids = np.empty(capacity, dtype=np.uint32)
        status = lib.abt_tokenizer_encode(
            handle.value,
            ffi.from_buffer(text),
            len(text),
            options,
            from_array(ids, "uint32_t[]"),
            capacity,
            needed,
        )
        if status == lib.ABT_STATUS_BUFFER_TOO_SMALL and needed[0] > capacity:
            capacity = int(needed[0])
            continue
        check(status)
        found: npt.NDArray[np.uint32] = ids[: int(needed[0])].copy()
        return found


def encode_batch(
    handle: Handle,
    texts: Sequence[bytes],
    *,
    add_bos: bool | None,
    add_eos: bool | None,
    parse_special: bool,
    threads: int,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Ids of all texts, and where those of each begin."""
    import numpy as np

    options = ffi.new("abt_encode_options *")
    options.struct_size = ffi.sizeof("abt_encode_options")
    options.add_bos = -1 if add_bos is None else int(add_bos)
    options.add_eos = -1 if add_eos is None else int(add_eos)
    options.parse_special = bool(parse_special)
    count = len(texts)
    bounds = np.zeros(count + 1, dtype=np.uint64)
    np.cumsum(np.fromiter(map(len, texts), dtype=np.uint64, count=count), out=bounds[1:])
    joined = texts[0] if count == 1 else b"".join(texts)
    starts = np.empty(count + 1, dtype=np.uint64)
    needed = ffi.new("size_t *")
    capacity = len(joined) + 8 * count
    while True:
        ids = np.empty(capacity, dtype=np.uint32)
        status = lib.abt_tokenizer_encode_batch(
            handle.value,
            ffi.from_buffer(joined),
            from_array(bounds, "uint64_t[]"),
            count,
            options,
            whole(threads, "threads"),
            from_array(ids, "uint32_t[]"),
            capacity,
            from_array(starts, "uint64_t[]"),
            needed,
        )
        if status == lib.ABT_STATUS_BUFFER_TOO_SMALL and needed[0] > capacity:
            capacity = int(needed[0])
            continue
        check(status)
        return ids[: int(needed[0])], starts


def decode(
    handle: Handle, ids: npt.NDArray[np.uint32], skip_special: bool, continues: bool
) -> bytes:
    """The bytes of the ids."""
    return text_out(
        lib.abt_tokenizer_decode,
        handle.value,
        from_array(ids, "uint32_t[]"),
        ids.size,
        bool(skip_special),
        bool(continues),
    )


def token_id(handle: Handle, text: bytes, control_only: bool) -> int | None:
    """The id of a token spelled as in the files, or None."""
    result = ffi.new("uint32_t *")
    status = lib.abt_tokenizer_token_id(
        handle.value, ffi.from_buffer(text), len(text), bool(control_only), result
    )
    if status == lib.ABT_STATUS_NOT_FOUND:
        return None
    check(status)
    return int(result[0])


def _ids_and_mask(
    capacity: int, function: Any, *arguments: Any
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Calls a function that ends with (ids, loss_mask, capacity, needed) until they fit."""
    import numpy as np

    needed = ffi.new("size_t *")
    while True:
        ids = np.empty(capacity, dtype=np.uint32)
        mask = np.empty(capacity, dtype=np.uint8)
        status = function(
            *arguments,
            from_array(ids, "uint32_t[]"),
            from_array(mask, "uint8_t[]"),
            capacity,
            needed,
        )
        if status == lib.ABT_STATUS_BUFFER_TOO_SMALL and needed[0] > capacity:
            capacity = int(needed[0])
            continue
        check(status)
        count = int(needed[0])
        return ids[:count].copy(), mask[:count].astype(np.bool_)


_LOSS = {
    "assistant": lib.ABT_CHAT_LOSS_ASSISTANT,
    "completion": lib.ABT_CHAT_LOSS_COMPLETION,
    "everything": lib.ABT_CHAT_LOSS_EVERYTHING,
}


_REASONING = {
    "low": lib.ABT_REASONING_LOW,
    "medium": lib.ABT_REASONING_MEDIUM,
    "high": lib.ABT_REASONING_HIGH,
}


def _chat_options(
    add_generation_prompt: bool,
    train: bool,
    loss: str,
    learn_from: int,
    date: str | None,
    reasoning: str = "medium",
) -> Any:
    """The struct, and what must live as long as it."""
    options = ffi.new("abt_chat_options *")
    options.struct_size = ffi.sizeof("abt_chat_options")
    options.add_generation_prompt = bool(add_generation_prompt)
    options.train = bool(train)
    if loss not in _LOSS:
        raise ArgumentError(f"loss is {loss!r}; it must be one of {', '.join(_LOSS)}")
    options.loss = _LOSS[loss]
    options.learn_from = whole(learn_from, "learn_from")
    text = ffi.NULL if date is None else c_string(date, "date")
    options.date = text
    if reasoning not in _REASONING:
        raise ArgumentError(f"reasoning is {reasoning!r}; it must be low, medium or high")
    options.reasoning = _REASONING[reasoning]
    return options, text


def render_chat(
    handle: Handle,
    chat_json: str,
    format: str | None,
    *,
    add_generation_prompt: bool = False,
    train: bool = False,
    loss: str = "assistant",
    learn_from: int = 0,
    date: str | None = None,
    reasoning: str = "medium",
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Ids and loss mask of a chat."""
    options, _alive = _chat_options(add_generation_prompt, train, loss, learn_from, date, reasoning)
    return _ids_and_mask(
        len(chat_json) + 512,
        lib.abt_tokenizer_render_chat,
        handle.value,
        c_string(chat_json, "messages"),
        ffi.NULL if format is None else c_string(format, "format"),
        options,
    )


def encode_segments(
    handle: Handle, segments_json: str
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Ids and loss mask of segments."""
    return _ids_and_mask(
        len(segments_json) + 64,
        lib.abt_tokenizer_encode_segments,
        handle.value,
        c_string(segments_json, "segments"),
    )


def chat_segments(
    chat_json: str,
    format: str,
    *,
    add_generation_prompt: bool = False,
    train: bool = False,
    loss: str = "assistant",
    learn_from: int = 0,
    date: str | None = None,
) -> list[dict[str, Any]]:
    """The segments of a chat."""
    options, _alive = _chat_options(add_generation_prompt, train, loss, learn_from, date)
    found = json_out(
        lib.abt_chat_segments_json,
        c_string(chat_json, "messages"),
        c_string(format, "format"),
        options,
    )
    return list(found["segments"])


def chat_format(name: str) -> dict[str, Any]:
    """A chat format's templates, stop texts, control tokens and abilities."""
    return json_out(lib.abt_chat_format_json, c_string(name, "format"))


def chat_format_names() -> tuple[str, ...]:
    """All chat formats."""
    return tuple(json_out(lib.abt_chat_format_json, ffi.NULL)["formats"])


def detect_chat_format(template: str) -> tuple[str | None, bool, bool]:
    """The format a template is of by its text; whether exactly; whether with tools too."""
    found = json_out(lib.abt_chat_detect_json, c_string(template, "template"))
    return found["format"], bool(found["exact"]), bool(found["tools"])
