"""Runs found, read and drawn, whatever state their logs are in."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from abi_train import runs
from abi_train.checkpoint import run_lock
from abi_train.cli import main
from abi_train.errors import EngineError, MissingFileError
from abi_train.runs.curves import Point, axis, segments, short, thin
from abi_train.runs.terminal import Canvas, draw


def write_run(
    folder: Path,
    losses: Sequence[float | None],
    *,
    end: str | None = "completed",
    total: int | None = None,
    recipe: dict[str, Any] | None = None,
    began: float = 1.79e9,
    extra: Sequence[str] = (),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"event": "start", "total_steps": total or len(losses), "start_step": 0, "engine": "native"}
    ]
    for step, loss in enumerate(losses, start=1):
        rows.append(
            {"event": "step", "step": step, "loss": loss, "grad_norm": 0.5, "learning_rate": 1e-3}
        )
    if losses:
        rows.append({"event": "evaluation", "step": len(losses), "eval_loss": 1.5})
    if end is not None:
        rows.append({"event": "end", "stop_reason": end})
    text = "".join(json.dumps({**row, "time": began + at}) + "\n" for at, row in enumerate(rows))
    (folder / "log.jsonl").write_text(text + "".join(extra))
    given = {"model": "/m/smol", "method": "full", "objective": "sft"} if recipe is None else recipe
    (folder / "run.json").write_text(json.dumps(given))
    return folder


def phased(folder: Path) -> Path:
    for at, name in enumerate(("emotional", "reasoning", "calibrated")):
        write_run(folder / name, [3.0 - at, 2.5 - at], began=1.79e9 + 100 * at)
    (folder / "recipe.json").write_text(
        json.dumps({"phases": {name: {} for name in ("emotional", "reasoning", "calibrated", "x")}})
    )
    return folder


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


# ---- reading ----


def test_a_run_is_read_as_its_log_tells(tmp_path: Path) -> None:
    run = runs.read_run(write_run(tmp_path / "a", [3.0, 2.0]))
    assert (run.state, run.step, run.total_steps, run.last("loss")) == ("finished", 2, 2, 2.0)
    assert (run.model, run.method, run.engine) == ("smol", "full · sft", "native")
    assert run.last("eval_loss") == 1.5 and run.last("nothing") is None
    assert run.ended is not None and run.started is not None and run.ended - run.started == 4.0


def test_a_log_in_any_state_is_read(tmp_path: Path) -> None:
    half = '{"event": "step", "step": 4, "lo'
    bad = ["not json\n", "[1]\n", '{"event": "step", "step": "x", "loss": 1}\n', half]
    run = runs.read_run(write_run(tmp_path / "a", [3.0, None, 2.0], end=None, total=9, extra=bad))
    assert run.damaged == 3 and run.step == 3 and run.state == "interrupted"
    assert math.isnan(run.series["loss"].values[1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_bytes(b"")
    (tmp_path / "empty" / "run.json").write_text("{")
    empty = runs.read_run(tmp_path / "empty")
    assert (empty.state, empty.step, empty.model) == ("interrupted", 0, "")
    assert runs.page([runs.open_curves(tmp_path / "empty")]).count("No update is logged") == 1
    with pytest.raises(MissingFileError, match="no such folder"):
        runs.read_run(tmp_path / "none")
    with pytest.raises(MissingFileError, match="not a run folder"):
        runs.read_run(tmp_path)


def test_a_killed_run_has_done_what_its_newest_checkpoint_has(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [3.0, 2.0], end=None, total=9)
    for step, seconds in ((4, 1.79e9 + 50), (8, 1.79e9 - 500), (12, 1.79e9 + 50)):
        state = folder / f"checkpoint-{step}" / "trainer_state.json"
        state.parent.mkdir()
        state.write_text("{}")
        os.utime(state, (seconds, seconds))
    run = runs.read_run(folder)  # 8 is of a part before, 12 of no run of 9 updates
    assert (run.state, run.step, run.to_dict()["step"]) == ("interrupted", 4, 4)
    assert runs.open_curves(folder).steps == 4
    resumed = '{"event": "start", "total_steps": 9, "start_step": 4, "time": 1790000100}\n'
    with (folder / "log.jsonl").open("a") as log:
        log.write(resumed)
    assert runs.read_run(folder).step == 4
    os.utime(folder / "checkpoint-8" / "trainer_state.json", (1.79e9 + 200, 1.79e9 + 200))
    assert runs.read_run(folder).step == 8
    (folder / "run.json").write_text('{"training": {"checkpoint_path": "elsewhere"}}')
    assert runs.read_run(folder).step == 2


@pytest.mark.parametrize(
    ("end", "extra", "state"),
    [
        ("completed", [], "finished"),
        ("early_stopped", [], "finished"),
        ("interrupted", [], "interrupted"),
        (None, [], "interrupted"),
        (None, ['{"event": "failed", "error": "NumericsError", "text": "nan"}\n'], "failed"),
    ],
)
def test_states(tmp_path: Path, end: str | None, extra: list[str], state: str) -> None:
    run = runs.read_run(write_run(tmp_path / "a", [3.0], end=end, total=5, extra=extra))
    assert run.state == state
    assert run.error == ("NumericsError: nan" if state == "failed" else "")


def test_a_run_whose_folder_is_held_is_running(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [3.0], end=None, total=5)
    with run_lock(folder):
        assert runs.read_run(folder).state == "running"
    assert runs.read_run(folder).state == "interrupted"


def test_what_a_killed_run_did_after_its_checkpoint_is_not_drawn_twice(tmp_path: Path) -> None:
    again = [
        {"event": "start", "start_step": 2, "total_steps": 5},
        {"event": "step", "step": 3, "loss": 7.0},
        {"event": "step", "step": 4, "loss": 6.0},
        {"event": "end", "stop_reason": "completed"},
    ]
    extra = [json.dumps(row) + "\n" for row in again]
    run = runs.read_run(write_run(tmp_path / "a", [9.0, 8.0, 1.0, 1.0, 1.0], end=None, extra=extra))
    assert list(run.series["loss"].steps) == [1, 2, 3, 4]
    assert list(run.series["loss"].values) == [9.0, 8.0, 7.0, 6.0]
    assert run.state == "finished" and "eval_loss" in run.series and not run.series["eval_loss"]


# ---- finding ----


def test_runs_are_found_below_a_folder_phases_in_their_order(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "late", [1.0], began=1.9e9)
    phased(tmp_path / "runs" / "abbey")
    write_run(tmp_path / "runs" / "early" / "checkpoint-3", [1.0])
    write_run(tmp_path / "runs" / "early", [1.0], began=1.0e9)
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    found = [run.folder.relative_to(tmp_path / "runs") for run in runs.find([tmp_path])]
    assert [str(path) for path in found] == [
        "early",
        "abbey/emotional",
        "abbey/reasoning",
        "abbey/calibrated",
        "late",
    ]
    with pytest.raises(MissingFileError):
        runs.find([tmp_path / "none"])


def test_phases_are_one_line_after_the_other(tmp_path: Path) -> None:
    curves = runs.open_curves(phased(tmp_path / "abbey"))
    assert curves.points("loss") == ([1, 2, 3, 4, 5, 6], [3.0, 2.5, 2.0, 1.5, 1.0, 0.5])
    assert curves.borders == [(0, "emotional"), (2, "reasoning"), (4, "calibrated")]
    parts = segments(curves, thin(*curves.points("loss"), 100))
    assert [[point.x for point in part] for part in parts] == [[1, 2], [3, 4], [5, 6]]
    one = runs.open_curves(tmp_path / "abbey" / "reasoning")
    assert one.borders == [] and one.steps == 2


# ---- drawing ----


def test_thinning_keeps_every_extreme_and_leaves_out_what_is_no_number() -> None:
    ys = [math.sin(x / 50) for x in range(100_000)]
    ys[777], ys[50_000] = 99.0, math.nan
    points = thin(range(100_000), ys, 300)
    assert len(points) <= 300
    assert max(point.high for point in points) == 99.0
    assert all(point.low <= point.mean <= point.high for point in points)
    assert [point.x for point in points] == sorted(point.x for point in points)
    assert thin([1, 2], [math.nan, 3.0], 10) == [Point(2, 3.0, 3.0, 3.0)]
    assert thin([5] * 20, [1.0] * 20, 3) == [Point(5, 1.0, 1.0, 1.0)]


def test_an_axis_holds_all_points() -> None:
    points = [Point(0, value, value, value) for value in (1.0, 10.0, 1000.0)]
    assert axis([]) is None
    for logarithmic in (False, True):
        where = axis(points, logarithmic=logarithmic)
        assert where is not None and where.logarithmic is logarithmic
        assert [where.share(1.0), where.share(1000.0)] == [0.0, 1.0]
        assert where.value(where.share(10.0)) == pytest.approx(10.0)
    even = axis([Point(0, 2.0, 2.0, 2.0)])
    assert even is not None and even.share(2.0) == 0.5
    assert [short(x) for x in (0.0, 2.113, 2.9e-4, 123456.0)] == ["0", "2.113", "2.9e-4", "1.2e5"]


def test_dots_of_braille_are_where_they_belong() -> None:
    canvas = Canvas(2, 2)
    canvas.dot(0, 0, 0)
    canvas.dot(3, 7, 1)
    canvas.dot(99, 99, 1)
    assert canvas.row(0) == [(" ", None), ("\u2808", 1)]
    assert canvas.row(1) == [("\u2840", 0), (" ", None)]


def lines_of(curves: Sequence[runs.Curves], width: int) -> Iterator[str]:
    for row in draw(curves, width=width):
        yield "".join(piece for piece, _ in row)


@pytest.mark.parametrize("width", [20, 80])
def test_a_drawing_keeps_to_its_width(tmp_path: Path, width: int) -> None:
    curves = [
        runs.open_curves(phased(tmp_path / "abbey")),
        runs.open_curves(write_run(tmp_path / "b", [5.0 / (1 + x) for x in range(500)])),
    ]
    rows = list(lines_of(curves, width))
    assert [row for row in rows if len(row) > max(width, 45)] == []
    text = "\n".join(rows)
    assert "Loss" in text and "Learning rate" in text and "Gradient norm" in text
    assert text.count("✕") > 2
    assert width < 80 or ("╵emotional" in text and "─ 250 ─" in text)
    owners = {owner for row in draw(curves, width=width) for _, owner in row}
    assert owners == {None, 0, 1}


def test_one_point_and_none_are_drawn(tmp_path: Path) -> None:
    one = runs.open_curves(write_run(tmp_path / "a", [2.0]))
    assert any("└ 1" in row for row in lines_of([one], 60))
    none = runs.open_curves(write_run(tmp_path / "b", [], end=None, total=4))
    assert list(draw([none], width=60)) == []


def test_the_page_stands_alone_and_shows_text_as_text(tmp_path: Path) -> None:
    alert = {"event": "alert", "step": 2, "level": "warn", "title": "<b>", "text": "</td><script>"}
    name = "<i>evil\x1b[31m"
    folder = write_run(tmp_path / name, [3.0, 2.0], extra=[json.dumps(alert) + "\n"])
    text = runs.page([runs.open_curves(folder), runs.open_curves(phased(tmp_path / "abbey"))])
    assert "<script" not in text and "\x1b" not in text and "<i>" not in text
    assert not re.search(r"(?:src|href)=|https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert text.count("<figure>") == 3 and text.count("<polyline") == 3 * (1 + 3)
    assert "&lt;i&gt;evil" in text and "abbey / reasoning" in text


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    curves = runs.open_curves(write_run(tmp_path / "a", [3.0 + (x % 7) for x in range(20_000)]))
    text = runs.page([curves])
    assert len(text) < 120_000 and "<polygon" in text
    assert len(curves.to_dict(points=100)["series"]["loss"]["step"]) <= 100


def test_a_picture_is_a_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    curves = [
        runs.open_curves(phased(tmp_path / "abbey")),
        runs.open_curves(write_run(tmp_path / "$x^", [1.0])),
    ]
    made = runs.picture(curves)
    assert made.startswith(b"\x89PNG") and len(made) > 10_000
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(EngineError, match=r"pip install 'abi-train\[report\]'"):
        runs.picture(curves)


# ---- the command line ----


def test_the_list_names_state_and_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("runs") == 0
    assert "no runs here" in capsys.readouterr().err
    write_run(tmp_path / "runs" / "a", [3.0, 2.25])
    failed = '{"event": "failed", "error": "NumericsError", "text": "update 2: nan"}\n'
    write_run(tmp_path / "runs" / "b", [3.0], end=None, extra=[failed])
    assert call("runs") == 0
    shown = capsys.readouterr()
    assert re.search(r"runs/a +finished .* 2/2 +2\.25 ", shown.out)
    assert re.search(r"runs/b +failed", shown.out) and "update 2: nan" in shown.err
    assert call("runs", "runs/a", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["state"], found["loss"], found["folder"]) == ("finished", 2.25, "runs/a")
    assert call("runs", "nowhere") == 1
    assert "no such folder" in capsys.readouterr().err


def test_show_draws_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "x" / "a", [3.0, 2.0])
    write_run(tmp_path / "y" / "a", [3.0, 2.5])
    assert call("runs", "show", "x/a", "y/a") == 0
    shown = capsys.readouterr().out
    assert shown.count("Gradient norm") == 2  # no colours here, so each by itself
    assert call("runs", "show", "x/a", "y/a", "--html", "out/c.html") == 0
    assert capsys.readouterr().out == "out/c.html\n"
    text = (tmp_path / "out" / "c.html").read_text()
    assert "x/a" in text and "y/a" in text
    assert call("runs", "show", "x/a", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["series"]["loss"] == {"step": [1, 2], "value": [3.0, 2.0]}
    assert call("runs", "show", "x/none") == 1
    assert "`abi-train runs`" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.html")
    assert call("runs", "show", "x/a", "--html", "pipe.html") == 1
    assert "pipe.html: cannot be written (not a regular file)" in capsys.readouterr().err
    assert (tmp_path / "pipe.html").is_fifo()
    assert call("runs", "show") == 2


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "",
        "{}",
        "[" * 9000,
        '{"phases": 3}',
        '{"phases": {"emotional": 3}}',
        '{"phases": {"emotional": {"state": 3}}}',
        '{"phases": {"emotional": {"state": "finished", "checkpoint": 3}}}',
        '{"phases": {"emotional": {"state": "finished", "checkpoint": "../../../../etc"}}}',
        '{"phases": {"emotional": {"state": "finished", "checkpoint": "reasoning"}}}',
        '{"phases": {"emotional": {"state": "finished", "checkpoint": "emotional/link"}}}',
        '{"phases": {"emotional": {"state": "finished", "checkpoint": "a\\u0000b"}}}',
        '{"phases": {"../emotional": {"checkpoint": "../emotional"}}}',
    ],
)
def test_a_damaged_state_of_a_phased_run_is_named(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = phased(tmp_path / "run")
    (tmp_path / "run" / "emotional" / "link").symlink_to("/etc")
    (folder / "recipe.json").write_text(text)
    for verb in (["runs", "show"], ["eval"], ["export"]):
        assert call(*verb, folder) == 1
        shown = " ".join(capsys.readouterr().err.split())
        assert "recipe.json: cannot be read as the state of a phased run" in shown
        assert "name the folder of a phase" in shown
    assert call("runs", folder, "--json") == 0  # the phases are there all the same
    assert "reasoning" in capsys.readouterr().out
    assert call("runs", "show", folder / "reasoning") == 0


def test_a_recipe_beside_a_run_is_not_its_state(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [3.0])
    for text in ('{"model": "m", "data": "d.bin"}', '{"model": "m", "phases": [{"name": "x"}]}'):
        (folder / "recipe.json").write_text(text)
        assert runs.open_curves(folder).steps == 1


def test_a_drawing_replaces_nothing_but_a_drawing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [3.0, 2.0])
    log = (tmp_path / "a" / "log.jsonl").read_bytes()
    (tmp_path / "link.html").symlink_to("a/log.jsonl")
    (tmp_path / "notes.md").write_text("mine")
    for option in ("--html", "--png"):
        for name in ("a/log.jsonl", "a/run.json", "a/recipe.json", "notes.md", "new", "a"):
            assert call("runs", "show", "a", option, name) == 2
            assert "must end in" in capsys.readouterr().err
    assert call("runs", "show", "a", "--html", "c.html", "--png", "c.html") == 2
    assert call("runs", "show", "a", "--html", "link.html") == 2
    assert (tmp_path / "a" / "log.jsonl").read_bytes() == log and not Path("c.html").exists()
    assert not Path("a/recipe.json").exists() and Path("link.html").is_symlink()
    for _ in range(2):
        assert call("runs", "show", "a", "--html", "c.html") == 0


def test_nothing_is_written_into_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [3.0], end=None)
    before = sorted(folder.iterdir())
    assert call("runs", folder) == 0
    assert call("runs", "show", folder) == 0
    assert sorted(folder.iterdir()) == before
