"""The pages of docs/formats: their example files open, and their error names are the code's."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy

from abi_train import Model, _native
from abi_train.demo import SAMPLE
from abi_train.errors import FormatError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "formats"
ZIG = ROOT / "zig" / "src"

#: The error sets that a page must speak of. Names that are no property of the format are left out.
SETS = {
    "gguf.md": [
        "formats/gguf.zig",
        "formats/gguf_config.zig",
        "formats/gguf_import.zig",
        "formats/gguf_export.zig",
        "formats/gguf_writer.zig",
        "formats/adapter_gguf.zig",
        "formats/adapter_config.zig",
        "formats/export_source.zig",
        "formats/export_tokenizer.zig",
        "formats/export_pre.zig",
        "formats/name_map.zig",
    ],
    "quantising.md": [
        "formats/gguf_parts.zig",
        "formats/gguf_quantise.zig",
        "formats/imatrix.zig",
    ],
    "safetensors.md": ["formats/safetensors.zig"],
    "ablc.md": ["checkpoint/ablc.zig"],
    "adapter.md": [
        "arch/adapter.zig",
        "arch/lora_settings.zig",
        "checkpoint/adapter.zig",
        "checkpoint/folder.zig",
        "formats/adapter_config.zig",
        "train/lora.zig",
    ],
    "checkpoint.md": [
        "base/storage.zig",
        "checkpoint/folder.zig",
        "checkpoint/model_file.zig",
        "checkpoint/model_folder.zig",
        "checkpoint/save.zig",
        "checkpoint/store.zig",
        "formats/hf_config.zig",
        "train/state.zig",
    ],
    "token-bin.md": ["data/tokenized.zig", "data/manifest.zig"],
}
HEX_LINE = re.compile(r"\s*(?:([0-9a-f]{4})  )?((?:[0-9a-f]{2} {1,2})*[0-9a-f]{2})(?:\s{3}|$)")
ANYWHERE = {"OutOfMemory", "Canceled", "Unexpected", "WriteFailed"}


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def error_names(path: Path) -> set[str]:
    """Members of the error sets that a Zig file names with `const …Error =`."""
    code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for definition in re.findall(r"const \w*Error = ([^;]*);", code):
        for members in re.findall(r"error\{([^}]*)\}", definition):
            found |= set(re.findall(r"[A-Z]\w+", members))
    return found


def whole_file(name: str, first_line: str) -> bytes:
    """The bytes of the hex dump that begins with `first_line`, offsets checked where given."""
    lines = page(name)[page(name).index(first_line) :].splitlines()
    data = b""
    for line in lines:
        if not line.strip():
            break
        pairs = HEX_LINE.match(line)
        assert pairs is not None, line
        if pairs.group(1):
            assert int(pairs.group(1), 16) == len(data), line
        data += bytes.fromhex(pairs.group(2))
    return data


@pytest.mark.parametrize("name", SETS)
def test_a_page_names_every_error_of_its_code(name: str) -> None:
    code = set().union(*(error_names(ZIG / path) for path in SETS[name])) - ANYWHERE
    assert len(code) >= 8
    missing = code - set(re.findall(r"`(\w+)`", page(name)))
    assert missing == set()


@pytest.mark.parametrize("name", SETS)
def test_no_page_names_an_error_that_no_code_has(name: str) -> None:
    cells = re.findall(r"^\| (`[A-Z]\w+`(?:, `[A-Z]\w+`)*) \|", page(name), re.MULTILINE)
    named = {word for cell in cells for word in re.findall(r"\w+", cell)}
    code = "".join(p.read_text(encoding="utf-8") for p in ZIG.rglob("*.zig"))
    unknown = {word for word in named if not re.search(rf"\b{word}\b", code)}
    assert unknown == set()


def test_the_gguf_of_the_page_is_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(whole_file("gguf.md", "    0000  47 47 55 46"))
    theirs = gguf.GGUFReader(path)
    assert theirs.fields["general.type"].contents() == "model"
    (tensor,) = theirs.tensors
    assert tensor.name == "v"
    assert tensor.data.tolist() == [1.0, -2.0]
    ours = _native.export.inspect(path)
    assert [t["name"] for t in ours["tensors"]] == ["v"]
    # A GGUF, but no model: refused by the first key that is missing.
    with pytest.raises(FormatError, match=r"general\.architecture"):
        Model.load(path)


def test_the_safetensors_of_the_page_is_one() -> None:
    data = whole_file("safetensors.md", "    0000  38 00 00 00")
    found = safetensors.numpy.load(data)
    assert list(found) == ["w"]
    assert np.array_equal(found["w"], np.array([[1.0, -2.0]], dtype=np.float32))


def test_the_ablc_of_the_page_is_what_its_table_says() -> None:
    data = whole_file("ablc.md", "    41 42 4c 43")
    assert len(data) == 58
    fields = struct.unpack_from("<4sHQIQQIII", data)
    assert fields == (b"ABLC", 1, 7, 2, 4096, 99, 3, 0, 0)
    assert struct.unpack_from("<3f", data, 46) == (0.25, 0.5, 0.75)


def test_the_names_of_the_gguf_page_are_those_of_the_program(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3",
        "vocab_size": 2048,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": False,
    }
    table: dict[str, str] = {}
    for row in re.findall(r"^\| `((?:blk|token|output)[^|]*) \| ([^|]*) \|", page("gguf.md"), re.M):
        ours, theirs = (re.findall(r"[\w.]+", cell) for cell in row)
        ours = [ours[0].rpartition(".")[0] + w if w.startswith(".") else w for w in ours]
        theirs = [theirs[0].rpartition(".")[0] + w if w.startswith(".") else w for w in theirs]
        table |= dict(zip(ours, theirs, strict=True))
    with Model.random(config, seed=1) as model:
        model.save(tmp_path / "model", tokenizer_dir=SAMPLE / "tokenizer")
        names = set(model)
    size, count = _native.export.gguf(
        tmp_path / "model", tmp_path / "m.gguf", dtype="f32", name=None, tokenizer_dir=None
    )
    assert size == (tmp_path / "m.gguf").stat().st_size and count == len(names)
    written = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    renamed = {table[re.sub(r"blk\.\d+", "blk.N", n)].replace(".N.", ".0.") for n in written}
    assert renamed == names


def test_the_row_order_of_the_gguf_page_is_the_program_s(tmp_path: Path) -> None:
    text = " ".join(page("gguf.md").split())
    assert "(r mod 2) · D/2 + ⌊r / 2⌋" in text
    order = [(r % 2) * 3 + r // 2 for r in range(6)]
    assert "0 1 2 3 4 5 become " + " ".join(map(str, order)) in text

    config = {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 12,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
    }
    with Model.random(config, seed=1) as model:
        model.save(tmp_path / "model", tokenizer_dir=SAMPLE / "tokenizer")
        q = np.array(model["model.layers.0.self_attn.q_proj.weight"])
        v = np.array(model["model.layers.0.self_attn.v_proj.weight"])
    _native.export.gguf(
        tmp_path / "model", tmp_path / "m.gguf", dtype="f32", name=None, tokenizer_dir=None
    )
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert np.array_equal(written["blk.0.attn_q.weight"], q[[*order, *(6 + r for r in order)]])
    assert np.array_equal(written["blk.0.attn_v.weight"], v)


def test_the_state_of_the_checkpoint_page_has_the_fields_of_the_code() -> None:
    code = re.sub(r"//.*", "", (ZIG / "train" / "state.zig").read_text(encoding="utf-8"))
    text = page("checkpoint.md")
    for struct_name, prefix in (("Identity", "identity"), ("State", "state")):
        body = re.search(rf"pub const {struct_name} = struct \{{(.*?)\n\}};", code, re.S)
        assert body is not None
        fields = re.findall(r"^    (\w+):", body.group(1), re.M)
        assert fields
        rows = [line for line in text.splitlines() if line.startswith(f"| `{prefix}.")]
        said = {word for line in rows for word in re.findall(r"`(?:\w+)?\.(\w+)`", line)}
        assert said == set(fields)
