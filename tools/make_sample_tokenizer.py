"""Makes the tokenizers of the packaged sample: `python tools/make_sample_tokenizer.py`.

Byte-level BPE over the sample's own text. `tokenizer` has 2048 ids with the chatml control tokens;
`harmony` has the pre-tokenizer of o200k and, behind 2000 ids, gpt-oss's control tokens in their own
order, with the chat template that this package writes for harmony. The results are part of the
package, so nothing else needs `tokenizers`; run this again when the sample or the template changes.
The same text and version of `tokenizers` (0.23) give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

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
# The expression of o200k, with its classes of letters.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, SHORT = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"{LEAD}{UPPER}*{LOWER}+{SHORT}|{LEAD}{UPPER}+{LOWER}*{SHORT}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARMONY_WORDS = 2000
HARMONY_CONTROLS = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    "<|call|>",
    *(f"<|reserved_{number}|>" for number in range(200013, 200018)),
    "<|endofprompt|>",
]


def texts() -> Iterator[str]:
    """Every piece of text in the sample, and the role names."""
    yield from ("system\n", "user\n", "assistant\n")
    for line in (SAMPLE / "abbey_conversations.jsonl").read_text(encoding="utf-8").splitlines():
        yield from (turn["content"] for turn in json.loads(line)["messages"])
    for line in (SAMPLE / "abbey_preferences.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for part in ("prompt", "chosen", "rejected"):
            yield from (turn["content"] for turn in row[part])


def all_texts() -> Iterator[str]:
    """Every string of every row, and what harmony puts around them."""
    from abi_train.chat import format_info

    yield format_info("harmony").jinja
    yield from ("system", "developer", "user", "assistant", "analysis", "commentary", "final") * 3
    for file in sorted(SAMPLE.glob("*.jsonl")):
        if "held_out" not in file.name:
            for line in file.read_text(encoding="utf-8").splitlines():
                yield from strings(json.loads(line))


def strings(value: Any) -> Iterator[str]:
    """The texts in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def untrained(pattern: str) -> Tokenizer:
    """Byte-level BPE behind a split by `pattern`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trainer(size: int, specials: list[str]) -> trainers.BpeTrainer:
    """For `size` ids, `specials` the first of them."""
    return trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def write(name: str, tokenizer: Tokenizer, settings: dict[str, Any]) -> Path:
    """The folder `name` of the sample."""
    folder = SAMPLE / name
    folder.mkdir(exist_ok=True)
    document = json.loads(tokenizer.to_str())
    text = json.dumps(document, ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    print(f"{folder}: {tokenizer.get_vocab_size()} ids")
    return folder


def main() -> None:
    """Train and write both folders."""
    tokenizer = untrained(PATTERN)
    tokenizer.train_from_iterator(texts(), trainer(VOCAB_SIZE, SPECIALS))
    common = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    settings = {
        "bos_token": None,
        "chat_template": TEMPLATE,
        "eos_token": "<|im_end|>",
        "model_max_length": 256,
        "pad_token": "<|endoftext|>",
    }
    write("tokenizer", tokenizer, dict(sorted((settings | common).items())))
    harmony()


def harmony() -> None:
    """The one that speaks harmony."""
    from abi_train.chat import format_info

    tokenizer = untrained(O200K)
    tokenizer.train_from_iterator(all_texts(), trainer(HARMONY_WORDS, []))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in HARMONY_CONTROLS])
    settings = {
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|return|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    folder = write("harmony", tokenizer, settings)
    template = format_info("harmony").jinja
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


if __name__ == "__main__":
    main()
