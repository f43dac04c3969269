"""Wrong adapters, pairs and checkpoints of them, on both engines: one line, no update, no harm.

Each case is refused before the run's record is written, by the thing's name.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sound import Case, change_json, cut, fingerprint, make_tokenizer, nothing, remove, write

from abi_train import Model
from abi_train.cli import main

MODEL = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
SETTINGS = {
    "epochs": 1,
    "batch_size": 2,
    "max_seq_len": 32,
    "grad_accum_steps": 1,
    "max_steps": 2,
    "threads": 1,
}
LORA = {
    "model": "model",
    "data": "rows.bin",
    "run_dir": "run",
    "method": "lora",
    "precision": "float32",
    "training": SETTINGS,
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
}
TRAIN = "train lora.json "
DPO = "train dpo.json "
GO_ON = TRAIN + "--adapter adapter "
RESUME = TRAIN + "--run-dir begun --resume begun/checkpoint-2 --set max_steps=4 "
RESUME_FULL = "train full.json --resume begun-full/checkpoint-2 --set max_steps=4 "
RESUME_REF = "train ref.json --resume begun-ref/checkpoint-2 --set max_steps=4 "
CHECKPOINT = "begun/checkpoint-2/"
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Tensors = dict[str, np.ndarray[Any, Any]]


def leave(command: str) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        main(shlex.split(command))
    return left.value.code


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed, changes in (
        ("model", 1, {}),
        ("other", 2, {}),
        ("wide", 2, {"hidden_size": 32}),
        ("large", 2, {"vocab_size": 300}),
    ):
        (folder / "config.json").write_text(json.dumps({**MODEL, **changes}))
        with Model.random(folder / "config.json", seed=seed) as model:
            model.save(folder / name)
    make_tokenizer(folder / "tokenizer")
    rows = [{"prompt": f"Say {i}", "completion": f" {i}."} for i in range(8)]
    pairs = [{"prompt": f"Say {i}", "chosen": f" {i}.", "rejected": f" no {i}"} for i in range(8)]
    for name, lines in (("rows", rows), ("pairs", pairs)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    dpo = {**LORA, "data": "pairs.bin", "objective": "dpo", "dpo": {}}
    (folder / "lora.json").write_text(json.dumps(LORA))
    (folder / "dpo.json").write_text(json.dumps(dpo))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("rows", "pairs"):
            command = f"data prepare {name}.jsonl --tokenizer tokenizer --output {name}.bin"
            assert leave(command) == 0
        assert leave(TRAIN + "--run-dir begun") == 0
        assert leave(DPO + "--run-dir begun-dpo") == 0
        full = {key: value for key, value in dpo.items() if key not in ("method", "lora")}
        (folder / "full.json").write_text(json.dumps({**full, "run_dir": "begun-full"}))
        assert leave("train full.json") == 0
        compared = {**dpo, "dpo": {"ref_model": "other"}, "run_dir": "begun-ref"}
        (folder / "ref.json").write_text(json.dumps(compared))
        assert leave("train ref.json") == 0
    adapter = folder / "adapter"
    shutil.copytree(folder / CHECKPOINT, adapter)
    for name in ("checksums.json", "trainer_state.json", "optimizer.safetensors"):
        (adapter / name).unlink()
    return folder


def both(*parts: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        for part in parts:
            part(folder)

    return apply


def table(name: str, file: str = "lora.json", **changes: object) -> Callable[[Path], object]:
    """Changes keys of a table of the recipe."""

    def apply(folder: Path) -> None:
        recipe = json.loads((folder / file).read_text())
        recipe[name] = {**recipe.get(name, {}), **changes}
        (folder / file).write_text(json.dumps(recipe))

    return apply


def peft(**changes: object) -> Callable[[Path], object]:
    """Changes keys of the adapter's settings; the recipe's own are left out."""
    return both(
        change_json("lora.json", lora={}), change_json("adapter/adapter_config.json", **changes)
    )


def tensors(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = folder / "adapter" / "adapter_model.safetensors"
        values = load_file(path)
        change(values)
        save_file(values, path, metadata={"format": "pt"})

    return apply


def unlisted(part: Callable[[Path], object]) -> Callable[[Path], object]:
    """Without the list of checksums, which would notice anything."""
    return both(remove(CHECKPOINT + "checksums.json"), part)


def state(**changes: object) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / CHECKPOINT / "trainer_state.json"
        document = json.loads(path.read_text())
        document["stateful_callbacks"]["abi_train"]["state"].update(changes)
        path.write_text(json.dumps(document))

    return unlisted(apply)


def pipe(name: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        import os

        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def folder_of_that_name(name: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return apply


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copyfile(folder / source, folder / target)


def other_last_token(folder: Path) -> None:
    ids = np.fromfile(folder / "rows.bin", "<u4")
    ids[-1] ^= 1
    ids.tofile(folder / "rows.bin")


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DEEP = '{"a":' * 9999 + "1" + "}" * 9999
CASES = [
    # ---- the tables ----
    Case("rank above the width", table("lora", r=17), TRAIN, ("17", "narrower side")),
    Case("rank without end", table("lora", r=4294967295), TRAIN, ("narrower side",)),
    Case("alpha without end", table("lora", lora_alpha=1e300), TRAIN, ("lora_alpha", "1000000")),
    Case("nothing fits", table("lora", target_modules=".*conv"), TRAIN, (".*conv", "fits no")),
    Case("no such layer", table("lora", layers_to_transform=[2]), TRAIN, ("layer 2", "0 to 1")),
    Case(
        "no such parameter", table("lora", target_parameters=["x"]), TRAIN, ("target_parameters",)
    ),
    Case("beta without end", table("dpo", "dpo.json", beta=1e300), DPO, ("dpo.beta",)),
    Case("beta of nothing", table("dpo", "dpo.json", beta=1e-300), DPO, ("dpo.beta",)),
    Case("all weights 0", table("dpo", "dpo.json", loss_weights=[0]), DPO, ("loss_weights",)),
    Case("a weight below 0", table("dpo", "dpo.json", loss_weights=[-1]), DPO, ("loss_weights",)),
    Case("other words", table("dpo", "dpo.json", ref_model="large"), DPO, ("ref_model", "300")),
    Case(
        "a prompt fills it", table("training", "dpo.json", max_seq_len=3), DPO, ("pairs.bin", "3")
    ),
    Case("pairs are odd", change_json("pairs.json", rows=15), DPO, ("pairs", "15")),
    Case("pairs as rows", change_json("lora.json", data="pairs.bin"), TRAIN, ("pairs.bin", "dpo")),
    Case("folder with a NUL", change_json("lora.json", run_dir="a\0b"), TRAIN, ("NUL",)),
    # ---- adapters ----
    Case("another base", nothing, GO_ON + "--model wide", ("adapter", "hidden_size")),
    Case("other words below", nothing, GO_ON + "--model large", ("adapter", "vocab_size")),
    Case(
        "base beside it", copy("wide/config.json", "adapter/config.json"), GO_ON, ("hidden_size",)
    ),
    Case("a classifier's", peft(task_type="SEQ_CLS"), GO_ON, ("task_type", "SEQ_CLS")),
    Case("a changed base", peft(init_lora_weights="pissa"), GO_ON, ("init_lora_weights", "pissa")),
    Case("unknown key", peft(newest_idea=1), GO_ON, ("newest_idea",)),
    Case("layer 0 of a number", peft(trainable_token_indices=0), GO_ON, ("trainable_token",)),
    Case(
        "missing B", tensors(lambda t: t.pop(A.replace("_A", "_B"))), GO_ON, ("lora_B", "missing")
    ),
    Case("another's tensor", tensors(lambda t: t.update(x=t[A])), GO_ON, ('"x"',)),
    Case(
        "whole numbers", tensors(lambda t: t.update({A: t[A].astype("i4")})), GO_ON, (A, "floats")
    ),
    Case("not a number", tensors(lambda t: t[A].fill(np.nan)), GO_ON, (A,)),
    Case("transposed", tensors(lambda t: t.update({A: t[A].T.copy()})), GO_ON, (A, "shape")),
    *(
        Case(f"{name} cut to {share}", cut(f"adapter/{name}", keep=share), GO_ON, (name,))
        for name in (WEIGHTS, CONFIG, "config.json")
        for share in (0.0, 0.01, 0.5)
    ),
    *(
        Case(f"{name} of bytes", write(f"adapter/{name}", b"\xff" * 500), GO_ON, (name,))
        for name in (WEIGHTS, CONFIG, "config.json")
    ),
    *(
        Case(f"{name} a folder", folder_of_that_name(f"adapter/{name}"), GO_ON, (name,))
        for name in (WEIGHTS, CONFIG)
    ),
    *(
        Case(f"{name} a pipe", pipe(f"adapter/{name}"), GO_ON, ("no",))
        for name in (WEIGHTS, CONFIG)
    ),
    Case("settings without end", write(f"adapter/{CONFIG}", DEEP), GO_ON, (CONFIG,)),
    Case("settings twice", write(f"adapter/{CONFIG}", '{"r": 1, "r": 2}'), GO_ON, (CONFIG, "r")),
    # ---- checkpoints ----
    *(
        Case(f"resume: {name} cut to {share}", cut(CHECKPOINT + name, keep=share), RESUME, (name,))
        for name in (WEIGHTS, CONFIG, "config.json", "optimizer.safetensors", "trainer_state.json")
        for share in (0.0, 0.5)
    ),
    *(
        Case(f"resume: {name} unlisted", unlisted(cut(CHECKPOINT + name)), RESUME, (name,))
        for name in (WEIGHTS, CONFIG, "config.json", "optimizer.safetensors", "trainer_state.json")
    ),
    Case("resume: no moments", unlisted(remove(CHECKPOINT + "optimizer.safetensors")), RESUME, ()),
    Case("another model", change_json("lora.json", model="other"), RESUME, ("another base",)),
    Case(
        "another reference",
        change_json("full.json", model="other"),
        RESUME_FULL,
        ("the reference has other numbers",),
    ),
    Case(
        "another ref_model",
        table("dpo", "ref.json", ref_model="model"),
        RESUME_REF,
        ("the reference has other numbers",),
    ),
    Case("a wider model", change_json("lora.json", model="wide"), RESUME, ("hidden_size",)),
    Case("other data", other_last_token, RESUME, ("data_crc32c",)),
    Case("another rank", table("lora", r=1), RESUME, ("lora.r",)),
    Case("another seed", table("training", seed=7), RESUME, ("seed",)),
    Case("micro-batch beyond", state(micro_index=10**9), RESUME, ("1000000000",)),
    Case("step beyond", state(global_step=2**70), RESUME, ("trainer_state.json",)),
    Case("epoch beyond", state(epoch=2**40), RESUME, ("trainer_state.json",)),
    Case("step below 0", state(global_step=-1), RESUME, ("trainer_state.json",)),
    Case("no micro-batch", state(micro_index=None), RESUME, ("trainer_state.json",)),
    Case("a best of letters", state(best_metric="x"), RESUME, ("trainer_state.json",)),
]


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_one_line_names_it_and_nothing_is_touched(
    sound: Path,
    tmp_path: Path,
    case: Case,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(sound, folder)
    case.break_it(folder)
    pipes = [path for path in folder.rglob("*") if path.is_fifo()]
    before = fingerprint(folder)
    monkeypatch.chdir(folder)
    assert leave(case.command + f" --engine {engine}") == 1
    out, said = capfd.readouterr()
    assert out == "", said
    for word in ("Traceback", "fault of abi-train", "Errno", "step 1"):
        assert word not in said, said
    assert len(said.splitlines()) == 1, said
    for word in case.words:
        assert word in said, said
    assert fingerprint(folder) == before
    assert all(path.is_fifo() for path in pipes)
    assert not (folder / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_the_sound_folder_works(
    sound: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all of the above proves nothing."""
    folder = tmp_path / "folder"
    shutil.copytree(sound, folder)
    monkeypatch.chdir(folder)
    for command in (RESUME, GO_ON + "--run-dir on", DPO + "--run-dir pairs"):
        assert leave(command + f" --engine {engine}") == 0, command
