"""The command `abi-train`. One file a verb, each thin over the public modules.

Results go to stdout, everything else to stderr. Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | the check found a difference, or the work failed; one line on stderr says why |
| 2 | the command line is wrong |
| 130, 143 | stopped by Ctrl-C or SIGTERM; a training run is saved first |

No error prints a traceback unless `--debug` is given.
"""

from __future__ import annotations

from .app import main

__all__ = ["main"]
