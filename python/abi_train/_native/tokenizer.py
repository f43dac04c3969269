"""Mirror of the group Tokenizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

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


def render_chat(
    handle: Handle,
    messages_json: str,
    format: str | None,
    add_generation_prompt: bool,
    train: bool,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Ids and loss mask of a chat."""
    import numpy as np

    messages = c_string(messages_json, "messages")
    name = ffi.NULL if format is None else c_string(format, "format")
    needed = ffi.new("size_t *")
    capacity = len(messages_json.encode("utf-8")) + 64
    while True:
        ids = np.empty(capacity, dtype=np.uint32)
        mask = np.empty(capacity, dtype=np.uint8)
        status = lib.abt_tokenizer_render_chat(
            handle.value,
            messages,
            name,
            bool(add_generation_prompt),
            bool(train),
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


def chat_format(name: str) -> dict[str, Any]:
    """Jinja source, stop texts and default system prompt of a chat format."""
    return json_out(lib.abt_chat_format_json, c_string(name, "format"))
