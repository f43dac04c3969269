"""One training run of one engine in this process; prints one JSON line. Others call it.

    python benchmarks/engine.py --engine native-bf16 --shape 4m --steps 10

Engines: `native` or `pytorch`, followed by what is switched on.
    native: -bf16 (`mixed_precision`), -recompute (`recompute_activations`), -lora (an adapter of
        rank 16 on q, k, v, o), -q4k (only with -lora: the base stays in a GGUF file of q4_K)
    pytorch: -bf16 (autocast over float32 weights), -compile (`torch.compile`), -mkl (MKL is told
        that the CPU is Intel's; the caller preloads it), -checkpoint (gradient checkpointing),
        -lora (the same adapter by PEFT), -bf16base (only with -lora: the base in bfloat16),
        -loop (experts one after the other; else transformers' grouped products)

Work: rows of random ids without padding, AdamW (3e-4, betas 0.9/0.95, decay 0.1), clipping at
1.0, no accumulation, random initialisation. PyTorch: a plain loop over transformers' Llama with
SDPA attention (gpt-oss: eager, which has its sinks) and fused AdamW: less work than any trainer
around it. A step is timed from
outside, batch included.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, cpu_count
from shapes import SHAPES, model_config

NATIVE = {"bf16", "recompute", "lora", "q4k"}
PYTORCH = {"bf16", "compile", "mkl", "checkpoint", "lora", "bf16base", "loop"}
ADAPTER: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def flags_of(engine: str) -> tuple[str, set[str]]:
    """'pytorch-bf16-compile' -> ('pytorch', {'bf16', 'compile'}). Raises ValueError."""
    base, *flags = engine.split("-")
    known = {"native": NATIVE, "pytorch": PYTORCH}.get(base)
    if (
        known is None
        or not set(flags) <= known
        or (flags and "lora" not in flags and set(flags) & {"q4k", "bf16base"})
    ):
        raise ValueError(f"no engine {engine!r}: see python benchmarks/engine.py --help")
    return base, set(flags)


def memory_mib(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process; unlike rusage's peak, not the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(s for s in status.read_text().splitlines() if s.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def heap_bytes() -> int:
    """Bytes handed out by malloc and not freed; 0 where the C library does not tell."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = tuple((f"f{i}", ctypes.c_size_t) for i in range(10))

    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return 0
    function.restype = Mallinfo2
    info = function()
    return int(info.f7) + int(info.f4)  # uordblks: in use; hblkhd: mapped by itself


