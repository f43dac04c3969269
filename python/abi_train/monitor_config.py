"""`MonitorConfig`: who watches a run besides its log, and what counts as a fault worth a warning.

Nothing leaves this machine unless `trackio_space` names a place. Does not know: Trackio itself, or
how a fault is found (see `monitor`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .rules import broken, check_field, count, flag, positive, text, unknown_key

__all__ = ["MonitorConfig"]

_WORD: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_SPACE: Final = re.compile(f"{_WORD}/{_WORD}")


def _is_kept(project: str) -> bool:
    """Whether Trackio keeps the project's name as it is; of others it drops letters."""
    return all(letter.isalnum() or letter in "-_" for letter in project)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """How a run is watched. Raises `ConfigError` naming the field, its value and the rule."""

    trackio: str | None = text(None, "Trackio project that gets the metrics; else none does")
    trackio_run: str | None = text(None, "name of the run there; else it is made of its folder's")
    trackio_space: str | None = text(
        None, "Space on the Hub, USER/NAME, that shows them; nothing is published without it"
    )
    trackio_public: bool = flag(False, "make that Space public where it is new; else private")
    alerts: bool = flag(True, "warn of a spike of the loss and of a clip that always cuts")
    spike_deviations: float = positive(
        6.0, "a loss is a spike when it is this many deviations above the median of the last 50"
    )
    clip_updates: int = count(
        50, "updates over which the gradient norm is above max_grad_norm before a warning", least=2
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = check_field(item, getattr(self, item.name), name=f"monitor.{item.name}")
            object.__setattr__(self, item.name, value)
        for name in ("trackio_run", "trackio_space"):
            if getattr(self, name) is not None and self.trackio is None:
                rule = "name the Trackio project too (monitor.trackio, or --trackio)"
                raise broken(f"monitor.{name}", getattr(self, name), rule)
        if self.trackio is not None and not _is_kept(self.trackio):
            rule = "Trackio would change it: letters, digits, '-' and '_' alone"
            raise broken("monitor.trackio", self.trackio, rule)
        space = self.trackio_space
        if space is not None and (not _SPACE.fullmatch(space) or "--" in space or ".." in space):
            rule = "it must be USER/NAME, a Space on the Hub"
            raise broken("monitor.trackio_space", space, rule)
        if self.trackio_public and self.trackio_space is None:
            rule = "it says how monitor.trackio_space is shown; name that Space"
            raise broken("monitor.trackio_public", True, rule)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MonitorConfig:
        """The settings these keys describe. Raises `ConfigError` for an unknown key."""
        known = {item.name for item in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise unknown_key(key, known, "the table monitor")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON: what differs from the defaults."""
        return {
            item.name: value
            for item in dataclasses.fields(self)
            if (value := getattr(self, item.name)) != item.default
        }

    def replace(self, **changes: Any) -> MonitorConfig:
        """A changed copy, checked again."""
        return dataclasses.replace(self, **changes)
