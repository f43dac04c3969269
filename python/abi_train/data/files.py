"""Token files as arrays: one file, or several that a manifest makes one.

Reads with NumPy alone, apart from the native reader, and holds a set to its manifest by rules of
its own: nothing missing, twice, changed, in another place, or made with another tokenizer. What a
set gives is what one file of the same rows gives. Does not know: batches, rows in training, torch.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MissingFileError

MANIFEST_SCHEMA: Final = "abi_train/token-bin/1"
SET_SCHEMA: Final = "abi_train/token-bin/2"
SHARED: Final = ("kind", "tokenizer_hash", "vocab_size", "format")
"""Keys of a manifest that all files of a set have in common."""


@dataclass(frozen=True, eq=False)
class Ids:
    """Ids of several files one behind the other; `ids[begin:end]` is an array."""

    parts: list[npt.NDArray[np.uint32]]
    begins: list[int]
    """Where each part begins, and the end of the last."""

    @property
    def size(self) -> int:
        """All of them."""
        return self.begins[-1]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: slice) -> npt.NDArray[np.uint32]:
        begin, end, step = at.indices(self.size)
        assert step == 1
        pieces = [
            part[max(begin - first, 0) : max(end - first, 0)]
            for part, first in zip(self.parts, self.begins, strict=False)
            if first < end and first + part.size > begin
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate([self.parts[0][:0], *pieces])

    def first_at_least(self, limit: int) -> tuple[int, int] | None:
        """Place and value of the first id that is not below `limit`. Reads all of them."""
        for part, first in zip(self.parts, self.begins, strict=False):
            if part.size and int(part.max()) >= limit:
                at = int(np.argmax(part >= limit))
                return first + at, int(part[at])
        return None


@dataclass(frozen=True, eq=False)
class Bits:
    """Loss masks of several files one behind the other."""

    parts: list[npt.NDArray[np.uint8]]
    begins: list[int]

    def at(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """1 or 0 for each token from `begin` up to `end`."""
        flags = np.empty(end - begin, dtype=np.uint8)
        ends = itertools.pairwise(self.begins)
        for part, (first, last) in zip(self.parts, ends, strict=True):
            low, high = max(begin, first), min(end, last)
            if low < high:
                position = np.arange(low - first, high - first)
                flags[low - begin : high - begin] = (part[position >> 3] >> (position & 7)) & 1
        return flags


@dataclass(frozen=True, eq=False)
class TokenFiles:
    """What a token file, or a set of them, holds.

    starts: where each row begins among all tokens, and the end of the last; None for a stream.
    """

    path: Path
    manifest: dict[str, Any]
    token_ids: Ids
    starts: npt.NDArray[np.uint64] | None
    mask: Bits | None

    @classmethod
    def open(cls, path: str | Path) -> TokenFiles:
        """Map the file and the files its manifest names.

        Raises `MissingFileError`, and `DataError` when sizes or manifests do not agree.
        """
        path = Path(path)
        if path.suffix == ".json":
            path = path.with_suffix(".bin")
        manifest = read_manifest(path)
        if manifest.get("schema") != SET_SCHEMA:
            files = [_open_one(path, manifest)]
        elif path.exists():
            raise DataError(
                f"{path} lies beside {manifest_path(path)}, the manifest of a set of other files. "
                "Move one of them away"
            )
        else:
            files = _open_set(path, manifest)
        begins = [0]
        for file in files:
            begins.append(begins[-1] + int(file.token_ids.size))
        if begins[-1] == 0:
            raise DataError(f"{path}: there are no token ids")
        masks = [file.mask for file in files if file.mask is not None]
        return cls(
            path=path,
            manifest=manifest,
            token_ids=Ids([file.token_ids for file in files], begins),
            starts=_join_starts([file.starts for file in files], begins),
            mask=Bits(masks, begins) if masks else None,
        )


@dataclass(frozen=True, eq=False)
class _File:
    token_ids: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.uint64] | None
    mask: npt.NDArray[np.uint8] | None


def _open_one(path: Path, manifest: dict[str, Any]) -> _File:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such token file; make it with `abi-train data prepare`")
    size = path.stat().st_size
    if size % 4:
        raise DataError(f"{path}: {size} bytes is not a whole number of 4-byte token ids")
    token_ids = _mapped(path, "<u4")
    starts = _read_starts(path, manifest, token_ids.size)
    return _File(token_ids, starts, _read_mask(path, manifest, token_ids.size))


def _open_set(path: Path, manifest: dict[str, Any]) -> list[_File]:
    entries = manifest.get("shards")
    beside = manifest_path(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{beside}: the manifest of a set without a list "shards"')
    files = []
    names: dict[str, int] = {}
    sums = [entry.get("crc32c") if isinstance(entry, dict) else None for entry in entries]
    for place, entry in enumerate(entries):
        name = entry.get("file") if isinstance(entry, dict) else None
        if not _is_plain(name):
            raise DataError(f'{beside}: entry {place} of "shards" names no file of the same folder')
        assert isinstance(name, str)
        if name in names:
            raise DataError(f"{beside} lists {name} twice, as file {names[name]} and {place}")
        names[name] = place
        numbered = re.fullmatch(r".*-(\d+)-of-(\d+)\.bin", name)
        if numbered and (int(numbered[1]), int(numbered[2])) != (place, len(entries)):
            raise DataError(
                f"{beside} lists {name} as file {place} of {len(entries)}, which is not what its "
                "name says. Prepare the data again"
            )
        shard = path.with_name(name)
        if not shard.is_file() or not manifest_path(shard).is_file():
            raise MissingFileError(
                f"{shard} is listed by {beside}, but it or its own manifest is not there. Copy all "
                "files of the set, or prepare the data again"
            )
        own = read_manifest(shard)
        for key in SHARED:
            if own.get(key) != manifest.get(key):
                raise DataError(
                    f"{shard} has another {key} than the rest of {beside}. A set is made with one "
                    "tokenizer and one format: prepare the data again"
                )
        _check_entry(shard, own, entry, beside, place, sums)
        files.append(_open_one(shard, own))
    for file, name in zip(files, names, strict=True):
        if (file.starts is None, file.mask is None) != (
            files[0].starts is None,
            files[0].mask is None,
        ):
            raise DataError(
                f"{path.with_name(name)}: rows or mask are not as in the rest of {beside}"
            )
    totals = [sum(int(entry.get(key) or 0) for entry in entries) for key in ("count", "rows")]
    if totals != [int(manifest.get("count") or 0), int(manifest.get("rows") or 0)]:
        raise DataError(f"{beside}: its count and rows are not those of its files together")
    return files


def _check_entry(
    shard: Path,
    own: dict[str, Any],
    entry: dict[str, Any],
    beside: Path,
    place: int,
    sums: list[Any],
) -> None:
    """Hold a file's own manifest to what the set says of it."""
    crc = (own.get("crc32c") or {}).get("bin")
    if (own.get("count"), own.get("rows"), crc) == tuple(
        entry.get(key) for key in ("count", "rows", "crc32c")
    ):
        return
    if crc in sums and sums.index(crc) != place:
        raise DataError(
            f"{shard} holds what {beside} has as file {sums.index(crc)} of the set, not as file "
            f"{place}. The files changed places: copy them again, or prepare the data again"
        )
    raise DataError(
        f"{shard} has {own.get('count')} tokens with checksum {crc}; {beside} says "
        f"{entry.get('count')} with {entry.get('crc32c')}. It is from another run: prepare the "
        "data again"
    )


