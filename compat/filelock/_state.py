"""What a lock was told, checked as filelock 4.2 checks it, and what its threads hold.

A Hold is taken and dropped under its gate.  Whether it is really held, the kernel says.
"""

from __future__ import annotations

import math
import os
from decimal import Decimal
from numbers import Real
from threading import TIMEOUT_MAX, RLock, current_thread, local
from typing import TYPE_CHECKING, Any
from warnings import warn

from pidabs import Lock, NotHeld

if TYPE_CHECKING:
    from threading import Thread

UNSET_MODE = -1
POSITIONAL = ("timeout", "mode", "thread_local")

DEFAULTS: dict[str, Any] = {
    "timeout": -1.0,
    "mode": UNSET_MODE,
    "thread_local": True,
    "blocking": True,
    "is_singleton": False,
    "poll_interval": 0.05,
    "lifetime": None,
    "context_error_policy": "chain",
    "close_error_policy": "default",
    "fallback_to_soft": True,
    "preserve_lock_file": False,
    "on_acquired": None,
    "mirror": None,
}
_POLICIES = {
    "context_error_policy": ("chain", "group"),
    "close_error_policy": ("default", "raise", "suppress"),
}


def check_options(options: dict[str, Any], owner: str, level: int = 4) -> dict[str, Any]:
    """The options as they are kept.  Raises TypeError or ValueError."""
    checked = dict(options)
    checked["timeout"] = number("timeout", options["timeout"])
    checked["poll_interval"] = check_interval(options["poll_interval"])
    check_lifetime(options["lifetime"], owner, level + 1)
    checked["lifetime"] = None
    check_blocking(options["blocking"])
    _check_mode(options["mode"], owner)
    for name, policies in _POLICIES.items():
        if options[name] not in policies:
            known = ", ".join(map(repr, policies))
            raise ValueError(f"{name} must be one of {known}, got {options[name]!r}")
    if checked["mirror"] is None:
        checked["mirror"] = os.environ.get("PIDABS_MIRROR") == "1"
    return checked


def check_blocking(blocking: bool) -> None:
    if not isinstance(blocking, bool):
        raise TypeError(f"blocking must be a bool, not {type(blocking).__name__}")


def check_interval(value: float) -> float:
    seconds = number("poll_interval", value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"poll_interval must be finite and non-negative, not {value!r}")
    if seconds > TIMEOUT_MAX:
        raise ValueError(f"poll_interval must not exceed threading.TIMEOUT_MAX ({TIMEOUT_MAX}), got {value!r}")
    return seconds


def check_lifetime(value: float | None, owner: str, level: int) -> None:
    """Nobody takes a lock from a live process, however old: so it is dropped, with a warning."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        value = number("lifetime", value)
    if not (isinstance(value, int) or value < math.inf) or value < 0:
        raise ValueError(f"lifetime must be finite and non-negative, not {value!r}")
    reason = "a native lock is not taken from a live process; only SoftFileLock supports lifetime-based expiry"
    warn(f"lifetime is ignored for {owner}: {reason}", stacklevel=level)


def number(name: str, value: Any) -> float:
    """A number of seconds, of any real type."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if isinstance(value, Decimal) and value.is_snan():
        return math.nan
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large to be a number of seconds: {value!r}") from None
    return -math.ulp(0.0) if seconds == 0 and value < 0 else seconds


def same(name: str, first: Any, second: Any) -> bool:
    """Whether two values of an option mean the same."""
    if name == "timeout":
        return _waits(first) == _waits(second)
    return bool(first is second if name in ("on_acquired", "loop", "executor") else first == second)


def _waits(timeout: float) -> object:
    if math.isnan(timeout):
        return "nan"
    return -1 if timeout < 0 or timeout == math.inf else timeout


def _check_mode(mode: int, owner: str) -> None:
    if mode == UNSET_MODE:
        return
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"mode must be an int, not {type(mode).__name__}")
    if not 0 <= mode <= 0o777:
        raise ValueError(f"mode={mode:#o} must be within 0o000-0o777 for {owner}")
    if ~mode & 0o600:
        raise ValueError(f"mode={mode:#o} must grant the owner read and write for {owner}")


class Hold:
    """One thread's hold, with what that thread has set; of a lock that is not thread-local, everybody's."""

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
        "turns",
        "wait",
        "where",
    )

    def __init__(self, options: dict[str, Any], thread: Thread | None) -> None:
        self.expect(options["timeout"], options["blocking"])
        self.interval: float = options["poll_interval"]
        self.count = 0
        self.thread = thread
        self.gate = RLock()  # one thread at a time takes or drops the lock
        self.busy = ""  # which of the two; a signal handler gets through the gate
        self.turns: Any = None  # the same among tasks
        self.logs = False
        self.lock: Lock | None = None
        self.where: tuple[object, ...] = ()  # the directory, when `lock` got its name

    def expect(self, timeout: float, blocking: bool) -> None:
        """Set the defaults of `acquire`."""
        self.timeout = timeout
        self.blocking = blocking
        self.wait = timeout if timeout != timeout else self.seconds(None, None)

    def seconds(self, timeout: float | None, blocking: bool | None) -> float | None:
        """How long to wait, as pidabs.Lock takes it: None for ever, 0 not at all."""
        if blocking is None:
            blocking = self.blocking
        check_blocking(blocking)
        seconds = self.timeout if timeout is None else number("timeout", timeout)
        if not blocking:
            return 0
        if seconds != seconds:
            raise ValueError("timeout must be a number of seconds, not nan")
        return None if seconds < 0 or seconds == math.inf else seconds

    @property
    def held(self) -> bool:
        """Asks the kernel: a forked child holds nothing, nor does a daemon whose descriptors were closed."""
        return self.count > 0 and self.lock is not None and self.lock.held

    def let_go(self) -> None:
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
            self.count = 0
            self.busy = ""

    def undo(self, before: int) -> None:
        """After an exception anywhere in acquire: give back what it took, unless we are a signal handler on top."""
        if before:
            self.count = before
        elif not self.busy and self.lock is not None and self.lock.held:
            self.let_go()


class Shared:
    """The one Hold of a lock that is not thread-local."""

    def __init__(self, options: dict[str, Any], holds: list[Hold]) -> None:
        self.hold = Hold(options, None)
        holds.append(self.hold)


class PerThread(local):
    """A Hold for each thread: made when the thread first asks, and kept while it holds or lives."""

    def __init__(self, options: dict[str, Any], holds: list[Hold]) -> None:
        self.hold = Hold(options, current_thread())
        holds[:] = [hold for hold in holds if hold.count or _is_alive(hold)]
        holds.append(self.hold)


def _is_alive(hold: Hold) -> bool:
    return hold.thread is None or hold.thread.is_alive()
