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

from abc import ABCMeta
from contextlib import ContextDecorator
from importlib import import_module
from inspect import Parameter, signature
from os import getpid
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Any
from warnings import warn
from weakref import WeakValueDictionary

import filelock as _original
from filelock import AcquireReturnProxy as AcquireReturnProxy
from filelock import Timeout as Timeout

from pidabs import AlreadyHeld
from pidabs import Timeout as _NotInTime

from .. import SUPPORTED
from ._core import Core, canonical
from ._state import DEFAULTS, POSITIONAL, Hold, check_interval, check_options, same

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType

    # For type checkers our classes are subclasses of filelock's, and its other names are all here.
    from filelock import AsyncAcquireReadWriteReturnProxy as AsyncAcquireReadWriteReturnProxy
    from filelock import AsyncAcquireReturnProxy as AsyncAcquireReturnProxy
    from filelock import AsyncAcquireSoftReadWriteReturnProxy as AsyncAcquireSoftReadWriteReturnProxy
    from filelock import AsyncReadWriteLock as AsyncReadWriteLock
    from filelock import AsyncSoftFileLease as AsyncSoftFileLease
    from filelock import AsyncSoftFileLock as AsyncSoftFileLock
    from filelock import AsyncSoftReadWriteLock as AsyncSoftReadWriteLock
    from filelock import AsyncStrictSoftFileLock as AsyncStrictSoftFileLock
    from filelock import AsyncWindowsFileLock as AsyncWindowsFileLock
    from filelock import BaseAsyncFileLock as BaseAsyncFileLock
    from filelock import BaseFileLock as BaseFileLock
    from filelock import CloseErrorPolicy as CloseErrorPolicy
    from filelock import CompromiseReason as CompromiseReason
    from filelock import ContextErrorPolicy as ContextErrorPolicy
    from filelock import LeaseCompromise as LeaseCompromise
    from filelock import LeaseSettingsMismatch as LeaseSettingsMismatch
    from filelock import LockOptions as LockOptions
    from filelock import MarkerSoftFileLock as MarkerSoftFileLock
    from filelock import OwnerMode as OwnerMode
    from filelock import OwnerRecord as OwnerRecord
    from filelock import ReadWriteLock as ReadWriteLock
    from filelock import SoftFileLease as SoftFileLease
    from filelock import SoftFileLock as SoftFileLock
    from filelock import SoftFileLockLifetimeWarning as SoftFileLockLifetimeWarning
    from filelock import SoftFileLockProtocolError as SoftFileLockProtocolError
    from filelock import SoftReadWriteLock as SoftReadWriteLock
    from filelock import StrictSoftFileClaim as StrictSoftFileClaim
    from filelock import StrictSoftFileClaimState as StrictSoftFileClaimState
    from filelock import StrictSoftFileLock as StrictSoftFileLock
    from filelock import UnixFileLock as _Base
    from filelock import WindowsFileLock as WindowsFileLock
    from filelock import __version__ as __version__
    from filelock import has_fcntl as has_fcntl
    from filelock import lock_descriptor as lock_descriptor
    from filelock import unlock_descriptor as unlock_descriptor
    from typing_extensions import Self

    from . import asyncio as asyncio
    from .asyncio import AsyncFileLock as AsyncFileLock
    from .asyncio import AsyncUnixFileLock as AsyncUnixFileLock

    Path = str | os.PathLike[str]


class _Meta(ABCMeta):
    """What neither __new__ nor __init__ can do: hand out a singleton without initialising it again, and call a
    subclass's narrower __init__, as virtualenv has it, without the options that it does not take."""

    def __call__(cls, lock_file: Path, *args: Any, **options: Any) -> Any:
        given = dict(zip(POSITIONAL, args, strict=False))
        if cls.__init__ is not cls._own_init:  # type: ignore[attr-defined,misc]
            options = _without_defaults(cls, options)
        if not {**given, **options}.get("is_singleton"):
            return super().__call__(lock_file, *args, **options)
        signature(cls.__init__).bind(None, lock_file, *args, **options)  # type: ignore[misc]
        wanted = check_options({**cls._defaults, **given, **options}, cls.__name__, 3)  # type: ignore[attr-defined]
        name = canonical(lock_file)
        with _singletons_gate:
            found = _singletons.get((cls, name))
            if found is None or not found._is_now(name):
                found = _singletons[cls, name] = super().__call__(lock_file, *args, **options)
            else:
                _check_same(found._options(), wanted)
        return found


_singletons: WeakValueDictionary[tuple[type, str], Any] = WeakValueDictionary()
_singletons_gate = RLock()


def _without_defaults(cls: Any, options: dict[str, Any]) -> dict[str, Any]:
    taken = signature(cls.__init__).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in taken.values()):
        return options
    foreign = options.keys() - taken.keys()
    unknown = [name for name in sorted(foreign) if options[name] != cls._defaults.get(name, ...)]
    if unknown:
        raise TypeError(f"{cls.__name__} does not support non-default lock options: {', '.join(unknown)}")
    return {name: value for name, value in options.items() if name not in foreign}


