"""From a run to a file that answers: merged, quantised, compared, with Modelfile and card."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import make_tiny_model
from token_files import write_rows

from abi_train import _native, engines
from abi_train.adapters import merge_adapter
from abi_train.cli import main
from abi_train.config import LlmTrainingConfig
from abi_train.errors import (
    ConfigError,
    FileAccessError,
    FormatError,
    MissingFileError,
    NumericsError,
)
from abi_train.export import MIXES, making, model_folder
from abi_train.export.card_sections import with_sections, with_title
from abi_train.export.handover import hand_over, name_of, ollama_name
from abi_train.export.modelfile import ABBEY_SYSTEM
from abi_train.export.prompts import PROMPTS, TEXTS
from abi_train.export.verify import prompt_ids, verify
from abi_train.generate import Generator
from abi_train.runspec import RunSpec

CONFIG = LlmTrainingConfig(
    epochs=1,
    max_steps=2,
    batch_size=2,
    grad_accum_steps=1,
    max_seq_len=32,
    learning_rate=1e-2,
    warmup_steps=0,
    early_stopping=False,
    threads=1,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a run of each method on it."""
    folder = tmp_path_factory.mktemp("handover")
    make_tiny_model(folder / "model", "llama_tied")
    write_rows(folder / "train.bin", [9, 12, 20, 7], vocab=200)
    for method in ("full", "lora"):
        spec = RunSpec(
            model=folder / "model",
            data=folder / "train.bin",
            run_dir=folder / method,
            config=CONFIG,
            method=method,
        )
        engines.run(spec)
    return folder


def phased(made: Path, target: Path, *, name: str = "abbey-tiny") -> Path:
    """A phased run of two finished phases and one that is not."""
    for phase, run in (("first", "full"), ("second", "lora"), ("third", "full")):
        shutil.copytree(made / run, target / phase)
    scores = {"emotion": {"accuracy": 0.25}}
    checkpoint = "checkpoint-2"
    state = {
        "version": 1,
        "name": name,
        "before": {"emotion": {"accuracy": 0.125}},
        "phases": {
            "first": {"state": "finished", "checkpoint": f"first/{checkpoint}"},
            "second": {
                "state": "finished",
                "checkpoint": f"second/{checkpoint}",
                "result": {"loss": 1.5, "updates": 2},
                "scores": scores,
            },
            "third": {"state": "interrupted", "checkpoint": None},
        },
        "recipe": {"phases": [{"name": "second", "method": "lora", "objective": "sft"}]},
    }
    (target / "recipe.json").write_text(json.dumps(state))
    (target / "config.json").write_text("{}")  # what it began with
    return target


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_a_run_becomes_a_file_that_was_compared(made: Path, tmp_path: Path) -> None:
    told: list[str] = []
    got = hand_over(made / "full", tmp_path / "abbey.gguf", mix="Q4_K_M", tell=told.append)
    assert (got.mix, got.size_bytes) == ("q4_k_m", (tmp_path / "abbey.gguf").stat().st_size)
    assert got.sha256 == hashlib.sha256((tmp_path / "abbey.gguf").read_bytes()).hexdigest()
    found = got.verification
    assert found is not None and found.verdict == "pass" and found.exported.positions > 20
    assert (found.format.how, found.format.dtype) == ("copy", "f32")
    assert found.format.distance.relative < 1e-5 < found.exported.relative
    assert 0.0 < found.exported.largest_logit_difference < found.exported.logit_range
    assert len(found.continuations) == len(PROMPTS) + len(TEXTS)
    report = json.loads((tmp_path / "abbey.export.json").read_text())
    assert report["verdict"] == "pass"
    assert report["verification"]["exported"]["same_choice"] == found.exported.same_choice
    assert report["modelfile"] == str(tmp_path / "Modelfile")
    text = (tmp_path / "Modelfile").read_text()
    assert "TEMPLATE" in text and 'PARAMETER stop "<|im_end|>"' in text and "SYSTEM" not in text
    card = (tmp_path / "abbey.md").read_text()
    assert "## Exports" in card and "`abbey.gguf` | q4_k_m | " in card and "## Training" in card
    assert [line for line in told if "q4_k_m" in line] and "comparing" in told[-1]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"abbey.gguf", "abbey.export.json", "abbey.md", "Modelfile"}


