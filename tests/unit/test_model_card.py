"""Where data is from, from its rows to the model card and to the run that begins from the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from published_sets import PREFERENCES, published, write_jsonl
from tiny_models import make_tiny_model

from abi_train import RunSpec, engines, prepare
from abi_train.adapters import merge_adapter
from abi_train.config import LlmTrainingConfig
from abi_train.data import provenance
from abi_train.data.info import describe
from abi_train.data.provenance import (
    Origin,
    allows_commercial_use,
    combine,
    contamination,
    of_data,
    of_model,
    of_rows,
    side_file,
)
from abi_train.data.sets import fetch
from abi_train.errors import ConfigError, DataError, FileAccessError, FormatError
from abi_train.export import export_gguf
from abi_train.export.model_card import Part, carry, license_of, model_card, write_model_card
from abi_train.progress import Observer

CONFIG = LlmTrainingConfig(
    epochs=1,
    max_steps=2,
    batch_size=2,
    grad_accum_steps=1,
    max_seq_len=64,
    warmup_steps=0,
    threads=1,
    early_stopping=False,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and token files of three sets and of pairs."""
    folder = tmp_path_factory.mktemp("made")
    make_tiny_model(folder / "model", "llama_tied")
    for name, config, stem in (
        ("empathetic-dialogues", "default", "feelings"),
        ("gsm8k", "main", "sums"),
        ("math", "algebra", "math"),
        ("truthful-qa", "generation", "truth"),
    ):
        rows = folder / f"{stem}.jsonl"
        fetch(name, rows, config=config, source=published(folder, name, config))
        prepare([rows], folder / "model", folder / f"{stem}.bin")
    write_jsonl(folder / "own.jsonl", [{"text": "Mine alone."}, {"text": "And this."}])
    prepare([folder / "own.jsonl"], folder / "model", folder / "own.bin", license_note="own")
    prepare([folder / "own.jsonl"], folder / "model", folder / "unsaid.bin")
    return folder


def spec_of(made: Path, data: str, run: Path, **values: Any) -> RunSpec:
    return RunSpec(
        **{"model": made / "model", "data": made / f"{data}.bin", "config": CONFIG, **values},
        run_dir=run,
    )


class Notes(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_note(self, text: str) -> None:
        self.texts.append(text)


def manifest(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return values


def test_the_side_file_goes_into_the_manifest(made: Path) -> None:
    feelings, sums, own = (manifest(made / f"{n}.bin") for n in ("feelings", "sums", "own"))
    assert feelings["license"] == "CC-BY-NC-4.0" and feelings["commercial_use"] is False
    assert "non-commercial use" in feelings["notes"][0]
    assert feelings["datasets"] == ["facebook/empathetic_dialogues"]
    assert feelings["source"] == "EmpatheticDialogues (from a file), default, train"
    assert sums["license"] == "MIT" and sums["commercial_use"] is True
    assert own["license"] == "own" and own["commercial_use"] is True
    assert manifest(made / "unsaid.bin").get("commercial_use") is None
    assert manifest(made / "math.bin")["license"] is None
    shown = describe(made / "feelings.bin", verify=True)
    assert shown["commercial use"] == "not allowed" and "CC BY-NC" in shown["notes"]


def test_of_several_sources_the_most_restrictive_counts(made: Path, tmp_path: Path) -> None:
    def mixed(*stems: str, **notes: str) -> dict[str, Any]:
        sources = [made / f"{stem}.jsonl" for stem in stems]
        prepare(sources, made / "model", tmp_path / "mixed.bin", **notes)
        return manifest(tmp_path / "mixed.bin")

    both = mixed("sums", "feelings")
    assert both["license"] == "MIT AND CC-BY-NC-4.0" and both["commercial_use"] is False
    assert both["datasets"] == ["openai/gsm8k", "facebook/empathetic_dialogues"]
    unsaid = mixed("sums", "own")
    assert unsaid.get("commercial_use") is None and unsaid["license"] == "MIT"
    said = mixed("sums", "own", license_note="Apache-2.0", source_note="two files")
    assert said["commercial_use"] is True and said["license"] == "MIT AND Apache-2.0"
    assert said["source"] == "two files"
    assert mixed("math", "sums")["commercial_use"] is None


@pytest.mark.parametrize(
    ("license", "use"),
    [
        ("MIT", True),
        ("apache-2.0", True),
        ("CC BY 4.0", True),
        ("CC-BY-NC-SA-4.0", False),
        ("MIT AND CC-BY-NC-4.0", False),
        ("MIT AND Strange-1.0", None),
        ("own", True),
        ("", None),
    ],
)
def test_a_licence_is_known_by_its_name(license: str, use: bool | None) -> None:
    assert allows_commercial_use(license) is use


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"license": 3}', "license is not text"),
        ('{"commercial_use": "yes"}', "commercial_use is not true, false or null"),
        ('{"notes": "one"}', "notes is not a list of texts"),
    ],
)
def test_a_damaged_side_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "x"}])
    side_file(rows).write_text(text)
    with pytest.raises(DataError, match=rf"rows.jsonl.source.json: .*{said}"):
        of_rows([rows])


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("feelings", r"data .*feelings.bin is under CC-BY-NC-4.0 \(EmpatheticDialogues"),
        ("math", "an unknown licence .*--license NAME"),
        ("unsaid", "an unknown licence .*--license NAME"),
    ],
)
def test_a_commercial_run_refuses_before_the_first_update(
    made: Path, tmp_path: Path, engine: str, data: str, said: str
) -> None:
    spec = spec_of(made, data, tmp_path / "run", commercial=True, engine=engine)
    with pytest.raises(ConfigError, match=said):
        engines.run(spec)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"eval_data .* is under"):
        engines.run(spec.replace(data=made / "own.bin", eval_data=spec.data))


