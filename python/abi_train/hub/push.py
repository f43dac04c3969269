"""Put what was trained on the Hub: an adapter, the whole model, GGUF files, or the data.

Private unless `public` is asked for, and a repository that is there keeps what it is: one that is
public already gets nothing without that word, one that holds somebody else's work gets nothing at
all. Everything goes up in one commit. Only names are sent of the files and folders of this machine.

Does not know: how models are written.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..adapters import base_of, is_adapter
from ..data import provenance
from ..data.provenance import CARD_FILE, manifest_of
from ..errors import ConfigError, EngineError, FormatError, HubError, MissingFileError
from ..export import model_folder, phased_state
from ..export.handover import REPORT_SUFFIX, merge_into
from ..export.making import naming
from ..export.modelfile import FIRST_LINE, is_for
from ..phased import read_phased
from ..runspec import RECIPE_FILE, RunSpec
from . import cards, client
from .cards import without_paths
from .whole import MODEL, check_gguf, weights_of

KINDS: Final = ("adapter", "model", "gguf", "data")
NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_FILES: Final = {
    "adapter": ("adapter_config.json", *_TOKENIZER),
    "model": ("config.json", "generation_config.json", *_TOKENIZER),
}
"""What goes along with the weights."""
_SMALL: Final = 1 << 20
"""JSON files up to this size are looked through for paths of this machine."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a push: what it is called there, and either its place here or its content.

    Neither: it is made for the push, which a dry run does not do.
    """

    name: str
    path: Path | None = None
    content: bytes | None = None

    @property
    def size(self) -> int | None:
        """Bytes; None where the file is not made yet."""
        if self.content is not None:
            return len(self.content)
        return None if self.path is None else self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class Push:
    """What was sent, or, with `dry`, would be. repo: `USER/NAME`; without a user yours is meant.

    private: of a new repository; one that is there stays as it is. url: where it is to be seen.
    """

    repo: str
    kind: str
    private: bool
    files: tuple[tuple[str, int | None], ...]
    notes: tuple[str, ...] = ()
    dry: bool = False
    created: bool = False
    url: str = ""
    commit: str = ""

    @property
    def size_bytes(self) -> int:
        """Of all files whose size is known."""
        return sum(size or 0 for _, size in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "repo": self.repo,
            "type": repo_type(self.kind),
            "kind": self.kind,
            "private": self.private,
            "files": [{"name": name, "size_bytes": size} for name, size in self.files],
            "size_bytes": self.size_bytes,
            "notes": list(self.notes),
            "dry_run": self.dry,
            "created": self.created,
            "url": self.url or None,
            "commit": self.commit or None,
        }


def push(
    source: str | Path,
    to: str,
    *,
    kind: str | None = None,
    public: bool = False,
    base: str | Path | None = None,
    dry: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Push:
    """Send what a run (a phased one: its last finished phase), a model folder or files are.

    kind: `adapter`, `model` (an adapter is merged for it), `gguf` (files that were handed over, see
    `export.handover`, or one file) or `data` (the token files of a run, or one file); default: what
    the run trained. base: the model under an adapter that does not say where it is. dry: say what
    would be sent, without a token or network. What is not whole (weights missing or cut short, a
    checksum that does not hold, JSON that cannot be read) is refused before anything is sent.

    Raises `HubError` (no token, offline, refused, the name is somebody else's), `EngineError`
    without huggingface_hub, `ConfigError`, `FormatError`, `CheckpointError`, `MissingFileError`.
    """
    source = Path(source)
    if not source.exists():
        raise MissingFileError(f"{source}: no such file or folder; check the path")
    repo = _checked_name(to)
    read_phased(source)
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    kind = kind or _kind_of(source)
    with _files(source, kind, repo.rpartition("/")[2], base=base, dry=dry, tell=tell) as found:
        files, notes = found
        if kind == "data" and public:
            _require_licence(source)
        planned = Push(
            repo=repo,
            kind=kind,
            private=not public,
            files=tuple((file.name, file.size) for file in files),
            notes=tuple(notes),
            dry=dry,
        )
        return planned if dry else _send(planned, files, tell)


def repo_type(kind: str) -> str:
    """What the Hub calls a repository of this kind."""
    return "dataset" if kind == "data" else "model"


def _checked_name(to: str) -> str:
    parts = to.split("/")
    if len(parts) > 2 or not all(NAME.fullmatch(part) for part in parts):
        raise ConfigError(
            f"--to is {to!r}; it must be USER/NAME, or NAME for your own: letters, digits, '.', "
            "'-' and '_'"
        )
    if len(parts[-1]) > 96 or "--" in to or ".." in to or to.endswith((".git", ".ipynb")):
        raise ConfigError(
            f"--to is {to!r}; the Hub takes no name with '--' or '..' in it, with '.git' or "
            "'.ipynb' at its end, or of more than 96 letters"
        )
    with contextlib.suppress(EngineError):  # without the library, the rules above
        client.check_name(to)
    return to


def _kind_of(source: Path) -> str:
    """What a push of it means without a word."""
    if source.is_file():
        if source.suffix == ".gguf":
            return "gguf"
        if source.suffix in (".bin", ".jsonl"):
            return "data"
        raise FormatError(f"{source}: neither a .gguf file nor data (.bin, .jsonl)")
    return "adapter" if is_adapter(model_folder(source)) else "model"


# ---- what is sent ----


@contextlib.contextmanager
def _files(
    source: Path,
    kind: str,
    title: str,
    *,
    base: str | Path | None,
    dry: bool,
    tell: Callable[[str], None],
) -> Iterator[tuple[list[File], list[str]]]:
    """The files of a push, and what to know of them."""
    if kind == "data":
        yield _data_files(source, title)
        return
    if kind == "gguf":
        yield _gguf_files(source, title)
        return
    folder = model_folder(source)
    with contextlib.ExitStack() as stack:
        held = folder
        notes = []
        if kind == "adapter" and not is_adapter(folder):
            raise ConfigError(f"{folder} holds a whole model, no adapter; leave --adapter out")
        merged = kind == "model" and is_adapter(folder)
        under = folder
        if merged:
            weights_of(folder, "adapter")
            under = Path(base) if base is not None else base_of(folder)
            if not under.exists():
                raise MissingFileError(f"{under}: no such model; name the base with --base")
            if under.is_dir():
                weights_of(under, "model")
            if dry:
                notes.append(f"{folder} is merged into {under} first: sizes are known then")
            else:
                tell(f"merging {folder} into {under}")
                place = source if source.is_dir() else source.parent
                scratch = stack.enter_context(
                    tempfile.TemporaryDirectory(prefix=".push-", dir=place)
                )
                with naming(place, Path(scratch)):
                    held = merge_into(under, folder, Path(scratch) / "merged")
        if merged and dry:
            files = _to_be_merged(folder, under)
        else:
            weights = weights_of(held, kind)
            names = [name for name in _FILES[kind] if (held / name).is_file()]
            files = [_plain(held / name, base_name=_base_name(folder)) for name in names + weights]
        text = cards.for_model(source, folder, kind=kind, title=title)
        notes += cards.licence_notes(text)
        yield [File(name=CARD_FILE, content=text.encode()), *files], notes


def _to_be_merged(adapter: Path, base: Path) -> list[File]:
    """What merging leaves, for a dry run: the sizes of what it writes are not known."""
    beside = [name for name in _FILES["model"] if name != "config.json"]
    names = [name for name in beside if any((one / name).is_file() for one in (adapter, base))]
    return [File(name=name) for name in ("config.json", *names, MODEL)]


def _base_name(folder: Path) -> str | None:
    """The Hub's id of the model under an adapter, where its files tell it; else its name."""
    if not is_adapter(folder):
        return None
    from ..export.model_card import base_model

    try:
        return base_model(base_of(folder))
    except (ConfigError, OSError):
        return None


def _gguf_files(source: Path, title: str) -> tuple[list[File], list[str]]:
    if source.is_file():
        if source.suffix != ".gguf":
            raise ConfigError(f"{source}: --gguf needs a .gguf file, or a folder with some")
        folder, found = source.parent, [source]
    else:
        folder, found = source, sorted(source.glob("*.gguf"))
    if not found:
        raise MissingFileError(
            f"{source}: no .gguf file; make one with `abi-train export {source} --gguf q4_k_m`"
        )
    files = [File(name=path.name, path=path) for path in found]
    for path in found:
        check_gguf(path)
        report = path.with_name(path.stem + REPORT_SUFFIX)
        own = path.with_suffix(".Modelfile")
        files += [_plain(one) for one in (report, own) if one.is_file()]
    shared = folder / "Modelfile"
    if shared.is_file() and _goes_along(shared, [path.name for path in found]):
        files.append(File(name="Modelfile", path=shared))
    text = cards.for_gguf(source, folder, found, title=title)
    return [File(name=CARD_FILE, content=text.encode()), *files], cards.licence_notes(text)


def _goes_along(modelfile: Path, names: list[str]) -> bool:
    """Whether it is of one of these files. One with words of its own is taken to be."""
    with modelfile.open(encoding="utf-8", errors="replace") as file:
        written_here = file.readline().startswith(FIRST_LINE)
    return not written_here or any(is_for(modelfile, name) for name in names)


def _data_files(source: Path, title: str) -> tuple[list[File], list[str]]:
    data = data_of(source)
    files: dict[str, File] = {}
    for path in data:
        for one in _with_sides(path):
            files[one.name] = _plain(one)
    text = cards.for_data(data, title=title)
    return [File(name=CARD_FILE, content=text.encode()), *files.values()], cards.licence_notes(text)


def data_of(source: Path) -> list[Path]:
    """The data of a run, of all phases of a phased one, or the file itself."""
    if source.is_file():
        return [source]
    state = phased_state(source)
    runs = [source / name for name in state["phases"]] if state is not None else [source]
    found: dict[Path, None] = {}
    for run in runs:
        run = run.parent if run.name.startswith("checkpoint-") else run
        if not (run / RECIPE_FILE).is_file():
            continue
        spec = RunSpec.load(run / RECIPE_FILE)
        found.update({path: None for path in (spec.data, spec.eval_data) if path is not None})
    if not found:
        raise FormatError(f"{source}: no run folder ({RECIPE_FILE} is missing); name the data file")
    return list(found)


def _with_sides(path: Path) -> list[Path]:
    """A file of data with everything that belongs to it; of a set the files of all its parts."""
    if path.suffix == ".jsonl":
        side = provenance.side_file(path)
        return [one for one in (path, side) if one.is_file()]
    manifest = manifest_of(path)
    values: Any = {}
    if manifest.is_file():
        with contextlib.suppress(ValueError, OSError):
            values = json.loads(manifest.read_text(encoding="utf-8"))
    shards = values.get("shards") if isinstance(values, dict) else None
    if isinstance(shards, list) and shards:
        names = [one.get("file") for one in shards if isinstance(one, dict)]
        parts = [path.with_name(name) for name in names if isinstance(name, str) and name]
        return [manifest, *(one for part in parts if part != path for one in _with_sides(part))]
    if not path.is_file():
        raise MissingFileError(f"{path}: the run's data is not there any more")
    sides = [values.get(key) for key in ("mask", "idx")] if isinstance(values, dict) else []
    named = [path.with_name(name) for name in sides if isinstance(name, str) and "/" not in name]
    return [path, *(one for one in (manifest, *named) if one.is_file())]


def _require_licence(source: Path) -> None:
    for path in data_of(source):
        origin = provenance.of_rows([path]) if path.suffix == ".jsonl" else provenance.of_data(path)
        if origin.license is None:
            raise ConfigError(
                f"{path}: nothing says under which licence it is, so it is not made public. "
                "Prepare it with --license NAME, or push it without --public"
            )


def _plain(path: Path, *, base_name: str | None = None) -> File:
    """A file; of small JSON a copy without paths of this machine."""
    if path.suffix == ".json" and path.name != "tokenizer.json" and path.stat().st_size <= _SMALL:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            said = getattr(error, "strerror", None) or error
            raise FormatError(f"{path}: cannot be read as JSON ({said})") from None
        clean = without_paths(values)
        if isinstance(clean, dict) and path.name.endswith(REPORT_SUFFIX):
            clean.pop("commands", None)  # what to type on this machine
        if isinstance(clean, dict) and base_name and "base_model_name_or_path" in clean:
            clean["base_model_name_or_path"] = base_name
        if clean != values:
            text = json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
            return File(name=path.name, content=text.encode())
    return File(name=path.name, path=path)


# ---- the way there ----


def _send(planned: Push, files: list[File], tell: Callable[[str], None]) -> Push:
    hub = client.api()
    what = f"push to {planned.repo}"
    if "/" not in planned.repo:
        repo = f"{client.namespace(hub, what=what)}/{planned.repo}"
    else:
        client.token(what=what)
        repo = planned.repo
    kind = repo_type(planned.kind)
    created = not _is_there(hub, repo, kind, private=planned.private)
    if created:
        tell(f"making {'a private' if planned.private else 'a PUBLIC'} {kind} repository {repo}")
        with client.asking(f"create the repository {repo}", hint="does that user exist?"):
            hub.create_repo(repo, repo_type=kind, private=planned.private, exist_ok=True)
    tell(f"sending {len(files)} files, {planned.size_bytes / 1e6:.1f} MB")
    operations = [
        client.library().CommitOperationAdd(
            path_in_repo=file.name, path_or_fileobj=file.content or str(file.path)
        )
        for file in files
    ]
    with client.asking(f"send the files to {repo}"):
        made: Any = hub.create_commit(
            repo,
            operations,
            repo_type=kind,
            commit_message=f"{planned.kind} from abi_train",
        )
    prefix = "datasets/" if kind == "dataset" else ""
    return Push(
        repo=repo,
        kind=planned.kind,
        private=planned.private,
        files=planned.files,
        notes=planned.notes,
        created=created,
        url=f"{client.endpoint()}/{prefix}{repo}",
        commit=str(getattr(made, "oid", "") or ""),
    )


def _is_there(hub: Any, repo: str, kind: str, *, private: bool) -> bool:
    """Whether the repository is there and may be written. Raises `HubError` when it may not."""
    with client.asking(f"look at {repo}"):
        try:
            info = hub.repo_info(repo, repo_type=kind)
        except client.library().errors.RepositoryNotFoundError:
            return False
        names = {one.rfilename for one in info.siblings or ()} - {".gitattributes"}
        if names and not _is_ours(hub, repo, kind, names):
            raise HubError(
                f"{repo} holds files that abi_train did not put there, which a push might replace; "
                "choose another name with --to"
            )
        if private and not info.private:
            raise HubError(
                f"{repo} is public, so a push would publish this. Say so with --public, make the "
                "repository private in its settings, or choose another name with --to"
            )
    return True


def _is_ours(hub: Any, repo: str, kind: str, names: set[str]) -> bool:
    if CARD_FILE not in names:
        return False
    with tempfile.TemporaryDirectory(prefix="abi-train-card-") as scratch:
        card = hub.hf_hub_download(repo, CARD_FILE, repo_type=kind, local_dir=scratch)
        return provenance.is_ours(Path(card))


__all__ = ["KINDS", "File", "Push", "data_of", "push"]
