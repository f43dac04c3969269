"""Talking to Ollama: a stub of ``/api/chat`` on a loopback port plays the server."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class Stub(ThreadingHTTPServer):
    """Answers every request with ``lines`` under ``status``, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.lines: list[Any] = []
        self.pause = 0.0
        self.chunked = True
        self.requests: list[tuple[str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def say(self, *texts: str, reason: str = "stop") -> None:
        parts: list[Any] = [
            {"message": {"role": "assistant", "content": text}, "done": False} for text in texts
        ]
        end = {"message": {"content": ""}, "done": True, "done_reason": reason, "eval_count": 2}
        self.lines = [*parts, end]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("content-type", "application/x-ndjson")
        if self.server.chunked:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("connection", "close")
        self.end_headers()
        for line in self.server.lines:
            raw = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw) if self.server.chunked else raw)
            self.wfile.flush()
            time.sleep(self.server.pause)
        if self.server.chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(run: Any, stub: Stub, *arguments: str, stdin: str = "") -> Any:
    return run(
        "agent", *arguments, stdin=stdin, ABI_OLLAMA_MODEL="abbey", ABI_OLLAMA_HOST=stub.address
    )


@pytest.mark.parametrize("chunked", [True, False])
def test_a_streamed_answer_arrives_on_stdout(run: Any, stub: Stub, chunked: bool) -> None:
    stub.chunked = chunked
    stub.say("Hel", "lo, ", "Zoë\x1b[31m!")
    done = ask(run, stub, "-m", 'say "hi"\n')
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, Zoë!\n", "")
    path, body = stub.requests[0]
    assert path == "/api/chat"
    assert body == {
        "model": "abbey",
        "stream": True,
        "messages": [{"role": "user", "content": 'say "hi"\n'}],
        "options": {},
    }


def test_given_settings_and_system_text_are_sent(run: Any, stub: Stub) -> None:
    stub.say("ok")
    done = ask(
        run, stub, "-m", "x", "--system", "Be brief.", "--temperature", "0.5", "--top-k", "3",
        "--seed", "7", "--max-tokens", "9", "--repeat-penalty", "1.5", "--context", "512",
    )  # fmt: skip
    assert done.returncode == 0
    body = stub.requests[0][1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["options"] == {
        "temperature": 0.5,
        "top_k": 3,
        "repeat_penalty": 1.5,
        "seed": 7,
        "num_predict": 9,
        "num_ctx": 512,
    }


def test_a_conversation_sends_its_history(run: Any, stub: Stub) -> None:
    stub.say("one")
    done = ask(run, stub, stdin="first\nsecond\n")
    assert (done.returncode, done.stdout) == (0, "one\none\n")
    assert [m["content"] for m in stub.requests[1][1]["messages"]] == ["first", "one", "second"]


def test_a_missing_model_says_how_to_get_it(run: Any, stub: Stub) -> None:
    stub.status = 404
    stub.lines = [{"error": "model 'abbey' not found"}]
    done = ask(run, stub, "-m", "x")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ollama pull abbey" in done.stderr
    assert "ollama create abbey" in done.stderr


def test_a_server_error_is_shown_with_its_text(run: Any, stub: Stub) -> None:
    stub.status = 500
    stub.lines = [{"error": "out of\x1b[2J memory"}]
    done = ask(run, stub, "-m", "x")
    assert done.returncode == 1
    assert "answered 500: out of memory" in done.stderr


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"message": {"content": "a"}}, {"error": "runner died"}], "runner died"),
        ([{"message": {"content": "a"}}], "before it was done"),
        ([b"<html>hello</html>\n"], "not its protocol"),
        ([b'{"message":{"content":"' + b"x" * (2 << 20) + b'"}}\n'], "is this an Ollama server"),
        ([b'{"message":3}\n'], "not its protocol"),
    ],
)
def test_a_broken_answer_is_a_failure(
    run: Any, stub: Stub, lines: list[Any], expected: str
) -> None:
    stub.lines = lines
    done = ask(run, stub, "-m", "x")
    assert done.returncode == 1
    assert expected in done.stderr


