"""From the moment before kill(SIGKILL) of a holder to the moment after acquire() in a process that slept, waiting.

The holder is a small process; a big one takes the kernel longer, whatever its locks are made of.  PIDLockFile and
LinkLockFile are left out: after SIGKILL nobody gets their lock, ever.

And 400 waiters whose holder is killed: all are thrown out, one gets the lock, and the others queue behind it.  How long
until all of them are there, looked at every millisecond.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial

from .children import BenchError, Line, Troop, Worker, end
from .crowd import Crowd
from .peers import LOCK, PEERS, Make, Mutex, Peer
from .session import Session, take_turns

NAME = "sigkill"
ONE, ALL = "the next owner has it", "400 waiters, all queued again"
_NEVER = 5.0


def measure(session: Session) -> None:
    gc.disable()
    try:
        _next_owner(session)
        if session.present([LOCK]):
            _all_back(session)
    finally:
        gc.enable()


def _next_owner(session: Session) -> None:
    peers = session.present(peer for peer in PEERS if peer.waits and peer.dies)
    with Troop() as troop:
        subjects: dict[str, Callable[[], list[float]]] = {}
        for peer in peers:
            make, path = session.make(peer), session.path()
            waiter = troop.start(partial(_wait, make=make, path=path))
            count = session.pick(3, 1) if peer.longest_pause else session.pick(20, 2)
            subjects[peer.name] = partial(_kills, troop, waiter, peer, make, path, count)
        for subject, found in take_turns(subjects, session.pick(10, 1)).items():
            session.add(NAME, subject, ONE, "us", found)


def _kills(troop: Troop, waiter: Worker, peer: Peer, make: Make, path: str, count: int) -> list[float]:
    found = []
    for _ in range(count):
        holder = troop.start(partial(_hold, make=make, path=path))
        holder.hear()
        waiter.tell()
        waiter.until_asleep()
        time.sleep(random.uniform(0, peer.longest_pause))
        killed = time.monotonic_ns()
        os.kill(holder.pid, signal.SIGKILL)
        found.append((waiter.hear() - killed) / 1e3)
        troop.dismiss(holder)
    return found


def _hold(line: Line, make: Make, path: str) -> None:
    lock = make(path)
    lock.acquire()
    line.say(0)
    line.listen()


def _wait(line: Line, make: Make, path: str) -> None:
    lock = make(path)
    while line.listen():
        lock.acquire()
        got = time.monotonic_ns()
        lock.release()
        line.say(got)


def _all_back(session: Session) -> None:
    count, kills = session.pick(400, 20), session.pick(5, 1)
    make = session.make(LOCK)
    found = [_kills_in_a_row(session, make, count, kills) for _ in range(session.pick(5, 1))]
    session.add(NAME, LOCK.name, ALL, "ms", found)


def _kills_in_a_row(session: Session, make: Make, count: int, kills: int) -> list[float]:
    """Milliseconds of each, after a first one, in which freshly forked processes copy their memory."""
    found = []
    path = session.path()
    with Crowd(make, path, count + kills, keep=True) as crowd, Troop() as troop:
        holder = troop.start(partial(_hold, make=make, path=path))
        holder.hear()
        asked = make(path)
        if not crowd.go():
            raise BenchError("the waiters never fell asleep")
        found = [_back(asked, count + kills - 1, lambda: os.kill(holder.pid, signal.SIGKILL))]
        for left in range(count + kills - 2, count - 2, -1):
            owner = crowd.owner()
            found.append(_back(asked, left, lambda owner=owner: end([owner])))  # type: ignore[misc]
    return found[1:]


def _back(lock: Mutex, count: int, kill: Callable[[], object]) -> float:
    """Milliseconds until so many are in the queue of another holder."""
    killed = time.monotonic()
    kill()
    while lock.waiters() != count:  # type: ignore[attr-defined]
        if time.monotonic() - killed > _NEVER:
            raise BenchError("the waiters never came back")
        time.sleep(0.001)
    return (time.monotonic() - killed) * 1e3
