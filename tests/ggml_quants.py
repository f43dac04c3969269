"""ggml's own quantisers, out of the library that ``xllamacpp`` brings.

``quantize(rows, "Q4_K")`` gives the bytes llama.cpp's tools write. The tests compare our bytes with
them and make files of types that PyPI's ``gguf`` only decodes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


@functools.cache
def _library() -> ctypes.CDLL:
    import xllamacpp

    folder = Path(xllamacpp.__file__).parent
    library = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library


def quantize(rows: Any, name: str, importance: Any = None) -> Any:
    """Bytes [rows, bytes per row] of f32 numbers [rows, columns]; importance: [columns] or None."""
    kind = gguf.GGMLQuantizationType[name]
    numbers = np.ascontiguousarray(rows, dtype=np.float32)
    count, columns = numbers.shape
    length, size = gguf.GGML_QUANT_SIZES[kind]
    if columns % length:
        raise ValueError(f"{columns} columns are no multiple of {length}")
    out = np.zeros((count, columns // length * size), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    written = _library().ggml_quantize_chunk(
        int(kind),
        numbers.ctypes.data,
        out.ctypes.data,
        0,
        count,
        columns,
        None if weights is None else weights.ctypes.data,
    )
    if written != out.size:
        raise AssertionError(f"ggml wrote {written} bytes instead of {out.size}")
    return out


def requantize(source: Path, target: Path, types: Mapping[str, str], default: str) -> None:
    """Copies a GGUF of floats; its matrices become ``default``, or what ``types`` says by name."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = gguf.GGUFWriter(str(target), architecture.contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim == 1:
            writer.add_tensor(tensor.name, numbers)
            continue
        name = types.get(tensor.name, default)
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(tensor.name, quantize(numbers, name), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
