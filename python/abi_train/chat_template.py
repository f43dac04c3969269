"""A model's own Jinja template, rendered so that text can never become a control token.

The template runs sandboxed, with what transformers gives it. Before that, every control token
spelled out in what people wrote is broken by a private code point that occurs nowhere else; the
rendered text is cut at control tokens, which can then only be the template's own; at last the
code point is taken out of the text between them. What comes out are segments, and the native
renderer makes ids of them as of any other format.

Loss: what stands between the template's `generation` marks; without them, what each assistant turn
adds to the chat before it, which must then be the beginning of the whole. Either way the token that
ends the turn is in the loss, or there is an error.

Does not know: ids, files, formats.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .errors import DataError, FormatError

REASONING: Final = ("thinking", "reasoning_content", "reasoning")
MAX_OUTPUT: Final = 256 << 20
_PRIVATE: Final = range(0xF0000, 0xFFFFE)  # a plane without characters
_LOOKS_LIKE_CONTROL: Final = re.compile(r"<\|\w+\|>")
_STRUCTURE: Final = frozenset({"role", "type"})  # compared with the template's own words


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a template needs to know of a tokenizer."""

    controls: tuple[str, ...]
    """Texts of all control tokens."""
    stops: frozenset[str]
    """Texts of those that end an answer."""
    special: Mapping[str, str]
    """`bos_token`, `eos_token`, … as templates call them."""


class Template:
    """A compiled template of one tokenizer."""

    def __init__(self, source: str, vocabulary: Vocabulary) -> None:
        self.source = source
        self._vocabulary = vocabulary
        self._controls = _pattern(vocabulary.controls)
        self._template = _compile(source)
        self.marks_trained = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        date: str | None = None,
    ) -> str:
        """The rendered text as anybody renders it, control tokens of people included."""
        render = _Rendering(self, (), tools, date)
        return render.strip(render.unmarked(render.raw(_plain(messages), add_generation_prompt)))

    def segments(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        train: bool = False,
        loss: str = "assistant",
        learn_from: int = 0,
        date: str | None = None,
    ) -> list[dict[str, Any]]:
        """The chat as segments for the native renderer: `{"text" | "control", "in_loss"}`.

        Raises `DataError`, with the turn's number where it can be told.
        """
        if not messages:
            raise DataError("the chat has no turns; give it at least a user's")
        plain = _plain(messages)
        render = _Rendering(self, _texts([plain, tools or []]), tools, date)
        raw = render.whole(plain, add_generation_prompt)
        if not train:
            spans: list[tuple[int, int]] = []
        elif loss == "everything":
            raw = render.unmarked(raw)
            spans = [(0, len(raw))]
        else:
            turns = [
                at
                for at, message in enumerate(plain)
                if message["role"] == "assistant" and at >= learn_from
            ]
            if loss == "completion":
                turns = turns[-1:]
            for at in turns:
                if not _says(plain[at]):
                    raise DataError(
                        f"turn {at + 1} is the assistant's and empty: there is nothing to learn "
                        "but silence; fill it or remove it"
                    )
            raw, spans = render.learned(plain, raw, turns)
        raw = render.unmarked(raw)
        self._check_known(raw, [plain, tools or []])
        return list(self._cut(render, raw, spans))

    def _check_known(self, raw: str, chat: Any) -> None:
        """That the template writes no control token the tokenizer lacks: it would become words."""
        foreign = set(_LOOKS_LIKE_CONTROL.findall(raw)) - set(self._vocabulary.controls)
        foreign = {token for token in foreign if token in self.source}
        if foreign and not any(token in text for token in foreign for text in _texts(chat)):
            raise DataError(
                f"the model's template writes {', '.join(sorted(foreign)[:4])}, and the tokenizer "
                "has no such token; add it to the tokenizer, or name a chat format"
            )

    def _cut(
        self, render: _Rendering, text: str, spans: Sequence[tuple[int, int]]
    ) -> Iterator[dict[str, Any]]:
        """The pieces between control tokens and the borders of `spans`."""
        borders = sorted({border for span in spans for border in span})
        at = 0
        pieces: list[tuple[int, int, bool]] = []
        for found in self._controls.finditer(text):
            pieces += [(at, found.start(), False), (found.start(), found.end(), True)]
            at = found.end()
        pieces.append((at, len(text), False))
        for start, end, control in pieces:
            cuts = [start, *(b for b in borders if start < b < end and not control), end]
            for left, right in itertools.pairwise(cuts):
                in_loss = any(a <= left and right <= b for a, b in spans)
                words = text[left:right] if control else render.strip(text[left:right])
                if words:
                    yield {"control" if control else "text": words, "in_loss": in_loss}


