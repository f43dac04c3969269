"""Jobs as the Hub has them: send one, list them, read what they say, wait, cancel.

Does not know: recipes. Values of secrets are read from the environment when a job is sent, or, for
`HF_TOKEN`, from where `hf auth login` keeps it.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ConfigError, HubError
from ..hub import client
from .request import PLACE, JobRequest

COMPLETED: Final = "COMPLETED"
ENDED: Final = (COMPLETED, "CANCELED", "ERROR", "DELETED")

PATIENCE: Final = 8
"""How often in a row the Hub may fail to answer while a job is waited for."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as the Hub tells it. bucket: where its files are, of one that was just sent."""

    id: str
    name: str
    flavor: str
    stage: str
    message: str | None
    created: str
    owner: str
    url: str
    bucket: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it will do no more."""
        return self.stage in ENDED

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "id": self.id,
            "name": self.name,
            "flavor": self.flavor,
            "stage": self.stage,
            "message": self.message,
            "created": self.created,
            "owner": self.owner,
            "url": self.url,
            "bucket": self.bucket,
        }


def submit(request: JobRequest) -> Job:
    """Upload what travels and start the job. Raises `HubError`, and `ConfigError` for a secret that
    has no value."""
    hub = client.api()
    owner = request.namespace or client.namespace(hub, what="submitting a job")
    client.token(what="submitting a job")
    secrets = secret_values(request.secrets)
    # The library tells of its uploads on stdout, which is for results.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with client.asking(f"upload the job's files to {owner}/jobs-artifacts"), quiet:
        volume = hub.sync_job_volume(
            request.staged.folder,
            PLACE,
            remote_name=request.folder,
            read_only=False,
            namespace=owner,
        )
    with client.asking("submit the job"):
        made = hub.run_job(
            image=request.image,
            command=list(request.command),
            env=dict(request.env),
            secrets=secrets,
            flavor=request.flavor,
            timeout=request.timeout_seconds,
            labels=request.labels,
            volumes=[volume],
            namespace=owner,
        )
    return _job(made, bucket=f"{owner}/jobs-artifacts/{request.folder}")


def check_secrets(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a secret that is not set here. Values are not looked at, and that of
    `HF_TOKEN` may come from a login."""
    for name in names:
        if name != "HF_TOKEN" and not os.environ.get(name):
            raise ConfigError(_unset(name))


def _unset(name: str) -> str:
    return f"secret: {name} is not set here; export {name}=... and try again"


def secret_values(names: tuple[str, ...]) -> dict[str, str]:
    """What each secret is. Raises `ConfigError` naming the one that is nowhere."""
    found: dict[str, str] = {}
    for name in names:
        value = os.environ.get(name)
        if not value and name == "HF_TOKEN":
            value = client.token(what="the secret HF_TOKEN")
        if not value:
            raise ConfigError(_unset(name))
        found[name] = value
    return found


def listed(*, namespace: str | None = None, everything: bool = False) -> list[Job]:
    """Jobs, newest first: ours, or all of the account's. Raises `HubError`."""
    hub = client.api()
    owner = namespace or client.namespace(hub, what="listing jobs")
    with client.asking("list jobs"):
        found = list(hub.list_jobs(namespace=owner))
    jobs = [
        _job(item)
        for item in found
        if everything or (item.labels or {}).get("made-by") == "abi-train"
    ]
    return sorted(jobs, key=lambda job: job.created, reverse=True)


def inspect(job: str, *, namespace: str | None = None) -> Job:
    """One job. Raises `HubError`."""
    hub = client.api()
    owner = namespace or client.namespace(hub, what="looking at a job")
    with client.asking(f"look at job {job}", hint=_hint(job)):
        return _job(hub.inspect_job(job_id=job, namespace=owner))


def logs(
    job: str, *, namespace: str | None = None, follow: bool = False, tail: int | None = None
) -> Iterator[str]:
    """What the job printed, line by line; with `follow` until it ends. Raises `HubError`, also when
    the log breaks off."""
    hub = client.api()
    owner = namespace or client.namespace(hub, what="reading a job's log")
    what = f"read the log of job {job}"
    hint = _hint(job)
    told = 0
    try:
        with client.asking(what, hint=hint):
            for line in hub.fetch_job_logs(job_id=job, namespace=owner, follow=follow, tail=tail):
                told += 1
                yield str(line)
    except (ValueError, KeyError) as error:  # half an event
        raise HubError(f"cannot {what}: {_broke(told, job)} ({type(error).__name__})") from None
    except HubError as error:
        if told:
            raise HubError(f"{error}. {_broke(told, job)}") from None
        raise


def _broke(told: int, job: str) -> str:
    return f"it broke off after {told} lines; read it again: abi-train jobs logs {job}"


def wait(
    job: str,
    *,
    namespace: str | None = None,
    every: float = 5.0,
    limit: float | None = None,
    tell: Callable[[Job], None] = lambda job: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """The job as it ended. tell: called when its stage changes. limit: seconds after which to stop
    waiting; the job then goes on.

    every: seconds between two looks, less at first. A Hub that does not answer is asked again for a
    while. Raises `HubError`.
    """
    hub = client.api()
    owner = namespace or client.namespace(hub, what="waiting for a job")
    begin = time.monotonic()
    stage, failed, pause = "", 0, min(0.5, every)
    while True:
        try:
            with client.asking(f"look at job {job}", hint=_hint(job)):
                found = _job(hub.inspect_job(job_id=job, namespace=owner))
            failed = 0
        except HubError as error:
            if not _passes(error):
                raise
            failed += 1
            if failed >= PATIENCE:
                raise HubError(f"{error} The job goes on: abi-train jobs wait {job}") from None
        else:
            if found.stage != stage:
                stage = found.stage
                tell(found)
            if found.ended:
                return found
        if limit is not None and time.monotonic() - begin >= limit:
            raise HubError(
                f"job {job} is still {stage or 'unknown'} after {limit:.0f} s, and goes on: "
                f"abi-train jobs wait {job}, or abi-train jobs cancel {job}"
            )
        sleep(pause)
        pause = min(2 * pause, every)


def _passes(error: HubError) -> bool:
    """Whether asking again may help."""
    text = str(error)
    return "fault of its own" in text or "cannot be reached" in text or "slow down" in text


def cancel(job: str, *, namespace: str | None = None) -> None:
    """Stop the job. Raises `HubError`."""
    hub = client.api()
    owner = namespace or client.namespace(hub, what="cancelling a job")
    with client.asking(f"cancel job {job}", hint=_hint(job)):
        hub.cancel_job(job_id=job, namespace=owner)


def _hint(job: str) -> str:
    return f"There is no job {job} of yours; see abi-train jobs list"


def _job(made: Any, *, bucket: str | None = None) -> Job:
    labels = made.labels or {}
    stage = made.status.stage if made.status is not None else "UNKNOWN"
    return Job(
        id=str(made.id),
        name=str(labels.get("name", "")),
        flavor=str(made.flavor or ""),
        stage=str(getattr(stage, "value", stage)),
        message=made.status.message if made.status is not None else None,
        created="" if made.created_at is None else made.created_at.isoformat(timespec="seconds"),
        owner=made.owner.name if made.owner is not None else "",
        url=str(getattr(made, "url", "")),
        bucket=bucket,
    )
