"""Go's text/template, as much of it as our templates use, for tests.

``render(template, values)`` gives the text. Known are text, ``if``, ``else if``, ``else``,
``range`` with an index, variables with ``:=`` and ``=``, fields, calls with parentheses, and the
functions ``and not eq lt len slice index json`` with Ollama's ``currentDate``. Anything else is an
error, so a template that leaves this ground is noticed.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),=]|[^\s(),="]+)')


class TemplateError(AssertionError):
    """The template holds something this evaluator, or Go, does not know."""


@dataclass
class Action:
    words: list[str]


def _pieces(template: str) -> Iterator[str | Action]:
    at = 0
    while (start := template.find("{{", at)) >= 0:
        if start > at:
            yield template[at:start]
        end = template.find("}}", start)
        if end < 0:
            raise TemplateError("an action is not closed")
        inside = template[start + 2 : end]
        if inside.startswith("-") or inside.endswith("-"):
            raise TemplateError("trim marks are not used here")
        words = _TOKEN.findall(inside)
        if "".join(words) != re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", inside):
            raise TemplateError(f"cannot read {inside!r}")
        yield Action(words)
        at = end + 2
    if at < len(template):
        yield template[at:]


@dataclass
class Block:
    kind: str
    words: list[str]
    body: list[Any]
    otherwise: list[Any]


def _parse(pieces: list[str | Action], at: int, top: bool) -> tuple[list[Any], int]:
    """Nodes up to `end` or `else`; where that stands."""
    out: list[Any] = []
    while at < len(pieces):
        piece = pieces[at]
        if isinstance(piece, str):
            out.append(piece)
            at += 1
            continue
        head = piece.words[0]
        if head in ("end", "else"):
            if top:
                raise TemplateError(f"{head} without a beginning")
            return out, at
        if head in ("if", "range"):
            block, at = _block(pieces, at, head, piece.words[1:])
            out.append(block)
            continue
        out.append(piece)
        at += 1
    if not top:
        raise TemplateError("end is missing")
    return out, at


def _block(pieces: list[str | Action], at: int, kind: str, words: list[str]) -> tuple[Block, int]:
    body, at = _parse(pieces, at + 1, False)
    closing = pieces[at]
    assert isinstance(closing, Action)
    if closing.words == ["end"]:
        return Block(kind, words, body, []), at + 1
    if closing.words[:2] == ["else", "if"]:
        inner, at = _block(pieces, at, "if", closing.words[2:])
        return Block(kind, words, body, [inner]), at
    if closing.words != ["else"]:
        raise TemplateError(f"cannot read {closing.words}")
    otherwise, at = _parse(pieces, at + 1, False)
    return Block(kind, words, body, otherwise), at + 1


class _Run:
    def __init__(self, root: Any, day: datetime.date) -> None:
        self.scopes: list[dict[str, Any]] = [{"$": root}]
        self.dot = root
        self.day = day
        self.out: list[str] = []

    def nodes(self, nodes: list[Any]) -> None:
        for node in nodes:
            if isinstance(node, str):
                self.out.append(node)
            elif isinstance(node, Action):
                self.action(node.words)
            elif node.kind == "if":
                self.scopes.append({})
                self.nodes(node.body if _true(self.value(node.words)) else node.otherwise)
                self.scopes.pop()
            else:
                self.range(node)

    def action(self, words: list[str]) -> None:
        if len(words) > 2 and words[1] == ":=":
            self.scopes[-1][words[0]] = self.value(words[2:])
        elif len(words) > 2 and words[1] == "=":
            for scope in reversed(self.scopes):
                if words[0] in scope:
                    scope[words[0]] = self.value(words[2:])
                    return
            raise TemplateError(f"undefined variable {words[0]}")
        else:
            self.out.append(_text(self.value(words)))

    def range(self, block: Block) -> None:
        names: list[str] = []
        words = block.words
        if ":=" in words:
            cut = words.index(":=")
            names = [word for word in words[:cut] if word != ","]
            words = words[cut + 1 :]
        items = self.value(words)
        pairs = list(sorted(items.items()) if isinstance(items, dict) else enumerate(items or []))
        if not pairs:
            self.nodes(block.otherwise)
        before = self.dot
        for key, item in pairs:
            bound = (key, item) if len(names) == 2 else (item,)
            self.scopes.append(dict(zip(names, bound, strict=False)))
            self.dot = item
            self.nodes(block.body)
            self.scopes.pop()
        self.dot = before

    def value(self, words: list[str]) -> Any:
        value, rest = self.call(words)
        if rest:
            raise TemplateError(f"left over: {rest}")
        return value

    def call(self, words: list[str]) -> tuple[Any, list[str]]:
        """A function with its arguments, or one operand."""
        arguments: list[Any] = []
        name = words[0] if re.fullmatch(r"[a-z]\w*", words[0], re.IGNORECASE) else None
        if name in ("true", "false"):
            name = None
        rest = words[1:] if name else words
        while rest and rest[0] != ")":
            value, rest = self.operand(rest)
            arguments.append(value)
        if name is None:
            if len(arguments) != 1:
                raise TemplateError(f"not a call: {words}")
            return arguments[0], rest
        return self.function(name, arguments), rest

    def operand(self, words: list[str]) -> tuple[Any, list[str]]:
        word, rest = words[0], words[1:]
        if word == "(":
            value, rest = self.call(rest)
            if not rest or rest[0] != ")":
                raise TemplateError("a parenthesis is not closed")
            rest = rest[1:]
            if rest and rest[0].startswith("."):
                return _field(value, rest[0]), rest[1:]
            return value, rest
        if word.startswith('"'):
            return json.loads(word), rest
        if re.fullmatch(r"-?\d+", word):
            return int(word), rest
        if word in ("true", "false"):
            return word == "true", rest
        if word.startswith("."):
            return _field(self.dot, word), rest
        if word.startswith("$"):
            name, _, fields = word.partition(".")
            for scope in reversed(self.scopes):
                if name in scope:
                    return _field(scope[name], "." + fields if fields else "."), rest
            raise TemplateError(f"undefined variable {name}")
        if word == "currentDate":
            return self.function(word, []), rest
        raise TemplateError(f"cannot read {word!r}")

    def function(self, name: str, given: list[Any]) -> Any:
        if name == "and":
            return next((value for value in given if not _true(value)), given[-1])
        if name == "not":
            (one,) = given
            return not _true(one)
        if name in ("eq", "lt"):
            left, right = given
            if type(left) is not type(right):
                raise TemplateError(f"{name} of {left!r} and {right!r}: incompatible types")
            return left == right if name == "eq" else left < right
        if name == "len":
            (one,) = given
            return len(one)
        if name == "slice":
            return given[0][given[1] : given[2] if len(given) > 2 else None]
        if name == "index":
            return given[0][given[1]]
        if name == "json":
            (one,) = given
            return json.dumps(one, ensure_ascii=False)
        if name == "currentDate":
            return self.day.isoformat()
        raise TemplateError(f"function {name!r} is not defined")


def _field(value: Any, path: str) -> Any:
    for name in path.split("."):
        if not name:
            continue
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif hasattr(value, name):
            value = getattr(value, name)
        else:
            raise TemplateError(f"can't evaluate field {name}")
    return value


def _true(value: Any) -> bool:
    return bool(value)


class Json(dict[str, Any]):
    """An object that prints itself as JSON, as Ollama's tools and arguments do."""