def test_nobody_listening_is_its_own_exit_code(run: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = run("agent", "-m", "x", ABI_OLLAMA_MODEL="abbey", ABI_OLLAMA_HOST=f"127.0.0.1:{port}")
    assert done.returncode == 3
    assert f"cannot reach Ollama at http://127.0.0.1:{port}" in done.stderr
    assert "ollama serve" in done.stderr


def test_the_host_of_ollama_itself_is_the_second_choice(run: Any, stub: Stub) -> None:
    stub.say("ok")
    host = stub.address.removeprefix("http://")
    done = run("agent", "-m", "x", ABI_OLLAMA_MODEL="abbey", OLLAMA_HOST=host)
    assert done.returncode == 0
    done = run(
        "agent", "-m", "x", ABI_OLLAMA_MODEL="abbey", OLLAMA_HOST=host, ABI_OLLAMA_HOST="a:b"
    )
    assert done.returncode == 1
    assert "ABI_OLLAMA_HOST" in done.stderr


def test_without_any_model_the_message_names_both_ways(run: Any) -> None:
    done = run("agent", "-m", "x")
    assert done.returncode == 2
    assert "--model FILE.gguf" in done.stderr
    assert "ABI_OLLAMA_MODEL" in done.stderr


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(
    program: Path, stub: Stub, tmp_path: Path
) -> None:
    """Also while the server says nothing: the pause is longer than the test."""
    stub.say("begin", "never")
    stub.pause = 60
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "ABI_OLLAMA_MODEL": "abbey",
        "ABI_OLLAMA_HOST": stub.address,
        "NO_COLOR": "1",
    }
    process = subprocess.Popen(
        [str(program), "agent"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    heard = b""

    def until(text: bytes) -> None:
        nonlocal heard
        deadline = time.monotonic() + 20
        while text not in heard:
            assert time.monotonic() < deadline, heard
            heard += os.read(ours, 4096)
        heard = heard.split(text, 1)[1]

    until(b"you> ")
    os.write(ours, b"hello\n")
    until(b"begin")
    process.send_signal(signal.SIGINT)
    until(b"(stopped)")
    until(b"you> ")
    os.write(ours, b"/info\n")
    until(b"messages  2")
    os.write(ours, b"/exit\n")
    until(b"[y/N] ")
    os.write(ours, b"y\n")
    until(b"kept: ")
    assert process.wait(20) == 0
    os.close(ours)
    [kept] = (tmp_path / ".abi" / "sessions").iterdir()
    messages = json.loads(kept.read_text())["messages"]
    assert [m["content"] for m in messages] == ["hello", "begin"]


def test_ctrl_c_ends_a_program_that_reads_from_a_pipe(
    program: Path, stub: Stub, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [str(program), "agent"],
        stdin=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "ABI_OLLAMA_MODEL": "abbey", "ABI_OLLAMA_HOST": stub.address},
    )
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.communicate()


def test_a_second_ctrl_c_leaves_at_once(program: Path, stub: Stub, tmp_path: Path) -> None:
    stub.say("never")
    stub.pause = 60
    stub.chunked = False
    process = subprocess.Popen(
        [str(program), "agent", "-s", "x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "ABI_OLLAMA_MODEL": "abbey", "ABI_OLLAMA_HOST": stub.address},
    )
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.communicate()


def test_thoughts_are_told_from_the_answer_and_effort_is_asked_for(run: Any, stub: Stub) -> None:
    stub.say("Hi.")
    stub.lines.insert(0, {"message": {"content": "", "thinking": "Be \x1b[2Jkind."}, "done": False})
    done = ask(run, stub, "-m", "hi", "--reasoning", "low", "--show-thinking")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hi.\n", "Be kind.\n")
    assert stub.requests[0][1]["think"] == "low"
    done = ask(run, stub, "-m", "hi")
    assert (done.stdout, done.stderr) == ("Hi.\n", "")
    assert "think" not in stub.requests[1][1]
