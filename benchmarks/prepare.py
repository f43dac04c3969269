"""From lines of JSON to token files: parsing alone, and the whole way, beside what others use.

    python benchmarks/prepare.py

Parsing: one core, the file in the page cache, every line checked and its texts made; ours through
`abt_jsonl_check`. The whole way: `prepare` beside `datasets` with `tokenizers` at its best (rows
read by `load_dataset`, ChatML joined by Python in a batched `map` on `--threads` processes,
`encode_batch_fast`, written as Arrow). The others make ids and no loss mask, which is less work.
Runs take turns: A B A B. Memory: the peak of a process that prepares, less that of one that only
imports; for two sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Record, finish, median, parser, run_child, table

ENGLISH = """
the quick brown fox jumps over lazy dog thinking about numbers function return value language model
training weights because however question answer maybe seems would could should there where while
under again great small large paper river mountain coffee window python zig memory thread file line
token loss naïve café résumé
"""
WORDS = ENGLISH.split()
CJK = "漢字仮名交じり文の例として色々な言葉を並べてみる天気予報によると明日は雨が降るかもしれない"
ENDS = [".", "?", "!", ". \n", ".\n\n", " (see 42).", " — really…", ' It\'s "quoted".']
CODE = "def f(x):\n    return x * 2  # double\n"
PARSERS = ("ours", "orjson", "pyarrow", "polars", "duckdb", "json")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# ---- what is prepared ----


def sentence(rng: random.Random) -> str:
    """Mostly English; some Japanese, code and emoji."""
    kind = rng.random()
    if kind < 0.92:
        words = " ".join(rng.choices(WORDS, k=rng.randint(4, 18)))
        return words.capitalize() + rng.choice(ENDS)
    if kind < 0.96:
        return "".join(rng.choices(CJK, k=rng.randint(5, 30))) + "。"
    return CODE if kind < 0.98 else "🙂🎉 naïve café"


def body(rng: random.Random, most: int) -> str:
    return " ".join(sentence(rng) for _ in range(rng.randint(1, most)))


def chat(rng: random.Random) -> Record:
    turns = [{"role": "system", "content": "You are helpful."}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 4)):
        turns.append({"role": "user", "content": body(rng, 3)})
        turns.append({"role": "assistant", "content": body(rng, 8)})
    return {"messages": turns}


def text(rng: random.Random) -> Record:
    return {"text": body(rng, 40)}


def write_rows(path: Path, make: Callable[[random.Random], Record], size: int) -> None:
    """About `size` bytes of rows, none twice; what is there already stays."""
    if path.exists():
        return
    rng = random.Random(7)
    done = 0
    with path.open("w", encoding="utf-8") as file:
        while done < size:
            line = json.dumps(make(rng), ensure_ascii=False) + "\n"
            done += file.write(line)


def write_tokenizer(folder: Path, rows: Path, vocab_size: int) -> None:
    """A byte-level BPE of these rows, with ChatML's control tokens; one that is there stays."""
    if folder.exists():
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def texts() -> Iterator[str]:
        with rows.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == 3000:
                    return
                row = json.loads(line)
                yield row["text"] if "text" in row else row["messages"][-1]["content"]

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(), trainer)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# ---- children: one measurement in a process of its own ----


def parse_ours(path: Path) -> Callable[[], object]:
    import mmap

    from abi_train import _native

    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return lambda: _native.preparation.check_lines(mapped)


def parse_lines_with(loads: Callable[[bytes], object]) -> Callable[[Path], Callable[[], object]]:
    def ready(path: Path) -> Callable[[], object]:
        data = path.read_bytes()
        lines = data.splitlines()
        return lambda: [None for line in lines if loads(line) is None]

    return ready


def parse_orjson(path: Path) -> Callable[[], object]:
    import orjson

    return parse_lines_with(orjson.loads)(path)


def parse_pyarrow(path: Path) -> Callable[[], object]:
    from pyarrow import json as arrow

    options = arrow.ReadOptions(use_threads=False, block_size=8 << 20)
    return lambda: arrow.read_json(path, read_options=options).num_rows


