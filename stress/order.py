"""First come, first served: waiters of each kind, started one after the other, are granted the lock in that order.

Each is seen in the kernel's own listing of the queue before the next one starts.  In every round one of them is killed
as it waits, and another is stopped: those behind move up, and the stopped one loses its place.  No holder crashes, as
then the order is lost by design.  The waiters append their number to a file while they hold the lock.

A waiter has 20 ms to answer the holder's offer.  One that the machine did not let run for most of that is rightly
passed over; the scheduler's own accounts tell such a round from an inversion.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import traceback
from typing import NoReturn

import kinds
from support import wait_until

from pidabs import Lock

from .clients import Client

_STARVED = 0.010  # seconds that a waiter was ready to run and did not
_NUMBER = 4  # bytes


class Waiter:
    """A process that waits for the lock once, each time it is told to."""

    def __init__(self, kind: str, path: str, log: int) -> None:
        self.kind = kind
        theirs, self._orders = os.pipe()
        self._words, ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(kind, path, log, theirs, ours)
        os.close(theirs)
        os.close(ours)

    def join(self, number: int) -> None:
        os.write(self._orders, number.to_bytes(_NUMBER, "little"))

    def until_served(self) -> None:
        """Or until it has ended instead; what it wrote, or did not, tells which."""
        os.read(self._words, 1)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)  # our child, not reaped yet, so the pid is its
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._words)


def _starved(pid: int) -> float:
    """For how many seconds, so far, it was kept off the CPU though it could run."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e9


def _serve(kind: str, path: str, log: int, orders: int, words: int) -> NoReturn:
    try:
        dice = random.Random(os.getpid())
        while number := os.read(orders, _NUMBER):
            client = Client(kind, path, dice, patient=True)
            if kind in kinds.AWAITED:
                asyncio.run(_take_turn_async(client, log, number))
            else:
                client.acquire()
                os.write(log, number)
                client.release()
            os.write(words, b".")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


async def _take_turn_async(client: Client, log: int, number: bytes) -> None:
    await client.acquire_async()
    os.write(log, number)
    await client.release_async()


def look(path: str, rounds: int, seed: str, sabotage: str) -> tuple[dict[str, int], list[str]]:
    """So many rounds: what was counted, and lines of trouble."""
    dice = random.Random(seed)
    log_path = f"{path}.log"
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    waiters = [Waiter(kind, path, log) for kind in (*kinds.BLOCKING, *kinds.AWAITED)]
    counts = {"rounds of queueing": 0, "of these, starved of CPU": 0, "grants in order": 0}
    trouble = []
    try:
        for number in range(rounds):
            dice.shuffle(waiters)
            read = os.path.getsize(log_path)
            before = [_starved(pid) for pid in (os.getpid(), *(waiter.pid for waiter in waiters))]
            expected = _round(Lock(path), waiters, dice, sabotage)
            with open(log_path, "rb") as file:
                file.seek(read)
                found = list(file.read()[::_NUMBER])
            after = [_starved(pid) for pid in (os.getpid(), *(waiter.pid for waiter in waiters))]
            starved = max(now - had for now, had in zip(after, before, strict=True))
            counts["rounds of queueing"] += 1
            if found == expected:
                counts["grants in order"] += len(found)
            elif starved > _STARVED and not sabotage and sorted(found) == sorted(expected):
                counts["of these, starved of CPU"] += 1
            else:
                trouble.append(f"inversion in round {number}: joined {expected}, served {found}")
            for at, waiter in enumerate(waiters):
                if at not in expected:
                    waiter.kill()
                    waiters[at] = Waiter(waiter.kind, path, log)
    finally:
        for waiter in waiters:
            waiter.kill()
        os.close(log)
    return counts, trouble


def _round(lock: Lock, waiters: list[Waiter], dice: random.Random, sabotage: str) -> list[int]:
    """The places in `waiters`, in the order in which they are to be served."""
    lock.acquire(60)
    expected = list(range(len(waiters)))
    for at, waiter in enumerate(waiters):
        waiter.join(at)
        wait_until(lambda at=at: lock.waiters() == at + 1, "it has joined the queue")  # type: ignore[misc]
    killed, stopped = dice.sample(expected, 2)
    os.kill(waiters[killed].pid, signal.SIGKILL)
    wait_until(lambda: lock.waiters() == len(waiters) - 1, "the killed one is gone")
    waiters[stopped].stop()
    expected.remove(killed)
    expected.remove(stopped)
    if sabotage == "order":
        os.close(lock.fileno())  # free, with a race for it
    else:
        lock.release()
    for at in expected:
        waiters[at].until_served()
    waiters[stopped].go_on()
    waiters[stopped].until_served()
    return [*expected, stopped]
