"""What a model card tells besides data and settings: phases with their scores, checks, exports.

Each is read from the file its maker left in the run's folder, and is left out where there is none.
Does not know: the head of a card, data, licences.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .handover import commands, read_reports

PHASES, SCORES, CHECK, EXPORTS = "## Phases", "## Evaluation", "## Check", "## Exports"
RECIPE: Final = "## Recipe"
HEADINGS: Final = (PHASES, SCORES, CHECK, EXPORTS, RECIPE)
CHECK_FILES: Final = ("check.json", "check/check.json", "check-report/check.json")


def with_sections(text: str, sections: Sequence[str]) -> str:
    """A card with these sections in place of those of an earlier time."""
    names = "|".join(re.escape(heading) for heading in HEADINGS)
    text = re.sub(rf"^(?:{names})\n(?:(?!## ).*\n?)*", "", text, flags=re.MULTILINE)
    return "\n\n".join([text.rstrip("\n"), *(part for part in sections if part)]) + "\n"


def with_title(text: str, title: str) -> str:
    """A card under another title."""
    return re.sub(r"^# .*$", lambda _: f"# {' '.join(title.split())}", text, count=1, flags=re.M)


def of_phases(state: Mapping[str, Any]) -> str:
    """What a phased run did, phase by phase."""
    described = {
        one.get("name"): one
        for one in _list(_dict(state.get("recipe")).get("phases"))
        if isinstance(one, dict)
    }
    rows = []
    for name, phase in _dict(state.get("phases")).items():
        phase, said = _dict(phase), _dict(described.get(name))
        result = _dict(phase.get("result"))
        kind = " · ".join(str(said[key]) for key in ("method", "objective") if said.get(key))
        updates = result.get("updates", result.get("total_steps", ""))
        loss = result.get("loss", result.get("final_loss"))
        cells = [name, kind, phase.get("state", ""), updates, _number(loss)]
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    if not rows:
        return ""
    head = ["| phase | method | state | updates | loss at the end |", "|---|---|---|---|---|"]
    return "\n".join([PHASES, "", *head, *rows])


def of_scores(state: Mapping[str, Any]) -> str:
    """Scores before the first phase and after each."""
    columns = {"before": _dict(state.get("before"))}
    for name, phase in _dict(state.get("phases")).items():
        columns[str(name)] = _dict(_dict(phase).get("scores"))
    columns = {name: scores for name, scores in columns.items() if scores}
    keys = dict.fromkeys(
        (str(task), str(metric))
        for scores in columns.values()
        for task, metrics in scores.items()
        for metric in _dict(metrics)
    )
    if not keys:
        return ""
    lines = [SCORES, "", "| | " + " | ".join(map(_cell, columns)) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for task, metric in keys:
        cells = [_number(_dict(scores.get(task)).get(metric)) for scores in columns.values()]
        lines.append(f"| {_cell(f'{task}: {metric}')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_check(folder: Path) -> str:
    """What a comparison of the engines in the folder found."""
    for name in CHECK_FILES:
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            engines, steps = values["engines"], values["steps"]
            ok, worst = bool(values["ok"]), _dict(values.get("worst"))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        said = "agree" if ok else "do not agree"
        pairs = ", ".join(f"{key} {_number(value)}" for key, value in worst.items())
        text = f"{' and '.join(map(str, engines))} {said} over {len(steps)} updates"
        return "\n".join(
            [CHECK, "", f"{text}{f' (largest differences: {pairs})' if pairs else ''}."]
        )
    return ""


def of_exports(folder: Path) -> str:
    """GGUF files in the folder that were handed over, with what their comparison found."""
    rows, lines = [], []
    for one in read_reports(folder):
        verification = _dict(one.get("verification"))
        found, form = _dict(verification.get("exported")), _dict(verification.get("format"))
        choice = found.get("same_choice")
        name = Path(str(one.get("path"))).name
        cells = [
            f"`{name}`",
            one.get("mix"),
            f"{one['size_bytes'] / 1e6:.1f} MB",
            verification.get("verdict") or "not verified",
            _number(_dict(form.get("distance")).get("relative")),
            f"{choice:.1%}" if isinstance(choice, float) else "",
            _number(found.get("largest_logit_difference")),
            _number(found.get("divergence")),
            _perplexity(_dict(verification.get("perplexity"))),
            f"`{str(one.get('sha256'))[:16]}…`",
        ]
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        for finding in _list(verification.get("findings")):
            lines.append(f"- {name}: {_dict(finding).get('text')}")
        lines.append(f"- {name}: {', '.join(f'`{command}`' for command in _commands(one))}")
    if not rows:
        return ""
    return "\n".join(
        [
            EXPORTS,
            "",
            "| file | type | size | verified | format | same likeliest token | largest logit "
            "difference | divergence, nats | perplexity | sha256 |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *map(_line, lines),
            "",
            "Compared with the trained weights on fixed prompts, along what those answer. Format: "
            "the largest difference where nothing is rounded, as a part of the range of the "
            "logits.",
        ]
    )


def _commands(report: Mapping[str, Any]) -> list[str]:
    """What to type in the folder; only names, since the card may be read anywhere."""
    modelfile = report.get("modelfile")
    return commands(
        str(report.get("name")),
        str(report.get("mix")),
        Path(str(report.get("path"))).name,
        None if modelfile is None else Path(str(modelfile)).name,
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _perplexity(found: Mapping[str, Any]) -> str:
    """Of the trained model and of the file, on a text."""
    if not found:
        return ""
    return f"{_number(found.get('trained'))} → {_number(found.get('exported'))}"


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [{"name": key, **_dict(one)} for key, one in value.items()]
    return value if isinstance(value, list) else []


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
