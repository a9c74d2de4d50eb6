"""filelock's stand-in beside filelock itself: `python bench/shims.py`.  Each figure is a ratio within one run.

- acquire+release, by one object and by a new one each time;
- how long after a release the next waiter has the lock, when filelock polls as it does by default;
- the CPU time of 50 waiters.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import filelock
import pidabs.compat.filelock as ours
from quick import Handoff, uncontended

BATCHES = 15
PAIRS = 500
HANDOFFS = 5
WAITERS = 50
SECONDS = 5
WAIT = """
import importlib, sys, threading, time
cls = importlib.import_module(sys.argv[1]).FileLock
for _ in range(int(sys.argv[3])):
    threading.Thread(target=lambda: cls(sys.argv[2]).acquire(), daemon=True).start()
time.sleep(1)
before = time.process_time()
time.sleep(int(sys.argv[4]))
print(time.process_time() - before)
"""
"""That many threads wait; prints the CPU time they took in that many seconds, after one to settle."""


class Fresh:
    """A new lock for each acquire, as most programs have it."""

    def __init__(self, make: Callable[[], filelock.BaseFileLock]) -> None:
        self._make = make

    def acquire(self) -> None:
        self._lock = self._make()
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


def medians(*measures: Callable[[], float]) -> list[float]:
    rounds = [[measure() for measure in measures] for _ in range(BATCHES)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def cpu_of_waiters(module: str, path: str) -> float:
    command = [sys.executable, "-c", WAIT, module, path, str(WAITERS), str(SECONDS)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    versions = f"filelock {filelock.__version__}, CPython {platform.python_version()}, Linux {platform.release()}"
    print(f"{versions}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "some.lock")
        for label, contenders in (
            ("one object", (filelock.FileLock(path), ours.FileLock(path))),
            ("a new one", (Fresh(lambda: filelock.FileLock(path)), Fresh(lambda: ours.FileLock(path)))),
        ):
            theirs, mine = medians(*(lambda lock=lock: uncontended(lock, PAIRS) for lock in contenders))
            print(f"acquire+release  {mine:8.1f} us   filelock {theirs:8.1f} us   ratio {theirs / mine:.1f} ({label})")

        cpus = os.sched_getaffinity(0)
        waiters = [Handoff(lambda: filelock.FileLock(path), cpus), Handoff(lambda: ours.FileLock(path), cpus)]
        theirs, mine = (statistics.median(column) for column in zip(*rounds(waiters), strict=True))
        print(f"wake-up p50      {mine:8.1f} us   filelock {theirs:8.1f} us   ratio {theirs / mine:.0f}")

        used = []
        for module, holder in (("filelock", filelock.FileLock(path)), ("pidabs.compat.filelock", ours.FileLock(path))):
            with holder:
                used.append(cpu_of_waiters(module, path))
        per_second = [1e3 * seconds / SECONDS for seconds in used]
        print(f"{WAITERS} waiters use  {per_second[1]:7.2f} ms   filelock {per_second[0]:7.1f} ms   of CPU each second")


def rounds(waiters: list[Handoff]) -> list[list[float]]:
    try:
        return [[statistics.median(waiter.measure(HANDOFFS)) for waiter in waiters] for _ in range(BATCHES)]
    finally:
        for waiter in waiters:
            waiter.close()


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"({time.monotonic() - began:.0f} s)")
