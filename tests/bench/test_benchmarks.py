"""Every benchmark still runs, on the smallest sizes. No time is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


def run_tiny(script: str, folder: Path, *options: str) -> dict[str, Any]:
    path = folder / f"{script}.json"
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--tiny", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", str(path), *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(path.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert result["benchmark"] == {"train": "step"}.get(script, script)
    assert result["machine"]["cpus"] >= 1
    assert set(result["machine"]["versions"]) >= {"abi-train", "numpy", "torch"}
    return result


@pytest.fixture()
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of benchmarks/ as the scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_adapters_and_pairs_start_where_the_others_start(tmp_path: Path) -> None:
    result = run_tiny("adapters", tmp_path)
    for part, engines in (
        ("lora", ["native-lora", "pytorch-lora", "native-lora-bf16", "pytorch-lora-bf16"]),
        ("dpo", ["native", "trl", "native-bf16", "trl-bf16"]),
    ):
        rows = result[part]["rows"]
        assert [row["engine"] for row in rows] == engines
        for row in rows:
            # Random weights know nothing; an adapter that does nothing equals its reference.
            first = 4.852 if part == "lora" else 0.6931
            assert row["first_loss"] == pytest.approx(first, abs=0.1 if part == "lora" else 1e-4)
            assert row["tokens_per_second"] > 0
            assert row["native_is"] > 0


def test_step_trains_the_same_work_on_every_engine(tmp_path: Path) -> None:
    engines = ["native", "native-bf16", "native-recompute", "pytorch"]
    result = run_tiny("step", tmp_path, "--engines", *engines)
    (part,) = result["shapes"]
    rows = {row["engine"]: row for row in part["rows"]}
    assert list(rows) == engines
    for row in rows.values():
        assert row["tokens_per_second"] > 0
        assert row["best"] >= row["tokens_per_second"]
        assert row["peak_mib"] > 1
        assert row["counted_steps"] == 2
        # Random weights know nothing: the loss is near ln(vocabulary).
        assert row["first_loss"] == pytest.approx(4.852, abs=0.1)
    assert rows["native"]["last_loss"] == rows["native-recompute"]["last_loss"]
    assert rows["native"]["last_loss"] == pytest.approx(rows["native-bf16"]["last_loss"], rel=1e-3)


def test_batches_are_the_same_on_every_side(tmp_path: Path) -> None:
    # The sides compare their checksums; a difference ends the program.
    result = run_tiny("batches", tmp_path)
    assert [part["kind"] for part in result["kinds"]] == ["stream", "masked stream", "rows"]
    for part in result["kinds"]:
        engines = [row["engine"] for row in part["rows"]]
        assert engines == ["native", "native-arrays", "numpy", "torch"]
        assert all(row["tokens_per_second"] > 0 for row in part["rows"])


def test_gemm_times_the_three_products(tmp_path: Path) -> None:
    result = run_tiny("gemm", tmp_path, "--libraries", "ours-f32", "ours-bf16", "numpy")
    found = {(row["library"], row["form"]) for row in result["rows"]}
    forms = ("forward", "input_gradient", "weight_gradient")
    assert found == {(lib, f) for lib in ("ours-f32", "ours-bf16", "numpy") for f in forms}
    assert all(row["gflops"] > 0 for row in result["rows"])


def test_memory_counts_no_allocation_after_the_first_step(tmp_path: Path) -> None:
    result = run_tiny("memory", tmp_path, "--engines", "native", "native-recompute")
    (part,) = result["shapes"]
    assert part["allocations_after_first"] == 0
    assert all(row["peak_mib"] > 1 for row in part["rows"])


def test_scaling_has_all_its_parts(tmp_path: Path) -> None:
    result = run_tiny("scaling", tmp_path, "--peers")
    assert {len(result[part]) for part in ("threads", "length", "vocabulary", "size")} == {1, 2}
    short, long = result["length"]
    grows = long["attention_scratch_mib"] / short["attention_scratch_mib"]
    assert grows <= 1.01 * (long["length"] / short["length"]) * 4  # rows of the panel grow too here
    assert result["vocabulary"][0]["logits_kept_mib"] > 0


def test_generation_is_measured_beside_llama_cpp(tmp_path: Path) -> None:
    rows = run_tiny("generate", tmp_path)["rows"]
    assert [row["engine"] for row in rows] == ["abi", "xllamacpp"]
    assert all(row["pp"] > 0 and row["tg"] > 0 for row in rows)


def test_encode_compares_ids_before_it_times(tmp_path: Path) -> None:
    rows = run_tiny("encode", tmp_path)["rows"]
    assert {row["engine"] for row in rows} == {"abi_train", "tokenizers"}
    assert all(row["mb_per_second"] > 0 and row["ids"] > 0 for row in rows)


def test_roofline_accounts_for_the_whole_step(tmp_path: Path) -> None:
    result = run_tiny("roofline", tmp_path)
    assert result["peak"]["f32_gflops"] > 0
    assert result["pool"]["checksum"] > 0
    for step in result["steps"]:
        ops = {row["op"]: row for row in step["rows"]}
        assert {"head and loss", "attention gradient", "linear forward", "optimizer"} <= set(ops)
        assert sum(row["milliseconds"] for row in step["rows"]) == pytest.approx(
            step["step_ms"], rel=0.02
        )
        # 2 layers: q, k, v, o, gate, up, down; o once more where it is not kept.
        assert ops["linear forward"]["calls"] in (14, 15)


def test_the_operations_of_a_step_are_those_its_ops_count(tmp_path: Path, module: Any) -> None:
    """Nothing is left out; what is computed again to save memory stays small."""
    for step in run_tiny("roofline", tmp_path)["steps"]:
        assert step["gflop"] == module("shapes").step_gflop("tiny", 4, 16)
        assert -1e-4 <= step["gflop_recomputed"] / step["gflop"] <= 0.1


def test_bf16_learning_compares_two_runs(tmp_path: Path) -> None:
    result = run_tiny("bf16_learning", tmp_path)
    full, low = result["runs"]
    assert (full["compute"], low["compute"]) == ("f32", "bf16")
    assert full["losses"] != low["losses"]
    assert full["held_out_loss"] == pytest.approx(low["held_out_loss"], rel=0.01)


def test_the_page_takes_results_and_keeps_its_words(tmp_path: Path, module: Any) -> None:
    report = module("report")
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.page(text) == text, "docs/performance.md is old: run benchmarks/report.py"
    empty = report.page(text, tmp_path)
    assert empty.count("Not measured yet.") >= 5
    assert report.page(empty) == text


def test_an_unknown_engine_is_refused(module: Any) -> None:
    engine = module("engine")
    assert engine.flags_of("pytorch-bf16-compile") == ("pytorch", {"bf16", "compile"})
    for name in ("jax", "native-mkl", "pytorch-recompute", ""):
        with pytest.raises(ValueError, match="no engine"):
            engine.flags_of(name)


def test_a_table_sets_numbers_to_the_right(module: Any) -> None:
    text = module("common").table([["a", 1234, 2.5]], ["what", "count", "ratio"])
    head, rule, line = text.splitlines()
    assert rule.count(":") == 2
    assert line == "| a    | 1,234 |   2.5 |"
    assert len(head) == len(rule) == len(line)


def test_the_short_look_trains_natively_and_with_pytorch(tmp_path: Path) -> None:
    result = run_tiny("train", tmp_path)
    (part,) = result["shapes"]
    assert [row["engine"] for row in part["rows"]] == ["native", "pytorch"]


def test_pairs_in_float32_are_held_against_float64(tmp_path: Path) -> None:
    rows = run_tiny("pairs_float32", tmp_path)["rows"]
    assert len(rows) == 8
    for row in rows:
        assert row["apart_in_float64"] < 1e-7 * (1.0 + row["size"])
        assert row["native"] < 1e-5 * (1.0 + row["size"])


def test_prepare_makes_the_same_rows_and_ids_as_datasets_and_tokenizers(tmp_path: Path) -> None:
    result = run_tiny("prepare", tmp_path, "--parsers", "ours", "json")
    assert [row["parser"] for row in result["parse"]] == ["ours", "json"] * 2
    assert all(row["gb_per_s"] > 0 for row in result["parse"])
    for row in result["prepare"]:
        ours, theirs = row["ours"][0], row["datasets"][0]
        assert ours["rows"] == theirs["rows"] < 500
        assert ours["tokens"] == theirs["sample_ids"]  # the sample is all of it here
    assert result["memory"][0]["peak_above_import_mib"] > 0


def test_data_report_counts_every_row_of_what_it_measures(tmp_path: Path) -> None:
    result = run_tiny("data_report", tmp_path)
    bare, with_tokenizer, lines = result["reports"]
    assert bare["rows"] == with_tokenizer["rows"] > 500
    assert bare["tokens"] == with_tokenizer["tokens"] > 40_000
    assert lines["rows"] == 100
    assert all(row["seconds"] > 0 for row in result["reports"])


def test_plan_is_held_against_the_run(tmp_path: Path) -> None:
    (row,) = run_tiny("plan", tmp_path)["rows"]
    assert row["case"] == "native" and row["disk_exact"] is True
    assert row["real_mib"] > 10 and row["real_seconds"] > 0
