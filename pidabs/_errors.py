"""What can go wrong, as exceptions.  Catch LockError for all of it.

A message says what was tried, on which lock, who is in the way, and why; the OSError behind it is chained.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes longer to import than all of pidabs
    from collections.abc import Callable
    from typing import Any

    from ._holder import Holder


class LockError(Exception):
    """Base class of everything pidabs raises about a lock."""


class Timeout(LockError, TimeoutError):
    """The lock was not free in time: `name` says which, `holder` who has it.

    The holder is looked up when it is shown or asked for, not when the error is raised: a look-up leaves an entry in
    the holder's queue, and a loop around `acquire(timeout=0)` must not fill that.
    """

    def __init__(
        self, name: str, waited: float = 0.0, holder: Holder | Callable[[], Holder | None] | None = None
    ) -> None:
        super().__init__(name)
        self.name: str = name
        self.waited: float = waited
        self._holder = holder

    @property
    def holder(self) -> Holder | None:
        """Who held the lock when this was first asked; None if it was free by then."""
        if callable(self._holder):
            self._holder = self._holder()
        return self._holder

    def __str__(self) -> str:
        waited = f" within {self.waited:g} s" if self.waited else ""
        return f"cannot acquire lock {self.name!r}{waited}: {self._why()}"

    def _why(self) -> str:
        try:
            holder = self.holder
        except OSError as exc:
            return f"it is held, and who holds it cannot be asked ({exc})"
        return f"held by {holder}" if holder else "it was held, and has been freed since"

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            holder = self.holder
        except OSError:  # it cannot be asked; the error is to travel all the same
            holder = None
        return type(self), (self.name, self.waited, holder)


class AlreadyHeld(LockError):
    """This thread holds the lock already: waiting for itself would never end."""


class NotHeld(LockError):
    """The lock to release is not held by this object, or was lost."""


class Unsupported(LockError):
    """No abstract unix sockets here: not Linux, or a sandbox denies them."""


class MirrorError(LockError):
    """The mirror PID file cannot be written; the lock is not held."""
