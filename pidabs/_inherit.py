"""What a forked child inherits: nothing, unless the lock moves to it.

Rule: the lock belongs to the process that took it.  A copy of a listener would keep the lock after its holder's death,
and a copy of a waiting connection would swallow a grant, so the child closes both, and the mirror's flock with them.

`across_fork` turns that round for daemons that take the lock before they detach: the child calls listen() again, which
makes it the holder in SO_PEERCRED, and the parent drops its copy.

The parent waits until the child has done its part, a millisecond: a byte in a pipe says so, EOF says that the fork has
failed and nothing has moved (Python's after-fork hook runs in the parent in either case).  Where a lock moves, the
child waits in turn until the parent has dropped its copy, which closes the pipe.

The only register_at_fork.  Exec needs nothing: every descriptor is close-on-exec.
"""

from __future__ import annotations

import _thread
import os
from select import POLLIN, poll

from . import _mirror
from ._descriptors import Socket, abandon, guard, known

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
    """A fork under way: what moves with it, and the pipe through which the child says that it has run its hook."""

    __slots__ = ("locks", "reader", "writer")

    def __init__(self) -> None:
        thread = _thread.get_ident()
        self.locks = [lock for ident, lock in _blocks if ident == thread and lock.held]
        self.reader, self.writer = os.pipe() if self.locks or known else (-1, -1)

    def in_child(self) -> None:
        moving = [lock._moving() for lock in self.locks]
        _close_inherited([sock for sock, _ in moving])
        _mirror.close_inherited({fd for _, fd in moving})
        try:
            for lock in self.locks:
                lock._arrive()
        finally:  # whatever went wrong, the parent waits for us
            if self.writer >= 0:
                os.write(self.writer, b"1")
                if self.locks:
                    self._wait_for_parent()
                self._close()

    def in_parent(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1
            try:
                if self._child_has_spoken():
                    for lock in self.locks:
                        lock._leave()
            finally:
                self._close()

    def _child_has_spoken(self) -> bool:
        """Whether there is a child.  It has dropped its copies, too: else a lock that we free now would stay taken."""
        poller = poll()
        poller.register(self.reader, POLLIN)
        ready = poller.poll(_MOVE_TIME if self.locks else _CLOSE_TIME)
        return not ready or os.read(self.reader, 1) == b"1"

    def _wait_for_parent(self) -> None:
        """Until it has dropped its copies: else a lock that we free, or die with, would stay taken until it runs."""
        os.close(self.reader)
        self.reader = -1
        poller = poll()
        poller.register(self.writer, 0)  # POLLERR, which is always reported: nobody is left to read
        poller.poll(_MOVE_TIME)

    def _close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


_fork: _Fork | None = None


def _before() -> None:
    global _fork
    # Until the fork is over: nobody is between receiving a descriptor and making it known, and nobody releases a lock
    # that has moved already.
    guard.acquire()
    _fork = None
    _fork = _Fork()  # where this fails, for want of descriptors, nothing moves, and Python reports why


def _in_child() -> None:
    global _fork
    fork, _fork = _fork, None
    try:
        if fork is not None:
            fork.in_child()
        else:
            _close_inherited([])
            _mirror.close_inherited(set())
    finally:
        _blocks[:] = [block for block in _blocks if block[0] == _thread.get_ident()]
        guard.release()


def _in_parent() -> None:
    global _fork
    fork, _fork = _fork, None
    try:
        if fork is not None:
            fork.in_parent()
    finally:
        guard.release()


def _close_inherited(moving: list[Socket | None]) -> None:
    for entry in list(known.values()):
        sock = entry()
        if sock is not None and sock not in moving:
            abandon(sock)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child, after_in_parent=_in_parent)
