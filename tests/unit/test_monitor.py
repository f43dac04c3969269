"""Who watches a run: warnings, and Trackio, whose faults stay its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from token_files import write_rows

from abi_train import engines, monitor
from abi_train.config import LlmTrainingConfig
from abi_train.errors import ConfigError, EngineError, NumericsError
from abi_train.monitor_alerts import SPIKE_LEAST, Watch, spike_limit
from abi_train.monitor_config import MonitorConfig
from abi_train.progress import Alert, JsonlLog, Observer
from abi_train.runspec import EvalRecord, RunSpec, StepRecord

MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
CONFIG = LlmTrainingConfig(
    epochs=2,
    batch_size=2,
    grad_accum_steps=1,
    max_seq_len=16,
    warmup_steps=0,
    eval_interval=3,
    checkpoint_interval=2,
    log_interval=1,
    early_stopping=False,
    threads=1,
)


def record(step: int, loss: float = 2.0, norm: float = 0.5, **more: Any) -> StepRecord:
    values: dict[str, Any] = {"learning_rate": 1e-3, "epoch": 0.5, "accuracy": 0.25, "tokens": 64}
    return StepRecord(
        step=step, loss=loss, grad_norm=norm, tokens_per_second=10.0, **{**values, **more}
    )


class Heard(Observer):
    def __init__(self, stop_at: int | None = None) -> None:
        self.alerts: list[Alert] = []
        self.notes: list[str] = []
        self._stop_at = stop_at
        self._step = 0

    def on_step(self, record: StepRecord) -> None:
        self._step = record.step

    def on_alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def stop_requested(self) -> bool:
        return self._stop_at is not None and self._step >= self._stop_at


def watched(losses: list[float], norms: list[float] | None = None, **settings: Any) -> list[Alert]:
    heard = Heard()
    watch = Watch(MonitorConfig(**settings), heard, max_grad_norm=1.0)
    for at, loss in enumerate(losses):
        watch.on_step(record(at + 1, loss, norms[at] if norms else 0.5))
    return heard.alerts


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    write_rows(tmp_path / "train.bin", [9, 12, 20, 7, 15, 11], vocab=60)
    write_rows(tmp_path / "eval.bin", [9, 12], vocab=60)
    return tmp_path


def spec_of(made: Path, run: str = "run", **values: Any) -> RunSpec:
    settings = {"config": CONFIG, "monitor": MonitorConfig(trackio="demo"), **values}
    return RunSpec(
        model=made / "config.json",
        data=made / "train.bin",
        eval_data=made / "eval.bin",
        run_dir=made / run,
        **settings,
    )


# ---- warnings ----


def test_one_warning_a_spike_and_none_for_noise() -> None:
    noisy = [2.0 + 0.1 * ((at * 7) % 5 - 2) for at in range(60)]
    assert watched(noisy) == []
    spiked = [*noisy, 4.0, 4.1, *noisy[:10], 4.2]
    found = watched(spiked)
    assert [(alert.kind, alert.step) for alert in found] == [("loss_spike", 61), ("loss_spike", 73)]
    assert found[0].level == "warn" and "jumped to 4;" in found[0].text
    assert "learning_rate" in found[0].text
    assert watched(spiked, alerts=False) == []
    assert watched(spiked, spike_deviations=100.0) == []


def test_a_loss_can_fall_and_settle_on_another_level_in_quiet() -> None:
    assert watched([8.0 / (1 + 0.2 * at) for at in range(200)]) == []
    found = watched([1.0] * 60 + [3.0] * 100)
    assert [alert.step for alert in found] == [61]


def test_there_is_no_limit_before_there_are_losses_to_compare_with() -> None:
    assert spike_limit([1.0] * (SPIKE_LEAST - 1), 6.0) == float("inf")
    assert spike_limit([1.0] * SPIKE_LEAST, 6.0) == pytest.approx(1.12)


def test_a_clip_that_always_cuts_is_told_once_and_again_after_calm() -> None:
    norms = [3.0] * 80 + [0.5] * 60 + [2.0] * 60
    found = watched([1.0] * 200, norms)
    assert [(alert.kind, alert.step) for alert in found] == [("clipped", 50), ("clipped", 185)]
    assert "max_grad_norm (1) in 50 of the last 50" in found[0].text
    assert watched([1.0] * 200, norms, clip_updates=1000) == []


def test_a_number_that_is_none_is_an_alert() -> None:
    assert [alert.kind for alert in watched([1.0, float("nan")])] == ["not_a_number"]
    heard = Heard()
    watch = Watch(MonitorConfig(), heard, max_grad_norm=1.0)
    watch.on_step(record(7))
    watch.on_failure(NumericsError("update 8: the gradient of x is not finite"))
    watch.on_failure(EngineError("another matter"))
    assert [(a.kind, a.level, a.step) for a in heard.alerts] == [("not_a_number", "error", 7)]


def test_a_run_that_breaks_says_so_in_its_log(made: Path) -> None:
    class Breaks(Observer):
        def on_step(self, record: StepRecord) -> None:
            if record.step == 2:
                raise NumericsError("update 3: the gradient of x is not finite")

    heard = Heard()
    from abi_train.progress import Observers

    with pytest.raises(NumericsError):
        engines.run(spec_of(made, monitor=MonitorConfig()), Observers(Breaks(), heard))
    lines = (made / "run" / "log.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines][-2:]
    assert [row["event"] for row in last] == ["alert", "failed"]
    assert last[0]["kind"] == "not_a_number" and last[1]["error"] == "NumericsError"
    assert last[1]["time"] > 1.7e9
    assert [alert.kind for alert in heard.alerts] == ["not_a_number"]


def test_a_line_that_was_cut_in_half_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start"}\n{"event": "st')
    log = JsonlLog(path)
    log.on_note("on")
    log.close()
    lines = path.read_text().splitlines()
    assert lines[1] == '{"event": "st' and json.loads(lines[2])["text"] == "on"


def test_memory_stands_in_the_log_and_not_in_what_a_later_run_reads(made: Path) -> None:
    result = engines.run(spec_of(made, monitor=MonitorConfig()))
    assert "memory_bytes" not in result.history[0].as_dict()
    lines = (made / "run" / "log.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["event"] == "step"]
    assert all(1e6 < row["memory_bytes"] < 1e12 for row in steps)


# ---- the recipe ----


def test_the_table_travels_with_the_recipe(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, monitor=MonitorConfig(trackio="demo", clip_updates=20))
    saved = spec.save(tmp_path / "r.yaml")
    assert RunSpec.load(saved) == spec
    assert spec.to_dict()["monitor"] == {"trackio": "demo", "clip_updates": 20}
    assert "monitor" not in spec_of(tmp_path, monitor=MonitorConfig()).to_dict()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trackio_run": "a"}, "monitor.trackio_run .* name the Trackio project"),
        ({"trackio_space": "a/b"}, "monitor.trackio_space .* name the Trackio project"),
        ({"trackio": "p", "trackio_public": True}, "name that Space"),
        ({"trackio": ""}, "monitor.trackio is .*empty"),
        ({"trackio": "a/../b"}, "monitor.trackio is .*Trackio would change it"),
        ({"trackio": "my project"}, "monitor.trackio is .*Trackio would change it"),
        ({"trackio": "p", "trackio_space": "nonsense"}, "trackio_space is .*must be USER/NAME"),
        ({"trackio": "p", "trackio_space": "a/b..c"}, "trackio_space is .*must be USER/NAME"),
        ({"spike_deviations": 0}, "monitor.spike_deviations is 0.0; it must be"),
        ({"clip_updates": 1}, "monitor.clip_updates is 1; it must be at least 2"),
        ({"trakio": "p"}, "'trakio' is not a key of the table monitor; did you mean 'trackio'"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MonitorConfig.from_dict(values)


# ---- Trackio ----


def test_what_is_sent_has_transformers_names() -> None:
    values = monitor.step_values(record(3, memory_bytes=2 * 10**9, gpu_memory_bytes=10**9))
    assert set(values) == {
        *(f"train/{name}" for name in ("global_step", "loss", "grad_norm", "learning_rate")),
        *(f"train/{name}" for name in ("perplexity", "epoch", "mean_token_accuracy")),
        *(f"train/{name}" for name in ("num_tokens", "tokens_per_second")),
        *(f"train/{name}" for name in ("memory_gb", "gpu_memory_gb")),
    }
    assert (values["train/global_step"], values["train/memory_gb"]) == (3, 2.0)
    pairs = monitor.step_values(record(3, metrics={"rewards/margins": 0.5}))
    assert pairs["train/rewards/margins"] == 0.5 and "train/perplexity" not in pairs
    seen = monitor.evaluation_values(EvalRecord(step=3, epoch=1, loss=2, accuracy=0.5, tokens=9))
    assert set(seen) == {
        "train/global_step",
        *(f"eval/{name}" for name in ("loss", "perplexity", "mean_token_accuracy", "num_tokens")),
    }


def test_runs_get_names_that_tell_them_apart(tmp_path: Path) -> None:
    (tmp_path / "abbey" / "emotional").mkdir(parents=True)
    assert monitor.run_name(tmp_path / "abbey") == "abbey"
    assert monitor.run_name(tmp_path / "abbey" / "emotional") == "emotional"
    (tmp_path / "abbey" / "recipe.json").write_text("{}")
    assert monitor.run_name(tmp_path / "abbey" / "emotional") == "abbey-emotional"
    assert monitor.free_name("a", {"b"}) == "a"
    assert monitor.free_name("a", {"a", "a-2"}) == "a-3"


def test_without_trackio_the_run_does_not_begin(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(EngineError, match=r"pip install 'abi-train\[trackio\]'"):
        engines.run(spec_of(made))
    assert not (made / "run").exists()


class FakeRun:
    def __init__(self, breaks_at: int) -> None:
        self.sent: list[int] = []
        self.breaks_at = breaks_at

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self.breaks_at:
            raise OSError(28, "No space left on device")
        self.sent.append(step)

    def alert(self, *arguments: Any, **named: Any) -> None:
        raise AssertionError("nothing is to be sent any more")


def fake_trackio(run: FakeRun, asked: dict[str, Any]) -> types.ModuleType:
    module: Any = types.ModuleType("trackio")

    class Api:
        def runs(self, project: str) -> list[Any]:
            raise ValueError("no such project")

    def init(**named: Any) -> FakeRun:
        asked.update(named, space_variable=os.environ.get("TRACKIO_SPACE_ID"))
        print("* chatter")
        return run

    module.Api, module.init, module.finish = Api, init, lambda: None
    return module  # type: ignore[no-any-return]


def test_a_space_that_cannot_be_reached_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = fake_trackio(FakeRun(breaks_at=0), {})

    def init(**named: Any) -> FakeRun:
        raise ConnectionError("name resolution failed")

    module.init = init
    monkeypatch.setitem(sys.modules, "trackio", module)
    settings = MonitorConfig(trackio="demo", trackio_space="me/space")
    with pytest.raises(EngineError, match=r"Space me/space: ConnectionError.*--trackio-space out"):
        engines.run(spec_of(made, monitor=settings))


def test_project_names_are_those_that_trackio_keeps() -> None:
    utils = pytest.importorskip("trackio.utils")
    for name in ("abbey", "Größe-1", "a_b"):
        assert utils.canonical_project_name(name) == MonitorConfig(trackio=name).trackio


def test_a_trackio_that_breaks_is_told_and_the_run_goes_on(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, asked = FakeRun(breaks_at=3), dict[str, Any]()
    monkeypatch.setitem(sys.modules, "trackio", fake_trackio(run, asked))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/public")
    heard = Heard()
    result = engines.run(spec_of(made), heard)
    assert result.total_steps == 6 and result.stop_reason == "completed"
    assert run.sent == [1, 2]
    said = [note for note in heard.notes if note.startswith("trackio: OSError")]
    assert len(said) == 1 and "No space left" in said[0] and "the run goes on" in said[0]
    # Nothing leaves the machine unless the recipe names a place.
    assert asked["space_variable"] is None and asked["space_id"] is None and asked["private"]
    assert os.environ["TRACKIO_SPACE_ID"] == "somebody/public"
    assert any("TRACKIO_SPACE_ID is not followed" in note for note in heard.notes)
    assert capsys.readouterr().out == ""
    assert asked["config"]["training.batch_size"] == 2 and asked["config"]["engine"] == "native"


def test_a_project_trackio_refuses_is_named_before_the_first_update(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = fake_trackio(FakeRun(0), {})

    def refuse(**named: Any) -> None:
        raise ValueError("that name is reserved")

    monkeypatch.setattr(module, "init", refuse)
    monkeypatch.setitem(sys.modules, "trackio", module)
    with pytest.raises(ConfigError, match=r'monitor.trackio is "demo"; .*that name is reserved'):
        engines.run(spec_of(made))
    assert list((made / "run").glob("checkpoint-*")) == []


def test_a_folder_trackio_cannot_have_is_named_before_the_first_update(made: Path) -> None:
    pytest.importorskip("trackio")
    (made / "file").write_text("")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_monitor as here\n"
        "from pathlib import Path; from abi_train import engines\n"
        "engines.run(here.spec_of(Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(made)],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "TRACKIO_DIR": str(made / "file" / "x"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
    )
    assert done.returncode == 1
    assert "set TRACKIO_DIR to a folder that can be written" in done.stderr.splitlines()[-1]
    assert list((made / "run").glob("checkpoint-*")) == []


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_monitor as here
from abi_train import engines
from abi_train.runspec import RunSpec

made = Path(sys.argv[2])
heard = here.Heard()
spec = here.spec_of(made)
engines.run(spec, here.Heard(stop_at=3))
engines.run(spec.replace(resume="latest"), heard)
# Of the same name and not resumed: a run of its own.
again = here.spec_of(made, "other", monitor=here.MonitorConfig(trackio="demo", trackio_run="run"))
engines.run(again, heard)

# What goes wrong in Trackio's own thread is told too.
from trackio.sqlite_storage import SQLiteStorage
def full(*arguments, **named):
    raise OSError(28, "No space left on device")
bulk_log, SQLiteStorage.bulk_log = SQLiteStorage.bulk_log, full
assert engines.run(here.spec_of(made, "full"), heard).total_steps == 6
SQLiteStorage.bulk_log = bulk_log

import trackio
rows = {run.name: SQLiteStorage.get_logs("demo", run.name) for run in trackio.Api().runs("demo")}
print(json.dumps({"rows": rows, "notes": heard.notes}))
"""


def test_a_resumed_run_goes_on_in_its_trackio_run(made: Path) -> None:
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(made / "trackio"), "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(made)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)  # and nothing of Trackio's chatter
    first = found["rows"]["run"]
    trained = [row["step"] for row in first if "train/loss" in row]
    assert trained == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in first if "eval/loss" in row] == [3, 6]
    assert all(row["train/global_step"] == row["step"] for row in first)
    assert {name for name, rows in found["rows"].items() if rows} == {"run", "run-2"}
    assert any("the name is taken, so this run is run-2" in note for note in found["notes"])
    assert any("trackio: " in n and "No space left" in n for n in found["notes"]), found["notes"]
    kept = json.loads((made / "run" / "trackio.json").read_text())
    assert kept == {"project": "demo", "run": "run"}
