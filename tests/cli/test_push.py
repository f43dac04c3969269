"""`abi-train push` against a Hub on this machine. Each child runs several commands, as starting one
costs more than what it does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_repos import TOKEN, Repos
from published_sets import write_jsonl
from tiny_models import make_tiny_model

from abi_train import engines, prepare
from abi_train.config import LlmTrainingConfig
from abi_train.errors import CheckpointError, ConfigError, FormatError, MissingFileError
from abi_train.export.handover import hand_over
from abi_train.hub.cards import without_paths
from abi_train.hub.push import push
from abi_train.runspec import RunSpec

pytest.importorskip("huggingface_hub")

CHILD = """
import contextlib, io, json, sys
from abi_train.cli.app import run
done = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(command)
        except SystemExit as end:
            code = end.code
    done.append([code, out.getvalue(), err.getvalue()])
json.dump(done, sys.__stdout__)
"""
CONFIG = LlmTrainingConfig(
    epochs=1,
    max_steps=2,
    batch_size=2,
    grad_accum_steps=1,
    max_seq_len=32,
    warmup_steps=0,
    early_stopping=False,
    threads=1,
)


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each method, one of them handed over; data with a licence and without."""
    folder = tmp_path_factory.mktemp("pushed")
    make_tiny_model(folder / "model", "llama_tied")
    rows = write_jsonl(folder / "own.jsonl", [{"text": f"Number {i}."} for i in range(8)])
    prepare([rows], folder / "model", folder / "own.bin", license_note="MIT")
    prepare([rows], folder / "model", folder / "unsaid.bin")
    for method, data in (("full", "unsaid"), ("lora", "own")):
        spec = RunSpec(
            model=folder / "model",
            data=folder / f"{data}.bin",
            run_dir=folder / method,
            config=CONFIG,
            method=method,
        )
        engines.run(spec)
    hand_over(folder / "lora", mix="q8_0", name="abbey")
    return folder


@pytest.fixture
def hub() -> Iterator[Repos]:
    with Repos() as repos:
        yield repos


def commands(
    hub: Repos, folder: Path, *wanted: list[str], token: bool = True, **environment: str
) -> list[Done]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([["push", *one] for one in wanted])],
        env={**hub.env(folder / "home", token=token), "COLUMNS": "300", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = [Done(*one) for one in json.loads(done.stdout)]
    for one in found:
        assert TOKEN not in one.out + one.err
        assert "Traceback" not in one.err
    return found


def head_of(card: bytes) -> dict[str, object]:
    values = yaml.safe_load(card.decode().split("---\n")[1])
    assert isinstance(values, dict)
    return values


def test_each_kind_arrives_whole_and_private(made: Path, hub: Repos) -> None:
    lora, full = str(made / "lora"), str(made / "full")
    done = commands(
        hub,
        made,
        [lora, "--to", "abbey"],
        [lora, "--to", "me/whole", "--merged", "--json"],
        [lora, "--to", "me/abbey-gguf", "--gguf"],
        [lora, "--to", "me/rows", "--data", "--public"],
        [full, "--to", "me/full"],
        [str(made / "own.jsonl"), "--to", "me/lines"],
        [lora, "--to", "me/abbey"],
    )
    assert [one.code for one in done] == [0] * 7, [one.err for one in done]
    assert done[0].out == f"{hub.url}/me/abbey\n" and "private model repository" in done[0].err
    assert "making" not in done[6].err and "PUBLIC dataset" in done[3].err
    assert json.loads(done[1].out)["commit"] == "1" * 40
    assert {name: private for name, private in hub.private.items() if not private} == {
        "datasets/me/rows": False
    }
    run = made / "lora" / "checkpoint-2"
    adapter = hub.files["me/abbey"]
    weights = (run / "adapter_model.safetensors").read_bytes()
    assert adapter["adapter_model.safetensors"] == weights
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "model"
    assert "optimizer.safetensors" not in adapter and "trainer_state.json" not in adapter
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files["me/whole"])
    assert "adapter_config.json" not in hub.files["me/whole"]
    gguf = hub.files["me/abbey-gguf"]
    assert gguf["abbey-q8_0.gguf"] == (made / "lora" / "abbey-q8_0.gguf").read_bytes()
    assert {"Modelfile", "abbey-q8_0.export.json"} <= set(gguf)
    rows = hub.files["datasets/me/rows"]
    assert {"own.bin", "own.json", "own.idx", "README.md"} <= set(rows)
    assert rows["own.bin"] == (made / "own.bin").read_bytes()
    assert set(hub.files["datasets/me/lines"]) >= {"own.jsonl", "README.md"}
    # Nothing of this machine but names.
    for files in hub.files.values():
        for name, content in files.items():
            assert str(made).encode() not in content, name


