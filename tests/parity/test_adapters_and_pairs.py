"""LoRA and DPO: the engines against each other, and the TRL engine against plain PyTorch."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference_adapters as naive
import torch
from pair_files import random_pairs, write_pairs
from tiny_models import make_tiny_model
from token_files import write_rows

from abi_train import engines
from abi_train.adapters import TARGETS, LoraConfig, merge_adapter
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.data.rows import PreferenceRows, TokenRows
from abi_train.errors import AbiTrainError, CheckpointError, ConfigError, DataError
from abi_train.export import export_gguf
from abi_train.preference import LOSS_TYPES, METRICS, DpoConfig
from abi_train.progress import Observer
from abi_train.runspec import RunSpec

VOCAB = 300
LENGTHS = [5, 9, 40, 17, 2, 33, 8, 21, 12, 30, 6, 7, 11]
CONFIG = LlmTrainingConfig(
    epochs=20,
    batch_size=2,
    grad_accum_steps=3,
    max_seq_len=32,
    learning_rate=2e-3,
    warmup_steps=5,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
)
EVERYTHING = LoraConfig(
    r=4,
    lora_alpha=6,
    target_modules=TARGETS,
    use_rslora=True,
    rank_pattern={"layers.1.self_attn.q_proj": 2, "lm_head": 3},
    alpha_pattern={"down_proj": 5, "embed_tokens": 2},
)

BELOW_THE_HEAD = EVERYTHING.replace(target_modules=TARGETS[:-1], rank_pattern={"o_proj": 2})
"""TRL's DPO and ours take log probabilities from the head's own weights."""


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_tiny_model(tmp_path / "model", "llama_gqa_untied")
    write_rows(tmp_path / "train.bin", LENGTHS, vocab=VOCAB)
    write_pairs(tmp_path / "pairs.bin", random_pairs(9, vocab=VOCAB))
    return tmp_path


def random_adapter(folder: Path, model: Path, lora: LoraConfig, *, seed: int = 0) -> Path:
    """A PEFT folder, written by PEFT, whose A and B are both random."""
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(base, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def spec_of(made: Path, engine: str, name: str, **values: Any) -> RunSpec:
    pairs = values.get("objective") == "dpo"
    values = {"precision": "float32", "config": CONFIG, **values}
    return RunSpec(
        model=made / "model",
        data=made / ("pairs.bin" if pairs else "train.bin"),
        run_dir=made / name,
        engine=engine,
        **values,
    )


def rates_of(config: LlmTrainingConfig, total: int) -> list[float]:
    return [reference.learning_rate(config, step, total) for step in range(total)]


def assert_same_training(probe: engines.Probe, result: Any, wanted: dict[str, Any]) -> None:
    losses = [record.loss for record in result.history]
    norms = [record.grad_norm for record in result.history]
    np.testing.assert_allclose(losses, wanted["loss"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(norms, wanted["grad_norm"], rtol=1e-10)
    assert set(probe.gradients) == set(wanted["gradients"])
    for name, value in wanted["gradients"].items():
        assert reference.relative_l2(probe.gradients[name], value) < 1e-10, name
    for name, value in wanted["weights"].items():
        np.testing.assert_allclose(probe.weights[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_lora_through_peft_is_a_plain_pytorch_loop(made: Path) -> None:
    folder = random_adapter(made / "adapter", made / "model", EVERYTHING)
    config = dataclasses.replace(CONFIG, epochs=3)
    spec = spec_of(
        made,
        "trl",
        "run",
        method="lora",
        lora=LoraConfig(adapter=folder),
        config=config,
        precision="float64",
    )
    probe = engines.Probe()
    result = engines.run(spec, probe=probe)
    rows = TokenRows.open(made / "train.bin", batch_size=2, max_seq_len=32)
    pairs = [(rows[at]["input_ids"], rows[at]["labels"]) for at in range(len(rows))]
    adapted = naive.Adapted(made / "model", EVERYTHING, folder)
    wanted = naive.train(
        adapted,
        lambda epoch: rows.batches(
            np.array(reference.epoch_order(rows.order_count, config.seed, epoch))
        ),
        rates_of(config, result.total_steps),
        config,
        naive.sft_loss(adapted, pairs),
    )
    assert_same_training(probe, result, wanted)


@pytest.mark.parametrize("loss", [*LOSS_TYPES, "mix"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_dpo_through_trl_is_a_plain_pytorch_loop(made: Path, method: str, loss: str) -> None:
    dpo = DpoConfig(
        beta=0.2,
        loss_type=("sigmoid", "sft") if loss == "mix" else (loss,),
        loss_weights=(1.0, 0.3) if loss == "mix" else None,
        label_smoothing=0.1 if loss == "robust" else 0.0,
    )
    folder, lora = None, None
    if method == "lora":
        folder = random_adapter(made / "adapter", made / "model", EVERYTHING)
        lora = LoraConfig(adapter=folder)
    config = dataclasses.replace(CONFIG, epochs=2, learning_rate=2e-4)
    spec = spec_of(
        made,
        "trl",
        "run",
        method=method,
        objective="dpo",
        lora=lora,
        dpo=dpo,
        config=config,
        precision="float64",
    )
    probe = engines.Probe()
    result = engines.run(spec, probe=probe)
    rows = PreferenceRows.open(made / "pairs.bin", batch_size=2, max_seq_len=32)
    pairs = []
    for at in range(len(rows)):
        row = rows[at]
        room = 32 - len(row["prompt_ids"])
        answers = [row[key][:room] for key in ("chosen_ids", "rejected_ids")]
        pairs.append((row["prompt_ids"], *answers))
    adapted = naive.Adapted(made / "model", EVERYTHING if folder else None, folder)
    start = {name: value.detach().clone() for name, value in adapted.values.items()}
    seen: list[dict[str, float]] = []
    wanted = naive.train(
        adapted,
        lambda epoch: rows.batches(
            np.array(reference.epoch_order(rows.order_count, config.seed, epoch))
        ),
        [
            reference.learning_rate(config, step, result.total_steps)
            for step in range(result.total_steps)
        ],
        config,
        naive.dpo_loss(adapted, pairs, dpo, lambda ids: adapted.log_probs(start, ids)[0], seen),
    )
    assert_same_training(probe, result, wanted)
    margins = [record.metrics["rewards/margins"] for record in result.history]
    np.testing.assert_allclose(margins, [row["margins"] for row in seen], rtol=0, atol=1e-11)


# ---- the engines against each other ----


@pytest.mark.parametrize("shape", ["llama_tied", "llama_gqa_untied", "qwen2", "qwen3"])
def test_both_engines_agree_on_lora_for_thirty_updates(tmp_path: Path, shape: str) -> None:
    make_tiny_model(tmp_path / "model", shape)
    write_rows(tmp_path / "train.bin", LENGTHS, vocab=VOCAB)
    result = crosscheck(spec_of(tmp_path, "native", "run", method="lora"), steps=30)
    assert len(result.steps) == 30
    assert result.ok, result.fault
    assert result.gradients and all(".lora_" in tensor.name for tensor in result.gradients)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "lora",
    [
        EVERYTHING,
        LoraConfig(target_modules=("gate_proj", "up_proj", "down_proj"), r=2, seed=5),
        LoraConfig(target_modules=("embed_tokens", "lm_head"), lora_alpha=1),
        LoraConfig(lora_dropout=0.3),  # left out of a comparison, because it is random
    ],
)
def test_both_engines_agree_whatever_has_an_adapter(made: Path, lora: LoraConfig) -> None:
    result = crosscheck(spec_of(made, "native", "run", method="lora", lora=lora), steps=12)
    assert result.ok, result.fault


def test_both_engines_agree_on_lora_over_a_q8_0_base(made: Path) -> None:
    export_gguf(made / "model", made / "m.gguf", dtype="q8_0")
    spec = spec_of(made, "native", "run", method="lora").replace(model=made / "m.gguf")
    result = crosscheck(spec, steps=30)
    assert result.ok, result.fault


def test_both_engines_go_on_from_an_adapter_of_peft(made: Path) -> None:
    folder = random_adapter(made / "adapter", made / "model", EVERYTHING)
    lora = LoraConfig(adapter=folder)
    result = crosscheck(spec_of(made, "native", "run", method="lora", lora=lora), steps=12)
    assert result.ok, result.fault


@pytest.mark.parametrize("method", ["full", "lora"])
def test_both_engines_agree_on_dpo_for_thirty_updates(made: Path, method: str) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=2e-4)
    spec = spec_of(made, "native", "run", method=method, objective="dpo", config=config)
    result = crosscheck(spec, steps=30)
    assert len(result.steps) == 30
    assert result.ok, result.fault
    worst = result.worst() if result.in_float64 is None else result.in_float64.worst()
    assert worst["loss"] <= 1e-6
    assert worst["metrics"] <= 1e-6
    assert result.steps[0].loss[0] == pytest.approx(np.log(2), abs=1e-6)
    assert set(METRICS) <= set(result.steps[5].metrics)


@pytest.mark.parametrize(
    "dpo",
    [
        DpoConfig(loss_type=("hinge",), beta=0.3),
        DpoConfig(loss_type=("ipo",)),
        DpoConfig(loss_type=("robust",), label_smoothing=0.2),
        DpoConfig(loss_type=("sigmoid_norm",), beta=2.0),
        DpoConfig(loss_type=("apo_zero",)),
        DpoConfig(loss_type=("sft",)),
        DpoConfig(loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.25)),
        DpoConfig(precompute_ref_log_probs=True),
    ],
)
def test_both_engines_agree_on_every_preference_loss(made: Path, dpo: DpoConfig) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=2e-4)
    spec = spec_of(made, "native", "run", method="lora", objective="dpo", dpo=dpo, config=config)
    result = crosscheck(spec, steps=10)
    assert result.ok, result.fault


@pytest.mark.parametrize("reference_kind", ["adapter", "model"])
def test_both_engines_compare_with_the_same_reference(made: Path, reference_kind: str) -> None:
    folder = random_adapter(made / "adapter", made / "model", BELOW_THE_HEAD)
    dpo = None
    if reference_kind == "model":
        dpo = DpoConfig(ref_model=make_tiny_model(made / "other", "llama_gqa_untied", seed=4))
    config = dataclasses.replace(CONFIG, learning_rate=2e-4)
    spec = spec_of(
        made,
        "native",
        "run",
        method="lora",
        objective="dpo",
        lora=LoraConfig(adapter=folder),
        dpo=dpo,
        config=config,
    )
    result = crosscheck(spec, steps=10)
    assert result.ok, result.fault
    if reference_kind == "adapter":  # it starts as its own copy
        assert result.steps[0].loss[0] == pytest.approx(np.log(2), abs=1e-6)


# ---- one checkpoint between them ----

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "dpo": {"method": "lora", "objective": "dpo"},
    "dpo-full": {"objective": "dpo"},
    "dpo-after": {"method": "lora", "objective": "dpo", "lora": "adapter"},
}


def kind_of(made: Path, kind: str, engine: str, name: str, **settings: Any) -> RunSpec:
    values = dict(KINDS[kind])
    if "lora" in values:
        folder = made / "adapter"
        if not folder.exists():
            random_adapter(folder, made / "model", BELOW_THE_HEAD)
        values["lora"] = LoraConfig(adapter=folder)
    settings = {"epochs": 4, "checkpoint_interval": 3, "learning_rate": 2e-4, **settings}
    return spec_of(made, engine, name, config=dataclasses.replace(CONFIG, **settings), **values)


def tensors_of(checkpoint: Path, name: str | None = None) -> dict[str, Any]:
    from safetensors.numpy import load_file

    if name is None:
        is_adapter = (checkpoint / "adapter_model.safetensors").is_file()
        name = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    return dict(load_file(checkpoint / name))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("first", ["native", "trl"])
@pytest.mark.parametrize("second", ["native", "trl"])
def test_a_checkpoint_of_either_engine_resumes_on_either(
    made: Path, kind: str, first: str, second: str
) -> None:
    whole = engines.run(kind_of(made, kind, first, "whole", max_checkpoints=0))
    part = made / "whole" / "checkpoint-3"
    resumed = engines.run(kind_of(made, kind, second, "resumed").replace(resume=str(part)))
    assert resumed.history[0].step == 4
    assert resumed.total_steps == whole.total_steps
    assert resumed.total_tokens == whole.total_tokens
    for before, after in zip(whole.history[3:], resumed.history, strict=True):
        assert before.learning_rate == after.learning_rate
        assert abs(before.loss - after.loss) < 5e-6
        for name, value in before.metrics.items():
            assert abs(value - after.metrics[name]) < 5e-6 * max(1.0, abs(value)), name
    for file in (None, "optimizer.safetensors"):
        left, right = (tensors_of(run.checkpoints[-1], file) for run in (whole, resumed))
        assert set(left) == set(right)
        for name, value in left.items():
            if first == second:
                assert np.array_equal(value, right[name]), name
            else:
                np.testing.assert_allclose(value, right[name], rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", ["lora", "dpo"])
def test_the_folders_have_the_same_form(made: Path, kind: str) -> None:
    found = {}
    for engine in ("native", "trl"):
        result = engines.run(kind_of(made, kind, engine, engine, max_steps=2))
        assert result.checkpoint is not None
        state = json.loads((result.checkpoint / "trainer_state.json").read_text())
        found[engine] = (result.checkpoint, state["stateful_callbacks"]["abi_train"])
    (native, ours), (trl, theirs) = found["native"], found["trl"]
    for name in ("adapter_config.json", "config.json", "tokenizer.json"):
        assert (native / name).is_file() and (trl / name).is_file(), name
    assert not (native / "model.safetensors").exists()
    assert not (trl / "model.safetensors").exists()
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        left, right = tensors_of(native, name), tensors_of(trl, name)
        assert {key: (v.shape, v.dtype) for key, v in left.items()} == {
            key: (v.shape, v.dtype) for key, v in right.items()
        }
    assert ours["identity"] == theirs["identity"]
    for folder in (native, trl):
        listed = json.loads((folder / "checksums.json").read_text())["files"]
        assert set(listed) == {path.name for path in folder.iterdir()} - {"checksums.json"}


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_peft_reads_an_adapter_and_gives_the_same_answers(made: Path, engine: str) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    spec = spec_of(
        made,
        engine,
        engine,
        method="lora",
        lora=EVERYTHING,
        config=dataclasses.replace(CONFIG, max_steps=5),
    )
    result = engines.run(spec)
    assert result.checkpoint is not None
    base = AutoModelForCausalLM.from_pretrained(made / "model", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(base, str(result.checkpoint)).eval()
    merged = merge_adapter(made / "model", result.checkpoint, made / "merged")
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        left, right = adapted(input_ids=ids).logits, whole(input_ids=ids).logits
    torch.testing.assert_close(left, right, rtol=0, atol=2e-5)
    # What PEFT computes with the adapter is what the engine's last forward pass had learned.
    plain = AutoModelForCausalLM.from_pretrained(made / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        assert (plain(input_ids=ids).logits - left).abs().max() > 1e-3


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_dropout_goes_on_where_it_was(made: Path, engine: str) -> None:
    lora = LoraConfig(lora_dropout=0.25)
    config = dataclasses.replace(CONFIG, epochs=4, checkpoint_interval=3, max_checkpoints=0)
    spec = spec_of(made, engine, "whole", method="lora", lora=lora, config=config)
    whole = engines.run(spec)
    part = str(made / "whole" / "checkpoint-3")
    resumed = engines.run(spec.replace(run_dir=made / "on", resume=part))
    assert [r.loss for r in whole.history[3:]] == [r.loss for r in resumed.history]
    left, right = tensors_of(whole.checkpoints[-1]), tensors_of(resumed.checkpoints[-1])
    assert all(np.array_equal(value, right[name]) for name, value in left.items())
    dry = engines.run(spec.replace(run_dir=made / "dry", lora=LoraConfig()))
    assert [r.loss for r in dry.history] != [r.loss for r in whole.history]


class Notes(Observer):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(
    ("kind", "recorded"),
    [
        ("dpo", "adapter_off"),
        ("dpo-full", "starting_model"),
        ("dpo-after", "starting_adapter"),
    ],
)
def test_the_reference_is_said_and_recorded(
    made: Path, engine: str, kind: str, recorded: str
) -> None:
    notes = Notes()
    result = engines.run(kind_of(made, kind, engine, "run", max_steps=1), notes)
    assert [text for text in notes.said if text.startswith("reference: ")]
    first = json.loads((made / "run" / "log.jsonl").read_text().splitlines()[0])
    assert (first["event"], first["reference"]) == ("start", recorded)
    assert result.checkpoint is not None
    state = json.loads((result.checkpoint / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["abi_train"]["identity"]["reference"] == recorded


@pytest.mark.parametrize("kind", ["dpo", "dpo-full"])
def test_evaluations_of_pairs_agree_and_both_logs_have_the_same_lines(
    made: Path, kind: str
) -> None:
    write_pairs(made / "eval.bin", random_pairs(5, vocab=VOCAB, seed=3))
    found, lines = [], []
    for engine in ("native", "trl"):
        spec = kind_of(made, kind, engine, engine, eval_interval=2, max_steps=4, log_interval=1)
        result = engines.run(spec.replace(eval_data=made / "eval.bin"))
        found.append(result.evaluations)
        text = (made / engine / "log.jsonl").read_text()
        lines.append([json.loads(line) for line in text.splitlines()])
    assert [e.step for e in found[0]] == [e.step for e in found[1]] == [2, 4]
    for left, right in zip(*found, strict=True):
        assert abs(left.loss - right.loss) < 2e-6
        assert left.tokens == right.tokens
        for name, value in left.metrics.items():
            assert abs(value - right.metrics[name]) < 2e-6 * max(1.0, abs(value)), name
    assert [list(row) for row in lines[0]] == [list(row) for row in lines[1]]
    step = next(row for row in lines[0] if row["event"] == "step")
    assert set(METRICS) <= set(step) and "perplexity" not in step


# ---- phase after phase ----


def test_three_phases_hand_one_adapter_on_between_engines(made: Path) -> None:
    """SFT on one engine, SFT on the other, DPO on the first; each goes on from the one before."""
    config = dataclasses.replace(CONFIG, epochs=2, learning_rate=1e-3)
    first = engines.run(spec_of(made, "trl", "one", method="lora", config=config))
    going_on = LoraConfig(adapter=first.checkpoint)
    second = engines.run(
        spec_of(made, "native", "two", method="lora", lora=going_on, config=config)
    )
    third = engines.run(
        spec_of(
            made,
            "trl",
            "three",
            method="lora",
            objective="dpo",
            lora=LoraConfig(adapter=second.checkpoint),
            config=config,
        )
    )
    # An adapter that goes on begins where the last one ended: the reference is itself.
    assert third.history[0].loss == pytest.approx(np.log(2), abs=1e-6)
    assert second.history[-1].loss < first.history[0].loss
    assert third.history[-1].loss < third.history[0].loss


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_merged_model_with_a_new_adapter_begins_where_the_adapter_ended(
    made: Path, engine: str
) -> None:
    folder = random_adapter(made / "adapter", made / "model", EVERYTHING)
    config = dataclasses.replace(CONFIG, max_steps=1)
    on = engines.run(
        spec_of(made, engine, "on", method="lora", lora=LoraConfig(adapter=folder), config=config)
    )
    merged = merge_adapter(made / "model", folder, made / "merged")
    spec = spec_of(made, engine, "new", method="lora", config=config)
    new = engines.run(spec.replace(model=merged))
    assert new.history[0].loss == pytest.approx(on.history[0].loss, abs=2e-6)


# ---- what is refused before the first update ----


def broken_adapter(made: Path, change: str) -> LoraConfig:
    from safetensors.numpy import load_file, save_file

    lora = LoraConfig(r=4)
    folder = random_adapter(made / "adapter", made / "model", lora)
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, document = dict(load_file(weights)), json.loads(settings.read_text())
    key = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
    if change == "missing":
        del tensors[key]
    elif change == "left over":
        tensors[key.replace("k_proj", "down_proj")] = tensors[key]
    elif change == "shape":
        tensors[key] = tensors[key][:-1].copy()
    elif change == "nan":
        tensors[key][0, 0] = np.nan
    elif change == "unknown":
        document["frobnicate"] = 3
    elif change == "rank":
        document["r"] = 5
    elif change == "dora":
        document["use_dora"] = True
    save_file(tensors, weights, metadata={"format": "pt"})
    settings.write_text(json.dumps(document))
    return LoraConfig(adapter=folder)


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "layers.1.self_attn.k_proj.lora_B"),
        ("left over", "layers.1.self_attn.down_proj.lora_B"),
        ("shape", "layers.1.self_attn.k_proj.lora_B"),
        ("nan", "layers.1.self_attn.k_proj.lora_B"),
        ("unknown", "frobnicate"),
        ("rank", "lora_A"),
        ("dora", "use_dora"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    made: Path, engine: str, change: str, said: str
) -> None:
    spec = spec_of(made, engine, "run", method="lora", lora=broken_adapter(made, change))
    with pytest.raises(AbiTrainError, match=said):
        engines.run(spec)
    assert not list((made / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_an_adapter_for_another_base_is_refused(made: Path, engine: str) -> None:
    other = make_tiny_model(made / "other", "llama_gqa_untied", hidden_size=32)
    folder = random_adapter(made / "adapter", other, LoraConfig(r=4))
    spec = spec_of(made, engine, "run", method="lora", lora=LoraConfig(adapter=folder))
    with pytest.raises(AbiTrainError, match=r"lora_[AB].*"):
        engines.run(spec)


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(
    "lora", [LoraConfig(r=33), LoraConfig(rank_pattern={"k_proj": 33})], ids=["r", "pattern"]
)
def test_a_rank_above_the_narrower_side_is_refused(
    made: Path, engine: str, lora: LoraConfig
) -> None:
    spec = spec_of(made, engine, "run", method="lora", lora=lora)  # k_proj is 64 x 32
    with pytest.raises(ConfigError, match="33"):
        engines.run(spec)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_reference_with_another_vocabulary_is_refused(made: Path, engine: str) -> None:
    other = make_tiny_model(made / "other", "llama_gqa_untied", vocab_size=500)
    spec = spec_of(
        made, engine, "run", objective="dpo", dpo=DpoConfig(ref_model=other), method="lora"
    )
    with pytest.raises(AbiTrainError, match="500"):
        engines.run(spec)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_pairs_and_texts_are_not_taken_for_each_other(made: Path, engine: str) -> None:
    spec = spec_of(made, engine, "run", method="lora", objective="dpo")
    with pytest.raises(DataError, match="pairs"):
        engines.run(spec.replace(data=made / "train.bin"))
    with pytest.raises(DataError, match="pairs"):
        engines.run(spec_of(made, engine, "run").replace(data=made / "pairs.bin"))


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("fault", ["same answers", "prompts too long", "odd rows", "two prompts"])
def test_what_is_no_pair_is_refused(made: Path, engine: str, fault: str) -> None:
    pairs = random_pairs(4, vocab=VOCAB)
    if fault == "same answers":
        pairs[2] = (pairs[2][0], pairs[2][1], pairs[2][1])
    elif fault == "prompts too long":
        pairs = [(prompt * 20, good, bad) for prompt, good, bad in pairs]
    write_pairs(made / "pairs.bin", pairs)
    if fault == "two prompts":
        ids = np.fromfile(made / "pairs.bin", dtype="<u4")
        ids[0] = (ids[0] + 1) % VOCAB
        ids.tofile(made / "pairs.bin")
    if fault == "odd rows":
        starts = np.fromfile(made / "pairs.idx", dtype="<u8")
        np.delete(starts, -2).tofile(made / "pairs.idx")
        manifest = json.loads((made / "pairs.json").read_text())
        manifest["rows"] = 7
        (made / "pairs.json").write_text(json.dumps(manifest))
    said = r"max_seq_len" if fault == "prompts too long" else r"pairs\.bin"
    with pytest.raises(DataError, match=said):
        engines.run(spec_of(made, engine, "run", method="lora", objective="dpo"))


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(
    ("before", "change", "said"),
    [
        ("lora", {"method": "full"}, "adapter|method"),
        ("full", {"method": "lora"}, "adapter|whole weights|method"),
        ("lora", {"lora": LoraConfig(r=4)}, r"lora|rank|r "),
        ("lora", {"lora": LoraConfig(lora_alpha=3)}, "lora|alpha|scale"),
        ("dpo", {"dpo": DpoConfig(beta=0.5)}, "beta"),
        ("dpo", {"dpo": DpoConfig(loss_type=("ipo",))}, "loss_type"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    made: Path, engine: str, before: str, change: dict[str, Any], said: str
) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1)
    kinds = {**KINDS, "full": {}}
    first = engines.run(spec_of(made, engine, "first", config=config, **kinds[before]))
    values = {**kinds[before], **change}
    spec = spec_of(made, engine, "second", config=config, **values)
    spec = spec.replace(data=made / ("pairs.bin" if "dpo" in before else "train.bin"))
    with pytest.raises((CheckpointError, ConfigError), match=said):
        engines.run(spec.replace(resume=str(first.checkpoint)))


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_an_adapter_of_another_base_does_not_resume(made: Path, engine: str) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1)
    first = engines.run(spec_of(made, engine, "first", method="lora", config=config))
    make_tiny_model(made / "other", "llama_gqa_untied", num_hidden_layers=3)
    spec = spec_of(made, engine, "second", method="lora", config=config)
    with pytest.raises(AbiTrainError, match=r"layers|another base"):
        engines.run(spec.replace(model=made / "other", resume=str(first.checkpoint)))


class StopAfter(Notes):
    """Asks for a stop after so many updates."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates = updates

    def on_step(self, record: object) -> None:
        self.updates -= 1

    def stop_requested(self) -> bool:
        return self.updates == 0


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("first", "then"), [("native", "native"), ("trl", "trl"), ("trl", "native")]
)
def test_a_run_goes_on_when_the_adapter_it_began_with_is_gone(
    made: Path, objective: str, first: str, then: str
) -> None:
    """What it needs is in the checkpoint, and what pairs are compared with in the run's folder."""
    import shutil

    folder = random_adapter(made / "adapter", made / "model", LoraConfig(r=4))
    config = dataclasses.replace(CONFIG, max_steps=4)
    spec = spec_of(
        made,
        first,
        "run",
        method="lora",
        objective=objective,
        lora=LoraConfig(adapter=folder),
        config=config,
    )
    whole = engines.run(spec.replace(run_dir=made / "whole"))
    begun = engines.run(spec, StopAfter(2))
    assert begun.stop_reason == "interrupted"
    shutil.rmtree(folder)
    notes = Notes()
    resumed = engines.run(spec.replace(engine=then, resume="latest"), notes)
    assert [record.step for record in resumed.history] == [3, 4]
    assert resumed.checkpoint is not None
    assert whole.checkpoint is not None
    name = "adapter_model.safetensors"
    left, right = tensors_of(whole.checkpoint, name), tensors_of(resumed.checkpoint, name)
    for key, value in left.items():
        close = 0 if first == then else 2e-6
        np.testing.assert_allclose(right[key], value, rtol=0, atol=close, err_msg=key)
    if objective == "dpo":
        assert (made / "run" / "starting_adapter" / name).is_file()
        shutil.rmtree(made / "run" / "starting_adapter")
        with pytest.raises(AbiTrainError, match=r"lora\.adapter: .*adapter does not exist"):
            engines.run(spec.replace(engine=then, resume=str(begun.checkpoint)))


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_an_adapter_named_by_patterns_is_gone_on_from(made: Path, engine: str) -> None:
    """PEFT keeps a regular expression as it is in the file."""
    folder = random_adapter(
        made / "adapter", made / "model", LoraConfig(r=4, target_modules=("q_proj", "v_proj"))
    )
    settings = folder / "adapter_config.json"
    plain = json.loads(settings.read_text())
    config = dataclasses.replace(CONFIG, max_steps=2)
    found = []
    for name, changes in (
        ("plain", {}),
        ("regex", {"target_modules": r".*self_attn\.(q|v)_proj"}),
        ("layers", {"layers_to_transform": [0, 1]}),
        (
            "left-out",
            {"target_modules": ["q_proj", "v_proj", "o_proj"], "exclude_modules": "o_proj"},
        ),
    ):
        settings.write_text(json.dumps({**plain, **changes}))
        lora = LoraConfig(adapter=folder)
        spec = spec_of(made, engine, name, method="lora", lora=lora, config=config)
        result = engines.run(spec)
        assert result.checkpoint is not None
        written = json.loads((result.checkpoint / "adapter_config.json").read_text())
        assert sorted(written["target_modules"]) == ["q_proj", "v_proj"]
        found.append([record.loss for record in result.history])
    assert all(losses == found[0] for losses in found[1:])


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_what_is_not_learned_from_is_told_once_and_recorded(
    made: Path, engine: str, objective: str
) -> None:
    if objective == "dpo":
        pairs = random_pairs(6, vocab=VOCAB, longest=5)
        pairs[2] = ([1] * 12, [2, 3], [4, 5])
        pairs[4] = ([1] * 6, [2] * 9, [4, 5])
        write_pairs(made / "pairs.bin", pairs)
        said = ["left out 1 of 6 pairs: within max_seq_len (12) there", "cut 1 of 12 answers at"]
        record = {"pairs_dropped": 1, "rows_cut": 1}
    else:
        write_rows(made / "train.bin", [1, 5, 40, 9], vocab=VOCAB)
        said = ["left out 1 of 4 rows: within max_seq_len (12) there is", "cut 1 of 4 rows at"]
        record = {"rows_dropped": 1, "rows_cut": 1}
    config = dataclasses.replace(CONFIG, max_steps=1, max_seq_len=12)
    notes = Notes()
    engines.run(spec_of(made, engine, "run", objective=objective, config=config), notes)
    told = [text for text in notes.said if "max_seq_len (12)" in text]
    assert len(told) == len(said)
    for text, words in zip(told, said, strict=True):
        assert words in text
    first = json.loads((made / "run" / "log.jsonl").read_text().splitlines()[0])
    assert {key: first[key] for key in record} == record


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_an_adapter_trained_on_other_numbers_is_told(
    made: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shapes agree, so nothing else would show it."""
    from abi_train.cli import main

    make_tiny_model(made / "other", "llama_gqa_untied", seed=5)
    config = dataclasses.replace(CONFIG, max_steps=1)
    first = engines.run(spec_of(made, engine, "first", method="lora", config=config))
    assert first.checkpoint is not None
    lora = LoraConfig(adapter=first.checkpoint)
    for model, told in (("model", False), ("other", True)):
        spec = spec_of(made, engine, f"on-{model}", method="lora", lora=lora, config=config)
        notes = Notes()
        engines.run(spec.replace(model=made / model), notes)
        assert any("a base with other numbers" in text for text in notes.said) == told
        options = ["--model", str(made / model), "--output", str(made / f"merged-{model}")]
        with pytest.raises(SystemExit):
            main(["merge", str(first.checkpoint), *options])
        assert ("a base with other numbers" in capsys.readouterr().err) == told


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("kind", ["lora", "dpo", "dpo-full"])
def test_mixed_precision_trains_adapters_and_pairs(made: Path, engine: str, kind: str) -> None:
    spec = kind_of(made, kind, engine, "run", max_steps=1)
    config = dataclasses.replace(spec.config, mixed_precision=True)
    result = engines.run(spec.replace(config=config, precision="auto"))
    assert result.total_steps == 1
