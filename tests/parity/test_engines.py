"""The engines against each other, and the TRL engine against a plain PyTorch loop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from tiny_models import make_tiny_model
from token_files import write_masked_stream, write_rows, write_stream

from abi_train import checkpoint as folders
from abi_train import engines
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.data.order import epoch_order
from abi_train.data.rows import TokenRows
from abi_train.errors import CheckpointError, ConfigError, DataError, FileAccessError
from abi_train.export import export_gguf
from abi_train.progress import Observer
from abi_train.runspec import RunSpec
from abi_train.schedule import learning_rate

VOCAB = 300
LENGTHS = [5, 9, 40, 17, 2, 33, 8, 21, 12, 30, 6, 7, 11]
CONFIG = LlmTrainingConfig(
    epochs=20,
    batch_size=2,
    grad_accum_steps=3,
    max_seq_len=32,
    learning_rate=2e-4,
    warmup_steps=5,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data_file(folder: Path, kind: str) -> Path:
    path = folder / "train.bin"
    if kind == "rows":
        return write_rows(path, LENGTHS, vocab=VOCAB)
    return write_stream(path, tokens=900, vocab=VOCAB)


def small_model(folder: Path, shape: str) -> Path:
    """A tiny model with weights as small as a fresh model's, so that losses are near ln V."""
    path = make_tiny_model(folder / "model", shape)
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" in name:
            tensor.mul_(0.2)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("kind", ["rows", "stream"])
@pytest.mark.parametrize("shape", ["llama_tied", "llama_gqa_untied", "qwen2", "qwen3"])
def test_both_engines_agree_for_thirty_updates(tmp_path: Path, shape: str, kind: str) -> None:
    spec = RunSpec(
        model=small_model(tmp_path, shape),
        data=data_file(tmp_path, kind),
        run_dir=tmp_path / "run",
        config=CONFIG,
    )
    result = crosscheck(spec, steps=30)
    assert len(result.steps) == 30
    assert result.ok, result.fault
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"optimizer": "sgd", "max_grad_norm": 0.0}, "rows"),
        ({"optimizer": "adam", "lr_schedule": "polynomial"}, "stream"),
        ({"label_smoothing": 0.1, "shuffle": False, "lr_schedule": "step"}, "rows"),
        ({"grad_accum_steps": 1, "lr_schedule": "cosine_warm_restarts"}, "rows"),
        ({"recompute_activations": True}, "rows"),
        ({"lr_schedule": "constant", "beta1": 0.0, "beta2": 0.9, "eps": 1e-6}, "stream"),
    ],
)
def test_both_engines_agree_whatever_the_settings(
    tmp_path: Path, settings: dict[str, object], kind: str
) -> None:
    spec = RunSpec(
        model=small_model(tmp_path, "llama_gqa_untied"),
        data=data_file(tmp_path, kind),
        run_dir=tmp_path / "run",
        config=dataclasses.replace(CONFIG, **settings),
    )
    result = crosscheck(spec, steps=12)
    assert result.ok, result.fault


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_both_engines_agree_on_a_stream_with_a_mask(tmp_path: Path, smoothing: float) -> None:
    spec = RunSpec(
        model=small_model(tmp_path, "llama_gqa_untied"),
        data=write_masked_stream(
            tmp_path / "train.bin", tokens=900, vocab=VOCAB, learned_from=2 * 32 * 2 + 1
        ),
        run_dir=tmp_path / "run",
        config=dataclasses.replace(
            CONFIG, grad_accum_steps=1, shuffle=False, label_smoothing=smoothing
        ),
    )
    result = crosscheck(spec, steps=8)
    assert result.ok, result.fault
    # The first two updates have nothing to learn: no loss, no gradient, no step.
    assert [step.loss for step in result.steps[:2]] == [(0.0, 0.0)] * 2
    assert result.steps[2].loss[0] > 1.0


