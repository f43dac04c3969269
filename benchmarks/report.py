"""The generated part of docs/performance.md, from the results of `all.py`.

python benchmarks/report.py            write the page
python benchmarks/report.py --check    fail if it is old
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import roofline
from common import RESULTS, ROOT, Record, table

PAGE = ROOT / "docs" / "performance.md"
SHAPES = ("4m", "135m", "174m")


def load(name: str, folder: Path) -> Record | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def origin(*results: Record | None) -> str:
    """When, where and with what the figures below were measured."""
    lines = []
    for r in results:
        if r is None:
            continue
        m = r["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
        lines.append(
            f"`{r['command']}` · {m['date']} · {m['cpu']}, {m['cpus']} CPUs, {m['memory_gib']} GiB,"
            f" {m['system']} · engine {m['engine']} · commit {m['commit']} · {versions}"
            f" · load before: {r.get('load_before', 'not noted')}"
        )
    return "\n\n".join(lines)


def steps(folder: Path) -> dict[str, Record]:
    """Shape -> its part of the step results."""
    found = {}
    for shape in SHAPES:
        result = load(f"step-{shape}", folder)
        if result is not None:
            found[shape] = {**result["shapes"][0], "result": result}
    return found


def speed_of(part: Record) -> dict[str, float]:
    return {row["engine"]: row["tokens_per_second"] for row in part["rows"]}


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def met(value: float | None, goal: float, lower: bool = False) -> str:
    if value is None:
        return "not measured"
    return "yes" if (value <= goal if lower else value >= goal) else "**no**"


def goals(folder: Path) -> str:
    """The goals with what was measured against each."""
    lines: list[list[object]] = []
    parts = steps(folder)

    def add(
        what: str, goal: str, value: float | None, limit: float, show: str, lower: bool = False
    ) -> None:
        lines.append([what, goal, show if value is not None else "", met(value, limit, lower)])

    for shape in SHAPES:
        part = parts.get(shape)
        speed = speed_of(part) if part else {}
        plain = max((speed.get(e, 0) for e in ("pytorch", "pytorch-compile")), default=0)
        told = max((speed.get(e, 0) for e in ("pytorch-mkl", "pytorch-mkl-compile")), default=0)
        low = max((speed.get(e, 0) for e in ("pytorch-bf16", "pytorch-bf16-compile")), default=0)
        native, native_low = speed.get("native"), speed.get("native-bf16")
        limits = (3.0, 2.5) if shape == "4m" else (2.5, 1.7)
        for what, ours, theirs, limit in (
            ("float32 step / PyTorch as installed", native, plain, limits[0]),
            ("float32 step / PyTorch with MKL told it is on Intel", native, told, 1.4),
            ("bf16 step / PyTorch bf16", native_low, low, limits[1]),
        ):
            value = ours / theirs if ours and theirs else None
            add(f"{shape}: {what}", f"≥ {limit:g}x", value, limit, ratio(value))
    roof = load("roofline", folder)
    for compute, limit in (("f32", 0.75), ("bf16", 0.60)):
        value = next(
            (
                s["share_of_peak"]
                for s in (roof["steps"] if roof else [])
                if s["shape"] == "135m" and s["compute"] == compute
            ),
            None,
        )
        shown = "" if value is None else f"{100 * value:.0f} %"
        add(
            f"135m: share of the matrix peak, {compute}",
            f"≥ {100 * limit:.0f} %",
            value,
            limit,
            shown,
        )
    memory = load("memory", folder)
    for part in memory["shapes"] if memory else []:
        peak = {row["engine"]: row["peak_mib"] for row in part["rows"]}
        for engine, limit in (("native", 1 / 2), ("native-recompute", 1 / 3)):
            value = peak[engine] / peak["pytorch"]
            what = f"{part['shape']}: peak memory {engine} / pytorch"
            add(what, f"≤ {limit:.2f}", value, limit, f"{value:.2f}", lower=True)
        value = part["allocations_after_first"]
        add(
            f"{part['shape']}: allocations after the first step",
            "0",
            value,
            0,
            str(value),
            lower=True,
        )
    for shape in SHAPES:
        speed = speed_of(parts[shape]) if shape in parts else {}
        if "native-recompute" in speed:
            value = speed["native"] / speed["native-recompute"]
            add(
                f"{shape}: time with recomputation / without",
                "≤ 1.3x",
                value,
                1.3,
                ratio(value),
                lower=True,
            )
    scaling = load("scaling", folder)
    for row in scaling["threads"] if scaling else []:
        if row["engine"].startswith("native"):
            what = (
                f"{row['shape']}: {row['counts'][0]} -> {row['counts'][1]} threads, {row['engine']}"
            )
            add(what, "≥ 1.85x", row["gain"], 1.85, ratio(row["gain"]))
    adapters = load("adapters", folder)
    prepared = load("prepare", folder)
    rest = adapter_goals(adapters) if adapters else []
    rest += prepare_goals(prepared) if prepared else []
    for what, goal, value, limit, show, lower in rest:
        add(what, goal, value, limit, show, lower)
    learning = load("bf16_learning", folder)
    if learning:
        value = max(
            abs(d[key])
            for d in learning["differences"]
            for key in ("last_losses_mean", "held_out_loss")
        )
        add(
            "300 steps: largest loss difference of bf16",
            "≤ 1 %",
            value,
            0.01,
            f"{100 * value:.2f} %",
            lower=True,
        )
    batches = load("batches", folder)
    for part in batches["kinds"] if batches else []:
        value = part["rows"][0]["tokens_per_second"] / 1e9
        shown = f"{value:.2f} G tokens/s"
        add(f"batches, {part['kind']}, one thread", "≥ 1 G tokens/s", value, 1.0, shown)
    return table(lines, ["what", "goal", "measured", "met"])


def adapter_goals(result: Record) -> list[tuple[str, str, float, float, str, bool]]:
    """Name, goal, value, limit, text, whether lower is better."""
    found: list[tuple[str, str, float, float, str, bool]] = []

    def rows_of(part: str) -> dict[str, Record]:
        return {row["engine"]: row for row in result[part]["rows"]} if part in result else {}

    def faster(what: str, ours: float, theirs: float, limit: float) -> None:
        found.append((what, f"≥ {limit:g}x", ours / theirs, limit, ratio(ours / theirs), False))

    lora = rows_of("lora")
    for precision, suffix, limit in (("float32", "", 2.5), ("bf16", "-bf16", 1.7)):
        if not lora:
            continue
        ours, theirs = lora[f"native-lora{suffix}"], lora[f"pytorch-lora{suffix}"]
        what = f"135m: LoRA step / PEFT, {precision}"
        faster(what, ours["tokens_per_second"], theirs["tokens_per_second"], limit)
        share = ours["peak_mib"] / theirs["peak_mib"]
        what = f"135m: LoRA peak memory / PEFT, {precision}"
        found.append((what, "≤ 0.5", share, 0.5, f"{share:.2f}", True))
    quantised = rows_of("quantised")
    ours_rows = [r for name, r in quantised.items() if name.startswith("native")]
    peft_rows = [r for name, r in quantised.items() if not name.startswith("native")]
    if ours_rows and peft_rows:
        best = max(ours_rows, key=lambda r: r["tokens_per_second"])
        theirs_best = max(r["tokens_per_second"] for r in peft_rows)
        what = f"1.1 B: LoRA step on q4_K (`{best['engine']}`) / best PEFT"
        faster(what, best["tokens_per_second"], theirs_best, 1.4)
        gb = best["peak_mib"] * 2**20 / 1e9
        found.append(("1.1 B: peak memory of it", "≤ 1.6 GB", gb, 1.6, f"{gb:.2f} GB", True))
    dpo = rows_of("dpo")
    for precision, suffix in (("float32", ""), ("bf16", "-bf16")):
        if dpo:
            ours, theirs = dpo[f"native{suffix}"], dpo[f"trl{suffix}"]
            what = f"135m: DPO step on an adapter / TRL, {precision}"
            faster(what, ours["tokens_per_second"], theirs["tokens_per_second"], 2.5)
    return found


def adapter_tables(folder: Path) -> str:
    result = load("adapters", folder)
    if result is None:
        return ""
    titles = {
        "lora": "An adapter on q, k, v, o",
        "quantised": "The same on a base that stays as it is stored",
        "dpo": "Pairs, on an adapter, its base the reference",
    }
    blocks = []
    for part, title in titles.items():
        if part not in result:
            continue
        body = result[part]
        lines = [
            [
                f"`{row['engine']}`",
                row["tokens_per_second"],
                row["peak_mib"],
                row["other_cpu"],
                ratio(row["native_is"]),
            ]
            for row in body["rows"]
        ]
        blocks += [
            f"**{title}**: {body['shape']}, {body['batch']} × {body['length']} tokens.",
            table(lines, ["engine", "tok/s", "peak MiB", "other CPUs", "native is"]),
        ]
    return "\n\n".join([*blocks, origin(result)])


def step_tables(folder: Path) -> str:
    blocks = []
    for shape, part in steps(folder).items():
        speed = speed_of(part)
        lines = []
        for row in part["rows"]:
            ours = speed.get("native-bf16" if "bf16" in row["engine"] else "native")
            lines.append(
                [
                    f"`{row['engine']}`",
                    row["tokens_per_second"],
                    row["best"],
                    f"{row['spread']:.2f}",
                    row["counted_steps"],
                    f"{row['first_step_seconds']:.1f}",
                    row["peak_mib"],
                    row["other_cpu"],
                    ratio(ours / row["tokens_per_second"] if ours else None),
                ]
            )
        head = ["engine", "tok/s", "best", "spread", "steps", "first step s", "peak MiB"]
        head += ["other CPUs", "native is"]
        title = f"**{shape}**: {part['weights'] / 1e6:.1f} M weights"
        blocks += [
            f"{title}, {part['batch']} × {part['length']} tokens, {part['threads']} threads.",
            table(lines, head),
            origin(part["result"]),
        ]
    return "\n\n".join(blocks)


def gpt_oss_tables(folder: Path) -> str:
    """A small mixture beside transformers, and an adapter on the shape of the 20 B model."""
    blocks = []
    small, large = load("step-moe", folder), load("gpt_oss_lora", folder)
    if small is not None:
        part = small["shapes"][0]
        speed = speed_of(part)["native"]
        lines = [
            [
                f"`{row['engine']}`",
                row["tokens_per_second"],
                row["best"],
                f"{row['spread']:.2f}",
                row["peak_mib"],
                ratio(speed / row["tokens_per_second"]),
            ]
            for row in part["rows"]
        ]
        blocks += [
            f"**A gpt-oss of {part['weights'] / 1e6:.1f} M weights**, 8 experts of which a token"
            f" has 2, trained whole: {part['batch']} × {part['length']} tokens, {part['threads']}"
            " threads.",
            table(lines, ["engine", "tok/s", "best", "spread", "peak MiB", "native is"]),
            origin(small),
        ]
    if large is not None:
        lines = [
            [
                row["layers"],
                row["compute"] + (", recomputed" if row["recompute"] else ""),
                "attention, experts" if row["experts"] else "attention",
                f"{row['seconds']:.2f}",
                f"{row['tokens_per_second']:.1f}",
                row["gflops"],
                "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f} %",
                f"{row['most_gb']['peak']:.2f}",
                f"{row['most_gb']['anonymous']:.2f}",
            ]
            for row in large["rows"]
        ]
        head = ["layers", "products", "adapter on", "s a step", "tok/s", "GFLOP/s"]
        head += ["of the peak", "peak GB", "of it its own"]
        blocks += [
            "**The shape of gpt-oss-20b**, random weights in MXFP4 that stay in their file, rank"
            f" 16, one row of {large['rows'][0]['tokens']} tokens. What is not its own are pages of"
            " the mapped file, which the system takes back when it needs them.",
            table(lines, head),
            origin(large),
        ]
    return "\n\n".join(blocks)


def gemm_tables(folder: Path) -> str:
    result = load("gemm", folder)
    if result is None:
        return ""
    libraries = list(dict.fromkeys(r["library"] for r in result["rows"]))
    rows: dict[tuple[str, str, int], dict[str, float]] = {}
    for r in result["rows"]:
        rows.setdefault((r["size"], r["form"], r["threads"]), {})[r["library"]] = r["gflops"]
    lines = [
        [size, form.replace("_", " "), threads, *(speed.get(n, "") for n in libraries)]
        for (size, form, threads), speed in rows.items()
    ]
    lines.sort(key=lambda line: line[2])
    return table(lines, ["m × k × n", "product", "threads", *libraries]) + "\n\n" + origin(result)


def roofline_tables(folder: Path) -> str:
    result = load("roofline", folder)
    if result is None:
        return ""
    peak, pool = result["peak"], result["pool"]
    blocks = [
        f"Ceilings with {peak['threads']} threads: {peak['f32_gflops']:.0f} GFLOP/s float32,"
        f" {peak['bf16_gflops']:.0f} GFLOP/s bf16, {peak['read_gbs']:.1f} GB/s read,"
        f" {peak['copy_gbs']:.1f} GB/s copied (read and written). One fork-join costs"
        f" {pool['in_a_row_us']:.2f} µs, {pool['after_a_pause_us']:.0f} µs after a pause."
    ]
    for s in result["steps"]:
        blocks.append(
            f"**{s['shape']}, {s['compute']}**: {s['step_ms']:.0f} ms a step,"
            f" {s['tokens_per_second']:.0f} tok/s, {s['gflops']:.0f} GFLOP/s ="
            f" {100 * s['share_of_peak']:.0f} % of the matrix peak; all floors together"
            f" {s['floor_ms']:.0f} ms."
        )
        blocks.append(table(roofline.lines_of(s), roofline.HEAD))
    return "\n\n".join([*blocks, origin(result)])


def memory_tables(folder: Path) -> str:
    result = load("memory", folder)
    if result is None:
        return ""
    lines = []
    for part in result["shapes"]:
        peaks = {row["engine"]: row["peak_mib"] for row in part["rows"]}
        for row in part["rows"]:
            share = row["peak_mib"] / peaks.get("pytorch", row["peak_mib"])
            lines.append(
                [
                    part["shape"],
                    f"`{row['engine']}`",
                    row["peak_mib"],
                    f"{share:.2f}",
                    row["tokens_per_second"],
                    f"{row['rss_growth_mib']:.1f}",
                    part["allocations_after_first"] if row["engine"].startswith("native") else "",
                ]
            )
    head = ["shape", "engine", "peak MiB", "of `pytorch`", "tok/s", "growth MiB", "allocations"]
    return table(lines, head) + "\n\n" + origin(result)


def scaling_tables(folder: Path) -> str:
    result = load("scaling", folder)
    if result is None:
        return ""
    blocks = []
    if result.get("threads"):
        counts = result["threads"][0]["counts"]
        blocks.append("Threads, in turn:")
        lines = [
            [r["shape"], f"`{r['engine']}`", *r["tokens_per_second"], ratio(r["gain"])]
            for r in result["threads"]
        ]
        blocks.append(table(lines, ["shape", "engine", *(f"tok/s, {n}" for n in counts), "gain"]))
    if result.get("length"):
        blocks.append("Length of rows at 4096 tokens a step, 4m:")
        keys = ["length", "native", "pytorch", "native_peak_mib", "pytorch_peak_mib"]
        keys += ["attention_scratch_mib", "score_matrix_mib"]
        head = ["length", "native tok/s", "pytorch tok/s", "native peak MiB", "pytorch peak MiB"]
        head += ["attention scratch MiB", "T × T matrices would be MiB"]
        blocks.append(table([[r.get(k, "") for k in keys] for r in result["length"]], head))
    if result.get("vocabulary"):
        blocks.append("Vocabulary, the rest as 4m:")
        keys = ["vocabulary", "native", "pytorch", "native_peak_mib", "pytorch_peak_mib"]
        keys += ["logits_kept_mib", "logits_whole_mib"]
        head = [
            "vocabulary",
            "native tok/s",
            "pytorch tok/s",
            "native peak MiB",
            "pytorch peak MiB",
        ]
        head += ["logits kept MiB", "whole logits would be MiB"]
        blocks.append(table([[r.get(k, "") for k in keys] for r in result["vocabulary"]], head))
    if result.get("size"):
        blocks.append("Size of the model:")
        lines = [
            [
                r["shape"],
                f"{r['weights'] / 1e6:.1f} M",
                r["tokens_per_second"],
                r["gflop"],
                r["gflops"],
            ]
            for r in result["size"]
        ]
        blocks.append(table(lines, ["shape", "weights", "tok/s", "GFLOP a step", "GFLOP/s"]))
    return "\n\n".join([*blocks, origin(result)])


def learning_table(folder: Path) -> str:
    result = load("bf16_learning", folder)
    if result is None:
        return ""
    lines = []
    pairs = zip(result["runs"][::2], result["runs"][1::2], strict=True)
    for (full, low), d in zip(pairs, result["differences"], strict=True):
        for what, key in (("last 50 updates", "last_losses_mean"), ("held out", "held_out_loss")):
            figures = [f"{full[key]:.4f}", f"{low[key]:.4f}", f"{100 * d[key]:+.2f} %"]
            lines.append([full["seed"], what, *figures])
    return table(lines, ["seed", "loss", "float32", "bf16", "difference"]) + "\n\n" + origin(result)


def batch_tables(folder: Path) -> str:
    result = load("batches", folder)
    if result is None:
        return ""
    texts = []
    for part in result["kinds"]:
        lines = [
            [
                row["engine"],
                f"{row['tokens_per_second'] / 1e9:.3f}",
                f"{row['best'] / 1e9:.3f}",
                f"{row['spread']:.2f}",
                f"{row['native_is']:.1f}x",
            ]
            for row in part["rows"]
        ]
        head = ["engine", "G tokens/s", "best", "spread", "native is"]
        what = f"**{part['kind'].capitalize()}**: {part['batch']} x {part['length']} tokens"
        texts.append(f"{what}, {part['tokens']:,} in the file.\n\n{table(lines, head)}")
    return "\n\n".join([*texts, origin(result)])


def prepare_goals(result: Record) -> list[tuple[str, str, float, float, str, bool]]:
    """What was promised of preparation, in the columns of `adapter_goals`."""
    lines: list[tuple[str, str, float, float, str, bool]] = []
    for row in result["parse"]:
        if row["parser"] == "ours":
            speed = row["gb_per_s"]
            what = f"JSON lines of {row['rows']} parsed, one core"
            lines.append((what, "≥ 2 GB/s", speed, 2.0, f"{speed:.2f}", False))
    for row in result["prepare"]:
        times = row["ours_is"]
        what = f"rows of {row['rows']} prepared / `datasets` + `tokenizers`"
        lines.append((what, "≥ 5x", times, 5.0, f"{times:.1f}x", False))
    if len(result["memory"]) > 1:
        small, *_, large = result["memory"]
        grown = large["peak_mib"] / small["peak_mib"]
        what = f"peak memory, {large['mb']:.0f} MB of rows / {small['mb']:.0f} MB"
        lines.append((what, "≤ 1.1x", grown, 1.1, f"{grown:.2f}x", True))
    return lines


def prepare_tables(folder: Path) -> str:
    result = load("prepare", folder)
    if result is None:
        return ""
    parsed = [[row["rows"], row["parser"], row["gb_per_s"]] for row in result["parse"]]
    keys = ("rows", "mb", "ours_mb_per_s", "datasets_mb_per_s")
    whole = [[*(row[key] for key in keys), ratio(row["ours_is"])] for row in result["prepare"]]
    keys = ("mb", "peak_mib", "peak_above_import_mib")
    memory = [[row[key] for key in keys] for row in result["memory"]]
    blocks = [
        table(parsed, ["rows", "parser", "GB/s, one core"]),
        table(whole, ["rows", "MB", "`prepare` MB/s", "`datasets` MB/s", "ours is"]),
        table(memory, ["MB of rows", "peak MiB", "of it above the import"]),
    ]
    return "\n\n".join([*blocks, origin(result)])


#: What was promised of generation: file -> prompt and generation as multiples of llama.cpp's.
GENERATE_GOALS = {
    "1b-q4_K_M.gguf": (2.5, 1.35),
    "1b-q8_0.gguf": (4.0, 1.6),
    "1b-f16.gguf": (2.3, 1.25),
    "135m-q4_K_M.gguf": (None, 1.25),
    "135m-q8_0.gguf": (None, 1.25),
    "135m-f16.gguf": (None, 1.25),
}


def generate_tables(folder: Path) -> str:
    """Both engines side by side, and the goals that hold for two threads."""
    result = load("generate", folder)
    if result is None:
        return ""
    found = {(row["file"], row["threads"], row["engine"]): row for row in result["rows"]}
    shown, promised = [], []
    for threads in sorted({row["threads"] for row in result["rows"]}, reverse=True):
        for file, limits in GENERATE_GOALS.items():
            ours = found.get((file, threads, "abi"))
            theirs = found.get((file, threads, "llama-bench"))
            if ours is None or theirs is None:
                continue
            name = file.removesuffix(".gguf")
            times = [ours[key] / theirs[key] for key in ("pp", "tg", "first_s")]
            pairs = [value for key in ("pp", "tg") for value in (ours[key], theirs[key])]
            first = [f"{row['first_s']:.2f}" for row in (ours, theirs)]
            memory = [row["first_mb"] for row in (ours, theirs)]
            shown.append([name, threads, *pairs, ours["read_gb_s"], *first, *memory])
            if threads != 2:
                continue
            for what, value, limit in zip(("prompt", "generation"), times, limits, strict=False):
                if limit is not None:
                    goal = f"≥ {limit}x"
                    promised.append([f"{name}: {what}", goal, ratio(value), met(value, limit)])
            if limits[0] is not None:
                late = met(times[2], 1.0, lower=True)
                promised.append([f"{name}: first id", "≤ 1x", ratio(times[2]), late])
    head = ["file", "threads", "prompt tok/s", "llama.cpp", "generation tok/s", "llama.cpp"]
    head += ["reads GB/s", "first id s", "llama.cpp", "MB", "llama.cpp"]
    goals_head = ["two threads, against llama.cpp", "goal", "measured", "met"]
    return "\n\n".join([table(promised, goals_head), table(shown, head), origin(result)])


SECTIONS: dict[str, Callable[[Path], str]] = {
    "goals": goals,
    "step": step_tables,
    "gpt_oss": gpt_oss_tables,
    "gemm": gemm_tables,
    "roofline": roofline_tables,
    "memory": memory_tables,
    "adapters": adapter_tables,
    "prepare": prepare_tables,
    "scaling": scaling_tables,
    "generate": generate_tables,
    "bf16_learning": learning_table,
    "batches": batch_tables,
}


def page(text: str, folder: Path = RESULTS) -> str:
    """`text` with each generated section made anew."""
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- begin {name}\b[^>]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if pattern.search(text) is None:
            raise SystemExit(f"{PAGE.name}: the markers of {name!r} are missing")
        body = make(folder) or "Not measured yet."
        text = pattern.sub(lambda m, body=body: f"{m[1]}\n{body}\n\n{m[2]}", text)
    return text


def write_page() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--check", action="store_true")
    args = p.parse_args()
    if not args.check:
        write_page()
    elif PAGE.read_text(encoding="utf-8") != page(PAGE.read_text(encoding="utf-8")):
        raise SystemExit(f"{PAGE}: old; run python benchmarks/report.py")


if __name__ == "__main__":
    main()
