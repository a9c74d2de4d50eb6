"""Forked processes that obey, and never outlive us: killed by their pid when their troop is dismissed, or we die.

A child is known to be asleep, as a waiter has to be before its lock is let go, when the kernel says that it sleeps and
its CPU clock has stood still since the last look, a millisecond before.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from types import TracebackType

PATIENCE = 60.0
_LOOK = 0.001
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_CPUCLOCK_SCHED = 2


class BenchError(Exception):
    """What was measured did not do what it was to do."""


def cpu_ns(pid: int) -> int:
    """CPU time that a process has used, by its CPU clock: exact, not in ticks."""
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def sleeps(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"S"


def until_asleep(pids: list[int], patience: float = PATIENCE) -> bool:
    """Wait until each of them has been seen asleep, each at its own moment; False if that took too long."""
    end = time.monotonic() + patience
    clocks = {pid: cpu_ns(pid) for pid in pids}
    while clocks:
        time.sleep(_LOOK)
        now = {pid: cpu_ns(pid) for pid in clocks}
        clocks = {pid: now[pid] for pid, before in clocks.items() if now[pid] != before or not sleeps(pid)}
        if time.monotonic() > end:
            return False
    return True


def fork(work: Callable[[], object]) -> int:
    """A child that does some work and ends; it dies with us."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        gc.disable()
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def end(pids: list[int]) -> None:
    """SIGKILL our children, and reap them."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


class Line:
    """The child's end."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers

    def listen(self) -> bool:
        """Sleep until there is an order; False if there will be none."""
        return bool(os.read(self._orders, 1))

    def say(self, number: int) -> None:
        os.write(self._answers, struct.pack("q", number))


class Worker:
    """Our end."""

    def __init__(self, work: Callable[[Line], object], cpus: set[int] | None) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()

        def obey() -> None:
            os.close(self._orders)
            if cpus:
                os.sched_setaffinity(0, cpus)
            work(Line(orders, answers))

        self.pid = fork(obey)
        os.close(orders)
        os.close(answers)

    def tell(self) -> None:
        os.write(self._orders, b"!")

    def hear(self) -> int:
        """The number that it says; raises BenchError if it says none."""
        poller = select.poll()
        poller.register(self._answers, select.POLLIN)
        data = os.read(self._answers, 8) if poller.poll(PATIENCE * 1000) else b""
        if len(data) < 8:
            raise BenchError("a child said nothing")
        return int(struct.unpack("q", data)[0])

    def until_asleep(self) -> None:
        if not until_asleep([self.pid]):
            raise BenchError("a waiter never fell asleep")

    def close(self) -> None:
        os.close(self._orders)
        os.close(self._answers)


class Troop:
    """`with Troop() as troop:` children that are gone afterwards."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def start(self, work: Callable[[Line], object], cpus: set[int] | None = None) -> Worker:
        worker = Worker(work, cpus)
        self._workers.append(worker)
        return worker

    def dismiss(self, worker: Worker) -> None:
        self._workers.remove(worker)
        end([worker.pid])
        worker.close()

    def __enter__(self) -> Troop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in list(self._workers):
            self.dismiss(worker)
