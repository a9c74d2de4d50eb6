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
from filelock import AcquireReturnProxy, Timeout

from pidabs import AlreadyHeld
from pidabs import Timeout as _NotInTime

from .. import SUPPORTED
from ._core import INTERVAL, UNSET_MODE, Core, canonical, shown_of
from ._hold import Hold, checked

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


class _Meta(ABCMeta):
    """What neither __new__ nor __init__ can do: hand out a singleton without initialising it again, and call a
    subclass's narrower __init__, as virtualenv has it, without the options that it does not take."""

    _original: Any
    _later: dict[str, Any]

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace, **options)
        taken = signature(cls.__init__).parameters  # type: ignore[misc]
        cls._narrow = all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in taken.values()) and taken.keys()
        if "_original" not in namespace:  # one of its own, with the same name for messages, and singletons of its own
            cls._original = type(cls._original)(name, (cls._original,), {})

    def __call__(cls, lock_file: Path, *args: Any, **options: Any) -> Any:
        if cls._narrow:
            options = cls._without_defaults(options, cls._narrow)
        if options.get("lifetime") is not None:
            cls._ignore_lifetime(options.pop("lifetime"))  # type: ignore[attr-defined]
        if not options.get("is_singleton"):
            return super().__call__(lock_file, *args, **options)
        with _singletons_gate:
            key = (cls, getpid(), canonical(lock_file))
            found = _singletons.get(key)
            if found is None or not found._is_now(key[2]):
                found = _singletons[key] = super().__call__(lock_file, *args, **options)
            else:
                _ = found._options  # with which filelock compares what is wanted, as this, too, is a singleton
                known = signature(cls._original.__init__).parameters
                ours = cls.__module__.startswith(__name__)  # else it may well take options of its own
                wanted = (name for name in options if name in known or (ours and name not in ("mirror", "interop")))
                cls._original(lock_file, *args, **{name: options[name] for name in wanted})
        return found

    def _without_defaults(cls, options: dict[str, Any], taken: Any) -> dict[str, Any]:
        parameters = signature(cls._original.__init__).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()} | cls._later
        unknown = [name for name in sorted(options.keys() - taken) if options[name] != defaults.get(name, ...)]
        if unknown:
            raise TypeError(f"{cls.__name__} does not support non-default lock options: {', '.join(unknown)}")
        return {name: value for name, value in options.items() if name in taken}


_singletons: WeakValueDictionary[tuple[type, int, str], Any] = WeakValueDictionary()
_singletons_gate = RLock()
_forcing = RLock()


def _open_gate() -> None:
    """In a forked child: another thread of the parent may have been inside."""
    global _forcing, _singletons_gate
    _forcing = _singletons_gate = RLock()


def base_of(original: Any, **later: Any) -> Any:
    """For a class of ours that stands in for this one of filelock's."""
    return _Meta("_Base", (Core, ContextDecorator), shown_of(original, later))


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
        gate = hold.gate
        if gate is not None and not gate.acquire(False):
            seconds = self._pass(gate, seconds, interval, cancel_check)
        before, busy = hold.count if hold.count and hold.held else 0, hold.busy
        try:
            if before:
                hold.count += 1
            else:
                self._take(hold, seconds, interval, cancel_check)
            return _Proxy(self)
        except BaseException:
            hold.busy = busy  # a signal handler's exception may have struck where it is set or cleared
            hold.undo(before)
            raise
        finally:
            if gate is not None:
                gate.release()

    def _take(self, hold: Hold, seconds: float | None, interval: float, cancel_check: CancelCheck | None) -> None:
        lock = self._begin(hold)
        if hold.logs:
            cancel_check, interval = self._noting(cancel_check, interval)
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
        if hold.logs:
            self._log("Lock %s acquired on %s")
        if self._hook is not None:
            self._hook(lock.fileno())  # which may take it once more

    def _pass(
        self, gate: Any, seconds: float | None, interval: float, cancel_check: CancelCheck | None
    ) -> float | None:
        """Wait until no other thread is taking this very object's lock; returns the seconds that are left."""
        deadline = None if seconds is None else monotonic() + seconds
        while True:
            left = -1 if deadline is None else max(0, deadline - monotonic())
            if cancel_check is not None:
                left = interval if left < 0 else min(interval, left)
            if gate.acquire(timeout=left):
                return None if deadline is None else max(0, deadline - monotonic())
            if (deadline is not None and monotonic() >= deadline) or (cancel_check is not None and cancel_check()):
                raise Timeout(self.lock_file)

    def release(self, force: bool = False) -> None:
        """Let go once; entirely with `force`, and then of what threads hold that ended without releasing, too."""
        hold = self._mine.hold
        if hold.count:
            gate = hold.gate
            if gate is not None and not gate.acquire(False):
                if self._pid != getpid():
                    return  # a fork copied the gate while another thread was in it
                gate.acquire()
            last, busy = force or hold.count == 1, hold.busy
            try:
                if self._counts_down(hold, force):
                    hold.let_go()
                    if hold.logs:
                        self._log("Lock %s released on %s")
            except BaseException:  # a signal handler's, before or while it was let go
                hold.busy = busy
                if last and hold.count and not busy:
                    hold.let_go()
                raise
            finally:
                if gate is not None:
                    gate.release()
        if force and self._pid == getpid():
            for left in list(self._holds):
                if left.thread is not None and not left.thread.is_alive():
                    with _forcing:
                        if left.count:
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
            if exc is not None:
                self._show_both("lock body and release both failed", exc, failure)
            raise


class _Proxy(AcquireReturnProxy):  # type: ignore[type-arg]
    """What `acquire` returns: leaving it leaves the lock."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.__exit__(kind, exc, trace)


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
