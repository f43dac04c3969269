"""A model's own template: what the sandbox forbids, what the mask needs, how it fails."""

from __future__ import annotations

from typing import Any

import pytest

from abi_train.chat_template import Template, Vocabulary
from abi_train.errors import DataError, FormatError

WORDS = Vocabulary(
    controls=("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|user|>"),
    stops=frozenset({"<|im_end|>", "</s>"}),
    special={"bos_token": "<s>", "eos_token": "</s>"},
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def shown(segments: list[dict[str, Any]]) -> str:
    """Text of segments; trained parts in brackets, control tokens as they are."""
    out, inside = "", False
    for segment in segments:
        if segment["in_loss"] != inside:
            out, inside = out + ("]" if inside else "["), not inside
        out += segment.get("text") or segment["control"]
    return out + ("]" if inside else "")


def test_the_mask_without_marks_is_what_each_turn_adds() -> None:
    template = Template(CHATML, WORDS)
    start = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    middle = "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    whole = template.segments(CHAT, train=True)
    assert shown(whole) == f"{start}[b<|im_end|>]{middle}[d<|im_end|>]\n"
    last = template.segments(CHAT, train=True, loss="completion")
    assert shown(last) == f"{start}b<|im_end|>{middle}[d<|im_end|>]\n"
    later = template.segments(CHAT, train=True, learn_from=2)
    assert later == last
    assert all(not s["in_loss"] for s in template.segments(CHAT))
    assert all(s["in_loss"] for s in template.segments(CHAT, train=True, loss="everything"))


def test_marks_that_close_too_early_are_stretched_over_the_end_token() -> None:
    source = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}",
    )
    marked, plain = Template(source, WORDS), Template(CHATML, WORDS)
    assert marked.marks_trained and not plain.marks_trained
    for loss in ("assistant", "completion"):
        got = shown(marked.segments(CHAT, train=True, loss=loss))
        assert got == shown(plain.segments(CHAT, train=True, loss=loss))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (CHATML.replace("<|im_end|>", ""), "turn 2: .*does not close it"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else 'past' }}"),
            "turn 2: .*differently",
        ),
        ("{{ raise_exception('only two turns') }}", "turn 1: .*only two turns"),
        (CHATML + "{{ messages[3].nothing.more }}", "turn 4: .*fails on the chat"),
        ("{% if messages | length > 2 %}{{ 1 / 0 }}{% endif %}" + CHATML, "turn 3: .*ZeroDivision"),
        ("{{ messages.append(1) }}", "fails on the chat"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails on the chat"),
        ("{% generation %}x{% endgeneration %}", "marks 1 texts"),
        (
            CHATML.replace("<|im_start|>", "<|turn|>"),
            r"writes <\|turn\|>, and the tokenizer has no",
        ),
        ("{{ 'a' * 10 ** 12 }}", "fails on the chat: OverflowError"),
        ("{{ 10 ** 10 ** 10 }}", "fails on the chat: OverflowError"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "fails on the chat: OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails on the chat: RecursionError"),
        ("{% include 'x' %}", "fails on the chat"),
        ("{{ messages[0].update({'role': 'x'}) }}", "fails on the chat"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(source: str, error: str) -> None:
    with pytest.raises(DataError, match=error):
        Template(source, WORDS).segments(CHAT, train=True)


def test_a_person_may_write_what_looks_like_a_token() -> None:
    source = CHATML.replace("user", "<|turn|>")
    chat = [{"role": "user", "content": "what is <|turn|>?"}, CHAT[1]]
    assert "<|turn|>" in shown(Template(source, WORDS).segments(chat, train=True))


def test_an_empty_turn_and_no_turn_are_refused() -> None:
    template = Template(CHATML, WORDS)
    with pytest.raises(DataError, match="no turns"):
        template.segments([])
    silent = [CHAT[0], {"role": "assistant", "content": " \n"}]
    with pytest.raises(DataError, match=r"turn 2 .*empty"):
        template.segments(silent, train=True)
    template.segments(silent)


def test_a_template_that_is_not_jinja_is_named_with_its_line() -> None:
    with pytest.raises(FormatError, match="line 2"):
        Template("{{ a }}\n{% if %}", WORDS)


def test_control_tokens_come_from_the_template_alone() -> None:
    template = Template("{{ bos_token }}" + CHATML, WORDS)
    for text in ("<|im_end|>", "x<|im_start|>system\n<s>", "<<s>s>", "<|im_<|im_end|>end|>"):
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        segments = template.segments(chat, train=True)
        controls = [s["control"] for s in segments if "control" in s]
        assert controls == ["<s>", *["<|im_start|>", "<|im_end|>"] * 2]
        assert "".join(s.get("text", "") for s in segments).count(text) == 2


def test_words_that_make_a_control_token_with_the_template_s_are_refused() -> None:
    joins = Template("{% for m in messages %}<|{{ m.content }}|></s>{% endfor %}", WORDS)
    with pytest.raises(DataError, match="out of words of the chat"):
        joins.segments([{"role": "user", "content": "user"}])
    fine = joins.segments([{"role": "user", "content": "users"}])
    assert shown(fine) == "<|users|></s>"
    # A role is the template's own word: some write it as a token.
    role = Template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", WORDS)
    controls = [s for s in role.segments(CHAT[:1]) if "control" in s]
    assert [s["control"] for s in controls] == ["<|user|>"]


def test_tools_arguments_and_reasoning_reach_the_template_as_transformers_gives_them() -> None:
    source = (
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}"
        "{% for c in m.tool_calls %}"
        "{{ c.function.arguments | tojson }}{{ c.function.arguments.x }}{% endfor %}{% endfor %}"
        "{{ tools | tojson(indent=2) }}{{ strftime_now('%d %b %Y') }}"
    )
    calls = [{"function": {"name": "f", "arguments": '{"x": "é<s>"}'}}]
    turn = {"role": "assistant", "reasoning": "r", "content": None, "tool_calls": calls}
    segments = Template(source, WORDS).segments([turn], tools=[{"a": 1}], date="2025-06-28")
    text = 'rr{"x": "é<s>"}é<s>[\n  {\n    "a": 1\n  }\n]28 Jun 2025'
    assert segments == [{"text": text, "in_loss": False}]
