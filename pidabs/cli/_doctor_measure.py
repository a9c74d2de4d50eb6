"""How fast a lock is free here, measured: after SIGKILL of its holder, and when it is let go.

Each time is from a call in one process to the return of acquire() in another that slept in the queue, by the clock that
all processes share.  At the most 300 of each, and some 13 s in all.

Kernel facts: a dying process first gives back its memory, then closes its descriptors, then becomes a zombie.  So more
memory means a longer wait for its lock, and an unreaped zombie holds none.
"""

from __future__ import annotations

import _thread
import fcntl
import math
import mmap
import os
import tempfile
from secrets import token_hex
from time import monotonic, monotonic_ns

from .. import Lock, LockError
from ._doctor_finding import text
from ._interrupt import UnexpectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from ._doctor_children import Boss, Workshop

    class Mutex(Protocol):
        def acquire(self) -> object: ...
        def release(self) -> object: ...


_SETTLE = 0.002
"""Seconds in which a waiter surely falls asleep; it is not part of what is measured."""

_KILLS, _BIG_KILLS, _HANDOFFS, _BATCH = 100, 15, 300, 20
_KILLING, _BIG_KILLING, _HANDING = 2.0, 4.0, 3.0
"""Seconds for each case."""

_THREADS = 16
_MIB = 1 << 20
_BIG, _SMALLEST_BIG, _BIG_IF_UNKNOWN = 256, 16, 32
"""MiB."""


class Measured:
    """The times of one case, in milliseconds; none of them, and the `reason`, where it could not be measured."""

    def __init__(self, case: str, title: str, times: list[float], reason: str = "") -> None:
        self.case: str = case
        self.title: str = title
        self.times: list[float] = sorted(times)
        self.reason: str = reason

    def quantile(self, part: float) -> float:
        """The smallest time that is not shorter than this part of all."""
        return self.times[max(0, math.ceil(part * len(self.times)) - 1)]

    def as_json(self) -> dict[str, object]:
        if not self.times:
            return {"case": self.case, "title": self.title, "n": 0, "reason": self.reason}
        figures = {"p50_ms": self.quantile(0.5), "p99_ms": self.quantile(0.99), "max_ms": self.times[-1]}
        return {
            "case": self.case,
            "title": self.title,
            "n": len(self.times),
            **{name: round(value, 4) for name, value in figures.items()},
        }


def measure(shop: Workshop) -> Iterator[Measured]:
    """Each case as soon as it is done.  Raises Interrupted."""
    try:
        big = _big_heap()
    except OSError:  # no descriptor left to ask with
        big = 0
    heap = f"SIGKILL, with a heap of {big} MiB"
    yield _try("kill", "SIGKILL, reaped at once", lambda: _kills(shop, _nothing))
    yield _try("kill-zombie", "SIGKILL, left a zombie", lambda: _kills(shop, _nothing, zombie=True))
    yield _try("kill-threads", f"SIGKILL, with {_THREADS} threads", lambda: _kills(shop, _start_threads))
    if big < _SMALLEST_BIG:
        yield Measured("kill-heap", heap, [], "there is too little memory to spare")
    else:
        fill = _filler(big)
        yield _try("kill-heap", heap, lambda: _kills(shop, fill, _BIG_KILLS, _BIG_KILLING))
    yield from _handoffs(shop)


def _try(case: str, title: str, work: Callable[[], list[float]]) -> Measured:
    try:
        return Measured(case, title, work())
    except (UnexpectedError, LockError, OSError) as exc:
        return Measured(case, title, [], str(exc))


# After SIGKILL ------------------------------------------------------------------------------------------------


def _kills(
    shop: Workshop, prepare: Callable[[], object], count: int = _KILLS, seconds: float = _KILLING, zombie: bool = False
) -> list[float]:
    name = f"pidabs-doctor-{token_hex(8)}"
    waiter = shop.start(lambda boss: _wait_for(Lock(name), boss))
    times: list[float] = []
    end = monotonic() + seconds
    while not times or (len(times) < count and monotonic() < end):  # one at least, though we were suspended meanwhile
        holder = shop.start(lambda boss: _hold(name, prepare, boss))
        holder.expect("a holder's lock")
        waiter.tell("go")
        waiter.expect("a waiter")
        shop.pause(_SETTLE)
        killed = monotonic_ns()
        holder.kill()
        if not zombie:
            holder.reap()
        times.append((int(waiter.expect("the killed holder's lock")) - killed) / 1e6)
        if zombie and not holder.is_zombie():
            raise UnexpectedError("somebody else reaped the holder")
        holder.end()
    waiter.end()
    return times


