"""Mirror of the group Trainer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .core import (
    Handle,
    c_optional_path,
    c_path,
    c_string,
    check,
    ffi,
    json_out,
    lib,
    out_handle,
    text_out,
    view,
)
from .model import Parameter, dtype_name, parameter_of

if TYPE_CHECKING:
    import numpy.typing as npt

KINDS = {
    lib.ABT_EVENT_NONE: "none",
    lib.ABT_EVENT_STEP: "step",
    lib.ABT_EVENT_EVALUATION: "evaluation",
    lib.ABT_EVENT_CHECKPOINT: "checkpoint",
    lib.ABT_EVENT_FINISHED: "finished",
    lib.ABT_EVENT_GRADIENT: "gradient",
    lib.ABT_EVENT_REFERENCE: "reference",
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
    methods_json: str | None = None,
    base_name: str | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Handle:
    """Begins or resumes a run. methods_json: the tables `lora` and `dpo` that apply."""
    options = ffi.new("abt_trainer_options *")
    options.struct_size = ffi.sizeof("abt_trainer_options")
    strings = (
        c_optional_path(run_dir, "run_dir"),
        c_optional_path(tokenizer_dir, "tokenizer_dir"),
        c_optional_path(resume_from, "resume_from"),
    )  # cffi does not keep what a struct's pointers point to: this does, until the call is over
    options.run_dir, options.tokenizer_dir, options.resume_from = strings
    methods = ffi.NULL if methods_json is None else c_string(methods_json, "methods_json")
    base = ffi.NULL if base_name is None else c_string(base_name, "base_name")
    options.methods_json, options.base_name = methods, base
    options.rank, options.ranks = rank, ranks
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


def size(handle: Handle) -> tuple[int, int, str]:
    """Of what the optimizer trains: number of parameters, number of elements, dtype."""
    parameters = ffi.new("uint64_t *")
    elements = ffi.new("uint64_t *")
    dtype = ffi.new("abt_dtype *")
    check(lib.abt_trainer_size(handle.value, parameters, elements, dtype))
    return int(parameters[0]), int(elements[0]), dtype_name(dtype[0])


def parameters(handle: Handle) -> list[Parameter]:
    """What the optimizer trains, in flat order: the model's parameters, or the adapter's."""
    info = ffi.new("abt_parameter *")

    def at(index: int) -> Parameter:
        check(lib.abt_trainer_parameter(handle.value, index, info))
        return parameter_of(info)

    return [at(index) for index in range(size(handle)[0])]


def weights(handle: Handle) -> npt.NDArray[Any]:
    """What the optimizer trains, as one flat, writable view."""
    pointer = ffi.new("void **")
    elements = ffi.new("uint64_t *")
    check(lib.abt_trainer_weights(handle.value, pointer, elements))
    return view(pointer[0], (int(elements[0]),), size(handle)[2], handle, writable=True)


def save_adapter(handle: Handle, folder: str | os.PathLike[str]) -> None:
    """Writes the adapter as it is now into a new folder."""
    check(lib.abt_trainer_save_adapter(handle.value, c_path(folder, "folder")))


def new_event() -> Any:
    """An event to be filled by `next`, again and again."""
    event = ffi.new("abt_event *")
    event.struct_size = ffi.sizeof("abt_event")
    return event


def next(handle: Handle, event: Any) -> str:
    """Does the next thing; its kind is returned and `event` tells the rest."""
    check(lib.abt_trainer_next(handle.value, event))
    return KINDS[int(event.kind)]


def metrics(event: Any) -> dict[str, float]:
    """What a run on pairs tells of an update or an evaluation, under TRL's names; else nothing."""
    if not event.has_preference:
        return {}
    return {
        "rewards/chosen": float(event.rewards_chosen),
        "rewards/rejected": float(event.rewards_rejected),
        "rewards/margins": float(event.rewards_margins),
        "rewards/accuracies": float(event.rewards_accuracies),
        "logps/chosen": float(event.logps_chosen),
        "logps/rejected": float(event.logps_rejected),
        "logits/chosen": float(event.logits_chosen),
        "logits/rejected": float(event.logits_rejected),
        "mean_token_accuracy": float(event.accuracy),
    }


def exchange(handle: Handle) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """After a `gradient`: this process's gradient and sums, to be added up in place."""
    gradients = ffi.new("void **")
    elements = ffi.new("uint64_t *")
    sums = ffi.new("double **")
    count = ffi.new("uint64_t *")
    check(lib.abt_trainer_exchange(handle.value, gradients, elements, sums, count))
    shape, dtype = (int(elements[0]),), size(handle)[2]
    return (
        view(gradients[0], shape, dtype, handle, writable=True),
        view(sums[0], (int(count[0]),), "float64", handle, writable=True),
    )


def left_out(handle: Handle) -> tuple[int, int, int, int]:
    """Rows left out and rows cut, of training and of evaluation."""
    counts = ffi.new("abt_left_out *")
    counts.struct_size = ffi.sizeof("abt_left_out")
    check(lib.abt_trainer_left_out(handle.value, counts))
    kinds = ("dropped", "truncated", "eval_dropped", "eval_truncated")
    dropped, truncated, eval_dropped, eval_truncated = (int(getattr(counts, k)) for k in kinds)
    return dropped, truncated, eval_dropped, eval_truncated


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


def check_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Reads every file of a checkpoint folder and compares checksums."""
    check(lib.abt_checkpoint_check(c_string(os.fsencode(folder), "checkpoint")))


def seal_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Writes `checksums.json` over all files in a folder."""
    check(lib.abt_checkpoint_seal(c_string(os.fsencode(folder), "folder")))


def progress(handle: Handle) -> tuple[int, int]:
    """Updates done and updates planned."""
    step = ffi.new("uint64_t *")
    total = ffi.new("uint64_t *")
    check(lib.abt_trainer_progress(handle.value, step, total))
    return int(step[0]), int(total[0])


def buffers(
    handle: Handle,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Flat views of the gradients and of both moments."""
    pointers = [ffi.new("const void **") for _ in range(3)]
    gradient_elements = ffi.new("uint64_t *")
    moment_elements = ffi.new("uint64_t *")
    check(lib.abt_trainer_buffers(handle.value, *pointers, gradient_elements, moment_elements))
    dtype = size(handle)[2]
    count, moments = int(gradient_elements[0]), int(moment_elements[0])
    return (
        view(pointers[0][0], (count,), dtype, handle),
        view(pointers[1][0], (moments,), dtype, handle),
        view(pointers[2][0], (moments,), dtype, handle),
    )