def _text(value: Any) -> str:
    if isinstance(value, Json):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise TemplateError(f"{type(value).__name__} would be printed in Go's own way")


def render(template: str, values: dict[str, Any], day: datetime.date) -> str:
    """The text of a template with the values of an Ollama chat."""
    nodes, _ = _parse(list(_pieces(template)), 0, True)
    run = _Run(values, day)
    run.nodes(nodes)
    return "".join(run.out)


class Property(dict[str, Any]):
    """A tool's parameter with its TypeScript type."""

    @property
    def ToTypeScriptType(self) -> str:
        return {"integer": "number", "array": "any[]"}.get(self["Type"], self["Type"])


def ollama_values(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """What Ollama hands to a template for a chat."""
    out = []
    for turn in messages:
        calls = [
            {
                "Function": {
                    "Name": c["function"]["name"],
                    "Arguments": Json(c["function"]["arguments"]),
                }
            }
            for c in turn.get("tool_calls", [])
        ]
        out.append(
            {
                "Role": turn["role"],
                "Content": turn["content"],
                "Thinking": turn.get("reasoning_content", ""),
                "ToolCalls": calls,
            }
        )
    offered = []
    for tool in tools or []:
        function = Json(tool["function"])
        properties = {
            name: Property(Type=spec["type"], Description=spec.get("description", ""))
            for name, spec in function["parameters"]["properties"].items()
        }
        offered.append({"Function": _Function(function, properties)})
    return {"Messages": out, "Tools": offered, "System": "", "Response": ""}


class _Function(Json):
    """Prints as JSON, and has Go's fields."""

    def __init__(self, function: dict[str, Any], properties: dict[str, Any]) -> None:
        super().__init__(function)
        self.Name = function["name"]
        self.Description = function["description"]
        self.Parameters = {"Properties": properties}
