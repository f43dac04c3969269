"""What a plan says beside what a run then does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import make_tokenizer

from abi_train import LlmTrainingConfig, RunSpec, engines
from abi_train.adapters import LoraConfig
from abi_train.checkpoint import list_checkpoints
from abi_train.cli import main
from abi_train.dataset import TokenizedWriter
from abi_train.errors import ConfigError, EngineError
from abi_train.export.handover import hand_over
from abi_train.plan import Plan, hardware, native_memory, plan
from abi_train.plan.model_facts import facts_of
from abi_train.preference import DpoConfig
from abi_train.tokenizer import Tokenizer

GIB = 2**30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's configuration, its tokenizer, rows, held-out rows and pairs."""
    folder = tmp_path_factory.mktemp("plan")
    make_tokenizer(folder / "tokenizer")
    with Tokenizer.load(folder / "tokenizer") as tokenizer:
        size = tokenizer.vocab_size
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": size,
                "hidden_size": 64,
                "intermediate_size": 160,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 128,
                "tie_word_embeddings": True,
            }
        )
    )
    rng = np.random.default_rng(11)

    def rows(name: str, count: int) -> None:
        with TokenizedWriter(folder / name, vocab_size=size) as writer:
            for _ in range(count):
                length = int(rng.integers(5, 40))
                writer.append(rng.integers(0, size, length), np.arange(length) > 3)
            writer.finish()

    rows("train.bin", 50)
    rows("eval.bin", 9)
    with TokenizedWriter(folder / "pairs.bin", vocab_size=size, preference=True) as writer:
        for _ in range(12):
            prompt = rng.integers(0, size, 8)
            for _ in range(2):
                answer = rng.integers(0, size, int(rng.integers(3, 20)))
                mask = np.arange(prompt.size + answer.size) >= prompt.size
                writer.append(np.concatenate([prompt, answer]), mask)
        writer.finish()
    return folder


def spec_of(place: Path, run: Path, **changes: Any) -> RunSpec:
    config = LlmTrainingConfig(
        epochs=2,
        batch_size=3,
        max_seq_len=32,
        grad_accum_steps=2,
        eval_interval=5,
        checkpoint_interval=7,
        log_interval=2,
        early_stopping=False,
        threads=2,
    )
    values: dict[str, Any] = {
        "model": place / "config.json",
        "data": place / "train.bin",
        "eval_data": place / "eval.bin",
        "tokenizer": place / "tokenizer",
        "run_dir": run,
        "config": config,
    }
    return RunSpec(**{**values, **changes})


@pytest.mark.parametrize("kind", ["full", "sgd", "lora", "dpo"])
def test_updates_tokens_and_the_bytes_of_every_file_are_those_of_the_run(
    place: Path, tmp_path: Path, kind: str
) -> None:
    spec = spec_of(place, tmp_path / "run")
    spec = spec.replace(
        config=dataclasses.replace(spec.config, export_gguf_path=str(tmp_path / "out.gguf"))
    )
    if kind == "sgd":
        spec = spec.replace(config=dataclasses.replace(spec.config, optimizer="sgd"))
    if kind in ("lora", "dpo"):
        spec = spec.replace(method="lora", lora=LoraConfig(r=4))
    if kind == "dpo":
        spec = spec.replace(
            objective="dpo", dpo=DpoConfig(), data=place / "pairs.bin", eval_data=None
        )
    (phase,) = plan(spec).phases
    result = engines.run(spec)
    assert phase.updates == result.total_steps
    assert phase.tokens == result.total_tokens
    made = list_checkpoints(tmp_path / "run")
    assert phase.disk.checkpoints == len(made)
    there = {file.name: file.stat().st_size for file in made[-1].iterdir()}
    state = there.pop("trainer_state.json")
    assert dict(phase.disk.files) == there
    assert phase.disk.state_bytes == pytest.approx(state, rel=0.1)
    assert phase.disk.gguf_bytes == (tmp_path / "out.gguf").stat().st_size, phase.disk.gguf_note


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_bytes_of_an_export_in_a_mix_are_those_of_the_file(
    place: Path, tmp_path: Path, method: str
) -> None:
    spec = spec_of(place, tmp_path / "abbey", model=place / "config.json")
    spec = spec.replace(config=dataclasses.replace(spec.config, max_steps=1))
    if method == "lora":
        spec = spec.replace(method="lora", lora=LoraConfig(r=4))
    (phase,) = plan(spec, gguf="Q4_K_M").phases
    engines.run(spec)
    made = hand_over(tmp_path / "abbey", mix="q4_k_m", verify=False, card=False)
    assert (phase.disk.export_mix, phase.disk.export_bytes) == ("q4_k_m", made.size_bytes)
    assert phase.disk.to_dict()["export_bytes"] == made.size_bytes
    assert phase.disk.total_bytes == phase.disk.while_saving_bytes + made.size_bytes
    with pytest.raises(ConfigError, match="gguf is 'q4_k_l'; it must be one of f32, f16"):
        plan(spec, gguf="q4_k_l")


