"""Does a quantised file still say what the trained model says? Both are run on the same prompts.

The trained folder is written as a GGUF that loses nothing of it and run by the same engine, so what
differs is the quantisation alone. Does not know: how files are written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..chat import FROM_TOKENIZER
from ..errors import AbiTrainError, FormatError, NumericsError
from ..generate import Generator

PROMPTS: Final = (
    "Hello, who are you?",
    "I feel stuck and a little sad today. What now?",
    "A box holds 12 apples. Three are eaten and 5 are added. How many are there? Step by step:",
    "Will it rain here in exactly one year? Say how sure you are.",
    "The quick brown fox",
    "def add(left, right):",
)
"""Chats where the model has a chat format, else texts to go on with."""
NEW_TOKENS: Final = 24
LOSSLESS_LIMIT: Final = 1e-3
"""Two files that both hold every weight as it is may differ by so much in a logit, by rounding."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What both say after one prompt. same: tokens before the first that differs."""

    prompt: str
    trained: str
    exported: str
    tokens: int
    same: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far two files are apart on the fixed prompts and what the trained one says after them.

    reference: the type in which the trained model was run, which loses nothing of it.
    positions: places at which the next token was asked of both, with the same tokens before it.
    largest_logit_difference: of any token at any place. logit_range: the largest logit less the
    smallest, on average, to compare with. divergence: Kullback-Leibler, nats, mean over places.
    same_choice: share of places at which both find the same token likeliest.
    """

    reference: str
    positions: int
    largest_logit_difference: float
    logit_range: float
    divergence: float
    same_choice: float
    continuations: tuple[Continuation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """The result in one line."""
        whole = sum(one.same == one.tokens for one in self.continuations)
        return (
            f"the same likeliest token at {self.same_choice:.1%} of {self.positions} places, the "
            f"same answer to {whole} of {len(self.continuations)} prompts, largest logit "
            f"difference {self.largest_logit_difference:.3g} (of a range of {self.logit_range:.3g})"
        )


def verify(
    exported: Path,
    trained: Path,
    *,
    reference: str,
    lossless: bool = False,
    prompts: Sequence[str] = PROMPTS,
    new_tokens: int = NEW_TOKENS,
    threads: int = 0,
) -> Verification:
    """Compare an exported GGUF with that of the trained model, greedily.

    lossless: the exported one holds every weight as it is, so the two must agree.
    Raises `FormatError` when they then do not, or when their vocabularies differ, `NumericsError`
    when a logit is not a number.
    """
    with (
        Generator.open(trained, threads=threads) as first,
        Generator.open(exported, threads=threads) as second,
    ):
        stops = set(first.tokenizer.stop_token_ids)
        places: list[tuple[float, float, float, bool]] = []
        said = []
        for prompt in prompts:
            ids = prompt_ids(first, prompt)
            room = min(first.info["context"], second.info["context"]) - new_tokens
            ids = ids[: max(1, room)]
            answer = _walk(first, second, ids, stops, new_tokens, places)
            other = list(second.generate(ids, max_new_tokens=new_tokens, stop_ids=sorted(stops)))
            same = next(
                (at for at, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b),
                min(len(answer), len(other)),
            )
            said.append(
                Continuation(
                    prompt=prompt,
                    trained=first.tokenizer.decode(answer, continues=True),
                    exported=second.tokenizer.decode(other, continues=True),
                    tokens=max(len(answer), len(other)),
                    same=same,
                )
            )
    found = Verification(
        reference=reference,
        positions=len(places),
        largest_logit_difference=max(place[0] for place in places),
        logit_range=math.fsum(place[1] for place in places) / len(places),
        divergence=math.fsum(place[2] for place in places) / len(places),
        same_choice=sum(place[3] for place in places) / len(places),
        continuations=tuple(said),
    )
    if lossless and found.largest_logit_difference > LOSSLESS_LIMIT:
        raise FormatError(
            f"{exported}: holds every weight as it was trained, but a logit differs by "
            f"{found.largest_logit_difference:.3g} from the trained model's. This is a fault of "
            "abi-train: please report it with the model's config.json"
        )
    return found


def prompt_ids(model: Generator, prompt: str) -> list[int]:
    """The ids of a prompt: a chat's where the model has a chat format, else a text's."""
    tokenizer = model.tokenizer
    try:
        found = tokenizer.chat_format()
        if found is not None:
            name = None if found.name == FROM_TOKENIZER else found.name
            chat = [{"role": "user", "content": prompt}]
            ids, _ = tokenizer.render_chat(chat, format=name, add_generation_prompt=True)
            return [int(one) for one in ids]
    except AbiTrainError:
        pass  # a template that wants more than a question; the text will do
    return [int(one) for one in tokenizer.encode(prompt)]


def _walk(
    first: Generator,
    second: Generator,
    ids: Sequence[int],
    stops: set[int],
    new_tokens: int,
    places: list[tuple[float, float, float, bool]],
) -> list[int]:
    """Go along the trained model's own answer and ask both at each place; returns the answer."""
    path, answer = list(ids), list[int]()
    for _ in range(new_tokens):
        left, right = first.logits(path), second.logits(path)
        if left.shape != right.shape:
            raise FormatError(
                f"{second.path}: knows {right.size} words, the trained model {left.size}"
            )
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise NumericsError(f"{second.path}: a logit is not a number after {len(path)} tokens")
        chosen = int(left.argmax())
        places.append(
            (
                float(np.abs(left - right).max()),
                float(left.max() - left.min()),
                _divergence(left, right),
                chosen == int(right.argmax()),
            )
        )
        if chosen in stops:
            break
        path.append(chosen)
        answer.append(chosen)
    return answer


def _divergence(left: Any, right: Any) -> float:
    """Kullback-Leibler of what the right one expects from what the left one does, in nats."""
    p = left.astype(np.float64) - left.max()
    q = right.astype(np.float64) - right.max()
    log_p, log_q = p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))
