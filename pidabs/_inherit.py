"""What a forked child inherits: nothing, unless the lock moves to it.

Rule: the lock belongs to the process that took it.  A copy of a listener would keep the lock after its holder's death,
and a copy of a waiting connection would swallow a grant, so the child closes both, and the mirror's flock with them.

`across_fork` turns that round for daemons that take the lock before they detach: the child calls listen() again, which
makes it the holder in SO_PEERCRED, and the parent drops its copy.

The parent waits until the child has done its part, a millisecond: a byte says so, the end of the connection says that
the fork has failed and nothing has moved (Python's after-fork hook runs in the parent in either case).  Where a lock
moves, the child waits in turn until the parent has dropped its copy.

The only register_at_fork.  Exec needs nothing: every descriptor is close-on-exec.
"""

from __future__ import annotations

import _thread
import os
from _socket import socket

from . import _mirror
from ._descriptors import Socket, close_inherited, guard, known
from ._linux import MSG_NOSIGNAL, POLLHUP, POLLIN, ioctl, poll, socketpair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol

    class Movable(Protocol):
        """A lock, as far as a fork is concerned."""

        @property
        def held(self) -> bool: ...
        def _moving(self) -> tuple[Socket | None, int]:
            """Its listener, and its mirror's descriptor or -1."""

        def _arrive(self) -> None:
            """In the child: it is ours now."""

        def _leave(self) -> None:
            """In the parent: it is the child's now."""

        def _settle(self) -> None:
            """At the end of the block."""


_FIONREAD = 0x541B
_MOVE_TIME = 10_000  # ms; a child that says nothing for so long exists, and is stopped or very slow
_CLOSE_TIME = 1_000  # ms


class AcrossFork:
    """Inside this block each fork by this thread moves the lock, if it is held, to the child."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Movable) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        _blocks.append((_thread.get_ident(), self._lock))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        _blocks.remove((_thread.get_ident(), self._lock))
        self._lock._settle()


_blocks: list[tuple[int, Movable]] = []


class _Fork:
    """A fork under way: what moves with it, and a pair of sockets by which parent and child wait for each other.

    Each part can be run again where an exception broke it off.
    """

    __slots__ = ("done", "locks", "pair", "prepared")

    def __init__(self) -> None:
        self.prepared = False
        self.done = False
        self.locks: list[Movable] = []
        self.pair: tuple[socket, socket] | None = None

    def prepare(self) -> None:
        """Raises OSError for want of descriptors; then nothing moves."""
        thread = _thread.get_ident()
        locks = [lock for ident, lock in _blocks if ident == thread and lock.held]
        if not self.prepared and (locks or known):
            try:
                self.locks, self.pair = locks, socketpair()
            except OSError:
                self.locks = []
                self.prepared = True
                raise
        self.prepared = True

    def in_child(self) -> None:
        moving = [lock._moving() for lock in self.locks]
        close_inherited([sock for sock, _ in moving])
        _mirror.close_inherited({fd for _, fd in moving})
        try:
            for lock in self.locks:
                lock._arrive()
        finally:  # whatever went wrong, the parent waits for us
            if self.pair is not None:
                parent, child = self.pair
                parent.close()
                try:
                    child.send(b"1", MSG_NOSIGNAL)
                except OSError:
                    pass  # it is gone, or has waited long enough
                if self.locks:
                    # Until it has dropped its copies: else a lock that we free, or die with, would stay taken.
                    _events(child, POLLHUP, _MOVE_TIME)
                child.close()

    def in_parent(self) -> None:
        if self.pair is not None:
            parent, child = self.pair
            child.close()
            # The child has dropped its copies, too, when it speaks: else a lock that we free now would stay taken.
            events = _events(parent, POLLIN, _MOVE_TIME if self.locks else _CLOSE_TIME)
            if not events or _has_spoken(parent):
                for lock in self.locks:
                    lock._leave()
            parent.close()


def _events(sock: socket, events: int, timeout: int) -> int:
    if sock.fileno() < 0:
        return POLLHUP  # closed before we were interrupted
    poller = poll()
    poller.register(sock.fileno(), events)
    found = poller.poll(timeout)
    return found[0][1] if found else 0


def _has_spoken(sock: socket) -> bool:
    """Whether there is something to read.  Left there, for the case that we are interrupted and look again."""
    return sock.fileno() >= 0 and any(ioctl(sock.fileno(), _FIONREAD, b"\0\0\0\0"))


_fork = _Fork()


def is_moving(lock: Movable) -> bool:
    """Whether a fork under way may give this lock to its child.

    Who hands it to a waiter then makes two holders.  Other threads wait for `guard`; this tells the thread that forks,
    whose signal handler may release.
    """
    return lock in _fork.locks and not _fork.done


def _before() -> None:
    global _fork
    _mirror.forks += 1
    if _fork.done:
        _fork = _Fork()
    _fork.prepare()


def _in_child() -> None:
    if not _fork.done:
        _fork.in_child()
        _blocks[:] = [block for block in _blocks if block[0] == _thread.get_ident()]
    _fork.done = True
    _fork.locks = []  # else they live until the next fork, and one that is dropped while held stays held


def _in_parent() -> None:
    if not _fork.done:
        _fork.in_parent()
    _fork.done = True
    _fork.locks = []  # else they live until the next fork, and one that is dropped while held stays held


if hasattr(os, "register_at_fork"):
    # Twice: a signal that arrives just before the fork, or during it, is delivered in the first hook that runs then,
    # and its handler may raise.
    for _ in range(2):
        os.register_at_fork(before=_before, after_in_child=_in_child, after_in_parent=_in_parent)
    # The last to be registered is the first before a fork and the last after it.  Until the fork is over, nobody is
    # between receiving a descriptor and making it known, and nobody releases a lock that has moved.  As C functions
    # these cannot be interrupted.
    os.register_at_fork(before=guard.acquire, after_in_child=guard.release, after_in_parent=guard.release)
