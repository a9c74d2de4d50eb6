"""Stands in for lockfile.pidlockfile of lockfile 0.12.2.

Behaves as the original does, but for what was wrong with it: a lock whose holder died is free, is_locked, read_pid and
i_am_locking ask the kernel instead of a file, and break_lock does not take the lock from a live process.

The lock is the process's, not the object's, as it was with a PID in a file: any object of the path releases it, and an
object that is dropped does not drop it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lockfile import AlreadyLocked, LockBase, LockFailed, LockTimeout, NotLocked, NotMyLock
from lockfile import pidlockfile as _original
from lockfile.pidlockfile import read_pid_from_pidfile, remove_existing_pidfile, write_pid_to_pidfile

from pidabs import Lock

from .. import SUPPORTED
from ._shared import Shared

__all__ = [
    "AlreadyLocked",
    "LockBase",
    "LockFailed",
    "LockTimeout",
    "NotLocked",
    "NotMyLock",
    "PIDLockFile",
    "read_pid_from_pidfile",
    "remove_existing_pidfile",
    "write_pid_to_pidfile",
]


if TYPE_CHECKING:
    _Original = object  # lockfile has no types; Shared says what is there
else:
    _Original = _original.PIDLockFile


class PIDLockFile(Shared, _Original):
    """A lock named by the path of its PID file, which is a mirror: written for people and tools, never read.

    `threaded` is ignored, as in the original; `timeout` is the default of `acquire`.  `mirror=False` writes no file.

    With `interop=True`, or PIDABS_INTEROP=1 in the environment, the PID file is a lock again, for those who still use
    the original: docs/interop.md.
    """

    _identity = "the process"

    def __init__(
        self,
        path: Any,
        threaded: bool = False,
        timeout: float | None = None,
        *,
        mirror: bool = True,
        interop: bool | None = None,
    ) -> None:
        super().__init__(path, threaded, timeout)
        self._mirror = mirror
        self._interop = os.environ.get("PIDABS_INTEROP") == "1" if interop is None else interop
        self._start(os.path.join(os.curdir, path))  # absolute from now on: daemons chdir

    @property
    def _target(self) -> str:
        return self.path

    def _make_lock(self, path: str) -> Lock:
        if self._interop:
            from ._pidfile import InteropLock, PidFile

            return InteropLock(path, PidFile)
        return Lock(path, mirror=self._mirror)

    def read_pid(self) -> int | None:
        """The holder's pid: None if the lock is free, or the holder's pid namespace is hidden from us."""
        holder = self._lock.holder()
        return holder.pid if holder else None

    def acquire(self, timeout: float | None = None) -> None:
        """Take the lock.  A timeout above 0 waits so many seconds; None (in the constructor too), 0 or less tries once.

        Raises AlreadyLocked after one try, LockTimeout after a wait, LockFailed if the lock or its PID file cannot be
        made.
        """
        timeout = timeout if timeout is not None else self.timeout
        self._take(timeout if timeout is not None and timeout > 0 else 0)

    def _remove_stale(self) -> None:
        if self._interop:
            from ._pidfile import PidFile

            PidFile(self._lock.name).clear()
        else:
            _remove_stale(self._lock.name)


def _remove_stale(path: str) -> None:
    """Remove a PID file unless a holder has it flock'ed: somebody may have taken the lock since we looked."""
    from fcntl import LOCK_EX, LOCK_NB, flock  # not on Windows, where the original is handed out

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        remove_existing_pidfile(path)  # none, a symlink, or not to be read: not a holder's
        return
    try:
        flock(fd, LOCK_EX | LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            remove_existing_pidfile(path)
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        os.close(fd)


if not SUPPORTED and not TYPE_CHECKING:
    PIDLockFile = _original.PIDLockFile
