"""docs/plan.md: its table is that of the benchmark."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_what_the_benchmark_found() -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "results" / "plan.json").read_text("utf-8"))
    rows = {
        cells[0]: cells[1:]
        for cells in re.findall(
            r"^\| `([\w-]+)` \| (\d+) \| ([\d,]+) \| (\S+) % \| (\S+) % \| (\S+) \| (\S+) % \|",
            page,
            re.MULTILINE,
        )
    }
    assert rows.keys() == {row["case"] for row in found["rows"]}
    for row in found["rows"]:
        updates, peak, counted, measured, seconds, planned = rows[row["case"]]
        assert int(updates) == row["updates"]
        assert int(peak.replace(",", "")) == round(row["real_mib"])
        assert int(counted) == round(100 * row["counted_off"])
        assert int(measured) == round(100 * row["measured_off"])
        assert float(seconds) == round(row["real_seconds"], 1)
        assert int(planned) == round(100 * row["seconds_off"])
        assert abs(row["measured_off"]) <= 0.1 and abs(row["seconds_off"]) <= 0.2
        assert row["disk_exact"] in (True, None)
