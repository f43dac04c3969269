"""Makes the tokenizer of the packaged sample: `python tools/make_sample_tokenizer.py`.

Byte-level BPE of 2048 ids over the sample's own text, with the chatml control tokens. The result is
part of the package, so the demonstration needs no `tokenizers`; run this again when the sample
changes. The same text and version of `tokenizers` (0.23) give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLE = Path(__file__).resolve().parents[1] / "python" / "abi_train" / "sample"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 2048
# The regex of Qwen 2: one digit a token, words with their leading space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def texts() -> Iterator[str]:
    """Every piece of text in the sample, and the role names."""
    yield from ("system\n", "user\n", "assistant\n")
    for line in (SAMPLE / "abbey_conversations.jsonl").read_text(encoding="utf-8").splitlines():
        yield from (turn["content"] for turn in json.loads(line)["messages"])
    for line in (SAMPLE / "abbey_preferences.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for part in ("prompt", "chosen", "rejected"):
            yield from (turn["content"] for turn in row[part])


def main() -> None:
    """Train and write the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    folder = SAMPLE / "tokenizer"
    folder.mkdir(exist_ok=True)
    document = json.loads(tokenizer.to_str())
    text = json.dumps(document, ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    settings = {
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 256,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    print(f"{folder}: {tokenizer.get_vocab_size()} ids")


if __name__ == "__main__":
    main()
