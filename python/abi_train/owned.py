"""What every object that holds a native one has in common: a handle, and a way to let go of it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from .errors import ClosedError

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._native import Handle


class Owned:
    """Holds a native object until `close`, or until the `with` block ends.

    Views of its memory keep the native object alive beyond that.
    """

    _noun: ClassVar[str]
    """What it is called in an error."""

    _handle: Handle | None = None

    @property
    def native(self) -> Handle:
        """The native object, for other modules of this package. Raises ClosedError."""
        if self._handle is None:
            path = getattr(self, "path", None)
            place = "" if path is None else f"{path}: "
            raise ClosedError(f"{place}the {self._noun} was closed before")
        return self._handle

    def close(self) -> None:
        """Lets go of the native object."""
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
