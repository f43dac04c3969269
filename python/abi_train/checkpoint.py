"""Checkpoint folders seen from Python: find them, keep the newest, write one, read its state.

`checkpoint-N/` is a Hugging Face folder (`config.json`, `model.safetensors`, tokenizer files) with
`optimizer.safetensors` and `trainer_state.json` beside them. Both engines write this form, so a run
can be resumed on either. What only we need lives in `stateful_callbacks.abi_train` of the state
file, where transformers looks past it.

Always true: a folder under its final name is whole. It is written as `.checkpoint-N.tmp`, synced,
renamed, and the parent folder synced. Does not know: torch, models, the native library.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .errors import CheckpointError, FileAccessError

if TYPE_CHECKING:
    from .config import LlmTrainingConfig

try:
    import fcntl
except ImportError:  # Windows: runs there are not locked
    fcntl = None  # type: ignore[assignment]

LOCK_FILE: Final = "run.lock"
STATE_FILE: Final = "trainer_state.json"
MODEL_FILE: Final = "model.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_NAME: Final = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Finished checkpoints in a run folder, oldest step first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and (path / STATE_FILE).is_file()
    ]
    return [path for _, path in sorted(found)]


def require_unused(folder: Path) -> None:
    """Raise `CheckpointError` when `folder` holds checkpoints of an earlier run."""
    found = list_checkpoints(folder)
    if found:
        raise CheckpointError(
            f"{folder} holds {found[-1].name} of another run. Resume that one, or train into "
            "another folder."
        )


def resolve_resume(resume: str | Path | None, folder: Path) -> Path | None:
    """The checkpoint to resume from: a folder, or the newest in `folder` for `latest`.

    Raises `CheckpointError` when there is none.
    """
    if resume is None:
        return None
    if str(resume) == "latest":
        found = list_checkpoints(folder)
        if not found:
            raise CheckpointError(
                f"{folder}: no checkpoint to resume from. Start the run without resume, or name a "
                "checkpoint folder."
            )
        return found[-1]
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path}: not a checkpoint folder ({STATE_FILE} is missing). Name a "
            "checkpoint-N folder."
        )
    return path


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The parsed `trainer_state.json`. Raises `CheckpointError` when it is damaged or not ours."""
    path = checkpoint / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        ours = state["stateful_callbacks"]["abi_train"]
        _require_numbers(ours["state"])
        if not isinstance(ours["identity"], dict):
            raise TypeError("identity is not a table")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not the state of an abi_train run ({error}). Resume from another "
            "checkpoint, or start a new run from this one's weights."
        ) from None
    return dict(state)


def _require_numbers(state: Any) -> None:
    for key in ("global_step", "epoch", "micro_index", "max_steps", "tokens_processed", "time_ns"):
        _require_number(state, key, whole=True)
    for key in ("evaluations_without_improvement", "checkpoints_saved"):
        _require_number(state, key, whole=True, largest=2**32 - 1)
    for key in ("best_accuracy", "last_loss", "last_accuracy"):
        _require_number(state, key, whole=False)
    for key, whole in (("best_metric", False), ("best_step", True)):
        if state[key] is not None:
            _require_number(state, key, whole=whole)


def _require_number(
    state: Mapping[str, Any], key: str, *, whole: bool, largest: int = 2**64 - 1
) -> None:
    value = state[key]
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{key} is no {'whole ' if whole else ''}number")
    if whole and not 0 <= value <= largest:
        raise ValueError(f"{key} is {value}")


