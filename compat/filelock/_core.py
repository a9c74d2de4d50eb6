"""What the blocking and the awaited locks share: what they keep, and the name that a path has now."""

from __future__ import annotations

import builtins
import errno
import os
import stat
from logging import DEBUG, getLogger
from os import getpid
from typing import TYPE_CHECKING, Any, ClassVar
from warnings import warn

from filelock import Timeout, __version__

from pidabs import Lock

from ._state import (
    DEFAULTS,
    UNSET_MODE,
    Hold,
    PerThread,
    Shared,
    check_blocking,
    check_interval,
    check_lifetime,
    check_options,
    number,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from filelock import CloseErrorPolicy, ContextErrorPolicy

    Path = str | os.PathLike[str]

LOGGER = getLogger("filelock")
debugging = LOGGER.isEnabledFor
_NEW_IN_A_CHILD = int(__version__.partition(".")[0]) >= 4
"""filelock 4 refuses a lock that was inherited across a fork; 3 lets the child use it, and so do we then."""


class Core:
    """What the blocking and the awaited locks share."""

    _defaults: ClassVar[dict[str, Any]] = DEFAULTS
    _holder = "FileLock instance in this thread"

    def _set_up(self, lock_file: Path, options: dict[str, Any]) -> None:
        options = {name: options[name] for name in self._defaults}
        self._file: str = os.fspath(lock_file)
        self._dir = os.path.dirname(self._file) or os.curdir
        self._given = check_options(options, type(self).__name__, 5)
        self._hook: Callable[[int], None] | None = options["on_acquired"]
        self._start_afresh()
        self._pid = getpid()  # last: an object that failed to be built has nothing to release

    def _start_afresh(self) -> None:
        self._holds: list[Hold] = []
        kind = PerThread if self._given["thread_local"] else Shared
        self._mine: PerThread | Shared = kind(self._given, self._holds)

    def _options(self) -> dict[str, Any]:
        hold = self._mine.hold
        now = {"timeout": hold.timeout, "blocking": hold.blocking, "poll_interval": hold.interval}
        return {**self._given, **now}

    def _is_now(self, name: str) -> bool:
        """For a singleton: whether it stands for this name still, after a chdir, say."""
        hold = self._mine.hold
        if self._pid != getpid():
            return False
        return (hold.lock.name if hold.lock is not None and hold.held else canonical(self._file)) == name

    # How a lock is taken ---------------------------------------------------------------------------------------------

    def _inherited(self) -> Hold:
        """In a forked child."""
        if _NEW_IN_A_CHILD:
            reason = "was inherited across fork; construct a new instance"
            raise RuntimeError(f"{type(self).__name__} on {self._file} {reason}")
        self._pid = getpid()
        self._start_afresh()
        return self._mine.hold

    def _lock_of(self, hold: Hold) -> Lock:
        """The lock by the name that its path has now.  As filelock does, makes the directory."""
        try:
            status = os.stat(self._dir)
        except FileNotFoundError:
            os.makedirs(self._dir, exist_ok=True)
            status = os.stat(self._dir)
        where: tuple[object, ...] = (status.st_ino, status.st_dev)
        if self._dir[0] != "/":
            where += (os.getcwd(),)
        if where != hold.where or hold.lock is None:
            _refuse_what_is_no_file(self._file)
            hold.lock = Lock(os.path.join(os.curdir, self._file), mirror=self._given["mirror"])
            hold.where = where
        return hold.lock

    def _begin(self, hold: Hold) -> Lock:
        """The lock to wait for."""
        if hold.busy:  # a signal handler, or a collected object's __del__, on top of the acquire or release itself
            reason = f"is acquired again while this thread's {hold.busy} of it waits"
            raise RuntimeError(f"Deadlock: lock '{self._file}' {reason}")
        hold.logs = debugging(DEBUG)
        if hold.logs:
            self._log("Attempting to acquire lock %s on %s")
        lock = self._lock_of(hold)
        hold.busy = "acquire"
        return lock

    def _counts_down(self, hold: Hold, force: bool) -> bool:
        """Whether that was the last of it, and the lock is to be released."""
        if hold.busy:  # we are a signal handler, on top of it
            return False
        if hold.count > 1 and not force:
            hold.count -= 1
            return False
        if hold.logs:
            self._log("Attempting to release lock %s on %s")
        return hold.count > 0

    def _log(self, message: str) -> None:
        LOGGER.debug(message, id(self), self._file)

    def _reconcile(self, body: BaseException | None, failure: BaseException) -> None:
        """Leaving the block failed, and its body may have, too: `context_error_policy` says how both are shown."""
        if body is not None and self._given["context_error_policy"] == "group":
            group: Any = getattr(builtins, "BaseExceptionGroup", None)  # Python 3.11's
            if group is not None:
                raise group("lock body and release both failed", (body, failure)) from None

    def _too_late(self, seconds: float | None) -> Timeout:
        self._log(
            "Failed to immediately acquire lock %s on %s" if seconds == 0 else "Timeout on acquiring lock %s on %s"
        )
        return Timeout(self._file)

    def _would_deadlock(self) -> RuntimeError:
        remedy = "Use is_singleton=True to enable reentrant locking across instances."
        return RuntimeError(f"Deadlock: lock '{self._file}' is already held by a different {self._holder}. {remedy}")

    def _is_taken(self, hold: Hold) -> None:
        """It is ours: tell those who want to know.  The hook may take it once more."""
        if hold.logs:
            self._log("Lock %s acquired on %s")
        if self._hook is not None and hold.lock is not None:
            try:
                self._hook(hold.lock.fileno())
            except BaseException:
                hold.let_go()
                raise

    def __del__(self, _getpid: Callable[[], int] = getpid) -> None:
        if self.__dict__.get("_pid") == _getpid():
            for hold in self._holds:
                if hold.count:
                    hold.let_go()

    # What a lock says of itself --------------------------------------------------------------------------------------

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock; if it is thread-local, whether this thread does through it."""
        return self._mine.hold.held

    @property
    def lock_counter(self) -> int:
        """How often it was acquired and not yet released."""
        hold = self._mine.hold
        return hold.count if hold.held else 0

    @property
    def lock_file(self) -> str:
        """The path, as it was given."""
        return self._file

    @property
    def timeout(self) -> float:
        """The default of `acquire`, in seconds; if thread-local, this thread's, as are the next three."""
        return self._mine.hold.timeout

    @timeout.setter
    def timeout(self, value: float | str) -> None:
        if isinstance(value, (str, bytes, bytearray)):
            warn("setting timeout from a string is deprecated; pass a number", DeprecationWarning, stacklevel=2)
            value = float(value)
        self._mine.hold.expect(number("timeout", value), self.blocking)

    @property
    def blocking(self) -> bool:
        return self._mine.hold.blocking

    @blocking.setter
    def blocking(self, value: bool) -> None:
        check_blocking(value)
        self._mine.hold.expect(self.timeout, value)

    @property
    def poll_interval(self) -> float:
        """How often `cancel_check` is called, in seconds."""
        return self._mine.hold.interval

    @poll_interval.setter
    def poll_interval(self, value: float) -> None:
        self._mine.hold.interval = check_interval(value)

    @property
    def lifetime(self) -> float | None:
        """None: no lock is taken from a live process."""
        return None

    @lifetime.setter
    def lifetime(self, value: float | None) -> None:
        check_lifetime(value, type(self).__name__, 3)

    @property
    def mode(self) -> int:
        mode: int = self._given["mode"]
        return 0o644 if mode == UNSET_MODE else mode

    @property
    def has_explicit_mode(self) -> bool:
        return bool(self._given["mode"] != UNSET_MODE)

    @property
    def is_singleton(self) -> bool:
        return bool(self._given["is_singleton"])

    @property
    def context_error_policy(self) -> ContextErrorPolicy:
        policy: ContextErrorPolicy = self._given["context_error_policy"]
        return policy

    @property
    def close_error_policy(self) -> CloseErrorPolicy:
        policy: CloseErrorPolicy = self._given["close_error_policy"]
        return policy

    @property
    def fallback_to_soft(self) -> bool:
        return bool(self._given["fallback_to_soft"])

    @property
    def preserve_lock_file(self) -> bool:
        return bool(self._given["preserve_lock_file"])

    @property
    def on_acquired(self) -> Callable[[int], None] | None:
        return self._hook

    def is_thread_local(self) -> bool:
        return bool(self._given["thread_local"])


def canonical(lock_file: Path) -> str:
    """The path as pidabs.Lock resolves it: the directory's symlinks, and not the last part."""
    head, tail = os.path.split(os.fspath(lock_file))
    return os.path.join(os.path.realpath(head), tail)


def _refuse_what_is_no_file(path: str) -> None:
    """As filelock does, which would open it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if os.path.basename(path):
            return
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
