"""What a run leaves on the disk: checkpoints, the file for llama.cpp, the log.

The bytes are those of the writers: headers are made and counted, files that do not exist yet are
stood in for by ones of the same shape that take no room. Only `trainer_state.json`, whose numbers
are as long as they happen to be, is not known to the byte.

Does not know: how long a run takes.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import _native
from ..errors import AbiTrainError
from ..runspec import RunSpec

STATE: Final = "trainer_state.json"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """files: bytes of each file of the last checkpoint. checkpoints: how many stay. gguf_bytes: of
    the export the recipe asks for; gguf_note says why it is not known. export_mix, export_bytes: of
    what `abi-train export --gguf` will write of the result, where that was asked about."""

    files: Mapping[str, int]
    state_bytes: int
    checkpoints: int
    gguf_bytes: int | None = None
    gguf_note: str | None = None
    export_mix: str | None = None
    export_bytes: int | None = None

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        return sum(self.files.values()) + self.state_bytes

    @property
    def while_saving_bytes(self) -> int:
        """The most that checkpoints take: those that stay, and one that is being written."""
        return (self.checkpoints + 1) * self.checkpoint_bytes

    @property
    def total_bytes(self) -> int:
        """At the worst moment, with the exported file."""
        return self.while_saving_bytes + (self.gguf_bytes or 0) + (self.export_bytes or 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "checkpoint_files": dict(self.files),
            "trainer_state_bytes_about": self.state_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints_kept": self.checkpoints,
            "while_saving_bytes": self.while_saving_bytes,
            "gguf_bytes": self.gguf_bytes,
            "gguf_note": self.gguf_note,
            "export_mix": self.export_mix,
            "export_bytes": self.export_bytes,
            "total_bytes": self.total_bytes,
        }


def kept(spec: RunSpec, updates: int | None) -> int:
    """How many checkpoints there are at the end."""
    config = spec.config
    if updates is None:
        return max(config.max_checkpoints, 1)
    every = config.checkpoint_interval
    made = updates // every + (1 if updates % every else 0) if every else 1
    return max(min(made, config.max_checkpoints) if config.max_checkpoints else made, 1)


def records(spec: RunSpec, updates: int, evaluates: bool) -> tuple[int, int]:
    """Lines of the log in `trainer_state.json` at the end: of updates, and of evaluations."""
    config = spec.config
    every = config.log_interval
    steps = updates // every if every else 0
    steps += 1 if updates and (not every or every > 1) else 0  # the first
    steps += 1 if updates > 1 and (not every or updates % every) else 0  # the last
    evals = 0
    if evaluates and updates:
        every = config.eval_interval
        evals = updates // every + (1 if updates % every else 0) if every else 1
    return steps, evals


def native_disk(
    spec: RunSpec, told: Mapping[str, Any], updates: int | None, config: Mapping[str, Any]
) -> Disk:
    """Of a native run, from what the native plan told of it."""
    steps, evals = records(spec, updates or 0, spec.eval_data is not None)
    state = told["state_bytes"]
    state += steps * told["step_record_bytes"] + evals * told["eval_record_bytes"]
    gguf, note = None, None
    if spec.config.export_gguf_path:
        gguf, note = gguf_bytes(spec, config)
    return Disk(
        files={item["name"]: int(item["bytes"]) for item in told["files"]},
        state_bytes=int(state),
        checkpoints=kept(spec, updates),
        gguf_bytes=gguf,
        gguf_note=note,
    )


def gguf_bytes(
    spec: RunSpec,
    config: Mapping[str, Any],
    *,
    dtype: str = "q8_0",
    mix: str | None = None,
    name: str | None = None,
) -> tuple[int | None, str | None]:
    """Bytes of the file that the run's end will be exported to, or why that cannot be told.

    mix: in place of dtype. name: `general.name`. (default: the recipe's `export_name`)
    """
    from ..export.metadata import about_run

    with tempfile.TemporaryDirectory(prefix="abi-train-plan-") as scratch:
        folder = Path(scratch)
        try:
            _stand_in(folder, config)
            size = _native.export.gguf_size(
                folder,
                folder / "out.gguf",
                dtype=dtype,
                mix=mix,
                name=name or spec.config.export_name,
                tokenizer_dir=spec.tokenizer_dir,
                without_tokenizer=spec.tokenizer_dir is None,
                about=about_run(spec),
            )
        except AbiTrainError as error:
            return None, str(error).replace(str(folder), str(spec.model))
    return size, None


def _stand_in(folder: Path, config: Mapping[str, Any]) -> None:
    """A model folder with the header of a float32 checkpoint and a hole where its numbers would
    be."""
    text = json.dumps(dict(config))
    (folder / "config.json").write_text(text, encoding="utf-8")
    parameters = _native.plan.parameters(text)
    header: dict[str, Any] = {}
    at = 0
    for name, shape in parameters:
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        os.truncate(file.fileno(), 8 + len(head) + at)
