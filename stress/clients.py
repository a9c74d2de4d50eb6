"""A client takes one kind of lock on random terms, and says what came of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import kinds

from .arena import ACQUIRED, CANCELLED, REFUSED, TIMED_OUT

_TIMEOUTS = (0, 0.001, 0.01, 0.05, 0.3, 10)
_LONG = 60.0
_CHECK_EVERY = 0.002


class Check:
    """A `cancel_check` that says yes after so many questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions
        self.said_yes = False

    def __call__(self) -> bool:
        self.left -= 1
        self.said_yes = self.said_yes or self.left == 0
        return self.said_yes


class Client:
    """Each acquire on terms of its own; or, if it is patient, until it gets the lock."""

    def __init__(self, kind: str, path: str, dice: random.Random, patient: bool = False) -> None:
        self.path, self.dice, self.patient = path, dice, patient
        self.mirrored = dice.random() < 0.4
        self.face: Any = {**kinds.BLOCKING, **kinds.AWAITED}[kind](path, mirror=self.mirrored)
        self.lock: Any = self.face.lock

    @property
    def held(self) -> bool:
        return bool(self.face.held)

    def _terms(self) -> tuple[float, dict[str, Any]]:
        """A timeout, and perhaps a cancel_check."""
        self._check = Check(self.dice.choice((1, 3, 10)))
        if self.patient:
            return _LONG, {}
        timeout = self.dice.choice(_TIMEOUTS)
        if self.dice.random() < 0.7:
            return timeout, {}
        return timeout, {"cancel_check": self._check, "poll_interval": _CHECK_EVERY}

    def _outcome(self, taken: bool, timeout: float) -> int:
        if taken:
            return ACQUIRED
        if self._check.said_yes:
            return CANCELLED
        return TIMED_OUT if timeout else REFUSED

    def acquire(self) -> int:
        timeout, options = self._terms()
        taken = self.face.acquire(timeout, **options)
        if taken and isinstance(self.face, kinds.File) and self.dice.random() < 0.1:
            with self.lock:  # once more, as one may
                pass
        return self._outcome(taken, timeout)

    def release(self) -> None:
        self.face.release()

    async def acquire_async(self) -> int:
        timeout, options = self._terms()
        return self._outcome(await self.face.acquire(timeout, **options), timeout)

    async def release_async(self) -> None:
        await self.face.release()

    async def acquire_or_be_cancelled(self) -> int:
        """In a task of its own, which is cancelled at a random moment, or not."""
        task = asyncio.ensure_future(self.acquire_async())
        if self.dice.random() < 0.3:
            seconds = self.dice.choice((0, 0.0005, 0.005, 0.03)) * self.dice.random()
            asyncio.get_running_loop().call_later(seconds, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            return CANCELLED
