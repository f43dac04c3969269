"""Chat formats by name, and which of them a model's own template is.

A format is described once, natively; what is here asks for it. A template is one of the formats
only when it gives the same text for all the chats tried below; anything else is rendered by the
template itself (`from-tokenizer`), never by a format that is nearly right.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import _native
from .chat_template import Template, Vocabulary
from .errors import AbiTrainError, DataError, FormatError

FORMATS: Final = (
    "abbey",
    "chatml",
    "harmony",
    "llama3",
    "llama3_1",
    "llama3_2",
    "mistral",
    "mistral_v3",
    "mistral_v3_tekken",
    "mistral_v7_tekken",
    "qwen",
    "qwen2",
    "qwen3",
    "smollm",
)
FROM_TOKENIZER: Final = "from-tokenizer"
CHOICES: Final = (*FORMATS, FROM_TOKENIZER)


@dataclass(frozen=True, kw_only=True)
class FormatInfo:
    """What a format is, for people and for exporters."""

    name: str
    about: str
    jinja: str
    jinja_for_training: str
    """The same with `generation` marks, of which transformers makes a loss mask."""
    go_template: tuple[str, ...]
    """Ollama's template, in parts that the end token's text joins."""
    stops: tuple[str, ...]
    end: str | None
    """Text of the token that ends an answer; None: the tokenizer's end token."""
    past_end: str | None
    """What stands behind an answer of the past in its place: nothing a model should learn."""
    controls: tuple[str, ...]
    default_system: str | None
    begins_with_bos: bool
    tools: bool
    thinking: bool


@functools.cache
def format_info(name: str) -> FormatInfo:
    """The description of a format. Raises ArgumentError for an unknown name."""
    found = _native.tokenizer.chat_format(name)
    lists = {key: tuple(found[key]) for key in ("go_template", "stops", "controls")}
    return FormatInfo(**{**found, **lists})


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What a template is."""

    name: str
    """A format's name, or `from-tokenizer`."""
    tools: bool
    """Whether the template shows tools as the format does; `from-tokenizer` asks the template."""
    reason: str
    """Why it is that, in a sentence."""


def chat_json(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> str:
    """The chat as the native renderer reads it."""
    try:
        turns = [dict(message) for message in messages]
    except (TypeError, ValueError):
        raise DataError("a turn of the chat is not an object with role and content") from None
    try:
        return json.dumps({"messages": turns, "tools": list(tools)} if tools else turns)
    except (TypeError, ValueError) as error:
        raise DataError(f"the chat cannot be written as JSON ({error})") from None


def detect(source: str, vocabulary: Vocabulary) -> Detected:
    """The format a template is, tried on chats of every kind. Never a near miss."""
    return _detect(source, vocabulary.controls, vocabulary.stops, tuple(vocabulary.special.items()))


@functools.lru_cache(maxsize=64)
def _detect(
    source: str,
    controls: tuple[str, ...],
    stops: frozenset[str],
    special: tuple[tuple[str, str], ...],
) -> Detected:
    known, exact, with_tools = _native.tokenizer.detect_chat_format(source)
    if exact and known is not None:
        return Detected(name=known, tools=with_tools, reason=f"the template is known as {known}'s")
    vocabulary = Vocabulary(controls=controls, stops=stops, special=dict(special))
    try:
        template = Template(source, vocabulary)
    except FormatError as error:
        return Detected(name=FROM_TOKENIZER, tools=False, reason=str(error))
    return _compared(
        {name: _of_template(template, chat) for name, chat in _PROBES.items()}, vocabulary
    )


def _compared(texts: Mapping[str, str | None], vocabulary: Vocabulary) -> Detected:
    """The format that gives `texts` for all probes; else the template itself, and why."""
    closest, best, why = None, -1, ""
    for name in FORMATS:
        ours = {probe: _of_format(name, chat, vocabulary) for probe, chat in _PROBES.items()}
        same = {probe for probe in _PROBES if ours[probe] is None or ours[probe] == texts[probe]}
        if same >= _PROBES.keys() - _TOOL_PROBES:
            tools = format_info(name).tools and same >= _TOOL_PROBES
            limit = "" if tools else ", tools left aside"
            return Detected(
                name=name, tools=tools, reason=f"it gives the same text as {name}{limit}"
            )
        alike = sum(_alike(ours[probe], texts[probe]) for probe in _PROBES)
        if alike > best:
            first = next(p for p in _PROBES if p not in same and p not in _TOOL_PROBES)
            closest, best, why = name, alike, _difference(first, ours[first], texts[first])
    return Detected(
        name=FROM_TOKENIZER,
        tools=True,
        reason=f"it is exactly no format known here; {closest} is nearest, but {why}",
    )


def _alike(ours: str | None, theirs: str | None) -> int:
    """How many characters two texts begin with in common."""
    if ours is None or theirs is None:
        return 0
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _difference(probe: str, ours: str | None, theirs: str | None) -> str:
    """Where two texts part."""
    if theirs is None or ours is None:
        return f"the template refuses {probe}"
    at = _alike(ours, theirs)
    return (
        f"for {probe} it has {ours[at : at + 24]!r} where the template has {theirs[at : at + 24]!r}"
    )


_CALL: Final = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é\n"}}}
    ],
}
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "description": "A."}, "b": {"type": "string"}},
            "required": ["a"],
        },
    },
}