def require_place(checkpoint: Path, state: Mapping[str, Any], *, batches: int, group: int) -> None:
    """Raise `CheckpointError` for a place in the data that no run comes to which has `batches`
    micro-batches an epoch and takes `group` of them an update."""
    step, epoch, micro = state["global_step"], state["epoch"], state["micro_index"]
    if (
        micro < batches
        and micro % group == 0
        and step == epoch * -(-batches // group) + micro // group
    ):
        return
    raise CheckpointError(
        f"{checkpoint}: {STATE_FILE} says {step} updates done, epoch {epoch} and micro-batch "
        f"{micro}, which no run over {batches} micro-batches an epoch comes to. Resume from "
        "another checkpoint."
    )


def stopped_early(state: Mapping[str, Any], config: LlmTrainingConfig) -> bool:
    """True when evaluations have not improved for as long as `config` allows, before the end."""
    return (
        config.early_stopping
        and state["evaluations_without_improvement"] >= config.early_stopping_patience
        and state["global_step"] < state["max_steps"]
    )


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Make `folder/checkpoint-<step>` with what `fill` writes into the folder it is given.

    Returns the final path. An existing folder of that step is replaced after the new one is whole.
    """
    final = folder / f"checkpoint-{step}"
    work = folder / f".checkpoint-{step}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        fill(work)
        for path in sorted(work.rglob("*")):
            if path.is_file():
                _sync(path)
        _sync(work)
        if final.exists():
            retired = folder / f".checkpoint-{step}.old"
            shutil.rmtree(retired, ignore_errors=True)
            final.rename(retired)
            work.rename(final)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            work.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be saved ({error.strerror or error}). Earlier checkpoints are "
            "untouched; free space or choose another checkpoint_path."
        ) from error
    return final


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock, the one the native trainer takes too.

    Raises `FileAccessError` at once when another run holds it. A killed run frees it.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with path.open("ab") as file, contextlib.ExitStack() as leaving:
        leaving.callback(_remove_empty, made)
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileAccessError(
                    f"another process is training in {folder}. Wait for it to end, or choose "
                    "another folder."
                ) from None
        yield


def _remove_empty(made: Sequence[Path]) -> None:
    """Folders made for a run that then left nothing but its lock go again."""
    with contextlib.suppress(OSError):
        if made and [one.name for one in made[0].iterdir()] == [LOCK_FILE]:
            (made[0] / LOCK_FILE).unlink()
            for folder in made:
                folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a run is at work in the folder; False too where the system cannot tell."""
    if fcntl is None:
        return False
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return False  # no lock, or a file system without any


def retire(folder: Path, keep: int, *, saved: int, spare: Path | None = None) -> None:
    """Delete all but the newest `keep` checkpoints up to step `saved`, sparing one; 0 keeps all.

    Later ones are damaged or of another attempt: they neither count nor go, as natively.
    """
    if keep == 0:
        return
    count = 0
    for path in reversed(list_checkpoints(folder)):
        if path == spare or step_of(path) > saved:
            continue
        count += 1
        if count > keep:
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def copy_tokenizer(source: Path | None, target: Path) -> None:
    """Copy the tokenizer files that exist in `source`."""
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a text file so that it is either the old one or the whole new one."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one. Raises `OSError`, also
    where the name is taken by what is no file: a device would be gone for good."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with work.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            work.unlink()
        if isinstance(error, OSError):  # a full disk has no name of its own
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    _sync(path.parent)


def ends_checksum(token_ids: Any) -> int:
    """CRC-32C of the first and last 64 KiB of token ids, as the native trainer takes it."""
    edge = 64 * 1024
    words = edge // 4
    if len(token_ids) * 4 <= 2 * edge:
        return crc32c(token_ids[:].tobytes())
    last = crc32c(token_ids[-words:].tobytes())
    return crc32c(token_ids[:words].tobytes()) ^ ((last << 1 | last >> 31) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes. Plain Python: for tens of kilobytes, not for files."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _crc_row(index: int) -> int:
    for _ in range(8):
        index = (index >> 1) ^ (0x82F63B78 if index & 1 else 0)
    return index


_CRC_TABLE: Final = [_crc_row(index) for index in range(256)]


def trainer_state(
    *,
    engine: str,
    version: str,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    epoch: float,
    history: list[dict[str, Any]],
    best_path: str | None,
) -> dict[str, Any]:
    """The content of `trainer_state.json`: Hugging Face's fields, ours under their own key."""
    return {
        "best_global_step": state["best_step"],
        "best_metric": state["best_metric"],
        "best_model_checkpoint": best_path,
        "epoch": epoch,
        "eval_steps": config["eval_interval"],
        "global_step": state["global_step"],
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": [
            {key: value for key, value in row.items() if not _endless(value)} for row in history
        ],
        "logging_steps": config["log_interval"],
        "max_steps": state["max_steps"],
        "num_input_tokens_seen": state["tokens_processed"],
        "num_train_epochs": config["epochs"],
        "save_steps": config["checkpoint_interval"],
        "stateful_callbacks": {
            "abi_train": {
                "engine": engine,
                "version": version,
                "identity": dict(identity),
                "state": dict(state),
            }
        },
        "total_flos": 0.0,
        "train_batch_size": config["batch_size"],
        "trial_name": None,
        "trial_params": None,
    }


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for the first thing that makes the resumed run another run."""
    for key, unsaid in (("method", "full"), ("objective", "sft"), ("packing", "none")):
        _require_equal(key, saved.get(key, unsaid), now.get(key, unsaid))
    for key, value in now.items():
        before = saved.get(key)
        if key in _NOT_EVERYWHERE:
            if before is not None and before != value:
                raise CheckpointError(f"cannot resume: {_NOT_EVERYWHERE[key]}")
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            for inner, part in value.items():
                known = before.get(inner)
                if inner == "target_modules" and isinstance(known, list):
                    known, part = sorted(known), sorted(part)  # in any order
                _require_equal(f"{key}.{inner}", known, part)
        else:
            _require_equal(key, before, value)


_NOT_EVERYWHERE: Final = {
    "base_crc32c": "the checkpoint's adapter was trained on another base than this model. Give the "
    "model the run began with.",
    "reference_crc32c": "the reference has other numbers than the one the run began with. Give the "
    "model, adapter and ref_model the run began with.",
}
"""What not every engine can tell: compared when both sides have it."""


def _require_equal(key: str, before: Any, value: Any) -> None:
    if before != value:
        raise CheckpointError(
            f"cannot resume: {key} was {before} when the checkpoint was saved and is {value} now. "
            "Use the same value, or start a new run from the checkpoint's weights."
        )


def _endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
