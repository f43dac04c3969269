"""How much memory this process has needed at most, as the system counts it."""

from __future__ import annotations

import sys

try:
    import resource
except ImportError:  # pragma: no cover - a system without it has no such count
    resource = None  # type: ignore[assignment]


def peak_bytes() -> int:
    """Largest resident size so far, in bytes; 0 where the system does not say."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
