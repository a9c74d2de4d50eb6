"""filelock's own lock: flock(2) on the lock file.

Rule: it is locked by whoever has an flock on the file that is at the path now.  Some versions of filelock unlink the
file when they release, so after each flock we look whether the file is still there.  We never unlink it: who waits for
it would be left with another file than who comes later.
"""

from __future__ import annotations

import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

from .._interop import InteropLock, OldLock, from_the_kernel
from ._hold import QuietLock


class FlockFile(OldLock):
    """The flock.  With `shows_pid`, our pid is in the file while we have it."""

    def __init__(self, path: str, mode: int | None, shows_pid: bool) -> None:
        super().__init__(path)
        self._mode = mode
        self._shows_pid = shows_pid

    def take(self) -> bool:
        try:
            fd = self._open_or_create()
            if fd is not None and _flocked(fd) and self._is_at_path(fd):
                if self._shows_pid:
                    self._show(b"%d\n" % os.getpid())
                self.taken = True
                return True
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _open_or_create(self) -> int | None:
        """None if it has come or gone while we looked."""
        try:
            return self._open(os.O_RDWR)  # O_CREAT is denied for others' files in /tmp, see fs.protected_regular
        except FileNotFoundError as exc:
            from_the_kernel(exc)
        try:
            fd = self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if self._mode is None else self._mode)
        except FileExistsError as exc:
            from_the_kernel(exc)
            return None
        if self._mode is not None:
            os.fchmod(fd, self._mode)  # whatever the umask
        return fd

    def free(self) -> None:
        fd = self._fd()
        if fd is not None and self.taken:
            if self._shows_pid:
                self._show(b"")
            flock(fd, LOCK_UN)  # for all copies that there may be
        self.close()

    def lost(self) -> bool:
        return self._fd() is None

    def arrive(self) -> None:
        if self._shows_pid:
            self._show(b"%d\n" % os.getpid())

    def _show(self, text: bytes) -> None:
        """In place: a new file would not be the one that is locked.  filelock 3 empties it whenever it tries."""
        fd = self._fd()
        if fd is not None:
            os.pwrite(fd, text, 0)  # the first line is whole at any moment, even before the cut
            os.ftruncate(fd, len(text))


def _flocked(fd: int) -> bool:
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except (BlockingIOError, PermissionError) as exc:  # some file systems say EACCES
        from_the_kernel(exc)
        return False
    return True


class QuietInteropLock(InteropLock, QuietLock):
    """Both."""


def make_lock(path: str, mode: int | None, shows_pid: bool) -> QuietInteropLock:
    return QuietInteropLock(path, lambda name: FlockFile(name, mode, shows_pid))
