"""From what was trained to what is run, in one go: merge, quantise, verify, Modelfile, card.

An adapter is added to its base on the way into the file, so that no merged model lies anywhere,
unless it is asked for or cannot be done so. Does not know: the Hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..adapters import base_of, is_adapter, merge_adapter
from ..checkpoint import write_text_atomic
from ..errors import ConfigError, FileAccessError
from ..runspec import RECIPE_FILE, RunSpec
from ..tokenizer import Tokenizer
from . import (
    MIXES,
    check_words,
    model_folder,
    phased_state,
    require_experts,
    require_exportable,
    require_regular,
)
from .making import (
    Types,
    Weights,
    changes_tied,
    make,
    naming,
    predicted_size,
    scratch_beside,
)
from .metadata import about
from .modelfile import ABBEY_SAMPLING, ABBEY_SYSTEM, sampling_of, write_modelfile
from .verify import Check, Verification

REPORT_SUFFIX: Final = ".export.json"
ALIASES: Final = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}


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
        plain["verdict"] = "not verified, as asked" if found is None else found.verdict
        plain["verification"] = None if found is None else found.to_dict()
        plain["commands"] = self.commands()
        return plain

    def commands(self) -> list[str]:
        """What to type next: in Ollama, where there is a Modelfile, and natively."""
        modelfile = None if self.modelfile is None else str(self.modelfile)
        return commands(self.name, self.mix, str(self.path), modelfile)


def hand_over(
    source: str | Path,
    output: str | Path | None = None,
    *,
    mix: str = "q4_k_m",
    experts: str = "keep",
    name: str | None = None,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    modelfile: bool = True,
    system: str | None = None,
    card: bool = True,
    verify: bool = True,
    check: Check | None = None,
    keep_merged: str | Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> HandOver:
    """Export what a run, a phased run (its last finished phase), an adapter or a model folder is.

    output: default `<name>-<mix>.gguf` in `source`. mix: llama.cpp's name of the quantisation, one
    of `MIXES`. experts: of those stored as MXFP4, as in `export_gguf`. base: the model under an
    adapter that does not say where it is. keep_merged: a new folder that gets the merged model.
    verify: run both models and compare them; check: with what beyond the fixed prompts. tell: hears
    of each step. Raises `ConfigError`, `FormatError` (also for a file that was found not to say
    what the model says), `MissingFileError`, `NumericsError`, `FileAccessError`; then there is no
    GGUF.
    """
    source = Path(source)
    mix = ALIASES.get(mix.lower(), mix.lower())
    if mix not in MIXES:
        raise ConfigError(f"--gguf is {mix!r}; it must be one of {', '.join(MIXES)}")
    require_experts(experts)
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
    if base is not None and not is_adapter(folder):
        raise ConfigError(f"{folder} holds a whole model; a base belongs to an adapter")
    asked = (check or Check()) if verify else None
    digest = ""

    def before(path: Path) -> None:
        nonlocal digest
        digest = _sha256(path)

    with contextlib.ExitStack() as stack:
        parts = stack.enter_context(
            _weights(
                folder,
                target,
                base=None if base is None else Path(base),
                tokenizer=None if tokenizer is None else Path(tokenizer),
                keep_merged=None if keep_merged is None else Path(keep_merged),
                tell=tell,
            )
        )
        check_words(parts.weights.words)
        done = make(
            parts.weights,
            target,
            Types(mix=mix, experts=experts),
            name=title,
            check=asked,
            before=before,
            tell=tell,
        )
    made = HandOver(
        path=target,
        source=source,
        name=title,
        mix=mix,
        size_bytes=done.size_bytes,
        tensors=done.tensors,
        sha256=digest,
        adapter=parts.adapter,
        base=parts.base,
        merged=None if keep_merged is None else Path(keep_merged),
        verification=done.verification,
    )
    if modelfile:
        made = dataclasses.replace(made, modelfile=_modelfile(made, folder, system))
    made = dataclasses.replace(made, report=target.with_name(target.stem + REPORT_SUFFIX))
    _write_report(made)
    if card:
        from .model_card import card_of_export

        made = dataclasses.replace(made, card=card_of_export(source, folder, target))
        _write_report(made)
    return made


def export_sizes(
    source: str | Path,
    *,
    name: str | None = None,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    mixes: Sequence[str] = MIXES,
) -> dict[str, int]:
    """The exact bytes of the file that `hand_over` would write of a source in each mix.

    Nothing is written; an adapter is not merged for it. Raises as `hand_over` does.
    """
    source = Path(source)
    require_exportable(source, mixes[0])
    folder = model_folder(source)
    title = name or name_of(source)
    words = None if tokenizer is None else Path(tokenizer)
    model = folder
    if is_adapter(folder):
        model = Path(base) if base is not None else base_of(folder, option="--base")
        if words is None and (folder / "tokenizer.json").is_file():
            words = folder
        if not model.is_dir() or changes_tied(model, folder):
            raise ConfigError(
                f"{folder}: only a merged model tells the size here; export it with --keep-merged "
                "DIR, and ask for the sizes of DIR"
            )
    weights = Weights(model=model, tokenizer=words, about=about(folder))
    check_words(weights.words)
    return {
        mix: predicted_size(weights, source / "out.gguf", Types(mix=mix), title) for mix in mixes
    }


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What goes into the file, and where it came from."""

    weights: Weights
    adapter: Path | None = None
    base: Path | None = None


@contextlib.contextmanager
def _weights(
    folder: Path,
    target: Path,
    *,
    base: Path | None,
    tokenizer: Path | None,
    keep_merged: Path | None,
    tell: Callable[[str], None],
) -> Iterator[_Parts]:
    """The weights of a model or adapter folder; merged beside the target where that is needed."""
    if not is_adapter(folder):
        yield _Parts(weights=Weights(model=folder, tokenizer=tokenizer, about=about(folder)))
        return
    said = about(folder)
    base = base or base_of(folder, option="--base")
    if tokenizer is None and (folder / "tokenizer.json").is_file():
        tokenizer = folder
    if keep_merged is None and base.is_dir() and not changes_tied(base, folder):
        tell(f"adding {folder} to {base} on the way")
        weights = Weights(model=base, adapter=folder, tokenizer=tokenizer, about=said)
        yield _Parts(weights=weights, adapter=folder, base=base)
        return
    with scratch_beside(target) as scratch, naming(target, scratch):
        tell(f"merging {folder} into {base}")
        merged = merge_into(base, folder, keep_merged or scratch / "merged")
        weights = Weights(model=merged, tokenizer=tokenizer, about=said)
        yield _Parts(weights=weights, adapter=folder, base=base)


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


def name_of(source: Path) -> str:
    """The name of what is exported: its run's folder, in letters that every file system takes."""
    folder = source.resolve()
    if re.fullmatch(r"checkpoint-\d+", folder.name):
        folder = folder.parent
    return re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "model"


def ollama_name(name: str, mix: str) -> str:
    """A name as Ollama takes it, with the mix as its tag: several of one model lie side by side."""
    model = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"
    return f"{model}:{mix}"


def commands(name: str, mix: str, path: str, modelfile: str | None) -> list[str]:
    """What to type next, for a file and its Modelfile."""
    lines = []
    if modelfile is not None:
        model = ollama_name(name, mix)
        lines.append(f"ollama create {model} -f {shlex.quote(modelfile)}")
        lines.append(f"ollama run {model}")
    return [*lines, f"abi agent --model {shlex.quote(path)}"]


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
