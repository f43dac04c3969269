"""Who is told what a recipe does while it runs. Does not know: how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..progress import Observer
    from ..runspec import RunSpec
    from .recipe import Phase


class Listener:
    """Told what a recipe does. Each method does nothing; override what matters."""

    def on_phase(self, phase: Phase, number: int, count: int) -> None:
        """Work on this phase begins."""

    def on_kept(self, phase: Phase, checkpoint: Path) -> None:
        """This phase was finished before."""

    def on_note(self, text: str) -> None:
        """Something a person should know."""

    def on_scores(self, name: str | None, scores: Mapping[str, Any]) -> None:
        """Evaluations of a phase's result; None: of the model before the first."""

    def observer(self, phase: Phase, spec: RunSpec) -> Observer:
        """Who watches the run of a phase; `spec` is what it comes to."""
        from ..progress import Observer

        return Observer()

    def stop_requested(self) -> bool:
        """True asks to stop where it can go on later."""
        return False
