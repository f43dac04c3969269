"""`abi-train jobs` against a Hub on this machine. Each child runs several commands, as starting one
costs more than what it does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hub_stub import TOKEN, HubStub

pytest.importorskip("huggingface_hub")

CHILD = """
import contextlib, io, json, os, sys
from abi_train.cli.app import run
done = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(command)
            code = 0
        except SystemExit as end:
            code = end.code
    done.append([code, out.getvalue(), err.getvalue()])
json.dump(done, sys.__stdout__)
"""

MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def as_new(hub: HubStub) -> None:
    hub.asked.clear()
    hub.jobs.clear()
    hub.files.clear()
    hub.fail.clear()
    hub.fail_times.clear()
    hub.broken_log = False


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A run on a GPU, small enough for any."""
    from abi_train.dataset import TokenizedWriter

    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    rng = np.random.default_rng(5)
    with TokenizedWriter(folder / "train.bin", vocab_size=64) as writer:
        for _ in range(40):
            writer.append(rng.integers(0, 64, 12))
        writer.finish()
    path = folder / "recipe.yaml"
    path.write_text(
        "model: config.json\ndata: train.bin\nrun_dir: out\nengine: trl\n"
        "training: {epochs: 1, batch_size: 4, max_seq_len: 16, grad_accum_steps: 2}\n"
    )
    return path


