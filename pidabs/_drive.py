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
    poller = poll()
    registered = -1
    try:
        fd, seconds = next(steps)
        while True:
            try:
                if fd < 0:
                    sleep(seconds or 0.0)
                    ready = False
                else:
                    if fd != registered:
                        poller = poll()
                        poller.register(fd, POLLIN)
                        registered = fd
                    ready = bool(poller.poll(None if seconds is None else min(seconds * 1000, _LONGEST_POLL)))
            except BaseException as exc:
                fd, seconds = steps.throw(exc)
            else:
                fd, seconds = steps.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result
