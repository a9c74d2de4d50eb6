"""How times grow: with waiters behind the one that is next, with dead entries in front of it, with other sockets and
other locks in the system; and `list_locks` with the number of locks.

Waiters and dead entries are bare connections, which cost the holder as much as real ones until it is their turn.
"""

from __future__ import annotations

import _socket
import gc
import os
import resource
import time
from collections.abc import Callable
from functools import partial

import pidabs

from .children import Line, Troop
from .machine import two_cpus
from .measure_uncontended import repeat, timed
from .peers import FILE_LOCK, FLOCK, LOCK, OUR_FILE_LOCK, Make
from .session import Session, take_turns

GROWTH, LISTING = "growth", "listing"
QUEUE, DEAD = "waiters behind the next", "dead entries before the next"
SOCKETS, LOCKS = "other sockets", "other locks"
MANY = 10_000
_EACH = 5000
"""Descriptors of one process that keeps sockets."""
_REST = 0.002
"""Seconds, after much work: on a busy machine it would be somebody else's turn in the middle of a release."""


class Queue:
    """A holder, us, and a process that waits for it among `number` others, which never take the lock."""

    def __init__(self, troop: Troop, make: Make, path: str, number: int, cpus: set[int]) -> None:
        self._waiter = troop.start(partial(_wait, make=make, path=path), cpus)
        self._lock = make(path)
        # In a process of their own: a waiter of the holder's process is given the lock without being asked.
        self._others = troop.start(partial(_come_and_go, address=pidabs.Lock(path).address, number=number))

    def behind(self) -> float:
        """Microseconds of a handoff to the waiter, in front of the others."""
        self._lock.acquire()
        self._waiter.tell()
        self._waiter.until_asleep()
        self._tell_others()
        took = self._handoff()
        self._tell_others()
        self._waiter.tell()
        self._waiter.hear()
        return took

    def dead(self) -> float:
        """The same with the others gone, but their entries in front of it."""
        self._lock.acquire()
        self._tell_others()
        self._tell_others()
        self._waiter.tell()
        self._waiter.until_asleep()
        took = self._handoff()
        self._waiter.tell()
        self._waiter.hear()
        return took

    def _handoff(self) -> float:
        time.sleep(_REST)
        let_go = time.monotonic_ns()
        self._lock.release()
        return (self._waiter.hear() - let_go) / 1e3

    def _tell_others(self) -> None:
        """To join, or to leave if they have joined."""
        self._others.tell()
        self._others.hear()


def _come_and_go(line: Line, address: bytes, number: int) -> None:
    while line.listen():
        others = []
        for _ in range(number):
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            sock.connect(address)
            sock.send(b"W")
            others.append(sock)
        line.say(0)
        line.listen()
        for sock in others:
            sock.close()
        line.say(0)


def _wait(line: Line, make: Make, path: str) -> None:
    lock = make(path)
    while line.listen():
        lock.acquire()
        line.say(time.monotonic_ns())
        line.listen()
        lock.release()
        line.say(0)


def growth(session: Session) -> None:
    gc.disable()
    everywhere = os.sched_getaffinity(0)
    here, there = two_cpus()
    os.sched_setaffinity(0, here)
    try:
        if session.present([LOCK]):
            _growing_queue(session, there)
        for label, prefix in (SOCKETS, "other"), (LOCKS, "pidabs"):
            for number in (0, session.pick(MANY, 100)):
                with Troop() as troop:
                    _keep(troop, number, prefix)
                    _among_others(session, f"{number} {label}")
    finally:
        gc.enable()
        os.sched_setaffinity(0, everywhere)


def _growing_queue(session: Session, cpus: set[int]) -> None:
    for label, numbers in (QUEUE, (0, 10, 100, 1000)), (DEAD, (0, 10, 100, 250, 1000)):
        with Troop() as troop:
            subjects: dict[str, Callable[[], list[float]]] = {}
            for number in numbers[: session.pick(9, 2)]:
                queue = Queue(troop, session.make(LOCK), session.path(), number, cpus)
                handoff = queue.behind if label == QUEUE else queue.dead
                subjects[f"handoff, {number} {label}"] = lambda handoff=handoff: [handoff()]  # type: ignore[misc]
            for case, found in take_turns(subjects, session.pick(40, 1)).items():
                session.add(GROWTH, LOCK.name, case, "us", found)


def _among_others(session: Session, case: str) -> None:
    count = session.pick(50, 5)
    subjects: dict[str, Callable[[], list[float]]] = {}
    for peer in session.present([LOCK, OUR_FILE_LOCK, FILE_LOCK, FLOCK]):
        subjects[peer.name] = partial(timed, partial(repeat, session.make(peer)(session.path())), count)
    for subject, found in take_turns(subjects, session.pick(100, 1)).items():
        session.add(GROWTH, subject, f"acquire+release, {case}", "us", found)


def listing(session: Session) -> None:
    for number in session.pick((10, 1000, MANY), (10, 100)):
        with Troop() as troop:
            _keep(troop, number, "pidabs")
            found = [[_list()] for _ in range(session.pick(15, 2))]
        session.add(LISTING, "list_locks()", f"{number} locks", "ms", found)


def _list() -> float:
    began = time.perf_counter()
    pidabs.list_locks()
    return (time.perf_counter() - began) * 1e3


def _keep(troop: Troop, number: int, prefix: str) -> None:
    """Listeners of so many abstract names that begin like this: ours are locks."""
    for first in range(0, number, _EACH):
        work = partial(_keeper, first=first, count=min(_EACH, number - first), prefix=prefix)
        troop.start(work).hear()


def _keeper(line: Line, first: int, count: int, prefix: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept = []
    for number in range(first, first + count):
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.bind(f"\0{prefix}:bench-{os.getpid()}-{number}".encode())
        sock.listen(1024)
        kept.append(sock)
    line.say(len(kept))
    line.listen()