def _turns(*words: str) -> list[dict[str, Any]]:
    """Turns from "role: content"."""
    return [dict(zip(("role", "content"), word.split(": ", 1), strict=True)) for word in words]


_PROBES: Final[Mapping[str, dict[str, Any]]] = {
    "one question": {"messages": _turns("user: Hello you"), "add_generation_prompt": True},
    "an answer": {"messages": _turns("user: Hello", "assistant: Hi there.")},
    "a system turn": {
        "messages": _turns("system: Be kind.", "user: Hello", "assistant: Hi."),
    },
    "a system turn and a question": {
        "messages": _turns("system: Be kind.", "user: Hello"),
        "add_generation_prompt": True,
    },
    "several turns": {
        "messages": _turns(
            "system: S", "user: one", "assistant: two", "user: three", "assistant: four"
        ),
    },
    "several turns and a question": {
        "messages": _turns("user: one", "assistant: two", "user: three"),
        "add_generation_prompt": True,
    },
    "white space at the ends": {
        "messages": _turns(
            "system:  \n s ", "user: \t u \n\n", "assistant: \n\n a \n ", "user:  v "
        ),
        "add_generation_prompt": True,
    },
    "white space in the last answer": {
        "messages": _turns("user:  u", "assistant: \n a \n"),
    },
    "reasoning": {
        "messages": [
            *_turns("user: u"),
            {"role": "assistant", "content": "a", "thinking": "because"},
        ],
    },
    "reasoning in the past": {
        "messages": [
            *_turns("user: u"),
            {"role": "assistant", "content": "a", "thinking": "because"},
            *_turns("user: v", "assistant: b"),
        ],
    },
    "tools on offer": {
        "messages": _turns("user: u"),
        "tools": [_TOOL],
        "add_generation_prompt": True,
    },
    "a tool that was called": {
        "messages": [
            *_turns("system: s", "user: u"),
            _CALL,
            *_turns("tool: 3", "assistant: Three."),
        ],
        "tools": [_TOOL],
    },
    "a tool that answered": {
        "messages": [*_turns("user: u"), _CALL, *_turns('tool: {"c": 3}')],
        "tools": [_TOOL],
        "add_generation_prompt": True,
    },
}
_TOOL_PROBES: Final = {"tools on offer", "a tool that was called", "a tool that answered"}
_DAY: Final = "2025-06-28"


def _of_template(template: Template, chat: Mapping[str, Any]) -> str | None:
    try:
        return template.text(date=_DAY, **chat)
    except DataError:
        return None


def _of_format(name: str, chat: Mapping[str, Any], vocabulary: Vocabulary) -> str | None:
    """The format's text of a chat; None when it refuses it."""
    try:
        segments = _native.tokenizer.chat_segments(
            chat_json(chat["messages"], chat.get("tools")),
            name,
            add_generation_prompt=chat.get("add_generation_prompt", False),
            date=_DAY,
        )
    except AbiTrainError:
        return None
    ends = {"begin": "bos_token", "end": "eos_token"}
    return "".join(
        vocabulary.special.get(ends[key], "") if key in ends else str(segment[key])
        for segment in segments
        for key in ("text", "control", "begin", "end")
        if key in segment
    )
