"""From what was trained to what is run, in one go: merge, quantise, verify, Modelfile, card.

Everything is written beside the GGUF, which gets its name last of the steps that may fail; what a
step needs in between is in a folder beside it, which is removed. Does not know: the Hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..adapters import base_of, is_adapter, merge_adapter
from ..checkpoint import write_text_atomic
from ..errors import AbiTrainError, ConfigError, FileAccessError
from ..runspec import RECIPE_FILE, RunSpec
from ..tokenizer import Tokenizer
from . import (
    MIXES,
    ExportReport,
    export_gguf,
    model_folder,
    phased_state,
    require_exportable,
    require_regular,
)
from .modelfile import ABBEY_SAMPLING, ABBEY_SYSTEM, sampling_of, write_modelfile
from .verify import Verification, verify

REPORT_SUFFIX: Final = ".export.json"
ALIASES: Final = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}
F32_LIMIT: Final = 8 << 30
"""Bytes a comparison may take for a copy of the trained model in f32."""
TRAINED: Final = "trained.gguf"
STORED: Final = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """What was handed over. Paths of what was left out are None.

    adapter, base: what was merged on the way. merged: where that model was kept.
    """

    path: Path
    source: Path
    name: str
    mix: str
    size_bytes: int
    tensors: int
    sha256: str
    adapter: Path | None = None
    base: Path | None = None
    merged: Path | None = None
    verification: Verification | None = None
    modelfile: Path | None = None
    card: Path | None = None
    report: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name != "verification"
        }
        plain = {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
        found = self.verification
        plain["verification"] = None if found is None else found.to_dict()
        plain["commands"] = self.commands()
        return plain

    def commands(self) -> list[str]:
        """What to type next: in Ollama, where there is a Modelfile, and natively."""
        lines = []
        if self.modelfile is not None:
            model = ollama_name(self.name)
            lines.append(f"ollama create {model} -f {shlex.quote(str(self.modelfile))}")
            lines.append(f"ollama run {model}")
        return [*lines, f"abi agent --model {shlex.quote(str(self.path))}"]


def hand_over(
    source: str | Path,
    output: str | Path | None = None,
    *,
    mix: str = "q4_k_m",
    name: str | None = None,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    modelfile: bool = True,
    system: str | None = None,
    card: bool = True,
    check: bool = True,
    keep_merged: str | Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> HandOver:
    """Export what a run, a phased run (its last finished phase), an adapter or a model folder is.

    output: default `<name>-<mix>.gguf` in `source`. mix: llama.cpp's name of the quantisation, one
    of `MIXES`. base: the model under an adapter that does not say where it is. keep_merged: a new
    folder that gets the merged model. check: run both models and compare them. tell: hears of each
    step. Raises `ConfigError`, `FormatError`, `MissingFileError`, `NumericsError`,
    `FileAccessError`; then there is no GGUF.
    """
    source = Path(source)
    mix = ALIASES.get(mix.lower(), mix.lower())
    if mix not in MIXES:
        raise ConfigError(f"--gguf is {mix!r}; it must be one of {', '.join(MIXES)}")
    require_exportable(source, mix)
    folder = model_folder(source)
    title = name or name_of(source)
    if output is None and (re.search(r"[/\\\x00-\x1f]", title) or title.startswith(".")):
        raise ConfigError(
            f"--name is {title!r}, which the file would be called after, and is no file name; give "
            "a plain one, or the file with --output"
        )
    target = Path(output) if output is not None else source / f"{title}-{mix}.gguf"
    if target.suffix != ".gguf":
        raise ConfigError(f"{target}: the name must end in .gguf")
    require_regular(target)
    if keep_merged is not None and not is_adapter(folder):
        raise ConfigError(f"{folder} holds a whole model, so there is nothing to merge")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent)
    except OSError as error:
        raise FileAccessError(f"{target.parent}: cannot be written ({error.strerror})") from None
    with work as scratch, naming(target, Path(scratch)):
        made = _made(
            Path(scratch),
            folder,
            mix=mix,
            title=title,
            base=None if base is None else Path(base),
            tokenizer=tokenizer,
            check=check,
            keep_merged=None if keep_merged is None else Path(keep_merged),
            tell=tell,
        )
        try:
            made.path.replace(target)
        except OSError as error:
            raise FileAccessError(f"{target}: cannot be written ({error.strerror})") from None
    made = dataclasses.replace(made, path=target, source=source)
    if modelfile:
        made = dataclasses.replace(made, modelfile=_modelfile(made, folder, system))
    made = dataclasses.replace(made, report=target.with_name(target.stem + REPORT_SUFFIX))
    _write_report(made)
    if card:
        from .model_card import card_of_export

        made = dataclasses.replace(made, card=card_of_export(source, folder, target))
        _write_report(made)
    return made


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
    if name == TRAINED:
        return f"the copy to compare {target} with (--no-verify leaves it out)"
    return str(target)


def _made(
    scratch: Path,
    folder: Path,
    *,
    mix: str,
    title: str,
    base: Path | None,
    tokenizer: str | Path | None,
    check: bool,
    keep_merged: Path | None,
    tell: Callable[[str], None],
) -> HandOver:
    """The file, still in the scratch folder, merged and compared."""
    model, adapter, merged = folder, None, None
    if is_adapter(folder):
        adapter, base = folder, base or base_of(folder, option="--base")
        tell(f"merging {folder} into {base}")
        model = merge_into(base, folder, keep_merged or scratch / "merged")
        merged = keep_merged
    elif base is not None:
        raise ConfigError(f"{folder} holds a whole model; a base belongs to an adapter")
    tell(f"quantising to {mix}")
    made = _export(model, scratch / "exported.gguf", mix, title, tokenizer)
    found = None
    if check:
        reference = reference_type(model)
        trained = made.path
        if reference != mix:
            trained = _export(model, scratch / TRAINED, reference, title, tokenizer).path
        tell(f"comparing with the trained model ({reference}) on fixed prompts")
        lossless = mix == "f32"
        found = verify(made.path, trained, reference=reference, lossless=lossless)
    return HandOver(
        path=made.path,
        source=folder,
        name=title,
        mix=mix,
        size_bytes=made.size_bytes,
        tensors=made.tensors,
        sha256=_sha256(made.path),
        adapter=adapter,
        base=base,
        merged=merged,
        verification=found,
    )


def _export(
    model: Path, output: Path, mix: str, name: str, tokenizer: str | Path | None
) -> ExportReport:
    return export_gguf(
        model, output, mix=mix, name=name, tokenizer=tokenizer, modelfile=False, card=False
    )


def merge_into(base: Path, adapter: Path, folder: Path) -> Path:
    """The model under an adapter with the adapter in it. A base of random weights is drawn again
    from the seed of the run."""
    if base.suffix != ".json":
        return merge_adapter(base, adapter, folder)
    from ..engines.native import open_model

    recipe = adapter.parent / RECIPE_FILE
    if not recipe.is_file():
        raise ConfigError(
            f"{adapter} is for random weights ({base}) of a run whose {RECIPE_FILE} is not beside "
            "it; name the folder of its base with --base"
        )
    with tempfile.TemporaryDirectory(prefix=".base-", dir=folder.parent) as scratch:
        with open_model(RunSpec.load(recipe).replace(model=base)) as model:
            model.save(Path(scratch) / "base")
        return merge_adapter(Path(scratch) / "base", adapter, folder)


def reference_type(model: Path) -> str:
    """The float in which the trained model is run to compare with: f32, and where that would be
    large, the one its folder stores, which loses nothing either."""
    files = sorted(model.glob("*.safetensors"))
    found: set[str] = set()
    for file in files:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(min(size, 1 << 27)))
            found |= {
                str(value.get("dtype"))
                for name, value in header.items()
                if name != "__metadata__" and len(value.get("shape", ())) > 1
            }
    stored = STORED.get(next(iter(found)), "f32") if len(found) == 1 else "f32"
    large = 2 * sum(file.stat().st_size for file in files) > F32_LIMIT
    return stored if large else "f32"


def name_of(source: Path) -> str:
    """The name of what is exported: its run's folder, in letters that every file system takes."""
    folder = source.resolve()
    if re.fullmatch(r"checkpoint-\d+", folder.name):
        folder = folder.parent
    return re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "model"


