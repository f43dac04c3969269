"""Exported files are asked the same as the trained model, and faults are told from rounding."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import CORPUS, make_tiny_model

from abi_train import Model, _native, evaluate, export_gguf, inspect_gguf
from abi_train.adapters import LoraConfig, create_adapter
from abi_train.cli import main
from abi_train.errors import FormatError, NumericsError
from abi_train.export import MIXES, making
from abi_train.export.compare import Distance
from abi_train.export.handover import export_sizes, hand_over
from abi_train.export.verdict import BANDS, band_of, judge_format
from abi_train.export.verify import Check, verify
from abi_train.sample.tiny import make_gpt_oss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("verify") / "abbey", "llama_gqa_untied")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    lora = LoraConfig(r=4, target_modules=("q_proj", "v_proj", "down_proj"))
    with Model.load(folder) as model:
        made = create_adapter(model, lora, folder.parent / "adapter", seed=1, base_name=str(folder))
    file = made / "adapter_model.safetensors"
    drawn = np.random.default_rng(3)
    values = {
        n: drawn.normal(0, 0.1, v.shape).astype(np.float32) for n, v in load_file(file).items()
    }
    save_file(values, file, metadata={"format": "pt"})
    return made


def written(folder: Path, path: Path, **options: Any) -> Path:
    _native.export.gguf(folder, path, **options)
    return path


def rows_of_query(path: Path) -> None:
    """Rows of one matrix in the order of another kind of file."""
    reader = gguf.GGUFReader(path, "r+")
    data: Any = next(t.data for t in reader.tensors if t.name == "blk.0.attn_q.weight")
    heads = data.reshape(4, -1, 2, data.shape[-1])
    data[:] = heads.swapaxes(1, 2).reshape(data.shape)
    data.flush()


def two_tensors(path: Path) -> None:
    """Two matrices of one shape under each other's names."""
    reader = gguf.GGUFReader(path, "r+")
    found: dict[str, Any] = {t.name: t.data for t in reader.tensors}
    up, gate = found["blk.0.ffn_up.weight"], found["blk.0.ffn_gate.weight"]
    kept = up.copy()
    up[:], gate[:] = gate, kept
    up.flush()


def number_of_key(key: bytes, value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        at = raw.index(key) + len(key)
        assert struct.unpack_from("<I", raw, at)[0] == 6  # f32
        struct.pack_into("<f", raw, at + 4, value)
        path.write_bytes(raw)

    return change


def two_words(path: Path) -> None:
    """Two entries of the vocabulary in each other's place."""
    raw = path.read_bytes()
    one, other = (struct.pack("<Q", 1) + letter for letter in (b"e", b"o"))
    at = raw.index(b"tokenizer.ggml.tokens")
    first, second = sorted((raw.index(one, at), raw.index(other, at)))
    swapped = raw[second : second + 9], raw[first : first + 9]
    raw = raw[:first] + swapped[0] + raw[first + 9 : second] + swapped[1] + raw[second + 9 :]
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (rows_of_query, {"format", "noise"}),
        (two_tensors, {"format", "noise"}),
        (number_of_key(b"rope.freq_base", 9000.0), {"format", "noise"}),
        (number_of_key(b"layer_norm_rms_epsilon", 2e-3), {"format", "noise"}),
        (two_words, {"tokenizer"}),
    ],
    ids=["rows", "names", "theta", "epsilon", "words"],
)
def test_a_fault_of_the_format_is_found_and_called_one(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], kinds: set[str]
) -> None:
    path = written(folder, tmp_path / "m.gguf", dtype="f32")
    good = verify(path, folder, mix="f32", how="file", tokenizer=folder)
    assert (good.verdict, good.findings) == ("pass", ())
    assert good.format.distance.relative < 1e-5
    spoil(path)
    found = verify(path, folder, mix="f32", how="file", tokenizer=folder)
    assert found.verdict == "fail"
    assert {one.kind for one in found.findings} & kinds
    assert found.findings[0].kind in kinds