def test_a_measurement_brings_memory_and_time(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, tmp_path / "run")
    (phase,) = plan(spec, measure=True, seconds=0.2).phases
    told = phase.measurement
    assert told is not None and told.updates >= 4
    assert phase.memory.measured is not None
    assert phase.memory.total == phase.memory.measured
    assert phase.memory.counted == pytest.approx(phase.memory.measured, rel=0.25)
    assert phase.time is not None and phase.time.parts["updates"] > 0
    assert set(phase.time.parts) == {"start", "updates", "evaluations", "checkpoints", "end"}
    assert not (tmp_path / "run").exists()
    assert phase.updates is not None and phase.time.seconds > phase.time.parts["start"]


def test_gpt_oss_is_sized_from_its_configuration() -> None:
    facts = facts_of("hub:openai/gpt-oss-20b")
    assert facts.parameters == 20_914_757_184
    assert facts.active == pytest.approx(3.6e9, rel=0.01)
    assert facts.stored_bytes == pytest.approx(13.76e9, rel=0.001)
    assert facts_of("hub:openai/gpt-oss-120b").parameters == pytest.approx(116.83e9, rel=1e-3)


def gpt_oss(place: Path, run: Path, **settings: Any) -> Plan:
    spec = spec_of(place, run, model=Path("hub:openai/gpt-oss-20b"), engine="trl", tokenizer=None)
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
        target_parameters=("7.mlp.experts.gate_up_proj", "7.mlp.experts.down_proj"),
    )
    config = dataclasses.replace(spec.config, recompute_activations=True, **settings)
    return plan(spec.replace(method="lora", lora=lora, precision="bf16", config=config))


def test_the_machines_of_the_guide_are_too_small_for_gpt_oss(place: Path, tmp_path: Path) -> None:
    made = gpt_oss(place, tmp_path / "run")
    (phase,) = made.phases
    weights = phase.memories[-1].parts["weights"]
    assert weights == 2 * 20_914_757_184  # bf16: MXFP4 cannot be trained
    for name in ("l4x1", "a10g-large", "l40sx1", "t4-small"):
        assert not made.on(name).fits, name
    assert "GiB" in (made.on("a10g-large").why or "")
    for name in ("a100-large", "h200"):
        assert made.on(name).fits, made.on(name).why
    assert not made.on("cpu-basic").fits
    assert made.cheapest is not None and made.cheapest.flavor.name == "a100-large"
    timeout = made.jobs_timeout_seconds("a100-large")
    seconds = made.on("a100-large").seconds
    assert timeout is not None and seconds is not None and timeout > 2 * seconds
    assert not any("no gpt_oss" in note for note in phase.notes)
    native = next(memory for memory in phase.memories if memory.engine == "native")
    assert native.device == "cpu" and 13.5e9 < native.parts["base file"] < 14e9


