"""Rows of text: each shape people write, and a place and a reason for each line that is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from abi_train.data.info import describe
from abi_train.data.sources import Chat, Completion, Message, Skipped, Text, count_lines, read_rows
from abi_train.errors import DataError, FileAccessError, MissingFileError

USER = Message(role="user", content="hi")
ASSISTANT = Message(role="assistant", content="hello")


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a"}, Text(text="a")),
        ({"prompt": "a", "completion": "b"}, Completion(prompt="a", completion="b")),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "hello"},
                ],
                "emotion": "hopeful",
            },
            Chat(messages=(USER, ASSISTANT), emotion="hopeful"),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "hello"},
                ]
            },
            Chat(messages=(USER, ASSISTANT)),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "hi"}],
                "completion": [{"role": "assistant", "content": "hello"}],
            },
            Chat(messages=(USER, ASSISTANT), learn_from=1),
        ),
        ({"instruction": "hi", "output": "hello", "id": 7}, Chat(messages=(USER, ASSISTANT))),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            Chat(
                messages=(
                    Message(role="user", content="Add\n\n1 2"),
                    Message(role="assistant", content="3"),
                )
            ),
        ),
    ],
)
def test_each_shape_is_understood(tmp_path: Path, row: Any, expected: Any) -> None:
    path = write(tmp_path / "a.jsonl", row)
    assert [found for _, _, found in read_rows([path])] == [expected]


BAD = [
    ('{"text": "cut', "not valid JSON"),
    ("[1]", "not a JSON object"),
    ('{"question": "a"}', "no known columns"),
    ('{"text": 5}', "text is not text"),
    ('{"text": "  "}', "text is empty"),
    ('{"text": "\\ud800"}', "surrogate"),
    ('{"instruction": "a"}', "without output"),
    ('{"messages": []}', "not a list of messages"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn"),
    ('{"messages": [{"role": "robot", "content": "a"}]}', "robot"),
    ('{"messages": ["a"]}', "messages[0] is not an object"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_named_with_its_place(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "good"}, "", line)
    with pytest.raises(DataError) as caught:
        list(read_rows([path]))
    assert f"{path}:3" in str(caught.value)
    assert reason in str(caught.value)


def test_a_tolerant_reader_counts_each_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "good"}, *(line for line, _ in BAD), {"text": "x"})
    skipped = Skipped()
    rows = list(read_rows([path], skipped=skipped))
    assert [number for number, _, _ in rows] == [0, len(BAD) + 1]
    assert skipped.total == len(BAD)
    assert len(skipped.examples) == 5


def test_bytes_that_are_not_utf8_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        list(read_rows([path]))


def test_what_is_no_file_of_rows_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "regular"), (Path(os.devnull), "regular")):
        with pytest.raises(FileAccessError, match=f"{path} is not a {said} file"):
            count_lines([path])
        with pytest.raises(FileAccessError, match=f"{path} is not a {said} file"):
            describe(path)
    for look in (lambda: list(read_rows([tmp_path])), lambda: describe(tmp_path)):
        with pytest.raises(FileAccessError, match="is a folder"):
            look()
    with pytest.raises(MissingFileError, match="no such file"):
        count_lines([tmp_path / "gone"])


def test_the_way_past_bad_lines_is_named_as_it_is_typed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{")
    with pytest.raises(DataError, match=r"--skip-invalid \(in Python skip_invalid=True\)"):
        list(read_rows([path]))


def test_lines_are_counted_as_they_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, "", {"text": "b"})
    assert count_lines([path, path]) == 4
    assert [number for number, _, _ in read_rows([path, path])] == [0, 1, 2, 3]
