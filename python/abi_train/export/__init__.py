"""From a trained folder to a file that runs: GGUF, written and checked natively."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from .. import _native
from ..adapters import LoraConfig, is_adapter
from ..checkpoint import list_checkpoints, read_state, stopped_early
from ..config import broken
from ..errors import CheckpointError, ConfigError, FormatError, MissingFileError
from ..phased import read_phased
from ..runspec import RECIPE_FILE, RunSpec
from .modelfile import check_ends, sampling_of, write_modelfile

if TYPE_CHECKING:
    from .verify import Check, Verification

FLOATS: Final = ("f32", "f16", "bf16")
BLOCKS: Final = ("q8_0", "q6_k", "q5_k", "q4_k", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4")
DTYPES: Final = FLOATS + BLOCKS
K_MIXES: Final = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s")
MIXES: Final = (*FLOATS, "q8_0", *K_MIXES, "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4_moe")
EXPERTS: Final = ("keep", "changed_as_bf16", "expand")
ADAPTER_FILE: Final = "adapter_config.json"
ADAPTER_DTYPES: Final = FLOATS


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export_gguf` wrote. size_bytes: of the file. card: the model card beside it, if any.

    modelfile: for Ollama; None where the model has no chat template. verification: what comparing
    it with the trained model found; None where that was left out.
    """

    path: Path
    source: Path
    dtype: str
    size_bytes: int
    tensors: int
    card: Path | None = None
    modelfile: Path | None = None
    verification: Verification | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}


def export_gguf(
    source: str | Path,
    output: str | Path,
    *,
    dtype: str = "q8_0",
    mix: str | None = None,
    experts: str = "keep",
    adapter: str | Path | None = None,
    name: str | None = None,
    tokenizer: str | Path | None = None,
    modelfile: bool = True,
    system: str | None = None,
    card: bool = True,
    verify: bool = True,
    check: Check | None = None,
    said_of: str | Path | None = None,
) -> ExportReport:
    """Write a GGUF of a model folder, a checkpoint, or of what a run folder ended with.

    The file is read back and, with verify, run against the trained model before it gets its name;
    see docs/export.md. check: what is compared beyond the fixed prompts.

    dtype: one of `DTYPES`, for all matrices; rows that are not whole blocks of it get the next
    larger type that fits. mix: instead of it one of `MIXES`, in any case: each matrix gets the type
    that llama.cpp's quantiser gives it under that name, so `q4_k_m` keeps the head and some layers
    finer (`q4_k`, `q5_k` mean `q4_k_m`, `q5_k_m` here). The names that only mixes have are taken as
    dtype, too.

    experts: of a model that has them as MXFP4. `keep`: they stay MXFP4 whatever the others become,
    to the bit but for those that the adapter changes, which are rounded again; `changed_as_bf16`: a
    tensor with one of these is bf16; `expand`: they become what other matrices become.

    adapter: a PEFT folder that is added to the model on the way, with the bits of `merge_adapter`
    first but without a merged model anywhere; the tokenizer is then the adapter's if it has one.
    modelfile: write a Modelfile for Ollama beside it, with the template and stops of the model's
    chat format; system: its system text. card: put the model card beside it. said_of: the
    checkpoint or model whose card tells licence and base. (default: the adapter, or the source) A
    model whose answers end with a token that does not end generation is refused.

    Raises `ConfigError`, `FormatError` (with the tensor, the key, or what a comparison found),
    `MissingFileError`, `NumericsError`, `FileAccessError`; then nothing has the name.
    """
    from .making import Types, Weights, make
    from .metadata import about
    from .verify import Check as Checked

    if mix is None and dtype in MIXES and dtype not in DTYPES:
        mix = dtype
    if mix is not None:
        mix = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}.get(mix.lower(), mix.lower())
        if mix not in MIXES:
            raise ConfigError(f"mix is {mix!r}; it must be one of {', '.join(MIXES)}")
    elif dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    require_experts(experts)
    output = Path(output)
    if output.suffix != ".gguf":
        raise ConfigError(f"{output}: the name must end in .gguf")
    require_exportable(Path(source), mix or dtype)
    require_regular(output)
    folder = model_folder(Path(source))
    if is_adapter(folder):
        raise ConfigError(
            f"{folder} holds an adapter, not a model. `abi-train export {source} --adapter` writes "
            f"it for use beside its base; with --gguf TYPE it is added into its base on the way."
        )
    if adapter is not None and tokenizer is None and (Path(adapter) / "tokenizer.json").is_file():
        tokenizer = adapter
    weights = Weights(
        model=folder,
        adapter=None if adapter is None else Path(adapter),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        about=about(Path(said_of or adapter or folder)),
    )
    chats = check_words(weights.words)
    made = make(
        weights,
        output,
        Types(mix=mix, dtype=dtype, experts=experts),
        name=name,
        check=(check or Checked()) if verify else None,
    )
    origin = folder if adapter is None else Path(adapter)
    report = _reported(output, origin, mix or dtype, made.size_bytes, made.tensors, card=card)
    report = dataclasses.replace(report, verification=made.verification)
    if not (modelfile and chats):
        return report
    written = write_modelfile(output, system=system, parameters=sampling_of(folder))
    return dataclasses.replace(report, modelfile=written)


