"""The compiled extension: made from `abi_train.h` when the package is built."""

from typing import Any

ffi: Any
lib: Any
