"""Step 4 of the protocol of _queue.py: the lock is handed to the first in the queue who still wants it."""

from __future__ import annotations

import errno
import os
import sys
from time import monotonic

from . import _descriptors, _linux
from ._descriptors import Socket
from ._drive import SOON, comes_soon, remaining, watching
from ._linux import MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET, attempt, read_byte, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._drive import Steps

WAITING, OFFER, ANSWER, GRANT = b"W", b"O", b"A", b"L"
_STRANGER, _NO_WAITER = b"a stranger", b"no waiter"  # nothing that can be said

_RELEASE_TIME = 0.050
_JOIN_TIME = 0.002  # between a waiter's connect and its W pass microseconds, unless it is preempted there
_MAX_SKIPPED = 256


def hand_over(listener: Socket, hand: list[Socket]) -> Steps[None] | None:
    """Step 4: grant the lock to the first in the queue who still wants it; free it if there is none, or none in time.

    None: it is done, as the first has answered at once, or nobody is there.  Else the steps that are left.  `listener`
    is closed in the end; whoever is interrupted in between closes it, and what came in this `hand`.
    """
    conn = attempt(_descriptors.accept, listener, hand)  # None: nobody is left, or no descriptor to accept with
    if conn is None:
        _descriptors.abandon(listener)
        return None
    said = _ask(conn)
    if said == WAITING and comes_soon(watching(conn.fileno())):
        said = ANSWER if read_byte(conn) == ANSWER else _NO_WAITER
    if said == ANSWER and _grant(conn, listener):
        _descriptors.close(listener)  # at once: while we have a copy, the next owner cannot free the lock
        _linux.sched_yield()  # the kernel queued it on this CPU, expecting us to sleep; the rest takes long
        _descriptors.close(conn)
        return None
    return _keep_offering(listener, conn, said, hand)


def _ask(conn: Socket) -> bytes | None:
    """Offer the lock.  WAITING: wait for its answer; ANSWER: it needs none; None: it has not spoken yet.

    _STRANGER, _NO_WAITER: the next one.
    """
    pid, uid, _ = _linux.peer_credentials(conn)
    if not _linux.trusted(uid):
        return _STRANGER
    # The offer first: it takes longer to wake up than we to hear that it waits.
    said = read_byte(conn) if say(conn, OFFER) else _NO_WAITER
    if said == WAITING:
        # Of our own process it may be a task of this very thread, which cannot answer while we wait.
        return ANSWER if pid == os.getpid() else WAITING
    return None if said is None else _NO_WAITER


def _keep_offering(listener: Socket, conn: Socket | None, said: bytes | None, hand: list[Socket]) -> Steps[None]:
    """Give the first time to answer, and then the next."""
    deadline = monotonic() + _RELEASE_TIME
    unclosed: list[Socket] = []  # a stranger's to the last: before Linux 6.16 that can take long, see take_descriptors
    try:
        for skipped in range(_MAX_SKIPPED):
            if skipped:
                # Somebody was there at first, but this accept may find nobody; and whether it then blocks travels with
                # the listener: another program may have made it so.
                os.set_blocking(listener.fileno(), False)
                conn = attempt(_descriptors.accept, listener, hand)
                said = None if conn is None else _ask(conn)
            if conn is None:
                return
            unclosed.append(conn)
            if said is None and (yield conn.fileno(), _JOIN_TIME):
                # It had just connected; or only asks who we are, and says nothing.
                said = WAITING if read_byte(conn) == WAITING else _NO_WAITER
            if said == WAITING and (yield conn.fileno(), min(SOON, remaining(deadline))):
                said = read_byte(conn)
            if said == ANSWER and _grant(conn, listener):
                return
            if said is not _STRANGER:
                _descriptors.close(unclosed.pop())
            if monotonic() >= deadline:
                return
    finally:
        _descriptors.abandon(listener)  # first, as above
        for conn in unclosed:
            _descriptors.close(conn)


def _grant(conn: Socket, listener: Socket) -> bool:
    """Send the lock: whether we are done.  If the waiter dies before it reads this, the kernel frees the lock."""
    descriptor = listener.fileno().to_bytes(4, sys.byteorder)
    try:
        conn.sendmsg((GRANT,), ((SOL_SOCKET, SCM_RIGHTS, descriptor),), MSG_DONTWAIT | MSG_NOSIGNAL)
    except OSError as exc:
        if exc.errno is None:
            raise
        # It gave up, died, or takes no descriptors (SO_PASSRIGHTS, Linux 6.16).  Or nobody can be sent any: all race.
        return exc.errno == errno.ETOOMANYREFS
    return True