def commands(hub: HubStub, tmp_path: Path, *wanted: list[str], token: bool = True) -> list[Done]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(wanted)],
        env={**hub.env(tmp_path / "home", token=token), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = [Done(*one) for one in json.loads(done.stdout)]
    for one in found:
        assert TOKEN not in one.out + one.err
        assert "Traceback" not in one.err
    return found


def test_a_recipe_is_sent_with_its_files_and_followed_to_its_end(
    hub: HubStub, tmp_path: Path, recipe: Path
) -> None:
    sent, listed, logs = commands(
        hub,
        tmp_path,
        [
            *("jobs", "submit", str(recipe), "--flavor", "a10g-large", "--secret", "HF_TOKEN"),
            *("--set", "epochs=2", "--json"),
        ],
        ["jobs", "list", "--json"],
        ["jobs", "logs", "job-1", "--tail", "5"],
    )
    assert sent.code == 0, sent.err
    (body,) = hub.bodies("POST", "/api/jobs/me")
    assert body["flavor"] == "a10g-large"
    assert body["secrets"] == {"HF_TOKEN": TOKEN}
    assert body["environment"] == {}
    assert body["timeoutSeconds"] > 1800 // 2 and body["timeoutSeconds"] % 60 == 0
    assert body["command"][:2] == ["uv", "run"]
    assert body["command"][-2:] == ["--set", "epochs=2"]
    assert "/job/recipe.yaml" in body["command"]
    (volume,) = body["volumes"]
    assert volume["mountPath"] == "/job" and volume["path"].startswith("abi-train/")
    names = {name.removeprefix(volume["path"] + "/") for name in hub.files}
    assert names >= {
        *("recipe.yaml", "files/config.json", "files/train.bin", "files/train.idx"),
        *("files/train.json", "files/train.mask"),
    }
    assert ("GET", "/api/jobs/hardware", None) in hub.asked  # the prices of this Hub
    job = json.loads(sent.out)
    assert job["id"] == "job-1" and job["bucket"].endswith(volume["path"])
    assert [one["id"] for one in json.loads(listed.out)["jobs"]] == ["job-1"]
    assert logs.code == 0 and logs.out == "line 0\nline 1\nline 2\n"


def test_what_travels_is_a_recipe_that_can_be_run_where_it_lies(
    recipe: Path, tmp_path: Path
) -> None:
    from abi_train import jobs
    from abi_train.runspec import RunSpec

    folder = tmp_path / "staged"
    folder.mkdir()
    staged = jobs.stage(recipe, folder, base=recipe.parent)
    spec = RunSpec.load(folder / "recipe.yaml")
    spec.check_paths()
    assert spec.model == folder / "files" / "config.json"
    assert spec.data.read_bytes() == (recipe.parent / "train.bin").read_bytes()
    assert staged.files["files/train.bin"] == spec.data.stat().st_size


def test_a_dry_run_prints_the_request_and_sends_nothing(
    hub: HubStub, tmp_path: Path, recipe: Path
) -> None:
    wheel = tmp_path / "abi_train-9.9-cp310-abi3-manylinux_2_17_x86_64.whl"
    wheel.write_bytes(b"not looked into")
    shown, plain, several = commands(
        hub,
        tmp_path,
        [
            *("jobs", "submit", str(recipe), "--flavor", "a100-large", "--dry-run", "--json"),
            *("--secret", "HF_TOKEN", "--wheel", str(wheel), "--timeout", "2h"),
        ],
        ["jobs", "submit", str(recipe), "--dry-run"],
        ["jobs", "submit", str(recipe), "--dry-run", "--json", "--flavor", "a100x4"],
        token=False,
    )
    shared = json.loads(several.out)["command"]
    at = shared.index("torchrun")
    assert shared[at : at + 6] == [
        *("torchrun", "--nproc_per_node", "4", "-m", "abi_train.cli", "train")
    ]
    assert shown.code == 0, shown.err
    request = json.loads(shown.out)
    assert request["secrets"] == {"HF_TOKEN": "***"}
    assert request["timeout_seconds"] == 7200
    assert f"abi-train[trl,hub] @ file:///job/{wheel.name}" in request["command"]
    assert wheel.name in request["files"]
    assert plain.code == 0 and "nothing was sent" in plain.err and "timeout" in plain.out
    assert hub.asked == []


def test_what_cannot_be_sent_is_said_in_one_line(
    hub: HubStub, tmp_path: Path, recipe: Path
) -> None:
    big = recipe.with_name("big.yaml")
    big.write_text(
        "model: hub:openai/gpt-oss-20b\ndata: train.bin\nrun_dir: out\nengine: trl\n"
        "precision: bf16\nlora: {r: 8, target_modules: [q_proj, v_proj]}\n"
        "training: {epochs: 1, batch_size: 4, max_seq_len: 16, recompute_activations: true}\n"
    )
    send = ["jobs", "submit", str(recipe)]
    dry = [*send, "--flavor", "a10g-large", "--dry-run"]
    foreign = tmp_path / "other-1.0-py3-none-any.whl"
    foreign.write_bytes(b"not looked into")
    wrong, small, secret, short, text, lost, wheel, unset, *values = commands(
        hub,
        tmp_path,
        [*send, "--flavor", "a100-larg"],
        ["jobs", "submit", str(big), "--flavor", "a10g-large"],
        [*send, "--flavor", "a10g-large", "--secret", "NOT_SET_ANYWHERE"],
        [*send, "--flavor", "a10g-large", "--timeout", "5"],
        [*send, "--flavor", "a10g-large", "--timeout", "soon"],
        ["jobs", "submit", str(recipe.with_name("nowhere.yaml"))],
        [*send, "--flavor", "a10g-large", "--wheel", str(recipe)],
        [*dry, "--secret", "NOT_SET_ANYWHERE"],
        [*dry, "--timeout", "0"],
        [*dry, "--timeout", "31d"],
        [*dry, "--timeout", "9" * 400],
        [*dry, "--secret", "A B"],
        [*dry, "--extra", "x];rm"],
        [*dry, "--wheel", str(foreign)],
        [*send, "--flavor", "zzzz", "--dry-run"],
        ["plan", str(recipe), "--device", "nonsense", "--offline"],
        ["plan", "abbey-tin"],
    )
    assert [one.code for one in values] == [2] * len(values), [one.err for one in values]
    said = (
        *("would end before", "30 days", "no length", "'A B' is not", "is not the name of an"),
        *("not named as a wheel", "no 'zzzz'. There are"),
    )
    for one, part in zip(values[:-2], said, strict=True):
        assert part in one.err
    assert "device: there is no 'nonsense'. There are" in values[-2].err
    assert "did you mean abbey-tiny?" in values[-1].err
    assert unset.code == 1 and "NOT_SET_ANYWHERE is not set here" in unset.err
    assert wrong.code == 2 and "did you mean a100-large?" in wrong.err
    assert small.code == 1 and "does not fit a10g-large" in small.err
    assert "--flavor a100-large" in small.err and "GiB" in small.err
    assert secret.code == 1 and "NOT_SET_ANYWHERE is not set here" in secret.err
    assert short.code == 2 and "would end before" in short.err
    assert text.code == 2 and "write 90m, 4h or 1d" in text.err
    assert lost.code != 0 and "nowhere.yaml" in lost.err
    assert wheel.code == 1 and "no wheel" in wheel.err
    assert hub.bodies("POST", "/api/jobs/me") == []


def test_without_a_token_each_verb_says_how_to_log_in(hub: HubStub, tmp_path: Path) -> None:
    for done in commands(
        hub, tmp_path, ["jobs", "list"], ["jobs", "cancel", "x"], ["jobs", "wait", "x"], token=False
    ):
        assert done.code == 1
        assert "hf auth login" in done.err and "HF_TOKEN" in done.err


def test_jobs_are_waited_for_cancelled_and_unknown_ones_named(hub: HubStub, tmp_path: Path) -> None:
    hub.add_job("good", "COMPLETED")
    hub.fail["/api/jobs/me/good"], hub.fail_times["/api/jobs/me/good"] = 503, 1  # and then not
    hub.add_job("bad", "ERROR")
    hub.add_job("foreign", "RUNNING", labels={"name": "x"})
    hub.broken_log = True
    good, bad, limit, cancelled, unknown, broken, listed, hardware = commands(
        hub,
        tmp_path,
        ["jobs", "wait", "good", "--json"],
        ["jobs", "wait", "bad"],
        ["jobs", "wait", "foreign", "--limit", "0s"],
        ["jobs", "cancel", "foreign"],
        ["jobs", "cancel", "nobody"],
        ["jobs", "logs", "good"],
        ["jobs", "list"],
        ["jobs", "hardware", "--json"],
    )
    assert good.code == 0 and json.loads(good.out)["stage"] == "COMPLETED"
    assert bad.code == 1 and "abi-train jobs logs bad" in bad.err
    assert limit.code == 1 and "goes on" in limit.err
    assert cancelled.code == 0 and hub.jobs["foreign"]["status"]["stage"] == "CANCELED"
    assert unknown.code == 1 and "no job nobody" in unknown.err
    assert broken.code == 1 and "broke off after 3 lines" in broken.err
    assert "abi-train jobs logs good" in broken.err
    assert "good" in listed.out and "foreign" not in listed.out
    flavors = {one["name"]: one for one in json.loads(hardware.out)["flavors"]}
    assert flavors["a100-large"]["dollars_per_hour"] == pytest.approx(3.0)
    assert flavors["a100-large"]["gpu_memory_bytes"] == 80 * 2**30


def test_a_hub_with_faults_is_named_with_what_to_do(hub: HubStub, tmp_path: Path) -> None:
    hub.fail |= {"/api/jobs/hardware": 500, "/api/jobs/me": 402}
    hardware, listed = commands(hub, tmp_path, ["jobs", "hardware"], ["jobs", "list"])
    assert hardware.code == 1 and "fault of its own (500)" in hardware.err
    assert listed.code == 1 and "cannot pay" in listed.err


def test_no_network_is_named(hub: HubStub, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "abi_train.cli", "jobs", "hardware"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_leaves_the_job_at_work_and_says_how_to_go_on(hub: HubStub, tmp_path: Path) -> None:
    hub.add_job("long", "RUNNING")
    child = subprocess.Popen(
        [sys.executable, "-m", "abi_train.cli", "jobs", "wait", "long"],
        env=hub.env(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not hub.bodies("GET", "/api/jobs/me/long") and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "abi-train jobs wait long" in err and "abi-train jobs cancel long" in err
    assert "Traceback" not in err
