"""Whole GGUF files: made coarser, cut into parts and joined, made folders of, looked into.

What the program `abi` does with `quantize`, `split`, `join`, `unpack` and `inspect`, from Python,
by the same code. Does not know: how a GGUF is made of a folder; `abi_train.export` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _native
from .errors import ArgumentError

__all__ = [
    "QuantizeReport",
    "UnpackReport",
    "inspect_gguf",
    "join_gguf",
    "quantize_gguf",
    "split_gguf",
    "unpack_gguf",
]


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What `quantize_gguf` wrote.

    size_bytes: of the file. source_bytes: of the tensors it was made from. parameters: numbers in
    all tensors. fallbacks: matrices whose rows were no whole blocks of the type meant for them, and
    which got one that fits.
    """

    path: Path
    mix: str
    size_bytes: int
    source_bytes: int
    parameters: int
    tensors: int
    fallbacks: int

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole file, its keys included."""
        return self.size_bytes * 8 / max(1, self.parameters)


def quantize_gguf(
    source: str | Path,
    output: str | Path,
    *,
    mix: str = "q4_k_m",
    imatrix: str | Path | None = None,
    pure: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    leave_output: bool = False,
    allow_requantize: bool = False,
    threads: int = 0,
) -> QuantizeReport:
    """Write a GGUF file in a coarser type, with the bytes llama.cpp's quantiser writes of it.

    source: a file in f32, f16 or bf16, or one of the parts of a model. mix: a name of
    `abi_train.export.MIXES`, in any case. imatrix: an importance matrix, of `abi imatrix` or
    llama.cpp (.gguf or .dat). pure: the same type for every matrix. output_type, embedding_type: of
    output.weight and token_embd.weight; leave_output: the first stays as it is. allow_requantize:
    take tensors that were rounded to blocks before, although they lose twice. threads: 0: one per
    CPU; the bytes are the same for any number.

    The file gets its name when it is whole and was read back; one that was there is replaced.
    Raises ArgumentError for a name that there is not, FormatError naming file and tensor,
    MissingFileError, FileAccessError, NativeMemoryError.
    """
    made = _native.export.quantize(
        source,
        output,
        mix,
        imatrix=imatrix,
        output_type=output_type,
        embedding_type=embedding_type,
        pure=pure,
        leave_output=leave_output,
        allow_requantize=allow_requantize,
        threads=threads,
    )
    return QuantizeReport(
        path=Path(output),
        mix=mix.lower(),
        size_bytes=made.bytes,
        source_bytes=made.source_bytes,
        parameters=made.elements,
        tensors=made.tensors,
        fallbacks=made.fallbacks,
    )


def split_gguf(
    source: str | Path,
    prefix: str | Path,
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
) -> list[Path]:
    """Cut a GGUF file into `prefix-00001-of-0000N.gguf` and so on; returns the parts in order.

    max_bytes: of tensor data a part; a larger tensor gets a part of its own. max_tensors: a part.
    One of the two must be given. The first part gets its name last, so parts of a run that was
    stopped are no model; names that are there already are refused.
    Raises ArgumentError, FormatError, MissingFileError, FileAccessError.
    """
    for name, value in (("max_bytes", max_bytes), ("max_tensors", max_tensors)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} is {value}; it must be at least 1")
    if max_bytes is None and max_tensors is None:
        raise ArgumentError("neither max_bytes nor max_tensors is given; give one of them")
    count = _native.export.split(source, prefix, max_bytes or 0, max_tensors or 0)
    return [Path(f"{prefix}-{n + 1:05d}-of-{count:05d}.gguf") for n in range(count)]


def join_gguf(part: str | Path, output: str | Path) -> Path:
    """Put the parts of a model together in one file, which is returned.

    part: any of them; the others are found by their names. Joining what `split_gguf` cut gives back
    the same bytes. Raises FormatError for parts that do not belong together, MissingFileError,
    FileAccessError.
    """
    _native.export.join(part, output)
    return Path(output)


def inspect_gguf(path: str | Path, *, array_limit: int = 16) -> dict[str, Any]:
    """Keys and tensors of a GGUF file: `version`, `alignment`, `keys`, `tensors`.

    Each tensor has `name`, `dtype`, `shape` (the row length first), `offset` and `bytes`. Of an
    array of more than array_limit elements only `type` and `count` are given.
    Raises FormatError naming the field that is wrong, MissingFileError.
    """
    return _native.export.inspect(path, array_limit)


@dataclass(frozen=True, kw_only=True)
class UnpackReport:
    """What `unpack_gguf` wrote. size_bytes: of all tensors."""

    path: Path
    size_bytes: int
    tensors: int


def unpack_gguf(
    source: str | Path,
    folder: str | Path,
    *,
    dtype: str = "bf16",
    tokenizer: str | Path | None = None,
    model: str | Path | None = None,
) -> UnpackReport:
    """Make the Hugging Face folder of a model's GGUF file, or the PEFT folder of an adapter's.

    folder: must not exist. dtype: bf16, f16 or f32, of what is stored in blocks; experts of gpt-oss
    stay MXFP4, to the bit. Floats keep their type; f32 numbers that all fit `dtype` become it.
    tokenizer: a folder whose tokenizer files are copied. model: the base of an adapter, a folder or
    a .gguf file. Raises `FormatError`, `ArgumentError`, `MissingFileError`, `FileAccessError`; then
    there is no folder.
    """
    folder = Path(folder)
    size, tensors = _native.export.unpack(source, folder, dtype, tokenizer, model)
    return UnpackReport(path=folder, size_bytes=size, tensors=tensors)
