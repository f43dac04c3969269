"""Writes docs/formats/chat.md: its text, and one rendered example of each chat format.

    python tools/make_chat_docs.py [docs/formats/chat.md]     (or: make docs)

A test compares the page with what this file makes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from abi_train import _native
from abi_train.chat import FORMATS, chat_json, format_info

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats" / "chat.md"
DAY = "2025-06-28"

HEAD = """\
# Chat formats

Made by `make docs`; a test compares. Code: `zig/src/tokenizer/chat/` (descriptions and what reads
them), `zig/src/tokenizer/chat_format.zig` (ids and loss), `python/abi_train/chat.py` (which format
a template is), `python/abi_train/chat_template.py` (`from-tokenizer`).

## One description, everything else made from it

A format is one entry of `chat/formats.zig`: a tree of nodes. Four things walk it, and none of them
knows a format by name.

| made from the tree | for |
|---|---|
| segments | ids and loss mask, from Python and from Zig alike: there is no other way to ids |
| Jinja, without and with `generation` marks | tokenizers, GGUF files; TRL's assistant-only loss |
| Go template | the Modelfile for Ollama |
| stops, end token, default system text | runners, exporters, the check before an export |

| node | means |
|---|---|
| `say("…")` | literal text; control tokens of the format in it are control tokens |
| `put(.content)` | what somebody wrote, or a name, arguments, tools: always ordinary text |
| `.begin`, `.end` | the tokenizer's begin and end token |
| `trained(…)` | what the model itself has to write: in the loss in a trained assistant's turn |
| `choose(when(…), otherwise(…))` | the first arm whose conditions hold |
| `turns`, `calls`, `tools` | once for each turn, call of the turn, tool on offer |

Always true, and tested for every format on forty conversations: the ids are those of the Jinja
template in transformers and in llama.cpp; the Go template writes the same text, but for what
Ollama's templates cannot say (they do not trim, write JSON without spaces, and know less of
TypeScript); the end of every trained answer is in the loss.

## Text never becomes a control token

A segment is text or a control token. Control tokens enter by id, text is encoded as ordinary text,
whatever it spells. Pieces of text that stand side by side are encoded as one, so that the ids are
those of the whole string.

`from-tokenizer` renders the model's own template, which gives a string. Before that, a private code
point that occurs nowhere in the chat or the template breaks every control token that people
spelled; the string is cut at control tokens, which can then only be the template's; then the code
point is taken out. Where words of the chat could join the template's to a control token, the chat
is rendered once more with fences around every text, and a difference is an error. The engine is
Jinja's immutable sandbox with what transformers gives: `tojson`, `strftime_now`, `raise_exception`,
`generation`, `break` and `continue`, trimmed blocks.

## Which format a template is

`abi-train data formats --tokenizer FOLDER` says it. A template is a format only if its text is
known as that, or if both write the same text for chats of every kind: system turns, several turns,
white space at the ends, reasoning, tools. What is merely near is rendered by the template itself,
and the reason names the first difference. A template without tools counts as the format for chats
without tools; a chat with tools is then an error, not a silent loss. The agent has no Jinja: for
a template it does not know by its text it takes the nearest format and says so in `/info`.

## Loss

`assistant` (default): all assistant turns, from turn `learn_from` on. `completion`: the last one.
`everything`: every token. A token that spans header and body belongs to the body. For
`from-tokenizer` the trained text stands between the template's `generation` marks (a mark that
closes one token before the end token is extended over it); without marks it is what the turn adds
to the rendered chat before it, which must be the beginning of the whole, or the turn is refused.

`harmony` ends a past answer with `<|end|>` where the model itself writes `<|return|>`. That
`<|end|>` is written by whoever serves the model, and a model that learned it there would not stop:
it is the one end that is not in the loss. The answer before it is. To teach the end of every
answer, make one row of each; the reasoning of earlier turns is only kept that way too.

## Modelfile

`abi-train export` writes `Modelfile` beside the GGUF (or `NAME.Modelfile`, where a `Modelfile` of
somebody else stands): FROM the file, TEMPLATE and `stop` parameters from the format, SYSTEM when
asked with `--system`, and the sampling settings of the model's `generation_config.json`. For
`from-tokenizer` there is no TEMPLATE: Ollama renders the Jinja in the GGUF. The grammar has no
escapes and Ollama drops characters that are not printable, so a text that holds three quotes in a
row, ends with one, or holds such a character is refused. So is, before anything is written, a
model whose answers end with a token that is not among those that end generation.

## Refused

Errors have these names in Zig (`chat/conversation.zig`); in Python they are `DataError`. All but
the first and the last three say the number of the turn, from 1.

| error | when |
|---|---|
| `EmptyChat` | there is no turn |
| `EmptyTurn` | a turn to be learned says nothing |
| `WrongRole` | an unknown role, or one that cannot stand there |
| `ToolWithoutCall` | a tool answers what nobody asked, or under another name or id |
| `UnansweredCall` | a call that the next turns do not answer |
| `TooManyCalls` | more calls in a turn than the format writes |
| `ToolsUnsupported` | tools in a format without |
| `UnwritableTurn` | a turn holds something the format has no place for |
| `InvalidTools` | tools or arguments are not the JSON they must be |
| `MissingDate` | the format names the day and none is given |
| `InvalidChat` | not the JSON of a chat |
| `MissingControlToken` | the tokenizer lacks a token the format is made of |

`from-tokenizer` further refuses, in Python: a template that cannot be read (`FormatError` with its
line), that raises or fails (with the turn at which it first does), that writes a token the
tokenizer lacks, that does not close a trained turn with a token that ends an answer, whose marks
are not one a turn, or that makes a control token out of words of the chat.

## The formats

One chat in each of them. Control tokens stand as they are, the begin and the end token of the
tokenizer as `{begin}` and `{end}`; what the model learns to write is between `⟦` and `⟧`.
"""

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?", "emotion": "joy"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Time?"},
    {"role": "assistant", "content": "Noon."},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string"}},
            "required": ["zone"],
        },
    },
}
CALL = {"name": "clock", "arguments": {"zone": "CET"}}
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Time?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": CALL}],
    },
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]


def rendered(name: str, chat: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    """The chat's text with the trained parts marked."""
    segments = _native.tokenizer.chat_segments(chat_json(chat, tools), name, train=True, date=DAY)
    out, inside = "", False
    for segment in segments:
        if segment["in_loss"] != inside:
            out += "⟧" if inside else "⟦"
            inside = not inside
        begin = "{begin}" if "begin" in segment else "{end}"
        out += segment.get("text", segment.get("control", begin))
    return out + ("⟧" if inside else "")


def page() -> str:
    """The whole page."""
    out = HEAD
    for name in FORMATS:
        info = format_info(name)
        out += f"\n### {name}\n\n{info.about}.\n"
        stops = ", ".join(f"`{stop!r}`" for stop in info.stops).replace("'", "")
        out += f"Ends with `{info.end or 'the end token'}`; stops: {stops}.\n"
        out += f"\n```text\n{rendered(name, CHAT, None).rstrip(chr(10))}\n```\n"
        if info.tools:
            shown = rendered(name, TOOL_CHAT, [TOOL]).rstrip("\n")
            out += f"\nWith a tool:\n\n```text\n{shown}\n```\n"
    return out


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target}")
