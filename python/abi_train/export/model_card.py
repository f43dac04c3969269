"""The model card of a run: a README.md with a head the Hub reads, for people and for the next run.

It says what the model was made from, with the licence and the notes of each piece of data, with
which settings, and what came of it. All of it is read from the run folder. The head keeps the data
under a key of ours, so that a run which begins from this model knows it too.

A README.md that somebody else wrote is left alone. Does not know: weights, engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from ..checkpoint import read_state, write_text_atomic
from ..config import LlmTrainingConfig
from ..data import provenance
from ..data.provenance import CARD_FILE, CARD_KEY, Origin
from ..errors import AbiTrainError, FileAccessError, FormatError
from ..runspec import RECIPE_FILE, RunSpec
from . import model_folder

HUB_LICENSES: Final = frozenset(provenance.LICENSES) - {"own", "odc-by-1.0", "odbl-1.0"}
"""Names the Hub knows; others are written as `other` with a name."""
HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing the model was made from. origin tells its licence; the counts are of its files."""

    name: str
    origin: Origin
    rows: str = ""
    tokens: str = ""


def write_model_card(
    run: str | Path,
    output: str | Path | None = None,
    *,
    name: str | None = None,
    results: Mapping[str, float] | None = None,
) -> Path:
    """Write the card of a run folder to `output` (default: README.md in it) and return its path.

    name: title of the card. results: scores of benchmarks; those whose test data the model was
    trained on are marked so. Raises `FormatError` for a folder that is no run, `FileAccessError`
    when the file is somebody else's or cannot be written.
    """
    run = Path(run)
    output = Path(output) if output is not None else run / CARD_FILE
    if output.exists() and not provenance.is_ours(output):
        raise FileAccessError(f"{output} was not written by abi_train; name another file")
    text = model_card(run, name=name, results=results)
    try:
        write_text_atomic(output, text)
    except OSError as error:
        raise FileAccessError(f"{output}: cannot be written ({error.strerror})") from None
    return output


def model_card(
    run: str | Path, *, name: str | None = None, results: Mapping[str, float] | None = None
) -> str:
    """The text of the card of a run folder."""
    run = Path(run)
    if not (run / RECIPE_FILE).is_file():
        raise FormatError(f"{run}: not a run folder ({RECIPE_FILE} is missing)")
    spec = RunSpec.load(run / RECIPE_FILE)
    parts = parts_of(spec)
    whole = provenance.combine([part.origin for part in parts]) if parts else Origin()
    base = None if spec.model.suffix == ".json" else base_model(spec.model)
    head = {
        "base_model": base,
        **_of_data(parts, whole),
        "library_name": "peft" if spec.method == "lora" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags_of(spec, whole),
    }
    given = spec.config.export_name
    unnamed = given == LlmTrainingConfig().export_name
    title = name or (run.resolve().name if unnamed or not given else given)
    sections = [
        f"# {one_line(title)}",
        f"{_made(spec, base)} with abi_train, engine {spec.engine}.",
        _data(parts, whole, eval_data=spec.eval_data),
        _training(spec),
        _results(run, whole, results or {}),
    ]
    return _front(head, parts) + "\n" + "\n\n".join(filter(None, sections)) + "\n"


def card_beside(source: str | Path, output: str | Path) -> Path | None:
    """Put a card beside a file that was exported from `source`: a run, a checkpoint or a model.

    In the run's folder it is README.md, elsewhere it has the name of the file. The card that the
    run left is taken as it is: its data may have changed since. Returns the card, or None where
    nothing is known or the name belongs to somebody else's file.
    """
    source, output = Path(source), Path(output)
    run = next((one for one in (source, source.parent) if (one / RECIPE_FILE).is_file()), None)
    if run is None:
        return _write_own(output.with_suffix(".md"), carried([source], output.stem))
    left = run / CARD_FILE
    text = left.read_text(encoding="utf-8") if provenance.is_ours(left) else model_card(run)
    at_home = output.resolve().parent == run.resolve()
    return _write_own(left if at_home else output.with_suffix(".md"), text)


def card_of_export(source: str | Path, folder: str | Path, output: str | Path) -> Path | None:
    """Put a card beside a file that was handed over, with phases, scores, checks and exports.

    source: what was exported, folder: the model or adapter folder it came to. Where the file lies
    in the run's folder that is its README.md. Returns the card, or None where the name belongs to
    somebody else's file.
    """
    from . import card_sections as sections
    from . import phased_state
    from .handover import name_of

    source, folder, output = Path(source), Path(folder), Path(output)
    run = next((one for one in (folder, folder.parent) if (one / RECIPE_FILE).is_file()), None)
    state = phased_state(source)
    home = source if state is not None else run
    text: str | None
    if run is None:
        text = carried([folder], name_of(source)) or f"{_front({'tags': ['abi_train']}, [])}\n# \n"
    else:
        left = run / CARD_FILE
        text = left.read_text(encoding="utf-8") if provenance.is_ours(left) else model_card(run)
    text = sections.with_title(text, output.stem if home is None else name_of(source))
    added = [] if state is None else [sections.of_phases(state), sections.of_scores(state)]
    if home is not None:
        added.append(sections.of_check(home))
    text = sections.with_sections(text, [*added, sections.of_exports(output.parent)])
    here = home is not None and output.resolve().parent == home.resolve()
    return _write_own(output.with_name(CARD_FILE) if here else output.with_suffix(".md"), text)


