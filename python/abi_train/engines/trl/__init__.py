"""The TRL engine: a `RunSpec` through `trl.SFTTrainer` or `trl.DPOTrainer`, adapters through PEFT.

TRL computes the loss, its gradient, the accumulation over micro-batches and the clipping; torch
computes the update. Ours are the order of the rows, the learning rate of each update, the log and
the checkpoint folder, because those must be the same on both engines.

Runs in one process on one device: the first GPU, or the CPU. Importing this package imports torch;
`libraries` alone names it.

    session      one run: what it read, where it stands, its report
    model        opening a model, and computing in float64
    rows         the recorded order of rows, as torch's loader
    settings     our configuration in TRL's words
    update       the optimizer and the learning rate of each update
    loss, head   loss and statistics where TRL's own do not serve
    adapter      PEFT's adapters, and their names in files
    loop         transformers' loop with all of these in it
    sft, dpo     `SFTTrainer` and `DPOTrainer` in that loop
    saved        checkpoint folders: writing one, and the moments of the optimizer
    surroundings torch's threads, the libraries' chatter
"""

from __future__ import annotations

from ...progress import Observer
from ...runspec import RunResult, RunSpec
from .. import Probe, processes
from .libraries import torch
from .session import Session
from .surroundings import quiet, threads

__all__ = ["run"]


def run(spec: RunSpec, observer: Observer, probe: Probe | None = None) -> RunResult:
    """Train with TRL. Same contract as `engines.run`."""
    if processes.count() > 1:
        processes.leave_at_exit(torch.distributed)
    with quiet(), threads(spec.config.threads):
        return Session(spec, observer, probe).train()