class Watch:
    """Seconds and loss of each step, and what memory did after the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.rss_after_first = 0.0
        self.heap_after_first = 0
        self._start = time.perf_counter()

    def begin(self) -> None:
        self._start = time.perf_counter()

    def end(self, loss: float) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.append(loss)
        if len(self.seconds) == 1:
            self.rss_after_first = memory_mib("VmRSS")
            self.heap_after_first = heap_bytes()


def token_file(folder: Path, args: argparse.Namespace) -> Path:
    """A `.bin` of random ids, enough for all updates."""
    path = folder / "random.bin"
    count = args.batch * args.length * (args.warmup + args.steps) + 1
    vocabulary = args.vocab or SHAPES[args.shape]["vocab_size"]
    np.random.default_rng(0).integers(0, vocabulary, size=count, dtype="<u4").tofile(path)
    return path


def quantised(shape: str) -> Path:
    """A GGUF file of q4_K with random weights of this shape, made once by another process, so that
    its memory is not counted here."""
    path = HERE.parent / "build" / "bench" / f"{shape}-q4_k.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        code = (
            "import sys, tempfile, abi_train; from shapes import model_config\n"
            "with tempfile.TemporaryDirectory(dir=sys.argv[3]) as folder:\n"
            "    with abi_train.Model.random(model_config(sys.argv[1]), seed=0) as model:\n"
            "        model.save(folder + '/model')\n"
            "    abi_train.export_gguf(\n"
            "        folder + '/model', sys.argv[2], dtype='q4_k', tokenizer=sys.argv[4]\n"
            "    )\n"
        )
        tokenizer = HERE.parent / "python" / "abi_train" / "sample" / "tokenizer"
        command = [sys.executable, "-c", code, shape, str(path), str(path.parent), str(tokenizer)]
        subprocess.run(command, check=True, cwd=HERE)
    return path


def run_native(args: argparse.Namespace, folder: Path, flags: set[str]) -> Watch:
    import abi_train
    from abi_train.trainer import StepEvent

    path = token_file(folder, args)
    config = abi_train.LlmTrainingConfig(
        epochs=1,
        batch_size=args.batch,
        max_seq_len=args.length,
        grad_accum_steps=1,
        learning_rate=3e-4,
        lr_schedule="constant",
        warmup_steps=0,
        beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        mixed_precision="bf16" in flags,
        recompute_activations="recompute" in flags,
        shuffle=False,
        checkpoint_interval=0,
        eval_interval=0,
        max_steps=args.warmup + args.steps,
        threads=args.threads,
    )
    if "q4k" in flags:
        base = abi_train.Model.load(quantised(args.shape), dtype="stored")
    else:
        base = abi_train.Model.random(model_config(args.shape, args.vocab), seed=0)
    lora = abi_train.LoraConfig(**ADAPTER) if "lora" in flags else None
    watch = Watch()
    with (
        base as model,
        abi_train.TokenizedDataset.load(path) as data,
        abi_train.Trainer(config, model, data, lora=lora) as trainer,
    ):
        watch.begin()
        while (event := trainer.next_event()) is not None:
            if isinstance(event, StepEvent):
                watch.end(event.loss)
                watch.begin()
        memory(watch)
    return watch


def run_pytorch(args: argparse.Namespace, folder: Path, flags: set[str]) -> Watch:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps = args.warmup + args.steps
    ids = np.fromfile(token_file(folder, args), "<u4")
    settings = {
        k: v for k, v in model_config(args.shape, args.vocab).items() if k != "architectures"
    }
    mixture = settings["model_type"] == "gpt_oss"
    config = AutoConfig.for_model(**settings)
    config._attn_implementation = "eager" if mixture else "sdpa"
    if "bf16base" in flags:
        torch.set_default_dtype(torch.bfloat16)
    model: Any = AutoModelForCausalLM.from_config(config).train()
    torch.set_default_dtype(torch.float32)
    if "loop" in flags:
        model.set_experts_implementation("eager")
    if "checkpoint" in flags:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if "lora" in flags:
        from peft import LoraConfig, get_peft_model

        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **ADAPTER))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if "compile" in flags else model
    size = args.batch * args.length
    watch = Watch()
    for step in range(steps):
        watch.begin()
        window = torch.from_numpy(ids[step * size : (step + 1) * size + 1].astype(np.int64))
        inputs = window[:-1].view(args.batch, args.length)
        labels = window[1:]
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(flags & {"bf16", "bf16base"})):
            logits = forward(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().view(size, -1), labels)
        del logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.end(float(loss.detach()))
    memory(watch)
    return watch


def memory(watch: Watch) -> None:
    """How much memory came after the first step, while everything is still held."""
    watch.rss_after_first = memory_mib("VmRSS") - watch.rss_after_first
    watch.heap_after_first = heap_bytes() - watch.heap_after_first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="4m")
    parser.add_argument("--vocab", type=int, default=0, help="another vocabulary; 0: the shape's")
    parser.add_argument("--batch", type=int, default=4, help="rows in a batch")
    parser.add_argument("--length", type=int, default=512, help="tokens in a row")
    parser.add_argument("--steps", type=int, default=10, help="counted steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps not counted")
    parser.add_argument("--threads", type=int, default=cpu_count())
    args = parser.parse_args()
    base, flags = flags_of(args.engine)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        run = run_native if base == "native" else run_pytorch
        watch = run(args, Path(name), flags)
    json.dump(
        {
            "engine": args.engine,
            "seconds": watch.seconds[args.warmup :],
            "first_step_seconds": watch.seconds[0],
            "losses": watch.losses,
            "peak_mib": memory_mib("VmHWM"),
            "rss_growth_mib": watch.rss_after_first,
            "heap_growth_bytes": watch.heap_after_first,
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
