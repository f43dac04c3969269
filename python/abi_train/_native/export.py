"""Mirror of the group Files: GGUF out of a model folder or an adapter, and a look into one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

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
        about: Mapping[str, str | int] | None = None,
        experts: str | None = None,
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
            "about_json": c_string(json.dumps(dict(about)), "about") if about else ffi.NULL,
            "tokenizer_dir": c_optional_path(tokenizer_dir, "tokenizer_dir"),
            "pre": ffi.NULL if pre is None else c_string(pre, "pre"),
            "experts": ffi.NULL if experts is None else c_string(experts, "experts"),
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
    about: Mapping[str, str | int] | None = None,
    experts: str | None = None,
) -> tuple[int, int]:
    """Writes a GGUF file from a Hugging Face folder; its bytes and number of tensors.

    mix: a type for each matrix, as llama.cpp's quantiser chooses; dtype is not read then.
    adapter: a PEFT folder that is added on the way, summed in double and rounded once. about: texts
    and numbers under keys of `general.`. experts: of those stored as MXFP4: keep (None),
    changed_as_bf16 or expand.
    """
    options = _Options(
        source,
        out_path,
        dtype,
        mix,
        name,
        tokenizer_dir,
        pre,
        without_tokenizer,
        threads,
        adapter,
        about,
        experts,
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
    about: Mapping[str, str | int] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    experts: str | None = None,
) -> int:
    """The exact number of bytes `gguf` would write."""
    options = _Options(
        source,
        out_path,
        dtype,
        mix,
        name,
        tokenizer_dir,
        pre,
        without_tokenizer,
        0,
        adapter,
        about,
        experts,
    )
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


class QuantizeReport(NamedTuple):
    """What a quantised file has: bytes of the file and of the source's tensors, numbers, tensors,
    and how many matrices got another type because their rows did not fit."""

    bytes: int
    source_bytes: int
    elements: int
    tensors: int
    fallbacks: int


class _Quantize:
    """The struct with the strings it points to."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        out_path: str | os.PathLike[str],
        mix: str,
        imatrix: str | os.PathLike[str] | None,
        output_type: str | None,
        embedding_type: str | None,
        **switches: int,
    ) -> None:
        self.struct = ffi.new("abt_quantize_options *")
        self.struct.struct_size = ffi.sizeof("abt_quantize_options")
        self.kept = {
            "source": c_path(source, "source"),
            "out_path": c_path(out_path, "out_path"),
            "mix": c_string(mix, "mix"),
            "imatrix": c_optional_path(imatrix, "imatrix"),
        }
        for field, text in (("output_type", output_type), ("embedding_type", embedding_type)):
            self.kept[field] = ffi.NULL if text is None else c_string(text, field)
        for field, value in self.kept.items():
            setattr(self.struct, field, value)
        for field, number in switches.items():
            setattr(self.struct, field, whole(number, field, 32))


def quantize(
    source: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    mix: str,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    leave_output: bool = False,
    allow_requantize: bool = False,
    threads: int = 0,
) -> QuantizeReport:
    """Writes a GGUF file in a coarser type."""
    options = _Quantize(
        source,
        out_path,
        mix,
        imatrix,
        output_type,
        embedding_type,
        pure=int(pure),
        leave_output=int(leave_output),
        allow_requantize=int(allow_requantize),
        threads=threads,
    )
    report = ffi.new("abt_quantize_report *")
    report.struct_size = ffi.sizeof("abt_quantize_report")
    check(lib.abt_gguf_quantize(options.struct, report))
    return QuantizeReport(*(int(getattr(report, field)) for field in QuantizeReport._fields))


def quantize_size(
    source: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    mix: str,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    leave_output: bool = False,
    allow_requantize: bool = False,
) -> int:
    """The exact number of bytes `quantize` would write."""
    options = _Quantize(
        source,
        out_path,
        mix,
        imatrix,
        output_type,
        embedding_type,
        pure=int(pure),
        leave_output=int(leave_output),
        allow_requantize=int(allow_requantize),
    )
    size = ffi.new("uint64_t *")
    check(lib.abt_gguf_quantize_size(options.struct, size))
    return int(size[0])


def split(
    source: str | os.PathLike[str],
    prefix: str | os.PathLike[str],
    max_bytes: int,
    max_tensors: int,
) -> int:
    """Cuts a GGUF file into parts; how many there are. A limit of 0 is none."""
    parts = ffi.new("uint32_t *")
    check(
        lib.abt_gguf_split(
            c_path(source, "source"),
            c_path(prefix, "prefix"),
            whole(max_bytes, "max_bytes"),
            whole(max_tensors, "max_tensors"),
            parts,
        )
    )
    return int(parts[0])


def join(part: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> tuple[int, int]:
    """Puts the parts of a GGUF file together; its bytes and number of tensors."""
    size = ffi.new("uint64_t *")
    tensors = ffi.new("uint64_t *")
    check(lib.abt_gguf_join(c_path(part, "part"), c_path(out_path, "out_path"), size, tensors))
    return int(size[0]), int(tensors[0])


def unpack(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    dtype: str,
    tokenizer_dir: str | os.PathLike[str] | None,
    model: str | os.PathLike[str] | None,
) -> tuple[int, int]:
    """Makes a folder of a GGUF file; bytes and number of its tensors."""
    size = ffi.new("uint64_t *")
    tensors = ffi.new("uint64_t *")
    check(
        lib.abt_gguf_unpack(
            c_path(source, "source"),
            c_path(folder, "folder"),
            c_string(dtype, "dtype"),
            c_optional_path(tokenizer_dir, "tokenizer_dir"),
            c_optional_path(model, "model"),
            size,
            tensors,
        )
    )
    return int(size[0]), int(tensors[0])
