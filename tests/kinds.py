"""Each kind of lock behind one face, for tests that run over all of them; stress/ uses it, too.

`acquire` says whether the lock was taken in time; `held` what the object thinks.  Those that are awaited have
coroutines instead; `Driven` has an event loop run them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from filelock import Timeout as FileTimeout
from lockfile import AlreadyLocked, LockTimeout
from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
from pidabs.compat.filelock import AsyncFileLock, FileLock
from pidabs.compat.lockfile import LockFile
from pidabs.compat.lockfile.pidlockfile import PIDLockFile

from pidabs import Lock, Timeout

_FOR_EVER = 6.0  # seconds; no test has it wait so long


class Native:
    def __init__(self, path: str, mirror: bool = False) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = Lock(path, mirror=mirror)

    def acquire(self, timeout: float | None = None, **options: Any) -> bool:
        try:
            self.lock.acquire(timeout, **options)
        except Timeout:
            return False
        return True

    @property
    def held(self) -> bool:
        return bool(self.lock.held)

    def release(self) -> None:
        self.lock.release()


class PidFile:
    """Without a timeout it tries once, as the original does; `options` mean nothing to it."""

    def __init__(self, path: str, mirror: bool = True) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = PIDLockFile(path, mirror=mirror)

    def acquire(self, timeout: float | None = None, **options: Any) -> bool:
        try:
            self._acquire(timeout)
        except (AlreadyLocked, LockTimeout):
            return False
        return True

    def _acquire(self, timeout: float | None) -> None:
        self.lock.acquire(timeout)

    @property
    def held(self) -> bool:
        return bool(self.lock.i_am_locking())

    def release(self) -> None:
        self.lock.release()


class TimeoutPidFile(PidFile):
    lock: TimeoutPIDLockFile

    def __init__(self, path: str, mirror: bool = True) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = TimeoutPIDLockFile(path, mirror=mirror)

    def _acquire(self, timeout: float | None) -> None:
        self.lock.acquire_timeout = timeout
        self.lock.acquire()


class _LockFile(LockFile):
    """Under the name that the other kinds have, and with their mirror."""

    def __init__(self, path: str, mirror: bool) -> None:
        self._mirror = mirror
        super().__init__(path)
        self._start(path)

    def _make_lock(self, path: str) -> Lock:
        return Lock(path, mirror=self._mirror)


class NamedFile:
    """lockfile's LockFile; `options` mean nothing to it."""

    def __init__(self, path: str, mirror: bool = False) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = _LockFile(path, mirror)

    def acquire(self, timeout: float | None = None, **options: Any) -> bool:
        self.lock.timeout = timeout
        try:
            self.lock.acquire()
        except (AlreadyLocked, LockTimeout):
            return False
        return True

    @property
    def held(self) -> bool:
        return bool(self.lock.i_am_locking())

    def release(self) -> None:
        self.lock.release()


class File:
    def __init__(self, path: str, mirror: bool = False) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = FileLock(path, mirror=mirror)

    def acquire(self, timeout: float | None = None, **options: Any) -> bool:
        try:
            self.lock.acquire(-1 if timeout is None else timeout, **options)
        except FileTimeout:
            return False
        return True

    @property
    def held(self) -> bool:
        return bool(self.lock.is_locked)

    def release(self) -> None:
        self.lock.release()


class AwaitedNative(Native):
    async def acquire(self, timeout: float | None = None, **options: Any) -> bool:  # type: ignore[override]
        try:
            await self.lock.acquire_async(timeout, **options)
        except Timeout:
            return False
        return True

    async def release(self) -> None:  # type: ignore[override]
        await self.lock.release_async()


class AwaitedFile:
    def __init__(self, path: str, mirror: bool = False) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = AsyncFileLock(path, mirror=mirror)

    async def acquire(self, timeout: float | None = None, **options: Any) -> bool:
        try:
            await self.lock.acquire(-1 if timeout is None else timeout, **options)
        except FileTimeout:
            return False
        return True

    @property
    def held(self) -> bool:
        return bool(self.lock.is_locked)

    async def release(self) -> None:
        await self.lock.release()


class Driven:
    """An awaited lock, run by an event loop of its own.  Raises asyncio.TimeoutError where it hangs."""

    kind: type[Any]

    def __init__(self, path: str, mirror: bool = False) -> None:
        self.awaited = self.kind(path, mirror)
        self.path, self.mirrored = path, mirror
        self.loop = asyncio.new_event_loop()

    def acquire(self, timeout: float | None = None, **options: Any) -> bool:
        return bool(self._run(self.awaited.acquire(timeout, **options)))

    @property
    def held(self) -> bool:
        return bool(self.awaited.held)

    def release(self) -> None:
        self._run(self.awaited.release())

    def _run(self, coroutine: Coroutine[Any, Any, object]) -> object:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, _FOR_EVER))

    def close(self) -> None:
        self.loop.close()


class DrivenNative(Driven):
    kind = AwaitedNative


class DrivenFile(Driven):
    kind = AwaitedFile


class InteropPidFile(PidFile):
    def __init__(self, path: str, mirror: bool = True) -> None:
        self.path, self.mirrored = path, True
        self.lock = PIDLockFile(path, interop=True)


class InteropFile(File):
    leaves_file = True

    def __init__(self, path: str, mirror: bool = False) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = FileLock(path, mirror=mirror, interop=True)


class AwaitedInteropFile(AwaitedFile):
    def __init__(self, path: str, mirror: bool = False) -> None:
        self.path, self.mirrored = path, mirror
        self.lock = AsyncFileLock(path, mirror=mirror, interop=True)


class DrivenInteropFile(Driven):
    kind = AwaitedInteropFile
    leaves_file = True


BLOCKING: dict[str, type[Any]] = {
    "Lock": Native,
    "PIDLockFile": PidFile,
    "TimeoutPIDLockFile": TimeoutPidFile,
    "LockFile": NamedFile,
    "FileLock": File,
}
AWAITED: dict[str, type[Any]] = {"Lock, asyncio": AwaitedNative, "AsyncFileLock": AwaitedFile}
INTEROP: dict[str, type[Any]] = {
    "PIDLockFile, interop": InteropPidFile,
    "FileLock, interop": InteropFile,
    "AsyncFileLock, interop": DrivenInteropFile,
}
ALL: dict[str, type[Any]] = {**BLOCKING, "Lock, asyncio": DrivenNative, "AsyncFileLock": DrivenFile, **INTEROP}
