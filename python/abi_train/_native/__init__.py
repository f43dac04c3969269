"""The exact mirror of `abi_train.h`, one module a group, every length and type checked.

The only package that says `lib.`. Public modules build on it and never see cffi. A failed call
raises from `abi_train.errors` with the library's sentence.
"""

from __future__ import annotations

from . import adapter as adapter
from . import dataset as dataset
from . import export as export
from . import generator as generator
from . import instructions as instructions
from . import model as model
from . import plan as plan
from . import preparation as preparation
from . import tokenizer as tokenizer
from . import trainer as trainer
from . import writer as writer
from .core import Handle as Handle
from .core import check as check
from .core import ffi as ffi
from .core import lib as lib
from .core import library_path as library_path
from .core import view as view
from .dataset import epoch_order as epoch_order
from .library import abi_version as abi_version
from .library import config_schema as config_schema
from .library import config_validate as config_validate
from .library import cpu_info as cpu_info
from .library import learning_rates as learning_rates
from .library import version as version
