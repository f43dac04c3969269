"""Mirror of the group Instruction data."""

from __future__ import annotations

from typing import Any

from .core import Handle, check, ffi, json_out, lib, out_handle, whole


def parse(jsonl: bytes, skip_invalid: bool) -> Handle:
    """Reads a whole text. Raises DataError that names the first bad line."""
    result = out_handle()
    check(lib.abt_instructions_parse(ffi.from_buffer(jsonl), len(jsonl), skip_invalid, result))
    return Handle(result[0], lib.abt_instructions_free)


def count(handle: Handle) -> int:
    """How many samples there are."""
    result = ffi.new("uint64_t *")
    check(lib.abt_instructions_count(handle.value, result))
    return int(result[0])


def get(handle: Handle, index: int) -> tuple[str, str | None, str, int]:
    """Instruction, input, output and line of a sample."""
    sample = ffi.new("abt_instruction *")
    check(lib.abt_instructions_get(handle.value, whole(index, "index"), sample))
    return (
        _text(sample.instruction, sample.instruction_size),
        None if sample.input == ffi.NULL else _text(sample.input, sample.input_size),
        _text(sample.output, sample.output_size),
        int(sample.line),
    )


def report(handle: Handle) -> dict[str, Any]:
    """What was read and what was left out."""
    return json_out(lib.abt_instructions_report_json, handle.value)


def _text(pointer: Any, size: int) -> str:
    return bytes(ffi.buffer(pointer, size)).decode("utf-8")
