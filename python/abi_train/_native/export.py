"""Mirror of the group Files: GGUF out of a model folder or an adapter, and a look into one."""

from __future__ import annotations

import os
from typing import Any

from .core import c_optional_path, c_path, c_string, check, ffi, json_out, lib, whole


class _Options:
    """The struct with the strings it points to."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        out_path: str | os.PathLike[str],
        dtype: str,
        mix: str | None,
        name: str | None,
        tokenizer_dir: str | os.PathLike[str] | None,
        pre: str | None,
        without_tokenizer: bool,
        threads: int,
        adapter: str | os.PathLike[str] | None = None,
    ) -> None:
        self.struct = ffi.new("abt_export_options *")
        self.struct.struct_size = ffi.sizeof("abt_export_options")
        self.kept = {
            "source": c_path(source, "source"),
            "adapter": c_optional_path(adapter, "adapter"),
            "out_path": c_path(out_path, "out_path"),
            "dtype": c_string(dtype, "dtype"),
            "mix": ffi.NULL if mix is None else c_string(mix, "mix"),
            "name": ffi.NULL if name is None else c_string(name, "name"),
            "tokenizer_dir": c_optional_path(tokenizer_dir, "tokenizer_dir"),
            "pre": ffi.NULL if pre is None else c_string(pre, "pre"),
        }
        for field, value in self.kept.items():
            setattr(self.struct, field, value)
        self.struct.without_tokenizer = bool(without_tokenizer)
        self.struct.threads = whole(threads, "threads", 32)


def gguf(
    source: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    dtype: str = "q8_0",
    mix: str | None = None,
    name: str | None = None,
    tokenizer_dir: str | os.PathLike[str] | None = None,
    pre: str | None = None,
    without_tokenizer: bool = False,
    threads: int = 0,
    adapter: str | os.PathLike[str] | None = None,
) -> tuple[int, int]:
    """Writes a GGUF file from a Hugging Face folder; its bytes and number of tensors.

    mix: a type for each matrix, as llama.cpp's quantiser chooses; dtype is not read then.
    adapter: a PEFT folder that is added on the way, summed in double and rounded once.
    """
    options = _Options(
        source, out_path, dtype, mix, name, tokenizer_dir, pre, without_tokenizer, threads, adapter
    )
    size = ffi.new("uint64_t *")
    tensors = ffi.new("uint64_t *")
    check(lib.abt_export_gguf(options.struct, size, tensors))
    return int(size[0]), int(tensors[0])


def gguf_size(
    source: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    dtype: str = "q8_0",
    mix: str | None = None,
    name: str | None = None,
    tokenizer_dir: str | os.PathLike[str] | None = None,
    pre: str | None = None,
    without_tokenizer: bool = False,
) -> int:
    """The exact number of bytes `gguf` would write."""
    options = _Options(source, out_path, dtype, mix, name, tokenizer_dir, pre, without_tokenizer, 0)
    size = ffi.new("uint64_t *")
    check(lib.abt_export_gguf_size(options.struct, size))
    return int(size[0])


def adapter(
    folder: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    dtype: str = "f32",
    name: str | None = None,
) -> tuple[int, int]:
    """Writes a GGUF adapter from a PEFT folder; its bytes and number of tensors."""
    options = ffi.new("abt_adapter_export_options *")
    options.struct_size = ffi.sizeof("abt_adapter_export_options")
    kept = {
        "adapter": c_path(folder, "adapter"),
        "model": c_optional_path(model, "model"),
        "out_path": c_path(out_path, "out_path"),
        "dtype": c_string(dtype, "dtype"),
        "name": ffi.NULL if name is None else c_string(name, "name"),
    }
    for field, value in kept.items():
        setattr(options, field, value)
    size = ffi.new("uint64_t *")
    tensors = ffi.new("uint64_t *")
    check(lib.abt_export_adapter_gguf(options, size, tensors))
    return int(size[0]), int(tensors[0])


def inspect(path: str | os.PathLike[str], array_limit: int = 16) -> dict[str, Any]:
    """Keys and tensors of a GGUF file; longer arrays as type and count."""
    return json_out(lib.abt_gguf_inspect_json, c_path(path), whole(array_limit, "array_limit"))
