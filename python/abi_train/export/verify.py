"""Does an exported file say what the trained model says? Both are asked the same, and judged.

The trained model is run by the engine that trained it, in float32 from the weights as they are
stored; the file by the engine that runs files. Two questions are kept apart: whether the format is
right, which is asked where nothing is rounded, and what the rounding costs. Does not know: how
files are written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ..chat import FROM_TOKENIZER
from ..errors import AbiTrainError, FormatError, UnsupportedError
from ..generate import Generator
from ..tokenizer import Tokenizer
from .compare import Distance, Stand, Tally, Trained, along, follow
from .prompts import PROMPTS, TEXTS
from .verdict import (
    PEER_LIMIT,
    Finding,
    Verdict,
    band_of,
    judge_format,
    judge_noise,
    judge_peer,
    judge_stand_in,
    together,
)

NEW_TOKENS: Final = 24
SMALL_BYTES: Final = 16 << 20
"""Of a file so small that handing work to other threads takes longer than doing it."""
How = Literal["file", "copy", "exact"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a verification is asked for beyond the fixed prompts.

    text: a file whose perplexity is measured with both: a text, or rows (.jsonl, .bin).
    transformers: run the folder by transformers, too, where it is installed. threads: 0: one per
    CPU, and one alone for a small model.
    """

    text: Path | None = None
    transformers: bool = False
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What both say after one prompt. same: tokens before the first that differs."""

    prompt: str
    trained: str
    exported: str
    tokens: int
    same: int


@dataclass(frozen=True, kw_only=True)
class FormatCheck:
    """Two computations of the same weights, with nothing rounded between them.

    how: `file`: the trained folder and the file, which holds every weight as it is; `copy`: the
    folder and a second file of `dtype`, which does; `exact`: both engines on the file's own
    weights, where such a copy would be large or has no room.
    """

    how: How
    dtype: str
    distance: Distance


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Of a text: exp of the mean surprise of a token, for both. tokens: that were predicted."""

    text: str
    tokens: int
    trained: float
    exported: float


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Largest difference of a token's log-probability between transformers and the native engine on
    the trained folder, along its answers."""

    positions: int
    largest_log_prob_difference: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found, and what it means.

    verdict: `pass`; `warn`, which says what to look at; `fail`, and then the file was not handed
    over. exported: how far the file, run as everyone will run it, is from the trained model.
    band: the most noise that is usual for its types. format: see `FormatCheck`.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    mix: str
    exported: Distance
    band: float
    format: FormatCheck
    continuations: tuple[Continuation, ...]
    perplexity: Perplexity | None = None
    transformers: Peer | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The result for people, a line each."""
        whole = sum(one.same == one.tokens for one in self.continuations)
        found, form = self.exported, self.format
        against = {
            "file": "the file, which rounds nothing",
            "copy": f"a copy in {form.dtype}, which rounds nothing",
            "exact": "the file's own weights by both engines",
        }[form.how]
        lines = [
            f"verified: {self.verdict}",
            f"format: {against}: logits agree to {form.distance.relative:.2g} of their range",
            f"{self.mix}: the same likeliest token at {found.same_choice:.1%} of "
            f"{found.positions} places, the same answer to {whole} of {len(self.continuations)} "
            f"prompts, largest logit difference {found.largest_logit_difference:.3g} (of a range "
            f"of {found.logit_range:.3g}), divergence {found.divergence:.2g} nats, noise "
            f"{found.noise:.2g} (usual: up to {self.band:g})",
        ]
        if self.perplexity is not None:
            p = self.perplexity
            lines.append(
                f"perplexity of {Path(p.text).name} ({p.tokens} tokens): trained {p.trained:.4g}, "
                f"{self.mix} {p.exported:.4g}"
            )
        if self.transformers is not None:
            lines.append(
                "transformers: log-probabilities of the trained folder agree to "
                f"{self.transformers.largest_log_prob_difference:.2g}"
            )
        return [*lines, *(f"{one.verdict}: {one.text}" for one in self.findings)]

    def sentence(self) -> str:
        """The result in one line."""
        return "; ".join(self.sentences())


