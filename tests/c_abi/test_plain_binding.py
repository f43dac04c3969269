"""The package works on a Python without header files: the plain library, opened with dlopen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
# An editable install would answer first.
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
import abi_train
from abi_train import _native
from abi_train._native import core
assert "abi_train._native._cffi" not in sys.modules, "the compiled module was used"
config = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "model_type": "llama"}
with abi_train.Model.random(config, seed=3) as model:
    print(len(model), float(model["model.norm.weight"].sum()))
try:
    abi_train.Model.load("nowhere")
except abi_train.AbiTrainError as error:
    print(type(error).__name__)
"""


def test_the_plain_library_serves_the_same_package(tmp_path: Path) -> None:
    zig = [sys.executable, "-m", "ziglang", "build", "shared", "--prefix", str(tmp_path / "out")]
    built = subprocess.run(
        zig, cwd=ROOT, env={**os.environ, "ZIG_DEBUG_CMD": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-2000:]
    package = tmp_path / "site" / "abi_train"
    shutil.copytree(
        ROOT / "python" / "abi_train", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (package / "include").mkdir(exist_ok=True)
    shutil.copy(ROOT / "zig" / "include" / "abi_train.h", package / "include")
    for library in (tmp_path / "out" / "lib").glob("libabi_train.so*"):
        shutil.copy(library, package / "_native")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["12", "8.0", "MissingFileError"]
