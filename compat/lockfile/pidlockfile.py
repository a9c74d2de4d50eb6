"""Stands in for lockfile.pidlockfile of lockfile 0.12.2.

Behaves as the original does, but for what was wrong with it: a lock whose holder died is free, is_locked, read_pid and
i_am_locking ask the kernel instead of a file, and break_lock does not take the lock from a live process.

The lock is the process's, not the object's, as it was with a PID in a file: any object of the path releases it, and an
object that is dropped does not drop it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from typing import Any

from lockfile import AlreadyLocked, LockBase, LockFailed, LockTimeout, NotLocked, NotMyLock
from lockfile import pidlockfile as _original
from lockfile.pidlockfile import read_pid_from_pidfile, remove_existing_pidfile, write_pid_to_pidfile

from pidabs import Lock, LockError, NotHeld, Timeout

from .. import SUPPORTED

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

_held: dict[bytes, Lock] = {}
"""The locks of this process by address.  After a fork they say themselves that they are not held."""


class PIDLockFile(_original.PIDLockFile):
    """A lock named by the path of its PID file, which is a mirror: written for people and tools, never read.

    `threaded` is ignored, as in the original; `timeout` is the default of `acquire`.  `mirror=False` writes no file.
    """

    def __init__(self, path: Any, threaded: bool = False, timeout: float | None = None, *, mirror: bool = True) -> None:
        super().__init__(path, threaded, timeout)
        self._mirror = mirror
        self._lock = self._make_lock(os.path.join(os.curdir, path))  # absolute from now on: daemons chdir
        self._detaching: ExitStack | None = None

    def _make_lock(self, path: str) -> Lock:
        return Lock(path, mirror=self._mirror)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles stand for the same lock; the lock is the process's."""
        return {**self.__dict__, "_lock": self._lock.name, "_detaching": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = self._make_lock(state["_lock"])

    def read_pid(self) -> int | None:
        """The holder's pid: None if the lock is free, or the holder's pid namespace is hidden from us."""
        holder = self._lock.holder()
        return holder.pid if holder else None

    def is_locked(self) -> bool:
        """Whether any process holds the lock."""
        return self._lock.locked()

    def i_am_locking(self) -> bool:
        """Whether this process holds the lock."""
        lock = _held.get(self._lock.address)
        return lock is not None and lock.held

    def acquire(self, timeout: float | None = None) -> None:
        """Take the lock.  A timeout above 0 waits so many seconds; None (in the constructor too), 0 or less tries once.

        Raises AlreadyLocked after one try, LockTimeout after a wait, LockFailed if the lock or its PID file cannot be
        made.
        """
        timeout = timeout if timeout is not None else self.timeout
        wait = timeout if timeout is not None and timeout > 0 else 0
        lock = self._make_lock(self._lock.name) if self._lock.held else self._lock
        try:
            lock.acquire(timeout=wait)
            self._lock = _held[lock.address] = lock
        except Timeout as exc:
            if wait:
                raise LockTimeout(_Reason(f"Timeout waiting to acquire lock for {self.path}", exc)) from exc
            raise AlreadyLocked(_Reason(f"{self.path} is already locked", exc)) from exc
        except (LockError, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno is None:  # not the kernel's but a signal handler's
                _give_back(lock)
                raise
            raise LockFailed(f"failed to create {self.path}: {exc}") from exc
        except BaseException:  # a signal handler's: nobody would know that the lock is held
            _give_back(lock)
            raise

    def release(self) -> None:
        """Let go of the lock and remove the PID file.  Raises NotLocked, or NotMyLock if another process holds it."""
        taken = _held.get(self._lock.address)
        lock = taken or self._lock
        try:
            lock.release()
        except NotHeld as exc:
            lost = f" ({exc})" if taken else ""
            if self.is_locked():
                raise NotMyLock(f"{self.path} is locked, but not by me{lost}") from exc
            raise NotLocked(f"{self.path} is not locked{lost}") from exc
        finally:  # not sooner: a signal handler may raise before the lock has begun to be let go
            if not lock.held and _held.get(lock.address) is lock:
                _held.pop(lock.address, None)

    def break_lock(self) -> None:
        """Release our own lock; remove the PID file of a dead holder; warn, and leave a live process its lock."""
        if self.i_am_locking():
            self.release()
        elif self.is_locked():
            warnings.warn(
                f"{self.path} is held by a live process ({self._lock.holder()}) and stays so; stop that process",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            _remove_stale(self._lock.name)

    def fileno(self) -> int:
        """The descriptor to keep open: DaemonContext(files_preserve=[pidfile]).  Raises NotLocked."""
        try:
            return _held.get(self._lock.address, self._lock).fileno()
        except NotHeld as exc:
            raise NotLocked(f"{self.path} is not locked by this process") from exc

    @contextmanager
    def across_fork(self) -> Iterator[None]:
        """For a daemon that takes its lock before it detaches, so that a refusal still reaches the terminal:

            pidfile.acquire()
            with pidfile.across_fork(), DaemonContext(pidfile=pidfile, files_preserve=[pidfile]):
                ...

        Each fork in here moves the lock to the child, until a context manager enters the pidfile and finds it taken:
        from there on the daemon is where it belongs, and a worker that it forks does not get the lock.
        """
        with ExitStack() as detaching:
            detaching.enter_context(_held.get(self._lock.address, self._lock).across_fork())
            self._detaching = detaching
            try:
                yield
            finally:
                self._detaching = None

    def __enter__(self) -> Any:
        if self._detaching is None or not self.i_am_locking():
            return super().__enter__()
        self._detaching.close()
        return self


def _give_back(lock: Lock) -> None:
    if lock.held:
        lock.release()
    if _held.get(lock.address) is lock:
        _held.pop(lock.address, None)


class _Reason(str):
    """The original's message; shown, it names the holder: not before, as a look-up leaves an entry in its queue."""

    _timeout: Timeout

    def __new__(cls, text: str, timeout: Timeout) -> _Reason:
        self = super().__new__(cls, text)
        self._timeout = timeout
        return self

    def __str__(self) -> str:
        text = "".join(self)
        try:
            holder = self._timeout.holder
        except OSError:
            return text
        return f"{text} by {holder}" if holder else text

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def _remove_stale(path: str) -> None:
    """Remove a PID file unless a holder has it flock'ed: somebody may have taken the lock since we looked."""
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


if not SUPPORTED:
    PIDLockFile = _original.PIDLockFile  # type: ignore[misc]
