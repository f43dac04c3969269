"""What a GGUF says of its model besides how to run it: the licence, and what it was made from.

The same that the model card says: read from the run, or from the card in the model's folder. What
nobody said is left out. Does not know: how files are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..data import provenance
from ..data.provenance import CARD_FILE, Origin
from ..errors import AbiTrainError
from ..runspec import RECIPE_FILE, RunSpec

HUB: Final = "https://huggingface.co/"


def about(folder: Path) -> dict[str, str | int]:
    """Keys of `general.` for a model folder, a checkpoint or an adapter."""
    from .model_card import Part, license_of

    run = next((one for one in (folder, folder.parent) if (one / RECIPE_FILE).is_file()), None)
    try:
        if run is not None:
            return about_run(RunSpec.load(run / RECIPE_FILE))
        front = provenance.front_matter(folder / CARD_FILE)
        origin = provenance.of_model(folder)
        said: Mapping[str, Any] = {}
        if provenance.is_ours(folder / CARD_FILE) or not isinstance(front.get("license"), str):
            said = license_of([] if origin == Origin() else [Part(name="", origin=origin)])
    except AbiTrainError:
        return {}  # what cannot be read is not said
    given = front.get("base_model")
    bases = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return _keys({**front, **said}, bases)


def about_run(spec: RunSpec) -> dict[str, str | int]:
    """The same for what a run ends with."""
    from .model_card import base_model, license_of, parts_of

    bases = [] if spec.model.suffix == ".json" else [base_model(spec.model)]
    return _keys(license_of(parts_of(spec)), bases)


def _keys(said: Mapping[str, Any], bases: Sequence[Any]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    licence = said.get("license")
    if isinstance(licence, str) and licence and licence != "unknown":
        for key, name in (("license", licence), ("license.name", said.get("license_name"))):
            if isinstance(name, str) and (key == "license" or licence == "other"):
                found[f"general.{key}"] = name
        link = said.get("license_link")
        if isinstance(link, str):
            found["general.license.link"] = link
    named = [one for one in bases if isinstance(one, str) and one and one.isprintable()]
    if named:
        found["general.base_model.count"] = len(named)
    for number, base in enumerate(named):
        found |= _base(f"general.base_model.{number}", base)
    return found


def _base(key: str, base: str) -> dict[str, str | int]:
    from .model_card import HUB_ID

    owner, _, name = base.rpartition("/")
    found: dict[str, str | int] = {f"{key}.name": name or base}
    if HUB_ID.fullmatch(base):
        found[f"{key}.organization"] = owner
        found[f"{key}.repo_url"] = HUB + base
    return found