def test_cards_tell_what_the_hub_and_people_need(made: Path, hub: Repos) -> None:
    lora = str(made / "lora")
    commands(
        hub,
        made,
        [lora, "--to", "me/a"],
        [lora, "--to", "me/g", "--gguf"],
        [lora, "--to", "me/d", "--data"],
        [str(made / "full"), "--to", "me/f"],
    )
    card = hub.files["me/a"]["README.md"]
    head = head_of(card)
    assert head["license"] == "mit" and head["library_name"] == "peft"
    assert "base_model" not in head  # a folder's name is no model on the Hub
    text = card.decode()
    assert "\n# a\n" in text and "## Data" in text and "## Recipe\n\n```yaml\n" in text
    assert "learning_rate: 1.0e-05" in text and "model: model\n" in text
    gguf = hub.files["me/g"]["README.md"]
    assert "gguf" in str(head_of(gguf)["tags"]) and head_of(gguf)["library_name"] == "gguf"
    assert b"| `abbey-q8_0.gguf` | q8_0 |" in gguf and b"merged into" in gguf
    assert head_of(hub.files["me/f"]["README.md"])["license"] == "unknown"
    data = hub.files["datasets/me/d"]["README.md"]
    assert head_of(data)["license"] == "mit" and b"| own.bin | 8 |" in data


def test_nothing_is_published_or_replaced_unasked(made: Path, hub: Repos) -> None:
    full = str(made / "full")
    hub.files["me/open"], hub.private["me/open"] = {}, False
    hub.files["me/other"] = {"README.md": b"# somebody's", "x.bin": b"1"}
    hub.files["me/bare"] = {".gitattributes": b"", "model.safetensors": b"1"}
    hub.private |= {"me/other": True, "me/bare": True}
    done = commands(
        hub,
        made,
        [full, "--to", "me/open"],
        [full, "--to", "me/other"],
        [full, "--to", "me/bare"],
        [full, "--to", "me/data", "--data", "--public"],
        [full, "--to", "them/abbey"],
        [full, "--to", "me/open", "--public"],
    )
    assert [one.code for one in done] == [1, 1, 1, 2, 1, 0]
    assert "me/open is public, so a push would publish this" in done[0].err
    assert all("did not put there" in one.err and "another name" in one.err for one in done[1:3])
    assert "nothing says under which licence" in done[3].err
    assert "cannot create the repository them/abbey" in done[4].err and "403" in done[4].err
    assert hub.files["me/other"] == {"README.md": b"# somebody's", "x.bin": b"1"}
    assert set(hub.files) == {"me/open", "me/other", "me/bare"}


def test_what_goes_wrong_is_said_in_one_line(made: Path, hub: Repos) -> None:
    full = str(made / "full")
    (none,) = commands(hub, made, [full, "--to", "me/x"], token=False)
    assert none.code == 1 and "hf auth login" in none.err and hub.asked == []
    (offline,) = commands(hub, made, [full, "--to", "me/x"], HF_HUB_OFFLINE="1")
    assert offline.code == 1 and "unset HF_HUB_OFFLINE" in offline.err and hub.asked == []
    hub.fail["/api/models/me/busy"] = 429
    hub.fail["/api/repos/create"] = 401
    busy, refused = commands(hub, made, [full, "--to", "me/busy"], [full, "--to", "me/x"])
    assert busy.code == 1 and "slow down (429)" in busy.err
    assert refused.code == 1 and "does not accept the token (401)" in refused.err
    for one in (none, offline, busy, refused):
        assert one.err.rstrip().splitlines()[-1].startswith("error: ")
    (away,) = commands(hub, made, [full, "--to", "me/x"], HF_ENDPOINT="http://127.0.0.1:1")
    assert away.code == 1 and "cannot be reached" in away.err


