"""Text to token ids: a few conversations become a token file that both engines read.

    python examples/01_prepare_data.py [folder]      (default folder: example-run)

Only what the assistant says is in the loss; the file format is docs/formats/token-bin.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from abi_train import TokenizedDataset, prepare
from abi_train.demo import SAMPLE  # 311 conversations that come with the package

ROWS = 12


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = (SAMPLE / "abbey_conversations.jsonl").read_text(encoding="utf-8")
    rows = folder / "conversations.jsonl"
    rows.write_text("".join(text.splitlines(keepends=True)[:ROWS]), encoding="utf-8")

    report = prepare([rows], SAMPLE / "tokenizer", folder / "train.bin", license_note="Apache-2.0")

    split = report.train
    print(f"{split.rows} conversations, {split.tokens} tokens, format {report.chat_format}")
    print(f"{split.tokens_in_loss} of the tokens are learned; the longest row has {split.longest}")
    print("\nthe first row, [what is learned] in brackets:\n")
    for piece, in_loss in report.first_example:
        print(f"[{piece}]" if in_loss else piece, end="")

    with TokenizedDataset.load(split.path) as data:
        first = next(iter(data.micro_batches(4, 128, shuffle=True, seed=42)))
        print(f"\n\na batch as the trainer sees it: input_ids {first.input_ids.shape}")
        print(f"{first.token_count} tokens without padding, {first.target_count} of them learned")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
