"""The header is the source: the library exports exactly what it declares, and Python mirrors it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from header import HEADER, declarations, functions, handle_types, structs_with_size

from abi_train import _native


def exported_symbols(path: Path) -> set[str]:
    """Names a 64-bit ELF file defines for others, read from its dynamic symbol table."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        pytest.skip("the symbol table is read from ELF files only")
    section_offset = struct.unpack_from("<Q", data, 0x28)[0]
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, section_offset + i * entry_size)
        for i in range(count)
    ]
    names: set[str] = set()
    for section in sections:
        if section[1] != 11:  # SHT_DYNSYM
            continue
        strings = sections[section[6]][4]
        for offset in range(section[4], section[4] + section[5], section[9]):
            name, _info, _other, index = struct.unpack_from("<IBBH", data, offset)
            if index:
                start = strings + name
                names.add(data[start : data.index(b"\0", start)].decode())
    return names


def test_the_library_exports_what_the_header_declares_and_nothing_else_of_ours() -> None:
    exported = {n for n in exported_symbols(_native.library_path) if n.startswith("abt_")}
    assert exported == {f.name for f in functions()}
    assert len(exported) > 50


def test_python_sees_every_function() -> None:
    missing = [f.name for f in functions() if not hasattr(_native.lib, f.name)]
    assert missing == []


def test_every_function_is_called_by_the_mirror() -> None:
    mirror = Path(_native.__file__).parent
    text = "".join(p.read_text(encoding="utf-8") for p in mirror.glob("*.py"))
    unused = [f.name for f in functions() if not re.search(rf"\blib\.{f.name}\b", text)]
    assert unused == []


def test_only_the_mirror_says_lib() -> None:
    package = Path(_native.__file__).parents[1]
    guilty = [
        str(p.relative_to(package))
        for p in package.rglob("*.py")
        if "_native" not in p.parts and re.search(r"\blib\.abt_", p.read_text(encoding="utf-8"))
    ]
    assert guilty == []


def test_versions_agree() -> None:
    assert _native.abi_version() == _native.lib.ABT_ABI_VERSION
    import abi_train

    assert _native.version() == abi_train.__version__


def test_each_handle_type_can_be_freed() -> None:
    names = {f.name for f in functions()}
    assert {f"{t}_free" for t in handle_types()} <= names


def test_functions_return_a_status_or_cannot_fail() -> None:
    other = {f.name for f in functions() if f.returns != "abt_status"}
    assert other == {"abt_version", "abt_abi_version", "abt_last_error"}


def test_each_error_status_has_an_exception() -> None:
    from abi_train._native import core

    codes = dict(re.findall(r"(ABT_STATUS_\w+) = (\d+)", declarations()))
    assert set(core._ERRORS) == {int(n) for name, n in codes.items() if name != "ABT_STATUS_OK"}


def test_every_declaration_has_a_comment() -> None:
    text = HEADER.read_text(encoding="utf-8")
    bare = []
    for f in functions():
        at = re.search(rf"^\w[\w ]*[ *]{f.name}\(", text, re.MULTILINE)
        assert at is not None
        before = text[: at.start()].rstrip()
        last = before.splitlines()[-1]
        if not last.endswith(("*/", ";")):
            bare.append(f.name)
    assert bare == []
    assert len(structs_with_size()) >= 6
