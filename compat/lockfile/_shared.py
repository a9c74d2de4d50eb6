"""What all of lockfile's classes share: the lock is the process's, and an object is one name for it.

As with files, where it was the file that counted: whoever in this process has the same identity holds the lock, and
releases it, through any object; an object that is dropped does not drop the lock.  A forked child holds nothing, as
the kernel says so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lockfile import AlreadyLocked, LockFailed, LockTimeout, NotLocked, NotMyLock

from pidabs import AlreadyHeld, Lock, LockError, NotHeld, Timeout


class _Hold:
    """One time that a lock was taken, and by whom."""

    __slots__ = ("identity", "lock")

    def __init__(self, lock: Lock, identity: object) -> None:
        self.lock = lock
        self.identity = identity


_held: dict[_Hold, None] = {}
"""What this process holds.  After a fork the locks say themselves that they are not held.

By hold, and not by address: 1. A thread lets go.  2. Another is granted the lock, maybe through the same object, and
notes it.  3. The first strikes out its own note; looking first whose note it is, it could strike out the other's.
"""


def _hold_of(address: bytes) -> _Hold | None:
    """The last that was noted; it may have ended."""
    return next((hold for hold in reversed(list(_held)) if hold.lock.address == address), None)


if TYPE_CHECKING:

    class LockBase:
        """lockfile's, which has no types."""

        path: str
        lock_file: str
        unique_name: str
        hostname: str
        pid: int
        tname: str
        timeout: float | None

        def __init__(self, path: Any, threaded: bool = True, timeout: float | None = None) -> None: ...
        def __enter__(self) -> Any: ...
        def __exit__(self, *_exc: object) -> None: ...

else:
    from lockfile import LockBase


