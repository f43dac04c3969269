"""Mirror of the group Trainer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .core import (
    Handle,
    c_optional_path,
    c_string,
    check,
    ffi,
    json_out,
    lib,
    out_handle,
    text_out,
    view,
)

if TYPE_CHECKING:
    import numpy.typing as npt

KINDS = {
    lib.ABT_EVENT_NONE: "none",
    lib.ABT_EVENT_STEP: "step",
    lib.ABT_EVENT_EVALUATION: "evaluation",
    lib.ABT_EVENT_CHECKPOINT: "checkpoint",
    lib.ABT_EVENT_FINISHED: "finished",
}
STOP_REASONS = {
    lib.ABT_STOP_COMPLETED: "completed",
    lib.ABT_STOP_EARLY: "early_stopped",
    lib.ABT_STOP_INTERRUPTED: "interrupted",
}


def open(
    config_json: str,
    model: Handle,
    dataset: Handle,
    eval_dataset: Handle | None,
    *,
    run_dir: str | os.PathLike[str] | None,
    tokenizer_dir: str | os.PathLike[str] | None,
    resume_from: str | os.PathLike[str] | None,
) -> Handle:
    """Begins or resumes a run."""
    options = ffi.new("abt_trainer_options *")
    options.struct_size = ffi.sizeof("abt_trainer_options")
    strings = (
        c_optional_path(run_dir, "run_dir"),
        c_optional_path(tokenizer_dir, "tokenizer_dir"),
        c_optional_path(resume_from, "resume_from"),
    )  # cffi does not keep what a struct's pointers point to: this does, until the call is over
    options.run_dir, options.tokenizer_dir, options.resume_from = strings
    result = out_handle()
    check(
        lib.abt_trainer_open(
            c_string(config_json, "config_json"),
            model.value,
            dataset.value,
            0 if eval_dataset is None else eval_dataset.value,
            options,
            result,
        )
    )
    return Handle(result[0], lib.abt_trainer_free)


def new_event() -> Any:
    """An event to be filled by `next`, again and again."""
    event = ffi.new("abt_event *")
    event.struct_size = ffi.sizeof("abt_event")
    return event


def next(handle: Handle, event: Any) -> str:
    """Does the next thing; its kind is returned and `event` tells the rest."""
    check(lib.abt_trainer_next(handle.value, event))
    return KINDS[int(event.kind)]


def event_path(event: Any) -> str:
    """The folder of a checkpoint event."""
    return os.fsdecode(bytes(ffi.buffer(event.path, event.path_size)))


def request_stop(handle: Handle) -> None:
    """Asks the run to end after the update in progress."""
    check(lib.abt_trainer_request_stop(handle.value))


def save(handle: Handle) -> str:
    """Saves a checkpoint now and returns its folder."""
    return os.fsdecode(text_out(lib.abt_trainer_save, handle.value))


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """`step` of the newest whole checkpoint or None, and a `note` on damaged ones."""
    return json_out(lib.abt_checkpoint_latest_json, c_string(os.fsencode(run_dir), "run_dir"))


def progress(handle: Handle) -> tuple[int, int]:
    """Updates done and updates planned."""
    step = ffi.new("uint64_t *")
    total = ffi.new("uint64_t *")
    check(lib.abt_trainer_progress(handle.value, step, total))
    return int(step[0]), int(total[0])


def buffers(
    handle: Handle, dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Flat views of the gradients and of both moments."""
    pointers = [ffi.new("const void **") for _ in range(3)]
    gradient_elements = ffi.new("uint64_t *")
    moment_elements = ffi.new("uint64_t *")
    check(lib.abt_trainer_buffers(handle.value, *pointers, gradient_elements, moment_elements))
    count, moments = int(gradient_elements[0]), int(moment_elements[0])
    return (
        view(pointers[0][0], (count,), dtype, handle),
        view(pointers[1][0], (moments,), dtype, handle),
        view(pointers[2][0], (moments,), dtype, handle),
    )
