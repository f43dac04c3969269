"""Mirror of the functions on adapters in the group Model."""

from __future__ import annotations

import os

from .core import Handle, c_optional_path, c_path, c_string, check, ffi, lib


def create(
    model: Handle, lora_json: str, base_name: str | None, folder: str | os.PathLike[str]
) -> None:
    """Writes the first adapter of these settings into a new folder."""
    base = ffi.NULL if base_name is None else c_string(base_name, "base_name")
    check(
        lib.abt_adapter_create(
            model.value, c_string(lora_json, "lora_json"), base, c_path(folder, "folder")
        )
    )


def merge(
    model_path: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    tokenizer_dir: str | os.PathLike[str] | None,
) -> None:
    """Writes a model with an adapter added into its weights into a new folder."""
    check(
        lib.abt_adapter_merge(
            c_path(model_path, "model_path"),
            c_path(adapter, "adapter"),
            c_path(folder, "folder"),
            c_optional_path(tokenizer_dir, "tokenizer_dir"),
        )
    )


def check_on(model: Handle, adapter: str | os.PathLike[str]) -> None:
    """Reads an adapter as a run on this model would."""
    check(lib.abt_adapter_check(model.value, c_path(adapter, "adapter")))


def unmerge(
    model_path: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    tokenizer_dir: str | os.PathLike[str] | None,
) -> float:
    """Writes a merged model without its adapter; the most by which a weight may differ."""
    distance = ffi.new("double *")
    check(
        lib.abt_adapter_unmerge(
            c_path(model_path, "model_path"),
            c_path(adapter, "adapter"),
            c_path(folder, "folder"),
            c_optional_path(tokenizer_dir, "tokenizer_dir"),
            distance,
        )
    )
    return float(distance[0])
