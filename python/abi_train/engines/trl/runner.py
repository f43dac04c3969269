"""A model folder run by torch, for evaluation: likelihoods in batches, and the likeliest answer.

Rows of a batch are padded on the right, where no earlier position can see it. Does not know: text,
tasks, training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...adapters import ADAPTER_WEIGHTS
from ...errors import CheckpointError, ConfigError, FormatError, NumericsError
from .libraries import SafetensorError, adapters, torch
from .model import load_model
from .surroundings import one_line, quiet
from .surroundings import threads as computing_with

MAX_CONTEXT = 4096
BATCH_LOGITS = 1 << 25
"""Logits at once, in all rows together: 128 MB in float32."""

Ids = npt.NDArray[np.uint32]
Judged = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


class TorchRunner:
    """See `abi_train.evaluate.scorer.Runner`. In float32; on a GPU stored bfloat16 stays so."""

    engine = "torch"

    def __init__(
        self, folder: Path, *, adapter: Path | None, scratch: Path, threads: int = 0
    ) -> None:
        self._own = contextlib.ExitStack()
        self._own.enter_context(computing_with(threads))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = "bf16" if self._device == "cuda" else "float32"
        with quiet():
            model = load_model(
                folder,
                seed=0,
                precision=precision,
                device=self._device,
                scratch=scratch,
                frozen=True,
            )
            if adapter is not None:
                weights = adapter / ADAPTER_WEIGHTS
                if not weights.is_file():
                    raise CheckpointError(
                        f"{adapter}: {ADAPTER_WEIGHTS} is missing; copy it there, or name another "
                        "checkpoint"
                    )
                try:
                    model = adapters.PeftModel.from_pretrained(model, str(adapter))
                except SafetensorError as error:
                    raise FormatError(
                        f"{weights}: damaged, or not whole ({one_line(error)}); copy or download "
                        "it again"
                    ) from error
                except (OSError, ValueError, KeyError, RuntimeError) as error:
                    if "size mismatch" in str(error):
                        raise FormatError(
                            f"{weights}: its tensors have other sizes than {folder} and the ranks "
                            "in adapter_config.json ask for; they do not belong together"
                        ) from error
                    raise ConfigError(
                        f"{adapter}: PEFT cannot put it on {folder}: {one_line(error)}"
                    ) from error
        self._model: Any = model.to(self._device).eval()
        config = model.config
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self.context = min(int(getattr(config, "max_position_embeddings", 0) or 0), MAX_CONTEXT)
        self.context = self.context or MAX_CONTEXT

    def close(self) -> None:
        """Free the model."""
        self._model = None
        self._own.close()

    def log_probs(self, wanted: Sequence[tuple[Ids, int]]) -> list[Judged]:
        """Of each id from `first` on its log-probability, and whether no other is likelier."""
        order = sorted(range(len(wanted)), key=lambda i: -wanted[i][0].size)
        found: dict[int, Judged] = {}
        at = 0
        while at < len(order):
            width = wanted[order[at]][0].size
            rows = max(1, BATCH_LOGITS // (width * self.vocab_size))
            batch = order[at : at + rows]
            results = self._batch([wanted[i] for i in batch], width)
            found.update(zip(batch, results, strict=True))
            at += rows
        return [found[number] for number in range(len(wanted))]

    def _batch(self, wanted: Sequence[tuple[Ids, int]], width: int) -> list[Judged]:
        ids = torch.zeros(len(wanted), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (given, _) in enumerate(wanted):
            ids[row, : given.size] = torch.from_numpy(given.astype(np.int64))
            mask[row, : given.size] = 1
        with torch.inference_mode():
            answered = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                use_cache=False,
            )
            found = []
            for row, (given, first) in enumerate(wanted):
                logits = answered.logits[row, first - 1 : given.size - 1].double()
                _require_numbers(logits)
                targets = ids[row, first : given.size, None].to(self._device)
                logs = torch.log_softmax(logits, dim=-1).gather(-1, targets)[:, 0]
                best = logits.gather(-1, targets)[:, 0] == logits.max(dim=-1).values
                found.append((logs.cpu().numpy(), best.cpu().numpy()))
        return found

    def answer(self, prompt: Ids, stops: Sequence[int], most: int) -> tuple[list[int], str]:
        """The likeliest ids behind `prompt`, and why they end: `stop_id`, `length`, `context`."""
        found: list[int] = []
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(self._device)
        cache: Any = None
        with torch.inference_mode():
            while len(found) < most:
                if prompt.size + len(found) > self.context:
                    return found, "context"
                answered = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = answered.past_key_values
                logits = answered.logits[0, -1]
                _require_numbers(logits)
                best = int(logits.argmax())
                if best in stops:
                    return found, "stop_id"
                found.append(best)
                ids = torch.tensor([[best]], device=self._device)
        return found, "length"


def _require_numbers(logits: Any) -> None:
    if bool(torch.isnan(logits).any()) or bool((logits == float("inf")).any()):
        raise NumericsError("the model's logits are not numbers: its weights are broken")