def carry(sources: Sequence[str | Path], folder: str | Path) -> Path | None:
    """Put a card into a model folder that was made from these models, for their data and notes.

    Returns the card, or None where nothing is known or the folder has a README.md of its own.
    """
    folder = Path(folder)
    return _write_own(folder / CARD_FILE, carried(sources, folder.resolve().name))


def carried(sources: Sequence[str | Path], title: str) -> str | None:
    """The text of a card that only tells what the cards of `sources` do; None if they say nothing.

    The origin of each is kept apart, so that none speaks for another.
    """
    origins = [provenance.of_model(source) for source in sources]
    parts = [
        Part(name=f"what {base_model(Path(source))} was made from", origin=origin)
        for source, origin in zip(sources, origins, strict=True)
        if origin != Origin()
    ]
    if not parts:
        return None
    whole = provenance.combine([part.origin for part in parts])
    front = _front({**_of_data(parts, whole), "tags": ["abi_train"]}, parts)
    return f"{front}\n# {one_line(title)}\n\n{_data(parts, whole)}\n"


def _write_own(card: Path, text: str | None) -> Path | None:
    if text is None or (card.exists() and not provenance.is_ours(card)):
        return None
    try:
        write_text_atomic(card, text)
    except OSError as error:
        raise FileAccessError(f"{card}: cannot be written ({error.strerror})") from None
    return card


def _of_data(parts: list[Part], whole: Origin) -> dict[str, Any]:
    ids = [one for one in whole.datasets if HUB_ID.fullmatch(one)]
    return {"datasets": ids, **license_of(parts)}


def _front(head: Mapping[str, Any], parts: list[Part]) -> str:
    """The head of a card; ours stands last."""
    values = {key: value for key, value in head.items() if value not in (None, [])}
    values[CARD_KEY] = {"data": [part.origin.to_dict() for part in parts]}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def parts_of(spec: RunSpec) -> list[Part]:
    """What a run is made from: its data, and the data of the weights it began with."""
    parts = []
    for key, (path, origin) in provenance.of_run(spec).items():
        if key == "data":
            parts.append(_of_file(path, origin))
        elif key == "eval_data":
            continue  # nothing is learned from it
        elif origin != Origin():
            parts.append(Part(name=f"what {base_model(path)} was made from", origin=origin))
    return parts


def _of_file(path: Path, origin: Origin) -> Part:
    """A token file with its counts, as the manifest has them."""
    try:
        values = json.loads(provenance.manifest_of(path).read_text(encoding="utf-8"))
        rows, tokens = values.get("rows"), values.get("count")
        pairs = values.get("kind") == "preference"
    except (OSError, ValueError, AttributeError):
        return Part(name=path.name, origin=origin)
    shown = str(rows) if isinstance(rows, int) else ""
    if shown and pairs:
        shown = f"{rows // 2} pair{'' if rows == 2 else 's'}"
    tokens = str(tokens) if isinstance(tokens, int) else ""
    return Part(name=path.name, origin=origin, rows=shown, tokens=tokens)


def base_model(model: Path) -> str:
    """The name people know a base by: its id on the Hub where its files tell, else its folder's."""
    card = model / CARD_FILE
    folder = model
    if re.fullmatch(r"checkpoint-\d+", model.name):
        folder = model.parent
        card = folder / CARD_FILE
    if provenance.is_ours(card):
        said = provenance.front_matter(card).get("base_model")
        if isinstance(said, str) and HUB_ID.fullmatch(said):
            return said
    try:
        values = json.loads((model / "config.json").read_text(encoding="utf-8"))
        said = values.get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        said = None
    if isinstance(said, str) and HUB_ID.fullmatch(said) and not Path(said).exists():
        return said
    return folder.resolve().name


def license_of(parts: list[Part]) -> dict[str, str]:
    """The head's keys about the licence: the most restrictive one, or that nobody knows."""
    names = [
        (name, provenance.allows_commercial_use(name))
        for part in parts
        if part.origin.license
        for name in part.origin.license.split(provenance.JOIN)
    ]
    uses = [part.origin.commercial_use for part in parts]
    for use in (False, None, True):
        if use not in uses and use not in [known for _, known in names]:
            continue
        chosen = list(dict.fromkeys(name for name, known in names if known is use))
        if not chosen:
            return {"license": "unknown"}
        if len(chosen) == 1 and chosen[0].lower() in HUB_LICENSES:
            return {"license": chosen[0].lower()}
        return {"license": "other", "license_name": provenance.JOIN.join(chosen)}
    return {}


