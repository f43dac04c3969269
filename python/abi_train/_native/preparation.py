"""Mirror of the group Preparation: lines of JSON to token files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .core import Handle, c_string, check, ffi, json_out, lib, out_handle


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    bytes_done of bytes_total of the source files are read, bytes_before of them by an earlier
    program. lines: read and not blank. counting: lines are being counted for the split.
    """

    bytes_done: int
    bytes_before: int
    bytes_total: int
    lines: int
    rows: int
    tokens: int
    counting: bool


def open(tokenizer: Handle, options: dict[str, Any]) -> Handle:
    """Opens the sources. `options` are those the header names."""
    result = out_handle()
    text = c_string(json.dumps(options, ensure_ascii=False), "options")
    check(lib.abt_preparation_open(tokenizer.value, text, result))
    return Handle(result[0], lib.abt_preparation_free)


def run(handle: Handle) -> None:
    """Does the work, once. Other threads may ask for progress and cancel meanwhile."""
    check(lib.abt_preparation_run(handle.value))


def progress(handle: Handle) -> Progress:
    """How far the work is, from any thread."""
    now = ffi.new("abt_progress *")
    check(lib.abt_preparation_progress(handle.value, now))
    return Progress(
        bytes_done=int(now.bytes_done),
        bytes_before=int(now.bytes_before),
        bytes_total=int(now.bytes_total),
        lines=int(now.lines),
        rows=int(now.rows),
        tokens=int(now.tokens),
        counting=bool(now.counting),
    )


def cancel(handle: Handle) -> None:
    """`run` then soon raises; what was done is kept."""
    check(lib.abt_preparation_cancel(handle.value))


def report(handle: Handle) -> dict[str, Any]:
    """Counts of rows and tokens, lines passed over and why."""
    return json_out(lib.abt_preparation_report_json, handle.value)


def check_lines(text: Any) -> tuple[int, int, int]:
    """Lines, values and bytes of text in lines of JSON. Raises DataError for the first bad one.

    text: anything with a buffer of bytes, such as a mapped file.
    """
    counts = ffi.new("abt_jsonl_counts *")
    view = ffi.from_buffer(text)
    check(lib.abt_jsonl_check(view, len(view), counts))
    return int(counts.lines), int(counts.values), int(counts.text_bytes)