class _Rendering:
    """One chat on its way through a template: the private code points and what they mean."""

    def __init__(
        self,
        template: Template,
        texts: Iterable[str],
        tools: Sequence[Mapping[str, Any]] | None,
        date: str | None,
    ) -> None:
        self._owner = template
        used = set(template.source)
        for text in texts:
            used.update(text)
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self.breaker, self.opening, self.closing = next(free), next(free), next(free)
        self._tools = tools
        self._date = date
        self._change: Callable[[str], str] = str  # what people wrote, as the template gets it
        escaped = json.dumps(self.breaker)[1:-1]
        self._strip = re.compile(f"{re.escape(escaped)}|{self.breaker}", re.IGNORECASE)

    def strip(self, text: str) -> str:
        """`text` without the code point that breaks control tokens, escaped or not."""
        return self._strip.sub("", text)

    def unmarked(self, text: str) -> str:
        """`text` without the marks of trained text."""
        return text.replace(self.opening, "").replace(self.closing, "")

    def whole(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """The rendered chat with every control token of people broken."""
        controls = self._owner._vocabulary.controls

        def broken(text: str) -> str:
            return self._owner._controls.sub(
                lambda found: found[0][0] + self.breaker + found[0][1:], text
            )

        self._change = broken
        text = self._try(messages, add_generation_prompt)
        # What people's words make together with the template's is no control token either.
        if any(_touches(words, controls) for words in _texts([messages, self._tools or []])):
            self._change = lambda words: (
                f"{self.breaker}{broken(words)}{self.breaker}" if words else words
            )
            fenced = self._try(messages, add_generation_prompt)
            self._change = broken
            found = self._owner._controls.findall
            if found(self.unmarked(text)) != found(self.unmarked(fenced)):
                raise DataError(
                    "the model's template makes a control token out of words of the chat; "
                    "name a chat format in place of from-tokenizer"
                )
        return text

    def _try(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self.raw(messages, add_generation_prompt)
        except DataError as error:
            for count in range(1, len(messages)):
                try:
                    self.raw(messages[:count], False)
                except DataError as earlier:
                    if str(earlier) == str(error):
                        raise DataError(f"turn {count}: {error}") from None
            raise DataError(f"turn {len(messages)}: {error}") from None

    def raw(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """The template's output, marks of trained text included."""
        changed = _mapped(messages, self._change)
        tools = None if not self._tools else _mapped(list(self._tools), self._change)
        return _render(
            self._owner._template,
            self._date,
            (self.opening, self.closing),
            {
                **self._owner._vocabulary.special,
                "messages": changed,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def learned(
        self, messages: list[dict[str, Any]], raw: str, turns: Sequence[int]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text without marks, and where in it the trained turns stand."""
        if self._owner.marks_trained:
            every = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
            return self._marked(raw, turns, every)
        spans = []
        for at in turns:
            before = self._try(messages[:at], True)
            upto = raw if at + 1 == len(messages) else self._try(messages[: at + 1], False)
            if not upto.startswith(before) or not raw.startswith(upto):
                raise DataError(
                    f"turn {at + 1}: the model's template writes the chat up to here differently "
                    "from the beginning of the whole chat, so what this turn teaches cannot be "
                    "told; learn only the last turn (loss completion), or name a chat format"
                )
            end = self._end(upto, len(before))
            if end is None:
                raise self._no_end(at)
            spans.append((len(before), end))
        return raw, spans

    def _marked(
        self, raw: str, turns: Sequence[int], every: Sequence[int]
    ) -> tuple[str, list[tuple[int, int]]]:
        text, spans, start = "", [], 0
        for piece in re.split(f"([{self.opening}{self.closing}])", raw):
            if piece == self.opening:
                start = len(text)
            elif piece == self.closing:
                spans.append((start, len(text)))
            else:
                text += piece
        if len(spans) != len(every):
            raise DataError(
                f"the model's template marks {len(spans)} texts as the assistant's, and the chat "
                f"has {len(every)} turns of it; name a chat format in place of from-tokenizer"
            )
        kept = []
        for at, (left, right) in zip(every, spans, strict=True):
            if at not in turns:
                continue
            end = self._end(text[:right], left)
            behind = self._owner._controls.match(text, right)
            if end is None and behind and behind[0] in self._owner._vocabulary.stops:
                end = behind.end()  # some templates close the mark one token early
            if end is None:
                raise self._no_end(at)
            kept.append((left, end))
        return text, kept

    def _end(self, text: str, start: int) -> int | None:
        """Where the last token that ends an answer ends; None when nothing but space may follow."""
        last = None
        for found in self._owner._controls.finditer(text, start):
            last = found
        if last is None or last[0] not in self._owner._vocabulary.stops:
            return None
        return last.end() if not text[last.end() :].strip() else None

    def _no_end(self, at: int) -> DataError:
        stops = ", ".join(sorted(self._owner._vocabulary.stops)) or "none"
        return DataError(
            f"turn {at + 1}: the model's template does not close it with a token that ends an "
            f"answer (known are {stops}), so a model would learn never to stop; name a chat "
            "format, or an eos_token in tokenizer_config.json"
        )


def _says(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return bool(message.get("tool_calls")) or (
        bool(content.strip()) if isinstance(content, str) else bool(content)
    )


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies as templates want them: arguments as objects, reasoning under each of its names."""
    out = []
    for at, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"turn {at} is not an object with role and content")
        copy: dict[str, Any] = {k: v for k, v in message.items() if v is not None or k == "content"}
        copy.setdefault("content", "")
        for name in REASONING:
            if isinstance(copy.get(name), str):
                for other in REASONING:
                    copy.setdefault(other, copy[name])
                break
        if copy.get("tool_calls"):
            copy["tool_calls"] = [_call(call, at) for call in copy["tool_calls"]]
        else:
            copy.pop("tool_calls", None)
        out.append(copy)
    return out


def _call(call: Any, at: int) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise DataError(f"turn {at}: a tool call is not an object")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise DataError(f"turn {at}: a tool call has no name")
    arguments = inner.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise DataError(f"turn {at}: arguments of a tool call are not JSON") from None
    function = {**inner, "arguments": arguments}
    rest = {key: value for key, value in call.items() if key not in ("function", *inner)}
    return {**rest, "type": "function", "function": function}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy with `change` made to every text people wrote, keys of objects included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            _key(key, change): item if key in _STRUCTURE else _mapped(item, change)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return value


def _key(key: Any, change: Callable[[str], str]) -> Any:
    """Keys change only where a control token is spelled in them: others may be the template's."""
    if not isinstance(key, str) or not key.strip():
        return key
    changed = change(key)
    return changed if changed[:1] == key[:1] else key


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            if key not in _STRUCTURE:
                yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _touches(text: str, controls: Sequence[str]) -> bool:
    """Whether `text` could be part of a control token whose rest stands beside it."""
    if not text:
        return False
    for control in controls:
        if len(text) < len(control) and text in control:
            return True
        for size in range(1, min(len(control), len(text) + 1)):
            if text.endswith(control[:size]) or text.startswith(control[-size:]):
                return True
    return False


def _pattern(controls: Sequence[str]) -> re.Pattern[str]:
    """Matches any control token, the longest first, as tokenizers do."""
    longest = sorted((c for c in controls if c), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


# ---- the engine ----


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> Any:
    """The template, compiled. Raises `FormatError` with the line."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` … `{% endgeneration %}`: what the assistant itself writes."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_mark", [nodes.ContextReference()])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, context: Any, caller: Callable[[], str]) -> str:
            opening, closing = context.resolve("__trained_marks")
            return f"{opening}{caller()}{closing}"

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also keeps a template from asking for more memory than a chat can need."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and len(many) * times > MAX_OUTPUT:
                    raise OverflowError("a text repeated too often")
            if operator == "**" and (abs(left) > 1 << 32 or abs(right) > 64):
                raise OverflowError("a power too large")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(
            f"the chat template cannot be read: line {error.lineno}: {error.message}"
        ) from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Refused(Exception):
    """What a template says with `raise_exception`."""


def _raise(message: str) -> None:
    raise _Refused(message)


def _render(
    template: Any, date: str | None, marks: tuple[str, str], variables: Mapping[str, Any]
) -> str:
    import jinja2

    day = datetime.datetime.now() if date is None else datetime.datetime.fromisoformat(date)
    out: list[str] = []
    size = 0
    try:
        for part in template.generate(
            {**variables, "__trained_marks": marks, "strftime_now": day.strftime}
        ):
            size += len(part)
            if size > MAX_OUTPUT:
                raise DataError(f"the model's template wrote more than {MAX_OUTPUT} characters")
            out.append(part)
    except _Refused as error:
        raise DataError(f"the model's template refuses the chat: {error}") from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        what = " ".join(str(error).split())[:160]
        raise DataError(f"the model's template fails on the chat: {what}") from None
    except (ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise DataError(f"the model's template fails on the chat: {type(error).__name__}") from None
    return "".join(out)