def ollama_name(name: str) -> str:
    """A name as Ollama takes it."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"


def _modelfile(made: HandOver, folder: Path, system: str | None) -> Path | None:
    """The Modelfile; what the guide sets for Abbey where the model speaks as Abbey."""
    with Tokenizer.load(made.path) as tokenizer:
        found = tokenizer.chat_format()
    if found is None:
        return None
    sampling = sampling_of(folder)
    if found.name == "abbey" or is_abbey(made.source):
        system = ABBEY_SYSTEM if system is None else system
        sampling = {**ABBEY_SAMPLING, **sampling}
    return write_modelfile(made.path, system=system, parameters=sampling)


def is_abbey(source: Path) -> bool:
    """Whether a run comes from one of the Abbey recipes, by the recipe's name."""
    state = (
        phased_state(source) or phased_state(source.parent) or phased_state(source.parent.parent)
    )
    return state is not None and str(state.get("name", "")).lower().startswith("abbey")


def _write_report(made: HandOver) -> None:
    assert made.report is not None
    text = json.dumps(made.to_dict(), indent=2, ensure_ascii=False) + "\n"
    try:
        write_text_atomic(made.report, text)
    except OSError as error:
        raise FileAccessError(f"{made.report}: cannot be written ({error.strerror})") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Reports of exports in a folder whose files are still the same size, by name."""
    found = []
    for path in sorted(folder.glob(f"*{REPORT_SUFFIX}")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            file = path.with_name(path.name.removesuffix(REPORT_SUFFIX) + ".gguf")
            if file.stat().st_size == values["size_bytes"]:
                found.append(values)
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return found
