"""Runs on this machine: found by their logs, read while they go on, drawn one over the other.

::

    from abi_train import runs

    for run in runs.find(["runs"]):
        print(run.folder, run.state, run.last("loss"))
    page = runs.page([runs.open_curves("runs/a"), runs.open_curves("runs/b")])

Reads `log.jsonl` and the recipes beside it, and never writes into a run's folder.
"""

from __future__ import annotations

from .curves import Curves, open_curves
from .find import find
from .log import STATES, RunLog, read_run
from .page import page
from .picture import picture

__all__ = ["STATES", "Curves", "RunLog", "find", "open_curves", "page", "picture", "read_run"]