def export_adapter_gguf(
    source: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    dtype: str = "f32",
    name: str | None = None,
) -> ExportReport:
    """Write a LoRA adapter as a GGUF which llama.cpp and Ollama put on the base model's GGUF.

    source: a PEFT folder, a checkpoint of a LoRA run, or its run folder. model: the base, a folder
    with config.json or a .gguf file, where the adapter does not say it. dtype: f32, f16 or bf16.
    What llama.cpp cannot apply raises `FormatError` with the reason, settings that are not computed
    here `CheckpointError`; also `ConfigError`, `MissingFileError`.
    """
    if dtype not in ADAPTER_DTYPES:
        raise ConfigError(
            f"dtype is {dtype!r}; for an adapter it must be one of {', '.join(ADAPTER_DTYPES)}"
        )
    source, output = Path(source), Path(output)
    if output.suffix != ".gguf":
        raise ConfigError(f"{output}: the name must end in .gguf")
    require_regular(output)
    folder = source if (source / ADAPTER_FILE).is_file() else model_folder(source)
    if not (folder / ADAPTER_FILE).is_file():
        raise FormatError(f"{folder}: no {ADAPTER_FILE}, so there is no adapter to export")
    output.parent.mkdir(parents=True, exist_ok=True)
    size, tensors = _native.export.adapter(folder, output, model=model, dtype=dtype, name=name)
    return _reported(output, folder, dtype, size, tensors)


def check_words(folder: Path) -> bool:
    """Whether the tokenizer of a folder has a chat template. Raises `MissingFileError` where there
    is none, `FormatError` when its answers end with a token that does not end generation."""
    if not (folder / "tokenizer.json").is_file():
        raise MissingFileError(
            f"{folder}: no tokenizer.json, and a GGUF without one cannot answer text. "
            "Name the tokenizer's folder."
        )
    return check_ends(folder)


def require_experts(experts: str) -> None:
    """Raise `ConfigError` for another word than `EXPERTS`."""
    if experts not in EXPERTS:
        raise ConfigError(f"experts is {experts!r}; it must be one of {', '.join(EXPERTS)}")


def require_regular(output: Path) -> None:
    """Raise `ConfigError` where a device, a pipe or a folder has the name of a file to be written:
    a file is written beside it and would take its place."""
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file in it")
    if output.exists() and not output.is_file():
        raise ConfigError(f"{output}: is not a regular file; name another one")


def require_exportable(source: Path, mix: str) -> None:
    """Raise `ConfigError` for a file: what is exported is a folder, and a GGUF is one already."""
    if source.suffix == ".gguf" and source.is_file():
        made = source.with_name(f"{source.stem}-{mix}.gguf")
        raise ConfigError(
            f"{source}: is a GGUF already; to change its types: abi quantize {quote(str(source))} "
            f"{quote(str(made))} {mix}"
        )


def _reported(
    output: Path, source: Path, dtype: str, size: int, tensors: int, *, card: bool = True
) -> ExportReport:
    """The report of a file, once the model card stands beside it."""
    from .model_card import card_beside

    return ExportReport(
        path=output,
        source=source,
        dtype=dtype,
        size_bytes=size,
        tensors=tensors,
        card=card_beside(source, output) if card else None,
    )


def check_export(spec: RunSpec) -> None:
    """Raise now what would keep the export at the end of a run from working hours later.

    `ConfigError` for the name, its folder or a missing tokenizer; nothing is written.
    """
    given = spec.config.export_gguf_path
    if not given:
        return
    _check_output("export_gguf_path", given)
    home = spec.tokenizer_dir
    if home is None and spec.engine == "trl" and spec.resume is not None:
        return  # the files travel on from the checkpoint
    if home is None or not (home / "tokenizer.json").is_file():
        where = f"{home} has no tokenizer.json" if home else "the model brings no tokenizer.json"
        rule = f"{where}, and a GGUF needs it; name the tokenizer's folder with tokenizer"
        raise broken("export_gguf_path", given, rule)


