"""Each chat format against everybody who renders it: transformers, llama.cpp, the published
templates, a Go template, and the model's own template through our sandboxed engine.

The forty conversations are in tests/chat_samples.py. Where a conversation spells a marker of the
format, the others make a control token of it; there the ids must be those of the same text with
every marker kept as text.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import chat_samples as samples  # noqa: E402
import go_template  # noqa: E402
import llama_peer  # noqa: E402

from abi_train import _native, chat  # noqa: E402
from abi_train.errors import AbiTrainError, DataError  # noqa: E402
from abi_train.tokenizer import Tokenizer  # noqa: E402

transformers = pytest.importorskip("transformers")

SEED = int(os.environ.get("ABI_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
TODAY = datetime.date.today().isoformat()
BREAK = "\ue000"


class Home:
    """A format's tokenizer, ours and the reference's."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.info = chat.format_info(name)
        self.folder = samples.make_home(folder, name, self.info.jinja)
        self.ours = Tokenizer.load(self.folder)
        self.hf = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.controls = [str(t) for t in self.hf.all_special_tokens]
        added = json.loads((self.folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.controls = [t["content"] for t in added["added_tokens"] if t["special"]]

    @property
    def end_id(self) -> int:
        end = self.info.end or self.hf.eos_token
        return int(self.hf.convert_tokens_to_ids(end))

    def safe_ids(self, text: str) -> list[int]:
        """Ids of a rendered text in which markers of people hold BREAK: those stay text."""
        core = self.hf.backend_tokenizer
        longest = sorted(self.controls, key=len, reverse=True)
        ids: list[int] = []
        core.encode_special_tokens = True
        try:
            for piece in re.split("(" + "|".join(map(re.escape, longest)) + ")", text):
                if piece in self.controls:
                    ids.append(core.token_to_id(piece))
                elif piece:
                    words = piece.replace(BREAK, "")
                    # A text that goes on gets no leading space of the "first" kind.
                    ids += (
                        continued(core, words)
                        if ids
                        else core.encode(words, add_special_tokens=False).ids
                    )
        finally:
            core.encode_special_tokens = False
        return ids


def continued(core: Any, words: str) -> list[int]:
    """Ids of a text behind a control token."""
    mark = "<unk>" if core.token_to_id("<unk>") is not None else None
    if mark is None:
        return list(core.encode(words, add_special_tokens=False).ids)
    core.encode_special_tokens = False
    try:
        pieces = re.split(r"(?<=<)(?=[|/s])|(?<=\[)(?=[/IS])", words)
        if len(pieces) == 1:
            return list(core.encode(mark + words, add_special_tokens=False).ids[1:])
    finally:
        core.encode_special_tokens = True
    return list(core.encode(words, add_special_tokens=False).ids)


@pytest.fixture(scope="module", params=chat.FORMATS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    name = str(request.param)
    return Home(tmp_path_factory.mktemp("home") / name, name)


def render(home: Home, sample: dict[str, Any], **options: Any) -> tuple[list[int], list[bool]]:
    ids, mask = home.ours.render_chat(
        sample["messages"], format=home.name, tools=sample["tools"], date=TODAY, **options
    )
    return ids.tolist(), mask.tolist()


def writable(home: Home) -> Iterator[dict[str, Any]]:
    """The conversations the format can write; the others it refuses by name."""
    for sample in samples.CONVERSATIONS:
        try:
            render(home, sample)
        except DataError as error:
            text = str(error)
            assert "turn" in text or "tools" in text, text
            continue
        yield sample


def refused(home: Home, sample: dict[str, Any]) -> bool:
    """Whether the chat holds reasoning that the format would lose: then it cannot be trained on."""
    lost = (
        any("reasoning_content" in turn for turn in sample["messages"]) and not home.info.thinking
    )
    if lost:
        with pytest.raises(DataError, match=r"turn \d has reasoning"):
            render(home, sample, train=True)
    return lost


def broken(home: Home, value: Any) -> Any:
    """A copy with BREAK in every control token that is spelled in it."""
    if isinstance(value, str):
        for control in sorted(home.controls, key=len, reverse=True):
            value = value.replace(control, control[0] + BREAK + control[1:])
        return value
    if isinstance(value, dict):
        return {broken(home, key): broken(home, item) for key, item in value.items()}
    return [broken(home, item) for item in value] if isinstance(value, list) else value


def test_forty_conversations_and_every_format_by_name() -> None:
    assert len(samples.CONVERSATIONS) >= 40
    assert _native.tokenizer.chat_format_names() == chat.FORMATS
    assert set(samples.HOMES) == set(chat.FORMATS)


def test_ids_are_those_of_transformers_with_our_template(home: Home) -> None:
    compared = 0
    for sample in writable(home):
        for prompt in (False, True):
            try:
                got, _ = render(home, sample, add_generation_prompt=prompt)
            except DataError as error:
                assert prompt and "answered" in str(error)
                continue
            messages = broken(home, sample["messages"])
            text = home.hf.apply_chat_template(
                messages, tools=sample["tools"], tokenize=False, add_generation_prompt=prompt
            )
            if samples.has_markers(sample):
                assert got == home.safe_ids(text), (sample, text)
            else:
                expected = home.hf.apply_chat_template(
                    sample["messages"],
                    tools=sample["tools"],
                    tokenize=True,
                    add_generation_prompt=prompt,
                    return_dict=False,
                )
                assert got == list(expected), (sample, text)
            compared += 1
    assert compared >= 50, compared


def random_chats(home: Home, count: int) -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    words = " ".join(samples.tiny.corpus(60)).split(" ")
    edges = ["", "", " ", "\n", "\n\n", "  "]

    def body() -> str:
        text = " ".join(rng.choice(words) for _ in range(rng.randrange(1, 9)))
        return rng.choice(edges) + text + rng.choice(edges)

    def one() -> list[dict[str, Any]]:
        out = [{"role": "system", "content": body()}] if rng.random() < 0.4 else []
        for _ in range(rng.randrange(1, 4)):
            out.append({"role": "user", "content": body()})
            if rng.random() < 0.5:
                out[-1]["emotion"] = rng.choice(["joy", "sad"])
            out.append({"role": "assistant", "content": body()})
        return out[:-1] if rng.random() < 0.3 else out

    return [{"messages": one(), "tools": None} for _ in range(count)]


def test_random_chats_have_the_ids_of_transformers(home: Home) -> None:
    for sample in random_chats(home, 60):
        if samples.has_markers(sample):
            continue
        for prompt in (False, True):
            got, _ = render(home, sample, add_generation_prompt=prompt)
            expected = home.hf.apply_chat_template(
                sample["messages"], tokenize=True, add_generation_prompt=prompt, return_dict=False
            )
            assert got == list(expected), (SEED, sample)


def test_the_mask_is_what_the_model_has_to_write(home: Home) -> None:
    for sample in writable(home):
        messages = sample["messages"]
        if not any(turn["role"] == "assistant" for turn in messages) or refused(home, sample):
            continue
        ids, mask = render(home, sample, train=True)
        assert len(ids) == len(mask)
        ends = [kept for i, kept in zip(ids, mask, strict=True) if i == home.end_id]
        answers = sum(turn["role"] == "assistant" for turn in messages)
        if home.name == "harmony":  # a call ends in <|call|>, a past answer in what serving writes
            call = home.hf.convert_tokens_to_ids("<|call|>")
            ends += [kept for i, kept in zip(ids, mask, strict=True) if i == call]
            calls = sum(bool(turn.get("tool_calls")) for turn in messages)
            answers = calls + (
                messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
            )
            assert all(ends) and len(ends) == answers
        else:
            assert sum(ends) == answers, sample
        # The answer to each beginning of the chat is where its trained tokens are.
        for at, turn in enumerate(messages):
            if turn["role"] != "assistant" or at == 0 or home.name == "harmony":
                continue
            part = {"messages": messages[: at + 1], "tools": sample["tools"]}
            try:
                begin = {"messages": messages[:at], "tools": sample["tools"]}
                before, _ = render(home, begin, add_generation_prompt=True)
                whole, only = render(home, part, train=True, loss="completion")
            except DataError:
                continue
            first = only.index(True)
            assert first <= len(before)
            assert whole[:first] == before[:first]
            assert not any(only[:first])
            text = home.ours.decode(whole[: len(before)], skip_special=False, continues=True)
            assert text.startswith(
                home.ours.decode(before[:first], skip_special=False, continues=True)
            )


def test_transformers_makes_the_same_mask_from_our_marks(home: Home) -> None:
    """The training template, with the tokens of each region counted by the reference."""
    checked = 0
    for sample in writable(home):
        messages = sample["messages"]
        if samples.has_markers(sample) or not any(t["role"] == "assistant" for t in messages):
            continue
        if refused(home, sample):
            continue
        ids, mask = render(home, sample, train=True)
        found = home.hf.apply_chat_template(
            messages,
            tools=sample["tools"],
            chat_template=home.info.jinja_for_training,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert list(found["input_ids"]) == ids
        # The reference counts a token by the character it begins with; we give one that spans
        # header and body to the body.
        theirs = [bool(kept) for kept in found["assistant_masks"]]
        different = [i for i, (a, b) in enumerate(zip(mask, theirs, strict=True)) if a != b]
        assert all(mask[i] and (i + 1 == len(mask) or mask[i + 1]) for i in different), sample
        assert len(different) <= sum(turn["role"] == "assistant" for turn in messages)
        checked += 1
    assert checked >= 15


def test_the_own_template_gives_the_same_ids_and_mask(home: Home) -> None:
    """`from-tokenizer` renders the format's own template, markers and all."""
    folder = home.folder
    marked = Tokenizer.load(folder)
    (folder / "chat_template.jinja").write_text(home.info.jinja_for_training, encoding="utf-8")
    plain, marked = marked, Tokenizer.load(folder)
    (folder / "chat_template.jinja").write_text(home.info.jinja, encoding="utf-8")
    learned = 0
    for sample in writable(home):
        expected, _ = render(home, sample)
        options: dict[str, Any] = {"tools": sample["tools"], "date": TODAY}
        got, _ = plain.render_chat(sample["messages"], format=chat.FROM_TOKENIZER, **options)
        assert got.tolist() == expected, sample
        if not any(turn["role"] == "assistant" for turn in sample["messages"]):
            continue
        if refused(home, sample):
            continue
        for loss in ("assistant", "completion", "everything"):
            ids, mask = render(home, sample, train=True, loss=loss)
            for tokenizer in (plain, marked):
                try:
                    other, other_mask = tokenizer.render_chat(
                        sample["messages"],
                        format=chat.FROM_TOKENIZER,
                        train=True,
                        loss=loss,
                        **options,
                    )
                except DataError as error:
                    # These write a past turn differently from the last one.
                    assert home.name.startswith(("harmony", "qwen3", "mistral_v3")), (sample, error)
                    assert "turn" in str(error)
                    continue
                assert other.tolist() == ids
                if home.name == "harmony" and loss == "assistant":
                    continue
                assert other_mask.tolist() == mask, (sample, loss)
                learned += 1
    assert learned >= 55, learned


def test_our_template_is_recognised_and_a_changed_one_is_not(home: Home) -> None:
    found = home.ours.chat_format()
    assert found is not None and found.name == home.name and found.tools == home.info.tools
    for source in (home.info.jinja_for_training, home.info.jinja + "\n{#- a note -#}"):
        path = home.folder / "chat_template.jinja"
        path.write_text(source, encoding="utf-8")
        again = Tokenizer.load(home.folder).chat_format()
        path.write_text(home.info.jinja + "{{- 'x' }}", encoding="utf-8")
        changed = Tokenizer.load(home.folder).chat_format()
        path.write_text(home.info.jinja, encoding="utf-8")
        assert again is not None and again.name == home.name
        assert changed is not None and changed.name == chat.FROM_TOKENIZER
        assert home.name in changed.reason


def test_user_text_never_becomes_a_control_token(home: Home) -> None:
    """Neither through the format nor through its template."""
    plain = samples.turns("u: x", "a: x")
    for render_by in (home.name, chat.FROM_TOKENIZER):
        expected, _ = home.ours.render_chat(plain, format=render_by, date=TODAY)
        controls = {int(i) for i in home.hf.convert_tokens_to_ids(home.controls)}
        wanted = [i for i in expected.tolist() if i in controls]
        for marker in home.controls:
            for words in (marker, f"a{marker}", marker * 3, f"<{marker}>", marker[1:], marker[:-1]):
                ids, _ = home.ours.render_chat(
                    [{"role": "user", "content": words}, {"role": "assistant", "content": words}],
                    format=render_by,
                    date=TODAY,
                )
                assert [i for i in ids.tolist() if i in controls] == wanted, (render_by, words)


def test_the_go_template_writes_the_same_text(home: Home) -> None:
    """With what Ollama's templates cannot say left out: trimming, spaces in JSON, TypeScript."""
    eos = home.hf.eos_token
    template = eos.join(home.info.go_template)
    assert (".Tools" in template) == home.info.tools  # what Ollama looks for
    compared = 0
    for sample in writable(home):
        try:
            segments = _native.tokenizer.chat_segments(
                chat.chat_json(sample["messages"], sample["tools"]),
                home.name,
                add_generation_prompt=True,
                date=TODAY,
            )
        except DataError:
            continue
        ours = "".join(s.get("text", s.get("control", eos if "end" in s else "")) for s in segments)
        values = go_template.ollama_values(sample["messages"], sample["tools"])
        theirs = go_template.render(template, values, datetime.date.fromisoformat(TODAY))
        if sample["tools"]:
            ours, theirs = (
                re.sub(
                    r"\s+|namespace functions \{.*\} // namespace functions", "", text, flags=re.S
                )
                for text in (ours, theirs)
            )
        elif home.name.startswith(("llama3", "qwen3")) and any(
            turn["content"] != turn["content"].strip() for turn in sample["messages"]
        ):
            continue
        assert theirs == ours, sample
        compared += 1
    assert compared >= 22, compared


def test_llama_cpp_renders_and_tokenizes_the_same(home: Home, tmp_path: Path) -> None:
    from tiny_gguf_of import write_gguf_of

    path = write_gguf_of(home.folder, tmp_path / "model.gguf")
    asked = []
    for sample in writable(home):
        if samples.has_markers(sample) or samples.beyond_llama_cpp(sample):
            continue
        if sample["messages"][-1]["role"] == "assistant":
            # Of an answer at the end llama.cpp makes a beginning to go on from.
            if "tool_calls" in sample["messages"][-1]:
                continue
            more = [*sample["messages"], *samples.turns("u: And then?")]
            sample = {"messages": more, "tools": sample["tools"]}
        ids, _ = render(home, sample, add_generation_prompt=True)
        asked.append((sample, ids))
    answers = llama_peer.ask(
        path,
        [
            {"kind": "template", "messages": s["messages"], "tools": s["tools"], "then": "tokenize"}
            for s, _ in asked
        ],
    )
    assert len(asked) >= 20
    for (sample, ids), (prompt, theirs) in zip(asked, answers, strict=True):
        if home.info.begins_with_bos and home.hf.bos_token_id is not None:
            ids = ids[1:]  # taken off here, and put back by whoever runs the prompt
        assert theirs == ids, (sample, prompt)


@pytest.mark.parametrize(
    ("name", "version", "options"),
    [
        ("mistral", "v1", {}),
        ("mistral_v3", "v3", {}),
        ("mistral_v3_tekken", "v3", {"is_tekken": True}),
    ],
)
def test_mistral_s_own_tokenizer_writes_the_same_text(
    name: str, version: str, options: dict[str, Any]
) -> None:
    module = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    request = pytest.importorskip("mistral_common.protocol.instruct.request")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(module.MistralTokenizer, version)(**options)
        words = samples.turns("s: Sys.", "u: one", "a: two", "u: three")
        for messages in (words, words[1:], words[:2]):
            asked = request.ChatCompletionRequest(messages=messages)
            text = theirs.encode_chat_completion(asked).text
            text = text.replace("▁", " ").replace("<0x0A>", "\n").replace("<s> ", "<s>")
            segments = _native.tokenizer.chat_segments(
                chat.chat_json(messages, None), name, add_generation_prompt=True
            )
            ours = "".join(
                s.get("text", s.get("control", "<s>" if "begin" in s else "</s>")) for s in segments
            )
            assert ours == text.replace("</s> [INST]", "</s>[INST]")


#: Published templates, as TRL carries them, and what each is to us.
PUBLISHED = {
    "gptoss": ("o200k", "harmony"),
    "gptoss_training": ("o200k", "harmony"),
    "llama3": ("llama3", "llama3"),
    "llama3_training": ("llama3", "llama3"),
    "llama3_1": ("llama3", "llama3_1"),
    "llama3_2": ("llama3", "llama3_2"),
    "qwen2_5": ("qwen2", "qwen"),
    "qwen2_5_training": ("qwen2", "qwen"),
    "qwen3": ("qwen2", "qwen3"),
    "qwen3_training": ("qwen2", chat.FROM_TOKENIZER),
    "qwen3_instruct_2507": ("qwen2", "chatml"),
    "qwen3_5_think": ("qwen2", chat.FROM_TOKENIZER),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_template_is_what_it_is_said_to_be(name: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no {name}.jinja")
    kind, expected = PUBLISHED[name]
    samples.tiny.make_tokenizer(tmp_path, kind, chat_template=path.read_text(encoding="utf-8"))
    ours = Tokenizer.load(tmp_path)
    found = ours.chat_format()
    assert found is not None and found.name == expected, found
    by_text, exact, tools = _native.tokenizer.detect_chat_format(ours.chat_template or "")
    if expected == chat.FROM_TOKENIZER:
        assert not exact and "nearest" in found.reason
        hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    else:  # by its text and by what it does
        assert (by_text, exact) == (expected, True)
        tried = chat._compared(
            {
                probe: chat._of_template(ours._template(), sample)
                for probe, sample in chat._PROBES.items()
            },
            ours._vocabulary(),
        )
        assert (tried.name, tried.tools) == (expected, tools)
        hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    compared = 0
    for sample in samples.CONVERSATIONS:
        if samples.has_markers(sample) or (sample["tools"] and not found.tools):
            continue
        try:
            got, _ = ours.render_chat(sample["messages"], tools=sample["tools"], date=TODAY)
        except AbiTrainError:
            continue
        theirs = hf.apply_chat_template(
            sample["messages"], tools=sample["tools"], tokenize=True, return_dict=False
        )
        assert got.tolist() == list(theirs), sample
        compared += 1
    assert compared >= 24, compared


@pytest.mark.parametrize("name", [*PUBLISHED, "gemma3", "phi3", "deepseek_r1_distill", "lfm2"])
def test_no_text_makes_a_control_token_through_a_published_template(
    name: str, tmp_path: Path
) -> None:
    """Whatever pieces of them are glued together, the template's own stay the only ones."""
    trl = pytest.importorskip("trl")
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no {name}.jinja")
    source = path.read_text(encoding="utf-8")
    kind = PUBLISHED.get(name, ("qwen2", ""))[0]
    samples.tiny.make_tokenizer(tmp_path, kind, chat_template=source)
    written = set(re.findall(r"<\|\w+\|>|<\w+_of_turn>", source))
    vocabulary = Tokenizer.load(tmp_path)._vocabulary()
    samples.add_controls(tmp_path, sorted(written - set(vocabulary.controls)))
    ours = Tokenizer.load(tmp_path)
    texts = ours._vocabulary().controls
    controls = {ours.token_to_id(text, control_only=True) for text in texts}
    rng = random.Random(SEED)
    pieces = [*texts, "a", " ", "\n", "user", '"']
    pieces += [text[:at] for text in texts[:6] for at in range(1, len(text))]
    pieces += [text[at:] for text in texts[:6] for at in range(1, len(text))]

    def found(words: list[str]) -> list[int]:
        turns = [
            {"role": role, "content": word}
            for role, word in zip(("user", "assistant", "user"), words, strict=True)
        ]
        ids, _ = ours.render_chat(turns, format=chat.FROM_TOKENIZER, date=TODAY)
        return [int(i) for i in ids if int(i) in controls]

    wanted = found(["x", "y", "z"])
    for _ in range(40):
        words = ["".join(rng.choices(pieces, k=rng.randrange(1, 6))) for _ in range(3)]
        try:
            got = found(words)
        except DataError as error:
            assert "channel" in str(error) or "out of words" in str(error)
            continue
        assert got == wanted, (SEED, words)


def test_a_published_training_template_gives_the_reference_s_mask(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    path = Path(trl.__file__).parent / "chat_templates" / "qwen3_training.jinja"
    if not path.is_file():
        pytest.skip("this TRL has no such template")
    source = path.read_text(encoding="utf-8")
    samples.tiny.make_tokenizer(tmp_path, "qwen2", chat_template=source)
    ours, hf = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    compared = 0
    for sample in samples.CONVERSATIONS:
        if samples.has_markers(sample):
            continue
        try:
            ids, mask = ours.render_chat(
                sample["messages"], tools=sample["tools"], train=True, date=TODAY
            )
        except DataError:
            continue
        theirs = hf.apply_chat_template(
            sample["messages"],
            tools=sample["tools"],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert ids.tolist() == list(theirs["input_ids"])
        marks = theirs["assistant_masks"]
        # The line end behind the end token stands inside their marks; nothing there is to learn.
        for at, (kept, marked) in enumerate(zip(mask.tolist(), marks, strict=True)):
            if kept != bool(marked):
                assert marked and hf.decode(ids[at : at + 1]) == "\n" and mask[at - 1]
        compared += any(mask)
    assert compared >= 15, compared