def _join_starts(
    starts: list[npt.NDArray[np.uint64] | None], begins: list[int]
) -> npt.NDArray[np.uint64] | None:
    given = [one for one in starts if one is not None]
    if not given:
        return None
    if len(given) == 1:
        return given[0]
    shifted = [one[:-1] + np.uint64(begin) for one, begin in zip(given, begins, strict=False)]
    joined: npt.NDArray[np.uint64] = np.concatenate(
        [*shifted, np.array(begins[-1:], dtype=np.uint64)]
    )
    return joined


def is_set(path: Path) -> bool:
    """Whether the manifest of this name lists several files. False for what cannot be read."""
    try:
        manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("schema") == SET_SCHEMA


def manifest_path(path: Path) -> Path:
    """The manifest beside a token file."""
    return path.with_name(path.name.removesuffix(".bin") + ".json")


def read_manifest(path: Path) -> dict[str, Any]:
    """What the manifest beside a token file says; empty without one."""
    stem = path.name.removesuffix(".bin")
    beside = manifest_path(path)
    if not beside.is_file():
        for suffix in (".mask", ".idx"):
            if path.with_name(stem + suffix).exists():
                raise DataError(
                    f"{path.with_name(stem + suffix)} lies beside {path.name}, but the manifest "
                    f"{beside.name} is missing. Restore it, or move the file away."
                )
        return {}
    try:
        manifest = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{beside}: cannot be read as a manifest ({error})") from None
    known = (MANIFEST_SCHEMA, SET_SCHEMA)
    if not isinstance(manifest, dict) or manifest.get("schema") not in known:
        raise DataError(f'{beside}: no manifest with "schema": "{MANIFEST_SCHEMA}"')
    if manifest.get("incomplete"):
        raise DataError(
            f"{beside}: a preparation was interrupted while it moved its files in place. Prepare "
            "the data again"
        )
    return manifest


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")


def _side_file(path: Path, manifest: dict[str, Any], key: str) -> Path | None:
    name = manifest.get(key)
    if name is None:
        return None
    if not _is_plain(name):
        raise DataError(f'{path}: its manifest\'s "{key}" is not a file name of the same folder')
    side = path.with_name(name)
    if not side.is_file():
        raise MissingFileError(f"{side}: named by the manifest of {path.name}, but not there")
    return side


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)  # which cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r")


def _read_starts(
    path: Path, manifest: dict[str, Any], tokens: int
) -> npt.NDArray[np.uint64] | None:
    side = _side_file(path, manifest, "idx")
    if side is None:
        return None
    if side.stat().st_size % 8:
        raise DataError(f"{side}: its size is not a multiple of 8")
    starts: npt.NDArray[np.uint64] = _mapped(side, "<u8")
    whole = starts.size > 0 and starts[0] == 0 and starts[-1] == tokens
    if not whole or np.any(starts[1:] < starts[:-1]):
        raise DataError(f"{side}: row starts must rise from 0 to {tokens}, the number of tokens")
    said = manifest.get("rows")
    if isinstance(said, int) and said != starts.size - 1:
        raise DataError(
            f"{side}: has {starts.size - 1} rows, but the manifest says {said}. Prepare the data "
            "again"
        )
    return starts


def _read_mask(path: Path, manifest: dict[str, Any], tokens: int) -> npt.NDArray[np.uint8] | None:
    side = _side_file(path, manifest, "mask")
    if side is None:
        return None
    mask: npt.NDArray[np.uint8] = _mapped(side, "u1")
    if mask.size != (tokens + 7) // 8:
        raise DataError(f"{side}: {mask.size} bytes; {tokens} tokens need {(tokens + 7) // 8}")
    return mask