def test_gpt_oss_fits_natively_where_its_file_does(tmp_path: Path, capsys: Any) -> None:
    """Its four bits are mapped; what no file can give back is small."""
    with pytest.raises(SystemExit) as left:
        main(["plan", "abbey-gpt-oss-20b-native", "--offline", "--no-measure", "--json"])
    assert left.value.code in (0, 1)  # 1 where even that is more than this machine has now
    told = json.loads(capsys.readouterr().out)
    for phase in told["phases"]:
        memory = phase["memory"][0]
        assert (memory["engine"], memory["device"]) == ("native", "cpu")
        assert memory["parts"]["base file"] == pytest.approx(13.76e9, rel=1e-3)
        assert memory["total_bytes"] - memory["from_files_bytes"] < 1.5e9
        assert memory["total_bytes"] < 20e9
        assert phase["parameters_trained"] == 24 * 16 * (2 * (4096 + 2880) + 2 * (512 + 2880))
        trl = next(one for one in phase["memory"] if one["engine"] == "trl")
        assert trl["parts"]["weights"] == 2 * 20_914_757_184


def test_all_linear_on_a_model_that_is_not_here(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, tmp_path / "run", model=Path("hub:openai/gpt-oss-20b"), tokenizer=None)
    lora = LoraConfig(r=16, target_modules="all-linear")  # type: ignore[arg-type]
    (phase,) = plan(spec.replace(method="lora", lora=lora)).phases
    assert phase.trained == 24 * 16 * (2 * (4096 + 2880) + 2 * (512 + 2880))


def test_experts_of_one_layer_and_of_all_are_counted(place: Path, tmp_path: Path) -> None:
    (phase,) = gpt_oss(place, tmp_path / "run").phases
    attention = 24 * 16 * (2 * (4096 + 2880) + 2 * (512 + 2880))
    experts = 16 * 32 * ((2 * 2880 + 2880) + (2880 + 2880))
    assert phase.trained == attention + experts


