"""Stands in for filelock.asyncio: the same locks, awaited.  The event loop does the waiting, without a thread."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from functools import partial
from importlib import import_module
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import filelock as _original
from filelock import Timeout

from pidabs import AlreadyHeld, Lock, NotHeld
from pidabs import Timeout as _NotInTime

from .. import SUPPORTED
from . import UnixFileLock
from ._classes import base_of
from ._core import INTERVAL, UNSET_MODE, Core
from ._hold import Hold, checked

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeAlias

    from filelock import AsyncAcquireReturnProxy as AsyncAcquireReturnProxy
    from filelock import AsyncSoftFileLock as AsyncSoftFileLock
    from filelock import AsyncWindowsFileLock as AsyncWindowsFileLock
    from filelock import BaseAsyncFileLock as BaseAsyncFileLock
    from typing_extensions import Self

    from ._core import CancelCheck, Path

    class _AsyncBase(Core, _original.AsyncUnixFileLock): ...

else:
    _OWN = {"loop": None, "run_in_executor": True, "executor": None}
    _AsyncBase = base_of(getattr(_original, "AsyncUnixFileLock", Core._original), **_OWN)
    AsyncAcquireReturnProxy = getattr(_original, "AsyncAcquireReturnProxy", object)  # filelock 3.13 has neither


class _Gate:
    """One task at a time takes or drops the lock of a Hold; on whichever loop, in whichever thread."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a finalizer, or what a tracing function left, may be on top of us
        self._inside: object = None
        self._waiting: list[asyncio.Future[None]] = []

    def enter(self, me: object) -> asyncio.Future[None] | None:
        """None: come in.  Else what to wait for before trying again."""
        with self._guard:
            if self._inside is None:
                self._inside = me
                return None
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            return turn

    def leave(self, me: object) -> None:
        """Does nothing for whoever is not inside: a signal handler may have raised just before, or after, `enter`."""
        with self._guard:
            if self._inside is not me:
                return
            self._inside = None
            waiting, self._waiting = self._waiting, []
        for turn in waiting:
            try:
                turn.get_loop().call_soon_threadsafe(_settle, turn)
            except RuntimeError:
                pass  # its loop is closed: nobody waits any more


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


