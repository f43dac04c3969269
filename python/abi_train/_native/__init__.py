"""The exact mirror of `abi_train.h`: one function per C function, every length and type checked.

The only package that says `lib.`. Public modules build on it and never see cffi. A failed call raises
from `abi_train.errors` with the library's sentence.
"""

from __future__ import annotations

import json
from typing import Any

from .. import errors
from . import _cffi

ffi: Any = _cffi.ffi
lib: Any = _cffi.lib

_HEADER_ABI_VERSION: int = lib.ABT_ABI_VERSION  # from the header the extension was generated from
if lib.abt_abi_version() != _HEADER_ABI_VERSION:
    raise ImportError(
        f"the native library speaks ABI {lib.abt_abi_version()}, this package {_HEADER_ABI_VERSION}; "
        "install abi-train again"
    )

_ERRORS: dict[int, type[errors.AbiTrainError]] = {
    lib.ABT_STATUS_INVALID_ARGUMENT: errors.ArgumentError,
    lib.ABT_STATUS_STALE_HANDLE: errors.ClosedError,
    lib.ABT_STATUS_WRONG_HANDLE: errors.ArgumentError,
    lib.ABT_STATUS_BUSY: errors.BusyError,
    lib.ABT_STATUS_BUFFER_TOO_SMALL: errors.InternalError,
    lib.ABT_STATUS_OUT_OF_MEMORY: errors.NativeMemoryError,
    lib.ABT_STATUS_CONFIG: errors.ConfigError,
    lib.ABT_STATUS_DATA: errors.DataError,
    lib.ABT_STATUS_FORMAT: errors.FormatError,
    lib.ABT_STATUS_CHECKPOINT: errors.CheckpointError,
    lib.ABT_STATUS_NUMERICS: errors.NumericsError,
    lib.ABT_STATUS_NOT_FOUND: errors.MissingFileError,
    lib.ABT_STATUS_IO: errors.FileAccessError,
    lib.ABT_STATUS_UNSUPPORTED: errors.UnsupportedError,
    lib.ABT_STATUS_INTERNAL: errors.InternalError,
}


def check(status: int) -> None:
    """Raises the error that belongs to `status`, with the library's sentence; nothing when it is OK."""
    if status == lib.ABT_STATUS_OK:
        return
    text = ffi.string(lib.abt_last_error()).decode("utf-8", "replace")
    raise _ERRORS.get(status, errors.InternalError)(text)


def text_out(function: Any, *arguments: Any) -> bytes:
    """Calls a function that ends with (buffer, capacity, needed) until the text fits."""
    needed = ffi.new("size_t *")
    capacity = 4096
    while True:
        buffer = ffi.new("char[]", capacity)
        status = function(*arguments, buffer, capacity, needed)
        if status == lib.ABT_STATUS_BUFFER_TOO_SMALL and needed[0] > capacity:
            capacity = needed[0]
            continue
        check(status)
        return bytes(ffi.buffer(buffer, needed[0]))


def json_out(function: Any, *arguments: Any) -> Any:
    """`text_out`, parsed."""
    return json.loads(text_out(function, *arguments))


# ---- Library ----


def version() -> str:
    """The native library's version."""
    return str(ffi.string(lib.abt_version()).decode())


def cpu_info() -> dict[str, Any]:
    """What the native library sees of this machine."""
    return dict(json_out(lib.abt_cpu_info_json))
