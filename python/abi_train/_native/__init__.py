"""The exact mirror of `abi_train.h`: one function per C function, every length and type checked.

The only package that says `lib.`. Public modules build on it and never see cffi. A failed call raises
from `abi_train.errors` with the library's sentence.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from .. import errors
from . import _cffi

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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


def c_string(text: str | bytes, name: str) -> Any:
    """`text` as a zero-ended UTF-8 C string. Raises ArgumentError for a zero byte inside."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    if b"\0" in data:
        raise errors.ArgumentError(f"{name} holds a zero byte, which cannot be passed on")
    return ffi.new("char[]", data)


def c_path(path: str | os.PathLike[str], name: str = "path") -> Any:
    """A path as a C string."""
    return c_string(os.fsencode(path), name)


def whole(value: Any, name: str, bits: int = 64) -> int:
    """`value` as an unsigned whole number of so many bits. Raises ArgumentError otherwise."""
    try:
        number = value.__index__()
    except AttributeError:
        raise errors.ArgumentError(
            f"{name} is {value!r}; it must be a whole number"
        ) from None
    if not 0 <= number < 1 << bits:
        raise errors.ArgumentError(f"{name} is {number}; it must be from 0 to {(1 << bits) - 1}")
    return int(number)


# ---- Library ----


def version() -> str:
    """The native library's version."""
    return str(ffi.string(lib.abt_version()).decode())


def cpu_info() -> dict[str, Any]:
    """What the native library sees of this machine."""
    return dict(json_out(lib.abt_cpu_info_json))


# ---- Configuration ----


def config_schema() -> dict[str, Any]:
    """The JSON schema of `LlmTrainingConfig`."""
    return dict(json_out(lib.abt_config_schema_json))


def config_validate(config_json: str) -> dict[str, Any]:
    """The configuration with every field under its own name. Raises ConfigError."""
    return dict(json_out(lib.abt_config_validate_json, c_string(config_json, "config_json")))


def learning_rates(
    config_json: str, first_step: int, count: int, total_steps: int
) -> npt.NDArray[np.float64]:
    """The learning rates of `count` optimizer steps from `first_step`, which counts from 0."""
    import numpy as np

    rates = np.empty(whole(count, "count", 32), dtype=np.float64)
    check(
        lib.abt_schedule_learning_rates(
            c_string(config_json, "config_json"),
            whole(first_step, "first_step"),
            whole(total_steps, "total_steps"),
            ffi.from_buffer("double[]", rates) if rates.size else ffi.NULL,
            rates.size,
        )
    )
    return rates
