"""What a forked child inherits: nothing, unless the lock moves to it.

Rule: the lock belongs to the process that took it.  A copy of a listener would keep the lock after its holder's death, and a
copy of a waiting connection would swallow a grant, so the child closes both, and the mirror's flock with them.

`across_fork` turns that round for daemons that take the lock before they detach: the child calls listen() again, which
makes it the holder in SO_PEERCRED, and the parent drops its copy.  Python's after-fork hook runs in the parent also when
the fork has failed, so the parent waits for the child's word in a pipe: a byte means that the lock has moved, EOF that
there is no child and nothing has.

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


_CHILD_TIME = 10_000  # ms; a child that says nothing for so long exists, and is stopped or very slow


class AcrossFork:
    """Inside this block each fork by this thread moves the lock, if it is held, to the child."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Movable) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        _blocks.append((_thread.get_ident(), self._lock))

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        _blocks.remove((_thread.get_ident(), self._lock))
        self._lock._settle()


_blocks: list[tuple[int, Movable]] = []
_pipe: tuple[int, int] | None = None


def _before() -> None:
    global _pipe
    guard.acquire()  # nobody is between receiving a descriptor and making it known
    _pipe = None
    if _moving_locks():
        _pipe = os.pipe()  # where this fails nothing moves, and Python reports why


def _in_child() -> None:
    global _pipe
    pipe, _pipe = _pipe, None
    locks = _moving_locks() if pipe else []
    moving = [lock._moving() for lock in locks]
    _close_inherited([sock for sock, _ in moving])
    _mirror.close_inherited({fd for _, fd in moving})
    _blocks[:] = [block for block in _blocks if block[0] == _thread.get_ident()]
    guard.release()
    if pipe:
        for lock in locks:
            lock._arrive()
        os.write(pipe[1], b"1")
        os.close(pipe[0])
        os.close(pipe[1])


def _in_parent() -> None:
    global _pipe
    pipe, _pipe = _pipe, None
    locks = _moving_locks()
    guard.release()
    if pipe:
        os.close(pipe[1])
        if _child_took_over(pipe[0]):
            for lock in locks:
                lock._leave()


def _moving_locks() -> list[Movable]:
    thread = _thread.get_ident()
    return [lock for ident, lock in _blocks if ident == thread and lock.held]


def _close_inherited(moving: list[Socket | None]) -> None:
    for entry in list(known.values()):
        sock = entry()
        if sock is not None and sock not in moving:
            abandon(sock)


def _child_took_over(reader: int) -> bool:
    poller = poll()
    poller.register(reader, POLLIN)
    moved = not poller.poll(_CHILD_TIME) or os.read(reader, 1) == b"1"
    os.close(reader)
    return moved


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child, after_in_parent=_in_parent)
