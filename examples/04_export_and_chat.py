"""A trained model to one file that answers: GGUF, read by llama.cpp, Ollama and `abi agent`.

python examples/04_export_and_chat.py [folder]      after 02_train.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from abi_train import Generator, export_gguf
from abi_train.demo import ask

QUESTION = "My exam is tomorrow and I can't calm down."


def main(folder: Path) -> None:
    # The newest checkpoint of the run, with its tokenizer and chat template, as 8-bit blocks.
    report = export_gguf(folder / "run", folder / "tiny.gguf", dtype="q8_0", name="tiny")
    print(f"{report.path}: {report.tensors} tensors, {report.size_bytes} bytes")

    # In Python: ids in, ids out, or whole chats. Temperature 0: always the likeliest token.
    with Generator.open(report.path) as model:
        answer = model.chat([{"role": "user", "content": QUESTION}], max_new_tokens=60)
        print(f"\nyou:    {QUESTION}\nmodel:  {answer}")
        print(f"        (ended by {model.end_reason})")

    # In the terminal: the Zig program, which keeps conversations when asked to.
    print(f"agent:  {ask(report.path, QUESTION)}")
    print(f"\ngo on with: abi agent --model {report.path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
