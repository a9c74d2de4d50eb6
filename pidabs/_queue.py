"""The lock: a listening socket whose backlog is the queue.  The whole protocol is here and in _handover.py.

Holding the lock is owning the bound, listening SOCK_STREAM socket of its name.

1. bind       Bound: listen, done.  EADDRINUSE: somebody has it.
2. join       Connect with the same descriptor and send `W`: we wait in the backlog, in order, asleep in the kernel.
              A full queue: sleep until it has room.
3. receive    `O` offers the lock: answer `A`, we are running and still want it.  `L` with the listener grants it: check
              it and call listen() on it, so that SO_PEERCRED names us.  EOF or a reset: we are in no queue, go to 1.
4. hand over  Take the head of our queue, offer, wait for its answer, grant.  The lock is only ever handed to somebody
              who has just said yes: not to a stopped or frozen process, nor to a forked copy that nobody reads.

Guarantees: two sockets never own one name, and a grant moves the only reference, so there is one holder.  Waiters get
the lock in the order they joined, and no newcomer overtakes one who waited when the release began.  When a holder, or
the next owner before it reads its grant, is killed, all waiters are woken and race: exclusion holds, the order is lost.

Kernel facts relied on: an abstract name is free as soon as the last reference to its socket is gone, then every pending
peer gets POLLHUP; the backlog is FIFO; a grant in flight to a waiter that dies is dropped, and the name is free.
Waiters never pass descriptors, nobody peeks (CVE-2024-26923, CVE-2026-23394).

What takes time is a generator of `Want`s, which threads and event loops drive alike.  Nothing else blocks, but for the
look, of some 50 us, whether the first waiter answers at once.
"""

from __future__ import annotations

import errno
import os
from _functools import partial  # type: ignore[import-not-found]
from time import monotonic

from . import _descriptors, _linux
from ._descriptors import CONNECTION, LISTENER, Socket
from ._drive import SOON, jitter, remaining
from ._handover import ANSWER, GRANT, OFFER, WAITING, hand_over
from ._linux import MSG_CTRUNC, POLLIN, SHUT_RDWR, attempt, read_byte, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._drive import Steps

_GRANTED = GRANT, OFFER + GRANT  # the kernel joins the two if we have read neither: see _handover._ask, our own process

BACKLOG = 1024  # bounds the kernel memory that dead entries can take to about 4 MiB
_LAST_WORDS = 3  # at most an offer and a grant, then the end; which never comes if a sandbox denies shutdown(2)
_SHORT_PAUSE = 0.0001  # doubles up to
_LONG_PAUSE = 0.005  # after a refused connect, or
_QUICK_TURN = _LONGEST_PAUSE = 0.050  # where we cannot queue
_LOOK_INTERVAL = 1.0  # where a stranger holds the lock
_LONG_SLEEP = 60.0  # where the queue is full; the kernel wakes us, and with each look we lose our place before it
_EXEC_TIME = 0.010  # from a subprocess' vfork to its exec, on a busy machine
_EXEC_PAUSE = 0.0002
_NO_ROOM = errno.EAGAIN, errno.EINTR, errno.EPERM, errno.EACCES  # and a signal came; Landlock

_freed = b""
"""The address of the lock that this process has freed last, if nobody has tried in vain to take it since."""


def bind(sock: Socket, address: bytes) -> bool:
    """Step 1: take the lock if it is free, and whether it was.  Leaves no trace in the holder's queue."""
    try:
        sock.bind(address)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return False
        raise
    sock.role = LISTENER
    # A newcomer that connects before this line is refused, finds the name taken, and tries again.
    sock.listen(BACKLOG)
    return True


def bind_after_exec(sock: Socket, address: bytes) -> Steps[bool]:
    """Step 1 for who tries once, and in vain, where this process has just freed the lock: its subprocess may have it.

    1. Another thread starts a subprocess, which has copies of our descriptors until it calls exec.  2. We let go.
    3. The name is free when the subprocess is there.
    """
    global _freed
    freed, _freed = _freed, b""
    deadline = monotonic() + _EXEC_TIME
    while freed == address and monotonic() < deadline:
        yield -1, _EXEC_PAUSE
        if bind(sock, address):
            return True
    return False


