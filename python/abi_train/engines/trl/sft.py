"""`SFTTrainer` in our loop: learning texts.

TRL computes the loss in tiles. Three cases compute it here from whole logits, as TRL does but by
hand: float64, since TRL's head works in float32, an adapter on the head, which TRL's head passes
by, and label smoothing, which TRL is about to drop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.rows import IGNORED
from ...runspec import EvalRecord
from .. import processes
from .gpt_oss import balance
from .libraries import SFTTrainer, datasets
from .loop import Loop
from .loss import token_sums
from .rows import collate
from .settings import hidden_head, placeholder_tokenizer, sft_config
from .together import share

if TYPE_CHECKING:
    from .session import Session


class SftLoop(Loop, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT around one model, for one session."""

    def __init__(self, session: Session, model: Any, folder: str) -> None:
        self.begin(session)
        self._by_hand = (
            session.precision == "float64"
            or session.config.label_smoothing > 0.0
            or session.head_is_trained
        )
        self._balance = balance(model)
        coefficient = getattr(model.config, "router_aux_loss_coef", None)
        with hidden_head(model, session.head_is_trained):
            super().__init__(
                model=model,
                args=sft_config(session, folder, self._balance),
                data_collator=collate,
                train_dataset=datasets.Dataset.from_dict(
                    {"input_ids": [[0, 0]], "labels": [[0, 0]]}
                ),
                processing_class=placeholder_tokenizer(),
            )
        if coefficient is not None:  # TRL writes over it, and a checkpoint would keep that
            model.config.router_aux_loss_coef = coefficient
        self.made()

    def collated(self, numbers: list[int], rows: Any, *, shared: bool = True) -> Any:
        mine = share(numbers) if shared else list(numbers)
        if mine:
            batch = collate([rows[number] for number in mine])
            if self._balance > 0.0 and rows.is_stream and "attention_mask" in batch:
                # A stream's row has one id more than it has inputs: routers must not count it.
                batch["attention_mask"][:, -1] = 0
            return batch
        stand_in = rows[numbers[0]]  # from which nothing is learned
        stand_in.pop("seq_lengths", None)
        batch = collate([stand_in])
        batch["labels"].fill_(IGNORED)
        batch["attention_mask"][:, 1:] = 0
        return batch

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"]
        targets = int((labels[:, 1:] != IGNORED).sum())
        if "attention_mask" in inputs:
            # A stream's row has one id more than it has inputs; a stand-in has one in all.
            lengths = inputs["attention_mask"].sum(dim=1)
            more = self.session.rows.is_stream and self._balance == 0.0
            lengths = lengths[lengths > 1] - (1 if more else 0)
            self._tokens += int(lengths.sum())
        else:  # packed, without padding
            self._tokens += int(inputs["input_ids"].numel())
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._targets += targets
        shares = self._metrics["train"]["mean_token_accuracy"]
        if shares and targets:
            self._hits += shares[-1] * targets
        self._metrics["train"].clear()
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if num_items_in_batch is not None and int(num_items_in_batch) == 0:
            num_items_in_batch = 1  # nothing to learn in this update: a loss of 0, not of 0/0
        if not self._by_hand:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        sums = token_sums(model, inputs, balanced=self._balance > 0.0)
        total = sums.count if num_items_in_batch is None else num_items_in_batch
        hits = float(sums.hits) / max(1, int(sums.count))
        self._metrics["train"]["mean_token_accuracy"].append(hits)
        smoothing = self.session.config.label_smoothing
        loss = ((1.0 - smoothing) * sums.nll + smoothing * sums.smooth) / total
        if self._balance > 0.0:  # a mean over micro-batches, the rest is one over all tokens
            parts = self.current_gradient_accumulation_steps
            steps = 1 if num_items_in_batch is None else parts
            loss = loss + self._balance * sums.balance / (steps * processes.count())
        return loss * processes.count()  # gradients are averaged over processes

    def evaluate_rows(self, rows: Any) -> EvalRecord:
        nll, hits, count = 0.0, 0, 0
        for numbers in rows.batches(np.arange(rows.order_count)):
            inputs = self._prepare_inputs(self.collated(numbers, rows, shared=False))
            with self.accelerator.autocast():
                sums = token_sums(self.model, inputs)
            nll += float(sums.nll)
            hits += int(sums.hits)
            count += int(sums.count)
        return EvalRecord(
            step=self.state.global_step,
            epoch=float(self.state.epoch or 0.0),
            loss=nll / max(1, count),
            accuracy=hits / max(1, count),
            tokens=count,
        )
