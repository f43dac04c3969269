"""Writes docs/lint.md: its text, and the table of codes from `abi lint --list`.

    python tools/make_lint_docs.py [docs/lint.md]     (or: make docs)

A test compares the page with what this file makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from abi_train._native.program import program_path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lint.md"

HEAD = """\
# Files that other programs refuse

Made by `make docs` from the program; a test compares. Code: `zig/src/formats/lint/`.

    abi lint model.gguf

reads a GGUF file more patiently than anything that runs it would, and says what makes programs
refuse it, abort, or compute something else. Each finding has a code that stays, the field, what
happens in which program, and what to do. "llama.cpp" is that of August 2026; Ollama runs models
through it. `--json` gives the same as one object, for scripts:

| key | meaning |
|---|---|
| `file` | as it was named |
| `findings` | list of `code`, `severity`, `field`, `message`, `effect`, `next`, `mends` |
| `errors`, `warnings`, `notes` | how many of each |
| `omitted` | how many were counted and not listed: of each code twelve are listed |
| `fixed` | with `--fix`: the same for the file written, and its `bytes` and `tensors_changed` |
| `error` | instead of all but `file`, when the file cannot be read |

An **error** is something that some program refuses or dies of. A **warning** loads and does
something wrong. A **note** is worth knowing. The exit code is 0 without errors and warnings, 1
with some, and 2 when the file cannot be read at all (also for a wrong command line). A model in
several files is checked as one, whichever part is named. The numbers are looked at too, which
reads the whole file; `--no-numbers` leaves that out.

## Mending

    abi lint old.gguf --fix new.gguf
    abi lint model.gguf --fix model.gguf --pre qwen2

writes the file with keys in their right types, what is missing and follows from the rest filled
in, and tensors laid out in order. The parts of a split model become one file. The new file is
written beside its name, read back strictly and then renamed: until then whatever stood there is
untouched, the input too where it is the same file. Then it is checked again, and the exit code is
about the new file. Where nothing can be mended nothing is written.

Tensors are copied byte for byte, except:

| what | becomes |
|---|---|
| norms, biases and sinks in f16, bf16 or f64 | f32: the same numbers (f64 rounded once) |
| files of the ABI framework's first writer | dimensions and the rows of q and k in order |
| gpt-oss of early Ollama | rows of fused tensors apart, nibbles in order; nothing is rounded |
| gpt-oss without `output.weight` | the embedding is written a second time under that name |

The layout is that of every file written here: version 3, alignment 32.

What `--fix` never does: invent numbers, drop tensors, or rename a token that a model may write.

## Old Ollama files

The first gpt-oss files that Ollama gave out call the architecture `gptoss`. `--fix` translates
them: `attn_out` to `attn_output`, `attn_sinks` to `attn_sinks.weight`, `ffn_norm` to
`post_attention_norm`, `attn_qkv` to q, k and v, `ffn_gate_up_exps` (gate in the even rows, up in
the odd ones) to two tensors, keys from `gptoss.*` to `gpt-oss.*`, and MXFP4 blocks from type 4,
where a byte holds two neighbours, to type 39, where it holds elements sixteen apart.

## Codes
"""


def page() -> str:
    done = subprocess.run(
        [str(program_path()), "lint", "--list", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [HEAD]
    words = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
    codes = json.loads(done.stdout)
    for severity, heading in words.items():
        lines.append(f"### {heading}\n")
        lines.append("| code | what is found | what happens | what to do | `--fix` |")
        lines.append("|---|---|---|---|---|")
        for rule in codes:
            if rule["severity"] == severity:
                cells = [rule["summary"], rule["effect"], rule["next"], rule["mends"]]
                text = " | ".join(cell.replace("|", "\\|") for cell in cells)
                lines.append(f"| `{rule['code']}` | {text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")