def wait(sock: Socket, address: bytes, deadline: float, hand: list[Socket]) -> Steps[Socket | None]:
    """Steps 1 to 3, from the second look at a lock that `bind` found taken: its listener, or None past the deadline.

    `sock` is used up.  A granted listener is in `hand` at once, so that no exception on its way to the caller loses it.
    """
    pause = _SHORT_PAUSE
    try:
        while True:
            began = monotonic()
            refused = join(sock, address)
            if refused == errno.EAGAIN:
                room = partial(join_when_there_is_room, sock, address)
                if (yield room, min(_LONG_SLEEP, remaining(deadline))):
                    refused = None
            if refused is None:
                listener = yield from _take_turn(sock, address, deadline, hand)
                if listener is not None:
                    return listener
            if refused != errno.ECONNREFUSED:
                _descriptors.abandon(sock)
                # Once connected, a socket cannot listen; and in a long sleep it may have been closed behind our back.
                sock = _descriptors.open_socket(hand)
            if refused == errno.ECONNREFUSED or monotonic() - began < _QUICK_TURN:
                # Refused, or thrown out at once: back off, else a squatter could make us spin.
                yield -1, min(pause * jitter(), remaining(deadline))
                pause = min(pause * 2, _LONGEST_PAUSE if refused == errno.EAGAIN else _LONG_PAUSE)
            else:
                pause = _SHORT_PAUSE
            if bind(sock, address):
                return sock
            if monotonic() >= deadline:
                _descriptors.close(sock)
                return None
    except BaseException:
        _descriptors.abandon(sock)
        raise


def join(sock: Socket, address: bytes) -> int | None:
    """Step 2: enter the queue.  None, or why not: ECONNREFUSED (being taken or let go), EAGAIN (no room for us)."""
    try:
        sock.connect(address)
    except OSError as exc:
        if exc.errno == errno.ECONNREFUSED:
            return errno.ECONNREFUSED
        if exc.errno in _NO_ROOM:
            return errno.EAGAIN
        raise
    sock.role = CONNECTION
    return None


def join_when_there_is_room(sock: Socket, address: bytes, seconds: float) -> bool:
    """Step 2 where the queue is full: sleep in connect(2) until somebody has left it, at most so long.

    Who sleeps there has no place yet: the kernel wakes one for each that leaves, and newcomers may be faster.
    """
    fd = sock.fileno()
    identity = _linux.file_identity(fd)
    _linux.limit_send(sock, seconds)
    # Only the descriptor: Python's object would report a connect that a signal has interrupted as a success.  It stays
    # so, as whatever is read and sent from here on is so with MSG_DONTWAIT.
    os.set_blocking(fd, True)
    try:
        joined = join(sock, address) is None
    finally:
        ours = _linux.is_file(fd, identity)
        if not ours:  # closed behind our back, and the number another file's
            _descriptors.forget(sock)
    return joined and ours


def _take_turn(conn: Socket, address: bytes, deadline: float, hand: list[Socket]) -> Steps[Socket | None]:
    """Sleep in the queue until we are granted the listener; None if we were let go without, or the deadline passed."""
    if not _linux.trusted(_linux.peer_credentials(conn)[1]):
        return (yield from _outlast(conn, address, deadline, hand))
    try:
        _descriptors.take_descriptors(conn, True)  # the lock is one, and comes after our W
        say(conn, WAITING)  # where that fails the holder is gone, and our turn ends as soon as it begins
        if (yield from _readable(conn, deadline)):
            accept_offer(conn, address)
            soon = yield conn.fileno(), min(SOON, remaining(deadline))
            while not hand and (soon or (yield from _readable(conn, deadline))):
                receive(conn, address, hand)
                soon = False
        if hand:
            _descriptors.close(conn)  # it has just spoken to us
        else:
            give_up(conn, address, hand)
    except _LetGo:
        pass
    except BaseException as exc:
        if not hand:
            give_up(conn, address, hand)
        if hand and not isinstance(exc, GeneratorExit):  # granted, and not wanted any more: the next one shall have it
            listener = hand.pop()
            os.set_blocking(listener.fileno(), False)  # whoever granted it may not have seen to that
            rest = hand_over(listener, hand)
            if rest is not None:
                yield from rest
        raise
    finally:
        _descriptors.abandon(conn)
    return hand[0] if hand else None


