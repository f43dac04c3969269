"""Independent definitions to hold the engines against: plain PyTorch, plain Python, no TRL.

`naive_training` is the training loop as the documents describe it, written out with nothing shared
with either engine: shift, mask, token mean over the accumulated batch, clip, AdamW.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

MASK64 = (1 << 64) - 1


class Xoshiro:
    """xoshiro256++ seeded by splitmix64, with Lemire's unbiased draw."""

    def __init__(self, seed: int) -> None:
        state = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) & MASK64
            z = seed
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
            state.append(z ^ (z >> 31))
        self.s = state

    def next(self) -> int:
        s = self.s
        result = (_rotl((s[0] + s[3]) & MASK64, 23) + s[0]) & MASK64
        t = (s[1] << 17) & MASK64
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = _rotl(s[3], 45)
        return result

    def below(self, n: int) -> int:
        product = self.next() * n
        if product & MASK64 < n:
            threshold = (-n & MASK64) % n
            while product & MASK64 < threshold:
                product = self.next() * n
        return product >> 64


def _rotl(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & MASK64


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The documented permutation of an epoch."""
    order = list(range(count))
    draw = Xoshiro((seed + epoch) & MASK64)
    for i in range(count - 1, 0, -1):
        j = draw.below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def learning_rate(config: Any, step: int, total: int) -> float:
    """warmup_cosine and constant, from the formulas."""
    b, m = config.learning_rate, config.min_learning_rate
    w, d = config.warmup_steps, config.decay_steps or total
    if config.lr_schedule == "constant":
        return float(b)
    assert config.lr_schedule == "warmup_cosine"
    if step < w:
        return float(b * ((step + 1) / w))
    p = min(1.0, (step - w) / max(1, d - w))
    return float(m + (b - m) * (0.5 * (1 + math.cos(math.pi * p))))


def spared_from_decay(name: str) -> bool:
    """Norms and biases."""
    return name.endswith("bias") or "norm" in name


def norms_in_double(model: Any) -> None:
    """Replaces every RMS norm by one that never leaves double."""

    class Norm(torch.nn.Module):
        def __init__(self, weight: Any, eps: float) -> None:
            super().__init__()
            self.weight = weight
            self.eps = eps

        def forward(self, x: Any) -> Any:
            return self.weight * (x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt())

    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Norm(module.weight, module.variance_epsilon))


def naive_training(
    model_dir: Path,
    rows: list[tuple[list[int], list[int]]],
    batches_of: Any,
    rates: list[float],
    config: Any,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Losses, gradient norms, gradients of update one and weights at the end.

    `rows` are (ids, labels); `batches_of(epoch)` gives lists of row numbers; one update per rate.
    """
    double = dtype == torch.float64
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=dtype, attn_implementation="sdpa" if double else "eager"
    )
    model.get_input_embeddings().padding_idx = None
    if double:
        norms_in_double(model)
    model.train()
    named = list(model.named_parameters())
    moment = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in named}
    losses, norms, first = [], [], {}
    step, epoch = 0, 0
    while step < len(rates):
        batches = batches_of(epoch)
        for at in range(0, len(batches), config.grad_accum_steps):
            if step == len(rates):
                break
            group = batches[at : at + config.grad_accum_steps]
            count = sum(label != -100 for b in group for r in b for label in rows[r][1][1:])
            loss_sum = 0.0
            model.zero_grad(set_to_none=False)
            for batch in group:
                parts = []
                for r in batch:  # one row at a time: no padding, no attention mask
                    ids, labels = rows[r]
                    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
                    target = torch.tensor(labels[1:])
                    keep = target != -100
                    logp = F.log_softmax(logits[keep].to(dtype), dim=-1)
                    nll = -logp.gather(1, target[keep][:, None]).sum()
                    smooth = -logp.mean(dim=-1).sum()
                    e = config.label_smoothing
                    parts.append((1 - e) * nll + e * smooth)
                loss = torch.stack(parts).sum() / count
                loss.backward()
                loss_sum += loss.item()
            norm = torch.stack([p.grad.norm() for _, p in named if p.grad is not None]).norm()
            if step == 0:
                first = {n: p.grad.numpy().copy() for n, p in named}
            if config.max_grad_norm:
                scale = min(1.0, config.max_grad_norm / (float(norm) + 1e-6))
                for _, p in named:
                    p.grad.mul_(scale)
            with torch.no_grad():
                for n, p in named:
                    _update(n, p, moment[n], rates[step], step + 1, config)
            losses.append(loss_sum)
            norms.append(float(norm))
            step += 1
        epoch += 1
    weights = {n: p.detach().numpy().copy() for n, p in named}
    return {"loss": losses, "grad_norm": norms, "gradients": first, "weights": weights}


def _update(name: str, p: Any, moments: Any, lr: float, t: int, config: Any) -> None:
    if config.optimizer == "sgd":
        p.sub_(lr * p.grad)
        return
    m, v = moments
    if config.optimizer == "adamw" and not spared_from_decay(name):
        p.mul_(1 - lr * config.weight_decay)
    m.add_((1 - config.beta1) * (p.grad - m))
    v.mul_(config.beta2).add_((1 - config.beta2) * p.grad * p.grad)
    root = v.sqrt() / math.sqrt(1 - config.beta2**t) + config.eps
    p.sub_((lr / (1 - config.beta1**t)) * m / root)


def relative_l2(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """‖a − b‖ / ‖b‖ in double."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))
