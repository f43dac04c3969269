"""Rows of text from JSONL files, in one of the shapes people write, with the line they stand on.

| columns | shape |
|---|---|
| `messages` or `conversations` | a chat; ShareGPT's `from`, `value` are understood |
| `prompt`, `completion` | text to continue and its continuation; two lists of messages are a chat |
| `instruction`, `input`?, `output` | an instruction, turned into a chat |
| `prompt`, `chosen`, `rejected` | a better and a worse answer: all text, or all lists of messages |
| `text` | plain text |

A turn may be a tool's, call tools (`tool_calls`) and have reasoning (`thinking`); `tools` are those
on offer. Without `prompt` the part that `chosen` and `rejected` begin with in common is the prompt,
as TRL takes it. Other columns are allowed and left alone. `prepare` reads natively by the same
rules (zig/src/prepare/row.zig); this is for those who want objects, and a test holds them together.
Does not know: tokenizers, token files.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from ..errors import DataError, FileAccessError, MissingFileError

ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
PACKED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\3\4", "zip"),
    (b"PAR1", "Parquet"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""How files begin that are given by mistake."""
THINKING: Final = ("thinking", "reasoning_content", "reasoning")
ELABORATE: Final = ("tool_calls", *THINKING, "tool_call_id")
"""Keys of a turn that is more than a role and a text."""
ELABORATE_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "tool",
}
MAX_LINE_BYTES: Final = 64 << 20
MAX_DEPTH: Final = 128
"""Lists and objects inside each other."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Plain text: every token is in the loss."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt, which is not in the loss, and its continuation, which is."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. `role` is `system`, `user`, `assistant` or `tool`; abbey shows an emotion."""

    role: str
    content: str
    emotion: str | None = None
    thinking: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The turn as the renderer takes it; what it does not have is left out."""
        values = {key: value for key, value in vars(self).items() if value}
        if self.tool_calls:
            values["tool_calls"] = list(self.tool_calls)
        return {"content": self.content, **values}


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Turns in order. Assistant turns are in the loss, from turn `learn_from` on."""

    messages: tuple[Message, ...]
    learn_from: int = 0
    emotion: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the assistant may call."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt with a better and a worse answer: three texts, or three lists of turns."""

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    emotion: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


Row = Text | Completion | Chat | Preference


@dataclass(kw_only=True)
class Skipped:
    """What a tolerant reader left out: how many rows for which reason, and the first few places."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Count one row."""
        self.counts[reason] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{place}: {reason}")

    @property
    def total(self) -> int:
        """All rows left out."""
        return sum(self.counts.values())


class _Bad(Exception):
    """Why a row cannot be used, without the place."""


def read_rows(
    paths: Sequence[str | Path], *, skipped: Skipped | None = None
) -> Iterator[tuple[int, str, Row]]:
    """Each usable row with its number among all lines and its place `file:line`.

    Blank lines are passed over and not numbered. Raises `DataError` with file, line and reason for
    the first unusable row; with `skipped` such rows are counted there instead.
    """
    number = -1
    for path in map(Path, paths):
        with _opened(path) as file:
            for line_number, line in enumerate(file, start=1):
                if _blank(line):
                    continue
                number += 1
                place = f"{path}:{line_number}"
                try:
                    row = parse_row(line)
                except _Bad as bad:
                    if skipped is None:
                        raise DataError(
                            f"{place}: {bad}. Correct the line, or leave such lines out with "
                            "--skip-invalid (in Python skip_invalid=True)."
                        ) from None
                    skipped.add(place, str(bad))
                    continue
                yield number, place, row


