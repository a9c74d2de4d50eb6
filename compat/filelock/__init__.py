"""Stands in for filelock 3.13 to 4.2: `import pidabs.compat.filelock as filelock`.

FileLock is ours, and so are UnixFileLock, AsyncFileLock and AsyncUnixFileLock.  Every other public name is handed
through as it is, SoftFileLock and its kin above all: they are chosen for directories that several hosts share.

Ours behave as filelock's do, but a waiter sleeps in the kernel, in order, and there is no file: the resolved path is
only a name.  Options that concern a file have no effect; docs/filelock.md lists each.  `mirror=True`, or
PIDABS_MIRROR=1 in the environment, writes the holder's PID to the path while the lock is held.

Our classes are registered with filelock's, which satisfies isinstance and issubclass; inheriting would bring
bookkeeping that takes ten times as long as the lock.
"""

from __future__ import annotations

import os
from importlib import import_module
from os import getpid
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Any
from warnings import warn

import filelock as _original
from filelock import AcquireReturnProxy, Timeout

from pidabs import AlreadyHeld
from pidabs import Timeout as _NotInTime

from .. import SUPPORTED
from ._classes import base_of
from ._core import INTERVAL, UNSET_MODE, Core
from ._hold import Hold, checked, pass_gate

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeAlias

    # For type checkers our classes are subclasses of filelock's, and its other names are all here.
    from filelock import (  # isort: skip
        AsyncAcquireReadWriteReturnProxy, AsyncAcquireReturnProxy, AsyncAcquireSoftReadWriteReturnProxy,
        AsyncReadWriteLock, AsyncSoftFileLease, AsyncSoftFileLock, AsyncSoftReadWriteLock, AsyncStrictSoftFileLock,
        AsyncWindowsFileLock, BaseAsyncFileLock, BaseFileLock, CloseErrorPolicy, CompromiseReason, ContextErrorPolicy,
        LeaseCompromise, LeaseSettingsMismatch, LockOptions, MarkerSoftFileLock, OwnerMode, OwnerRecord,
        ReadWriteLock, SoftFileLease, SoftFileLock, SoftFileLockLifetimeWarning, SoftFileLockProtocolError,
        SoftReadWriteLock, StrictSoftFileClaim, StrictSoftFileClaimState, StrictSoftFileLock, WindowsFileLock,
        __version__, has_fcntl, lock_descriptor, unlock_descriptor,
    )  # fmt: skip
    from typing_extensions import Self

    from . import asyncio as asyncio
    from ._core import CancelCheck, Path
    from .asyncio import AsyncFileLock as AsyncFileLock
    from .asyncio import AsyncUnixFileLock as AsyncUnixFileLock


_forcing = RLock()


def _open_gate() -> None:
    """In a forked child: another thread of the parent may have been inside."""
    global _forcing
    _forcing = RLock()


if TYPE_CHECKING:

    class _Base(Core, _original.UnixFileLock): ...

else:
    _Base = base_of(_original.UnixFileLock)


