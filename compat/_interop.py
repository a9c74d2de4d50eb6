"""`interop`: a lock that also takes, and honours, the file by which the code that it replaces locks.

For the time in which a fleet is half migrated: old code looks at a file only, and new code asks the kernel.

Rules:
- First the socket, then the file; the file is let go first.  So of all new processes of a network namespace one at
  most looks at the file, and the others sleep in its queue.  Those of another network namespace have another queue:
  between them, too, the file decides.
- Old code wakes nobody, so whoever has the socket and not the file has to look again and again.
- What a forked child inherits of the file it closes, or an flock would outlive its holder, unless the lock moves to the
  child.  It learns that from the lock: our hooks run after pidabs' own.
- Files are opened and closed under pidabs' own guard, which forks hold, too.  A second guard would be taken first by a
  thread that forks, and second by one that collects a dropped lock inside the first.
- A descriptor goes straight from the system call into a list: an exception of a signal handler must not lose the number
  of a file that is locked.  Before it is closed it is looked at: DaemonContext closes what is not its own, and the
  numbers come back as other files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any
from weakref import WeakSet

from pidabs import Holder, Lock, LockError, NotHeld, Timeout
from pidabs._descriptors import guard, release_guard
from pidabs._linux import lift_file

_FIRST, _LONGEST = 0.001, 0.05  # seconds between two looks at the file
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class OldLock:
    """What old code locks by: the file at `path`, and our descriptor of it while we have it."""

    doubt = 0.0
    """Seconds after which a lock that was just taken has to be looked at again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.taken = False
        self._fds: list[int] = []
        self._identity: tuple[int, int] | None = None  # of the last; None while it is just being opened

    def take(self) -> bool:
        """One try.  Raises OSError."""
        raise NotImplementedError

    def stands(self) -> bool:
        """Asked if there is doubt: whether it is still taken."""
        return True

    def free(self) -> None:
        """Let go of it.  Does nothing where we have nothing; can be interrupted and done again."""
        raise NotImplementedError

    def lost(self) -> bool:
        """Whether it was taken, and old code could take it by now."""
        return False

    def owner(self) -> int | None:
        """The pid of whoever has it, 0 if somebody has it who cannot be named, None if nobody has it, as far as can be
        told without trying."""
        return None

    def arrive(self) -> None:
        """In a forked child to which the lock moved."""

    def relock(self) -> None:
        """After a daemon has detached, perhaps with our descriptor closed."""

    def close(self) -> None:
        """Close our copy.  Locks of other copies stay as they are."""
        with guard:
            while self._fds:
                if self._identity is None or _identity_of(self._fds[0]) == self._identity:
                    # One call into C: interrupted, and done again, it would close what has the number by then.
                    any(map(os.close, map(self._fds.pop, (0,))))
                else:
                    self._fds.pop(0)
            self._identity = None
        self.taken = False

    def _open(self, flags: int, mode: int = 0) -> int:
        with guard:
            self._identity = None
            self._fds.extend(map(os.open, (self.path,), (flags | _SAFELY,), (mode,)))
            lift_file(self._fds)  # an old descriptor that is closed late must not hit it
            self._identity = _identity_of(self._fds[-1])
        return self._fds[-1]

    def _fd(self) -> int | None:
        """Our descriptor, if it is still ours."""
        if not self._fds:
            return None
        fd = self._fds[-1]
        return fd if self._identity is None or _identity_of(fd) == self._identity else None

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(fd))
        except FileNotFoundError as exc:
            from_the_kernel(exc)
            return False