def test_a_changed_optimizer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from abi_train.engines.trl import update

    monkeypatch.setattr(update, "spared", lambda name: False)
    spec = RunSpec(
        model=small_model(tmp_path, "llama_gqa_untied"),
        data=data_file(tmp_path, "rows"),
        run_dir=tmp_path / "run",
        config=CONFIG,
    )
    result = crosscheck(spec, steps=10)
    assert not result.ok
    assert result.fault is not None


@pytest.mark.parametrize("kind", ["rows", "stream"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_trl_engine_is_a_plain_pytorch_loop(
    tmp_path: Path, kind: str, smoothing: float
) -> None:
    config = dataclasses.replace(CONFIG, epochs=3, label_smoothing=smoothing)
    model = make_tiny_model(tmp_path / "model", "qwen3")
    data = data_file(tmp_path, kind)
    spec = RunSpec(
        model=model,
        data=data,
        run_dir=tmp_path / "run",
        config=config,
        engine="trl",
        precision="float64",
    )
    probe = engines.Probe()
    result = engines.run(spec, probe=probe)
    rows = TokenRows.open(data, batch_size=2, max_seq_len=32)
    pairs = [(rows[at]["input_ids"], rows[at]["labels"]) for at in range(len(rows))]
    total = result.total_steps
    wanted = reference.naive_training(
        model,
        pairs,
        lambda epoch: rows.batches(
            np.array(reference.epoch_order(rows.order_count, config.seed, epoch))
        ),
        [reference.learning_rate(config, step, total) for step in range(total)],
        config,
        torch.float64,
    )
    losses = [record.loss for record in result.history]
    norms = [record.grad_norm for record in result.history]
    np.testing.assert_allclose(losses, wanted["loss"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(norms, wanted["grad_norm"], rtol=1e-12)
    for name, value in wanted["gradients"].items():
        assert reference.relative_l2(probe.gradients[name], value) < 1e-12
    for name, value in wanted["weights"].items():
        np.testing.assert_allclose(probe.weights[name], value, rtol=0, atol=1e-11)


def test_order_and_rates_follow_their_written_definition() -> None:
    for count, seed, epoch in ((1, 0, 0), (10, 42, 0), (1000, 7, 3), (5, 2**64 - 1, 1)):
        config = dataclasses.replace(CONFIG, seed=seed)
        assert epoch_order(count, config, epoch).tolist() == reference.epoch_order(
            count, seed, epoch
        )
    for step in range(120):
        wanted = reference.learning_rate(CONFIG, step, 100)
        assert learning_rate(CONFIG, step, 100) == pytest.approx(wanted, rel=1e-15)


def run_spec(folder: Path, engine: str, name: str, **settings: object) -> RunSpec:
    config = dataclasses.replace(CONFIG, epochs=4, checkpoint_interval=3, **settings)
    return RunSpec(
        model=folder / "model",
        data=folder / "train.bin",
        run_dir=folder / name,
        config=config,
        engine=engine,
        precision="float32",
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    small_model(tmp_path, "llama_gqa_untied")
    data_file(tmp_path, "rows")
    return tmp_path


class StopAfter(Observer):
    """Asks for a stop after so many updates."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def on_step(self, record: object) -> None:
        self.left -= 1

    def stop_requested(self) -> bool:
        return self.left <= 0


def weights_of(checkpoint: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return dict(load_file(checkpoint / "model.safetensors"))


@pytest.mark.parametrize("first", ["native", "trl"])
@pytest.mark.parametrize("second", ["native", "trl"])
def test_a_checkpoint_of_either_engine_resumes_on_either(
    made: Path, first: str, second: str
) -> None:
    whole = engines.run(run_spec(made, first, "whole", max_checkpoints=0))
    part = made / "whole" / "checkpoint-6"
    spec = run_spec(made, second, "resumed").replace(resume=str(part))
    resumed = engines.run(spec)
    assert resumed.history[0].step == 7
    assert resumed.total_steps == whole.total_steps
    assert resumed.total_tokens == whole.total_tokens
    for before, after in zip(whole.history[6:], resumed.history, strict=True):
        assert before.step == after.step
        assert before.learning_rate == after.learning_rate
        assert abs(before.loss - after.loss) < 5e-6
    left, right = weights_of(whole.checkpoints[-1]), weights_of(resumed.checkpoints[-1])
    for name, value in left.items():
        if first == second:
            assert np.array_equal(value, right[name]), name
        else:
            np.testing.assert_allclose(value, right[name], rtol=0, atol=5e-6)


def test_the_folders_have_the_same_form(made: Path) -> None:
    for engine in ("native", "trl"):
        engines.run(run_spec(made, engine, engine))
    native, trl = made / "native", made / "trl"
    assert sorted(p.name for p in native.glob("checkpoint-*")) == sorted(
        p.name for p in trl.glob("checkpoint-*")
    )
    last = max(native.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])).name
    for name in ("config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json"):
        assert (native / last / name).is_file(), name
        assert (trl / last / name).is_file(), name
    states = [json.loads((p / last / "trainer_state.json").read_text()) for p in (native, trl)]
    assert set(states[0]) == set(states[1])
    ours = [state["stateful_callbacks"]["abi_train"] for state in states]
    assert set(ours[0]["state"]) == set(ours[1]["state"])
    assert ours[0]["identity"] == ours[1]["identity"]
    assert [row["step"] for row in states[0]["log_history"]] == [
        row["step"] for row in states[1]["log_history"]
    ]


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_transformers_opens_a_checkpoint(made: Path, engine: str) -> None:
    from transformers import AutoModelForCausalLM, TrainerState

    result = engines.run(run_spec(made, engine, engine, max_steps=2))
    assert result.checkpoint is not None
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint, dtype=torch.float32)
    for name, value in weights_of(result.checkpoint).items():
        assert np.array_equal(model.state_dict()[name].numpy(), value)
    state = TrainerState.load_from_json(str(result.checkpoint / "trainer_state.json"))
    assert state.global_step == 2


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_evaluation_stops_early_and_keeps_the_best(made: Path, engine: str) -> None:
    write_rows(made / "eval.bin", [12, 20, 7], vocab=VOCAB, seed=5)
    spec = run_spec(
        made,
        engine,
        engine,
        eval_interval=1,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=100.0,
    ).replace(eval_data=made / "eval.bin")
    result = engines.run(spec)
    assert result.stop_reason == "early_stopped"
    assert result.early_stopped
    assert result.total_steps == 3
    assert result.best_step == 1
    assert (made / engine / "checkpoint-1").is_dir()


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_run_folder_is_exported_with_the_weights_it_ended_with(made: Path, engine: str) -> None:
    write_rows(made / "eval.bin", [12, 20, 7], vocab=VOCAB, seed=5)
    spec = run_spec(
        made,
        engine,
        engine,
        eval_interval=1,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=100.0,
        export_gguf_path=str(made / "at-end.gguf"),
    ).replace(eval_data=made / "eval.bin")
    result = engines.run(spec)
    best, newest = made / engine / "checkpoint-1", made / engine / "checkpoint-3"
    assert (result.model_folder, result.checkpoint) == (best, newest)
    assert export_gguf(made / engine, made / "later.gguf", name="abi-llama").source == best
    assert (made / "at-end.gguf").read_bytes() == (made / "later.gguf").read_bytes()
    assert export_gguf(newest, made / "other.gguf").source == newest
    # With more patience the same run goes on, and then its newest weights are meant.
    patient = dataclasses.replace(spec.config, early_stopping_patience=9, max_steps=4)
    on = engines.run(spec.replace(config=patient, resume="latest"))
    assert on.stop_reason == "completed"
    assert export_gguf(made / engine, made / "on.gguf").source == made / engine / "checkpoint-4"


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("model.bin", r"must end in \.gguf"),
        ("folder.gguf", "that is a folder"),
        ("train.bin/model.gguf", "train.bin is not a folder"),
        ("new/model.gguf", "brings no tokenizer.json"),
    ],
)
def test_an_export_that_cannot_work_is_refused_before_training(
    made: Path, engine: str, target: str, said: str
) -> None:
    (made / "folder.gguf").mkdir()
    (made / "model" / "tokenizer.json").unlink(missing_ok=True)
    before = sorted(path.name for path in made.iterdir())
    spec = run_spec(made, engine, engine, export_gguf_path=str(made / target))
    with pytest.raises(ConfigError, match=f"export_gguf_path is .*{said}"):
        engines.run(spec)
    assert sorted(path.name for path in made.iterdir()) == before


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_run_that_stopped_early_has_stopped(made: Path, engine: str) -> None:
    write_rows(made / "eval.bin", [12, 20, 7], vocab=VOCAB, seed=5)
    spec = run_spec(
        made,
        engine,
        engine,
        eval_interval=1,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=100.0,
    ).replace(eval_data=made / "eval.bin")
    first = engines.run(spec)
    again = engines.run(spec.replace(resume="latest"))
    assert again.history == []
    assert (again.stop_reason, again.early_stopped) == ("early_stopped", True)
    assert (again.best_step, again.model_folder) == (first.best_step, first.model_folder)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_an_evaluation_left_out_by_a_stop_is_made_up_for(made: Path, engine: str) -> None:
    write_rows(made / "eval.bin", [12, 20, 7], vocab=VOCAB, seed=5)
    spec = run_spec(made, engine, engine, eval_interval=2, max_steps=4)
    spec = spec.replace(eval_data=made / "eval.bin")
    whole = engines.run(spec)
    # The native engine saves at once when asked to stop.
    stopped = engines.run(spec.replace(run_dir=made / "part", engine="native"), StopAfter(2))
    assert stopped.evaluations == []
    on = engines.run(spec.replace(run_dir=made / "part", resume="latest"))
    assert [e.step for e in on.evaluations] == [2, 4]
    for left, right in zip(on.evaluations, whole.evaluations, strict=True):
        assert abs(left.loss - right.loss) < 5e-6
        assert (left.epoch, left.tokens) == (right.epoch, right.tokens)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_bf16_is_recorded_and_resumed_to_the_bit(made: Path, engine: str) -> None:
    spec = run_spec(made, engine, "bf16", max_steps=6, log_interval=1).replace(precision="bf16")
    result = engines.run(spec)
    log = [json.loads(line) for line in (made / "bf16" / "log.jsonl").read_text().splitlines()]
    assert (log[0]["event"], log[0]["precision"]) == ("start", "bf16")
    assert RunSpec.load(made / "bf16" / "run.json").precision == "bf16"
    resumed = engines.run(
        spec.replace(run_dir=made / "on", resume=str(made / "bf16" / "checkpoint-3"))
    )
    left, right = weights_of(result.checkpoints[-1]), weights_of(resumed.checkpoints[-1])
    for name, value in left.items():
        assert value.dtype == np.float32
        assert np.array_equal(value, right[name]), name
    # The configuration's own word means the same, and it is another computation than float32.
    config = dataclasses.replace(spec.config, mixed_precision=True)
    worded = engines.run(spec.replace(run_dir=made / "word", precision="auto", config=config))
    assert [r.loss for r in worded.history] == [r.loss for r in result.history]
    full = engines.run(spec.replace(run_dir=made / "full", precision="float32"))
    differences = [abs(a.loss - b.loss) for a, b in zip(full.history, result.history, strict=True)]
    assert 0 < max(differences) < 0.02


def test_both_logs_have_the_same_lines(made: Path) -> None:
    write_rows(made / "eval.bin", [12, 20, 7], vocab=VOCAB, seed=5)
    found = {}
    for engine in ("native", "trl"):
        spec = run_spec(made, engine, engine, eval_interval=4, max_steps=5, log_interval=2)
        engines.run(spec.replace(eval_data=made / "eval.bin"))
        lines = (made / engine / "log.jsonl").read_text().splitlines()
        found[engine] = [json.loads(line) for line in lines]
    assert [list(row) for row in found["native"]] == [list(row) for row in found["trl"]]
    same = ("event", "step", "learning_rate", "tokens", "eval_tokens", "total_steps", "precision")
    for left, right in zip(*found.values(), strict=True):
        assert [left.get(key) for key in same] == [right.get(key) for key in same]


def test_evaluations_agree(made: Path) -> None:
    write_rows(made / "eval.bin", [12, 20, 7, 30, 3], vocab=VOCAB, seed=5)
    found = []
    for engine in ("native", "trl"):
        spec = run_spec(made, engine, engine, eval_interval=4, max_steps=8)
        found.append(engines.run(spec.replace(eval_data=made / "eval.bin")).evaluations)
    assert [e.step for e in found[0]] == [e.step for e in found[1]] == [4, 8]
    for left, right in zip(*found, strict=True):
        assert abs(left.loss - right.loss) < 5e-6
        assert (left.accuracy, left.tokens) == (right.accuracy, right.tokens)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_stop_finishes_the_update_and_saves(made: Path, engine: str) -> None:
    result = engines.run(run_spec(made, engine, engine), StopAfter(2))
    assert result.stop_reason == "interrupted"
    assert result.total_steps == 2
    assert result.checkpoint == made / engine / "checkpoint-2"


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_the_report_names_what_was_saved_and_no_damaged_checkpoint(made: Path, engine: str) -> None:
    spec = run_spec(made, engine, engine, max_steps=6, max_checkpoints=1)
    engines.run(spec.replace(config=dataclasses.replace(spec.config, max_checkpoints=0)))
    for name in ("model.safetensors", "optimizer.safetensors"):
        with (made / engine / "checkpoint-6" / name).open("r+b") as file:
            file.truncate(200)
    shorter = dataclasses.replace(spec.config, max_steps=4)
    on = engines.run(spec.replace(config=shorter, resume="latest"))
    assert on.checkpoint == made / engine / "checkpoint-4"
    assert [path.name for path in on.checkpoints] == ["checkpoint-4", "checkpoint-6"]
    nothing_left = engines.run(spec.replace(config=shorter, resume=str(on.checkpoint)))
    assert (nothing_left.history, nothing_left.checkpoint) == ([], on.checkpoint)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_foreign_id_is_refused_before_training(made: Path, engine: str) -> None:
    write_stream(made / "train2.bin", tokens=500, vocab=5000)
    spec = run_spec(made, engine, engine).replace(data=made / "train2.bin")
    with pytest.raises(DataError, match="token"):
        engines.run(spec)


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("name", ["data", "eval_data"])
def test_a_stream_that_makes_no_batch_is_refused(made: Path, engine: str, name: str) -> None:
    write_stream(made / "short.bin", tokens=2 * 32, vocab=VOCAB)
    spec = run_spec(made, engine, engine).replace(**{name: made / "short.bin"})
    with pytest.raises(DataError, match="64 tokens"):
        engines.run(spec)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_rows_longer_than_the_model_knows_are_refused(made: Path, engine: str) -> None:
    with pytest.raises(ConfigError, match=r"max_seq_len is 100000.*max_position_embeddings"):
        engines.run(run_spec(made, engine, engine, max_seq_len=100000))


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_another_batch_size_cannot_resume(made: Path, engine: str) -> None:
    result = engines.run(run_spec(made, engine, engine, max_steps=2))
    spec = run_spec(made, engine, "other", batch_size=3).replace(resume=str(result.checkpoint))
    with pytest.raises(CheckpointError, match="batch_size was 2"):
        engines.run(spec)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_run_folder_in_use_is_refused(made: Path, engine: str) -> None:
    with folders.run_lock(made / engine), pytest.raises(FileAccessError, match="run"):
        engines.run(run_spec(made, engine, engine, max_steps=1))


def test_both_engines_start_from_the_same_gguf(made: Path) -> None:
    export_gguf(made / "model", made / "m.gguf", dtype="f32")
    spec = run_spec(made, "native", "unused").replace(model=made / "m.gguf", precision="auto")
    result = crosscheck(spec, steps=5)
    assert result.ok, result.fault