def count_lines(paths: Sequence[str | Path]) -> int:
    """Lines that are not blank, as `read_rows` numbers them."""
    count = 0
    for path in map(Path, paths):
        with _opened(path) as file:
            count += sum(1 for line in file if not _blank(line))
    return count


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file to read; it must be a regular one, because it is read twice.

    What the system refuses inside the `with` names the file.
    """
    if path.is_dir():
        raise FileAccessError(f"{path} is a folder; name the JSONL files in it")
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise FileAccessError(f"{path} is not a regular file; save the rows to one first")
    try:
        with path.open("rb") as file:
            _check_beginning(path, file.read(8))
            file.seek(0)
            yield file
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None


def _blank(line: bytes) -> bool:
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def _check_beginning(path: Path, head: bytes) -> None:
    for mark, name in PACKED:
        if head.startswith(mark):
            raise DataError(f"{path} is {name}, not lines of JSON; convert it to JSONL first")


def parse_row(line: bytes) -> Row:
    """The row a JSON line describes."""
    if len(line) > MAX_LINE_BYTES:
        raise _Bad(f"the line has {len(line)} bytes, more than {MAX_LINE_BYTES}")
    try:
        values = json.loads(
            line.strip(b" \t\r\n").decode("utf-8-sig"),
            object_pairs_hook=_members,
            parse_constant=_no_number,
            parse_int=float,  # of any length: numbers are not looked at
        )
    except UnicodeDecodeError:
        raise _Bad("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _Bad(f"not valid JSON ({_short(error)})") from None
    _check_unseen(values)
    if not isinstance(values, dict):
        raise _Bad("not a JSON object")
    if "chosen" in values or "rejected" in values:
        return _preference(values)
    for key in ("messages", "conversations"):
        if key in values:
            chat = _chat(values[key], key, emotion=_emotion(values))
            return replace(chat, tools=_tools(values))
    if "prompt" in values and "completion" in values:
        return _completion(values)
    if "instruction" in values:
        return _instruction(values)
    if "text" in values:
        return Text(text=_string(values["text"], "text"))
    found = ", ".join(sorted(values)) or "none"
    raise _Bad(
        "no known columns (messages, conversations, prompt and completion, prompt with chosen and "
        f"rejected, instruction and output, or text); found: {found[:120]}"
    )


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _check_unseen(values: Any) -> None:
    """Refuse what JSON allows and no text should hold, also in columns nobody reads."""
    waiting = [(values, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise _Bad("a text holds a NUL character")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise _Bad("a text holds half of a surrogate pair") from None
        elif isinstance(value, list | dict):
            if depth > MAX_DEPTH:
                raise _Bad("nested too deeply")
            parts = value if isinstance(value, list) else [*value, *value.values()]
            waiting.extend((part, depth + 1) for part in parts)


def _string(value: Any, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _Bad(f"{name} is not text")
    if not empty and not value.strip():
        raise _Bad(f"{name} is empty")
    return value


def _emotion(values: Mapping[str, Any]) -> str | None:
    """The emotion of a row or a turn, which only the abbey format shows."""
    emotion = values.get("emotion")
    return emotion if isinstance(emotion, str) and emotion.strip() else None


def _chat(value: Any, key: str, *, answered: bool = True, emotion: str | None = None) -> Chat:
    if not isinstance(value, list) or not value:
        raise _Bad(f"{key} is not a list of messages")
    read = _elaborate_message if any(map(_is_elaborate, value)) else _message
    messages = [read(item, f"{key}[{at}]") for at, item in enumerate(value)]
    if answered and not any(message.role == "assistant" for message in messages):
        raise _Bad(f"{key} has no assistant turn to learn from")
    return Chat(messages=tuple(messages), emotion=emotion)


def _is_elaborate(item: Any) -> bool:
    """Whether a turn has more than a role and a text of its own."""
    if not isinstance(item, dict):
        return False
    return (
        any(item.get(key) is not None for key in ELABORATE)
        or isinstance(item.get("content"), list)
        or item.get("role") in ("tool", "ipython", "developer")
    )


def _elaborate_message(item: Any, name: str) -> Message:
    """A turn with calls, an answer to one, or reasoning; no other names of roles."""
    if not isinstance(item, dict):
        raise _Bad(f"{name} is not an object")
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in ELABORATE_ROLES:
        raise _Bad(f"{name} has role {role!r}; known are {', '.join(ELABORATE_ROLES)}")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts_of = [part for part in parts if isinstance(part, str)]
        if len(texts_of) != len(parts):
            raise _Bad(f"{name}.content holds a part that is not text")
        content = "".join(texts_of)
    content = "" if content is None else content
    texts = {key: item.get(key) for key in ("emotion", "name", "tool_call_id", *THINKING)}
    for key, text in [*texts.items(), ("content", content)]:
        if text is not None and not isinstance(text, str):
            raise _Bad(f"{name}.{key} is not text")
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise _Bad(f"{name}.tool_calls is not a list of calls with a name")
    role = ELABORATE_ROLES[role]
    if not content.strip() and role != "tool" and not (role == "assistant" and calls):
        raise _Bad(f"{name}.content is empty")
    return Message(
        role=role,
        content=content,
        emotion=texts["emotion"],
        thinking=next((texts[key] for key in THINKING if texts[key] is not None), None),
        tool_calls=tuple(calls),
        name=texts["name"],
        tool_call_id=texts["tool_call_id"],
    )


def _is_call(call: Any) -> bool:
    inner = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(inner, dict) and isinstance(inner.get("name"), str)


def _tools(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The tools on offer: a list, or a text that is one."""
    tools = values.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise _Bad(f"tools: not valid JSON ({_short(error)})") from None
    if not tools and not isinstance(tools, bool | float | dict):
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _Bad("tools is not a list of objects")
    return tuple(tools)


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict):
        raise _Bad(f"{name} is not an object")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise _Bad(f"{name} has role {role!r}; known are {', '.join(ROLES)}")
    return Message(
        role=ROLES[role.lower()],
        content=_string(content, f"{name}.content"),
        emotion=_emotion(item),
    )


