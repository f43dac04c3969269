"""docs/datasets.md: its rows are those the program makes, its table is that of the sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

from published_sets import PREFERENCES, SHAPES, published, write_jsonl

from abi_train.data.sets import SETS, fetch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")


def test_each_set_has_a_section_with_a_row_it_makes(tmp_path: Path) -> None:
    shown = dict(re.findall(r"^### `([\w-]+)`\n.*?^```json\n(.*?)\n```", PAGE, re.DOTALL | re.M))
    assert list(shown) == [data_set.name for data_set in SETS]
    for name, text in shown.items():
        if name == "preferences":
            source = write_jsonl(tmp_path / "mine.jsonl", PREFERENCES)
            config = "default"
        else:
            config = next(known for set_name, known in SHAPES if set_name == name)
            source = published(tmp_path, name, config)
        report = fetch(name, tmp_path / "rows.jsonl", source=source, config=config)
        rows = [json.loads(line) for line in report.path.read_text("utf-8").splitlines()]
        assert json.loads(text) in rows, name


def test_the_table_is_that_of_the_sets() -> None:
    found = re.findall(
        r"^\| `([\w-]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.M
    )
    assert [row[0] for row in found] == [data_set.name for data_set in SETS]
    words = {True: "yes", False: "no", None: "unknown"}
    for (_, hub_id, teaches, rows, license, use), data_set in zip(found, SETS, strict=True):
        assert teaches == data_set.teaches
        if not data_set.homes:
            continue
        assert f"`{data_set.homes[0].hub_id}`" in hub_id
        assert rows.split()[0] == str(data_set.splits[data_set.default_split])
        assert license == (data_set.license or "unknown")
        assert use == words[data_set.commercial_use]


def test_every_option_and_other_repository_is_on_the_page() -> None:
    for data_set in SETS:
        for option in data_set.options:
            for value in option.values[1:]:
                assert f"{option.name}={value}" in PAGE, f"{data_set.name} {option.name}={value}"
        for known in data_set.gone:
            assert known in PAGE
