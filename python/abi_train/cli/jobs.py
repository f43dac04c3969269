"""`abi-train jobs`: a recipe on a machine rented from Hugging Face."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .common import HELP_SETTINGS, JsonFlag, from_the_command_line, out, print_json, say, size_text

app = typer.Typer(
    help="Run a recipe as a Hugging Face Job.",
    no_args_is_help=True,
    context_settings=HELP_SETTINGS,
    rich_markup_mode="rich",
)

SUBMIT_EXAMPLES = """[bold]Examples[/]

abi-train jobs submit recipe.yaml --flavor a100-large --dry-run

abi-train jobs submit recipe.yaml --flavor a100-large --secret HF_TOKEN --wait
"""
OTHER_EXAMPLES = """[bold]Example[/]

abi-train jobs list
"""

NamespaceOption = Annotated[
    str | None, typer.Option(help="User or organisation. (default: whose token it is)")
]
JobArgument = Annotated[str, typer.Argument(help="Id of the job; see `abi-train jobs list`.")]


@app.command("submit", epilog=SUBMIT_EXAMPLES)
def submit(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, or a packaged one's name.")],
    flavor: Annotated[
        str | None, typer.Option(help="Machine. (default: the cheapest that fits)")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="After how long it is stopped: 90m, 4h. (default: by plan)")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="native or trl. (default: the recipe's)")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Another model: hub:OWNER/NAME or a path.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting of the recipe; may repeat.")
    ] = None,
    secrets: Annotated[
        list[str] | None,
        typer.Option("--secret", help="Name of an environment variable to pass; may repeat."),
    ] = None,
    extras: Annotated[
        list[str] | None, typer.Option("--extra", help="Extra of abi-train to install; may repeat.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Wheel of abi-train to take. (default: the released one)")
    ] = None,
    namespace: NamespaceOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Send it although the plan says it does not fit.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the request and send nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Send a recipe with its files as a job, with the time its plan asks for.

    What it leaves is in the bucket that is named at the end. Ctrl-C while waiting leaves the job at
    work.
    """
    from .. import __version__
    from .. import jobs as service
    from ..jobs.baggage import check_wheel, take_option
    from ..jobs.request import PLACE, check_values, seconds_of
    from ..jobs.service import check_secrets
    from ..plan.hardware import prices
    from ..recipes import places
    from .plan import planned

    with from_the_command_line():
        path = places.find(recipe)
        limit = None if timeout is None else seconds_of(timeout)
        check_values(timeout_seconds=limit, secrets=secrets or [], extras=extras or [])
        if wheel is not None:
            check_wheel(wheel)
        if flavor is not None:
            prices(online=not dry_run).find(flavor)
    check_secrets(secrets or [])
    local = None if model is None or model.startswith("hub:") else Path(model)
    chosen = {"engine": engine, "model": None if model is None else Path(model)}
    cpu = flavor is not None and flavor.startswith("cpu")
    with (
        tempfile.TemporaryDirectory(prefix="abi-train-job-") as scratch,
        planned(
            recipe,
            chosen,
            settings or [],
            online=not dry_run,
            measure=cpu and limit is None,
            seconds=5.0,
        ) as plan,
    ):
        machine = _machine(plan, flavor, force)
        if limit is None:
            limit = plan.jobs_timeout_seconds(machine)
        if limit is None:
            raise ConfigError(
                "timeout: how long it takes is not known (its data is not here, or nothing was "
                "measured); give --timeout 4h. A job without one is stopped after 30 minutes"
            )
        staged = service.stage(path, Path(scratch), base=places.base_of(path), wheel=wheel)
        arguments: list[str] = []
        if engine is not None:
            arguments += ["--engine", engine]
        if model is not None:
            there = model if local is None else take_option(local, staged, at=PLACE)
            arguments += ["--model", there]
        for setting in settings or []:
            arguments += ["--set", setting]
        request = service.request(
            plan.name,
            staged,
            engine=plan.phases[0].spec.engine,
            flavor=machine,
            timeout_seconds=limit,
            version=__version__,
            arguments=arguments,
            extras=extras or [],
            secrets=secrets or [],
            namespace=namespace,
            processes=max(plan.on(machine).flavor.gpus, 1) if len(plan.phases) == 1 else 1,
            stamp=time.strftime("%Y%m%d-%H%M%S", time.gmtime()),
        )
        if wheel is None and _is_from_a_folder():
            say(
                f"this abi-train is not from the package index, and the job installs {__version__} "
                "from there; take this one along with --wheel (pip wheel . --no-deps)"
            )
        if dry_run:
            _show_request(request, plan, as_json=as_json)
            return
        job = service.submit(request)
    if as_json and not wait:
        print_json(job.to_dict())
        return
    say(f"job {job.id} on {job.flavor}, stopped after {_length(limit)} at the latest: {job.url}")
    say(f"what it leaves: hf://buckets/{job.bucket}/run")
    if wait:
        _wait(job.id, namespace, None, as_json)
        return
    say(f"look in: abi-train jobs logs {job.id} --follow")
    out().print(job.id, markup=False, highlight=False)


