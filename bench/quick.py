"""The three figures that must not slip, each as a ratio within one run: `python bench/quick.py`.

- acquire+release of a free Lock, to the bare socket+bind+listen+close;
- handoff, from release() in one process to acquire() returning in another that slept in the queue, to blocking
  flock(2), with the two on two CPUs, on one, and where the scheduler puts them;
- `import pidabs`, over a bare interpreter.

Contenders take turns in small batches, so that a slow phase of the machine hits all of them.
"""

from __future__ import annotations

import _socket
import fcntl
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

import pidabs

BATCHES = 15
PAIRS = 2000
HANDOFFS = 40
SETTLE = 0.002
"""Seconds in which a waiter surely falls asleep; it is not part of what is measured."""


class Mutex(Protocol):
    def acquire(self) -> object: ...
    def release(self) -> object: ...


class FLock:
    """Blocking flock(2), as a program would write it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def acquire(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


def bare(count: int) -> float:
    """Microseconds for each socket+bind+listen+close."""
    address = b"\0pidabs-bench-bare"
    began = time.perf_counter()
    for _ in range(count):
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.bind(address)
        sock.listen(1024)
        sock.close()
    return (time.perf_counter() - began) / count * 1e6


def uncontended(lock: Mutex, count: int) -> float:
    """Microseconds for each acquire+release."""
    began = time.perf_counter()
    for _ in range(count):
        lock.acquire()
        lock.release()
    return (time.perf_counter() - began) / count * 1e6


def waiter(make: Callable[[], Mutex], pipe: Connection) -> None:
    lock = make()
    while pipe.recv():
        pipe.send("waiting")
        lock.acquire()
        woken = time.monotonic_ns()
        lock.release()
        pipe.send(woken)


class Handoff:
    """A second process that waits for the lock, and how long it takes to get it."""

    def __init__(self, make: Callable[[], Mutex], cpus: set[int]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=waiter, args=(make, theirs), daemon=True)
        self._process.start()
        os.sched_setaffinity(self._process.pid or 0, cpus)
        self._lock = make()

    def measure(self, count: int) -> list[float]:
        """Microseconds of `count` handoffs to a sleeping waiter."""
        found = []
        for _ in range(count):
            self._lock.acquire()
            self._pipe.send(True)
            self._pipe.recv()
            time.sleep(SETTLE)
            let_go = time.monotonic_ns()
            self._lock.release()
            found.append((self._pipe.recv() - let_go) / 1e3)
        return found

    def close(self) -> None:
        self._pipe.send(False)
        self._process.join(5)


def handoff(here: set[int], there: set[int]) -> tuple[float, float]:
    """Microseconds of a handoff by flock(2) and by Lock, the holder running on the CPUs `here`, the waiter `there`."""
    os.sched_setaffinity(0, here)
    with tempfile.NamedTemporaryFile() as file:
        contenders = [
            Handoff(lambda: FLock(file.name), there),
            Handoff(lambda: pidabs.Lock("pidabs-bench-handoff"), there),
        ]
        times: list[list[float]] = [[] for _ in contenders]
        for _ in range(BATCHES):
            for contender, found in zip(contenders, times, strict=True):
                found += contender.measure(HANDOFFS)
        for contender in contenders:
            contender.close()
    flock, ours = (statistics.median(found) for found in times)
    return flock, ours


def start(code: str) -> float:
    """Milliseconds of a fresh interpreter that runs `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    print(f"CPython {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs")
    lock = pidabs.Lock("pidabs-bench")
    rounds = [(bare(PAIRS), uncontended(lock, PAIRS)) for _ in range(BATCHES)]
    floor, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"acquire+release  {ours:7.2f} us   bare system calls {floor:6.2f} us   ratio {ours / floor:.2f}")

    everywhere = os.sched_getaffinity(0)
    first = {min(everywhere)}
    for here, there, where in (
        (first, everywhere - first or first, "on two CPUs"),
        (first, first, "on one CPU"),
        (everywhere, everywhere, "unpinned"),
    ):
        floor, ours = handoff(here, there)
        ratio = f"ratio {ours / floor:.2f} ({where})"
        print(f"handoff p50      {ours:7.1f} us   blocking flock(2) {floor:6.1f} us   {ratio}")
    os.sched_setaffinity(0, everywhere)

    starts = [(start("pass"), start("import pidabs")) for _ in range(BATCHES)]
    floor, ours = (statistics.median(column) for column in zip(*starts, strict=True))
    print(f"import pidabs    {ours - floor:7.1f} ms over a bare interpreter's {floor:.1f} ms")


if __name__ == "__main__":
    main()