def test_an_adapter_is_merged_on_the_way(made: Path, tmp_path: Path) -> None:
    got = hand_over(made / "lora", tmp_path / "a.gguf", mix="f32", keep_merged=tmp_path / "whole")
    assert got.adapter == made / "lora" / "checkpoint-2" and got.base == made / "model"
    found = got.verification
    assert found is not None and found.verdict == "pass" and found.format.how == "file"
    assert found.exported.relative < 1e-5
    merged = merge_adapter(made / "model", made / "lora" / "checkpoint-2", tmp_path / "again")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (merged, got.merged or "")]
    assert weights[0] == weights[1]
    base = hand_over(made / "model", tmp_path / "b.gguf", mix="f32", verify=False, card=False)
    with Generator.open(got.path) as one, Generator.open(base.path) as other:
        ids = prompt_ids(one.tokenizer, "Hello")
        assert float(np.abs(one.logits(ids) - other.logits(ids)).max()) > 1e-3
    assert base.verification is None and base.card is None


def test_an_adapter_on_random_weights_finds_them_again(made: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    shutil.copy(made / "model" / "config.json", config)
    spec = RunSpec(
        model=config,
        data=made / "train.bin",
        run_dir=tmp_path / "run",
        config=CONFIG,
        method="lora",
        tokenizer=made / "model",
    )
    engines.run(spec)
    got = hand_over(tmp_path / "run", mix="q8_0", verify=False)
    assert got.path == tmp_path / "run" / "run-q8_0.gguf"
    assert not list((tmp_path / "run").glob(".*-*"))


def test_of_a_phased_run_the_last_finished_phase_is_taken(made: Path, tmp_path: Path) -> None:
    run = phased(made, tmp_path / "abbey")
    assert model_folder(run) == run / "second" / "checkpoint-2"
    got = hand_over(run, mix="q8_0", name="abbey")
    assert got.path == run / "abbey-q8_0.gguf" and got.adapter == run / "second" / "checkpoint-2"
    text = (run / "Modelfile").read_text()
    assert ABBEY_SYSTEM in text
    assert "PARAMETER temperature 0.7\nPARAMETER top_p 0.9" in text
    card = (run / "README.md").read_text()
    assert "\n# abbey\n" in card and "| second | lora · sft | finished | 2 | 1.5 |" in card
    assert "| emotion: accuracy | 0.125 | 0.25 |" in card
    again = hand_over(run, mix="q4_0", name="abbey", system="Be brief.", verify=False)
    assert again.modelfile == run / "abbey-q4_0.Modelfile"
    assert 'SYSTEM "Be brief."' in again.modelfile.read_text()
    assert (run / "Modelfile").read_text() == text
    card = (run / "README.md").read_text()
    assert card.count("## Exports") == 1 and card.count("## Phases") == 1
    assert "`abbey-q8_0.gguf`" in card and "`abbey-q4_0.gguf` | q4_0" in card
    assert got.commands() == [
        f"ollama create abbey:q8_0 -f {run}/Modelfile",
        "ollama run abbey:q8_0",
        f"abi agent --model {run}/abbey-q8_0.gguf",
    ]
    (run / "recipe.json").write_text('{"phases": {"first": {"state": "failed"}}}')
    with pytest.raises(FormatError, match="no phase of this run is finished"):
        hand_over(run)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"mix": "q4_k_xl"}, ConfigError, "--gguf is 'q4_k_xl'; it must be one of f32"),
        ({"output": "x.bin"}, ConfigError, "must end in .gguf"),
        ({"source": "nowhere"}, MissingFileError, "no such folder"),
        ({"base": "model"}, ConfigError, "a base belongs to an adapter"),
        ({"keep_merged": "kept"}, ConfigError, "nothing to merge"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_nothing(
    made: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    values: dict[str, Any] = {"source": made / "full", "output": tmp_path / "x.gguf", **change}
    values = {
        k: tmp_path / v if k != "mix" and isinstance(v, str) else v for k, v in values.items()
    }
    source, output = values.pop("source"), values.pop("output")
    with pytest.raises(error, match=said):
        hand_over(source, output, **values)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_comparison_leaves_no_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise NumericsError("a logit is not a number")

    monkeypatch.setattr(making, "verify", fail)
    with pytest.raises(NumericsError):
        hand_over(made / "full", tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_something_else_is_found_out(made: Path, tmp_path: Path) -> None:
    for run in ("full", "model"):
        _native.export.gguf(model_folder(made / run), tmp_path / f"{run}.gguf", dtype="f32")
    found = verify(tmp_path / "full.gguf", made / "model", mix="f32", how="file")
    assert found.verdict == "fail" and found.exported.relative > 1e-2
    assert [one.kind for one in found.findings] == ["format", "noise"]
    same = verify(tmp_path / "model.gguf", made / "model", mix="f32", how="file")
    assert same.verdict == "pass" and not same.findings
    assert same.exported.same_choice == 1.0 and same.exported.divergence < 1e-9
    assert all(one.same == one.tokens and one.trained == one.exported for one in same.continuations)


def test_every_mix_that_is_offered_is_written(made: Path, tmp_path: Path) -> None:
    for mix in MIXES:
        if mix != "mxfp4_moe":
            got = hand_over(made / "full", tmp_path / f"{mix}.gguf", mix=mix, verify=False)
            assert got.mix == mix and got.size_bytes > 1000


def test_names() -> None:
    assert name_of(Path("/a/run é/checkpoint-12")) == "run-é"
    assert ollama_name("Abbey é V1", "q8_0") == "abbey-v1:q8_0"
    assert ollama_name("é", "q4_k_m") == "model:q4_k_m"


def test_sections_of_a_card_are_replaced_and_others_stay() -> None:
    card = "---\nx: 1\n---\n# old\n\n## Data\n\na\n\n## Exports\n\nold row\n\n## Results\n\nb\n"
    new = with_sections(with_title(card, "new"), ["## Exports\n\nnew row", ""])
    assert new == (
        "---\nx: 1\n---\n# new\n\n## Data\n\na\n\n## Results\n\nb\n\n## Exports\n\nnew row\n"
    )


def test_the_command_says_what_to_type_next(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "sp ace.gguf"
    given = ["export", made / "lora", "--output", target, "--gguf", "q8_0", "--name", "My Abbey"]
    assert call(*given) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{target}\n"
    assert "ollama create my-abbey:q8_0 -f" in shown.err and "run my-abbey:q8_0" in shown.err
    assert f"abi agent --model '{target}'" in shown.err and "likeliest token" in shown.err
    assert call(*given, "--no-verify", "--no-modelfile", "--no-card", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["verification"] is None and values["modelfile"] is None and values["card"] is None
    assert values["commands"] == [f"abi agent --model '{target}'"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gguf", "q9"], "must be one of f32"),
        (["--gguf", "q8_0", "--dtype", "f16"], "--dtype and --gguf are two ways"),
        (["--gguf", "q8_0", "--adapter"], "--adapter and --gguf are two ways"),
        (["--gguf", "q8_0", "--output", "a.bin"], "the name must end in .gguf"),
        (["--no-card"], "belong to --gguf"),
        (["--gguf", "q8_0", "--no-verify", "--transformers"], "--no-verify leaves out"),
        (["--adapter", "--no-verify"], "an adapter alone is not compared"),
    ],
)
def test_options_that_contradict_are_usage_errors(
    made: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", made / "full", *more) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_what_cannot_be_written_is_refused_before_anything(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(made / "full", tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    for name in ("../../evil", "a/b", "..", ".x", "a\\b"):
        assert call("export", run, "--gguf", "q8_0", "--name", name) == 1
        assert "no file name" in capsys.readouterr().err
    pipe, folder = tmp_path / "pipe.gguf", tmp_path / "folder.gguf"
    os.mkfifo(pipe)
    folder.mkdir()
    ways: tuple[list[str], ...] = ([], ["--gguf", "q8_0"])
    for more in ways:
        assert call("export", run, "--output", pipe, *more) == 1
        assert "is not a regular file" in capsys.readouterr().err
        assert call("export", run, "--output", folder, *more) == 1
        assert "is a folder" in capsys.readouterr().err
    assert call("export", made / "lora", "--adapter", "--output", pipe) == 1
    assert pipe.is_fifo() and sorted(tmp_path.rglob("*")) == sorted([*before, folder, pipe])
    done = tmp_path / "done.gguf"
    done.write_bytes(b"GGUF")
    for more in ways:
        assert call("export", done, *more) == 1
        assert f"abi quantize {done} {tmp_path}/done-q8_0.gguf q8_0" in capsys.readouterr().err


def test_errors_name_the_file_that_was_asked_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "wanted.gguf"

    def full_disk(weights: making.Weights, output: Path, *_: Any) -> None:
        raise FileAccessError(f"{output}: cannot be written (No space left on device)")

    monkeypatch.setattr(making, "_write", full_disk)
    with pytest.raises(FileAccessError) as raised:
        hand_over(made / "full", target, mix="q8_0")
    assert str(raised.value) == f"{target}: cannot be written (No space left on device)"

    def plain(weights: making.Weights, output: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(output.with_name("x")))

    monkeypatch.setattr(making, "_write", plain)
    with pytest.raises(FileAccessError, match=r"wanted\.gguf: cannot be written \(No space"):
        hand_over(made / "full", target, mix="q8_0")
    assert list(tmp_path.iterdir()) == []


def test_the_copy_to_compare_with_is_told_from_the_file() -> None:
    with (
        pytest.raises(FormatError, match=r"^the copy to compare a\.gguf with .* has 9 bytes\. Fr"),
        making.naming(Path("a.gguf"), Path("/x/.w-1")),
    ):
        raise FormatError("/x/.w-1/copy.gguf has 9 bytes. Free some")
