"""Each kind of lock behind one face: `acquire` says what came of it, `held` what the object thinks, `release`."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
from pidabs.compat.filelock import AsyncFileLock, FileLock
from pidabs.compat.filelock import Timeout as FileTimeout
from pidabs.compat.lockfile.pidlockfile import AlreadyLocked, LockTimeout, PIDLockFile

from pidabs import Lock, Timeout

from .arena import ACQUIRED, CANCELLED, REFUSED, TIMED_OUT

_TIMEOUTS = (0, 0.001, 0.01, 0.05, 0.3, 10)
_LONG = 60.0
_CHECK_EVERY = 0.002


class Check:
    """A `cancel_check` that says yes after a few questions, or never."""

    def __init__(self, questions: int) -> None:
        self.left = questions
        self.said_yes = False

    def __call__(self) -> bool:
        self.left -= 1
        self.said_yes = self.said_yes or self.left == 0
        return self.said_yes


class Client:
    """Each acquire on random terms; or, if it is patient, until it gets the lock."""

    def __init__(self, path: str, dice: random.Random, patient: bool = False) -> None:
        self.path, self.dice, self.patient = path, dice, patient
        self.mirrored = dice.random() < 0.3
        self.make(path)

    def make(self, path: str) -> None:
        self.lock: Any = Lock(path, mirror=self.mirrored)

    @property
    def held(self) -> bool:
        return bool(self.lock.held)

    def terms(self) -> tuple[float, dict[str, Any]]:
        """A timeout, and perhaps a cancel_check."""
        self.check = Check(self.dice.choice((1, 3, 10)))
        if self.patient:
            return _LONG, {}
        timeout = self.dice.choice(_TIMEOUTS)
        cancelled = self.dice.random() < 0.3
        return timeout, {"cancel_check": self.check, "poll_interval": _CHECK_EVERY} if cancelled else {}

    def in_vain(self, timeout: float) -> int:
        if self.check.said_yes:
            return CANCELLED
        return TIMED_OUT if timeout else REFUSED


class Native(Client):
    def acquire(self) -> int:
        timeout, options = self.terms()
        try:
            self.lock.acquire(timeout, **options)
        except Timeout:
            return self.in_vain(timeout)
        return ACQUIRED

    def release(self) -> None:
        self.lock.release()


class PidFile(Client):
    """Without a timeout it tries once, as the original does."""

    def make(self, path: str) -> None:
        self.mirrored = True
        self.lock = PIDLockFile(path)

    def acquire(self) -> int:
        timeout, _ = self.terms()
        try:
            self.lock.acquire(timeout or self.dice.choice((None, 0)))
        except AlreadyLocked:
            return REFUSED
        except LockTimeout:
            return TIMED_OUT
        return ACQUIRED

    @property
    def held(self) -> bool:
        return bool(self.lock.i_am_locking())

    def release(self) -> None:
        self.lock.release()


class TimeoutPidFile(PidFile):
    def make(self, path: str) -> None:
        self.mirrored = True
        self.lock = TimeoutPIDLockFile(path, self.terms()[0])

    def acquire(self) -> int:
        try:
            self.lock.acquire()
        except AlreadyLocked:
            return REFUSED
        except LockTimeout:
            return TIMED_OUT
        return ACQUIRED


class File(Client):
    """filelock's: now and then taken twice, as it may be."""

    def make(self, path: str) -> None:
        self.lock = FileLock(path, mirror=self.mirrored)

    def acquire(self) -> int:
        timeout, options = self.terms()
        try:
            self.lock.acquire(timeout, blocking=timeout > 0, **options)
        except FileTimeout:
            return self.in_vain(timeout)
        if self.dice.random() < 0.1:
            with self.lock:
                pass
        return ACQUIRED

    @property
    def held(self) -> bool:
        return bool(self.lock.is_locked)

    def release(self) -> None:
        self.lock.release()


class AwaitedNative(Client):
    async def acquire(self) -> int:
        timeout, options = self.terms()
        try:
            await self.lock.acquire_async(timeout, **options)
        except Timeout:
            return self.in_vain(timeout)
        return ACQUIRED

    async def release(self) -> None:
        await self.lock.release_async()


class AwaitedFile(Client):
    def make(self, path: str) -> None:
        self.lock = AsyncFileLock(path, mirror=self.mirrored)

    async def acquire(self) -> int:
        timeout, options = self.terms()
        try:
            await self.lock.acquire(timeout, **options)
        except FileTimeout:
            return self.in_vain(timeout)
        return ACQUIRED

    @property
    def held(self) -> bool:
        return bool(self.lock.is_locked)

    async def release(self) -> None:
        await self.lock.release()


async def acquire_or_be_cancelled(client: Any, dice: random.Random) -> int:
    """`acquire` in a task of its own, which is cancelled at a random moment, or not."""
    task = asyncio.ensure_future(client.acquire())
    if dice.random() < 0.3:
        asyncio.get_running_loop().call_later(dice.choice((0, 0.0005, 0.005, 0.03)) * dice.random(), task.cancel)
    try:
        return int(await task)
    except asyncio.CancelledError:
        return CANCELLED


BLOCKING: dict[str, type[Any]] = {
    "Lock": Native,
    "PIDLockFile": PidFile,
    "TimeoutPIDLockFile": TimeoutPidFile,
    "FileLock": File,
}
AWAITED: dict[str, type[Any]] = {
    "Lock, asyncio": AwaitedNative,
    "AsyncFileLock": AwaitedFile,
}
