"""`DpoConfig`: learning from pairs of a chosen and a rejected answer, in TRL's own words.

The model is compared with a reference, which does not learn. Which model that is follows from the
run, is printed at its start and stands in its log: see `reference_of`.

Does not know: models, torch, how a loss is computed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError
from .rules import (
    Rule,
    as_number,
    broken,
    check_field,
    field,
    flag,
    path,
    positive,
    share,
    unknown_key,
)

__all__ = ["LOSS_TYPES", "METRICS", "DpoConfig", "Reference"]

LOSS_TYPES: Final = ("sigmoid", "hinge", "ipo", "robust", "sft", "sigmoid_norm", "apo_zero")
LARGEST: Final = 1_000_000
"""Of beta and of a weight: a loss of such a size overflows."""
METRICS: Final = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
)
"""What the log of a DPO run has besides loss, gradient norm and learning rate: TRL's names."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that a DPO run is compared with.

    kind: `adapter_off`, `starting_adapter`, `starting_model` or `ref_model`, with
    ` (precomputed)` when its log probabilities are computed once, before the first update.
    """

    kind: str
    words: str


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """How pairs are learned. loss_type: one loss, or several with `loss_weights`.

    Raises `ConfigError` naming the field, its value and the rule it breaks.
    """

    beta: float = positive(
        0.1, "how strongly the reference holds the model", least=1e-6, largest=LARGEST
    )
    loss_type: tuple[str, ...] = field(
        ("sigmoid",),
        Rule(
            kind="losses",
            note="the loss, or a list of losses that are added",
            words="it must be one or more of " + ", ".join(LOSS_TYPES),
        ),
    )
    loss_weights: tuple[float, ...] | None = field(
        None,
        Rule(
            kind="weights",
            note="weight of each loss; else 1 each",
            words=f"it must be one number from 0 to {LARGEST} for each loss of loss_type",
        ),
    )
    label_smoothing: float = share(0.0, "share of pairs taken to be the wrong way round (robust)")
    precompute_ref_log_probs: bool = flag(
        False, "ask the reference once, before the first update, and let it go"
    )
    ref_model: Path | None = path(  # noqa: RUF009 - a field
        "another model as the reference: a folder or a .gguf"
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        weights = self.loss_weights
        if weights is not None and len(weights) != len(self.loss_type):
            rule = f"loss_type has {len(self.loss_type)} losses; give a weight for each"
            raise broken("dpo.loss_weights", list(weights), rule)
        if "robust" in self.loss_type and self.label_smoothing >= 0.5:
            rule = "with the loss robust it must be below 0.5"
            raise broken("dpo.label_smoothing", self.label_smoothing, rule)
        if self.label_smoothing > 0.0 and "robust" not in self.loss_type:
            rule = "only the loss robust uses it; set it to 0, or loss_type to robust"
            raise broken("dpo.label_smoothing", self.label_smoothing, rule)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DpoConfig:
        """The settings these keys describe. Raises `ConfigError` for an unknown key."""
        known = {item.name for item in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise unknown_key(key, known, "the table dpo")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON; a single loss is a word, as one writes it."""
        values: dict[str, Any] = {
            "beta": self.beta,
            "loss_type": self.loss_type[0] if len(self.loss_type) == 1 else list(self.loss_type),
            "label_smoothing": self.label_smoothing,
            "precompute_ref_log_probs": self.precompute_ref_log_probs,
        }
        if self.loss_weights is not None:
            values["loss_weights"] = list(self.loss_weights)
        if self.ref_model is not None:
            values["ref_model"] = str(self.ref_model)
        return values

    def replace(self, **changes: Any) -> DpoConfig:
        """A changed copy, checked again."""
        return dataclasses.replace(self, **changes)

    def for_native(self) -> dict[str, Any]:
        """The form the native library reads."""
        return {
            **self.to_dict(),
            "loss_type": list(self.loss_type),
            "loss_weights": None if self.loss_weights is None else list(self.loss_weights),
            "ref_model": None if self.ref_model is None else str(self.ref_model.resolve()),
        }

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run with these settings is resumed."""
        return {
            "beta": self.beta,
            "loss_type": list(self.loss_type),
            "loss_weights": None if self.loss_weights is None else list(self.loss_weights),
            "label_smoothing": self.label_smoothing,
        }

    def reference(self, *, model: Path, lora: bool, adapter: Path | None) -> Reference:
        """The reference of a run on `model`, with adapters or without, that go on from one."""
        if self.ref_model is not None:
            kind, words = "ref_model", f"the model {self.ref_model}"
        elif adapter is not None:
            kind, words = "starting_adapter", f"a frozen copy of the adapter {adapter}"
        elif lora:
            kind, words = "adapter_off", f"{model} without the adapter"
        else:
            kind, words = "starting_model", f"{model} as it was at the start"
        if self.precompute_ref_log_probs:
            kind += " (precomputed)"
            words += ", asked once before the first update"
        return Reference(kind=kind, words=words)


def require_same_words(model: Path, reference: Path) -> None:
    """Raise `ConfigError` when both folders have a `tokenizer.json` and an id means another token
    in the one than in the other. Nothing can be said of other models."""
    ours, theirs = _words(model), _words(reference)
    if not ours or not theirs:
        return
    for number in sorted(ours.keys() | theirs.keys()):
        if ours.get(number) != theirs.get(number):
            raise ConfigError(
                f"dpo.ref_model: id {number} is {theirs.get(number)!r} in {reference} and "
                f"{ours.get(number)!r} in {model}; the reference must have the model's vocabulary"
            )


def _words(folder: Path) -> dict[int, str]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        known = document["model"]["vocab"]
        pairs = (
            known.items() if isinstance(known, dict) else ((w[0], n) for n, w in enumerate(known))
        )
        words = {int(number): str(word) for word, number in pairs}
        added = document.get("added_tokens") or []
        return words | {int(token["id"]): str(token["content"]) for token in added}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a tokenizer of another kind; the sizes are compared all the same


def _checked(item: dataclasses.Field[Any], value: Any) -> Any:
    rule: Rule = item.metadata["rule"]
    name = f"dpo.{item.name}"
    if rule.kind == "losses":
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not words:
            raise broken(name, value, rule.words)
        for word in words:
            if word not in LOSS_TYPES:
                raise broken(name, word, rule.words)
        if len(set(words)) != len(words):
            raise broken(name, ", ".join(words), "each loss may stand once")
        return tuple(words)
    if rule.kind == "weights":
        if value is None:
            return None
        numbers = [as_number(n) for n in value] if isinstance(value, (list, tuple)) else []
        if not numbers or not all(ok and 0 <= n <= LARGEST for n, ok in numbers):
            raise broken(name, value, rule.words)
        if not any(n for n, _ in numbers):
            raise broken(name, value, "one must be above 0, or nothing would be learned")
        return tuple(n for n, _ in numbers)
    return check_field(item, value, name=name)
