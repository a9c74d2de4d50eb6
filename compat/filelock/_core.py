"""What the blocking and the awaited locks share: their options, and the name that a path has now.

filelock itself checks, keeps and shows the options: a lock that was given any but the plainest carries one of
filelock's, which is never acquired.  So they mean what they mean in the version that is installed.
"""

from __future__ import annotations

import builtins
import errno
import math
import os
import stat
from logging import DEBUG, getLogger
from os import getpid
from threading import RLock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar
from warnings import catch_warnings, simplefilter, warn

import filelock

from ._hold import Hold, PerThread, QuietLock, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from pidabs import Lock

    Path = str | os.PathLike[str]
    CancelCheck = Callable[[], bool]

    class _Shown:
        timeout: float
        blocking: bool
        poll_interval: float

else:
    _Shown = object

_LOGGER = getLogger("filelock")
_logs = _LOGGER.isEnabledFor
_NEW_IN_A_CHILD = int(filelock.__version__.partition(".")[0]) >= 4
"""4 refuses a lock that was inherited across a fork; 3 lets the child use it, and so do we then."""

UNSET_MODE = -1
INTERVAL = 0.05
_PLAIN = {"timeout": -1, "mode": UNSET_MODE, "blocking": True, "poll_interval": INTERVAL, "is_singleton": False}

_SINCE_3_13 = {
    "blocking": True,
    "poll_interval": INTERVAL,
    "lifetime": None,
    "context_error_policy": "chain",
    "close_error_policy": "default",
    "fallback_to_soft": True,
    "preserve_lock_file": False,
    "on_acquired": None,
}
"""Options, with their defaults, that an older filelock does not know; then they are kept as they are, unchecked."""


class Core(_Shown):
    """What the blocking and the awaited locks share."""

    _original: ClassVar[Any] = filelock.UnixFileLock
    _later: ClassVar[dict[str, Any]] = {}
    _thread_local: ClassVar[bool] = True
    _holder: ClassVar[str] = "FileLock instance in this thread"

    def _set_up(self, lock_file: Path, mirror: bool | None, interop: bool | None, **options: Any) -> None:
        self._file: str = os.fspath(lock_file)
        self._dir = os.path.dirname(self._file) or os.curdir
        self._relative = not os.path.isabs(self._dir)
        self._mirror = os.environ.get("PIDABS_MIRROR") == "1" if mirror is None else mirror
        self._interop = os.environ.get("PIDABS_INTEROP") == "1" if interop is None else interop
        if self._interop:
            from . import _flock as _flock  # now: after a chroot it may be out of reach
        default = {**_PLAIN, "thread_local": self._thread_local}
        self._told = {name: value for name, value in options.items() if value is not default.get(name)}
        self._hook: Callable[[int], None] | None = options.get("on_acquired")
        self._groups = options.get("context_error_policy") == "group"
        if all(name in ("timeout", "blocking") and checked(name, value) is value for name, value in self._told.items()):
            self._start_afresh(options["timeout"], options["blocking"], INTERVAL)
        else:
            self._start_afresh(self.timeout, self.blocking, self.poll_interval)

    def _start_afresh(self, *defaults: Any) -> None:
        self._pid = getpid()
        self._holds: list[Hold] = []
        if self._told.get("thread_local", self._thread_local):
            self._mine: Any = PerThread(self._holds, self._new_gate, *defaults)
        else:
            self._mine = SimpleNamespace(hold=Hold(None, self._new_gate(True), *defaults))

    @staticmethod
    def _new_gate(shared: bool) -> Any:
        """For a Hold; made with it, as two that come first at once would make one each.

        Static: a method would keep the lock alive.
        """
        return RLock() if shared else None

    @property
    def _options(self) -> Any:
        """filelock's own lock, made when first needed."""
        kept = self.__dict__.get("_kept")
        if kept is None:
            known = {name: value for name, value in self._told.items() if name not in self._later}
            kept = self.__dict__.setdefault("_kept", self._original(self._file, **known))
        return kept

    def _is_now(self, name: str) -> bool:
        """For a singleton: whether it stands for this name still, after a chdir, say."""
        lock = self._mine.hold.lock
        return (lock.name if lock is not None and lock.held else canonical(self._file)) == name

    def _inherited(self) -> Hold:
        """In a forked child."""
        if _NEW_IN_A_CHILD:
            reason = "was inherited across fork; construct a new instance"
            raise RuntimeError(f"{type(self).__name__} on {self._file} {reason}")
        self._start_afresh(self.timeout, self.blocking, self.poll_interval)
        return self._mine.hold  # type: ignore[no-any-return]

    def _begin(self, hold: Hold) -> Lock:
        """The lock to wait for, by the name that its path has now.  As filelock does, makes the directory."""
        if hold.busy:  # we are a signal handler, or a finalizer, on top of the acquire or release itself
            reason = f"is acquired again while this thread's {hold.busy} of it waits"
            raise RuntimeError(f"Deadlock: lock '{self._file}' {reason}")
        try:
            status = os.stat(self._dir)
        except FileNotFoundError:
            os.makedirs(self._dir, exist_ok=True)
            status = os.stat(self._dir)
        where: tuple[object, ...] = status[1:3]  # st_ino and st_dev
        if self._relative:
            where += (os.getcwd(),)
        if where != hold.where or hold.lock is None:
            _refuse_what_is_no_file(self._file)
            hold.lock = self._make_lock(os.path.join(os.curdir, self._file))
            hold.where = where
        hold.logs = _logs(DEBUG)
        hold.busy = "acquire"
        return hold.lock

    def _make_lock(self, path: str) -> Lock:
        if self._interop:
            from ._flock import make_lock

            return make_lock(path, self._told.get("mode"), self._mirror)
        return QuietLock(path, mirror=self._mirror)

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
        _LOGGER.debug(message, id(self), self._file)

    def _noting(self, hold: Hold, cancel_check: CancelCheck | None, interval: float) -> tuple[CancelCheck, float]:
        """The check, which is asked before each wait, logging so, and its interval.

        What is only logged wakes nobody: virtualenv has the root logger at NOTSET, whatever it shows.
        """
        self._log("Attempting to acquire lock %s on %s")

        def check() -> bool:
            cancelled = cancel_check is not None and cancel_check()
            hold.logs = not cancelled  # that is the last word then
            line = "Cancellation requested for lock %s on %s" if cancelled else "Lock %s not acquired on %s, waiting"
            self._log(line)
            return cancelled

        return check, interval if cancel_check is not None else math.inf

    def _too_late(self, hold: Hold, seconds: float | None) -> filelock.Timeout:
        if hold.logs:
            self._log(f"{'Timeout on acquiring' if seconds else 'Failed to immediately acquire'} lock %s on %s")
        return filelock.Timeout(self._file)

    def _would_deadlock(self) -> RuntimeError:
        remedy = "Use is_singleton=True to enable reentrant locking across instances."
        return RuntimeError(f"Deadlock: lock '{self._file}' is already held by a different {self._holder}. {remedy}")

    def _show_both(self, message: str, first: BaseException, second: BaseException) -> None:
        """Of two failures one would hide the other: `context_error_policy` may be to raise them as a group."""
        group: Any = getattr(builtins, "BaseExceptionGroup", None)  # Python 3.11's
        if self._groups and group is not None:
            if second.__context__ is first or _alike(second, second.__context__):
                second.__context__ = None
            raise group(message, (first, second)) from None

    def __del__(self, *args: Any, **kwargs: Any) -> None:
        """For a subclass's to call, as filelock has one.  The lock within is collected with us, and released so."""

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock; if it is thread-local, whether this thread does through it."""
        # A callback of os.register_at_fork comes before those by which a child's descriptors are closed.
        return self._mine.hold.held and self._pid == getpid()

    @property
    def lock_counter(self) -> int:
        """How often it was acquired and not yet released."""
        return self._mine.hold.count if self.is_locked else 0

    @property
    def lock_file(self) -> str:
        """The path, as it was given."""
        return self._file

    @property
    def is_singleton(self) -> bool:
        return bool(self._told.get("is_singleton", False))

    @property
    def has_explicit_mode(self) -> bool:
        return "mode" in self._told

    def is_thread_local(self) -> bool:
        return isinstance(self._mine, PerThread)

    @property
    def lifetime(self) -> float | None:
        """None: nobody takes a lock from a live process, however old."""
        return None

    @lifetime.setter
    def lifetime(self, value: float | None) -> None:
        self._ignore_lifetime(value)

    @classmethod
    def _ignore_lifetime(cls, value: float | None) -> None:
        """With filelock 4.2's warning, at the line of whoever called our caller."""
        if value is not None:
            with catch_warnings():
                simplefilter("ignore")
                cls._original(os.devnull, **{} if "lifetime" in cls._later else {"lifetime": value})
            reason = "a native OS lock cannot be broken safely by file age"
            remedy = "only SoftFileLock supports lifetime-based expiry"
            warn(f"lifetime is ignored for {cls.__name__}: {reason}; {remedy}", stacklevel=3)


