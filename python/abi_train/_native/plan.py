"""Mirror of the group Plan."""

from __future__ import annotations

import os
from typing import Any

from .core import Handle, c_optional_path, c_string, ffi, json_out, lib

DTYPES = {
    "float32": lib.ABT_DTYPE_F32,
    "float64": lib.ABT_DTYPE_F64,
    "stored": lib.ABT_DTYPE_STORED,
}


def plan(
    config_json: str,
    model_config_json: str,
    dataset: Handle | None = None,
    eval_dataset: Handle | None = None,
    *,
    methods_json: str | None = None,
    base_name: str | None = None,
    tokenizer_dir: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """What a run needs, by the header's names."""
    options = ffi.new("abt_plan_options *")
    options.struct_size = ffi.sizeof("abt_plan_options")
    strings = (
        ffi.NULL if methods_json is None else c_string(methods_json, "methods_json"),
        ffi.NULL if base_name is None else c_string(base_name, "base_name"),
        c_optional_path(tokenizer_dir, "tokenizer_dir"),
    )  # kept until the call is over, see trainer.open
    options.methods_json, options.base_name, options.tokenizer_dir = strings
    options.dtype = DTYPES[dtype]
    return json_out(
        lib.abt_plan_json,
        c_string(config_json, "config_json"),
        c_string(model_config_json, "model_config_json"),
        0 if dataset is None else dataset.value,
        0 if eval_dataset is None else eval_dataset.value,
        options,
    )


def parameters(model_config_json: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a model's parameters, in flat order."""
    told = json_out(lib.abt_plan_layout_json, c_string(model_config_json, "model_config_json"))
    return [(item["name"], tuple(item["shape"])) for item in told["parameters"]]