def _hold(name: str, prepare: Callable[[], object], boss: Boss) -> None:
    kept = prepare()
    with Lock(name):
        boss.say("held")
        boss.listen()
    del kept


def _wait_for(lock: Mutex, boss: Boss) -> None:
    while boss.listen():
        boss.say("waiting")
        lock.acquire()
        woken = monotonic_ns()
        lock.release()
        boss.say(str(woken))


def _nothing() -> None:
    pass


def _start_threads() -> object:
    never = _thread.allocate_lock()
    never.acquire()
    for _ in range(_THREADS - 1):
        _thread.start_new_thread(never.acquire, ())
    return never


def _filler(size: int) -> Callable[[], object]:
    def fill() -> object:
        heap = mmap.mmap(-1, size * _MIB)
        for _ in range(size):
            heap.write(b"\1" * _MIB)  # memory that is not written to is not there
        return heap

    return fill


def _big_heap() -> int:
    """How many MiB can be taken without anybody noticing: a quarter of what is to spare."""
    spare = _memory_to_spare()
    return _BIG_IF_UNKNOWN if spare is None else min(_BIG, spare // 4 // _MIB)


def _memory_to_spare() -> int | None:
    """Bytes that are available on this host, and to our control group; None if nobody tells."""
    found = []
    for line in (text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for line in (text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _left_in_groups("/sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            found += _left_in_groups("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return min(found) if found else None


def _left_in_groups(root: str, path: str, limit: str, usage: str) -> Iterator[int]:
    """What each group leaves, from our own to the root, which in a container is our own."""
    while True:
        most, used = text(f"{root}{path}/{limit}"), text(f"{root}{path}/{usage}")
        if most and used and most.isdigit() and used.isdigit():
            yield max(0, int(most) - int(used))
        if path in ("", "/"):
            return
        path = os.path.dirname(path)


# When it is let go --------------------------------------------------------------------------------------------


class _FLock:
    """Blocking flock(2), as a program would write it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def acquire(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)


def _handoffs(shop: Workshop) -> Iterator[Measured]:
    """The two take turns, so that a slow moment of the machine hits both."""
    ours: list[float] = []
    theirs: list[float] = []
    reason = no_file = ""
    end = monotonic() + _HANDING
    try:
        handoff = Handoff(shop, *_locks())
        try:
            files = _flocks()
        except OSError as exc:
            flock, no_file = None, f"no temporary file to lock: {exc}"
        else:
            flock = Handoff(shop, *files, keep=files[1].fd)
        while not ours or (len(ours) < _HANDOFFS and monotonic() < end):
            ours += handoff.times(_BATCH)
            theirs += flock.times(_BATCH) if flock else []
    except (UnexpectedError, LockError, OSError) as exc:
        reason = str(exc)
    yield Measured("handoff", "release() to the next in line", [] if reason else ours, reason)
    yield Measured("flock", "the same with blocking flock(2)", [] if reason else theirs, reason or no_file)


def _locks() -> tuple[Mutex, Mutex]:
    name = f"pidabs-doctor-{token_hex(8)}"
    return Lock(name), Lock(name)


def _flocks() -> tuple[_FLock, _FLock]:
    """Two open files of one that has no name any more: nothing is left, whatever ends us."""
    fd, path = tempfile.mkstemp(prefix="pidabs-doctor-")
    try:
        return _FLock(fd), _FLock(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    finally:
        os.unlink(path)


class Handoff:
    """A second process that waits for a lock, and how long it takes to get it from this one."""

    def __init__(self, shop: Workshop, mine: Mutex, theirs: Mutex, keep: int | None = None) -> None:
        self._shop = shop
        self._mine = mine
        self._child = shop.start(lambda boss: _wait_for(theirs, boss), keep)

    def times(self, count: int) -> list[float]:
        """Milliseconds of `count` handoffs to a sleeping waiter."""
        found = []
        for _ in range(count):
            self._mine.acquire()
            try:
                self._child.tell("go")
                self._child.expect("a waiter")
                self._shop.pause(_SETTLE)
            except BaseException:
                self._mine.release()
                raise
            let_go = monotonic_ns()
            self._mine.release()
            found.append((int(self._child.expect("the lock that was let go")) - let_go) / 1e6)
        return found