def verify(
    exported: Path,
    model: Path,
    *,
    mix: str,
    adapter: Path | None = None,
    tokenizer: Path | None = None,
    how: How = "exact",
    copy: Path | None = None,
    copy_dtype: str = "f32",
    blocks: bool = False,
    check: Check | None = None,
    prompts: Sequence[str] = PROMPTS,
    texts: Sequence[str] = TEXTS,
    new_tokens: int = NEW_TOKENS,
) -> Verification:
    """Compare an exported GGUF with the model folder it was made of, and judge.

    model: the folder, or a .gguf base; adapter: a PEFT folder that was added to it. tokenizer: the
    folder the file's tokenizer came from. how, copy: see `FormatCheck`; with `copy` the other file.
    blocks: experts stay MXFP4 whatever the mix says, so the file is that noisy.
    A verdict `fail` is returned, not raised. Raises `NumericsError` when a logit is not a number,
    `FormatError` when vocabularies differ, and what opening either raises.
    """
    check = check or Check()
    threads = check.threads or (1 if exported.stat().st_size < SMALL_BYTES else 0)
    with contextlib.ExitStack() as stack:
        trained, findings = _reference(model, adapter, copy or exported, threads)
        stack.callback(trained.close)
        file = stack.enter_context(Generator.open(exported, threads=threads))
        room = min(trained.context, file.info["context"]) - new_tokens
        asked = [*((one, True) for one in prompts), *((one, False) for one in texts)]
        given = [prompt_ids(file.tokenizer, one, chat=chat)[: max(1, room)] for one, chat in asked]
        if tokenizer is not None:
            findings.append(_judge_words(tokenizer, asked, given, max(1, room)))
        answers, said = list[tuple[list[int], list[int]]](), list[Continuation]()
        tally = Tally(exported)
        same = _SameWeights(exported, trained, how, copy, copy_dtype, threads, stack)
        stops = set(file.tokenizer.stop_token_ids)
        for (prompt, _), ids in zip(asked, given, strict=True):
            other = list(file.generate(ids, max_new_tokens=new_tokens, stop_ids=sorted(stops)))
            answer, rows = follow(
                trained, _guesses(file, ids, other, stops), ids, stops, new_tokens
            )
            for left, right in zip(rows, along(file, ids, answer, len(rows)), strict=True):
                tally.add(left, right)
            same.add(ids, answer, rows)
            answers.append((ids, answer))
            said.append(_continuation(file.tokenizer, prompt, answer, other))
        form = same.done()
        findings.append(judge_format(form.distance, _both(form)))
        found = tally.done()
        findings.append(judge_noise(found.noise, mix, blocks=blocks))
        peer = None
        if check.transformers:
            peer = _peer(model, adapter, trained, answers, exported.parent, threads)
            findings.append(judge_peer(peer.largest_log_prob_difference))
        perplexity = None
        if check.text is not None:
            perplexity = _perplexity(check.text, trained, exported, file.tokenizer, threads)
    kept = tuple(one for one in findings if one is not None)
    return Verification(
        verdict=together(kept),
        findings=kept,
        mix=mix,
        exported=found,
        band=band_of(mix, blocks=blocks),
        format=form,
        continuations=tuple(said),
        perplexity=perplexity,
        transformers=peer,
    )


def _reference(
    model: Path, adapter: Path | None, instead: Path, threads: int
) -> tuple[Trained | Stand, list[Finding | None]]:
    """The trained model, or where the engine of training does not run it, a file that holds the
    same; then a finding says so."""
    try:
        trained = Trained(model, adapter, threads=threads)
    except UnsupportedError as error:
        said = f"the trained folder itself was not run ({error})"
        return Stand(instead, threads=threads), [judge_stand_in(said)]
    return trained, []


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, chat: bool = True) -> list[int]:
    """The ids of a prompt: a chat's where the model has a chat format, else a text's."""
    try:
        found = tokenizer.chat_format() if chat else None
        if found is not None:
            name = None if found.name == FROM_TOKENIZER else found.name
            turns = [{"role": "user", "content": prompt}]
            ids, _ = tokenizer.render_chat(turns, format=name, add_generation_prompt=True)
            return [int(one) for one in ids]
    except AbiTrainError:
        pass  # a template that wants more than a question; the text will do
    return [int(one) for one in tokenizer.encode(prompt)]


def _guesses(file: Generator, ids: Sequence[int], first: Sequence[int], stops: set[int]) -> Any:
    """What the file would say next: its own answer, then again from where the trained model left
    it."""

    def guess(path: Sequence[int], room: int) -> Iterator[int]:
        if len(path) == len(ids):
            return iter(first[:room])
        return file.generate(path, max_new_tokens=room, stop_ids=sorted(stops))

    return guess


def _continuation(
    tokenizer: Tokenizer, prompt: str, answer: Sequence[int], other: Sequence[int]
) -> Continuation:
    same = next(
        (at for at, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b),
        min(len(answer), len(other)),
    )
    return Continuation(
        prompt=prompt,
        trained=tokenizer.decode(answer, continues=True),
        exported=tokenizer.decode(other, continues=True),
        tokens=max(len(answer), len(other)),
        same=same,
    )


Answers = list[tuple[list[int], list[int]]]