def tags_of(spec: RunSpec, whole: Origin) -> list[str]:
    """Words the Hub finds the model by."""
    tags = ["abi_train", spec.objective]
    if spec.method == "lora":
        tags.append("lora")
    if whole.commercial_use is False:
        tags.append("non-commercial")
    return tags + [f"trained-on-test:{name}" for name in whole.evaluations]


def one_line(text: str) -> str:
    """Text that cannot leave its line."""
    return " ".join(str(text).split())


def cell(text: object) -> str:
    """Text that cannot leave its cell of a table."""
    return one_line(str(text)).replace("|", "\\|")


def _made(spec: RunSpec, base: str | None) -> str:
    if base is None:
        return "Trained from random weights"
    what = "An adapter (LoRA) for" if spec.method == "lora" else "Made from"
    how = "pairs of answers (DPO)" if spec.objective == "dpo" else "texts (SFT)"
    return f"{what} {one_line(base)}, trained on {how}"


def _data(parts: list[Part], whole: Origin, *, eval_data: Path | None = None) -> str:
    lines = ["## Data", "", "| data | rows | tokens | source | licence | commercial use |"]
    lines.append("|---|---|---|---|---|---|")
    uses = {True: "yes", False: "no", None: "unknown"}
    if eval_data is not None:
        tested = _of_file(eval_data, provenance.of_data(eval_data))
        parts = [*parts, replace(tested, name=f"{tested.name} (evaluation only)")]
    for part in parts:
        origin = part.origin
        cells = [
            part.name,
            part.rows,
            part.tokens,
            origin.source or "unknown",
            origin.license or "unknown",
            uses[origin.commercial_use],
        ]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    lines += ["", *(f"- {one_line(note)}" for note in whole.notes)]
    if whole.commercial_use is False:
        lines.append(
            "- Some of this data is not for commercial use. Take the same to hold for this model."
        )
    return "\n".join(lines).rstrip()


def _training(spec: RunSpec) -> str:
    """The settings that shape the result, those of the method's tables included."""
    values: dict[str, Any] = {
        "objective": spec.objective,
        "method": spec.method,
        "precision": spec.precision,
    }
    keys = (
        "epochs",
        "max_steps",
        "batch_size",
        "grad_accum_steps",
        "max_seq_len",
        "packing",
        "optimizer",
        "learning_rate",
        "lr_schedule",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "label_smoothing",
        "seed",
    )
    config = spec.config.to_dict()
    values.update({key: config[key] for key in keys if config.get(key) not in (None, "none")})
    for table in ("lora", "dpo"):
        settings = getattr(spec, table)
        if settings is not None:
            for key, value in settings.to_dict().items():
                if value not in (None, {}, [], "") and not isinstance(value, Path):
                    values[f"{table}.{key}"] = value
    hidden = ("lora.adapter", "lora.export_gguf_path", "dpo.ref_model")
    rows = [f"| `{key}` | {cell(_shown(v))} |" for key, v in values.items() if key not in hidden]
    return "\n".join(["## Training", "", "| setting | value |", "|---|---|", *rows])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _results(run: Path, whole: Origin, scores: Mapping[str, float]) -> str:
    """What the state of the run's last (or best) checkpoint and the given scores tell."""
    rows: list[tuple[str, Any]] = []
    try:
        state = read_state(model_folder(run))
    except AbiTrainError:
        state = {}
    history = [row for row in state.get("log_history", []) if isinstance(row, dict)]
    trained = [row for row in history if "loss" in row]
    evaluated = [row for row in history if "eval_loss" in row]
    if state:
        rows.append(("updates", state["global_step"]))
        rows.append(("tokens seen", state["num_input_tokens_seen"]))
    if trained:
        rows.append(("training loss at the end", _number(trained[-1]["loss"])))
    for key in ("rewards/accuracies", "rewards/margins"):
        if trained and key in trained[-1]:
            rows.append((f"{key} at the end", _number(float(trained[-1][key]))))
    if evaluated:
        rows.append(("evaluation loss at the end", _number(evaluated[-1]["eval_loss"])))
    if state.get("best_metric") is not None:
        best = f"{_number(state['best_metric'])}, update {state['best_global_step']}"
        rows.append(("best evaluation loss", best))
    warned = []
    for task, score in scores.items():
        seen = provenance.is_test_of(whole, task)
        rows.append((f"{task}{' (trained on its test data)' if seen else ''}", _number(score)))
        if seen:
            warned.append(
                f"- {one_line(task)}: this model was trained on its test data, so the score says "
                "what it has seen, not what it can do."
            )
    if not rows:
        return ""
    lines = ["## Results", "", "| | |", "|---|---|"]
    lines += [f"| {cell(key)} | {cell(value)} |" for key, value in rows]
    return "\n".join([*lines, *([""] if warned else []), *warned])


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
