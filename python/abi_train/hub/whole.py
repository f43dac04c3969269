"""Whether what is to be pushed is whole: weights that are there, every byte as it was written.

Where a folder lists checksums, they decide; else the headers of the weights, whose sizes must be
those of the files. Does not know: the Hub.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from .. import _native
from ..errors import AbiTrainError, CheckpointError, FormatError, MissingFileError

CHECKSUMS: Final = "checksums.json"
MODEL: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_model.safetensors"
_SETTINGS: Final = {"adapter": "adapter_config.json", "model": "config.json"}
_HEADER_LIMIT: Final = 100_000_000
"""Bytes; the format allows no longer header."""
_BITS: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def weights_of(folder: Path, kind: str) -> list[str]:
    """Names of the files with the weights of a model or an adapter, once all of it is whole.

    Raises `MissingFileError` for what is not there, `FormatError` and `CheckpointError` for what is
    damaged; the message names the file.
    """
    settings = folder / _SETTINGS[kind]
    if not settings.is_file():
        raise MissingFileError(f"{settings}: is missing, so {folder} is no whole {kind}")
    _table(settings)
    names = [ADAPTER] if kind == "adapter" else _of_model(folder)
    for name in names:
        path = folder / name
        if not path.is_file():
            raise MissingFileError(
                f"{path}: is missing, and without it there are no weights to send; choose another "
                "checkpoint"
            )
        check_weights(path)
    if (folder / CHECKSUMS).is_file():
        _checked_sums(folder, names)
    return names if names in ([MODEL], [ADAPTER]) else [INDEX, *names]


def _of_model(folder: Path) -> list[str]:
    """The file or the parts, as the index lists them."""
    index = folder / INDEX
    if (folder / MODEL).is_file() or not index.is_file():
        return [MODEL]
    parts = _table(index).get("weight_map")
    names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
    if not names:
        raise FormatError(f"{index}: lists no weights (weight_map)")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FormatError(f"{index}: {name!r} is no .safetensors file beside it")
    return names


def check_weights(path: Path) -> None:
    """Raise `FormatError` unless the file is as long as its header says, with a tensor in it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise FormatError(f"{path}: no whole safetensors file ({size} bytes)")
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        begin = 0
        for name, one in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = one["data_offsets"]
            bits = _BITS.get(one["dtype"])
            if first != begin or (
                bits is not None and (last - first) * 8 != math.prod(one["shape"]) * bits
            ):
                raise ValueError(f"{name} is not where or not as long as the header says")
            begin = last
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: no sound safetensors header ({error})") from None
    if not tensors:
        raise FormatError(f"{path}: holds no weights")
    if 8 + length + begin != size:
        raise FormatError(f"{path}: has {size} bytes; its header says {8 + length + begin}")


def check_gguf(path: Path) -> None:
    """Raise `FormatError` for a GGUF that is cut short, damaged or without a tensor."""
    if not _native.export.inspect(path)["tensors"]:
        raise FormatError(f"{path}: holds no tensors")


def _checked_sums(folder: Path, names: list[str]) -> None:
    advice = (
        f"Push another checkpoint; where the change was meant, remove {folder / CHECKSUMS} and "
        "push again"
    )
    listed = _table(folder / CHECKSUMS).get("files")
    for name in names:
        if not isinstance(listed, dict) or name not in listed:
            raise CheckpointError(f"{folder / name}: is not in {CHECKSUMS}. {advice}")
    try:
        _native.trainer.check_checkpoint(folder)
    except AbiTrainError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}. {advice}") from None


def _table(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or error
        raise FormatError(f"{path}: cannot be read as JSON ({said})") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds no JSON object")
    return values


__all__ = ["MODEL", "check_gguf", "check_weights", "weights_of"]