class _SameWeights:
    """The same weights by both engines, along the trained model's answers. What it opens belongs to
    `stack`."""

    def __init__(
        self,
        exported: Path,
        trained: Trained | Stand,
        how: How,
        copy: Path | None,
        copy_dtype: str,
        threads: int,
        stack: contextlib.ExitStack,
    ) -> None:
        path = exported if copy is None else copy
        self._how, self._dtype = how, copy_dtype
        opened = Generator.open(path, threads=threads, exact=True, cache="f32")
        self._file = stack.enter_context(opened)
        self._own: Trained | None = None
        if how == "exact" and isinstance(trained, Trained):
            self._own = Trained(exported, threads=threads)
            stack.callback(self._own.close)
            _require_same_config(self._own, trained)
        self._tally = Tally(path)

    def add(self, ids: Sequence[int], answer: Sequence[int], rows: Sequence[Any]) -> None:
        """One answer. rows: the trained model's logits along it."""
        lefts = rows
        if self._own is not None:
            lefts = self._own.logits([*ids, *answer[: len(rows) - 1]], len(ids) - 1)
        for left, right in zip(lefts, along(self._file, ids, answer, len(rows)), strict=True):
            self._tally.add(left, right)

    def done(self) -> FormatCheck:
        """Over all answers."""
        return FormatCheck(how=self._how, dtype=self._dtype, distance=self._tally.done())


def _require_same_config(own: Trained, trained: Trained | Stand) -> None:
    """Raise `FormatError` where the file's keys make another model than the folder's config.json:
    its own weights cannot tell."""
    for key in sorted({*own.config, *trained.config} - FREE):
        left, right = trained.config.get(key), own.config.get(key)
        if not _same(left, right):
            raise FormatError(
                f"{own.path}: says {key} is {right!r}, the trained model {left!r}. This is a fault "
                "of abi-train: please report it"
            )


FREE: Final = frozenset(
    {"dtype", "torch_dtype", "architectures", "initializer_range", "use_cache", "attention_dropout"}
    | {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "tie_word_embeddings",
    }
)
"""Keys of config.json that say nothing about what is computed from weights that are there."""


def _same(left: Any, right: Any) -> bool:
    """Equal, where numbers may have gone through float32."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return all(_same(left.get(key), right.get(key)) for key in {*left, *right})
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return abs(left - right) <= 1e-6 * abs(left)
    return bool(left == right)


def _both(form: FormatCheck) -> str:
    return {
        "file": "the trained folder and the file",
        "copy": f"the trained folder and its {form.dtype} GGUF",
        "exact": "the two engines on the file's own weights",
    }[form.how]


def _judge_words(
    folder: Path, asked: Sequence[tuple[str, bool]], given: Sequence[list[int]], room: int
) -> Finding | None:
    """Texts must have the same ids by the file's tokenizer as by that of training."""
    with Tokenizer.load(folder) as own:
        for (prompt, chat), ids in zip(asked, given, strict=True):
            wanted = prompt_ids(own, prompt, chat=chat)[:room]
            if wanted == ids:
                continue
            at = next(
                (i for i, (a, b) in enumerate(zip(wanted, ids, strict=False)) if a != b),
                min(len(wanted), len(ids)),
            )
            return Finding(
                verdict="fail",
                kind="tokenizer",
                text=f"{prompt!r} has other ids by the file's tokenizer than by that of {folder}, "
                f"from id {at} on: the file does not read what the model was taught",
                value=float(at),
                limit=float(len(wanted)),
            )
    return None


def _peer(
    model: Path,
    adapter: Path | None,
    trained: Trained | Stand,
    answers: Answers,
    scratch: Path,
    threads: int,
) -> Peer:
    """The folder by transformers, along the native engine's answers."""
    import numpy as np

    from ..engines.trl.runner import TorchRunner

    runner = TorchRunner(model, adapter=adapter, scratch=scratch, threads=threads)
    try:
        wanted = [(np.array([*ids, *answer], dtype=np.uint32), len(ids)) for ids, answer in answers]
        wanted = [(ids, first) for ids, first in wanted if first < ids.size]
        theirs = runner.log_probs(wanted)
    finally:
        runner.close()
    ours = trained.log_probs(wanted)
    gaps = [np.abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)]
    return Peer(
        positions=sum(gap.size for gap in gaps),
        largest_log_prob_difference=max((float(gap.max()) for gap in gaps), default=0.0),
    )


def _perplexity(
    text: Path, trained: Trained | Stand, exported: Path, tokenizer: Tokenizer, threads: int
) -> Perplexity:
    from ..evaluate import perplexity
    from ..evaluate.scorer import NativeRunner, Scorer

    own, details = perplexity.evaluate(Scorer(trained, tokenizer, chat_format=None), text)
    runner = NativeRunner(exported, threads=threads)
    try:
        other, _ = perplexity.evaluate(Scorer(runner, tokenizer, chat_format=None), text)
    finally:
        runner.close()
    for scores in (own, other):
        if "perplexity" not in scores:
            raise FormatError(f"{text}: more surprising than a number can say; give another text")
    return Perplexity(
        text=str(details["file"]),
        tokens=int(own["tokens"]),
        trained=own["perplexity"],
        exported=other["perplexity"],
    )


__all__ = [
    "NEW_TOKENS",
    "PEER_LIMIT",
    "PROMPTS",
    "Check",
    "Continuation",
    "Distance",
    "Finding",
    "FormatCheck",
    "Peer",
    "Perplexity",
    "Verification",
    "prompt_ids",
    "verify",
]
