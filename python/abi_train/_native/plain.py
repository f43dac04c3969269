"""The native library without a compiled module: cffi reads the header and opens the library.

Used where the package was built on a Python that has no header files. Slower to import (the header
is parsed) and by about a microsecond a call; everything else is the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def load() -> tuple[Any, Any, Path]:
    """(ffi, lib, file). Raises ImportError, naming the files that were looked for."""
    from cffi import FFI

    from . import __path__ as names

    # In an editable install the package has two folders; the library is in one of them.
    folders = [Path(name) for name in names]
    libraries = [library for f in folders for library in sorted(f.glob("libabi_train*"))]
    headers = [h for f in folders if (h := f.parent / "include" / "abi_train.h").is_file()]
    if not libraries or not headers:
        raise ImportError(
            f"abi_train's native library is missing (looked for _cffi.abi3.so and libabi_train in "
            f"{', '.join(map(str, folders))}); install abi-train again"
        )
    text = headers[0].read_text(encoding="utf-8")
    declarations = re.search(r"/\* cdef:begin \*/(.*)/\* cdef:end \*/", text, re.DOTALL)
    if declarations is None:
        raise ImportError(f"{headers[0]} has no cdef marks; install abi-train again")
    ffi: Any = FFI()
    ffi.cdef(declarations.group(1))
    return ffi, ffi.dlopen(str(libraries[0])), libraries[0].resolve()
