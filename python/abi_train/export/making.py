"""One GGUF, written, read back, compared with what it was made of, and only then given its name.

Everything lies in a folder beside the target until then, which is removed. What a failed comparison
found is kept beside where the file would have been. Does not know: Modelfiles, cards.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import _native
from ..checkpoint import write_text_atomic
from ..errors import AbiTrainError, FileAccessError, FormatError
from .verify import Check, How, Verification, verify

COPY_LIMIT: Final = 2 << 30
"""Most bytes of a second file that is written for a comparison alone."""
COPY: Final = "copy.gguf"
FAILED_SUFFIX: Final = ".failed.json"
BLOCKS: Final = "U8"
"""The type of MXFP4's codes and scales."""
STORED: Final = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a file is made of: a model folder, an adapter that is added on the way, a tokenizer, and
    what is said of it under keys of `general.`."""

    model: Path
    adapter: Path | None = None
    tokenizer: Path | None = None
    about: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def words(self) -> Path:
        """The folder of the tokenizer."""
        return self.tokenizer or self.model


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file under its name. verification: None where none was asked for."""

    size_bytes: int
    tensors: int
    verification: Verification | None


@dataclass(frozen=True, kw_only=True)
class Types:
    """Of the matrices: a mix, or one dtype where mix is None. experts: of those stored as MXFP4,
    one of `EXPERTS` of the package."""

    mix: str | None
    dtype: str = "f32"
    experts: str = "keep"

    @property
    def name(self) -> str:
        """The one that counts."""
        return self.mix or self.dtype


