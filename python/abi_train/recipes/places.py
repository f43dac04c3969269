"""Where the parts of a recipe are: recipes and samples that come with the package, and the Hub.

Does not know: phases, runs.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..rules import unknown_key

HERE: Final = Path(__file__).resolve().parent
SAMPLE: Final = HERE.parent / "sample"
HUB: Final = "hub:"
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
SAMPLE_SCHEME: Final = "sample:"


def shipped() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    return tuple(sorted(path.stem for path in HERE.glob("*.yaml")))


def shipped_recipe(name: str) -> Path:
    """The file of a recipe that comes with the package. Raises `ConfigError`."""
    if name not in shipped():
        raise unknown_key(name, shipped(), f"the recipes that come along ({', '.join(shipped())})")
    return HERE / f"{name}.yaml"


def find(recipe: str | Path) -> Path:
    """The file meant: a path, or the name of a recipe that comes with the package."""
    path = Path(recipe)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    if str(recipe) in shipped():
        return shipped_recipe(str(recipe))
    names = ", ".join(shipped())
    near = difflib.get_close_matches(str(recipe), shipped(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{recipe}: no such file, and no recipe of this name comes along ({names}){hint}"
    )


def base_of(path: Path) -> Path:
    """The folder that relative paths of a recipe are taken from: its own, but where you stand for
    one that comes with the package."""
    return Path() if path.resolve().parent == HERE else path.parent


def sample_rows(name: str) -> Path:
    """The packaged rows `sample:NAME`. Raises `ConfigError` with the names there are."""
    for file in (f"{name}.jsonl", f"abbey_{name}.jsonl"):
        if (SAMPLE / file).is_file() and Path(file).name == file:
            return SAMPLE / file
    known = sorted(path.stem.removeprefix("abbey_") for path in SAMPLE.glob("*.jsonl"))
    raise unknown_key(name, known, f"the packaged samples ({', '.join(known)})")


def sample_folder(name: str) -> Path:
    """A packaged folder, as `sample:tokenizer`. Raises `ConfigError`."""
    known = sorted(path.parent.name for path in SAMPLE.glob("*/tokenizer.json"))
    if name not in known:
        raise unknown_key(name, known, f"the packaged folders ({', '.join(known)})")
    return SAMPLE / name


def hub_name(model: str) -> tuple[str, str | None]:
    """OWNER/NAME and the revision of a model on the Hub. Raises `ConfigError`."""
    name, _, revision = model.removeprefix(HUB).partition("@")
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"{model}: needs OWNER/NAME, as hub:openai/gpt-oss-20b")
    return name, revision or None


def download_model(model: str) -> Path:
    """The folder of a model `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION`, fetched when it is not
    there yet.

    Raises `EngineError` without huggingface_hub, `HubError` for whatever keeps it from coming: no
    network, a gated model, a full disk.
    """
    from ..hub import client

    name, revision = hub_name(model)
    hub = client.api()
    with client.asking(f"fetch {model}", hint="check the name, or name a folder with --model"):
        folder = hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "LICENSE*", "*.md"],
            ignore_patterns=["original/*", "metal/*"],
        )
    return Path(folder)