@pytest.mark.parametrize("data", ["sums", "own"])
def test_a_commercial_run_takes_what_it_may(made: Path, tmp_path: Path, data: str) -> None:
    spec = spec_of(made, data, tmp_path / "run", commercial=True)
    assert engines.run(spec).total_steps == 2
    assert RunSpec.load(tmp_path / "run" / "run.json").commercial


def test_commercial_is_true_or_false_in_a_recipe(made: Path, tmp_path: Path) -> None:
    values = {"model": "m", "data": "d", "run_dir": "r"}
    assert RunSpec.from_dict({**values, "commercial": True}).commercial
    assert "commercial" not in RunSpec.from_dict(values).to_dict()
    with pytest.raises(ConfigError, match='commercial is "yes"; it must be true or false'):
        RunSpec.from_dict({**values, "commercial": "yes"})


def test_a_run_leaves_a_card_that_the_hub_reads(made: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    told = Notes()
    spec = spec_of(made, "feelings", tmp_path / "kind", eval_data=made / "sums.bin")
    engines.run(spec, told)
    assert any("non-commercial use (CC BY-NC 4.0)" in text for text in told.texts)
    log = (tmp_path / "kind" / "log.jsonl").read_text(encoding="utf-8")
    assert "CC BY-NC 4.0" in log
    card = ModelCard.load(tmp_path / "kind" / "README.md")
    head = card.data.to_dict()
    assert head["base_model"] == "model" and head["library_name"] == "transformers"
    assert head["license"] == "cc-by-nc-4.0"
    assert head["datasets"] == ["facebook/empathetic_dialogues"]
    assert head["tags"] == ["abi_train", "sft", "non-commercial"]
    assert "# kind\n" in card.text
    assert "| feelings.bin | 3 |" in card.text and "sums.bin (evaluation only)" in card.text
    assert "EmpatheticDialogues is for non-commercial use" in card.text
    assert "| `learning_rate` |" in card.text and "| updates | 2 |" in card.text
    assert str(tmp_path) not in card.content and str(made) not in card.content
    again = (tmp_path / "kind" / "README.md").read_bytes()
    assert write_model_card(tmp_path / "kind").read_bytes() == again


def test_a_card_of_a_run_of_pairs_on_test_data_warns(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "dpo"
    spec = spec_of(made, "truth", run, objective="dpo", method="lora")
    told = Notes()
    engines.run(spec, told)
    assert any("do not report those scores" in text for text in told.texts)
    text = model_card(run, results={"truthfulqa_mc1": 0.75, "gsm8k": 0.1})
    head = provenance.front_matter(run / "README.md")
    assert head["library_name"] == "peft" and head["license"] == "apache-2.0"
    assert "trained-on-test:truthfulqa" in head["tags"]
    assert "| truthfulqa_mc1 (trained on its test data) | 0.7500 |" in text
    assert "| gsm8k | 0.1000 |" in text
    assert "what it has seen, not what it can do" in text
    assert "| truth.bin | 1 pair |" in text and "| rewards/accuracies at the end |" in text
    adapter = run / "checkpoint-2"
    warned = contamination(adapter, "truthfulqa_mc2")
    assert warned is not None and "TruthfulQA" in warned
    assert contamination(adapter, "gsm8k") is None
    assert contamination(made / "model", "truthfulqa") is None


def test_a_run_that_begins_from_a_restricted_one_is_restricted(made: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    engines.run(spec_of(made, "feelings", first))
    weights = first / "checkpoint-2"
    second = spec_of(made, "sums", tmp_path / "second", model=weights, commercial=True)
    with pytest.raises(ConfigError, match=r"model .*checkpoint-2 is under CC-BY-NC-4.0"):
        engines.run(second)
    engines.run(second.replace(commercial=False))
    head = provenance.front_matter(tmp_path / "second" / "README.md")
    assert head["license"] == "cc-by-nc-4.0" and head["base_model"] == "first"
    assert head["datasets"] == ["openai/gsm8k", "facebook/empathetic_dialogues"]
    # The recipe tells as much when the card is gone, and a third run knows of both.
    whole = of_model(tmp_path / "second" / "checkpoint-2")
    (tmp_path / "second" / "README.md").unlink()
    (first / "README.md").unlink()
    assert of_model(tmp_path / "second" / "checkpoint-2").license == whole.license
    assert whole.commercial_use is False
    # A copy of the weights keeps what is known when it is told to.
    copy = tmp_path / "copy"
    copy.mkdir()
    assert carry([tmp_path / "second" / "checkpoint-2"], copy) == copy / "README.md"
    assert of_model(copy).commercial_use is False
    assert carry([made / "model"], tmp_path) is None


def test_an_exported_file_has_the_card_of_its_run(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    engines.run(spec_of(made, "feelings", run))
    left = (run / "README.md").read_bytes()
    assert export_gguf(run, run / "model.gguf").card == run / "README.md"
    away = export_gguf(run / "checkpoint-2", tmp_path / "out" / "abbey.gguf")
    assert away.card == tmp_path / "out" / "abbey.md" and away.to_dict()["card"] == str(away.card)
    assert away.card.read_bytes() == left == (run / "README.md").read_bytes()
    assert of_model(away.path).commercial_use is False
    (tmp_path / "out" / "abbey.md").write_text("mine")
    assert export_gguf(run, tmp_path / "out" / "abbey.gguf").card is None
    assert (tmp_path / "out" / "abbey.md").read_text() == "mine"
    assert export_gguf(made / "model", tmp_path / "out" / "plain.gguf").card is None


def test_a_merged_model_keeps_what_is_known_of_its_adapter(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "lora"
    engines.run(spec_of(made, "feelings", run, method="lora"))
    merged = merge_adapter(made / "model", run / "checkpoint-2", tmp_path / "merged")
    assert of_model(merged).license == "CC-BY-NC-4.0"
    head = provenance.front_matter(merged / "README.md")
    assert head["license"] == "cc-by-nc-4.0"
    assert head["datasets"] == ["facebook/empathetic_dialogues"]
    away = export_gguf(merged, tmp_path / "merged.gguf")
    assert of_model(away.path).commercial_use is False
    with pytest.raises(ConfigError, match=r"model .*merged\.gguf is under CC-BY-NC-4\.0"):
        engines.run(spec_of(made, "sums", tmp_path / "x", model=away.path, commercial=True))


def test_the_command_line_refuses_too(made: Path, tmp_path: Path) -> None:
    words = ["train", "--model", made / "model", "--data", made / "feelings.bin"]
    words += ["--run-dir", tmp_path / "run", "--commercial"]
    done = subprocess.run(
        [sys.executable, "-m", "abi_train.cli", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "is under CC-BY-NC-4.0" in done.stderr and "set commercial to false" in done.stderr


def test_an_adapter_to_go_on_from_counts_too(made: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    engines.run(spec_of(made, "feelings", first, method="lora"))
    spec = spec_of(made, "sums", tmp_path / "second", method="lora", commercial=True)
    assert spec.lora is not None
    lora = spec.lora.replace(adapter=first / "checkpoint-2")
    with pytest.raises(ConfigError, match=r"lora.adapter .*checkpoint-2 is under CC-BY-NC-4.0"):
        engines.run(spec.replace(lora=lora))


def test_a_card_of_somebody_else_is_left_alone_and_its_licence_counts(
    made: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "README.md").write_text("# Mine\n")
    engines.run(spec_of(made, "sums", run))
    assert (run / "README.md").read_text() == "# Mine\n"
    with pytest.raises(FileAccessError, match="was not written by abi_train"):
        write_model_card(run)
    assert write_model_card(run, tmp_path / "card.md", name="Ab\nbey").is_file()
    assert "# Ab bey\n" in (tmp_path / "card.md").read_text()
    with pytest.raises(FormatError, match="not a run folder"):
        write_model_card(made)
    base = tmp_path / "base"
    make_tiny_model(base, "llama_tied")
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Base\n")
    with pytest.raises(ConfigError, match=r"model .*base is under cc-by-nc-4\.0"):
        engines.run(spec_of(made, "sums", tmp_path / "other", model=base, commercial=True))


@pytest.mark.parametrize(
    ("head", "license"),
    [
        ("license: [mit, cc-by-nc-4.0]", "mit AND cc-by-nc-4.0"),
        ("license: {a: b}", None),
        ("license: 2024-13-45", None),
        ("license: " + "[" * 5000, None),
        ("a: &a [x]\nb: [*a, *a]\nlicense: mit", "mit"),
        ("abi_train: {data: [3, {license: mit}]}", "mit"),
        ("abi_train: 7", None),
        ("!!python/object/apply:os.system [ls]", None),
    ],
)
def test_a_strange_head_of_a_card_is_read_or_passed_over(
    tmp_path: Path, head: str, license: str | None
) -> None:
    (tmp_path / "README.md").write_bytes(f"---\n{head}\n---\n\xff".encode("latin-1"))
    assert of_model(tmp_path).license == license


def test_what_a_manifest_cannot_hold_is_refused_before_it_is_written(
    made: Path, tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "x y"}])
    side_file(rows).write_text(json.dumps({"notes": ["n" * 600_000]}))
    with pytest.raises(DataError, match="shorten their notes"):
        prepare([rows], made / "model", tmp_path / "x.bin")
    assert not (tmp_path / "x.bin").exists()


def test_runs_that_began_from_each_other_end(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one / "checkpoint-1").mkdir(parents=True)
        values = {"model": f"../{other}/checkpoint-1", "data": "none.bin"}
        (tmp_path / one / "run.json").write_text(json.dumps(values))
    assert of_model(tmp_path / "a" / "checkpoint-1") == Origin()


@pytest.mark.parametrize(
    ("licenses", "head"),
    [
        (["MIT"], {"license": "mit"}),
        (["MIT", "CC-BY-NC-4.0"], {"license": "cc-by-nc-4.0"}),
        (["MIT", None], {"license": "unknown"}),
        (["MIT", "Strange-1.0"], {"license": "other", "license_name": "Strange-1.0"}),
        (["own"], {"license": "other", "license_name": "own"}),
        (
            ["CC-BY-NC-SA-4.0", "CC-BY-NC-4.0"],
            {"license": "other", "license_name": "CC-BY-NC-SA-4.0 AND CC-BY-NC-4.0"},
        ),
    ],
)
def test_the_licence_of_the_head(licenses: list[str | None], head: dict[str, str]) -> None:
    parts = [
        Part(
            name="x",
            origin=Origin(license=one, commercial_use=one and allows_commercial_use(one)),
        )
        for one in licenses
    ]
    assert license_of(parts) == head


def test_a_part_that_says_nothing_makes_the_whole_unknown() -> None:
    said = Origin(license="MIT", commercial_use=True, notes=("a",))
    assert combine([said, Origin()]).commercial_use is None
    assert combine([said, said]) == Origin(
        license="MIT", commercial_use=True, notes=("a",), source=None
    )
    assert of_data(Path("nothing.bin")) == Origin()


def test_a_set_of_files_is_as_restricted_as_its_worst_file(made: Path, tmp_path: Path) -> None:
    shards = []
    for stem in ("sums", "feelings"):
        values = manifest(made / f"{stem}.bin")
        (tmp_path / f"{stem}.json").write_text(json.dumps(values), encoding="utf-8")
        shards.append({"file": f"{stem}.bin", "count": values["count"], "rows": values["rows"]})
    whole = {"schema": "abi_train/token-bin/2", "count": 1, "shards": shards, "license": "MIT"}
    (tmp_path / "all.json").write_text(json.dumps(whole), encoding="utf-8")
    found = of_data(tmp_path / "all.bin")
    assert found.commercial_use is False and found == of_data(tmp_path / "all.json")
    assert found.license == "MIT AND CC-BY-NC-4.0" and len(found.datasets) == 2
    (tmp_path / "feelings.json").unlink()
    assert of_data(tmp_path / "all.bin").commercial_use is None
    (tmp_path / "all.json").write_text("{", encoding="utf-8")
    assert of_data(tmp_path / "all.bin") == Origin()


def test_pairs_of_ones_own_carry_what_is_said_of_them(made: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "mine.jsonl", PREFERENCES)
    fetch("preferences", tmp_path / "rows.jsonl", source=file, license_note="CC-BY-4.0")
    prepare([tmp_path / "rows.jsonl"], made / "model", tmp_path / "pairs.bin")
    found = of_data(tmp_path / "pairs.bin")
    assert found.commercial_use is True and found.license == "CC-BY-4.0"
