"""Reads what `abi_train.h` declares, without cffi's help: the tests' own view of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "zig" / "include" / "abi_train.h"


@dataclass(frozen=True)
class Function:
    """A prototype: its name, what it returns, and the types of its parameters."""

    name: str
    returns: str
    parameters: tuple[str, ...]


def declarations() -> str:
    """The part between the cdef marks, without comments."""
    text = HEADER.read_text(encoding="utf-8")
    inner = re.search(r"/\* cdef:begin \*/(.*)/\* cdef:end \*/", text, re.DOTALL)
    assert inner is not None
    return re.sub(r"/\*.*?\*/", "", inner.group(1), flags=re.DOTALL)


def functions() -> list[Function]:
    """All prototypes in order."""
    found = []
    pattern = r"^([\w ]+?[\s*]+)(abt_\w+)\(([^)]*)\);"
    for returns, name, inside in re.findall(pattern, declarations(), re.MULTILINE):
        parameters = tuple(" ".join(p.split()) for p in inside.split(","))
        if parameters == ("void",):
            parameters = ()
        found.append(Function(name, " ".join(returns.split()), parameters))
    return found


def handle_types() -> list[str]:
    """Names of the handle types."""
    return re.findall(r"typedef uint64_t (abt_\w+);", declarations())


def structs_with_size() -> list[str]:
    """Structs whose first field is struct_size."""
    return re.findall(r"typedef struct (\w+) \{\s*size_t struct_size;", declarations())
