"""A model in memory: configuration, and weights as NumPy views."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import (
    ArgumentError,
    ConfigError,
    FileAccessError,
    FormatError,
    MissingFileError,
)
from .owned import Owned
from .tokenizer import as_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._native import Handle
    from ._native.model import Parameter

__all__ = ["Model"]


class Model(Owned):
    """Weights with their configuration.

    ::

        with Model.load("model-folder") as model:
            model["model.norm.weight"]      # a view: writing to it changes the model
            model.save("copy")

    A trainer trains the weights in place: the views then show the trained values.
    """

    _noun = "model"

    def __init__(self, handle: Handle) -> None:
        self._handle: Handle | None = handle
        self._parameters: dict[str, Parameter] = {
            p.name: p for p in _native.model.parameters(handle)
        }
        self._dtype = _native.model.size(handle)[2]

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dtype: str = "float32") -> Model:
        """Reads a Hugging Face folder or a `.gguf` file; `dtype` is 'float32' or 'float64'.

        With 'stored' nothing is read: the weights stay in their file, in its types, and serve runs
        that train an adapter; there are then no views of them.

        Raises MissingFileError, or FormatError naming the file, the tensor and the rule.
        """
        return cls(_native.model.open(path, dtype))

    @classmethod
    def random(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        seed: int,
        dtype: str = "float32",
    ) -> Model:
        """Random weights for a `config.json` (its path, or its content as a mapping).

        Normal with `initializer_range`; norms 1, biases 0. The same seed gives the same weights on
        every machine; float64 weights are the float32 ones before rounding. Raises ConfigError.
        """
        text = _config_text(config)
        try:
            return cls(_native.model.random(text, seed, dtype))
        except (ConfigError, FormatError) as error:
            if isinstance(config, Mapping):
                raise
            # The native side was given the text only.
            path = str(_config_path(config))
            said = str(error)
            named = said.replace("config.json", path, 1)
            raise type(error)(
                named if said.startswith("config.json") else f"{path}: {said}"
            ) from None

    def close(self) -> None:
        """Frees the model, unless a view or a trainer still uses it."""
        self._handle = None

    def __repr__(self) -> str:
        closed = ", closed" if self._handle is None else ""
        return f"Model({self.element_count} {self._dtype} elements{closed})"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, as in `config.json`."""
        return _native.model.config(self.native)

    @property
    def dtype(self) -> str:
        """'float32', 'float64' or 'stored'."""
        return self._dtype

    @property
    def parameters(self) -> list[Parameter]:
        """Name, shape, offset, size and weight decay of each parameter, in flat order."""
        return list(self._parameters.values())

    @property
    def element_count(self) -> int:
        """Number of weights in all."""
        return sum(p.size for p in self._parameters.values())

    @property
    def weights(self) -> npt.NDArray[Any]:
        """All weights as one flat, writable view."""
        return _native.model.weights(self.native)

    def logits(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        *,
        first: int = 0,
        adapter: str | os.PathLike[str] | None = None,
        threads: int = 0,
    ) -> npt.NDArray[Any]:
        """What the model expects behind each of `ids[first:]`, by the forward pass that trains it.

        (len(ids) - first, vocabulary) in float32 (float64 for such a model), of a 'stored' model
        too. adapter: a PEFT folder, computed beside the model, not merged. threads: 0: one per CPU.
        Shares no code with `Generator`, so the two can be compared.

        Raises ArgumentError for a foreign id or a wrong `first`, CheckpointError for the adapter.
        """
        return _native.model.logits(
            self.native, as_ids(ids), first, adapter=adapter, threads=threads
        )

    def log_probs(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        *,
        first: int = 1,
        adapter: str | os.PathLike[str] | None = None,
        threads: int = 0,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """How likely the model finds `ids[first:]`, each behind all before it; as of a `Generator`.

        Two arrays of one value an id: its natural log-probability, and whether no other id is
        likelier. Options and errors as of `logits`; `first` is at least 1.
        """
        return _native.model.score(
            self.native, as_ids(ids), first, adapter=adapter, threads=threads
        )

    def shaped(self, flat: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Views of a flat array laid out like the weights, by name and in shape.

        For the weights themselves, and for a trainer's gradients and moments.
        """
        if flat.shape != (self.element_count,):
            raise ArgumentError(
                f"the array has shape {flat.shape}; the weights have ({self.element_count},)"
            )
        return {
            p.name: flat[p.offset : p.offset + p.size].reshape(p.shape)
            for p in self._parameters.values()
        }

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Writable views of all parameters, by Hugging Face's names."""
        return self.shaped(self.weights)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A writable view of one parameter. Raises KeyError."""
        p = self._parameters[name]
        return self.weights[p.offset : p.offset + p.size].reshape(p.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        """Number of parameters."""
        return len(self._parameters)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        tokenizer_dir: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Writes a Hugging Face folder, which must not exist, and returns its path.

        tokenizer_dir: a folder whose tokenizer files are copied. Raises FileAccessError, or
        NumericsError when a weight is not finite.
        """
        _native.model.save(self.native, folder, tokenizer_dir)
        return Path(folder)

    def import_checkpoint(self, path: str | os.PathLike[str]) -> int:
        """Replaces the weights by those of an ABLC or ABIC file.

        Returns the step it was saved at.
        """
        return _native.model.import_checkpoint(self.native, path)

    def export_checkpoint(
        self, path: str | os.PathLike[str], *, weights_only: bool = True, step: int = 0
    ) -> Path:
        """Writes ABI's checkpoint file: ABIC, or ABLC (without moments) if not `weights_only`."""
        _native.model.export_checkpoint(self.native, path, weights_only, step)
        return Path(path)


def _config_path(config: str | os.PathLike[str]) -> Path:
    path = Path(config)
    return path / "config.json" if path.is_dir() else path


def _config_text(config: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    if isinstance(config, Mapping):
        return json.dumps(dict(config))
    path = _config_path(config)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise FileAccessError(f"{path}: {error}") from error
