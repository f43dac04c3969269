"""The agent with a model file: one message, conversations that are kept, bad command lines."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import CHATML, SHAPES, write_tiny_gguf

QUIET = ("--max-tokens", "12", "--seed", "4")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, SHAPES["llama"])
    return path


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / ".abi" / "sessions").glob("*"))


def test_one_message_gives_an_answer_and_leaves_nothing_behind(
    run: Any, model: Path, tmp_path: Path
) -> None:
    done = run("agent", "--model", model, "-m", "hello", *QUIET)
    again = run("agent", "--model", model, "--message=hello", *QUIET)
    assert done.returncode == 0
    assert len(done.stdout) > 1
    assert done.stdout.endswith("\n")
    assert done.stdout == again.stdout
    assert not (tmp_path / ".abi").exists()


def test_answers_hold_no_control_bytes(run: Any, model: Path) -> None:
    """A random model says anything; the terminal must survive it."""
    done = run("agent", "--model", model, "--temperature", "3", "--top-k", "0", "--top-p", "1",
               stdin="a\nb\nc\nd\n")  # fmt: skip
    assert done.returncode == 0
    assert all(c in "\n\t" or c.isprintable() or not c.isascii() for c in done.stdout)
    assert not any(0x80 <= ord(c) < 0xA0 or ord(c) == 0x7F for c in done.stdout)


def test_a_named_conversation_goes_on(run: Any, model: Path, tmp_path: Path) -> None:
    first = run("agent", "--model", model, "-s", "diary", "-m", "hello", *QUIET)
    second = run("agent", "--model", model, "-s", "diary", "-m", "and now?", *QUIET)
    assert (first.returncode, second.returncode) == (0, 0)
    [path] = kept(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    session = json.loads(path.read_text())
    assert path.stem == session["id"]
    assert session["name"] == "diary"
    assert session["config"]["model"] == "tiny.gguf"
    assert [m["role"] for m in session["messages"]] == ["user", "assistant"] * 2
    # What was said is kept whole; what could move the cursor was not shown.
    said = session["messages"][1]["content"]
    assert "".join(c for c in said if c in "\n\t" or ord(c) >= 32) == first.stdout[:-1]
    assert session["messages"][2]["content"] == "and now?"
    times = [m["timestamp"] for m in session["messages"]]
    assert session["created_at"] <= times[0] <= times[-1] <= session["updated_at"]

    listed = run("agent", "--list-sessions")
    assert listed.stdout.split()[0] == session["id"]
    assert "4 messages  diary" in listed.stdout
    loaded = run("agent", "--model", model, "--load", session["id"], "-m", "third", *QUIET)
    assert loaded.returncode == 0
    assert len(json.loads(path.read_text())["messages"]) == 6


def test_what_the_model_remembers_is_what_was_said(run: Any, model: Path) -> None:
    """One conversation at a stretch, and in two programs, end with the same answer."""
    greedy = ("--temperature", "0", "--max-tokens", "12")
    whole = run("agent", "--model", model, *greedy, stdin="hello\nand now?\n")
    run("agent", "--model", model, *greedy, "-s", "parts", "-m", "hello")
    last = run("agent", "--model", model, *greedy, "-s", "parts", "-m", "and now?")
    assert whole.stdout.endswith(last.stdout)


@pytest.mark.parametrize(
    "session_id",
    ["../../etc/passwd", "..", "/etc/passwd", "a/b", "", "a" * 65, "%2e%2e", "ａ", "a.json", "-"],
)
def test_an_id_cannot_be_a_path(run: Any, model: Path, session_id: str) -> None:
    done = run("agent", "--model", model, f"--load={session_id}", "-m", "x")
    assert done.returncode == 1
    assert "not valid" in done.stderr or "no session" in done.stderr


def test_a_damaged_session_is_named_and_left_alone(run: Any, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".abi" / "sessions"
    folder.mkdir(parents=True)
    damaged = folder / "broken.json"
    damaged.write_text('{"id": "broken",\n "name":')
    done = run("agent", "--model", model, "--load", "broken", "-m", "x")
    assert done.returncode == 1
    assert "broken.json: line 2" in done.stderr
    assert damaged.read_text() == '{"id": "broken",\n "name":'
    listed = run("agent", "--list-sessions")
    assert "broken.json cannot be read" in listed.stderr


def test_a_folder_that_cannot_be_written_is_told_and_the_answer_still_comes(
    run: Any, program: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / ".abi").write_text("a file where the folder should be")
    done = run("agent", "--model", model, "-m", "hi", *QUIET, stdin="")
    assert done.returncode == 0
    kept_not = run("agent", "--model", model, *QUIET, stdin="hi\n/save\n")
    (tmp_path / ".abi").unlink()
    command = [program, "agent", "--model", model, "-m", "hi", *QUIET, "--session", "x"]
    named = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *map(str, command)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    for failed in (kept_not, named):
        assert failed.returncode == 1
        assert failed.stdout == done.stdout
        assert "cannot be written: " in failed.stderr
    assert "the file is larger than allowed" in named.stderr
    assert kept(tmp_path) == []


def test_a_message_longer_than_the_context_is_refused(run: Any, model: Path) -> None:
    done = run("agent", "--model", model, "-m", "z" * 400)
    assert done.returncode == 1
    assert "--context" in done.stderr


def test_a_long_conversation_forgets_its_oldest_turns(run: Any, model: Path) -> None:
    lines = "".join(f"{'w' * 40}\n" for _ in range(8))
    done = run("agent", "--model", model, *QUIET, stdin=lines)
    assert done.returncode == 0, done.stderr


def test_system_text_changes_the_answer(run: Any, model: Path) -> None:
    plain = run("agent", "--model", model, "-m", "hello", *QUIET)
    told = run("agent", "--model", model, "-m", "hello", "--system", "Be kind.", *QUIET)
    assert plain.stdout != told.stdout


@pytest.mark.parametrize("shape", ["qwen2", "qwen3", "llama_tied", "llama3"])
def test_every_family_talks(run: Any, tmp_path: Path, shape: str) -> None:
    path = tmp_path / "other.gguf"
    write_tiny_gguf(path, SHAPES[shape])
    done = run("agent", "--model", path, "-m", "hello", *QUIET)
    assert (done.returncode, done.stdout[-1:]) == (0, "\n"), done.stderr


def test_a_template_that_is_only_near_a_format_is_said_to_be(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "near.gguf"
    write_tiny_gguf(path, SHAPES["llama"], chat_template=CHATML + "{{ '' }}")
    done = run("agent", "--model", path, "-m", "x", *QUIET)
    assert done.returncode == 0
    assert "read as chatml, the nearest" in done.stderr
    write_tiny_gguf(path, SHAPES["llama"])
    assert "nearest" not in run("agent", "--model", path, "-m", "x", *QUIET).stderr


def test_a_template_of_an_unknown_family_asks_for_a_name(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write_tiny_gguf(path, SHAPES["llama"], chat_template="{{ '<odd>' }}")
    done = run("agent", "--model", path, "-m", "x")
    assert done.returncode == 1
    assert "--chat-format" in done.stderr
    named = run("agent", "--model", path, "-m", "x", "--chat-format", "abbey", *QUIET)
    assert named.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["agent", "--modle", "x"], 2, "did you mean --model?"),
        (["agent", "--model"], 2, "needs a value"),
        (["agent", "--model", "m.gguf", "hello"], 2, "unexpected argument"),
        (["agent", "--temperature", "hot"], 2, "--temperature"),
        (["agent", "--top-p", "0"], 2, "--top-p"),
        (["agent", "--session", "a", "--load", "b"], 2, "either"),
        (["agent", "--message", " "], 2, "--message is empty"),
        (["agent", "--chat-format", "nope"], 2, "it must be one of abbey"),
        (["agent", "--model", "none.gguf"], 1, "none.gguf"),
        (["agnet"], 2, "did you mean `abi agent`?"),
        (["generate", "--model", "x"], 2, "--prompt TEXT or --ids LIST"),
        (["generate", "--model", "none.gguf", "--ids", "1"], 1, "none.gguf"),
        (["inspect"], 2, "name the file"),
        (["inspect", "none.gguf"], 1, "none.gguf"),
        ([], 2, "Usage"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    run: Any, arguments: list[str], code: int, words: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_help_goes_to_stdout_and_lists_every_option(run: Any) -> None:
    for verb in ("agent", "generate", "inspect", "doctor", "version"):
        done = run(verb, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == run("help", verb).stdout
        assert f"Usage: abi {verb}" in done.stdout
        assert all(len(line) <= 100 for line in done.stdout.splitlines())
        assert "\x1b" not in done.stdout
    assert "Exit codes" in run("help").stdout


@pytest.mark.parametrize("cut", [0, 3, 23, 100, 5000, -1])
def test_a_file_cut_short_is_refused_with_its_name(
    run: Any, model: Path, tmp_path: Path, cut: int
) -> None:
    raw = model.read_bytes()
    broken = tmp_path / "cut.gguf"
    broken.write_bytes(raw[:cut] if cut >= 0 else raw[: len(raw) // 2])
    for arguments in (["agent", "--model", broken, "-m", "x"], ["inspect", broken]):
        done = run(*arguments)
        assert done.returncode == 1
        assert "cut.gguf: " in done.stderr
        assert "panic" not in done.stderr


def test_inspect_shows_keys_and_tensors(run: Any, model: Path) -> None:
    shown = run("inspect", model)
    assert "general.architecture" in shown.stdout
    assert "blk.1.ffn_down.weight" in shown.stdout
    parsed = json.loads(run("inspect", model, "--json", "--full").stdout)
    assert parsed["keys"]["llama.embedding_length"] == 64
    assert len(parsed["keys"]["tokenizer.ggml.tokens"]) == 264
    embedding = next(t for t in parsed["tensors"] if t["name"] == "token_embd.weight")
    assert (embedding["type"], embedding["shape"]) == ("f32", [64, 264])


def test_doctor_says_that_arithmetic_is_right(run: Any) -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["self_check_ok"] is True
    assert report["cpu_level"] in report["cpu_levels"]
    lowest = report["cpu_levels"][0]
    forced = json.loads(run("doctor", "--json", ABI_TRAIN_CPU=lowest).stdout)
    assert forced["cpu_level"] == lowest
    assert forced["self_check_ok"] is True


@pytest.mark.parametrize("more", [("-s", "x"), ()])
def test_an_answer_to_a_closed_stdout_is_a_failure(
    program: Path, model: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    command = [program, "agent", "--model", model, "-m", "hi", *QUIET, *more]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "abi: the output cannot be written: it is closed. Check where it goes\n"


def test_more_threads_than_training_takes_are_refused(run: Any, model: Path) -> None:
    for arguments in (["generate", "--ids", "1"], ["agent", "-m", "x"]):
        done = run(*arguments, "--model", model, "--threads", "257")
        assert done.returncode == 2
        assert "from 1 to 256" in done.stderr


def test_clear_leaves_the_kept_conversation_as_it_is(run: Any, model: Path, tmp_path: Path) -> None:
    run("agent", "--model", model, "-s", "diary", "-m", "hello", *QUIET)
    [path] = kept(tmp_path)
    before = path.read_bytes()
    done = run("agent", "--model", model, "-s", "diary", *QUIET, stdin="/clear\n/info\nanew\n")
    assert done.returncode == 0
    assert f"started a new conversation; the kept one stays as {path.stem}" in done.stderr
    assert "context   0 of " in done.stderr
    assert kept(tmp_path) == [path]
    assert path.read_bytes() == before


def test_a_damaged_conversation_is_not_begun_anew(run: Any, model: Path, tmp_path: Path) -> None:
    run("agent", "--model", model, "-s", "diary", "-m", "hello", *QUIET)
    [path] = kept(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    refused = run("agent", "--model", model, "-s", "diary", "-m", "again", *QUIET)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f'a damaged file is "diary": .abi/sessions/{path.name}: line' in refused.stderr
    assert "Restore it from a copy" in refused.stderr
    assert path.read_bytes() == whole[:-30]
    other = run("agent", "--model", model, "-s", "other", "-m", "hello", *QUIET)
    assert other.returncode == 0


def test_of_two_with_one_name_the_newest_goes_on(run: Any, model: Path, tmp_path: Path) -> None:
    run("agent", "--model", model, "-s", "diary", "-m", "hello", *QUIET)
    [path] = kept(tmp_path)
    twin = json.loads(path.read_text())
    twin.update(id="newer", updated_at=twin["updated_at"] + 60)
    path.with_name("newer.json").write_text(json.dumps(twin))
    done = run("agent", "--model", model, "-s", "diary", "-m", "again", *QUIET)
    assert done.returncode == 0
    assert '2 conversations are named "diary"; this is the newest, newer' in done.stderr
    assert len(json.loads(path.with_name("newer.json").read_text())["messages"]) == 4
    assert len(json.loads(path.read_text())["messages"]) == 2


def test_a_path_given_to_load_is_told_where_the_ids_are(run: Any, model: Path) -> None:
    done = run("agent", "--model", model, "--load", "../config", "-m", "x")
    assert "--list-sessions" in done.stderr


def test_programs_that_go_on_with_one_conversation_at_once_lose_no_turn(
    run: Any, program: Path, model: Path, tmp_path: Path
) -> None:
    run("agent", "--model", model, "-s", "diary", "-m", "hello", *QUIET)
    command = [str(program), "agent", "--model", str(model), "-s", "diary", *QUIET, "-m"]
    words = ["one", "two", "three"]
    at_once = [
        subprocess.Popen(
            [*command, word], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for word in words
    ]
    assert [one.wait(timeout=60) for one in at_once] == [0, 0, 0]
    said = [
        m["content"] for path in kept(tmp_path) for m in json.loads(path.read_text())["messages"]
    ]
    assert set(said) >= {"hello", *words}


def test_a_turn_is_kept_when_stderr_cannot_be_written(
    program: Path, model: Path, tmp_path: Path
) -> None:
    """A tiny model is always cut at so few tokens, which is noted on stderr."""
    command = [str(program), "agent", "--model", str(model), "-s", "x", "-m", "hi"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--max-tokens", "1", "--seed", "4"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert len(json.loads(kept(tmp_path)[0].read_text())["messages"]) == 2
