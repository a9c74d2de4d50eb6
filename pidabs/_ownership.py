"""Owning a lock: how one Lock's state changes when it is taken, waited for, let go, lost, or moved by a fork.

The protocol is in _queue.py and _handover.py.  What changes here is who knows of a socket; the kernel knows who holds
the lock.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from . import _descriptors, _diag, _held, _inherit, _linux, _queue
from ._descriptors import Socket
from ._drive import FOR_EVER
from ._errors import AlreadyHeld, MirrorError, Unsupported
from ._holder import Holder, ask, of_peer
from ._linux import attempt
from ._mirror import Mirror
from ._names import is_path, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _weakref import ref
    from types import EllipsisType

    from ._drive import Steps
    from ._lock import Lock
    from ._names import Name

_LONGEST = 1e9  # seconds; more would overflow somewhere
_UNDO_TRIES = 16

_local: set[int] = set()
"""Devices on which a path has been, and that have been looked at."""


class Ownership:
    """The part of a Lock that changes hands."""

    __slots__ = ("__weakref__", "_mirror", "_owner", "_ref", "_sock", "_task", "_timeout", "address", "name")

    name: str
    address: bytes
    _ref: ref[Lock]
    _alone = True
    """Whether it excludes by its name alone, and so only in one network namespace; with interop a file does, too."""

    def __init__(
        self, name: Name, timeout: float | None, mirror: bool | str | os.PathLike[str], scope: str | None
    ) -> None:
        self._sock: Socket | None = None
        self._mirror: Mirror | None = None
        if not _linux.supported():
            raise Unsupported(
                f"cannot make lock {name!r}: {sys.platform} has no abstract unix sockets; pidabs needs Linux"
            )
        if mirror is True and not is_path(name):
            raise ValueError(f"mirror=True needs a path for a name, to write the PID file to, not {name!r}")
        self.name, self.address = resolve(name, scope)
        if mirror:
            self._mirror = Mirror(self.name if mirror is True else resolve(os.path.join(os.curdir, mirror))[0])
        if self._alone and is_path(name):
            _look_where(self.name)
        self._timeout = _checked(timeout)
        self._owner = _held.nobody
        self._task: object = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, checked with the kernel: a forked child does not."""
        sock = self._sock
        return sock is not None and _descriptors.is_listener(sock, self.address)

    def holder(self) -> Holder | None:
        """Who holds the lock, None if nobody does.  Raises OSError if the kernel cannot be asked."""
        sock = self._sock
        if sock is not None and _descriptors.is_listener(sock, self.address):
            return of_peer(sock, self.address)
        return ask(self.address)

    def _seconds(self, timeout: float | EllipsisType | None) -> float | None:
        return self._timeout if timeout is ... else None if timeout is None else _checked(timeout)

    def _begin(self, seconds: float | None, task: object, hand: list[Socket]) -> Steps[bool] | None:
        """Take the lock if it is free; else the steps that wait for it, and say whether it was taken in time."""
        if self._sock is not None:
            self._check_not_ours(task)
        sock = _descriptors.open_socket(hand)
        if not _queue.bind(sock, self.address):
            return self._wait(sock, seconds, task, hand)
        self._own(sock, task)
        return None

    def _wait(self, sock: Socket, seconds: float | None, task: object, hand: list[Socket]) -> Steps[bool]:
        if seconds == 0:
            if (yield from _queue.bind_after_exec(sock, self.address)):
                self._own(sock, task)
                return True
            _descriptors.close(sock)
            return False
        if seconds is None:
            self._check_deadlock(task)
        deadline = FOR_EVER if seconds is None else monotonic() + seconds
        listener = yield from _queue.wait(sock, self.address, deadline, hand)
        if listener is None:
            return False
        self._own(listener, task)
        hand.clear()  # it refers to the socket, and the socket to it
        return True

    def _explain(self, exc: BaseException) -> None:
        if isinstance(exc, OSError) and exc.errno is not None:  # not what a signal handler raises
            exc.filename = self.name
            if _linux.denied(exc):
                raise Unsupported(f"cannot acquire lock {self.name!r}: abstract sockets are denied here") from exc

    def _drop(self, sock: Socket | None, hand: list[Socket]) -> Socket | None:
        """Give up what is held, and close it if nobody waits: the listener, None if nothing is held."""
        with _descriptors.guard:  # not while another thread forks: the lock may be moving to the child
            if sock is None or not _descriptors.is_listener(sock, self.address) or _inherit.is_moving(self):
                return None
            if not _claim(sock, hand):
                return None
            self._task = None
            self._sock = None  # before another thread is granted the lock through this object
            if self._mirror is None:
                _queue.close_if_idle(sock, self.address)
                return sock
        self._mirror.remove()  # before another process takes the lock, and writes its own
        with _descriptors.guard:
            if _descriptors.is_known(sock):
                _queue.close_if_idle(sock, self.address)
        return sock

    def _is_mine(self, task: object) -> bool:
        """Whether this thread, or this task, would wait for itself.  Another task of this thread may go on."""
        return self._owner is _held.here.thread and (task is None or self._task is task)

    def _check_not_ours(self, task: object) -> None:
        sock = self._sock
        if sock is None:
            return
        if _descriptors.is_listener(sock, self.address):
            if self._is_mine(task):
                raise AlreadyHeld(f"cannot acquire lock {self.name!r}: this thread holds it already")
        elif _held.held.pop(sock, None) is not None:  # lost, or left behind by a fork; not just being released
            if self._sock is sock:
                self._sock = None
            _descriptors.abandon(sock)

    def _check_deadlock(self, task: object) -> None:
        if any(lock.address == self.address and lock._is_mine(task) for lock in _held.locks()):
            reason = "this thread holds it already, through another object"
            raise AlreadyHeld(f"cannot wait for lock {self.name!r}: {reason}")

    def _own(self, sock: Socket, task: object) -> None:
        lost = self._sock  # while we waited: who releases leaves None
        if lost is not None and _held.held.pop(lost, None) is not None:
            _descriptors.abandon(lost)
        if self._mirror is not None or not self._alone:  # a daemon's, it may be
            sock = _descriptors.lift(sock)
        self._owner = _held.here.thread
        self._task = task
        self._sock = sock
        _held.held[sock] = self._ref
        if self._mirror is not None:
            self._mirror.forget()  # that of a hold that was lost
            try:
                self._mirror.write()
            except OSError as exc:
                if exc.errno is None:  # a signal handler's
                    raise
                reason = f"its PID file {self._mirror.path!r} cannot be written: {exc.strerror}"
                raise MirrorError(f"cannot acquire lock {self.name!r}: {reason}") from exc

    def _undo(self, hand: list[Socket], released: Socket | None = None) -> None:
        """After an exception anywhere in acquire or release: hold nothing.  A second one is raised when that is done.

        What it made came in `hand`.  What another thread acquired or releases through this object is that thread's.
        """
        second: BaseException | None = None
        for _ in range(_UNDO_TRIES):
            try:
                sock = released or self._sock
                with _descriptors.guard:
                    mine = sock is not None and (sock.hand is hand or (sock is released and _claim(sock, hand)))
                if sock is not None and mine:
                    released = sock
                    _held.held.pop(sock, None)
                    if self._sock is sock:
                        self._sock = None
                    if self._mirror is not None:
                        self._mirror.remove()
                    _descriptors.abandon(sock)
                _descriptors.sweep(hand)
                break
            except BaseException as exc:
                second = exc
        try:
            if second is not None:
                raise second
        finally:
            second = None  # else it and this frame keep each other alive, and what is left open with them

    def _drop_dead(self) -> None:
        """Drop the dead entries at the head of our queue.

        The guard is held from the look to the last accept: 1. Two threads see a dead head, or one sees it and another
        releases.  2. One accepts it.  3. The other accepts the next, who lives, would lose its place, and is asleep.
        Nor may the lock be on its way: its next owner, in another process, accepts from the same queue.
        """
        with _descriptors.guard:
            sock = self._sock
            if sock is None or sock not in _held.held or _inherit.is_moving(self):
                return
            if not _descriptors.is_listener(sock, self.address):
                return
            hand: list[Socket] = []
            try:
                for inode in attempt(_diag.queue, os.fstat(sock.fileno()).st_ino) or ():
                    connection = None if inode else attempt(_descriptors.accept, sock, hand)
                    if connection is None:
                        return
                    _descriptors.close(connection)
            except BaseException:
                _descriptors.sweep(hand)
                raise

    def _why_not_held(self, doing: str) -> str:
        if self._sock is None:
            return f"cannot {doing} lock {self.name!r}: it is not held by this object"
        if _inherit.is_moving(self):
            return f"cannot {doing} lock {self.name!r}: a fork in `with lock.across_fork()` is moving it to the child"
        return (
            f"lock {self.name!r} was lost: its descriptor was closed behind our back, as DaemonContext does unless "
            "told files_preserve=[lock], or the process forked without `with lock.across_fork()`"
        )

    # What a fork does with it; see _inherit.py ----------------------------------------------------------------------

    def _moving(self) -> tuple[Socket | None, int]:
        return self._sock, self._mirror.fd if self._mirror is not None else -1

    def _arrive(self) -> None:
        self._owner = _held.here.thread
        if self._sock is not None:
            self._sock.listen(_queue.BACKLOG)
        if self._mirror is not None:
            self._mirror.move_here()

    def _leave(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            _held.held.pop(sock, None)
            _descriptors.abandon(sock)
        if self._mirror is not None:
            self._mirror.forget()

    def _settle(self) -> None:
        if self._mirror is not None and self.held:
            self._mirror.relock()


def _claim(sock: Socket, hand: list[Socket]) -> bool:
    """Under the guard: of two threads that release a socket, one gets it into its hand."""
    if sock not in _held.held:
        return False
    sock.hand = hand  # first: an exception after it undoes the rest
    del _held.held[sock]
    return True


def _look_where(path: str) -> None:
    status = attempt(os.stat, os.path.dirname(path))
    if status is not None and status.st_dev not in _local:
        _local.add(status.st_dev)
        try:
            from ._remote import warn_of_other_hosts  # seldom needed, and dispensable: a chroot may have no library
        except ImportError:
            return
        warn_of_other_hosts(path)


def _checked(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:  # nor NaN
        raise ValueError(f"a timeout must not be negative: {timeout!r}")
    return None if timeout > _LONGEST else timeout
