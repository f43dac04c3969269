"""What every mirror module stands on: the library, status codes, text out, handles, views."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _load() -> tuple[Any, Any, Path]:
    """The compiled module; or, when it was built without Python's headers, the plain library."""
    try:
        from . import _cffi
    except ImportError:
        from .plain import load

        return load()
    return _cffi.ffi, _cffi.lib, Path(_cffi.__file__).resolve()


#: cffi's two objects, and the file they speak to.
ffi, lib, library_path = _load()

if lib.abt_abi_version() != lib.ABT_ABI_VERSION:
    raise ImportError(
        f"the native library speaks ABI {lib.abt_abi_version()}, this package "
        f"{lib.ABT_ABI_VERSION}; install abi-train again"
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
    """Raises the error that belongs to `status`, with the library's sentence; nothing when OK."""
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


def json_out(function: Any, *arguments: Any) -> dict[str, Any]:
    """`text_out`, parsed; the functions that answer in JSON all give an object."""
    return dict(json.loads(text_out(function, *arguments)))


def c_string(text: str | bytes, name: str) -> Any:
    """`text` as a zero-ended UTF-8 C string. Raises ArgumentError for a zero byte inside."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    if b"\0" in data:
        raise errors.ArgumentError(f"{name} holds a zero byte, which cannot be passed on")
    return ffi.new("char[]", data)


def c_path(path: str | os.PathLike[str], name: str = "path") -> Any:
    """A path as a C string."""
    return c_string(os.fsencode(path), name)


def c_optional_path(path: str | os.PathLike[str] | None, name: str) -> Any:
    """A path as a C string, NULL for None."""
    return ffi.NULL if path is None else c_path(path, name)


def whole(value: Any, name: str, bits: int = 64) -> int:
    """`value` as an unsigned whole number of so many bits. Raises ArgumentError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise errors.ArgumentError(f"{name} is {value!r}; it must be a whole number")
    number = int(value.__index__())
    if not 0 <= number < 1 << bits:
        raise errors.ArgumentError(f"{name} is {number}; it must be from 0 to {(1 << bits) - 1}")
    return number


class Handle:
    """Owns one native object; freed with the last reference to this. Views hold a reference."""

    __slots__ = ("__weakref__", "_free", "value")

    def __init__(self, value: int, free: Callable[[int], int]) -> None:
        self.value = value
        self._free = free

    def __del__(self) -> None:
        value, self.value = self.value, 0
        if value:
            self._free(value)


def out_handle() -> Any:
    """Room for a handle a function gives out."""
    return ffi.new("uint64_t *")


class _Memory:
    """Native memory as numpy sees it.

    The array made from it keeps this, and this keeps the owner.
    """

    __slots__ = ("__array_interface__", "owner")

    def __init__(
        self, address: int, shape: tuple[int, ...], typestr: str, owner: object, writable: bool
    ) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (address, not writable),
        }
        self.owner = owner


def view(
    pointer: Any,
    shape: tuple[int, ...],
    dtype: str,
    owner: object,
    *,
    writable: bool = False,
) -> npt.NDArray[Any]:
    """A NumPy array over native memory, without a copy; `owner` lives as long as the array."""
    import numpy as np

    kind: np.dtype[Any] = np.dtype(dtype)
    if pointer == ffi.NULL or 0 in shape:
        return np.empty(shape, dtype=kind)
    address = int(ffi.cast("uintptr_t", pointer))
    return np.asarray(_Memory(address, shape, kind.str, owner, writable))


def from_array(array: npt.NDArray[Any], c_type: str) -> Any:
    """A pointer to a C-contiguous array's memory; NULL for an empty one."""
    return ffi.from_buffer(c_type, array) if array.size else ffi.NULL
