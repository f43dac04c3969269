"""The native preparation beside the one in Python: the same rows, ids, masks and counts."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from abi_train import _native
from abi_train.chat import format_info
from abi_train.data.native import NativeEncoder
from abi_train.data.prepare import PrepareReport, prepare
from abi_train.data.sources import read_rows
from abi_train.demo import SAMPLE
from abi_train.errors import AbiTrainError, DataError, FileAccessError

TOKENIZER = SAMPLE / "tokenizer"
ENDINGS = (".bin", ".mask", ".idx")
WORDS = [
    "hello",
    "naïve",
    "漢字",
    "नमस्ते",
    "🙂",
    "a b",
    "[EMOTION: joy]",
    "<|im_end|>",
    "x" * 70,
    "\n",
]


def text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 9)))


def turns(rng: random.Random, *, sharegpt: bool = False) -> list[dict[str, str]]:
    role, content = ("from", "value") if sharegpt else ("role", "content")
    made = [{role: "system", content: text(rng)}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        made.append({role: rng.choice(["user", "human"]), content: text(rng)})
        made.append({role: rng.choice(["assistant", "gpt", "Bot"]), content: text(rng)})
    return made


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def tool_turns(rng: random.Random) -> list[dict[str, Any]]:
    """A chat with a call, its answer and reasoning; now and then one that no format can write."""
    call: dict[str, Any] = {"name": "add", "arguments": {"a": 1.5, "b": [text(rng)]}}
    made: list[dict[str, Any]] = [
        {"role": rng.choice(["user", "developer"]), "content": text(rng)},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "7", "function": call}]},
        {"role": "tool", "content": rng.choice(["3", ""]), "tool_call_id": rng.choice("77778")},
        {"role": "assistant", "content": [{"type": "text", "text": text(rng)}]},
    ]
    if rng.random() < 0.3:
        made[3]["thinking"] = text(rng)
    if rng.random() < 0.2:
        del made[rng.randint(0, 3)]
    return made


def elaborate(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            lambda: {"messages": tool_turns(rng), "tools": TOOLS},
            lambda: {"messages": tool_turns(rng), "tools": json.dumps(TOOLS)},
            lambda: {"messages": turns(rng), "tools": rng.choice([None, [], TOOLS])},
            lambda: {
                "prompt": tool_turns(rng)[:3],
                "completion": tool_turns(rng)[3:],
                "tools": TOOLS,
            },
            lambda: {"messages": tool_turns(rng), "tools": rng.choice([5, "[", [1]])},
        ]
    )()


def row(rng: random.Random) -> dict[str, Any]:
    made = rng.choice(
        [
            lambda: {"text": text(rng)},
            lambda: {"prompt": text(rng), "completion": text(rng)},
            lambda: {"messages": turns(rng), "emotion": rng.choice(["joy", " ", None, 7])},
            lambda: {"conversations": turns(rng, sharegpt=True), "id": 2**70},
            lambda: {"prompt": turns(rng)[:1], "completion": turns(rng)},
            lambda: {"instruction": text(rng), "input": rng.choice(["", None, "x"]), "output": "y"},
        ]
    )()
    return made | ({"more": [1.5, {"deep": [None, True]}]} if rng.random() < 0.2 else {})


def pair(rng: random.Random) -> dict[str, Any]:
    first, second = text(rng), text(rng)
    return rng.choice(
        [
            lambda: {"prompt": text(rng), "chosen": first, "rejected": second},
            lambda: {"chosen": "so " + first, "rejected": "so " + second},
            lambda: {"chosen": first, "rejected": first + second},
            lambda: {
                "prompt": [{"role": "user", "content": first}],
                "chosen": [{"role": "assistant", "content": first}],
                "rejected": [{"role": "assistant", "content": second}],
                "emotion": "joy",
            },
            lambda: {
                "chosen": [*(both := turns(rng)), {"role": "assistant", "content": first}],
                "rejected": [*both, {"role": "assistant", "content": second}],
            },
        ]
    )()


DAMAGE = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b",",
    b":",
    b"1",
    b"-",
    b"null",
    b"\xff",
    b"\0",
    b" ",
    b"\xc3",
]
DAMAGE += [b"\\u0000", b"\\ud83d", b"\\ude42", b"\t", b'"text"', b"e", b".", b"\xef\xbb\xbf"]


def damaged(line: bytes, rng: random.Random) -> bytes:
    """The line with a few bytes changed, lost or added."""
    made = bytearray(line)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(made))
        if rng.random() < 0.5:
            made[at : at + rng.randint(0, 3)] = b""
        else:
            made[at:at] = rng.choice(DAMAGE)
    return bytes(made).replace(b"\n", b" ")


def write(path: Path, rng: random.Random, count: int, make: Any, share: float) -> Path:
    lines = []
    for _ in range(count):
        line = json.dumps(make(rng), ensure_ascii=rng.random() < 0.5).encode()
        lines.append(damaged(line, rng) if rng.random() < share else line)
        if rng.random() < 0.1:
            lines.append(rng.choice([b"", b"  \t", b"\r", b"\xef\xbb\xbf"]))
    path.write_bytes(
        rng.choice([b"", b"\xef\xbb\xbf"]) + b"\r\n".join(lines) + b"\n"[: rng.randint(0, 1)]
    )
    return path


def bytes_of(path: Path) -> list[bytes]:
    return [path.with_suffix(ending).read_bytes() for ending in ENDINGS]


def same(native: PrepareReport, python: PrepareReport) -> None:
    for name in ("lines", "dropped", "chat_format", "vocab_size", "first_example"):
        assert getattr(native, name) == getattr(python, name), name
    assert native.skipped.total == python.skipped.total
    assert len(native.skipped.examples) == len(python.skipped.examples)
    places = [
        [said.split(" ")[0].split(":")[1] for said in r.skipped.examples] for r in (native, python)
    ]
    assert places[0] == places[1]
    for mine, other in ((native.train, python.train), (native.evaluation, python.evaluation)):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            kept = {key: value for key, value in vars(other).items() if key != "path"}
            assert {key: value for key, value in vars(mine).items() if key != "path"} == kept


@pytest.mark.parametrize("seed", range(12))
def test_native_and_python_prepare_the_same(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    make = pair if seed % 3 == 2 else row
    share = 0.0 if seed % 2 else 0.25
    sources = [write(tmp_path / f"{name}.jsonl", rng, 120, make, share) for name in "ab"]
    options: dict[str, Any] = {
        "skip_invalid": True,
        "eval_fraction": rng.choice([0.0, 0.2]),
        "max_seq_len": rng.choice([None, 24, 100]),
        "stream": make is row and seed % 4 == 1,
        "loss": "completion" if make is pair else rng.choice(["assistant", "completion", "all"]),
        "chat_format": rng.choice(["abbey", "abbey", None]),
    }
    encoder = NativeEncoder(TOKENIZER, options["chat_format"])
    python = prepare(sources, TOKENIZER, tmp_path / "python.bin", encoder=encoder, **options)
    native = prepare(sources, TOKENIZER, tmp_path / "native.bin", threads=2, **options)
    same(native, python)
    for ending in ENDINGS[: 2 if options["stream"] else 3]:
        for stem in ("", "_eval") if native.evaluation else ("",):
            ours = (tmp_path / f"native{stem}{ending}").read_bytes()
            assert ours == (tmp_path / f"python{stem}{ending}").read_bytes(), ending


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chat_format", ["chatml", "harmony", "abbey", "llama3_2"])
def test_chats_with_tools_become_the_same(tmp_path: Path, seed: int, chat_format: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = Path(shutil.copytree(TOKENIZER, tmp_path / "tokenizer"))
    words = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    words.add_special_tokens([*format_info(chat_format).controls, "<|call|>", "<|return|>"])
    words.save(str(tokenizer / "tokenizer.json"))
    source = write(tmp_path / "a.jsonl", random.Random(seed), 60, elaborate, 0.0)
    options: dict[str, Any] = {
        "skip_invalid": True,
        "chat_format": chat_format,
        "loss": ["assistant", "completion"][seed % 2],
    }
    encoder = NativeEncoder(tokenizer, chat_format)
    python = prepare([source], tokenizer, tmp_path / "python.bin", encoder=encoder, **options)
    native = prepare([source], tokenizer, tmp_path / "native.bin", **options)
    same(native, python)
    assert bytes_of(tmp_path / "native.bin") == bytes_of(tmp_path / "python.bin")
    if chat_format == "abbey":
        assert python.skipped.total > 0


def test_tools_the_model_s_own_template_would_not_show_are_unusable(tmp_path: Path) -> None:
    """The sample's template is chatml without tools; with the format by name they are shown."""
    rng = random.Random(3)
    source = tmp_path / "a.jsonl"
    rows = [{"messages": tool_turns(rng), "tools": TOOLS}, {"messages": turns(rng)}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for encoder in (None, NativeEncoder(TOKENIZER)):
        output = tmp_path / "a.bin"
        with pytest.raises(DataError, match=r"a\.jsonl:1: .*does not show them"):
            prepare([source], TOKENIZER, output, encoder=encoder)
        report = prepare([source], TOKENIZER, output, encoder=encoder, skip_invalid=True)
        assert (report.train.rows, report.skipped.total) == (1, 1)
    named = prepare([source], TOKENIZER, tmp_path / "b.bin", chat_format="chatml")
    assert named.train.rows == 2


def accepted(line: bytes) -> bool:
    try:
        _native.preparation.check_lines(line)
    except DataError:
        return False
    return True


def test_lines_are_taken_as_python_takes_them(tmp_path: Path) -> None:
    rng = random.Random(5)
    path = tmp_path / "a.jsonl"
    for _ in range(1500):
        line = damaged(json.dumps(row(rng), ensure_ascii=rng.random() < 0.5).encode(), rng)
        path.write_bytes(line)
        try:
            list(read_rows([path]))
            said = ""
        except DataError as error:
            said = str(error)
        broken = any(
            reason in said
            for reason in ("not valid JSON", "not UTF-8", "NUL", "surrogate", "too deeply")
        )
        assert accepted(line) == (not broken), (line, said)


def test_orjson_refuses_nothing_we_take() -> None:
    orjson = pytest.importorskip("orjson")
    rng = random.Random(6)
    for _ in range(3000):
        line = damaged(json.dumps(row(rng), ensure_ascii=rng.random() < 0.5).encode(), rng).strip()
        try:
            orjson.loads(line)
            theirs = True
        except orjson.JSONDecodeError:
            theirs = False
        too_large = re.search(rb"\de\d{3,}", line)  # a number JSON allows and no double holds
        if accepted(line) and not too_large:
            assert theirs or line.startswith(b"\xef\xbb\xbf") or not line, line


RUN = """
import sys
from pathlib import Path
from abi_train.data.prepare import prepare
source, tokenizer, output = map(Path, sys.argv[1:4])
print("ready", flush=True)
options = {"chat_format": "abbey", "eval_fraction": 0.1}
prepare([source], tokenizer, output, journal_ms=1, threads=2, **options)
print("done", flush=True)
"""


def big_source(tmp_path: Path, rows: int) -> Path:
    rng = random.Random(1)
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": " ".join(text(rng) for _ in range(12))}) for _ in range(200)]
    with path.open("w", encoding="utf-8") as file:
        for at in range(rows):
            file.write(lines[at % 200].replace("hello", f"hello {at}") + "\n")
    return path


def test_a_preparation_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = big_source(tmp_path, 40_000)
    options: dict[str, Any] = {"chat_format": "abbey", "eval_fraction": 0.1}
    started = time.perf_counter()
    whole = prepare([source], TOKENIZER, tmp_path / "whole.bin", **options)
    takes = time.perf_counter() - started
    rng = random.Random(2)
    output = tmp_path / "killed.bin"
    killed = 0
    for _ in range(60):
        command = [sys.executable, "-c", RUN, str(source), str(TOKENIZER), str(output)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        if killed < 4:
            # What was done stays done, so four kills must fit into one job.
            time.sleep(rng.uniform(0.0, takes / 6))
            child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        child.wait()
        child.stdout.close()
        if "done" not in rest:
            killed += 1
        elif killed < 4:  # It ended before its kill: the chain begins anew.
            killed = 0
            for path in tmp_path.glob("killed*"):
                path.unlink()
        else:
            break
        assert not output.exists() or output.with_suffix(".json").exists()
    else:
        pytest.fail("never finished")
    assert bytes_of(output) == bytes_of(tmp_path / "whole.bin")
    assert bytes_of(tmp_path / "killed_eval.bin") == bytes_of(tmp_path / "whole_eval.bin")
    left = [
        path.name for path in tmp_path.iterdir() if ".part" in path.name or "journal" in path.name
    ]
    assert left == []
    assert whole.lines == 40_000


def test_what_was_done_is_told_and_kept_after_a_stop(tmp_path: Path) -> None:
    source = big_source(tmp_path, 40_000)
    prepare([source], TOKENIZER, tmp_path / "whole.bin")
    output = tmp_path / "out.bin"

    class Enough(Exception):
        pass

    def stop(now: Any) -> None:
        if stops < 3 and now.bytes_before < now.bytes_done < now.bytes_total:
            raise Enough

    stops, report = 0, None
    while report is None:
        try:
            report = prepare([source], TOKENIZER, output, on_progress=stop, journal_ms=0, threads=1)
        except Enough:
            stops += 1
            assert not output.exists()
            assert (tmp_path / "out.bin.journal").exists()
    assert stops > 0, "it was done before it could be stopped"
    assert 0.0 < report.continued_at < 1.0
    assert bytes_of(output) == bytes_of(tmp_path / "whole.bin")
    assert not (tmp_path / "out.bin.journal").exists()


def test_two_preparations_of_one_file_do_not_mix(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with (tmp_path / "out.bin.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FileAccessError, match="prepared by another program"):
            prepare([tmp_path / "a.jsonl"], TOKENIZER, tmp_path / "out.bin")
        assert (tmp_path / "out.bin.part").exists()
    prepare([tmp_path / "a.jsonl"], TOKENIZER, tmp_path / "out.bin")
    assert not (tmp_path / "out.bin.part").exists()


def test_a_full_disk_is_named_and_what_was_done_goes_on(tmp_path: Path) -> None:
    source = big_source(tmp_path, 4000)
    prepare([source], TOKENIZER, tmp_path / "whole.bin")
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
from abi_train.data.prepare import prepare
from abi_train.errors import FileAccessError
try:
    prepare([{str(source)!r}], {str(TOKENIZER)!r}, {str(tmp_path / "out.bin")!r}, journal_ms=0)
except FileAccessError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout, done
    assert "kept" in done.stdout
    assert not (tmp_path / "out.bin").exists()
    report = prepare([source], TOKENIZER, tmp_path / "out.bin")
    assert 0.0 < report.continued_at < 1.0
    assert bytes_of(tmp_path / "out.bin") == bytes_of(tmp_path / "whole.bin")


BAD: list[tuple[str, bytes, str]] = [
    ("broken UTF-8", b'{"text": "a\xc3"}', r":1:12: not UTF-8"),
    ("NUL byte", b'{"text": "a\0"}', r":1:12: a text holds a NUL"),
    ("NUL escape", b'{"text": "a\\u0000"}', r":1:12: a text holds a NUL"),
    ("deep", b'{"text": ' + b"[" * 200 + b"]" * 200 + b"}", r":1:137: nested too deeply"),
    ("key twice", b'{"text": "a", "text": "b"}', r":1:15: .*twice"),
    ("half a surrogate", b'{"text": "\\ud800"}', r":1:11: .*surrogate"),
    ("control character", b'{"text": "a\tb"}', r":1:12: .*control character"),
    ("not a number", b'{"text": NaN}', r":1:10: not valid JSON"),
    ("wrong role", b'{"messages": [{"role": "owl", "content": "a"}]}', r":1: messages\[0\].*'owl'"),
    ("empty turn", b'{"messages": [{"role": "user", "content": ""}]}', r"content is empty"),
    ("no columns", b"{}", r"no known columns"),
    ("a list", b"[1]", r"not a JSON object"),
    ("two values", b'{"text": "a"} {"text": "b"}', r":1:15: .*behind"),
    ("pretty JSON", b'{\n  "text": "a"\n}\n', r":1:2: .*too early"),
    ("gzip", b"\x1f\x8b\x08\0\0\0", r"is gzip"),
    ("UTF-16", '{"text": "a"}'.encode("utf-16"), r"is UTF-16"),
    ("empty file", b"", r"no row is left"),
    ("blank lines", b"\n \r\n", r"no row is left"),
    ("only a mark", b"\xef\xbb\xbf", r"no row is left"),
]


@pytest.mark.parametrize(("content", "said"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_named_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(AbiTrainError, match=said) as caught:
        prepare([path], TOKENIZER, tmp_path / "out.bin", chat_format="abbey")
    assert str(path) in str(caught.value)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_mark_crlf_and_a_missing_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert prepare([path], TOKENIZER, tmp_path / "out.bin").train.rows == 2


def test_a_line_of_a_hundred_megabytes_is_refused_by_name_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2:1: the line has more than 67108864 bytes"):
        prepare([path], TOKENIZER, tmp_path / "out.bin")
    report = prepare([path], TOKENIZER, tmp_path / "out.bin", skip_invalid=True)
    assert (report.train.rows, report.lines) == (2, 3)
    assert report.skipped.counts == {"the line is too long": 1}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            prepare([tmp_path / "pipe"], TOKENIZER, tmp_path / "out.bin")
        except FileAccessError as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "is not a regular file" in str(failures[0])
