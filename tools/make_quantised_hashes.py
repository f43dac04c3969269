"""What llama.cpp's own tools write of the test models, for the tests to compare with.

``python tools/make_quantised_hashes.py BIN`` takes the folder that holds ``llama-quantize`` and
``llama-imatrix`` and writes, in tests/formats:

- quantised.json: SHA-256 of the tensors of each model, mix, and with an importance matrix;
- whole_files.json: SHA-256 of whole files, and of what they were made from;
- speaker.imatrix.gguf and .dat: importance matrices of a text.

Last run with llama.cpp of August 2026 (the tree in llama-cpp-python 0.3.36, ggml 0.25.3) and the
package gguf 0.19.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import quantised_files  # noqa: E402 - the path was just set
from quantised_models import (  # noqa: E402
    MODELS,
    tensors_of,
    write_importance,
    write_model,
)

from abi_train import _native  # noqa: E402
from abi_train.export import MIXES  # noqa: E402

WEIGHED = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q5_1", "q5_0", "q4_1", "q4_0", "q8_0")
HOME = ROOT / "tests" / "formats"


def main(binaries: Path) -> None:
    """Write all files."""
    with tempfile.TemporaryDirectory() as name:
        write("quantised.json", tensor_hashes(binaries / "llama-quantize", Path(name)))
    with tempfile.TemporaryDirectory() as name:
        write("whole_files.json", file_hashes(binaries / "llama-quantize", Path(name)))
    with tempfile.TemporaryDirectory() as name:
        importance(binaries / "llama-imatrix", Path(name))


def write(name: str, values: object) -> None:
    """One of the files."""
    (HOME / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {HOME / name}")


def tensor_hashes(quantize: Path, folder: Path) -> dict[str, str]:
    """Of files whose source is an export of ours, so that only the tensors are compared."""
    hashes: dict[str, str] = {}
    for kind in MODELS:
        source = folder / f"{kind}.gguf"
        model = write_model(folder / kind, kind)
        _native.export.gguf(model, source, dtype="f32", without_tokenizer=True)
        weights = write_importance(folder / f"{kind}.imatrix.gguf", source)
        wanted = [(mix, False) for mix in MIXES] + [(mix, True) for mix in WEIGHED]
        for mix, weighed in wanted:
            options = ["--imatrix", str(weights)] if weighed else []
            out = folder / "out.gguf"
            run(folder, [quantize, *options, source, out, mix.upper(), "2"])
            hashes[f"{kind} {mix}{' imatrix' if weighed else ''}"] = tensors_of(out)
    return hashes


def file_hashes(quantize: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Of whole files. The importance matrix's name stands in its result, so it is always the
    same."""
    hashes: dict[str, dict[str, str]] = {}
    for kind in quantised_files.SOURCES:
        source = quantised_files.write_source(folder / "source.gguf", kind)
        weights = quantised_files.write_importance(folder / "imatrix.gguf", kind)
        found = {"": quantised_files.sha256(source), "imatrix": quantised_files.sha256(weights)}
        for mix in quantised_files.MIXES:
            for options in ([], ["--imatrix", weights.name]):
                run(folder, [quantize, *options, source.name, "out.gguf", mix.upper(), "2"])
                key = f"{mix} imatrix" if options else mix
                found[key] = quantised_files.sha256(folder / "out.gguf")
        hashes[kind] = found
    return hashes


def importance(imatrix: Path, folder: Path) -> None:
    """Of the speaker's text, in both formats; keys and values in f32, as here."""
    quantised_files.write_speaker(folder / "speaker.gguf")
    (folder / "text.txt").write_text(quantised_files.SPEECH, encoding="utf-8")
    chunk, chunks = str(quantised_files.CHUNK), str(quantised_files.CHUNKS)
    for form in ("gguf", "dat"):
        out = f"speaker.imatrix.{form}"
        options = [
            "-c",
            chunk,
            "-b",
            chunk,
            "-ub",
            chunk,
            "--chunks",
            chunks,
            "--no-ppl",
            "-t",
            "1",
        ]
        exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
        reading = ["-m", "speaker.gguf", "-f", "text.txt", "-o", out, "--output-format", form]
        run(folder, [imatrix, *reading, *options, *exact])
        (HOME / out).write_bytes((folder / out).read_bytes())
        print(f"wrote {HOME / out}")


def run(folder: Path, command: list[str | Path]) -> None:
    """A command that must succeed, in a folder."""
    subprocess.run([str(part) for part in command], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
