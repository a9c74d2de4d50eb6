"""Steps, and how they are driven: here by blocking the thread."""

from __future__ import annotations

from os import sched_yield
from select import poll
from time import monotonic, sleep

from ._linux import POLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeVar

    T = TypeVar("T")
    Want = tuple[int, float]
    """What a step waits for: until a descriptor is readable (-1: none), at most so many seconds."""
    Steps = Generator[Want, bool, T]
    """Yields Wants, is sent whether the descriptor is readable.  Stop it early with throw(), never close()."""

FOR_EVER = float("inf")

SOON = 0.020  # seconds in which a partner that has just been woken answers
_LONGEST_POLL = 1 << 30  # ms
_LOOKS = 60


def remaining(deadline: float) -> float:
    """Seconds until a deadline of the monotonic clock."""
    return max(0.0, deadline - monotonic())


def jitter() -> float:
    """0.5 to 1.5, so that those who were refused together do not come back together."""
    return 0.5 + monotonic() * 1e6 % 1


def run(steps: Steps[T]) -> T:
    """Drive steps by blocking this thread.  An exception goes into them, so that they can tidy up."""
    registered = -1
    try:
        fd, seconds = next(steps)
        while True:
            try:
                if fd < 0:
                    sleep(seconds)
                    ready = False
                else:
                    if fd != registered:
                        poller = poll()
                        poller.register(fd, POLLIN)
                        registered = fd
                    ready = seconds <= SOON and _comes_soon(poller)
                    ready = ready or bool(
                        poller.poll(None if seconds == FOR_EVER else min(seconds * 1000, _LONGEST_POLL))
                    )
            except BaseException as exc:
                fd, seconds = steps.throw(exc)
            else:
                fd, seconds = steps.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _comes_soon(poller: poll) -> bool:
    """Look for some 50 us before sleeping: a partner on another CPU answers faster than we would fall asleep and wake.

    On the same CPU the yield lets it run.  Takes a fifth off a handoff between two CPUs (bench/quick.py).
    """
    for _ in range(_LOOKS):
        if poller.poll(0):
            return True
        sched_yield()
    return False
