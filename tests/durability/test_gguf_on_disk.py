"""GGUF files on a small disk, in little memory, and killed while they are written."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantised_models import COMMON
from safetensors.numpy import save_file
from test_full_disk import mount_works
from tiny_models import make_tiny_model

from abi_train import _native, inspect_gguf, join_gguf, quantize_gguf, split_gguf
from abi_train.errors import AbiTrainError
from abi_train.export.handover import export_sizes, hand_over

WIDE, VOCABULARY, LAYERS = 256, 24576, 32
LARGEST = VOCABULARY * WIDE * 4
"""Bytes of the largest tensor of `large`."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 126 MB whose largest tensor has 25, and its f32 file."""
    folder = tmp_path_factory.mktemp("large")
    config = {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "intermediate_size": 512,
        "num_hidden_layers": LAYERS,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    drawn = np.random.default_rng(5)
    tensors = {
        name: drawn.standard_normal(shape, dtype=np.float32)
        for name, shape in _native.plan.parameters(json.dumps(config))
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _native.export.gguf(folder, folder / "f32.gguf", dtype="f32", without_tokenizer=True)
    return folder


MEASURE = """
import re, sys
from abi_train import _native, quantize_gguf, split_gguf, join_gguf
folder, out, what = sys.argv[1:]
def peak():  # of this program alone: a child's getrusage begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
if what == "export":
    _native.export.gguf(folder, out, mix="q4_k_m", without_tokenizer=True, threads=2)
elif what == "quantize":
    quantize_gguf(folder + "/f32.gguf", out, mix="q4_k_m", threads=2)
elif what == "split":
    split_gguf(folder + "/f32.gguf", out, max_bytes=40_000_000)
else:
    join_gguf(folder + "/f32.gguf", out)
print(1024 * (peak() - before))
"""


@pytest.mark.parametrize("what", ["export", "quantize", "split", "join"])
def test_memory_stays_below_two_of_the_largest_tensor(
    large: Path, tmp_path: Path, what: str
) -> None:
    command = [sys.executable, "-c", MEASURE, str(large), str(tmp_path / "out.gguf"), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    total = sum(tensor["bytes"] for tensor in inspect_gguf(large / "f32.gguf")["tensors"])
    assert total > 4 * LARGEST
    assert int(done.stdout) <= 2 * LARGEST, f"{int(done.stdout) / LARGEST:.2f} of the largest"


def on_small_disk(kilobytes: int, folder: Path, command: list[Any]) -> Any:
    """Runs a command with a file system of that size below `folder`/disk; what it left is listed
    last on standard output."""
    script = (
        f"mount -t tmpfs -o size={kilobytes}k none disk || exit 99; "
        '"$@"; code=$?; echo; ls -A disk; exit $code'
    )
    (folder / "disk").mkdir(exist_ok=True)
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("what", ["quantize", "split", "join", "export"])
def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    program: Path, large: Path, tmp_path: Path, what: str
) -> None:
    if not mount_works():
        pytest.skip("this machine does not let a test mount a small disk")
    source = large / "f32.gguf"
    if what == "export":
        script = (
            "import sys; from abi_train import _native\n"
            "try: _native.export.gguf(sys.argv[1], 'disk/out.gguf', mix='q8_0', "
            "without_tokenizer=True)\n"
            "except OSError as error: sys.exit(str(error))\n"
            "except ValueError as error: sys.exit(str(error))"
        )
        command: list[Any] = [sys.executable, "-c", script, large]
    else:
        command = {
            "quantize": [program, "quantize", source, "disk/out.gguf", "q8_0"],
            "split": [program, "split", source, "disk/part", "--max-size", "40M"],
            "join": [program, "join", source, "disk/out.gguf"],
        }[what]
    done = on_small_disk(4096, tmp_path, command)
    assert done.returncode == 1, done.stderr
    assert "bytes" in done.stderr and "are free" in done.stderr
    assert done.stdout.strip() == "", "something was left"
    if what == "quantize":
        size = _native.export.quantize_size(source, tmp_path / "x", "q8_0")
        assert f"will have {size} bytes" in done.stderr


def test_without_room_for_a_copy_the_comparison_needs_none(tmp_path: Path) -> None:
    if not mount_works():
        pytest.skip("this machine does not let a test mount a small disk")
    folder = make_tiny_model(tmp_path / "model", "llama_gqa_untied", hidden_size=128)
    sizes = export_sizes(folder, mixes=("q4_0", "f32"))
    room = (sizes["q4_0"] + sizes["f32"] // 2) // 1024
    assert sizes["f32"] > 400_000
    script = (
        "import sys; from abi_train.export.handover import hand_over\n"
        "made = hand_over(sys.argv[1], 'disk/m.gguf', mix='q4_0')\n"
        "print(made.verification.verdict, made.verification.format.how)"
    )
    done = on_small_disk(room, tmp_path, [sys.executable, "-c", script, folder])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[:2] == ["pass", "exact"] and "m.gguf" in lines
    tight = on_small_disk(sizes["q4_0"] // 2048, tmp_path, [sys.executable, "-c", script, folder])
    assert tight.returncode == 1 and f"will have {sizes['q4_0']} bytes" in tight.stderr
    assert tight.stdout.strip() == ""


def test_cutting_and_joining_that_were_killed_leave_no_model(
    program: Path, large: Path, tmp_path: Path
) -> None:
    source = large / "f32.gguf"
    whole = source.read_bytes()
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    begun = time.monotonic()
    parts = split_gguf(source, tmp_path / "part", max_bytes=20_000_000)
    seconds = time.monotonic() - begun
    for number in range(6):
        prefix, out = tmp_path / f"cut{number}", tmp_path / f"joined{number}.gguf"
        split = [program, "split", source, prefix, "--max-size", "20M"]
        for command in (split, [program, "join", parts[1], out]):
            run = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
            time.sleep(drawn.uniform(0, seconds))
            run.send_signal(signal.SIGKILL)
            run.wait(timeout=60)
        first = Path(f"{prefix}-00001-of-{len(parts):05d}.gguf")
        if first.exists():
            again = join_gguf(first, tmp_path / "again.gguf")
            assert again.read_bytes() == whole
        else:
            for part in tmp_path.glob(f"cut{number}-*.gguf"):
                with pytest.raises(AbiTrainError):
                    quantize_gguf(part, tmp_path / "small.gguf", mix="q8_0")
        assert not out.exists() or out.read_bytes() == whole
        for left in tmp_path.glob(f"cut{number}*"):
            left.unlink()
        out.unlink(missing_ok=True)


EXPORTING = """
import sys
from abi_train.export.handover import hand_over
print("begun", flush=True)
for number in range(10_000):
    hand_over(sys.argv[1], f"{sys.argv[2]}/m{number}.gguf", mix="q4_k_m", name="m")
"""


def test_an_export_that_was_killed_leaves_whole_files_only(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "llama_tied")
    wanted = hand_over(folder, tmp_path / "m.gguf", mix="q4_k_m", name="m").path.read_bytes()
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    for number in range(2):
        place = tmp_path / f"out{number}"
        place.mkdir()
        command = [sys.executable, "-c", EXPORTING, str(folder), str(place)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None and run.stdout.readline() == "begun\n"
        time.sleep(drawn.uniform(0, 2))
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=60)
        run.stdout.close()
        for path in place.glob("*.gguf"):
            assert path.read_bytes() == wanted, path.name
        for report in place.glob("*.export.json"):
            assert json.loads(report.read_text())["verdict"] == "pass"
            assert report.with_name(report.name.replace(".export.json", ".gguf")).exists()