def test_what_does_not_fit_says_what_would(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = plan(spec_of(place, tmp_path / "run")).phases[0].memory
    room = whole.counted - whole.from_files - 1000
    monkeypatch.setattr(native_memory, "available_bytes", lambda: room)
    recipe = spec_of(place, tmp_path / "run").save(tmp_path / "recipe.yaml")
    with pytest.raises(SystemExit) as left:
        main(["plan", str(recipe), "--offline"])
    assert left.value.code == 1
    said = capsys.readouterr().out
    assert "not measured: it does not fit" in said
    assert "DOES NOT FIT" in said
    assert "--set recompute_activations=true" in said and "which fits" in said
    assert "--method lora" in said
    assert "--flavor cpu-basic" in said


def test_a_plan_on_the_command_line_is_one_object(place: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = spec_of(place, tmp_path / "run").save(tmp_path / "recipe.yaml")
    with pytest.raises(SystemExit) as left:
        main(["plan", str(recipe), "--offline", "--no-measure", "--json", "--set", "epochs=1"])
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    (phase,) = told["phases"]
    assert phase["updates"] == phase["updates_per_epoch"]
    assert phase["parameters"] == phase["parameters_trained"]
    assert {memory["engine"] for memory in phase["memory"]} == {"native", "trl"}
    assert told["prices"]["live"] is False and "table of" in told["prices"]["source"]
    assert phase["time"] is None


@pytest.mark.parametrize("device", ["A100", "a100-large", "h200"])
def test_a_gpu_is_planned_from_a_table_that_says_so(
    place: Path, tmp_path: Path, device: str
) -> None:
    (phase,) = plan(spec_of(place, tmp_path / "run", engine="trl"), device=device).phases
    assert phase.memory.device in ("A100", "H200")
    assert phase.memory.fits and phase.precision == "bf16"
    assert phase.time is not None and "maker's" in phase.time.source and phase.time.sure == 2


def test_an_unknown_device_and_an_unknown_flavour_are_named(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, tmp_path / "run", engine="trl")
    with pytest.raises(ConfigError, match="did you mean a100-large"):
        plan(spec, device="a100-larg")
    with pytest.raises(ConfigError, match="did you mean h200x2"):
        plan(spec).jobs_timeout_seconds("h200x2x")


def test_phases_are_planned_on_the_model_of_the_first(place: Path, tmp_path: Path) -> None:
    first = spec_of(place, tmp_path / "run" / "one", method="lora", lora=LoraConfig(r=4))
    second = first.replace(
        run_dir=tmp_path / "run" / "two",
        data=tmp_path / "not-there.bin",
        lora=LoraConfig(r=4, adapter=tmp_path / "run" / "one"),
    )
    recipe = SimpleNamespace(
        name="two-phases",
        phases=(
            SimpleNamespace(name="one", spec=first, after=None),
            SimpleNamespace(name="two", spec=second, after="one"),
        ),
    )
    made = plan(recipe)
    assert [phase.name for phase in made.phases] == ["one", "two"]
    assert made.phases[1].updates is None and "not there yet" in made.phases[1].notes[0]
    assert made.phases[0].trained == made.phases[1].trained
    asked = []

    def prepare(phase: Any) -> tuple[Path, Path | None, str | None]:
        asked.append(phase.name)
        return place / "train.bin", None, "made for the plan"

    made = plan(recipe, prepare=prepare)
    assert asked == ["two"] and made.phases[1].updates == made.phases[0].updates
    assert made.phases[1].notes == ("made for the plan",)
    assert made.disk_bytes > made.phases[0].disk.total_bytes


def test_phases_that_begin_with_what_is_not_there_yet_are_measured(
    place: Path, tmp_path: Path
) -> None:
    config = json.loads((place / "config.json").read_text())
    run = tmp_path / "run"
    first = spec_of(place, run / "one", model=run / "config.json")
    second = first.replace(model=run / "one", method="lora", lora=LoraConfig(r=4))
    recipe = SimpleNamespace(
        name="two-phases",
        phases=(
            SimpleNamespace(name="one", spec=first, after=None, model_config=config),
            SimpleNamespace(name="two", spec=second, after="one", model_config=None),
        ),
    )
    made = plan(recipe, measure=True, seconds=0.0)
    assert all(phase.measurement is not None for phase in made.phases), made.phases[1].notes
    assert "base file" in made.phases[1].memory.parts
    assert made.seconds is not None and not run.exists()


def test_public_data_is_guessed_where_it_cannot_be_fetched(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "abbey-gpt-oss-20b", "--device", "a100-large", "--offline", "--json"])
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert [phase["name"] for phase in told["phases"]] == ["emotional", "reasoning", "calibration"]
    assert all("guessed" in phase["notes"][0] for phase in told["phases"])
    assert told["phases"][1]["updates"] == 2 * -(-round(7473 * 0.95) // (2 * 16))
    fits = {item["flavor"]: item["fits"] for item in told["flavors"]}
    assert fits["a100-large"] and not fits["l40sx1"] and not fits["a10g-large"]


def test_a_run_that_would_fail_says_why_with_its_own_names(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, tmp_path / "run", data=place / "pairs.bin", eval_data=None)
    with pytest.raises(EngineError, match=r"would fail: .*plan0?.*pairs\.bin holds pairs"):
        plan(spec, measure=True, seconds=0.0)


def test_missing_data_and_models_are_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.bin does not exist"):
        plan(spec_of(place, tmp_path, data=place / "nothing.bin"))
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        plan(spec_of(place, tmp_path, model=place / "nowhere"))
    with pytest.raises(ConfigError, match="someone/unknown is not on this machine"):
        plan(spec_of(place, tmp_path, model=Path("hub:someone/unknown")))


def test_prices_are_read_whatever_their_unit() -> None:
    listed = SimpleNamespace(
        name="x",
        unit_label="minute",
        unit_cost_usd=0.05,
        ram="142 GB",
        ephemeral_storage="1.5 TB",
        accelerator=SimpleNamespace(model="Nvidia A100", quantity="4", vram="320 GB"),
    )
    flavor = hardware._of_hub(listed)
    assert flavor is not None and flavor.gpu is not None
    assert flavor.dollars_per_hour == pytest.approx(3.0)
    assert (flavor.gpus, flavor.gpu.memory_bytes, flavor.disk_bytes) == (4, 80 * GIB, 1500 * 10**9)
    listed.unit_label = "fortnight"
    assert hardware._of_hub(listed) is None