def parse_polars(path: Path) -> Callable[[], object]:
    os.environ["POLARS_MAX_THREADS"] = "1"
    import polars

    data = path.read_bytes()
    return lambda: polars.read_ndjson(data).height


def parse_duckdb(path: Path) -> Callable[[], object]:
    import duckdb

    con = duckdb.connect(config={"threads": 1})
    query = f"select sum(hash(t)) from read_json('{path}', format='newline_delimited') t"
    return lambda: con.sql(query).fetchall()


READY: dict[str, Callable[[Path], Callable[[], object]]] = {
    "ours": parse_ours,
    "orjson": parse_orjson,
    "pyarrow": parse_pyarrow,
    "polars": parse_polars,
    "duckdb": parse_duckdb,
    "json": parse_lines_with(json.loads),
}


def child_parse(name: str, rows: str, repeat: str) -> Record:
    try:
        run = READY[name](Path(rows))
    except ImportError:
        return {"absent": True}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    times = []
    for _ in range(int(repeat)):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "all_seconds": times}


def child_ours(rows: str, tokenizer: str, output: str, threads: str) -> Record:
    from abi_train.data.prepare import prepare

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    report = prepare(
        [rows], tokenizer, output, chat_format="chatml", threads=int(threads), resume=False
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "rows": report.train.rows,
        "tokens": report.train.tokens,
        "peak_mib": peak / 1024,
        "peak_above_import_mib": (peak - before) / 1024,
    }


