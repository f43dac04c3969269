"""Mirror of the group Model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import errors
from .core import (
    Handle,
    c_optional_path,
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

_DTYPES = {
    "float32": lib.ABT_DTYPE_F32,
    "float64": lib.ABT_DTYPE_F64,
    "stored": lib.ABT_DTYPE_STORED,
}
_NAMES = {number: name for name, number in _DTYPES.items()}


class Parameter(NamedTuple):
    """One parameter: where it lies in the flat arrays and how it is shaped."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    decays: bool


def _dtype(name: str) -> int:
    if name not in _DTYPES:
        raise errors.ArgumentError(
            f"dtype is {name!r}; it must be 'float32', 'float64' or 'stored'"
        )
    return int(_DTYPES[name])


def open(path: str | os.PathLike[str], dtype: str) -> Handle:
    """Reads a model folder or a GGUF file."""
    result = out_handle()
    check(lib.abt_model_open(c_path(path), _dtype(dtype), result))
    return Handle(result[0], lib.abt_model_free)


def fingerprint(model: Handle) -> int:
    """A number that tells one model's weights from another's."""
    crc = ffi.new("uint32_t *")
    check(lib.abt_model_fingerprint(model.value, crc))
    return int(crc[0])


def random(config_json: str, seed: int, dtype: str) -> Handle:
    """Random weights for a `config.json` given as text."""
    result = out_handle()
    check(
        lib.abt_model_random(
            c_string(config_json, "config_json"), whole(seed, "seed"), _dtype(dtype), result
        )
    )
    return Handle(result[0], lib.abt_model_free)


def config(handle: Handle) -> dict[str, Any]:
    """The configuration as in `config.json`."""
    return json_out(lib.abt_model_config_json, handle.value)


def size(handle: Handle) -> tuple[int, int, str]:
    """Number of parameters, number of elements, dtype."""
    parameters = ffi.new("uint64_t *")
    elements = ffi.new("uint64_t *")
    dtype = ffi.new("abt_dtype *")
    check(lib.abt_model_size(handle.value, parameters, elements, dtype))
    return int(parameters[0]), int(elements[0]), _NAMES[int(dtype[0])]


def parameters(handle: Handle) -> list[Parameter]:
    """All parameters in flat order."""
    info = ffi.new("abt_parameter *")

    def at(index: int) -> Parameter:
        check(lib.abt_model_parameter(handle.value, index, info))
        return parameter_of(info)

    return [at(index) for index in range(size(handle)[0])]


def parameter_of(info: Any) -> Parameter:
    """What an `abt_parameter` says."""
    return Parameter(
        name=bytes(ffi.buffer(info.name, info.name_size)).decode("utf-8"),
        shape=tuple(int(info.shape[i]) for i in range(info.rank)),
        offset=int(info.offset),
        size=int(info.count),
        decays=bool(info.decays),
    )


def dtype_name(number: int) -> str:
    """`float32` or `float64`, from the library's number for it."""
    return _NAMES[int(number)]


def weights(handle: Handle) -> npt.NDArray[Any]:
    """All weights as one flat, writable view."""
    pointer = ffi.new("void **")
    elements = ffi.new("uint64_t *")
    check(lib.abt_model_weights(handle.value, pointer, elements))
    return view(pointer[0], (int(elements[0]),), size(handle)[2], handle, writable=True)


def save(
    handle: Handle, folder: str | os.PathLike[str], tokenizer_dir: str | os.PathLike[str] | None
) -> None:
    """Writes a Hugging Face folder."""
    check(
        lib.abt_model_save(
            handle.value, c_path(folder, "folder"), c_optional_path(tokenizer_dir, "tokenizer_dir")
        )
    )


def import_checkpoint(handle: Handle, path: str | os.PathLike[str]) -> int:
    """Reads the weights of an ABLC or ABIC file; returns its step."""
    step = ffi.new("uint64_t *")
    check(lib.abt_model_import_checkpoint(handle.value, c_path(path), step))
    return int(step[0])


def export_checkpoint(
    handle: Handle, path: str | os.PathLike[str], weights_only: bool, step: int
) -> None:
    """Writes an ABIC (weights only) or an ABLC file."""
    check(
        lib.abt_model_export_checkpoint(
            handle.value, c_path(path), bool(weights_only), whole(step, "step")
        )
    )


def logits(
    handle: Handle,
    ids: npt.NDArray[np.uint32],
    first: int,
    *,
    adapter: str | os.PathLike[str] | None,
    threads: int,
) -> npt.NDArray[Any]:
    """What the model expects behind each of ids[first:]: (count - first, vocabulary)."""
    import numpy as np

    if not 0 <= first < ids.size:
        raise errors.ArgumentError(
            f"first is {first} of {ids.size} ids; it must be 0 or more, and below"
        )
    vocab = int(config(handle)["vocab_size"])
    wide = size(handle)[2] == "float64"
    found = np.empty((ids.size - first, vocab), dtype=np.float64 if wide else np.float32)
    options, kept = _forward_options(adapter, threads)
    pointer = ffi.cast("void *", from_array(found, "double[]" if wide else "float[]"))
    given = from_array(ids, "uint32_t[]")
    check(lib.abt_model_logits(handle.value, options, given, ids.size, first, pointer))
    del kept
    return found


def score(
    handle: Handle,
    ids: npt.NDArray[np.uint32],
    first: int,
    *,
    adapter: str | os.PathLike[str] | None,
    threads: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probability of each id from `first` on, and whether no other is likelier."""
    import numpy as np

    if not 1 <= first < ids.size:
        raise errors.ArgumentError(
            f"first is {first} of {ids.size} ids; it must be at least 1 and below their number"
        )
    found = np.zeros(ids.size - first, dtype=np.float64)
    likeliest = np.zeros(ids.size - first, dtype=np.uint8)
    options, kept = _forward_options(adapter, threads)
    check(
        lib.abt_model_score(
            handle.value,
            options,
            from_array(ids, "uint32_t[]"),
            ids.size,
            first,
            from_array(found, "double[]"),
            from_array(likeliest, "uint8_t[]"),
        )
    )
    del kept
    return found, likeliest.astype(np.bool_)


def _forward_options(adapter: str | os.PathLike[str] | None, threads: int) -> tuple[Any, Any]:
    """The struct, and the string it points to."""
    options = ffi.new("abt_forward_options *")
    options.struct_size = ffi.sizeof("abt_forward_options")
    kept = c_optional_path(adapter, "adapter")
    options.adapter = kept
    options.threads = whole(threads, "threads", 32)
    return options, kept
