"""Makes the C source of the extension from the header: `python build.py abi_train.h _native.c`.

Run by `zig build ext` and never installed. The part of the header between the cdef marks is plain
declarations, which cffi reads as they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI


def declarations(header: str) -> str:
    """The part of the header that declares things. Raises ValueError when a mark is missing."""
    found = re.search(r"/\* cdef:begin \*/(.*)/\* cdef:end \*/", header, re.DOTALL)
    if found is None:
        raise ValueError("the header has no cdef:begin and cdef:end marks")
    return found.group(1)


def main(header: str, output: str) -> None:
    """Writes the C source of the module `abi_train._native._cffi` to `output`."""
    ffi = FFI()
    ffi.cdef(declarations(Path(header).read_text(encoding="utf-8")))
    ffi.set_source("abi_train._native._cffi", '#include "abi_train.h"', py_limited_api=True)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