class Shared(LockBase):
    """A lock of the kernel's under lockfile's methods."""

    _lock: Lock

    # What the classes differ in -------------------------------------------------------------------------------------

    @property
    def _identity(self) -> object:
        """Who, within this process, holds the lock when this object acquires it."""
        raise NotImplementedError

    @property
    def _target(self) -> str:
        """The path that names the lock, for messages."""
        raise NotImplementedError

    def _make_lock(self, path: str) -> Lock:
        return Lock(path)

    def _remove_stale(self) -> None:
        """What a dead holder left behind; nothing."""

    # What they have in common ---------------------------------------------------------------------------------------

    def _start(self, path: str) -> None:
        self._lock = self._make_lock(path)
        self._detaching: ExitStack | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles stand for the same lock; the lock is the process's."""
        return {**self.__dict__, "_lock": self._lock.name, "_detaching": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = self._make_lock(state["_lock"])

    def is_locked(self) -> bool:
        """Whether anybody holds the lock."""
        return self._lock.locked()

    def i_am_locking(self) -> bool:
        """Whether it is held by us: by this process, and, if the lock is threaded, this thread."""
        hold = _hold_of(self._lock.address)
        return hold is not None and hold.identity == self._identity and hold.lock.held

    def _take(self, wait: float | None) -> None:
        """Acquire: None waits for ever, 0 tries once."""
        lock = self._make_lock(self._lock.name) if self._lock.held else self._lock
        earlier = _hold_of(lock.address)
        try:
            lock.acquire(timeout=wait)
            self._lock, _held[_Hold(lock, self._identity)] = lock, None
            if earlier is not None:
                _held.pop(earlier, None)  # it had ended when this one began: lost, or left behind by a fork
        except Timeout as exc:
            if wait:
                raise LockTimeout(
                    _Reason(f"Timeout waiting to acquire lock for {self.path}", ", held by", exc)
                ) from exc
            raise AlreadyLocked(_Reason(f"{self.path} is already locked", " by", exc)) from exc
        except AlreadyHeld as exc:
            raise AlreadyLocked(f"{self.path} is already locked by this thread, which would wait for itself") from exc
        except (LockError, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno is None:  # not the kernel's but a signal handler's
                _give_back(lock)
                raise
            raise LockFailed(f"failed to create {self._target}: {exc}") from exc
        except BaseException:  # a signal handler's: nobody would know that the lock is held
            _give_back(lock)
            raise

    def release(self) -> None:
        """Let go of the lock.  Raises NotLocked, or NotMyLock if somebody else holds it."""
        hold = _hold_of(self._lock.address)
        if hold is not None and hold.identity != self._identity and hold.lock.held:
            raise NotMyLock(f"{self.path} is locked, but not by me")
        lock = hold.lock if hold else self._lock
        free = False
        try:
            lock.release()
            free = True
        except NotHeld as exc:
            lost = f" ({exc})" if hold else ""
            if self.is_locked():
                raise NotMyLock(f"{self.path} is locked, but not by me{lost}") from exc
            raise NotLocked(f"{self.path} is not locked{lost}") from exc
        finally:  # not sooner: a signal handler may raise before the lock has begun to be let go
            if hold is not None and (free or not lock.held):
                _held.pop(hold, None)

    def break_lock(self) -> None:
        """Release what this process holds; remove what a dead one left; warn, and leave a live process its lock."""
        hold = _hold_of(self._lock.address)
        if hold is not None and hold.lock.held:
            _give_back(hold.lock)
        elif self.is_locked():
            holder = self._lock.holder()
            warnings.warn(
                f"{self.path} is held by a live process ({holder}) and stays so; stop that process",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self._remove_stale()

    def fileno(self) -> int:
        """The descriptor to keep open: DaemonContext(files_preserve=[lock]).  Raises NotLocked."""
        hold = _hold_of(self._lock.address)
        try:
            return (hold.lock if hold else self._lock).fileno()
        except NotHeld as exc:
            raise NotLocked(f"{self.path} is not locked by this process") from exc

    @contextmanager
    def across_fork(self) -> Iterator[None]:
        """For a daemon that takes its lock before it detaches, so that a refusal still reaches the terminal::

            pidfile.acquire()
            with pidfile.across_fork(), DaemonContext(pidfile=pidfile, files_preserve=[pidfile]):
                ...

        Each fork in here moves the lock to the child, until a context manager enters the pidfile and finds it taken:
        from there on the daemon is where it belongs, and a worker that it forks does not get the lock.
        """
        hold = _hold_of(self._lock.address)
        with ExitStack() as detaching:
            detaching.enter_context((hold.lock if hold else self._lock).across_fork())
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


class NamedByLockFile(Shared):
    """LockFile and its like: named by `lock_file`, which is the path with ".lock" behind it.

    Held by one thread, which is the one that made the object, or by the whole process, if not `threaded`; to acquire
    it again does nothing, and to release it once is enough.
    """

    def __init__(self, path: Any, threaded: bool = True, timeout: float | None = None) -> None:
        super().__init__(path, threaded, timeout)
        self._start(self.lock_file)

    def _start(self, path: str) -> None:
        super()._start(path)
        if os.environ.get("PIDABS_INTEROP") == "1":
            warnings.warn(
                f"{type(self).__name__} has no interop: PIDABS_INTEROP=1 does not make it exclude lockfile's own locks",
                RuntimeWarning,
                stacklevel=3,
            )

    @property
    def _identity(self) -> object:
        return self._kind, self.unique_name

    _kind: type
    """The original.  Of two kinds, each is somebody else to the other, as in the original."""

    @property
    def _target(self) -> str:
        return self.lock_file

    def acquire(self, timeout: float | None = None) -> None:
        """Take the lock; nothing changes if it is ours already.

        `timeout`, or if None that of the constructor: None waits for ever, a number above 0 so many seconds, others
        try once.  Raises LockTimeout after a wait, AlreadyLocked after one try or if this thread would wait for itself,
        LockFailed if the lock cannot be made.
        """
        if not self.i_am_locking():
            timeout = timeout if timeout is not None else self.timeout
            self._take(timeout if timeout is None else max(0, timeout))


def _give_back(lock: Lock) -> None:
    if lock.held:
        lock.release()
    for hold in list(_held):
        if hold.lock is lock:
            _held.pop(hold, None)


class _Reason(str):
    """The original's message; shown, it names the holder: not before, as a look-up leaves an entry in its queue."""

    _joint: str
    _timeout: Timeout

    def __new__(cls, text: str, joint: str, timeout: Timeout) -> _Reason:
        self = super().__new__(cls, text)
        self._joint, self._timeout = joint, timeout
        return self

    def __str__(self) -> str:
        text = "".join(self)
        try:
            holder = self._timeout.holder
        except OSError:
            return text
        return f"{text}{self._joint} {holder}" if holder else text

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)
