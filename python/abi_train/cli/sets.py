"""`abi-train data get` and `abi-train data sets`: the public data sets of the guide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .common import JsonFlag, err, from_the_command_line, out, print_json, say

GET_EXAMPLES = """[bold]Examples[/]

abi-train data get gsm8k --limit 2000 --output data/gsm8k.jsonl

abi-train data get daily-dialog --from downloads/daily_dialog --split validation
"""
SETS_EXAMPLES = """[bold]Examples[/]

abi-train data sets

abi-train data sets --json
"""
COMMERCIAL = {True: "yes", False: "no", None: "unknown"}


def get(
    name: Annotated[
        str, typer.Argument(help="Name of the set (`abi-train data sets`), or its id.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Rows to write (.jsonl). (default: NAME-SPLIT.jsonl)")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test. (default: train, where it is)")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Configuration of the set. (default: its first)")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Read this file or folder, and not the Hub."),
    ] = None,
    hub_id: Annotated[
        str | None, typer.Option("--id", help="Another repository with the same columns.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch or commit of the repository.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Draw this many rows by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 42,
    choices: Annotated[
        list[str] | None,
        typer.Option("--option", help="A choice of the set, NAME=VALUE; may be repeated."),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence of data whose set has none known.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a public data set as rows for `data prepare`, with its licence in a file beside.

    From the Hub by `datasets`, or from downloaded files. Columns are checked; rows that cannot be
    used are counted with the reason.
    """
    from ..data.sets import fetch_set, find

    with from_the_command_line():
        data_set = find(name)
        options = dict(_pair(text) for text in choices or [])
        data_set.choose(options)
        split = split or data_set.default_split
        if config is not None and config not in data_set.columns:
            known = ", ".join(data_set.columns)
            raise ConfigError(f"{data_set.name} has no configuration {config!r}; it has {known}")
    with err().status(f"reading {data_set.title}", spinner="dots") as status:
        report = fetch_set(
            data_set,
            output or Path(f"{data_set.name}-{split}.jsonl"),
            split=split,
            config=config,
            source=source,
            hub_id=hub_id,
            revision=revision,
            limit=limit,
            seed=seed,
            options=options,
            license_note=license_name,
            on_progress=lambda done: status.update(f"reading {data_set.title}: {done} records"),
        )
    if as_json:
        print_json(report.to_dict())
        return
    drawn = f", drawn from {report.rows + report.not_drawn}" if report.not_drawn else ""
    out().print(
        f"{report.path}: {report.rows} rows of {report.read} records{drawn}", highlight=False
    )
    if report.left_out:
        say(f"left out {report.left_out.total()}:")
        for reason, count in report.left_out.most_common():
            say(f"  {count} x {reason}")
    say(
        f"licence {report.license or 'unknown'}, commercial use: "
        f"{COMMERCIAL[report.commercial_use]} (kept in {report.side_file.name})"
    )
    for note in report.notes:
        say(f"note: {note}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--option is {text!r}; it must be NAME=VALUE")
    return name.strip(), value.strip()


def sets(as_json: JsonFlag = False) -> None:
    """List the public data sets: what each teaches, its size, its licence."""
    from rich.table import Table

    from ..data.sets import SETS

    rows = [described(data_set) for data_set in SETS]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for title in ("name", "id", "teaches", "rows", "licence", "commercial"):
        table.add_column(title, overflow="fold", justify="right" if title == "rows" else "left")
    for row in rows:
        table.add_row(
            row["name"],
            (row["ids"] or ["your own file"])[0],
            row["teaches"],
            str(max(row["splits"].values(), default="")),
            row["license"] or "unknown",
            COMMERCIAL[row["commercial_use"]],
        )
    out().print(table)
    for row in rows:
        for note in row["notes"]:
            say(f"{row['name']}: {note}")


def described(data_set: Any) -> dict[str, Any]:
    """A set as plain values."""
    from ..data.sets.base import spelled

    return {
        "name": data_set.name,
        "title": data_set.title,
        "ids": [home.hub_id for home in data_set.homes],
        "revision": data_set.homes[0].revision if data_set.homes else None,
        "teaches": data_set.teaches,
        "splits": dict(data_set.splits),
        "license": data_set.license,
        "commercial_use": data_set.commercial_use,
        "notes": list(data_set.warnings(data_set.default_split)),
        "columns": {
            config: {name: spelled(kind) for name, kind in columns.items()}
            for config, columns in data_set.columns.items()
        },
        "options": {option.name: list(option.values) for option in data_set.options},
    }