class UnixFileLock(_Base):
    """filelock's FileLock.  `poll_interval` is how often `cancel_check` is called, and means nothing otherwise."""

    def __init__(
        self,
        lock_file: Path,
        timeout: float = -1,
        mode: int = UNSET_MODE,
        thread_local: bool = True,
        *,
        blocking: bool = True,
        is_singleton: bool = False,
        poll_interval: float = INTERVAL,
        mirror: bool | None = None,
        interop: bool | None = None,
        **options: Any,
    ) -> None:
        own = {"timeout": timeout, "mode": mode, "thread_local": thread_local, "blocking": blocking}
        own |= {"is_singleton": is_singleton, "poll_interval": poll_interval}
        self._set_up(lock_file, mirror, interop, **own, **options)

    def acquire(
        self,
        timeout: float | None = None,
        poll_interval: float | None = None,
        *,
        poll_intervall: float | None = None,
        blocking: bool | None = None,
        cancel_check: CancelCheck | None = None,
    ) -> AcquireReturnProxy[Self]:
        """Take the lock, or once more if it is taken; returns a context manager that releases it.

        Raises Timeout; RuntimeError if this thread would wait for itself, or the lock was inherited across a fork.
        """
        if poll_intervall is not None:
            warn("use poll_interval instead of poll_intervall", DeprecationWarning, stacklevel=2)
            poll_interval = poll_intervall
        hold: Hold = self._mine.hold if self._pid == getpid() else self._inherited()
        seconds = hold.wait if timeout is None and blocking is None else hold.seconds(timeout, blocking)
        interval = hold.interval if poll_interval is None else checked("poll_interval", poll_interval)
        if seconds != seconds:
            raise ValueError("timeout must be a number of seconds, not nan")
        inside: list[bool] = []
        try:
            if hold.gate is not None:
                seconds = self._pass(hold.gate, inside, seconds, interval, cancel_check)
            return self._take_or_count(hold, seconds, interval, cancel_check)
        finally:
            if inside:
                hold.gate.release()

    def _take_or_count(
        self, hold: Hold, seconds: float | None, interval: float, cancel_check: CancelCheck | None
    ) -> AcquireReturnProxy[Self]:
        before, busy = hold.count if hold.count and hold.held else 0, hold.busy
        try:
            if before:
                hold.count += 1
                if hold.logs:
                    self._log("Lock %s acquired on %s")
            else:
                self._take(hold, seconds, interval, cancel_check)
            return _Proxy(self)
        except BaseException:
            hold.busy = busy  # a signal handler's exception may have struck where it is set or cleared
            hold.undo(before)
            raise

    def _take(self, hold: Hold, seconds: float | None, interval: float, cancel_check: CancelCheck | None) -> None:
        lock = self._begin(hold)
        if hold.logs:
            cancel_check, interval = self._noting(hold, cancel_check, interval)
        try:
            if cancel_check is None:
                lock.acquire(seconds)
            else:
                lock.acquire(seconds, cancel_check=cancel_check, poll_interval=interval)
        except _NotInTime as exc:
            raise self._too_late(hold, seconds) from exc
        except AlreadyHeld:
            raise self._would_deadlock() from None
        finally:
            hold.busy = ""
        hold.count = 1
        if self._hook is not None:
            self._hook(lock.fileno())  # which may take it once more
        if hold.logs:
            self._log("Lock %s acquired on %s")

    def _pass(
        self, gate: Any, inside: list[bool], seconds: float | None, interval: float, cancel_check: CancelCheck | None
    ) -> float | None:
        """Wait until no other thread is taking this very object's lock; returns the seconds that are left."""
        if pass_gate(gate, inside, 0):
            return seconds
        deadline = None if seconds is None else monotonic() + seconds
        while True:
            left = -1 if deadline is None else max(0, deadline - monotonic())
            if cancel_check is not None:
                left = interval if left < 0 else min(interval, left)
            if pass_gate(gate, inside, left):
                return None if deadline is None else max(0, deadline - monotonic())
            if (deadline is not None and monotonic() >= deadline) or (cancel_check is not None and cancel_check()):
                raise Timeout(self.lock_file)

    def release(self, force: bool = False) -> None:
        """Let go once; entirely with `force`, and then of what threads hold that ended without releasing, too."""
        hold = self._mine.hold
        if hold.count:
            inside: list[bool] = []
            last, busy = False, ""
            try:
                if hold.gate is not None:
                    # Not by pass_gate: an exception as that begins would leave the lock taken.
                    inside.extend(filter(None, map(hold.gate.acquire, (True,), (0,))))
                    if not inside:
                        if self._pid != getpid():
                            return  # a fork copied the gate while another thread was in it
                        pass_gate(hold.gate, inside, -1)
                last, busy = force or hold.count == 1, hold.busy
                if self._counts_down(hold, force):
                    hold.let_go()
                    if hold.logs:
                        self._log("Lock %s released on %s")
            except BaseException:  # a signal handler's, before or while it was let go
                if last:
                    hold.busy = busy
                    if hold.count and not busy:
                        hold.let_go()
                raise
            finally:
                if inside:
                    hold.gate.release()
        if force and self._pid == getpid():
            for left in list(self._holds):
                if left.thread is not None and not left.thread.is_alive():
                    with _forcing:
                        if self._counts_down(left, True):
                            left.let_go()
                            if left.logs:
                                self._log("Lock %s released on %s")

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except BaseException as failure:
            if exc is not None:
                self._show_both("lock body and release both failed", exc, failure)
            raise


class _Proxy(AcquireReturnProxy):  # type: ignore[type-arg]
    """What `acquire` returns: leaving it leaves the lock."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        UnixFileLock.__exit__(self.lock, kind, exc, trace)  # not a subclass's, as in filelock


FileLock: TypeAlias = UnixFileLock
if SUPPORTED:
    os.register_at_fork(after_in_child=_open_gate)
    _original.UnixFileLock.register(UnixFileLock)
elif not TYPE_CHECKING:
    UnixFileLock = _original.UnixFileLock
    FileLock = _original.FileLock

__all__: list[str] = []
__all__ += _original.__all__  # of whatever version is installed


def __getattr__(name: str) -> Any:
    """The awaited locks, when asked for, as asyncio takes long to import; and whatever is not ours."""
    if name in ("AsyncFileLock", "AsyncUnixFileLock", "asyncio"):
        module = import_module(".asyncio", __name__)
        return module if name == "asyncio" else getattr(module, name)
    return getattr(_original, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