def _outlast(conn: Socket, address: bytes, deadline: float, hand: list[Socket]) -> Steps[Socket | None]:
    """Sleep in a stranger's queue: None as soon as it says anything, which is not believed, or lets us go."""
    try:
        say(conn, WAITING)  # else an honest one, who trusts us, would wait for it
        # It may let the lock go and keep our connection, so try for ourselves now and then.
        while not (yield conn.fileno(), min(_LOOK_INTERVAL, remaining(deadline))) and monotonic() < deadline:
            sock = _descriptors.open_socket(hand)
            if bind(sock, address):
                return sock
            _descriptors.close(sock)
    finally:
        _descriptors.abandon(conn)
    return None


def _readable(conn: Socket, deadline: float) -> Steps[bool]:
    """Whether something, or the end, is there to be read before the deadline."""
    while not (yield conn.fileno(), remaining(deadline)):
        if monotonic() >= deadline:
            return False
    return True


class _LetGo(Exception):
    """The connection is over, or what came through it not to be believed.

    No OSError: the exception of a signal handler, often a TimeoutError, must not be taken for ours.
    """


def accept_offer(conn: Socket, address: bytes) -> None:
    """Step 3: read the first message, which has to be an offer, and answer it.  Raises _LetGo."""
    # If it was closed behind our back, its number is not ours to read from.
    if not _descriptors.is_connection(conn, address) or read_byte(conn) != OFFER:
        raise _LetGo
    say(conn, ANSWER)  # where that fails the holder has not waited; if it is this process, its grant is here already


def receive(conn: Socket, address: bytes, hand: list[Socket]) -> None:
    """Read the next message.  A grant's listener is put in `hand`, and is ours.

    Raises _LetGo, or OSError if we had no descriptor left to receive the lock with.
    """
    try:
        data, passed, flags = _descriptors.receive_message(conn, hand)
    except BlockingIOError:
        return
    except ConnectionError as exc:
        if exc.errno is None:
            raise
        raise _LetGo from exc
    try:
        if data in _GRANTED and len(passed) == 1 and _is_grant(passed[0], conn, address):
            hand.append(passed[0])
            _descriptors.take_descriptors(hand[0], False)  # another program may not have seen to it
            hand[0].listen(BACKLOG)  # from now on SO_PEERCRED names us
        elif data == OFFER and not passed:
            say(conn, ANSWER)
        elif flags & MSG_CTRUNC and not passed:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        else:
            raise _LetGo
    finally:
        for sock in passed:
            if sock not in hand:
                _descriptors.close(sock)


def _is_grant(sock: Socket, conn: Socket, address: bytes) -> bool:
    """Whether it is the lock.  The same name in another network namespace is another lock."""
    return (
        attempt(sock.getsockname) == address
        and _linux.is_listening_stream(sock)
        and _linux.network_namespace(sock) == _linux.network_namespace(conn)
    )


def give_up(conn: Socket, address: bytes, hand: list[Socket]) -> None:
    """Leave the queue; if we had been granted the lock meanwhile, its listener is put in `hand`.

    Shut down first: a grant either fails from then on, or is here to be read.  Without that, a grant between our last
    read and our close is lost: 258 of 3000 timed races, against none.
    """
    try:
        if _descriptors.is_connection(conn, address):
            attempt(conn.shutdown, SHUT_RDWR)
            for _ in range(_LAST_WORDS):
                if not hand:
                    receive(conn, address, hand)
    except _LetGo:
        pass
    except OSError as exc:  # no descriptor left for the grant
        if exc.errno is None:
            raise
    finally:
        _descriptors.abandon(conn)


def close_if_idle(listener: Socket, address: bytes) -> None:
    """Under the descriptors' guard: free the lock if nobody waits.  Who joins in between is woken by the close."""
    global _freed
    poller = _linux.poll()  # an accept to find the queue empty takes ten times as long
    poller.register(listener.fileno(), POLLIN)
    if not poller.poll(0):
        _descriptors.close_known(listener)
        _freed = address
