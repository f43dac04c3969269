"""Hashes of what llama.cpp's own ``llama-quantize`` writes of the test models.

``python tools/make_quantised_hashes.py llama-quantize`` writes tests/formats/quantised.json: for
each model and mix, with and without an importance matrix, the SHA-256 of the tensors. Last run with
llama.cpp of August 2026 (the tree in llama-cpp-python 0.3.36, ggml 0.25.3).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from quantised_models import (  # noqa: E402 - the path was just set
    MODELS,
    tensors_of,
    write_importance,
    write_model,
)

from abi_train import _native  # noqa: E402
from abi_train.export import MIXES  # noqa: E402

WEIGHED = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q5_1", "q5_0", "q4_1", "q4_0", "q8_0")


def main(quantize: str) -> None:
    """Write the file of hashes."""
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in MODELS:
            source = folder / f"{kind}.gguf"
            model = write_model(folder / kind, kind)
            _native.export.gguf(model, source, dtype="f32", without_tokenizer=True)
            importance = write_importance(folder / f"{kind}.imatrix.gguf", source)
            wanted = [(mix, False) for mix in MIXES] + [(mix, True) for mix in WEIGHED]
            for mix, weighed in wanted:
                options = ["--imatrix", str(importance)] if weighed else []
                out = folder / "out.gguf"
                command = [quantize, *options, str(source), str(out), mix.upper(), "2"]
                subprocess.run(command, check=True, capture_output=True)
                hashes[f"{kind} {mix}{' imatrix' if weighed else ''}"] = tensors_of(out)
    target = ROOT / "tests" / "formats" / "quantised.json"
    target.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    print(f"{len(hashes)} hashes in {target}")


if __name__ == "__main__":
    main(sys.argv[1])