class AsyncUnixFileLock(_AsyncBase):
    """filelock's AsyncFileLock.  `executor` runs `on_acquired`, and means nothing otherwise, as does `loop`."""

    _thread_local: ClassVar[bool] = False
    _holder: ClassVar[str] = "BaseAsyncFileLock instance in this task"

    def __init__(
        self,
        lock_file: Path,
        timeout: float = -1,
        mode: int = UNSET_MODE,
        thread_local: bool = False,
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

    @staticmethod
    def _new_gate(shared: bool) -> Any:
        return _Gate()

    async def acquire(  # type: ignore[override]
        self,
        timeout: float | None = None,
        poll_interval: float | None = None,
        *,
        blocking: bool | None = None,
        cancel_check: CancelCheck | None = None,
    ) -> AsyncAcquireReturnProxy:
        """Take the lock, or once more if it is taken; returns an asynchronous context manager that releases it.

        Raises Timeout; RuntimeError if this task would wait for itself, or the lock was inherited across a fork.
        """
        hold: Hold = self._mine.hold if self._pid == getpid() else self._inherited()
        seconds = hold.seconds(timeout, blocking)
        interval = hold.interval if poll_interval is None else checked("poll_interval", poll_interval)
        if seconds != seconds:
            raise ValueError("timeout must be a number of seconds, not nan")
        gate, me, before = hold.gate, object(), -1
        try:
            try:
                seconds = await self._pass(gate, me, seconds, interval, cancel_check)
                before = hold.count if hold.count and hold.held else 0
                if before:
                    hold.count += 1
                else:
                    await self._take(hold, seconds, interval, cancel_check)
                return _AsyncProxy(self)
            except BaseException:
                if before >= 0:
                    hold.busy = ""  # a signal handler's may have struck where that is set or cleared
                    hold.undo(before)
                raise
            finally:
                gate.leave(me)
        except BaseException:
            gate.leave(me)  # for a signal handler's that struck before the other could begin
            raise

    async def _take(self, hold: Hold, seconds: float | None, interval: float, cancel_check: CancelCheck | None) -> None:
        lock = self._begin(hold)
        if hold.logs:
            cancel_check, interval = self._noting(hold, cancel_check, interval)
        try:
            await lock.acquire_async(seconds, cancel_check=cancel_check, poll_interval=interval)
        except _NotInTime as exc:
            raise self._too_late(hold, seconds) from exc
        except AlreadyHeld:
            raise self._would_deadlock() from None
        finally:
            hold.busy = ""
        hold.count = 1
        if self._hook is not None:
            await self._call(self._hook, lock.fileno())
        if hold.logs:
            self._log("Lock %s acquired on %s")

    async def _call(self, hook: Callable[[int], None], fd: int) -> None:
        if not self.run_in_executor:
            hook(fd)
            return
        call = asyncio.get_running_loop().run_in_executor(self.executor, partial(copy_context().run, hook, fd))
        cancelled = None
        while not call.done():
            try:
                await asyncio.wait({call})
            except asyncio.CancelledError as exc:  # it has the lock's descriptor, and we cannot stop it
                cancelled = cancelled or exc
        failure = RuntimeError("the executor was shut down") if call.cancelled() else call.exception()
        if cancelled is None or failure is None:
            failure = cancelled or failure
        else:
            self._show_both("acquire was cancelled, and on_acquired failed", cancelled, failure)
            cancelled.__context__, failure.__context__ = failure.__context__, cancelled
        if failure is not None:
            raise failure

    async def _pass(
        self, gate: _Gate, me: object, seconds: float | None, interval: float, cancel_check: CancelCheck | None
    ) -> float | None:
        """Wait until no other task is taking this very object's lock; returns the seconds that are left."""
        turn = gate.enter(me)
        if turn is None:
            return seconds
        deadline = None if seconds is None else monotonic() + seconds
        while turn is not None:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if cancel_check is not None:
                left = interval if left is None else min(interval, left)
            await asyncio.wait({turn}, timeout=left)
            if turn.done():
                turn = gate.enter(me)
            elif (deadline is not None and monotonic() >= deadline) or (cancel_check is not None and cancel_check()):
                turn.cancel()
                raise Timeout(self.lock_file)
        return None if deadline is None else max(0.0, deadline - monotonic())

    async def release(self, force: bool = False) -> None:  # type: ignore[override]
        """Let go once; entirely with `force`."""
        hold = self._mine.hold
        if self._pid != getpid() or not hold.count:
            return
        gate, me, last = hold.gate, object(), False
        try:
            try:
                await self._pass(gate, me, None, 0, None)
                last = force or hold.count == 1
                if self._counts_down(hold, force) and hold.lock is not None:
                    await self._let_go(hold, hold.lock)
            except BaseException:
                if last and hold.count:  # a signal handler's, or a log handler's, struck before that could begin
                    hold.let_go()
                raise
            finally:
                gate.leave(me)
        except BaseException:
            gate.leave(me)  # as above
            raise

    async def _let_go(self, hold: Hold, lock: Lock) -> None:
        try:
            await lock.release_async()
        except NotHeld:
            pass  # lost, as `is_locked` said
        finally:
            if not lock.held:  # else it was interrupted before it could begin
                hold.count = 0
        if hold.logs:
            self._log("Lock %s released on %s")

    def __enter__(self) -> Any:
        raise NotImplementedError("Use `async with`: acquire and release are coroutines.")

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError("Use `async with`: acquire and release are coroutines.")

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except BaseException as failure:
            if exc is not None:
                self._show_both("lock body and release both failed", exc, failure)
            raise


class _AsyncProxy(AsyncAcquireReturnProxy):
    """What `acquire` returns: leaving it leaves the lock."""

    def __init__(self, lock: AsyncUnixFileLock) -> None:
        self.lock = lock

    async def __aenter__(self) -> Any:
        return self.lock

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await AsyncUnixFileLock.__aexit__(self.lock, kind, exc, trace)  # type: ignore[arg-type]  # not a subclass's


AsyncFileLock: TypeAlias = AsyncUnixFileLock
if SUPPORTED:
    UnixFileLock.register(AsyncUnixFileLock)
    if hasattr(_original, "AsyncUnixFileLock"):
        _original.AsyncUnixFileLock.register(AsyncUnixFileLock)
elif not TYPE_CHECKING:
    AsyncUnixFileLock = _original.AsyncUnixFileLock
    AsyncFileLock = _original.AsyncFileLock


def __getattr__(name: str) -> Any:
    """Whatever is not ours; filelock 3.13 has no such module."""
    try:
        return getattr(import_module("filelock.asyncio"), name)
    except ImportError as exc:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from exc


__all__ = list(getattr(_original.asyncio, "__all__", ())) if hasattr(_original, "asyncio") else ["AsyncUnixFileLock"]


def __dir__() -> list[str]:
    return list(__all__)
