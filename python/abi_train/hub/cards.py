"""Cards of repositories on the Hub: the run's own, with a head the Hub takes.

Does not know: the Hub's address, tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..data import provenance
from ..data.provenance import CARD_FILE, CARD_KEY, Origin
from ..export import card_sections as sections
from ..export import phased_state
from ..export.model_card import (
    HUB_ID,
    Part,
    base_model,
    carried,
    cell,
    license_of,
    model_card,
    one_line,
)
from ..runspec import RECIPE_FILE, RunSpec

_LIBRARY = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}
_RELATION = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}


def for_model(source: Path, folder: Path, *, kind: str, title: str) -> str:
    """The card of an adapter or a model: data, licences, settings, results, phases, checks."""
    return _finished(source, folder, kind, title, exports=None)


def for_gguf(source: Path, folder: Path, files: Sequence[Path], *, title: str) -> str:
    """The card of GGUF files, with what their comparisons found."""
    card = files[0].with_suffix(".md")
    if not (folder / RECIPE_FILE).is_file() and provenance.is_ours(card):
        text = card.read_text(encoding="utf-8")
        return _headed(_titled(text, title), "gguf")
    start = folder
    state = phased_state(source)
    if state is not None:
        from ..export import model_folder

        start = model_folder(source)
    return _finished(source, start, "gguf", title, exports=folder)


def _finished(source: Path, folder: Path, kind: str, title: str, *, exports: Path | None) -> str:
    run = next((one for one in (folder, folder.parent) if (one / RECIPE_FILE).is_file()), None)
    state = phased_state(source) if source.is_dir() else None
    home = source if state is not None else run
    if run is not None:
        text = model_card(run)
    elif provenance.is_ours(folder / CARD_FILE):
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
    else:
        text = carried([folder], title) or f"---\n{CARD_KEY}: {{data: []}}\n---\n\n# x\n"
    added = [] if state is None else [sections.of_phases(state), sections.of_scores(state)]
    if home is not None:
        added.append(sections.of_check(home))
    if exports is not None:
        added.append(sections.of_exports(exports))
    if run is not None:
        added.append(recipe_section(run))
    if kind != "adapter":
        text = text.replace("\nAn adapter (LoRA) for ", "\nAn adapter (LoRA) merged into ", 1)
    return _headed(sections.with_sections(_titled(text, title), added), kind)


def recipe_section(run: Path) -> str:
    """The recipe of a run, of its paths the names alone."""
    values = RunSpec.load(run / RECIPE_FILE).to_dict()
    text = yaml.safe_dump(without_paths(_named(values)), sort_keys=False, allow_unicode=True)
    return f"{sections.RECIPE}\n\n```yaml\n{text}```"


def without_paths(value: Any) -> Any:
    """The same values, of whole paths the last name."""
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, str) and re.fullmatch(r"(?:~|\.{0,2})/[^\n\0]*", value):
        return Path(value).name
    return value


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """Without what only this machine needs."""
    left = {key: value for key, value in values.items() if key not in ("resume", "monitor")}
    for key in ("data", "eval_data", "run_dir", "tokenizer"):
        if isinstance(left.get(key), str):
            left[key] = Path(left[key]).name
    if isinstance(left.get("model"), str):
        left["model"] = base_model(Path(left["model"]))
    return left


def for_data(files: Sequence[Path], *, title: str) -> str:
    """The card of a data set: where each file is from, its licence, how many rows and tokens."""
    parts = []
    for path in files:
        rows_file = path.suffix == ".jsonl"
        origin = provenance.of_rows([path]) if rows_file else provenance.of_data(path)
        parts.append((path, Part(name=path.name, origin=origin), _manifest(path)))
    whole = provenance.combine([part.origin for _, part, _ in parts])
    head = {
        **license_of([part for _, part, _ in parts]),
        "tags": ["abi_train", *(["non-commercial"] if whole.commercial_use is False else [])],
        CARD_KEY: {"data": [part.origin.to_dict() for _, part, _ in parts]},
    }
    uses = {True: "yes", False: "no", None: "unknown"}
    lines = ["| file | rows | tokens | chat format | source | licence | commercial use |"]
    lines.append("|---|---|---|---|---|---|---|")
    for path, part, said in parts:
        cells = [
            path.name,
            said.get("rows", ""),
            said.get("count", ""),
            said.get("format") or "",
            part.origin.source or "unknown",
            part.origin.license or "unknown",
            uses[part.origin.commercial_use],
        ]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    notes = [f"- {one_line(note)}" for note in whole.notes]
    hashes = {str(said["tokenizer_hash"]) for _, _, said in parts if said.get("tokenizer_hash")}
    if hashes:
        notes.append(
            "- Token files are made with one tokenizer, whose hash their manifests name: "
            + ", ".join(f"`{one[:16]}…`" for one in sorted(hashes))
        )
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)
    body = "\n".join([*lines, *([""] if notes else []), *notes])
    return f"---\n{text}---\n\n# {one_line(title)}\n\nTraining data of abi_train.\n\n{body}\n"


def licence_notes(text: str) -> list[str]:
    """What somebody who pushes should be told of a card's licences."""
    head = _head(text)[0]
    if head.get("license") == "unknown":
        return ["of some of the data nobody said the licence; the card says so"]
    tags = head.get("tags")
    if isinstance(tags, list) and "non-commercial" in tags:
        return ["some of the data is not for commercial use; the card says so"]
    return []


def _manifest(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                return {"rows": sum(1 for line in file if line.strip())}
        values = json.loads(provenance.manifest_of(path).read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _titled(text: str, title: str) -> str:
    return sections.with_title(text, one_line(title))


def _head(text: str) -> tuple[dict[str, Any], str]:
    """The head of a card, and the rest."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if found is None:
        return {}, text
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}, text
    return (head if isinstance(head, dict) else {}), text[found.end() :]


def _headed(text: str, kind: str) -> str:
    """The card with a head the Hub takes: a base it knows, or none."""
    head, body = _head(text)
    base = head.pop("base_model", None)
    ours = head.pop(CARD_KEY, {"data": [Origin().to_dict()]})
    new: dict[str, Any] = {}
    if isinstance(base, str) and HUB_ID.fullmatch(base):
        new["base_model"] = base
        new["base_model_relation"] = _RELATION[kind]
    new.update(head)
    new["library_name"] = _LIBRARY[kind]
    new.setdefault("pipeline_tag", "text-generation")
    tags = list(new.get("tags") or ["abi_train"])
    if kind == "gguf":
        tags.append("gguf")
    new["tags"] = list(dict.fromkeys(tags))
    new[CARD_KEY] = ours
    front = yaml.safe_dump(new, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{front}---\n{body}"


__all__ = ["for_data", "for_gguf", "for_model", "licence_notes", "recipe_section", "without_paths"]
