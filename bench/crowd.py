"""Many processes at one lock: `python -m bench.crowd PEER COUNT SECONDS DIRECTORY [--idle]` prints one JSON object.

A fresh interpreter that loads that one lock forks them, so that no other's modules are in their memory.  It holds the
lock until all of them wait, then lets go and counts for so many seconds who gets it, for 0.2 ms each time; or, --idle,
lets them wait, and measures what that takes of CPU and memory.  Then it kills them: a bounded time, however slow the
lock is.

The longest wait counts from the beginning, and those that are still waiting at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import signal
import time
from collections.abc import Callable

from .children import cpu_ns, end, fork, until_asleep
from .peers import Make, named

HELD_NS = 200_000
_READY, _WAITING, _COUNT, _LONGEST = range(4)
_ASKING, _SETTLING = 10.0, 3.0  # seconds; those that poll leave each other no CPU when they are many
_PATIENCE = 120.0


class Crowd:
    """`with Crowd(make, path, count) as crowd:`, ready to go.

    With `keep`, who gets the lock keeps it; with `once`, he lets go of it and asks again at the next go().
    """

    def __init__(self, make: Make, path: str, count: int, keep: bool = False, once: bool = False) -> None:
        self._keep = keep
        self._once = once
        self.pids: list[int] = []
        self._make = make
        self._path = path
        self._count = count
        self._memory = mmap.mmap(-1, 8 * (4 * count + 1))
        self._table = memoryview(self._memory).cast("Q")
        self._gate = os.pipe()

    def __enter__(self) -> Crowd:
        gc.collect()
        gc.freeze()
        for index in range(self._count):
            self.pids.append(fork(lambda index=index: self._work(index)))  # type: ignore[misc]
        self._started = list(self.pids)
        self._until(_READY, 1)
        return self

    def __exit__(self, *_: object) -> None:
        end(self.pids)
        for end_of_gate in self._gate:
            os.close(end_of_gate)
        gc.unfreeze()

    def go(self, patience: float = _SETTLING) -> bool:
        """Let them ask for the lock; whether all were asleep in the end."""
        os.write(self._gate[1], bytes(self._count))
        try:
            self._until(_WAITING, 1, _ASKING)
        except TimeoutError:
            return False
        return until_asleep(self.pids, patience)

    def contend(self, release: Callable[[], object], seconds: float) -> tuple[float, list[int], int]:
        """How long it really took, how often each had it, and the longest wait in ns."""
        began = self._table[4 * self._count] = time.monotonic_ns()
        release()
        time.sleep(seconds)
        now = time.monotonic_ns()
        rows = [self._table[4 * index : 4 * index + 4].tolist() for index in range(self._count)]
        longest = [max(row[_LONGEST], now - max(row[_WAITING], began) if row[_WAITING] else 0) for row in rows]
        return (now - began) / 1e9, [row[_COUNT] for row in rows], max(longest)

    def owner(self) -> int:
        """The process that has the lock, and keeps it; it is not ours to end any more."""
        counts = [0]
        over = time.monotonic() + _PATIENCE
        while 1 not in counts and time.monotonic() < over:
            counts = self._table[_COUNT : 4 * self._count : 4].tolist()
        if 1 not in counts:
            raise TimeoutError("nobody has got the lock")
        index = counts.index(1)
        self._table[4 * index + _COUNT] = 0
        pid = self._started[index]
        self.pids.remove(pid)
        return pid

    def until_done(self, times: int) -> None:
        """Until each has had the lock so many times."""
        self._until(_COUNT, times)
        self._until(_READY, times + 1)

    def _until(self, column: int, least: int, seconds: float = _PATIENCE) -> None:
        over = time.monotonic() + seconds
        while min(self._table[column : 4 * self._count : 4].tolist()) < least:
            if time.monotonic() > over:
                raise TimeoutError("the crowd is not ready")
            time.sleep(0.002)

    def _work(self, index: int) -> None:
        clock = time.monotonic_ns
        table, mine, began_at = self._table, 4 * index, 4 * self._count
        lock = self._make(self._path)
        while True:
            if self._once or not table[mine + _READY]:
                table[mine + _READY] += 1
                os.read(self._gate[0], 1)
            asked = table[mine + _WAITING] = clock()
            lock.acquire()
            got = clock()
            table[mine + _WAITING] = 0
            table[mine + _COUNT] += 1
            table[mine + _LONGEST] = max(table[mine + _LONGEST], got - max(asked, table[began_at]))
            if self._keep:
                signal.pause()
            until = got + (0 if self._once else HELD_NS)
            while clock() < until:
                pass
            lock.release()


def contend(make: Make, path: str, count: int, seconds: float) -> dict[str, float]:
    with Crowd(make, path, count) as crowd:
        lock = make(path)
        lock.acquire()
        asleep = crowd.go()
        took, counts, longest = crowd.contend(lock.release, seconds)
    total = sum(counts)
    return {
        "per_second": total / took,
        "jain": total**2 / (count * sum(each**2 for each in counts)) if total else 0.0,
        "longest_ms": longest / 1e6,
        "least": min(counts),
        "most": max(counts),
        "asleep": asleep,
    }


def idle(make: Make, path: str, count: int, seconds: float) -> dict[str, float]:
    with Crowd(make, path, count, once=True) as crowd:
        lock = make(path)
        lock.acquire()
        crowd.go()  # once to warm up: a forked process copies what it writes to for the first time
        lock.release()
        crowd.until_done(1)
        lock.acquire()
        private, kernel = _private(crowd.pids), _slab()
        asleep = crowd.go()
        private, kernel = _private(crowd.pids) - private, _slab() - kernel
        before = [cpu_ns(pid) for pid in crowd.pids]
        time.sleep(seconds)
        after = [cpu_ns(pid) for pid in crowd.pids]
    return {
        "cpu_ms": (sum(after) - sum(before)) / 1e6,
        "private_kib": private / count / 1024,
        "kernel_kib": kernel / count / 1024,
        "asleep": asleep,
    }


def _private(pids: list[int]) -> int:
    """Bytes of memory that these processes share with nobody."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
    return total * 1024


def _slab() -> int:
    """Bytes that the kernel's objects take: by the object where that may be read, else by the page."""
    try:
        with open("/proc/slabinfo", encoding="ascii") as file:
            rows = [line.split() for line in file][2:]
        return sum(int(row[1]) * int(row[3]) for row in rows)
    except OSError:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Slab:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("directory")
    parser.add_argument("--idle", action="store_true")
    options = parser.parse_args()
    measure = idle if options.idle else contend
    path = os.path.join(options.directory, "crowd.pid")
    print(json.dumps(measure(named(options.peer).load(), path, options.count, options.seconds)))


if __name__ == "__main__":
    main()