def test_a_dry_run_asks_nobody(made: Path, hub: Repos) -> None:
    lora, nowhere = str(made / "lora"), str(made / "nowhere")
    done = commands(
        hub,
        made,
        [lora, "--to", "me/x", "--dry-run", "--json"],
        [lora, "--to", "me/x", "--merged", "--dry-run"],
        [lora, "--to", "a/b/c", "--dry-run"],
        [lora, "--to", "me/x", "--merged", "--gguf"],
        [nowhere, "--to", "me/x"],
        [str(made / "full"), "--to", "me/x", "--adapter"],
        [str(made / "full"), "--to", "me/x", "--gguf"],
        token=False,
    )
    assert [one.code for one in done] == [0, 0, 2, 2, 1, 2, 1]
    values = json.loads(done[0].out)
    assert (values["repo"], values["private"], values["dry_run"]) == ("me/x", True, True)
    names = {file["name"] for file in values["files"]}
    assert names >= {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "is merged into" in done[1].err and "would send to me/x (private" in done[1].err
    assert "it must be USER/NAME" in done[2].err and "name one" in done[3].err
    assert "holds a whole model, no adapter" in done[5].err
    assert "--gguf q4_k_m" in done[6].err
    assert hub.asked == []


def test_paths_become_names() -> None:
    value = {"a": "/home/me/x.gguf", "b": ["~/y", "../z/w", "a/b"], "c": {"d": "either/or"}, "e": 1}
    assert without_paths(value) == {
        "a": "x.gguf",
        "b": ["y", "w", "a/b"],
        "c": {"d": "either/or"},
        "e": 1,
    }


def test_a_kind_nobody_knows_is_named(made: Path) -> None:
    with pytest.raises(ConfigError, match="kind is 'moodel'"):
        push(made / "full", "me/x", kind="moodel", dry=True)


def test_what_is_not_whole_is_not_sent(made: Path, tmp_path: Path) -> None:
    def copy(name: str, of: str = "full/checkpoint-2") -> Path:
        return Path(shutil.copytree(made / of, tmp_path / name))

    def refused(folder: Path, said: str, **choices: Any) -> None:
        with pytest.raises((FormatError, CheckpointError, MissingFileError), match=said):
            push(folder, "me/x", dry=True, **choices)

    sound = push(copy("sound"), "me/x", dry=True)
    assert "model.safetensors" in dict(sound.files)
    no_weights = copy("none")
    (no_weights / "model.safetensors").unlink()
    refused(no_weights, "model.safetensors: is missing")
    changed = copy("changed")
    with (changed / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x55")
    refused(changed, "fails its checksum.*Push another checkpoint")
    short = copy("short")
    (short / "checksums.json").unlink()
    size = (short / "model.safetensors").stat().st_size
    os.truncate(short / "model.safetensors", size - 4)
    refused(short, f"has {size - 4} bytes; its header says {size}")
    (short / "model.safetensors").write_bytes(b"")
    refused(short, "no whole safetensors file")
    (short / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    refused(short, "holds no weights")
    broken = copy("broken", of="model")
    (broken / "config.json").write_text('{"model_type": ')
    refused(broken, "config.json: cannot be read as JSON")
    parts = copy("parts", of="model")
    (parts / "model.safetensors").rename(parts / "model-00001-of-00001.safetensors")
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))
    names = dict(push(parts, "me/x", dry=True).files)
    assert {index.name, "model-00001-of-00001.safetensors"} <= set(names)
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    refused(parts, "model-00001-of-00002.safetensors: is missing")
    adapter = copy("adapter", of="lora/checkpoint-2")
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "adapter_model.safetensors: is missing")
    refused(adapter, "adapter_model.safetensors: is missing", kind="model")
    phased = copy("phased", of="model")
    (phased / "recipe.json").write_text('{"phases": {')
    refused(phased, "recipe.json: cannot be read as the state of a phased run")
    gguf = tmp_path / "cut.gguf"
    gguf.write_bytes((made / "lora" / "abbey-q8_0.gguf").read_bytes()[:-64])
    refused(gguf, "cut.gguf")


def test_a_dry_run_names_the_weights_that_merging_makes(made: Path) -> None:
    found = dict(push(made / "lora", "me/x", kind="model", dry=True).files)
    assert found["model.safetensors"] is None and found["config.json"] is None
    assert "tokenizer.json" in found and "adapter_model.safetensors" not in found


def test_refused_on_the_command_line_too(made: Path, hub: Repos, tmp_path: Path) -> None:
    empty = Path(shutil.copytree(made / "model", tmp_path / "empty"))
    (empty / "model.safetensors").unlink()
    full = str(made / "full")
    done = commands(
        hub,
        made,
        [str(empty), "--to", "me/x", "--dry-run"],
        [str(empty), "--to", "me/x"],
        *([full, "--to", name] for name in ("me/x..y", "me/x.git", "me/.x", "me/a--b", "x" * 97)),
    )
    assert [one.code for one in done] == [1, 1, 2, 2, 2, 2, 2]
    assert hub.asked == []
    for bad in ("hf_tökén", "hf_a\nb", "hf \udcff"):
        (said,) = commands(hub, made, [full, "--to", "me/x"], HF_TOKEN=bad)
        assert said.code == 1 and "HF_TOKEN is no token" in said.err and bad not in said.err
    assert hub.asked == []
