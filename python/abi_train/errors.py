"""Everything this package raises on purpose.

::

    AbiTrainError
    ├── ArgumentError      (ValueError)    an argument has the wrong type, size or value
    ├── ConfigError        (ValueError)    a configuration field is wrong
    ├── DataError          (ValueError)    training data is wrong
    ├── FormatError        (ValueError)    a model, tokenizer or GGUF file is wrong
    ├── UnsupportedError   (ValueError)    a sound request that this version cannot serve
    ├── CheckpointError    (OSError)       a checkpoint is damaged or does not fit
    ├── FileAccessError    (OSError)       the system refused to read or write
    │   └── MissingFileError (FileNotFoundError)   a file or folder does not exist
    ├── HubError           (OSError)       the Hugging Face Hub refused, or cannot be reached
    ├── NumericsError      (ArithmeticError)       NaN or infinity where a number must be
    ├── NativeMemoryError  (MemoryError)   the native side ran out of memory
    ├── ClosedError        (ValueError)    the object was closed before
    ├── BusyError          (RuntimeError)  another thread is using the object
    ├── EngineError        (RuntimeError)  an engine or an optional package is not available
    ├── PhaseError         (RuntimeError)  a phase of a recipe did not finish; the others are kept
    └── InternalError      (RuntimeError)  a fault of this package: please report it

A message names the thing, the value and the next move. It can be shown to people as it is.
"""

from __future__ import annotations

__all__ = [
    "AbiTrainError",
    "ArgumentError",
    "BusyError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DataError",
    "EngineError",
    "FileAccessError",
    "FormatError",
    "HubError",
    "InternalError",
    "MissingFileError",
    "NativeMemoryError",
    "NumericsError",
    "PhaseError",
    "UnsupportedError",
]


class AbiTrainError(Exception):
    """Base of all errors of this package."""


class ArgumentError(AbiTrainError, ValueError):
    """An argument has the wrong type, size or value."""


class ConfigError(AbiTrainError, ValueError):
    """A configuration field is wrong; the message names field, value and rule."""


class DataError(AbiTrainError, ValueError):
    """Training data is wrong; the message names the file and the line or token."""


class FormatError(AbiTrainError, ValueError):
    """A model, tokenizer or GGUF file is wrong; the message names the field."""


class UnsupportedError(AbiTrainError, ValueError):
    """A sound request that this version cannot serve."""


class CheckpointError(AbiTrainError, OSError):
    """A checkpoint is damaged or does not fit the model or the configuration."""


class FileAccessError(AbiTrainError, OSError):
    """The system refused to read or write: permission, space, a folder where a file should be."""


class MissingFileError(FileAccessError, FileNotFoundError):
    """A file or folder does not exist."""


class HubError(AbiTrainError, OSError):
    """The Hugging Face Hub refused, or cannot be reached; the message says what to do next."""


class NumericsError(AbiTrainError, ArithmeticError):
    """NaN or infinity where a number must be; the message names the step and the tensor."""


class NativeMemoryError(AbiTrainError, MemoryError):
    """The native side ran out of memory."""


class ClosedError(AbiTrainError, ValueError):
    """The object was closed before."""


class BusyError(AbiTrainError, RuntimeError):
    """Another thread is using the object."""


class EngineError(AbiTrainError, RuntimeError):
    """An engine or an optional package is not available; the message says what to install."""


class PhaseError(AbiTrainError, RuntimeError):
    """A phase of a recipe did not finish; its cause is the error itself.

    phase: its name. command: what goes on where it stopped.
    """

    def __init__(self, text: str, *, phase: str, command: str) -> None:
        super().__init__(text)
        self.phase = phase
        self.command = command


class InternalError(AbiTrainError, RuntimeError):
    """A fault of this package: please report it."""
