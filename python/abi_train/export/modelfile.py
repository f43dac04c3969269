"""A Modelfile for Ollama, from the chat format the model was taught in.

Ollama guesses a template when it is given none, and a wrong guess looks like a broken model. So
the template and the stops are written out, made from the same description as the training ids. A
model with a template of its own kind keeps that one: Ollama then renders the Jinja in the GGUF.

The grammar has no escapes and drops characters that are not printable, silently: what it cannot
carry is refused. Does not know: how GGUF files are written.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..chat import FROM_TOKENIZER, format_info
from ..checkpoint import write_text_atomic
from ..errors import ConfigError, FileAccessError, FormatError
from ..tokenizer import Tokenizer

FIRST_LINE: Final = "# Written by abi-train."
#: Ollama's names, and those of generation_config.json they are taken from.
PARAMETERS: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repeat_penalty": "repetition_penalty",
}

ABBEY_SAMPLING: Final[Mapping[str, float]] = {"temperature": 0.7, "top_p": 0.9}
ABBEY_SYSTEM: Final = """\
You are Abbey, an emotionally intelligent AI assistant. You:
- Detect and adapt to user emotions
- Think through problems step-by-step
- Express appropriate uncertainty when unsure
- Ask clarifying questions when needed
- Provide direct, honest responses
"""
"""What the guide for Abbey sets in its Modelfile."""


def modelfile_text(
    gguf: str | Path,
    *,
    model: str | None = None,
    chat_format: str | None = None,
    system: str | None = None,
    parameters: Mapping[str, float] | None = None,
) -> str:
    """The Modelfile of a GGUF file.

    model: what FROM names. (default: the file beside the Modelfile) chat_format: in place of what
    the file's template is. system: the text a chat without a system turn begins with. parameters:
    Ollama's, such as temperature. Raises `ConfigError` for what a Modelfile cannot say.
    """
    path = Path(gguf)
    with Tokenizer.load(path) as tokenizer:
        name = chat_format
        if name is None:
            found = tokenizer.chat_format()
            if found is None:
                raise ConfigError(f"{path}: no chat template; name the chat format it was taught")
            name = found.name
        end = tokenizer.eos_token_id
        eos = "" if end is None else tokenizer.decode([end], skip_special=False, continues=True)
        stop_texts = [
            tokenizer.decode([i], skip_special=False, continues=True)
            for i in tokenizer.stop_token_ids
        ]
    lines = [
        FIRST_LINE + f" Chat format: {name}.",
        _from(model or f"./{path.name}"),
    ]
    if name == FROM_TOKENIZER:
        lines.append(
            "# The model's own template, in the GGUF, is no format that can be written here."
        )
        stops = stop_texts
    else:
        info = format_info(name)
        lines.append(f"TEMPLATE {_quoted(eos.join(info.go_template), 'TEMPLATE')}")
        stops = [*info.stops, info.end or eos]
    if system:
        lines.append(f"SYSTEM {_quoted(system, 'SYSTEM')}")
    lines += [f"PARAMETER stop {_quoted(stop, 'stop')}" for stop in _once(stops)]
    for key, value in (parameters or {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key} is {value!r}; a Modelfile's parameter is a number here")
        lines.append(f"PARAMETER {key} {value}")
    return "\n".join(lines) + "\n"


def write_modelfile(
    gguf: str | Path,
    *,
    chat_format: str | None = None,
    system: str | None = None,
    parameters: Mapping[str, float] | None = None,
) -> Path:
    """Writes `Modelfile` beside the GGUF and returns its path.

    A Modelfile that somebody else wrote, or that is of another GGUF, stays: then it is
    `<name of the GGUF>.Modelfile`. Errors as for `modelfile_text`.
    """
    gguf = Path(gguf)
    text = modelfile_text(gguf, chat_format=chat_format, system=system, parameters=parameters)
    names = itertools.chain(
        ("Modelfile", f"{gguf.stem}.Modelfile"),
        (f"{gguf.stem}-{number}.Modelfile" for number in itertools.count(2)),
    )
    path = next(at for name in names if _is_free(at := gguf.with_name(name), gguf))
    try:
        write_text_atomic(path, text)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def sampling_of(folder: Path) -> dict[str, float]:
    """What `generation_config.json` of a model folder says about sampling, in Ollama's names."""
    try:
        given: Any = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(given, dict):
        return {}
    found = {name: given.get(source) for name, source in PARAMETERS.items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def check_ends(folder: Path) -> bool:
    """Whether a tokenizer folder has a chat template; its answers must end where runners stop.

    Raises `FormatError` when the token that ends an answer in training does not end generation.
    """
    with Tokenizer.load(folder) as tokenizer:
        found = tokenizer.chat_format()
        if found is None or found.name == FROM_TOKENIZER:
            return found is not None
        end = format_info(found.name).end
        token = (
            tokenizer.eos_token_id if end is None else tokenizer.token_to_id(end, control_only=True)
        )
        if token is None or token not in {*tokenizer.stop_token_ids, tokenizer.eos_token_id}:
            raise FormatError(
                f"{folder}: answers in its chat format, {found.name}, end with "
                f"{end or 'the end token'}, which is no token that ends generation here, so the "
                "model would never stop; name it as eos_token in tokenizer_config.json"
            )
    return True


def _is_free(path: Path, gguf: Path) -> bool:
    """Whether nothing is there, or what was written for the same file."""
    return not os.path.lexists(path) or is_for(path, gguf.name)


def is_for(modelfile: Path, gguf: str) -> bool:
    """Whether a Modelfile was written here, for the GGUF of this name beside it."""
    if not modelfile.is_file():
        return False
    with modelfile.open(encoding="utf-8", errors="replace") as file:
        first, second = file.readline(), file.readline()
    return first.startswith(FIRST_LINE) and second.rstrip("\n") == _from(f"./{gguf}")


def _from(model: str) -> str:
    return f"FROM {_quoted(model, 'FROM')}"


def _once(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def _quoted(text: str, name: str) -> str:
    """A value as a Modelfile takes it: bare where that is safe, else between quotes."""
    lost = next((c for c in text if not c.isprintable() and c not in "\n\t"), None)
    if lost is not None:
        raise ConfigError(
            f"{name} holds U+{ord(lost):04X}, which Ollama drops without a word; remove it"
        )
    if '"' not in text and "\n" not in text:
        return f'"{text}"'
    if '"""' in text or text.endswith('"'):
        raise ConfigError(f'{name} holds """ or ends with a quote, which a Modelfile cannot say')
    return f'"""{text}"""'