def _is_from_a_folder() -> bool:
    """Whether this package was installed from a checkout or a file, as pip notes it."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution("abi-train").read_text("direct_url.json") is not None
    except PackageNotFoundError:
        return True


def _machine(plan: Any, flavor: str | None, force: bool) -> str:
    """The flavour to use. Raises `ConfigError` where the plan does not fit it."""
    if flavor is None:
        best = plan.cheapest
        if best is None:
            raise ConfigError(
                "flavor: the plan fits none of the machines; see `abi-train plan --all`, make the "
                "run smaller, or choose one with --flavor and --force"
            )
        return str(best.flavor.name)
    with from_the_command_line():
        wanted = plan.on(flavor)
    if wanted.fits or force:
        return str(wanted.flavor.name)
    best = plan.cheapest
    instead = "" if best is None else f"use --flavor {best.flavor.name} ({best.flavor.words}), "
    raise ConfigError(
        f"flavor: the plan does not fit {flavor}: {wanted.why}; {instead}make the run smaller, or "
        "send it anyway with --force"
    )


def _show_request(request: Any, plan: Any, *, as_json: bool) -> None:
    values = request.to_dict()
    dollars = plan.on(request.flavor).dollars
    if as_json:
        print_json({**values, "planned_dollars": dollars})
        return
    for key, value in values.items():
        if key == "files":
            out().print(f"files        {size_text(request.staged.size_bytes)}", highlight=False)
            for name, size in value.items():
                out().print(
                    f"             {name} ({size_text(size)})", markup=False, highlight=False
                )
            continue
        text = " ".join(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            text = ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
        if key == "timeout_seconds":
            key, text = "timeout", f"{_length(value)} ({value} s)"
        out().print(f"{key:<13}{text}", markup=False, highlight=False)
    if dollars is not None:
        out().print(f"{'cost':<13}about ${dollars:.2f} by the plan", highlight=False)
    say("nothing was sent (--dry-run)")


def _length(seconds: float) -> str:
    from ..progress import short_time

    return short_time(seconds)


@app.command("list", epilog=OTHER_EXAMPLES)
def listed(
    everything: Annotated[
        bool, typer.Option("--all", help="Jobs that abi-train did not send, too.")
    ] = False,
    namespace: NamespaceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    from .. import jobs as service

    found = service.listed(namespace=namespace, everything=everything)
    if as_json:
        print_json({"jobs": [job.to_dict() for job in found]})
        return
    if not found:
        say("no jobs yet; send one with `abi-train jobs submit`")
    for job in found:
        out().print(
            f"{job.id:<26} {job.stage:<11} {job.flavor:<15} {job.created:<26} {job.name}",
            markup=False,
            highlight=False,
        )


@app.command("logs", epilog=OTHER_EXAMPLES.replace("list", "logs JOB --follow"))
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, help="Only so many last lines.")] = None,
    namespace: NamespaceOption = None,
) -> None:
    """Print what a job said."""
    from .. import jobs as service
    from ..data.visible import visible

    for line in service.logs(job, namespace=namespace, follow=follow, tail=tail):
        typer.echo(visible(line))


@app.command("wait", epilog=OTHER_EXAMPLES.replace("list", "wait JOB"))
def wait(
    job: JobArgument,
    limit: Annotated[
        str | None, typer.Option(help="Stop waiting after 30m, 4h; the job goes on.")
    ] = None,
    namespace: NamespaceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Wait until a job has ended. Exit code 0 if it completed, 1 if it failed or was cancelled."""
    from ..jobs.request import seconds_of

    with from_the_command_line():
        seconds = None if limit is None else seconds_of(limit)
    _wait(job, namespace, seconds, as_json)


def _wait(job: str, namespace: str | None, limit: float | None, as_json: bool) -> None:
    from .. import jobs as service

    try:
        ended = service.wait(
            job,
            namespace=namespace,
            limit=limit,
            tell=lambda found: say(f"{found.id}: {found.stage.lower()}"),
        )
    except KeyboardInterrupt:
        say(
            f"job {job} goes on, and costs. Wait again: abi-train jobs wait {job}; stop it: "
            f"abi-train jobs cancel {job}"
        )
        raise typer.Exit(130) from None
    if as_json:
        print_json(ended.to_dict())
    if ended.stage != "COMPLETED":
        why = f": {ended.message}" if ended.message else ""
        say(f"job {job} ended as {ended.stage}{why}. Read why: abi-train jobs logs {job}")
        raise typer.Exit(1)


@app.command("cancel", epilog=OTHER_EXAMPLES.replace("list", "cancel JOB"))
def cancel(job: JobArgument, namespace: NamespaceOption = None) -> None:
    """Stop a job. What it saved stays in its bucket."""
    from .. import jobs as service

    service.cancel(job, namespace=namespace)
    say(f"cancelled {job}")


@app.command("hardware", epilog=OTHER_EXAMPLES.replace("list", "hardware"))
def hardware(
    offline: Annotated[
        bool, typer.Option("--offline", help="The table with its day, without asking the Hub.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the machines and what they cost."""
    from ..plan.hardware import live_prices, prices

    found = prices(online=False) if offline else live_prices()
    if as_json:
        print_json(
            {
                "source": found.source,
                "flavors": [
                    {
                        "name": f.name,
                        "machine": f.words,
                        "gpus": f.gpus,
                        "gpu_memory_bytes": None if f.gpu is None else f.gpu.memory_bytes,
                        "memory_bytes": f.memory_bytes,
                        "disk_bytes": f.disk_bytes,
                        "dollars_per_hour": f.dollars_per_hour,
                    }
                    for f in found.flavors
                ],
            }
        )
        return
    for f in found.flavors:
        out().print(
            f"{f.name:<16} {f.words:<24} ${f.dollars_per_hour:>6.2f}/h",
            markup=False,
            highlight=False,
        )
    say(found.source)