def check_adapter_export(spec: RunSpec, lora: LoraConfig) -> None:
    """Raise now what a GGUF of the adapter cannot say: `ConfigError`, before the first update."""
    given = lora.export_gguf_path
    if given is None:
        return
    _check_output("lora.export_gguf_path", str(given))
    lora = lora.resolved(spec.model)
    if not is_tied(spec.model):
        return
    for name in lora.target_modules:
        if name.split(".")[-1] in ("embed_tokens", "lm_head"):
            rule = (
                "this model's head is its embedding, and llama.cpp has no place for an adapter on "
                "either; leave lora.export_gguf_path out and export the merged model"
            )
            raise broken("lora.target_modules", name, rule)


def is_tied(model: Path) -> bool:
    """True when the head of the model is its embedding."""
    if model.suffix == ".gguf":
        names = {tensor["name"] for tensor in _native.export.inspect(model)["tensors"]}
        return "output.weight" not in names
    file = model if model.suffix == ".json" else model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    return bool(config.get("tie_word_embeddings", False))


def _check_output(key: str, given: str) -> None:
    """Raise `ConfigError` for a file name at which no GGUF can be written."""
    output = Path(given).expanduser()
    if output.suffix != ".gguf":
        raise broken(key, given, "the name must end in .gguf")
    if output.is_dir():
        raise broken(key, given, "that is a folder; name a file in it")
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise broken(key, given, f"{folder} is not a folder; name another one")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise broken(key, given, f"{folder} cannot be written; name another folder")


def model_folder(source: Path) -> Path:
    """The model folder meant: itself, or the checkpoint that a run folder ended with.

    That is the newest one; after early stopping, as the run's recipe tells, the best one. Of a
    phased run it is the result of the last phase that is finished.
    """
    if not source.exists():
        raise MissingFileError(f"{source}: no such folder; check the path")
    state = read_phased(source)  # first: its folder may hold the config.json it began with
    if state is not None:
        return _phase_result(source, state)
    if (source / "config.json").is_file() or is_adapter(source):
        return source
    found = list_checkpoints(source) if source.is_dir() else []
    if not found:
        raise FormatError(f"{source}: neither a model folder (config.json) nor a run folder")
    if not (source / RECIPE_FILE).is_file():
        return found[-1]
    state = read_state(found[-1])["stateful_callbacks"]["abi_train"]["state"]
    config = RunSpec.load(source / RECIPE_FILE).config
    best = source / f"checkpoint-{state['best_step']}"
    return best if stopped_early(state, config) and best in found else found[-1]


def phased_state(folder: Path) -> dict[str, Any] | None:
    """What `recipe.json` of a phased run says; None for any other folder, or a damaged file."""
    try:
        return read_phased(folder)
    except CheckpointError:
        return None


def base_in_run(adapter: Path) -> tuple[Path, Path] | None:
    """The model below an adapter of a phased run, when it is in the run's folder: its place there,
    and that place where the folder is now. None for any other adapter."""
    folder = adapter.resolve()
    run, name = folder.parent.parent, folder.parent.name
    state = phased_state(run)
    if state is None:
        return None
    try:
        phases = {str(phase["name"]): phase for phase in state["recipe"]["phases"]}
        while (phase := phases.pop(name, None)) is not None:  # a circle ends, too
            before = phase.get("after")
            if phase.get("chain") == "merge":
                return _within(run, f"{name}/start")
            if before is None:
                return _within(run, "config.json") if phase.get("model_config") else None
            if phases[before]["method"] == "full":
                return _within(run, state["phases"][before]["checkpoint"])
            name = before
    except (LookupError, TypeError, ValueError):
        pass  # not written by a run
    return None


def _within(run: Path, place: str) -> tuple[Path, Path] | None:
    inside = Path(place)
    if inside.is_absolute() or ".." in inside.parts or not (run / inside).exists():
        return None
    return inside, run / inside


def _phase_result(folder: Path, state: Mapping[str, Any]) -> Path:
    for name, phase in reversed(state["phases"].items()):
        if not isinstance(phase, dict) or phase.get("state") != "finished":
            continue
        place = phase.get("checkpoint")
        result = folder / place if isinstance(place, str) else folder / name
        if result.is_dir():
            return result
    raise FormatError(f"{folder}: no phase of this run is finished; go on with it first")
