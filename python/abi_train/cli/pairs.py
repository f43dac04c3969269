"""`abi-train data pairs`: preference pairs that teach when to be sure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import JsonFlag, from_the_command_line, out, print_json, say
from .sets import COMMERCIAL

EXAMPLES = """[bold]Examples[/]

abi-train data pairs questions.jsonl --output data/pairs.jsonl --review data/review.md

abi-train data pairs set:truthful-qa --sessions .abi/sessions --output data/pairs.jsonl
"""


def pairs(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Files of questions or pairs (.jsonl), or set:truthful-qa."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Rows to write (.jsonl).")] = Path("pairs.jsonl"),
    sessions: Annotated[
        Path | None, typer.Option(help="Folder of conversations the agent recorded.")
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option(help="Page with a mark for each pair: written, or followed when it is there."),
    ] = None,
    failures: Annotated[
        str, typer.Option(help="Worse answers a question: one, drawn by the seed, or both.")
    ] = "one",
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs at most.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 42,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence of files that do not say it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Build calibration pairs for DPO: an answer as sure as it may be over one that is not.

    The worse answer is overconfident or evasive. A question row has `question`, `kind` (known,
    unknowable, ambiguous, trick), and as far as they apply `answers`, `wrong`, `why` and `ask`.
    Questions asked before in nearly the same words are left out, and the better answer is about
    as often the shorter one.
    """
    from ..data.pair_files import FAILURES, make_pairs
    from ..errors import ConfigError

    with from_the_command_line():
        if failures not in FAILURES:
            raise ConfigError(f"--failures is {failures!r}; it must be one or both")
        if not sources and sessions is None:
            raise ConfigError("name a file of questions, or --sessions FOLDER")
    report = make_pairs(
        list(sources or []),
        output,
        sessions=sessions,
        review=review,
        failures=failures,
        limit=limit,
        seed=seed,
        license_note=license_name,
    )
    if as_json:
        print_json(report.to_dict())
        return
    told = report.built.to_dict()
    out().print(f"{report.path}: {told['pairs']} pairs", highlight=False)
    for what in ("kinds", "failures"):
        counts = ", ".join(f"{count} {name}" for name, count in told[what].items())
        say(f"{what}: {counts}")
    lengths = told["mean_characters"]
    say(
        f"the better answer is the longer one in {100 * told['chosen_is_longer']:.0f} % "
        f"({lengths['chosen']:.0f} characters on average, the worse one {lengths['rejected']:.0f})"
    )
    for reason, count in report.built.left_out.most_common():
        say(f"left out {count} x {reason}")
    if told["rejected_in_review"]:
        say(f"left out {told['rejected_in_review']} in the review")
    if told["waiting_for_review"]:
        where = "" if report.review else " (--review FILE)"
        say(f"{told['waiting_for_review']} wait for a review{where}")
    if report.review is not None and report.new_in_review:
        say(
            f"{report.review}: {report.new_in_review} pairs to look at; mark them, then run this "
            "again"
        )
    use = COMMERCIAL[report.origin.commercial_use]
    say(
        f"licence {report.origin.license or 'unknown'}, commercial use: {use} (kept in "
        f"{report.side_file.name})"
    )
    for note in report.origin.notes:
        say(f"note: {note}")
