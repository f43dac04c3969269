"""`DPOTrainer` in our loop: learning pairs of a chosen and a rejected answer.

TRL computes the loss, its metrics and the reference; ours is where the reference comes from, which
is the same on both engines and after a resume. The figures of an update are means over its
micro-batches, as TRL logs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...preference import METRICS
from ...runspec import EvalRecord
from .. import Asking, processes
from . import adapter
from .gpt_oss import balance
from .head import use_plain_head
from .libraries import DPOTrainer, PairCollator, datasets, torch
from .loop import Loop
from .settings import dpo_config, hidden_head, placeholder_tokenizer
from .together import added, gathering, share

if TYPE_CHECKING:
    from .session import Session

CHOSEN, REJECTED = "ref_chosen_logps", "ref_rejected_logps"
COUNTS = "pairs"
"""Pairs of this process, and of all; tokens of their better answers, here and of all."""


_WHOLE = ("DistributedType.MULTI_CPU", "DistributedType.MULTI_GPU")
"""Launches under which each process holds the whole model."""


class DpoLoop(Loop, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO around one model, for one session."""

    loss_weights: Any
    """TRL's: one for each of its `loss_types`."""

    def __init__(
        self,
        session: Session,
        model: Any,
        folder: str,
        *,
        ref_model: Any = None,
        ref_adapter: Path | None = None,
    ) -> None:
        self.begin(session)
        assert session.dpo is not None
        self.ref_model: Any = None
        self._pairs = PairCollator(pad_token_id=0, max_length=session.config.max_seq_len)
        self._known: dict[int, Any] = {}
        self._imitates = "sft" in session.dpo.loss_type
        special = _special_ids(model)
        row = {"prompt_ids": [[0]], "chosen_ids": [[0]], "rejected_ids": [[0]]}
        with hidden_head(model, session.head_is_trained):
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=dpo_config(session, folder, balance(model)),
                data_collator=self._pairs,
                train_dataset=datasets.Dataset.from_dict(row),
                processing_class=placeholder_tokenizer(),
            )
        self.made()
        _restore_ids(model, special)
        if session.lora is not None:
            # TRL copies the adapter as it is now, which after a resume is not where it started.
            if ref_adapter is not None:
                adapter.add_reference(self.model, ref_adapter)
            else:
                adapter.forget_reference(self.model)
        if session.precision == "float64" or session.head_is_trained:
            base = self.model if session.lora is None else self.model.get_base_model()
            use_plain_head(base)
            if self.ref_model is not None:
                use_plain_head(self.ref_model)
        if session.dpo.precompute_ref_log_probs:
            self._ask_reference()

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Rows come tokenised."""
        return dataset

    def _ask_reference(self) -> None:
        """Log probabilities of the reference for every pair, once; then it is let go."""
        model = self.ref_model or self.model
        model.eval()
        sets = [rows for rows in (self.session.rows, self.session.eval_rows) if rows is not None]
        asking, told, pairs = Asking(self.session.observer), 0, sum(len(rows) for rows in sets)
        # Each process asks about its own micro-batches, where it has the whole model.
        ranks = processes.count() if str(self.accelerator.distributed_type) in _WHOLE else 1
        for rows in sets:
            sums = np.zeros((2, len(rows)))
            for at, numbers in enumerate(rows.batches(np.arange(rows.order_count))):
                if ranks == 1 or at % ranks == processes.rank():
                    inputs = self._prepare_inputs(self.collated(numbers, rows, shared=False))
                    inputs.pop(COUNTS)
                    for kind, values in enumerate(self.compute_ref_log_probs(model, inputs)):
                        sums[kind, numbers] = values.double().cpu().numpy()
                told += len(numbers)
                asking.told(told, pairs)
            if ranks > 1:
                sums = np.reshape(added(sums.ravel().tolist(), self.args.device), (2, len(rows)))
            self._known[id(rows)] = (sums[0], sums[1])
        self.precompute_ref_logps = True
        self.ref_model = None
        self.model.train()

    def collated(self, numbers: list[int], rows: Any, *, shared: bool = True) -> Any:
        mine = share(numbers) if shared else list(numbers)
        there = mine or [numbers[0]]  # a stand-in, from which nothing is learned
        batch = self._pairs([rows[number] for number in there])
        known = self._known.get(id(rows))
        if known is not None:
            kind = torch.float64 if self.session.precision == "float64" else torch.float32
            for key, values in zip((CHOSEN, REJECTED), known, strict=True):
                batch[key] = torch.tensor(values[there], dtype=kind)
        times = 1 if shared else processes.count()
        tokens = [
            sum(_answer_tokens(rows[number], self.session.config.max_seq_len) for number in some)
            if self._imitates
            else 0
            for some in (mine, numbers)
        ]
        batch[COUNTS] = torch.tensor(
            [len(mine), len(numbers) * times, tokens[0], tokens[1] * times]
        )
        return batch

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        mine, all_pairs, tokens, all_tokens = inputs.pop(COUNTS).tolist()
        weights = self.loss_weights
        if self._imitates and mine and processes.count() > 1:
            # A mean over tokens, which the factor below takes for one over pairs.
            factor = (tokens / max(1, all_tokens)) / (mine / all_pairs)
            self.loss_weights = [
                weight * (factor if kind == "sft" else 1.0)
                for kind, weight in zip(self.loss_types, weights, strict=True)
            ]
        with gathering(self.accelerator, mine):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.loss_weights = weights
        # A mean over this process's pairs; the mean over processes is to be one over all pairs.
        return loss * (mine * processes.count() / all_pairs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mine = int(inputs[COUNTS][0])
        half = len(inputs["input_ids"]) // 2
        rows = [*range(mine), *range(half, half + mine)]
        self._tokens += int(inputs["attention_mask"][rows].sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def step_metrics(self) -> dict[str, float]:
        seen = self._metrics["train"]
        means = {key: float(np.mean(seen[key])) for key in METRICS}
        means["mean_token_accuracy"] = float(np.mean(seen["mean_token_accuracy"]))
        seen.clear()
        return means

    def evaluate_rows(self, rows: Any) -> EvalRecord:
        seen = self._metrics["eval"]
        seen.clear()
        losses, weights, answers = [], [], 0
        for numbers in rows.batches(np.arange(rows.order_count)):
            inputs = self._prepare_inputs(self.collated(numbers, rows, shared=False))
            with self.accelerator.autocast():
                losses.append(float(self.compute_loss(self.model, inputs)))
            weights.append(len(numbers))
            answers += int(inputs["completion_mask"][:, 1:].sum())
        means = {
            key: float(np.average(seen[key], weights=weights))
            for key in (*METRICS, "mean_token_accuracy")
        }
        seen.clear()
        return EvalRecord(
            step=self.state.global_step,
            epoch=float(self.state.epoch or 0.0),
            loss=float(np.average(losses, weights=weights)),
            accuracy=means["mean_token_accuracy"],
            tokens=answers,
            metrics=means,
        )


def _answer_tokens(pair: dict[str, list[int]], limit: int) -> int:
    """Tokens of the better answer that something predicts, after the cut."""
    first = max(1, len(pair["prompt_ids"]))
    return max(0, min(limit, len(pair["prompt_ids"]) + len(pair["chosen_ids"])) - first)


def _special_ids(model: Any) -> tuple[Any, Any]:
    text, generation = model.config.get_text_config(), model.generation_config
    return text.pad_token_id, generation.pad_token_id


def _restore_ids(model: Any, ids: tuple[Any, Any]) -> None:
    """TRL sets the pad token from the tokenizer, and ours is a placeholder."""
    model.config.get_text_config().pad_token_id = ids[0]
    model.generation_config.pad_token_id = ids[1]
