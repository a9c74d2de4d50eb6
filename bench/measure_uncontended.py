"""Acquire and release of a lock that nobody else wants: microseconds for each pair, on one CPU, without garbage
collection.  Each sample is the mean of a batch.  The floor is what the kernel asks for the socket alone.
"""

from __future__ import annotations

import _socket
import asyncio
import gc
import os
import time
from collections.abc import Callable
from functools import partial

from .floor import ProtocolAndFile
from .machine import two_cpus
from .peers import (
    FLOCK,
    LOCK,
    OFD,
    OUR_FILE_LOCK,
    OUR_PID_LOCK_FILE,
    PEERS,
    PROTOCOL,
    Make,
    Mutex,
    OpenedFlock,
    lock,
    our_file_lock,
    our_pid_lock_file,
)
from .session import Session, take_turns

NAME = "uncontended"
FLOOR = "bare system calls"
FLOOR_WITH_FILE = f"{PROTOCOL.name}, PID file"
WARM_UP = 5
BATCH = 0.001
"""Seconds, at the most."""
ONE, NEW = "one object", "a new object each time"


def measure(session: Session) -> None:
    count, rounds = session.pick(50, 5), session.pick(150, 2)
    kept: dict[str, Callable[[], list[float]]] = {FLOOR: partial(timed, _bare, count)}
    for peer in session.present(PEERS):
        kept[peer.name] = partial(timed, partial(repeat, session.make(peer)(session.path())), count)
    kept[FLOOR_WITH_FILE] = partial(timed, partial(repeat, ProtocolAndFile(session.path())), count)
    kept["flock(2), opened each time"] = partial(timed, partial(repeat, OpenedFlock(session.path())), count)
    if session.present([LOCK]):
        kept[f"{LOCK.name}, mirror"] = partial(timed, partial(repeat, lock(mirror=True)(session.path())), count)
        kept[f"{LOCK.name}, asyncio"] = partial(_async_pairs, lock()(session.path()), count)
    if session.present([OUR_FILE_LOCK]):
        from filelock import AsyncFileLock
        from pidabs.compat.filelock import AsyncFileLock as OurAsyncFileLock

        kept[f"{OUR_FILE_LOCK.name}, mirror"] = partial(
            timed, partial(repeat, our_file_lock(mirror=True)(session.path())), count
        )
        kept["pidabs AsyncFileLock"] = partial(_async_pairs, OurAsyncFileLock(session.path()), count)
        kept["filelock AsyncFileLock"] = partial(_async_pairs, AsyncFileLock(session.path()), count)
    if session.present([OUR_PID_LOCK_FILE]):
        without = our_pid_lock_file(mirror=False)(session.path())
        kept[f"{OUR_PID_LOCK_FILE.name}, no mirror"] = partial(timed, partial(repeat, without), count)
    fresh: dict[str, Callable[[], list[float]]] = {
        peer.name: partial(timed, partial(_fresh_pairs, session.make(peer), session.path()), count)
        for peer in session.present(peer for peer in PEERS if peer not in (FLOCK, OFD))  # which would leave files open
    }
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, two_cpus()[0])
    gc.disable()
    try:
        for case, subjects in (ONE, kept), (NEW, fresh):
            for subject, found in take_turns(subjects, rounds).items():
                session.add(NAME, subject, case, "us", found)
            gc.collect()
    finally:
        gc.enable()
        os.sched_setaffinity(0, everywhere)


def timed(pairs: Callable[[int], object], count: int) -> list[float]:
    """Microseconds of a pair; after a few that are not counted, because the caches are still somebody else's."""
    began = time.perf_counter()
    pairs(WARM_UP)
    count = _enough(count, time.perf_counter() - began)
    began = time.perf_counter()
    pairs(count)
    return [(time.perf_counter() - began) / count * 1e6]


def _enough(count: int, warm_up: float) -> int:
    """So few that nobody preempts us in most batches."""
    return max(WARM_UP, min(count, int(BATCH / (warm_up / WARM_UP))))


def _bare(count: int) -> None:
    address = f"\0pidabs-bench-{os.getpid()}".encode()
    for _ in range(count):
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.bind(address)
        sock.listen(1024)
        sock.close()


def repeat(mutex: Mutex, count: int) -> None:
    for _ in range(count):
        mutex.acquire()
        mutex.release()


def _fresh_pairs(make: Make, path: str, count: int) -> None:
    for _ in range(count):
        mutex = make(path)
        mutex.acquire()
        mutex.release()


def _async_pairs(mutex: object, count: int) -> list[float]:
    """Inside a running event loop, whose start is not counted."""
    acquire = getattr(mutex, "acquire_async", None) or mutex.acquire  # type: ignore[attr-defined]
    release = getattr(mutex, "release_async", None) or mutex.release  # type: ignore[attr-defined]

    async def pairs(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            await acquire()
            await release()
        return (time.perf_counter() - began) / count * 1e6

    async def work() -> list[float]:
        warm_up = WARM_UP * await pairs(WARM_UP) / 1e6
        return [await pairs(_enough(count, warm_up))]

    return asyncio.run(work())
