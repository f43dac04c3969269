"""What a job is asked to do: image, command, machine, time, secrets by name.

Does not know: the Hub. A secret's value is looked up when the request is sent, and not before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import ConfigError
from .baggage import RECIPE, Staged

IMAGE: Final = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""Debian with Python 3.12 and uv, which installs the rest."""

PLACE: Final = "/job"
"""Where the job finds what travelled with it, and leaves what it made."""

RESULTS: Final = f"{PLACE}/run"
MASKED: Final = "***"
SHORTEST_SECONDS: Final = 60
LONGEST_SECONDS: Final = 30 * 86400


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job. folder: of the bucket, where `staged` goes. secrets: names alone."""

    name: str
    staged: Staged
    folder: str
    command: tuple[str, ...]
    flavor: str
    timeout_seconds: int
    secrets: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    image: str = IMAGE
    namespace: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """By which our jobs can be told from others."""
        return {"name": self.name, "made-by": "abi-train"}

    def to_dict(self) -> dict[str, Any]:
        """The request as it is sent, with secrets masked, and what travels."""
        return {
            "image": self.image,
            "command": list(self.command),
            "flavor": self.flavor,
            "timeout_seconds": self.timeout_seconds,
            "env": dict(self.env),
            "secrets": dict.fromkeys(self.secrets, MASKED),
            "labels": self.labels,
            "volume": {
                "bucket": f"{self.namespace or 'YOU'}/jobs-artifacts",
                "folder": self.folder,
                "mounted_at": PLACE,
                "read_only": False,
            },
            "files": dict(self.staged.files),
        }


def request(
    name: str,
    staged: Staged,
    *,
    engine: str,
    flavor: str,
    timeout_seconds: int,
    version: str,
    arguments: Sequence[str] = (),
    extras: Sequence[str] = (),
    secrets: Sequence[str] = (),
    namespace: str | None = None,
    processes: int = 1,
    stamp: str,
) -> JobRequest:
    """The job that runs a staged recipe as `abi-train train` would here.

    arguments: options of `train` besides. extras: of our package, `trl` comes by itself where it is
    needed. processes: how many share the run, one a GPU. stamp: makes the bucket's folder one of
    its own. Raises `ConfigError`.
    """
    check_values(timeout_seconds=timeout_seconds, secrets=secrets, extras=extras)
    wanted = [*(["trl"] if engine == "trl" else []), "hub", *extras]
    package = f"abi-train[{','.join(dict.fromkeys(wanted))}]"
    source = f"{package} @ file://{PLACE}/{staged.wheel}" if staged.wheel else None
    command = (
        "uv",
        "run",
        "--no-project",
        "--python",
        "3.12",
        "--with",
        source or f"{package}=={version}",
        *_program(processes),
        "train",
        f"{PLACE}/{RECIPE}",
        "--run-dir",
        RESULTS,
        *arguments,
    )
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "recipe"
    return JobRequest(
        name=plain[:60],
        staged=staged,
        folder=f"abi-train/{plain[:40]}-{stamp}",
        command=command,
        flavor=flavor,
        timeout_seconds=timeout_seconds,
        secrets=tuple(dict.fromkeys(secrets)),
        namespace=namespace,
    )


def check_values(
    *,
    timeout_seconds: int | None = None,
    secrets: Sequence[str] = (),
    extras: Sequence[str] = (),
) -> None:
    """Raise `ConfigError` for a value that no job takes, before anything is prepared for one."""
    if timeout_seconds is not None and timeout_seconds < SHORTEST_SECONDS:
        raise ConfigError(
            f"timeout: {timeout_seconds} s would end before the machine is ready; give an hour: 1h"
        )
    if timeout_seconds is not None and timeout_seconds > LONGEST_SECONDS:
        raise ConfigError(
            f"timeout: {timeout_seconds} s is more than 30 days, which nobody means to pay for; "
            "give what the run needs: 4h"
        )
    for secret in secrets:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", secret):
            raise ConfigError(
                f"secret: {secret.partition('=')[0]!r} is not a name; give the name of an "
                "environment variable, and its value is read from there"
            )
    for extra in extras:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", extra):
            raise ConfigError(
                f"extra: {extra!r} is not the name of an extra; give one of abi-train's, as trackio"
            )


def _program(processes: int) -> tuple[str, ...]:
    if processes == 1:
        return ("abi-train",)
    return ("torchrun", "--nproc_per_node", str(processes), "-m", "abi_train.cli")


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> int:
    """`90`, `90s`, `30m`, `4h`, `1.5d` → seconds. Raises `ConfigError`."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*", text)
    if found is None:
        raise ConfigError(f"timeout: {text!r} is no length of time; write 90m, 4h or 1d")
    seconds = float(found[1]) * _UNITS[found[2] or "s"]
    if not math.isfinite(seconds):
        raise ConfigError(f"timeout: {text[:20]}... is no length of time; write 90m, 4h or 1d")
    return math.ceil(seconds)
