"""Ending at a signal, but only where we wait: so that no process is started and then lost track of.

The handlers do nothing; Python writes a signal's number to a pipe, which every wait looks at.  Every wait has a
deadline.
"""

from __future__ import annotations

import os
import signal
from select import POLLIN, poll

DEADLINE = 15.0
"""Seconds for any one thing to happen: some ten times what it takes on a busy machine."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UnexpectedError(Exception):
    """Something did not go as the command says it does."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruptible:
    """A context manager; inside it signals are raised as Interrupted by `wait` and `pause`, and nowhere else.

    Children that end stay zombies until they are waited for.
    """

    def __enter__(self) -> Interruptible:
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_wakeup = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        # One that is ignored stays so: that is how nohup and a script's `&` work.
        caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in caught}
        # If it is ignored, a dead child is reaped at once, and its pid is soon another's.
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._wake)
        os.close(self._waker)

    def wait(self, fd: int, what: str) -> None:
        """Until `fd` is readable.  Raises Interrupted; UnexpectedError past the deadline."""
        ready = readable(DEADLINE, fd, self._wake)
        self._check_signals(ready)
        if not ready:
            raise UnexpectedError(f"{what}: not within {DEADLINE:g} s")

    def pause(self, seconds: float) -> None:
        """Between two looks at what cannot be waited for.  Raises Interrupted."""
        self._check_signals(readable(seconds, self._wake))

    def _check_signals(self, ready: list[int]) -> None:
        if self._wake in ready:
            raise Interrupted(os.read(self._wake, 1)[0])


def readable(seconds: float, *fds: int) -> list[int]:
    """Those of `fds` that can be read, or are at their end, after at most so many seconds."""
    poller = poll()
    for fd in fds:
        poller.register(fd, POLLIN)
    return [fd for fd, _ in poller.poll(seconds * 1000)]
