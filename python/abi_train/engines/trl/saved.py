"""Checkpoint folders of the TRL engine: what is written into one, and the optimizer's moments.

The form is the native engine's, so a run goes on with either. transformers' own optimizer and
state files are pickles and are not used. Does not know: when to save, which folders to keep.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ... import _native
from ... import checkpoint as folders
from ...errors import CheckpointError, EngineError
from . import adapter
from .adapter import trained
from .libraries import load_file, save_file, torch
from .surroundings import one_line
from .together import in_parts_by_deepspeed, parted, whole, whole_moment

if TYPE_CHECKING:
    from .session import Session

RANDOM_FILE: Final = "torch_random.safetensors"
"""Where torch's generators stand; only in checkpoints of runs with dropout."""


def fill(
    folder: Path,
    session: Session,
    model: Any,
    tensors: dict[str, Any],
    moments: dict[str, Any],
    *,
    epoch: float,
) -> None:
    """Write weights, tokenizer, moments and state into a folder."""
    from ... import __version__

    if session.lora is None:
        model.save_pretrained(folder, state_dict=tensors)
    else:
        adapter.write(folder, tensors, model)
        model.get_base_model().config.save_pretrained(folder)
    folders.copy_tokenizer(session.spec.tokenizer_dir or session.resume_from, folder)
    if session.lora is not None and session.lora.dropped:
        save_file(random_state(), folder / RANDOM_FILE)
    save_file(moments, folder / folders.OPTIMIZER_FILE, metadata={"format": "pt"})
    best = session.state["best_step"]
    document = folders.trainer_state(
        engine="trl",
        version=__version__,
        identity=session.identity,
        state=session.state,
        config=session.config.to_dict(),
        epoch=epoch,
        history=session.log_history(),
        best_path=None if best is None else f"checkpoint-{best}",
    )
    text = json.dumps(document, indent=2) + "\n"
    (folder / folders.STATE_FILE).write_text(text, encoding="utf-8")
    _native.trainer.seal_checkpoint(folder)


def random_state() -> dict[str, Any]:
    """The state of torch's generators, from which dropout is drawn."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(checkpoint: Path) -> bool:
    """Put torch's generators where they were; False when the checkpoint does not say where."""
    path = checkpoint / RANDOM_FILE
    if not path.is_file():
        return False
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    return True


def weights_of(model: Any, *, lora: bool) -> dict[str, Any]:
    """What a checkpoint keeps of a model: the adapter, or all. Every process must ask."""
    if lora:
        return {key: whole(value) for key, value in trained(model)}
    once: dict[int, tuple[str, Any]] = {}  # a tied head is the embedding, under a second name
    for key, value in model.state_dict(keep_vars=True).items():
        once.setdefault(id(value), (key, value))
    return {key: whole(value) for key, value in once.values()}


def moments_of(model: Any, optimizer: Any) -> dict[str, Any]:
    """The optimizer's moments under the names of files. Every process must ask."""
    tensors: dict[str, Any] = {}
    for name, parameter in trained(model):
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for moment in folders.MOMENTS:
            value = whole_moment(parameter, state, moment)
            if value is not None:
                tensors[f"{moment}.{name}"] = value
    return tensors


def require_moments(checkpoint: Path, model: Any) -> None:
    """Raise `CheckpointError` when a checkpoint lacks a moment of what a run trains."""
    path = checkpoint / folders.OPTIMIZER_FILE
    tensors = _moments(path)
    for name, parameter in trained(model):
        if not in_parts_by_deepspeed(parameter):
            _require_pair(path, tensors, name, parameter)


def _moments(path: Path) -> dict[str, Any]:
    try:
        tensors: dict[str, Any] = load_file(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({one_line(error)}). Resume from another checkpoint."
        ) from error
    return tensors


def _require_pair(path: Path, tensors: dict[str, Any], name: str, parameter: Any) -> None:
    for moment in folders.MOMENTS:
        key = f"{moment}.{name}"
        if key not in tensors or tensors[key].shape != parameter.shape:
            raise CheckpointError(
                f'{path}: tensor "{key}" is missing or has another shape than its weight. '
                "Resume from another checkpoint."
            )


def load_moments(checkpoint: Path, model: Any, optimizer: Any, *, step: int) -> None:
    """Put the moments of a checkpoint into an optimizer which has made `step` updates."""
    path = checkpoint / folders.OPTIMIZER_FILE
    tensors = _moments(path)
    for name, parameter in trained(model):
        if in_parts_by_deepspeed(parameter):
            raise EngineError(
                f"{checkpoint}: a run cannot go on under ZeRO-3; use the fsdp2 or ddp configuration"
            )
        _require_pair(path, tensors, name, parameter)
        for moment in folders.MOMENTS:
            optimizer.state[parameter][moment] = parted(tensors[f"{moment}.{name}"], parameter)
        optimizer.state[parameter]["step"] = torch.tensor(float(step))
