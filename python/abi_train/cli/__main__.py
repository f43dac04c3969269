"""`python -m abi_train.cli` is `abi-train`: what launchers of several processes start."""

from __future__ import annotations

from . import main

main()