def _shown(name: str) -> property:
    """An option, which filelock's own lock keeps, checks when it is set, and shows."""

    def show(self: Core) -> Any:
        return self._told.get(name, self._later[name]) if name in self._later else getattr(self._options, name)

    def set_to(self: Core, value: Any) -> None:
        if name in self._later:
            self._told[name] = value
        else:
            setattr(self._options, name, value)
        self._mine.hold.learn(self.timeout, self.blocking, self.poll_interval)

    return property(show, set_to)


def shown_of(original: Any, later: dict[str, Any]) -> dict[str, Any]:
    """What a base class says of its options, as this class of filelock's does."""
    properties = {name for name in dir(original) if isinstance(getattr(original, name), property)}
    later = {name: default for name, default in {**_SINCE_3_13, **later}.items() if name not in properties}
    names = (name for name in {*properties, *later} if name[0] != "_" and not hasattr(Core, name))
    return {**{name: _shown(name) for name in names}, "_original": original, "_later": later}


def canonical(lock_file: Path) -> str:
    """The path as pidabs.Lock resolves it: the directory's symlinks, and not the last part."""
    head, tail = os.path.split(os.fspath(lock_file))
    return os.path.join(os.path.realpath(head), tail)


def _alike(first: Any, second: Any) -> bool:
    """Whether it is one exception, or groups of the same ones."""
    if type(first) is not type(second) or not hasattr(first, "exceptions"):
        return first is second
    ours, theirs = first.exceptions, second.exceptions
    return first.message == second.message and len(ours) == len(theirs) and all(map(_alike, ours, theirs))


def _refuse_what_is_no_file(path: str) -> None:
    """As filelock does, which would open it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if os.path.basename(path):
            return
        raise
    error = errno.EISDIR if stat.S_ISDIR(mode) else errno.ELOOP if stat.S_ISLNK(mode) else 0
    if error:
        raise OSError(error, os.strerror(error), path)