def make(
    weights: Weights,
    target: Path,
    types: Types,
    *,
    name: str | None,
    check: Check | None,
    before: Callable[[Path], None] = lambda path: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Made:
    """Write `target`. check: what to compare, None: nothing. before: is given the finished file
    just before it gets its name.

    Raises `FormatError` when the file does not say what the model says, `NumericsError`,
    `ConfigError`, `FileAccessError`; then there is no file under the name, and one that was there
    before stays.
    """
    with scratch_beside(target) as scratch, naming(target, scratch):
        how, copy_dtype = _plan(weights, target, types) if check else ("exact", "")
        tell(f"quantising to {types.name}")
        path = scratch / "exported.gguf"
        size, tensors = _write(weights, path, types, name)
        found = None
        if check is not None:
            found = _verified(weights, path, types, how, copy_dtype, check, tell)
            if found.verdict == "fail":
                _refuse(target, found)
        before(path)
        try:
            path.replace(target)
        except OSError as error:
            raise FileAccessError(f"{target}: cannot be written ({error.strerror})") from None
    _failed(target).unlink(missing_ok=True)  # of an earlier time
    return Made(size_bytes=size, tensors=tensors, verification=found)


def _write(weights: Weights, path: Path, types: Types, name: str | None) -> tuple[int, int]:
    return _native.export.gguf(
        weights.model,
        path,
        mix=types.mix,
        dtype=types.dtype,
        name=name,
        tokenizer_dir=weights.tokenizer,
        adapter=weights.adapter,
        about=weights.about,
        experts=types.experts,
    )


def predicted_size(weights: Weights, target: Path, types: Types, name: str | None = None) -> int:
    """Bytes of the file, exactly."""
    return _native.export.gguf_size(
        weights.model,
        target,
        mix=types.mix,
        dtype=types.dtype,
        name=name,
        tokenizer_dir=weights.tokenizer,
        about=weights.about,
        adapter=weights.adapter,
        experts=types.experts,
    )


def _plan(weights: Weights, target: Path, types: Types) -> tuple[How, str]:
    """How the format is checked, and the float that holds every weight as it is."""
    adapted = weights.adapter is not None
    found = stored_types(weights.model)
    stored = None if adapted else _only(found)
    # Experts that an adapter changes are rounded to MXFP4 again.
    rounds = adapted and BLOCKS in found and types.experts != "expand"
    if (types.name == "f32" or types.name == stored) and not rounds:
        return "file", types.name
    lossless = stored or "f32"
    copy = predicted_size(weights, target, _spelled_out(lossless))
    room = shutil.disk_usage(target.parent).free - predicted_size(weights, target, types)
    return ("exact", "") if copy > min(COPY_LIMIT, room) else ("copy", lossless)


def _verified(
    weights: Weights,
    path: Path,
    types: Types,
    how: How,
    copy_dtype: str,
    check: Check,
    tell: Callable[[str], None],
) -> Verification:
    copy = None
    if how == "copy":
        copy = path.with_name(COPY)
        _write(weights, copy, _spelled_out(copy_dtype), "copy")
    tell("comparing with the trained model on fixed prompts")
    return verify(
        path,
        weights.model,
        mix=types.name,
        adapter=weights.adapter,
        tokenizer=weights.words,
        how=how,
        copy=copy,
        copy_dtype=copy_dtype,
        blocks=types.experts != "expand" and BLOCKS in stored_types(weights.model),
        check=check,
    )


def _refuse(target: Path, found: Verification) -> None:
    """Raise `FormatError`; the figures stay beside where the file would be."""
    report = _failed(target)
    said = "; ".join(one.text for one in found.findings if one.verdict == "fail")
    with contextlib.suppress(OSError):  # the refusal matters more
        write_text_atomic(report, json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
    raise FormatError(
        f"{target} was not written: {said}. This is a fault of abi-train: please report it with "
        f"{report.name} and the model's config.json"
    )


def _failed(target: Path) -> Path:
    return target.with_name(target.stem + FAILED_SUFFIX)


def _spelled_out(dtype: str) -> Types:
    """A file in which no weight is rounded, experts that an adapter changes neither."""
    return Types(mix=dtype, experts="expand")


def stored_type(model: Path) -> str | None:
    """The float in which all matrices of a folder are stored; None where they differ, or it is
    another."""
    return _only(stored_types(model))


def _only(found: set[str]) -> str | None:
    return STORED.get(next(iter(found))) if len(found) == 1 else None


def stored_types(model: Path) -> set[str]:
    """The types that matrices of a folder are stored in, as safetensors names them."""
    found: set[str] = set()
    for file in sorted(model.glob("*.safetensors")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(min(size, 1 << 27)))
            found |= {
                str(value.get("dtype"))
                for name, value in header.items()
                if name != "__metadata__" and len(value.get("shape", ())) > 1
            }
    return found


@contextlib.contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A folder beside a file that is to be written, removed at the end."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent)
    except OSError as error:
        raise FileAccessError(f"{target.parent}: cannot be written ({error.strerror})") from None
    with work as scratch:
        yield Path(scratch)


@contextlib.contextmanager
def naming(target: Path, scratch: Path) -> Iterator[None]:
    """Errors inside name what was asked for in place of files of the scratch folder."""
    try:
        yield
    except AbiTrainError as error:
        place = rf"{re.escape(str(scratch))}(?:/([\w./-]*[\w-]))?"
        text = re.sub(place, lambda found: _meant(target, found[1]), str(error))
        if text == str(error):
            raise
        raise type(error)(text) from None
    except OSError as error:
        if not str(error.filename or "").startswith(str(scratch)):
            raise
        raise FileAccessError(f"{target}: cannot be written ({error.strerror})") from None


def _meant(target: Path, name: str | None) -> str:
    """What a file of the scratch folder is, for a person."""
    if name == COPY:
        return f"the copy to compare {target} with (--no-verify leaves it out)"
    return str(target)


def changes_tied(model: Path, adapter: Path) -> bool:
    """Whether an adapter would part the head of a tied model from its embedding, which cannot be
    done on the way."""
    from ..adapters import read_adapter_config
    from . import is_tied

    lora = read_adapter_config(adapter)
    outer = {"embed_tokens", "lm_head"}
    named = lora.target_modules
    touches = isinstance(named, str) or any(one.split(".")[-1] in outer for one in named)
    return touches and is_tied(model)