def _completion(values: Mapping[str, Any]) -> Row:
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _chat(prompt, "prompt", answered=False).messages
        after = _chat(completion, "completion").messages
        return Chat(messages=before + after, learn_from=len(before), tools=_tools(values))
    return Completion(
        prompt=_string(prompt, "prompt"), completion=_string(completion, "completion")
    )


def _preference(values: Mapping[str, Any]) -> Preference:
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if key not in values:
            raise _Bad(f"{other} without {key}: a pair needs both")
    chosen, rejected, prompt = values["chosen"], values["rejected"], values.get("prompt")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise _Bad("chosen and rejected must both be text or both lists of messages")
    row: Preference
    if isinstance(chosen, list):
        better, worse = _chat(chosen, "chosen").messages, _chat(rejected, "rejected").messages
        if isinstance(prompt, list):
            before = _chat(prompt, "prompt", answered=False).messages
        else:  # a text beside lists repeats what both begin with
            before, better, worse = _shared(better, worse)
        row = Preference(
            prompt=before,
            chosen=better,
            rejected=worse,
            emotion=_emotion(values),
            tools=_tools(values),
        )
    elif isinstance(prompt, list):
        raise _Bad("prompt is a list of messages, but chosen and rejected are text; use one shape")
    else:
        good, bad = _string(chosen, "chosen"), _string(rejected, "rejected")
        if prompt is None:
            start, good, bad = _shared(good, bad)
        else:
            start = _string(prompt, "prompt")
        row = Preference(prompt=start, chosen=good, rejected=bad)
    if row.chosen == row.rejected:
        raise _Bad("chosen and rejected are the same: nothing can be learned from the pair")
    return row


_T = TypeVar("_T", str, tuple[Message, ...])


def _shared(chosen: _T, rejected: _T) -> tuple[_T, _T, _T]:
    """The common beginning as prompt, and the two rests, exactly as TRL's `extract_prompt`."""
    if chosen == rejected:
        raise _Bad("chosen and rejected are the same: nothing can be learned from the pair")
    at = 0
    for at in range(min(len(chosen), len(rejected))):
        if chosen[at] != rejected[at]:
            if at > 0 and chosen[at - 1] == " ":  # the space belongs to the answers
                at -= 1
            break
    if at == 0:
        raise _Bad("no prompt, and chosen and rejected begin with nothing in common")
    return chosen[:at], chosen[at:], rejected[at:]


def _instruction(values: Mapping[str, Any]) -> Chat:
    if "output" not in values:
        raise _Bad("instruction without output")
    question = _string(values["instruction"], "instruction")
    extra = values.get("input")
    if extra is not None and _string(extra, "input", empty=True).strip():
        question = f"{question}\n\n{extra}"
    answer = _string(values["output"], "output")
    return Chat(
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        )
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:100]
