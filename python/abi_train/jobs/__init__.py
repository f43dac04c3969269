"""A recipe on a rented machine: Hugging Face Jobs.

    from abi_train import jobs
    request = jobs.request(Path("recipe.yaml"), staged, flavor="a100-large", timeout_seconds=7200)
    job = jobs.submit(request)
    for line in jobs.logs(job.id, follow=True): ...

The recipe, the files it names and, where given, our wheel travel to a private bucket of the user's,
which the job sees as `/job`; what the run leaves is below `/job/run`. Importing this loads
nothing.
"""

from __future__ import annotations

from .baggage import Staged, stage
from .request import JobRequest, request
from .service import Job, cancel, inspect, listed, logs, submit, wait

__all__ = [
    "Job",
    "JobRequest",
    "Staged",
    "cancel",
    "inspect",
    "listed",
    "logs",
    "request",
    "stage",
    "submit",
    "wait",
]
