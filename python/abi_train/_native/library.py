"""Mirror of the groups Library and Configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core import c_string, check, ffi, from_array, json_out, lib, whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def version() -> str:
    """The native library's version."""
    return str(ffi.string(lib.abt_version()).decode())


def abi_version() -> int:
    """The native library's ABI version."""
    return int(lib.abt_abi_version())


def cpu_info() -> dict[str, Any]:
    """What the native library sees of this machine."""
    return json_out(lib.abt_cpu_info_json)


def config_schema() -> dict[str, Any]:
    """The JSON schema of `LlmTrainingConfig`."""
    return json_out(lib.abt_config_schema_json)


def config_validate(config_json: str) -> dict[str, Any]:
    """The configuration with every field under its own name. Raises ConfigError."""
    return json_out(lib.abt_config_validate_json, c_string(config_json, "config_json"))


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
            from_array(rates, "double[]"),
            rates.size,
        )
    )
    return rates