def test_what_rounding_costs_is_no_fault_and_a_spoiled_matrix_is_neither(
    folder: Path, tmp_path: Path
) -> None:
    copy = written(folder, tmp_path / "copy.gguf", dtype="f32")
    path = written(folder, tmp_path / "m.gguf", mix="q4_0")
    found = verify(path, folder, mix="q4_0", how="copy", copy=copy)
    assert found.verdict == "pass" and 0.005 < found.exported.noise < found.band
    assert found.format.distance.relative < 1e-5
    reader = gguf.GGUFReader(path, "r+")
    data: Any = next(t.data for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    data[: len(data) // 2] = data[len(data) // 2 :]
    data.flush()
    found = verify(path, folder, mix="q4_0", how="copy", copy=copy)
    assert found.verdict in ("warn", "fail") and found.exported.noise > found.band
    assert [one.kind for one in found.findings] == ["noise"]
    assert found.format.distance.relative < 1e-5


def test_without_a_copy_both_engines_are_asked_for_the_files_own_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "COPY_LIMIT", 0)
    made = hand_over(folder, tmp_path / "m.gguf", mix="q4_k_m").verification
    assert made is not None and made.format.how == "exact" and made.verdict == "pass"
    assert made.format.distance.relative < 1e-5
    path = written(folder, tmp_path / "x.gguf", mix="q8_0")
    number_of_key(b"rope.freq_base", 9000.0)(path)
    with pytest.raises(FormatError, match=r"says rope_.* is .*9000.* the trained model .*500000"):
        verify(path, folder, mix="q8_0", how="exact")


def test_perplexity_and_transformers_are_asked_when_told_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(CORPUS * 2, encoding="utf-8")
    check = Check(text=text, transformers=True)
    made = hand_over(folder, tmp_path / "m.gguf", mix="q4_k_m", check=check)
    found = made.verification
    assert found is not None and found.verdict == "pass"
    assert found.transformers is not None and found.transformers.positions > 100
    assert 0 < found.transformers.largest_log_prob_difference < 1e-3
    score = f"perplexity:{text}"
    for model, value in ((folder, "trained"), (made.path, "exported")):
        scores = evaluate.run(model, [score]).scores
        wanted = next(iter(scores.values()))["perplexity"]
        assert found.perplexity is not None
        assert getattr(found.perplexity, value) == pytest.approx(wanted, rel=1e-3)
    lines = found.sentences()
    assert any("perplexity of text.txt" in line for line in lines)
    assert any(line.startswith("transformers: ") for line in lines)
    assert "→" in (tmp_path / "m.md").read_text()
    with pytest.raises(SystemExit) as left:
        main(
            ["export", str(folder), "--output", str(made.path), "--text", str(tmp_path / "no.txt")]
        )
    assert left.value.code == 1 and "no.txt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("mix", ["f32", "q6_k"])
def test_an_adapter_is_compared_beside_its_base(
    folder: Path, adapter: Path, tmp_path: Path, mix: str
) -> None:
    made = hand_over(adapter, tmp_path / "m.gguf", mix=mix, base=folder)
    found = made.verification
    assert found is not None and found.verdict == "pass" and made.adapter == adapter
    assert found.format.how == ("file" if mix == "f32" else "copy")
    wrong = verify(made.path, folder, mix=mix, how="file" if mix == "f32" else "exact")
    assert wrong.verdict == "fail" or wrong.exported.noise > 10 * found.exported.noise


def test_a_file_that_says_something_else_gets_no_name(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"an older file")
    write = making._write

    def spoiled(weights: making.Weights, path: Path, *rest: Any) -> tuple[int, int]:
        found = write(weights, path, *rest)
        number_of_key(b"rope.freq_base", 9000.0)(path)
        return found

    monkeypatch.setattr(making, "_write", spoiled)
    for more in (["--gguf", "q8_0"], ["--dtype", "q8_0"], ["--gguf", "f32"]):
        with pytest.raises(SystemExit) as left:
            main(["export", str(folder), "--output", str(target), *more])
        assert left.value.code == 1
        said = capsys.readouterr().err
        assert "m.gguf was not written: " in said and "please report it" in said
        assert target.read_bytes() == b"an older file"
        assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "m.failed.json"}
        report = json.loads((tmp_path / "m.failed.json").read_text())
        assert report["verdict"] == "fail" and report["format"]["distance"]["relative"] > 1e-4
    monkeypatch.setattr(making, "_write", write)
    hand_over(folder, target, mix="q8_0", card=False)
    assert not (tmp_path / "m.failed.json").exists() and target.stat().st_size > 1000


def test_logits_that_are_no_numbers_stop_the_export(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    values = load_file(broken / "model.safetensors")
    values["model.norm.weight"][:] = 3e38
    save_file(values, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match=r"logits are not numbers|a logit is not a number"):
        hand_over(broken, tmp_path / "m.gguf", mix="q8_0")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".m-*"))


