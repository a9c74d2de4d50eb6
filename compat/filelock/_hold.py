"""What one thread holds of a lock, and what it has set for itself.

A Hold is taken and dropped under its gate.  Whether it is really held, the kernel says.
"""

from __future__ import annotations

import math
import os
from threading import TIMEOUT_MAX, current_thread, local
from typing import TYPE_CHECKING, Any

import filelock

from pidabs import Lock, NotHeld

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread


def checked(name: str, value: Any) -> Any:
    """An argument, as the installed filelock checks it for the option of that name."""
    least = 0 if name == "poll_interval" else -TIMEOUT_MAX
    if type(value) is bool if name == "blocking" else type(value) in (int, float) and least <= value <= TIMEOUT_MAX:
        return value
    return getattr(filelock.UnixFileLock(os.devnull, **{name: value}), name, value)


def pass_gate(gate: Any, inside: list[bool], seconds: float) -> bool:
    """Enter, waiting at most so long, -1 for ever; `inside` then has an item, and says that the gate is to be released.

    In one call into C: else a signal handler could raise between the two, and nobody else would ever get through.
    """
    inside.extend(filter(None, map(gate.acquire, (True,), (seconds,))))
    return bool(inside)


class Hold:
    """One thread's hold, and the defaults it has set; of a lock that is not thread-local, everybody's."""

    __slots__ = (
        "blocking",
        "busy",
        "count",
        "gate",
        "interval",
        "lock",
        "logs",
        "thread",
        "timeout",
        "wait",
        "where",
    )

    timeout: float
    blocking: bool
    interval: float
    wait: float | None

    def __init__(self, thread: Thread | None, gate: Any, *defaults: Any) -> None:
        self.learn(*defaults)
        self.thread: Thread | None = thread
        self.count: int = 0
        # One thread, or task, at a time takes or drops what they share.
        self.gate: Any = gate
        self.busy: str = ""  # which of the two; a signal handler gets through the gate
        self.logs: bool = False  # whether it is logged, as `acquire` found
        self.lock: Lock | None = None
        self.where: tuple[object, ...] = ()  # the directory, when `lock` got its name

    def learn(self, timeout: float, blocking: bool, interval: float) -> None:
        """The defaults of `acquire`."""
        self.timeout, self.blocking, self.interval = timeout, blocking, interval
        self.wait = self.seconds(None, None)

    def seconds(self, timeout: float | None, blocking: bool | None) -> float | None:
        """How long to wait, as pidabs.Lock takes it: None for ever, 0 not at all, NaN as it is."""
        timeout = self.timeout if timeout is None else checked("timeout", timeout)
        if not (self.blocking if blocking is None else checked("blocking", blocking)):
            return 0
        return None if timeout < 0 or timeout == math.inf else timeout

    @property
    def held(self) -> bool:
        """Asks the kernel: a forked child holds nothing, nor does a daemon whose descriptors were closed."""
        return self.count > 0 and self.lock is not None and self.lock.held

    def let_go(self) -> None:
        """If that fails, as at the recursion limit it may even before the lock begins, `held` tells what came of it."""
        self.busy = "release"
        try:
            if self.lock is not None:
                self.lock.release()
        except NotHeld:
            pass  # lost, as `held` said
        except BaseException:  # a signal handler's, before the lock could begin
            if self.lock is not None and self.lock.held:
                self.lock.release()
            raise
        finally:
            self.busy = ""
        self.count = 0

    def undo(self, before: int) -> None:
        """After an exception anywhere in acquire: give back what it took, unless we are a signal handler on top."""
        if before:
            self.count = before
        elif not self.busy and self.lock is not None and self.lock.held:
            self.let_go()


class PerThread(local):
    """A Hold for each thread: made when the thread first asks, and kept while it holds or lives."""

    def __init__(self, holds: list[Hold], new_gate: Callable[[bool], Any], *defaults: Any) -> None:
        self.hold = Hold(current_thread(), new_gate(False), *defaults)
        holds[:] = [hold for hold in holds if hold.count or (hold.thread is not None and hold.thread.is_alive())]
        holds.append(self.hold)


class QuietLock(Lock):
    """Dropped while held, it is released without a warning, as filelock's locks are."""

    __slots__ = ()

    def __del__(self) -> None:
        if hasattr(self, "name") and self.held:  # else it was never made
            self.release()
        super().__del__()
