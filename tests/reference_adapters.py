"""LoRA and DPO written out once more: plain PyTorch in double, no PEFT, no TRL.

An adapter is added into the weights before each forward pass (W + s B A), so gradients of A and B
come from torch's own rules. The preference losses are the formulas of the documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reference import _update, norms_in_double
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

PREFIX = "base_model.model."


def scale_of(lora: Any, module: str) -> float:
    """s of a module: alpha/r, or alpha/sqrt(r), with the patterns."""

    def pick(pattern: Mapping[str, Any], default: Any) -> Any:
        for key, value in pattern.items():
            if module == key or module.endswith("." + key):
                return value
        return default

    rank = pick(lora.rank_pattern, lora.r)
    alpha = pick(lora.alpha_pattern, lora.lora_alpha)
    return float(alpha / math.sqrt(rank) if lora.use_rslora else alpha / rank)


class Adapted:
    """A model in double whose trained tensors are `values`: an adapter's, or its own weights."""

    def __init__(self, model_dir: Path, lora: Any = None, adapter: Path | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float64, attn_implementation="sdpa"
        )
        self.model.get_input_embeddings().padding_idx = None
        norms_in_double(self.model)
        self.model.eval()
        self.lora = lora
        self.base = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        if adapter is None:
            self.values = {n: p.clone().requires_grad_() for n, p in self.base.items()}
        else:
            found = load_file(adapter / "adapter_model.safetensors")
            self.values = {k: v.to(torch.float64).requires_grad_() for k, v in found.items()}

    def weights(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The model's weights with these trained values."""
        if self.lora is None:
            return dict(values)
        whole = dict(self.base)
        for key, a in values.items():
            if ".lora_A" in key:
                module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
                change = values[key.replace("lora_A", "lora_B")] @ a
            elif ".lora_embedding_A" in key:
                module = key.removeprefix(PREFIX).removesuffix(".lora_embedding_A")
                change = (values[key.replace("embedding_A", "embedding_B")] @ a).T
            else:
                continue
            name = f"{module}.weight"
            whole[name] = whole[name] + scale_of(self.lora, module) * change
        return whole

    def log_probs(self, values: Mapping[str, Any], ids: list[int]) -> Any:
        """log p of each token after the first, given those before it, and the logits."""
        logits = torch.func.functional_call(
            self.model,
            self.weights(values),
            kwargs={"input_ids": torch.tensor([ids]), "use_cache": False},
            tie_weights=True,
        ).logits[0, :-1]
        targets = torch.tensor(ids[1:])
        return F.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0], logits


def train(
    adapted: Adapted, batches_of: Any, rates: list[float], config: Any, loss_of: Callable[..., Any]
) -> dict[str, Any]:
    """`loss_of(values, micro_batches, at)` is the loss of one micro-batch of an update."""
    named = list(adapted.values.items())
    moment = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in named}
    losses, norms, first, step, epoch = [], [], {}, 0, 0
    while step < len(rates):
        batches = batches_of(epoch)
        for at in range(0, len(batches), config.grad_accum_steps):
            if step == len(rates):
                break
            group = batches[at : at + config.grad_accum_steps]
            for _, p in named:
                p.grad = None
            total = 0.0
            for micro in range(len(group)):
                loss = loss_of(adapted.values, group, micro)
                loss.backward()
                total += loss.item()
            norm = torch.stack([p.grad.norm() for _, p in named]).norm()
            if step == 0:
                first = {n: p.grad.numpy().copy() for n, p in named}
            if config.max_grad_norm:
                for _, p in named:
                    p.grad.mul_(min(1.0, config.max_grad_norm / (float(norm) + 1e-6)))
            with torch.no_grad():
                for n, p in named:
                    _update(n, p, moment[n], rates[step], step + 1, config)
            losses.append(total)
            norms.append(float(norm))
            step += 1
        epoch += 1
    weights = {n: p.detach().numpy().copy() for n, p in named}
    return {"loss": losses, "grad_norm": norms, "gradients": first, "weights": weights}


def sft_loss(adapted: Adapted, rows: list[tuple[list[int], list[int]]]) -> Callable[..., Any]:
    """The token mean over the whole update."""

    def loss(values: Any, group: list[list[int]], micro: int) -> Any:
        count = sum(label != -100 for b in group for r in b for label in rows[r][1][1:])
        parts = []
        for r in group[micro]:
            ids, labels = rows[r]
            logs, _ = adapted.log_probs(values, ids)
            parts.append(-logs[torch.tensor(labels[1:]) != -100].sum())
        return torch.stack(parts).sum() / count

    return loss


def pair_losses(
    kind: str, beta: float, smoothing: float, c: Any, r: Any, sizes: tuple[int, int]
) -> Any:
    """The loss of a pair; c and r are l - l_ref of the chosen and the rejected answer."""
    delta = c - r
    if kind == "sigmoid":
        return -F.logsigmoid(beta * delta)
    if kind == "hinge":
        return torch.clamp(1 - beta * delta, min=0)
    if kind == "robust":
        right, wrong = F.logsigmoid(beta * delta), F.logsigmoid(-beta * delta)
        return (-(1 - smoothing) * right + smoothing * wrong) / (1 - 2 * smoothing)
    if kind == "ipo":
        return (c / sizes[0] - r / sizes[1] - 1 / (2 * beta)) ** 2
    if kind == "sigmoid_norm":
        return -F.logsigmoid(beta * (c / sizes[0] - r / sizes[1]))
    assert kind == "apo_zero"
    return 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r)


def dpo_loss(
    adapted: Adapted,
    pairs: list[tuple[list[int], list[int], list[int]]],
    dpo: Any,
    reference: Callable[[list[int]], Any],
    seen: list[dict[str, float]] | None = None,
) -> Callable[..., Any]:
    """The mean over the pairs of a micro-batch, divided by the micro-batches of the update."""

    def loss(values: Any, group: list[list[int]], micro: int) -> Any:
        chosen_logs, margins = [], []
        total: Any = 0.0
        weights = dpo.loss_weights or [1.0] * len(dpo.loss_type)
        for p in group[micro]:
            prompt, good, bad = pairs[p]
            scores, sizes = [], (len(good), len(bad))
            for answer in (good, bad):
                logs, _ = adapted.log_probs(values, prompt + answer)
                own = logs[len(prompt) - 1 :]
                with torch.no_grad():
                    fixed = reference(prompt + answer)[len(prompt) - 1 :].sum()
                scores.append(own.sum() - fixed)
                if answer is good:
                    chosen_logs.append(own)
            margins.append(dpo.beta * (scores[0] - scores[1]).item())
            for kind, weight in zip(dpo.loss_type, weights, strict=True):
                if kind != "sft":
                    total = total + weight / len(group[micro]) * pair_losses(
                        kind, dpo.beta, dpo.label_smoothing, *scores, sizes
                    )
        for kind, weight in zip(dpo.loss_type, weights, strict=True):
            if kind == "sft":
                total = total - weight * torch.cat(chosen_logs).mean()
        if seen is not None:
            if micro == 0:
                seen.append({"margins": 0.0})
            seen[-1]["margins"] += sum(margins) / len(margins) / len(group)
        return total / len(group)

    return loss