def _check_same(existing: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [name for name in existing if not same(name, existing[name], wanted[name])]
    if differing:
        lines = [f"\n\t{name} (existing lock has {existing[name]} but {wanted[name]} was passed)" for name in differing]
        reason = "Singleton lock instances cannot be initialized with differing arguments\nNon-matching arguments: "
        raise ValueError(reason + "".join(lines))


if not TYPE_CHECKING:
    _Base = _Meta("_Base", (ContextDecorator,), {"_defaults": DEFAULTS, "_own_init": None})


class UnixFileLock(Core, _Base):  # type: ignore[misc]
    """filelock's FileLock.  `poll_interval` is how often `cancel_check` is called, and means nothing otherwise."""

    def __init__(
        self,
        lock_file: Path,
        timeout: float = -1,
        mode: int = -1,
        thread_local: bool = True,
        *,
        blocking: bool = True,
        is_singleton: bool = False,
        poll_interval: float = 0.05,
        lifetime: float | None = None,
        context_error_policy: ContextErrorPolicy = "chain",
        close_error_policy: CloseErrorPolicy = "default",
        fallback_to_soft: bool = True,
        preserve_lock_file: bool = False,
        on_acquired: Callable[[int], None] | None = None,
        mirror: bool | None = None,
    ) -> None:
        self._set_up(lock_file, locals())

    _own_init = __init__

    def acquire(
        self,
        timeout: float | None = None,
        poll_interval: float | None = None,
        *,
        poll_intervall: float | None = None,
        blocking: bool | None = None,
        cancel_check: Callable[[], bool] | None = None,
    ) -> AcquireReturnProxy[Self]:
        """Take the lock, or once more if it is taken; returns a context manager that releases it.

        Raises Timeout; RuntimeError if this thread would wait for itself, or the lock was inherited across a fork.
        """
        if poll_intervall is not None:
            warn("use poll_interval instead of poll_intervall", DeprecationWarning, stacklevel=2)
            poll_interval = poll_intervall
        hold: Hold = self._mine.hold if self._pid == getpid() else self._inherited()
        seconds = hold.wait if timeout is None and blocking is None else hold.seconds(timeout, blocking)
        if seconds != seconds:  # a default of NaN, which is an error only for a call that waits
            seconds = hold.seconds(None, None)
        interval = hold.interval if poll_interval is None else check_interval(poll_interval)
        if not hold.gate.acquire(False):
            seconds = self._pass(hold, seconds, interval, cancel_check)
        before = hold.count if hold.count and hold.held else 0
        try:
            if before:
                hold.count += 1
            else:
                self._take(hold, seconds, interval, cancel_check)
            return _Proxy(self)
        except BaseException:
            hold.undo(before)
            raise
        finally:
            hold.gate.release()

    def _take(
        self, hold: Hold, seconds: float | None, interval: float, cancel_check: Callable[[], bool] | None
    ) -> None:
        lock = self._begin(hold)
        try:
            if cancel_check is None:
                lock.acquire(seconds)
            else:
                lock.acquire(seconds, cancel_check=cancel_check, poll_interval=interval)
        except _NotInTime as exc:
            raise self._too_late(seconds) from exc
        except AlreadyHeld:
            raise self._would_deadlock() from None
        finally:
            hold.busy = ""
        hold.count = 1
        if self._hook is not None or hold.logs:
            self._is_taken(hold)

    def _pass(
        self, hold: Hold, seconds: float | None, interval: float, cancel_check: Callable[[], bool] | None
    ) -> float | None:
        """Wait until no other thread is taking this very object's lock; returns the seconds that are left."""
        deadline = None if seconds is None else monotonic() + seconds
        while True:
            left = -1 if deadline is None else max(0, deadline - monotonic())
            if cancel_check is not None:
                left = interval if left < 0 else min(interval, left)
            if hold.gate.acquire(timeout=left):
                return None if deadline is None else max(0, deadline - monotonic())
            if (deadline is not None and monotonic() >= deadline) or (cancel_check is not None and cancel_check()):
                raise Timeout(self.lock_file)

    def release(self, force: bool = False) -> None:
        """Let go once; entirely with `force`, and then of what threads hold that ended without releasing, too."""
        hold = self._mine.hold
        if hold.count:
            if not hold.gate.acquire(False):
                if self._pid != getpid():
                    return  # a fork copied the gate while another thread was in it
                hold.gate.acquire()
            last = force or hold.count == 1
            try:
                if self._counts_down(hold, force):
                    hold.let_go()
                    if hold.logs:
                        self._log("Lock %s released on %s")
            except BaseException:  # a signal handler's, before or while it was let go
                if last and hold.count and not hold.busy:
                    hold.let_go()
                raise
            finally:
                hold.gate.release()
        if force and self._pid == getpid():
            for left in list(self._holds):
                if left.count and left.thread is not None and not left.thread.is_alive():
                    with left.gate:
                        left.let_go()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except BaseException as failure:
            self._reconcile(exc, failure)
            raise


class _Proxy(AcquireReturnProxy):  # type: ignore[type-arg]
    """What `acquire` returns: leaving it leaves the lock."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.__exit__(kind, exc, trace)


if SUPPORTED:
    _original.UnixFileLock.register(UnixFileLock)
    FileLock = UnixFileLock
else:
    UnixFileLock = _original.UnixFileLock  # type: ignore[misc,assignment]
    FileLock = _original.FileLock  # type: ignore[misc,assignment]

__all__ = list(_original.__all__)  # of whatever version is installed


def __getattr__(name: str) -> Any:
    """The awaited locks, when asked for, as asyncio takes long to import; and whatever is not ours."""
    if name in ("AsyncFileLock", "AsyncUnixFileLock", "asyncio"):
        module = import_module(".asyncio", __name__)
        return module if name == "asyncio" else getattr(module, name)
    return getattr(_original, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