def child_datasets(rows: str, tokenizer: str, cache: str, threads: str) -> Record:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_DATASETS_CACHE"] = cache
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    words = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        if "text" in batch:
            whole = [text + "<|im_end|>" for text in batch["text"]]
        else:
            whole = [
                "".join(
                    f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns
                )
                for turns in batch["messages"]
            ]
        return {"input_ids": [found.ids for found in words.encode_batch_fast(whole)]}

    start = time.perf_counter()
    made = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=cache)
    made = made.map(encode, batched=True, num_proc=int(threads), remove_columns=made.column_names)
    seconds = time.perf_counter() - start
    sample = made.select(range(min(500, len(made))))
    return {
        "seconds": seconds,
        "rows": len(made),
        "sample_ids": sum(len(ids) for ids in sample["input_ids"]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


CHILDREN = {"parse": child_parse, "ours": child_ours, "datasets": child_datasets}


def measure(kind: str, *arguments: object) -> Record:
    """One measurement in a process of its own."""
    return run_child([sys.executable, __file__, "--child", kind, *map(str, arguments)])[0]


# ---- the benchmark ----


KINDS: dict[str, Callable[[random.Random], Record]] = {"chat": chat, "text": text}


def parsing(folder: Path, args: argparse.Namespace, size: int) -> list[Record]:
    names, rounds, repeat = args.parsers, args.rounds, args.repeat
    rows = []
    for kind in args.rows:
        path = folder / f"parse-{kind}.jsonl"
        write_rows(path, KINDS[kind], size)
        found: dict[str, list[Record]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                found[name].append(measure("parse", name, path, repeat if name == "ours" else 2))
        for name, runs in found.items():
            if any(run.get("absent") for run in runs):
                continue
            best = path.stat().st_size / min(run["seconds"] for run in runs) / 1e9
            rows.append({"rows": kind, "parser": name, "gb_per_s": best, "runs": runs})
    return rows


def whole_way(folder: Path, args: argparse.Namespace, size: int) -> list[Record]:
    rows = []
    for kind in args.rows:
        path, tokenizer = folder / f"{kind}.jsonl", folder / f"tokenizer-{kind}"
        write_rows(path, KINDS[kind], size)
        write_tokenizer(tokenizer, path, args.vocabulary)
        ours, theirs = [], []
        for number in range(args.rounds):
            ours.append(measure("ours", path, tokenizer, folder / "out.bin", args.threads))
            cache = folder / f"cache-{kind}-{number}-{time.time_ns()}"
            theirs.append(measure("datasets", path, tokenizer, cache, args.threads))
            shutil.rmtree(cache)
        mb = path.stat().st_size / 1e6
        speeds = [mb / run["seconds"] for run in ours]
        others = [mb / run["seconds"] for run in theirs]
        rows.append(
            {
                "rows": kind,
                "mb": mb,
                "tokens": ours[0]["tokens"],
                "ours_mb_per_s": median(speeds),
                "datasets_mb_per_s": median(others),
                "ours_is": median(speeds) / median(others),
                "ours": ours,
                "datasets": theirs,
            }
        )
    return rows


def memory(folder: Path, args: argparse.Namespace, sizes: list[int]) -> list[Record]:
    rows = []
    tokenizer = folder / "tokenizer-chat"
    piece = folder / "piece.jsonl"
    write_rows(piece, chat, min(min(sizes), 32 << 20))
    write_tokenizer(tokenizer, piece, args.vocabulary)
    for size in sizes:
        path = folder / f"memory-{size}.jsonl"
        if not path.exists():  # many times the same: only the size counts here
            text = piece.read_bytes()
            with path.open("wb") as file:
                for _ in range(max(1, round(size / len(text)))):
                    file.write(text)
        if args.parts == ["generate"]:
            continue
        run = measure("ours", path, tokenizer, folder / "out.bin", args.threads)
        rows.append({"mb": path.stat().st_size / 1e6, **run})
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return
    p = parser(__doc__)
    parts = ["parse", "prepare", "memory"]
    p.add_argument("--parts", nargs="+", choices=[*parts, "generate"], default=parts)
    p.add_argument("--rows", nargs="+", choices=list(KINDS), default=list(KINDS))
    p.add_argument("--folder", type=Path, help="keep rows and tokenizers here for the next time")
    p.add_argument("--parsers", nargs="+", choices=PARSERS, default=list(PARSERS))
    p.add_argument("--mb", type=int, default=50, help="size of each set of rows")
    p.add_argument("--parse-mb", type=int, default=30)
    p.add_argument("--memory-mb", type=int, nargs="+", default=[100, 1000])
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--repeat", type=int, default=15)
    p.add_argument("--vocabulary", type=int, default=8000)
    args = p.parse_args()
    if args.tiny:
        args.mb = args.parse_mb = 0
        args.memory_mb, args.rounds, args.repeat, args.vocabulary = [0], 1, 1, 400
    size = (lambda mb: mb * 1_000_000) if not args.tiny else (lambda _: 60_000)
    found: Record = {"parse": [], "prepare": [], "memory": []}
    lines = []
    sizes = [size(mb) for mb in args.memory_mb]
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if "generate" in args.parts:
            for kind in args.rows:
                write_rows(folder / f"parse-{kind}.jsonl", KINDS[kind], size(args.parse_mb))
                write_rows(folder / f"{kind}.jsonl", KINDS[kind], size(args.mb))
                rows = folder / f"{kind}.jsonl"
                write_tokenizer(folder / f"tokenizer-{kind}", rows, args.vocabulary)
            memory(folder, args, sizes)
            return
        if "parse" in args.parts:
            found["parse"] = parsing(folder, args, size(args.parse_mb))
            cells = [[row["rows"], row["parser"], row["gb_per_s"]] for row in found["parse"]]
            lines.append(table(cells, ["rows", "parser", "GB/s, one core"]))
        if "prepare" in args.parts:
            found["prepare"] = whole_way(folder, args, size(args.mb))
            keys = ("rows", "mb", "ours_mb_per_s", "datasets_mb_per_s", "ours_is")
            head = ["rows", "MB", "prepare MB/s", "datasets + tokenizers MB/s", "ours is"]
            lines.append(table([[row[key] for key in keys] for row in found["prepare"]], head))
        if "memory" in args.parts:
            found["memory"] = memory(folder, args, sizes)
            keys = ("mb", "peak_mib", "peak_above_import_mib")
            head = ["MB of rows", "peak MiB", "of it above the import"]
            lines.append(table([[row[key] for key in keys] for row in found["memory"]], head))
    finish("prepare", {"threads": args.threads, **found}, args, "\n\n".join(lines))


if __name__ == "__main__":
    main()
