"""From the moment before release() in one process to the moment after acquire() in another, by the clock that both
share.  The waiter is known to be asleep before; who polls is then let sleep for a random part of its longest pause.

The holder and the waiter run on two CPUs, or both on one, or wherever the scheduler puts them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from functools import partial
from typing import TYPE_CHECKING

from .children import Line, Troop, Worker
from .machine import two_cpus
from .peers import LOCK, PEERS, Make, Mutex, Peer
from .session import Session, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "handoff"
TWO, ONE, FREE = "on two CPUs", "on one CPU", "where the scheduler puts them"
ASYNC = f"{LOCK.name}, asyncio"


class Handoff:
    """A waiter, and our own lock of the same path."""

    def __init__(self, troop: Troop, make: Make, path: str, pause: float, cpus: set[int], async_: bool = False) -> None:
        work = _wait_async if async_ else _wait
        self._waiter: Worker = troop.start(lambda line: work(line, make(path)), cpus)
        self._make = make
        self._path = path
        self._pause = pause

    def prepare(self) -> None:
        """Make our lock: after all children are forked, which else had its descriptors."""
        self._lock = self._make(self._path)

    def sample(self) -> float:
        """Microseconds of one."""
        self._lock.acquire()
        self._waiter.tell()
        self._waiter.until_asleep()
        if self._pause:
            time.sleep(random.uniform(0, self._pause))
        let_go = time.monotonic_ns()
        self._lock.release()
        return (self._waiter.hear() - let_go) / 1e3

    def samples(self, count: int) -> list[float]:
        return [self.sample() for _ in range(count)]


def _wait(line: Line, lock: Mutex) -> None:
    while line.listen():
        lock.acquire()
        got = time.monotonic_ns()
        lock.release()
        line.say(got)


def _wait_async(line: Line, lock: Mutex) -> None:
    async def work() -> None:
        while line.listen():
            await lock.acquire_async()  # type: ignore[attr-defined]
            got = time.monotonic_ns()
            await lock.release_async()  # type: ignore[attr-defined]
            line.say(got)

    asyncio.run(work())


def measure(session: Session) -> None:
    everywhere = os.sched_getaffinity(0)
    here, there = two_cpus()
    waiting = session.present(peer for peer in PEERS if peer.waits)
    asleep = [peer for peer in waiting if not peer.longest_pause]
    gc.disable()
    try:
        for case, ours, theirs, peers in (
            (TWO, here, there, waiting),
            (ONE, here, here, asleep),
            (FREE, everywhere, everywhere, asleep),
        ):
            os.sched_setaffinity(0, ours)
            _series(session, case, theirs, peers)
    finally:
        gc.enable()
        os.sched_setaffinity(0, everywhere)


def _series(session: Session, case: str, cpus: set[int], peers: list[Peer]) -> None:
    rounds = session.pick(12, 1)
    with Troop() as troop:
        pairs: dict[str, Handoff] = {}
        subjects: dict[str, Callable[[], list[float]]] = {}
        for peer in peers:
            pairs[peer.name] = Handoff(troop, session.make(peer), session.path(), peer.longest_pause, cpus)
            count = session.pick(6, 1) if peer.longest_pause else session.pick(100, 5)
            subjects[peer.name] = partial(pairs[peer.name].samples, count)
        if LOCK in peers:
            pairs[ASYNC] = Handoff(troop, session.make(LOCK), session.path(), 0.0, cpus, async_=True)
            subjects[ASYNC] = partial(pairs[ASYNC].samples, session.pick(100, 5))
        for pair in pairs.values():
            pair.prepare()
        for subject, found in take_turns(subjects, rounds).items():
            made = session.add(NAME, subject, case, "us", found)
            if made is not None:
                made.note = next((peer.waits for peer in peers if peer.name == subject), "in the queue")
