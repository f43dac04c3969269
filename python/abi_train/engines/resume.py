"""Where a run goes on from: a checkpoint by name, or the newest whole one of the run's folder."""

from __future__ import annotations

from pathlib import Path

from .. import _native
from .. import checkpoint as folders
from ..errors import CheckpointError
from ..progress import Observer
from ..runspec import RunSpec


def resume_point(spec: RunSpec, observer: Observer) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    Every file is read and compared with its checksum. For `latest` damaged checkpoints are passed
    over and named to the observer. Raises `CheckpointError` when there is none, or the one that
    was named is damaged.
    """
    found = folders.resolve_resume(spec.resume, spec.checkpoint_dir)
    if found is None:
        return None
    if str(spec.resume) != "latest":
        try:
            _native.trainer.check_checkpoint(found)
        except CheckpointError as error:
            said = str(error).rstrip(".")
            raise CheckpointError(f"{said}. Resume from another checkpoint.") from None
        return found
    newest = _native.trainer.latest_checkpoint(spec.checkpoint_dir)
    if newest["note"]:
        observer.on_note(newest["note"])
    return spec.checkpoint_dir / f"checkpoint-{newest['step']}"
