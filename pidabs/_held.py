"""The locks that this process holds: to tell a thread that would wait for itself, and to release them at exit.

Only a register, as good as the last thread that looked; `Lock.held` asks the kernel.  But whoever pops a socket from
`held` is the one who releases it.
"""

from __future__ import annotations

import atexit
import sys
from _thread import _local, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _weakref import ref

    from ._descriptors import Socket
    from ._lock import Lock

held: dict[Socket, ref[Lock]] = {}


class _Here(_local):
    """What belongs to the thread that looks at it."""

    def __init__(self) -> None:
        self.thread = [get_ident()]
        """Who this thread is: compared by identity, as the ident itself is given to another thread thereafter."""


here = _Here()
nobody = [0]


def locks() -> list[Lock]:
    """Those that are really held."""
    found = [entry() for entry in list(held.values())]
    return [lock for lock in found if lock is not None and lock.held]


@atexit.register
def _release_at_exit() -> None:
    """Hand on what is still held, rather than let everybody race for it, and remove the mirrors."""
    running = sys._current_frames()
    for lock in locks():
        if lock._owner is here.thread or lock._owner[0] not in running:
            lock.release()
        elif lock._mirror is not None:
            # A daemon thread holds it, and goes on for a moment: the kernel frees the lock when that has ended.
            lock._mirror.remove()
