"""Stands in for filelock.asyncio: the same locks, awaited.  The event loop does the waiting, without a thread."""

from __future__ import annotations

import asyncio
import threading
from importlib import import_module
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import filelock as _original
from filelock import Timeout

from pidabs import AlreadyHeld, NotHeld
from pidabs import Timeout as _NotInTime

from .. import SUPPORTED
from . import UnixFileLock
from ._core import Core
from ._state import DEFAULTS, Hold, check_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from concurrent.futures import Executor
    from types import TracebackType

    from filelock import AsyncAcquireReturnProxy as AsyncAcquireReturnProxy
    from filelock import AsyncSoftFileLock as AsyncSoftFileLock
    from filelock import AsyncUnixFileLock as _AsyncBase
    from filelock import AsyncWindowsFileLock as AsyncWindowsFileLock
    from filelock import BaseAsyncFileLock as BaseAsyncFileLock
    from filelock import CloseErrorPolicy, ContextErrorPolicy
    from typing_extensions import Self

    Path = str | os.PathLike[str]
else:
    from . import _Base as _AsyncBase

    AsyncAcquireReturnProxy = getattr(_original, "AsyncAcquireReturnProxy", object)  # filelock 3.13 has none


class _Gate:
    """One task at a time takes or drops the lock of a Hold; on whichever loop, in whichever thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._closed = False
        self._waiting: list[asyncio.Future[None]] = []

    def enter(self) -> asyncio.Future[None] | None:
        """None: come in.  Else what to wait for before trying again."""
        with self._guard:
            if not self._closed:
                self._closed = True
                return None
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            return turn

    def leave(self) -> None:
        with self._guard:
            self._closed = False
            waiting, self._waiting = self._waiting, []
        for turn in waiting:
            try:
                turn.get_loop().call_soon_threadsafe(_settle, turn)
            except RuntimeError:
                pass  # its loop is closed: nobody waits any more


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


class AsyncUnixFileLock(Core, _AsyncBase):  # type: ignore[misc]
    """filelock's AsyncFileLock.  `loop`, `executor` and `run_in_executor` are kept and mean nothing."""

    _defaults: ClassVar[dict[str, Any]] = {
        **DEFAULTS,
        "thread_local": False,
        "loop": None,
        "run_in_executor": True,
        "executor": None,
    }
    _holder = "BaseAsyncFileLock instance in this task"

    def __init__(
        self,
        lock_file: Path,
        timeout: float = -1,
        mode: int = -1,
        thread_local: bool = False,
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
        loop: asyncio.AbstractEventLoop | None = None,
        run_in_executor: bool = True,
        executor: Executor | None = None,
        mirror: bool | None = None,
    ) -> None:
        if thread_local and run_in_executor:
            raise ValueError("run_in_executor is not supported when thread_local is True")
        self._set_up(lock_file, locals())

    _own_init = __init__

    async def acquire(  # type: ignore[override]
        self,
        timeout: float | None = None,
        poll_interval: float | None = None,
        *,
        blocking: bool | None = None,
        cancel_check: Callable[[], bool] | None = None,
    ) -> AsyncAcquireReturnProxy:
        """Take the lock, or once more if it is taken; returns an asynchronous context manager that releases it.

        Raises Timeout; RuntimeError if this task would wait for itself, or the lock was inherited across a fork.
        """
        hold: Hold = self._mine.hold if self._pid == getpid() else self._inherited()
        seconds = hold.seconds(timeout, blocking)
        interval = hold.interval if poll_interval is None else check_interval(poll_interval)
        gate = self._gate_of(hold)
        seconds = await self._pass(gate, seconds, interval, cancel_check)
        before = hold.count if hold.count and hold.held else 0
        try:
            if before:
                hold.count += 1
            else:
                await self._take(hold, seconds, interval, cancel_check)
            return _AsyncProxy(self)
        except BaseException:
            hold.undo(before)
            raise
        finally:
            gate.leave()

    async def _take(
        self, hold: Hold, seconds: float | None, interval: float, cancel_check: Callable[[], bool] | None
    ) -> None:
        lock = self._begin(hold)
        try:
            await lock.acquire_async(seconds, cancel_check=cancel_check, poll_interval=interval)
        except _NotInTime as exc:
            raise self._too_late(seconds) from exc
        except AlreadyHeld:
            raise self._would_deadlock() from None
        finally:
            hold.busy = ""
        hold.count = 1
        if self._hook is not None or hold.logs:
            self._is_taken(hold)

    async def _pass(
        self, gate: _Gate, seconds: float | None, interval: float, cancel_check: Callable[[], bool] | None
    ) -> float | None:
        """Wait until no other task is taking this very object's lock; returns the seconds that are left."""
        turn = gate.enter()
        if turn is None:
            return seconds
        deadline = None if seconds is None else monotonic() + seconds
        while turn is not None:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if cancel_check is not None:
                left = interval if left is None else min(interval, left)
            await asyncio.wait({turn}, timeout=left)
            if turn.done():
                turn = gate.enter()
            elif (deadline is not None and monotonic() >= deadline) or (cancel_check is not None and cancel_check()):
                turn.cancel()
                raise Timeout(self.lock_file)
        return None if deadline is None else max(0.0, deadline - monotonic())

    async def release(self, force: bool = False) -> None:  # type: ignore[override]
        """Let go once; entirely with `force`."""
        hold = self._mine.hold
        if self._pid != getpid() or not hold.count:
            return
        gate = self._gate_of(hold)
        await self._pass(gate, None, 0, None)
        try:
            if self._counts_down(hold, force) and hold.lock is not None:
                try:
                    await hold.lock.release_async()
                finally:
                    hold.count = 0
                if hold.logs:
                    self._log("Lock %s released on %s")
        except NotHeld:
            pass  # lost, as `is_locked` said
        finally:
            gate.leave()

    def _gate_of(self, hold: Hold) -> _Gate:
        gate: _Gate | None = hold.turns
        if gate is None:
            gate = hold.turns = _Gate()
        return gate

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        loop: asyncio.AbstractEventLoop | None = self._given["loop"]
        return loop

    @property
    def run_in_executor(self) -> bool:
        return bool(self._given["run_in_executor"])

    @property
    def executor(self) -> Executor | None:
        executor: Executor | None = self._given["executor"]
        return executor

    @executor.setter
    def executor(self, value: Executor | None) -> None:
        self._given["executor"] = value

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
            self._reconcile(exc, failure)
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
        await self.lock.__aexit__(kind, exc, trace)


if SUPPORTED:
    UnixFileLock.register(AsyncUnixFileLock)
    if hasattr(_original, "AsyncUnixFileLock"):
        _original.AsyncUnixFileLock.register(AsyncUnixFileLock)
    AsyncFileLock = AsyncUnixFileLock
else:
    AsyncUnixFileLock = _original.AsyncUnixFileLock  # type: ignore[misc,assignment]
    AsyncFileLock = _original.AsyncFileLock  # type: ignore[misc,assignment]


def __getattr__(name: str) -> Any:
    """Whatever is not ours; filelock 3.13 has no such module."""
    try:
        return getattr(import_module("filelock.asyncio"), name)
    except ImportError as exc:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from exc


__all__ = list(getattr(_original.asyncio, "__all__", ())) if hasattr(_original, "asyncio") else ["AsyncUnixFileLock"]


def __dir__() -> list[str]:
    return list(__all__)
