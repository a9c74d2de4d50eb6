"""How the steps of _queue.py are driven: here by blocking the thread."""

from __future__ import annotations

from select import poll
from time import sleep

from ._linux import POLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._queue import Steps, T

_LONGEST_POLL = 1 << 30  # ms


def run(steps: Steps[T]) -> T:
    """Drive steps by blocking this thread.  An exception goes into them, so that they can tidy up."""
    try:
        want = next(steps)
        while True:
            try:
                ready = _block(*want)
            except BaseException as exc:
                want = steps.throw(exc)
            else:
                want = steps.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _block(fd: int, seconds: float | None) -> bool:
    if fd < 0:
        sleep(seconds or 0)
        return False
    poller = poll()
    poller.register(fd, POLLIN)
    return bool(poller.poll(None if seconds is None else min(seconds * 1000, _LONGEST_POLL)))