def test_not_comparing_is_said(folder: Path, tmp_path: Path) -> None:
    made = hand_over(folder, tmp_path / "m.gguf", mix="q8_0", verify=False)
    report = json.loads((tmp_path / "m.export.json").read_text())
    assert made.verification is None
    assert report["verdict"] == "not verified, as asked" and report["verification"] is None
    assert "| not verified |" in (tmp_path / "m.md").read_text()
    plain = export_gguf(folder, tmp_path / "p.gguf", dtype="q8_0", modelfile=False)
    assert plain.verification is not None and plain.verification.verdict == "pass"


def test_a_folder_that_the_engine_does_not_run_is_stood_in_for_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abi_train.errors import UnsupportedError

    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedError("a gpt_oss, which is not held yet")

    monkeypatch.setattr(Model, "load", refuse)
    folder = make_gpt_oss(tmp_path / "oss")
    made = hand_over(folder, tmp_path / "m.gguf", mix="mxfp4_moe").verification
    assert made is not None and made.verdict == "warn"
    assert made.findings[0].kind == "reference" and "not held yet" in made.findings[0].text
    assert made.format.distance.relative < 1e-6 and made.exported.same_choice > 0.5


@pytest.mark.parametrize(
    ("relative", "noise", "verdict"),
    [
        (9e-5, 4e-5, None),
        (1.2e-4, 1.7e-5, "warn"),
        (1.2e-4, 6e-5, "fail"),
        (2e-3, 1e-6, "fail"),
    ],
)
def test_an_error_in_few_places_may_be_rounding_and_one_everywhere_is_not(
    relative: float, noise: float, verdict: str | None
) -> None:
    distance = Distance(
        positions=264,
        largest_logit_difference=relative,
        relative=relative,
        logit_range=1.0,
        noise=noise,
        divergence=0.0,
        log_prob_difference=0.0,
        same_choice=1.0,
    )
    found = judge_format(distance, "folder and file")
    assert (found and found.verdict) == verdict
    assert found is None or found.value == relative


def test_every_type_has_a_band_and_finer_types_a_narrower_one() -> None:
    assert all(0 < band_of(mix) < 1 for mix in MIXES)
    order = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "mxfp4")
    bands = [BANDS[name] for name in order]
    assert bands == sorted(bands) and band_of("q4_k_m") == BANDS["q4_k"]
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    told = re.findall(r"^  \| `(\w+)` \| ([\d.]+) \|", page, re.MULTILINE)
    assert {name: float(band) for name, band in told} == BANDS


def test_sizes_are_told_to_the_byte(
    folder: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixes = ("f16", "q8_0", "q5_k_s", "q4_k_m", "mxfp4_moe")
    told = export_sizes(folder, name="abbey", mixes=mixes)
    beside = export_sizes(adapter, name="abbey", base=folder, mixes=("q4_k_m",))
    for mix, size in told.items():
        made = hand_over(
            folder, tmp_path / "m.gguf", mix=mix, name="abbey", verify=False, card=False
        )
        assert made.size_bytes == size == made.path.stat().st_size
    merged = hand_over(
        adapter, tmp_path / "a.gguf", mix="q4_k_m", name="abbey", base=folder, verify=False
    )
    assert merged.size_bytes == beside["q4_k_m"]
    with pytest.raises(SystemExit) as left:
        main(["export", str(folder), "--sizes", "--json", "--name", "abbey"])
    assert left.value.code in (0, None)
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(MIXES) and shown["q4_k_m"] == told["q4_k_m"]


def test_a_file_tells_its_licence_its_base_and_its_type(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n"
        "base_model:\n- meta-llama/Llama-3.2-1B\n- local-one\n---\n# x\n"
    )
    wanted = {
        "general.license": "other",
        "general.license.name": "llama3.2",
        "general.license.link": "LICENSE.txt",
        "general.base_model.count": 2,
        "general.base_model.0.name": "Llama-3.2-1B",
        "general.base_model.0.organization": "meta-llama",
        "general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-3.2-1B",
        "general.base_model.1.name": "local-one",
    }
    types = {"f16": 1, "q8_0": 7, "q4_k_m": 15, "q5_k_s": 16, "q6_k": 18, "bf16": 32, "q4_0": 2}
    for mix, number in types.items():
        path = hand_over(model, tmp_path / "m.gguf", mix=mix, verify=False, card=False).path
        fields = gguf.GGUFReader(path).fields
        assert fields["general.file_type"].contents() == number
        for key, value in wanted.items():
            assert fields[key].contents() == value, key
    assert "general.license" not in inspect_gguf(export_plain(folder, tmp_path))["keys"]


def export_plain(folder: Path, tmp_path: Path) -> Path:
    return export_gguf(folder, tmp_path / "plain.gguf", verify=False, modelfile=False).path
