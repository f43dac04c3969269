"""From measured distances to a verdict: a fault of the format, or what rounding costs.

A file that holds every weight as it is must give the trained model's logits to `EXACT_LIMIT`; more,
and not in a few places only, is a fault, and the file is not handed over. What is stored in fewer
bits differs by what was rounded away: `BANDS` says how much is usual for each type, and more is
said as a warning. The two are told apart because the first comparison has no rounding in it.

Does not know: how distances are measured, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from .compare import Distance

EXACT_LIMIT: Final = 1e-4
"""Largest logit difference of two ways to compute the same weights, as a part of the range of the
logits. Real ones give 1e-7 to 1e-6; a wrong permutation, base of RoPE or epsilon gives 1e-3 on."""
EXACT_NOISE: Final = 5e-5
"""What the error must reach besides, as a part of the logits' spread over all places. A fault of
the format is in every place; a model with scores so large that its attention tips from one token
to another has float32's own rounding in a few (1.2e-4 at worst and 1.7e-5 over all was seen)."""
CERTAIN: Final = 1e-3
"""Beyond it one place is enough."""
PEER_LIMIT: Final = 1e-3
"""Largest difference of a token's log-probability between transformers and the native engine."""
UNRELATED: Final = 1.0
"""Noise as strong as the logits themselves: the file no longer says what the model says."""

BANDS: Final = {
    "f32": 1e-4,
    "f16": 0.004,
    "bf16": 0.02,
    "q8_0": 0.06,
    "q6_k": 0.1,
    "q5_k": 0.2,
    "q5_1": 0.2,
    "q5_0": 0.2,
    "q4_k": 0.3,
    "q4_1": 0.35,
    "q4_0": 0.35,
    "mxfp4": 0.5,
}
"""Most noise that is usual, by the main type of a mix: three to five times what trained models of
four and six layers gave, and above what 24 layers of random weights gave, where errors add up
(`tools/measure_bands.py`, docs/export.md)."""

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that was not kept. kind: `format`, `tokenizer`, `peer`, `reference` or `noise`.
    value, limit: what was measured, and what it may be."""

    verdict: Verdict
    kind: str
    text: str
    value: float
    limit: float


def band_of(mix: str, *, blocks: bool = False) -> float:
    """The most noise that is usual for a mix or a type; blocks: with experts that stay MXFP4."""
    if blocks:
        return max(band_of(mix), BANDS["mxfp4"])
    name = {"mxfp4_moe": "mxfp4"}.get(mix, mix.removesuffix("_m").removesuffix("_s"))
    return BANDS[name]


def judge_format(distance: Distance, what: str) -> Finding | None:
    """Of two ways to compute the same weights: a fault, or where it may as well be the rounding of
    float32, a warning."""
    relative = distance.relative
    if relative <= EXACT_LIMIT:
        return None
    differ = f"{what} differ by {relative:.3g} of the range of their logits"
    if relative <= CERTAIN and distance.noise <= EXACT_NOISE:
        return Finding(
            verdict="warn",
            kind="format",
            text=f"{differ} in places, but by {distance.noise:.2g} of their spread over all: in "
            "this model the rounding of float32 itself grows that far",
            value=relative,
            limit=EXACT_LIMIT,
        )
    return Finding(
        verdict="fail",
        kind="format",
        text=f"{differ}, and the same weights must agree to {EXACT_LIMIT:g}: the file does not say "
        "what the model says",
        value=relative,
        limit=EXACT_LIMIT,
    )


def judge_noise(noise: float, mix: str, *, blocks: bool = False) -> Finding | None:
    """Of a file in fewer bits. blocks: as for `band_of`."""
    limit = band_of(mix, blocks=blocks)
    if noise <= limit:
        return None
    if noise >= UNRELATED:
        return Finding(
            verdict="fail",
            kind="noise",
            text=f"the logits in {mix} have an error of {noise:.3g} times their own spread: the "
            "file no longer says what the model says",
            value=noise,
            limit=UNRELATED,
        )
    return Finding(
        verdict="warn",
        kind="noise",
        text=f"the error of the logits in {mix} is {noise:.3g} of their spread, and up to "
        f"{limit:g} is usual: this model takes badly to {mix}, a finer type may serve it better",
        value=noise,
        limit=limit,
    )


def judge_peer(difference: float) -> Finding | None:
    """Of transformers and the native engine on the trained folder."""
    if difference <= PEER_LIMIT:
        return None
    return Finding(
        verdict="fail",
        kind="peer",
        text=f"transformers and the native engine differ by {difference:.3g} in the "
        f"log-probability of a token of the same folder, and may differ by {PEER_LIMIT:g}",
        value=difference,
        limit=PEER_LIMIT,
    )


def judge_stand_in(said: str) -> Finding:
    """Of a folder that could not be run by itself."""
    return Finding(
        verdict="warn",
        kind="reference",
        text=f"{said}: a file that rounds nothing stood in for it, so only the rounding was "
        "measured, not the format. --transformers compares with the folder",
        value=0.0,
        limit=0.0,
    )


def together(findings: tuple[Finding, ...]) -> Verdict:
    """The gravest."""
    found = {one.verdict for one in findings}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"