class InteropLock(Lock):
    """A Lock that takes a file, too."""

    file: Any = None
    _alone = False

    def __init__(self, name: str, make_file: Callable[[str], Any]) -> None:
        super().__init__(name)
        self.file = make_file(self.name)
        try:
            with guard:
                _locks.add(self)
        except BaseException:
            release_guard()
            raise

    def acquire(self, timeout: Any = None, *, cancel_check: Any = None, poll_interval: float = 0.05) -> Lock:
        deadline = None if timeout is None else monotonic() + timeout
        super().acquire(timeout, cancel_check=cancel_check, poll_interval=poll_interval)
        try:
            for pause in self._pauses(timeout, deadline, cancel_check):
                sleep(pause)
        except BaseException as exc:
            _after(exc)
            self._back_out()
            raise
        return self

    async def acquire_async(
        self, timeout: Any = None, *, cancel_check: Any = None, poll_interval: float = 0.05
    ) -> Lock:
        import asyncio  # whoever calls this has it

        deadline = None if timeout is None else monotonic() + timeout
        await super().acquire_async(timeout, cancel_check=cancel_check, poll_interval=poll_interval)
        try:
            for pause in self._pauses(timeout, deadline, cancel_check):
                await asyncio.sleep(pause)
        except GeneratorExit:  # the coroutine is closed, and cannot await any more
            self._back_out()
            raise
        except BaseException as exc:
            _after(exc)
            try:
                await self.release_async()
            except NotHeld:
                pass  # the socket was closed behind our back
            raise
        return self

    def _back_out(self) -> None:
        try:
            self.release()
        except NotHeld:
            pass  # the socket was closed behind our back

    def _pauses(self, timeout: float | None, deadline: float | None, cancel_check: Any) -> Iterator[float]:
        """How long to sleep, and again, until the file is ours, too."""
        pause = _FIRST
        while True:
            if self.file.take():
                if not self.file.doubt:
                    return
                yield self.file.doubt
                if self.file.stands():
                    return
                self.file.close()
            left = _LONGEST if deadline is None else deadline - monotonic()
            if left <= 0 or (cancel_check is not None and cancel_check()):
                raise Timeout(self.name, timeout or 0.0, self.holder)
            yield min(pause, left)
            pause = min(2 * pause, _LONGEST)

    def release(self) -> None:
        self._free()
        super().release()

    async def release_async(self) -> None:
        self._free()
        await super().release_async()

    def _free(self) -> None:
        try:
            self.file.free()
        except BaseException as exc:  # a signal handler's, or a warning that is an error
            _after(exc)
            self.file.free()
            try:
                super().release()
            except NotHeld:
                pass
            raise

    @property
    def held(self) -> bool:
        return super().held and not (self.file.taken and self.file.lost())

    def locked(self) -> bool:
        return super().locked() or self.file.owner() is not None

    def holder(self) -> Holder | None:
        """Whoever has the file: who has the socket may be waiting for it."""
        found, pid = super().holder(), self.file.owner()
        if not pid or (found is not None and found.pid == pid):
            return found
        try:
            return Holder(pid, None, None, pidfd=os.pidfd_open(pid))
        except OSError:
            return Holder(pid, None, None)

    @contextmanager
    def across_fork(self) -> Iterator[None]:  # type: ignore[override]
        try:
            with super().across_fork():
                yield
        finally:
            if self.held:
                self.file.relock()

    def __del__(self) -> None:
        super().__del__()
        if self.file is not None:
            self.file.close()  # of a lock that was lost


def from_the_kernel(exc: OSError) -> None:
    """Raise it again if it is a signal handler's: an alarm's TimeoutError is an OSError, too."""
    if exc.errno is None:
        raise exc


# Forks --------------------------------------------------------------------------------------------------------------

_locks: WeakSet[InteropLock] = WeakSet()


def _after(exc: BaseException) -> None:
    if not isinstance(exc, LockError):
        release_guard()


def _in_child() -> None:
    for lock in _all():
        if lock.file.taken and lock.held:
            lock.file.arrive()
        else:
            lock.file.close()


def _in_parent() -> None:
    for lock in _all():
        if lock.file.taken and not lock.held:
            lock.file.close()


def _all() -> list[InteropLock]:
    with guard:  # other threads make more
        return list(_locks)


def _identity_of(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError as exc:
        from_the_kernel(exc)
        return None
    return status.st_dev, status.st_ino


if hasattr(os, "register_at_fork"):
    # Twice, as an exception of a signal handler may strike the first.
    for _ in range(2):
        os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)
