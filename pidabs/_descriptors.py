"""Which sockets of this process are ours.

Rules:
- Every socket of a lock is a `Socket`, and `known` from before it is bound or connected until it is closed.
- What the kernel hands us as a bare number (accept, SCM_RIGHTS) becomes a Socket under `guard`, which forks hold, too:
  a fork never copies what another thread is just receiving.  And it is never only in a variable: one call into C takes
  it to `_arriving`, where a signal handler that raises cannot lose it, and one that forks finds it.
- `known` is weak: a Socket that an exception dropped on its way into a variable closes itself.  But an exception that
  is still handled keeps alive all that it met on its way, so each Socket says in whose `hand` it came: the acquire or
  release that is interrupted closes those.
- Nothing is closed but what came to us here: another copy of this module, or a C library, may hold locks, too.
- A number in `known` may have become somebody else's file: DaemonContext closes every descriptor behind our back, and
  the numbers come back.  So look before you use (`is_listener`) and before you close (`abandon`): what a socket of ours
  is called, or connected to, depends on its `role`.
"""

from __future__ import annotations

import _thread
from _operator import itemgetter, methodcaller
from _socket import socket
from _weakref import ref

from ._linux import (
    AF_UNIX,
    F_DUPFD_CLOEXEC,
    HIGH,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    SCM_RIGHTS,
    SO_PASSRIGHTS,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    attempt,
    close_first,
    fcntl,
)
from ._names import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NONBLOCKING_STREAM = SOCK_STREAM | SOCK_NONBLOCK
# Room for two descriptors (alignment gives that to CMSG_SPACE of one, too): enough to see that it was not exactly one.
_CONTROL_SPACE = 24

FRESH, LISTENER, CONNECTION = range(3)


class Socket(socket):
    """A socket of ours, close-on-exec, and for Python never blocking.

    `role`: FRESH has no name and no peer yet; a LISTENER, and a connection it accepted, has our name; a CONNECTION, in
    which we wait, has a peer of our name.
    """

    __slots__ = ("__weakref__", "hand", "role")

    hand: object
    role: int


guard = _thread.RLock()
known: dict[int, ref[Socket]] = {}

_arriving: list[tuple[Any, ...]] = []
"""Under `guard`: in whose hand, and what: a message, the numbers that were in it, or a Socket that is not known yet."""
_forks = 0
"""How often this process is a child: what it had begun to receive is its parent's."""

_refusable = True
"""Whether the kernel knows SO_PASSRIGHTS, as far as we have seen."""

_accept = methodcaller("_accept")
_receive = methodcaller("recvmsg", 2, _CONTROL_SPACE, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
_number = itemgetter(0)


def open_socket(hand: object = None) -> Socket:
    """A new socket, known before anybody can fork.  Nobody can send it descriptors until we know who that is."""
    with guard:
        sock = Socket(AF_UNIX, _NONBLOCKING_STREAM)
        sock.hand = hand
        sock.role = FRESH
        known[sock.fileno()] = ref(sock)
    take_descriptors(sock, False)
    return sock


def take_descriptors(sock: Socket, wanted: bool) -> None:
    """Let peers send descriptors to this socket and to those that it accepts, or not (Linux 6.16; before, they may).

    Unread ones are closed with the socket, and closing a stranger's file can take as long as the stranger likes: a TCP
    socket with SO_LINGER and a peer that does not read waits in its close.
    """
    global _refusable
    if _refusable:
        try:
            sock.setsockopt(SOL_SOCKET, SO_PASSRIGHTS, wanted)
        except OSError as exc:
            if exc.errno is None:
                raise
            _refusable = False


def accept(listener: Socket, hand: object = None) -> Socket:
    """The head of the queue.  Raises BlockingIOError when there is none."""
    with guard:
        _arriving.extend(_entry(hand, map(_number, map(_accept, (listener,)))))
        accepted = _adopt()
        _arriving.pop()
        return accepted


def lift(sock: Socket) -> Socket:
    """The listener with a high number in its place, if the limit of descriptors lets it have one: see HIGH."""
    with guard:
        entries = len(_arriving)
        attempt(_arriving.extend, _entry(sock.hand, map(fcntl, (sock,), (F_DUPFD_CLOEXEC,), (HIGH,))))
        if len(_arriving) == entries:
            return sock
        lifted = _adopt()
        _arriving.pop()
        close_known(sock)
        return lifted


def receive_message(conn: Socket, hand: object = None) -> tuple[bytes, list[Socket], int]:
    """One message: its first bytes, its descriptors as sockets (those that are no sockets are closed), its flags."""
    with guard:
        forks, passed = _forks, []
        _arriving.extend(zip((hand,), map(_receive, (conn,)), strict=False))
        message = _arriving[-1][1]
        numbers = _numbers(message)
        _arriving[-1] = hand, numbers
        if forks != _forks:  # a signal handler's child, which has closed them, and whose handler has returned
            numbers.clear()
        while numbers:
            try:
                passed.append(_adopt())
            except OSError as exc:
                if exc.errno is None:  # a signal handler's
                    raise
                close_first(numbers)  # no socket
        _arriving.pop()
    return message[0], passed, message[2]


def _entry(hand: object, numbers: Iterator[int]) -> Iterator[tuple[object, list[int]]]:
    """What to extend `_arriving` by: one number."""
    return zip((hand,), map(list, zip(numbers, strict=False)), strict=False)


def _numbers(message: tuple[bytes, list[tuple[int, int, bytes]], int, object]) -> list[int]:
    return [
        number
        for level, kind, payload in message[1]
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)
        for number in memoryview(payload).cast("i")
    ]


def _adopt() -> Socket:
    """The first of the numbers that are the last entry."""
    hand, numbers = _arriving[-1]
    # One call into C makes the Socket, and then takes the number away: the constructor calls audit hooks, as filelock
    # has one, in which a signal handler can raise.
    made = map(Socket, (AF_UNIX,), (_NONBLOCKING_STREAM,), (0,), numbers)
    _arriving.extend(zip((hand,), made, map(numbers.pop, (0,)), strict=False))
    sock: Socket = _arriving[-1][1]
    sock.hand = hand
    sock.role = LISTENER
    if sock.fileno() >= 0:  # not so in a signal handler's child
        known[sock.fileno()] = ref(sock)
    _arriving.pop()
    return sock


def close(sock: Socket) -> None:
    """Close a socket that is certainly still ours.  Closing twice is harmless."""
    with guard:  # else a newcomer could be given the number in between, and lose its entry
        if is_known(sock):
            close_known(sock)
        else:
            sock.detach()


def close_known(sock: Socket) -> None:
    """Under `guard`: close a socket that is known."""
    fd = sock.fileno()
    sock.close()
    del known[fd]


def abandon(sock: Socket) -> None:
    """Close a socket if it is still ours; forget it if its descriptor has become another file."""
    if sock.fileno() < 0:
        return
    if _is_ours(sock):
        close(sock)
    else:
        forget(sock)


def forget(sock: Socket) -> None:
    """Let go of a socket whose descriptor has become another file, and leave that alone."""
    with guard:
        was_known = is_known(sock)
        fd = sock.detach()
        if was_known:
            del known[fd]


def _is_ours(sock: Socket) -> bool:
    name = attempt(sock.getpeername if sock.role == CONNECTION else sock.getsockname)
    # A fork or an exception may strike between a socket's bind and the change of its role.
    return (isinstance(name, bytes) and name.startswith(PREFIX)) or (name == "" and sock.role == FRESH)


def is_known(sock: Socket) -> bool:
    """Whether the socket's number has not been closed, nor become another socket of ours."""
    entry = known.get(sock.fileno())
    return entry is not None and entry() is sock


def is_listener(sock: Socket, address: bytes) -> bool:
    """Whether the socket is still what it was when it got its name."""
    try:  # spelled out, not by attempt() and is_known(): each release asks
        if sock.getsockname() != address:
            return False
    except OSError as exc:
        if exc.errno is None:
            raise
        return False
    entry = known.get(sock.fileno())
    return entry is not None and entry() is sock


def is_connection(sock: Socket, address: bytes) -> bool:
    """Whether the socket is still our connection to the queue of this address."""
    return attempt(sock.getpeername) == address and is_known(sock)


def sweep(hand: object) -> None:
    """After an exception that may have struck anywhere: close what came in this hand.  Can be done again."""
    release_guard()
    with guard:
        for index in reversed(range(len(_arriving))):
            if _arriving[index][0] is hand:
                _close_arriving(index)
                del _arriving[index]
        for sock in [sock for sock in _known_sockets() if sock.hand is hand]:
            abandon(sock)


def close_inherited(moving: list[Socket | None]) -> None:
    """In a forked child: close the copies, but for those of locks that move here."""
    global _forks
    _forks += 1
    for index in range(len(_arriving)):  # a signal handler has forked
        _close_arriving(index)
    for sock in [sock for sock in _known_sockets() if sock not in moving]:
        abandon(sock)


def _close_arriving(index: int) -> None:
    hand, item = _arriving[index][:2]
    if isinstance(item, tuple):
        item = _numbers(item)
        _arriving[index] = hand, item
    if isinstance(item, Socket):
        item.close()
    else:
        while item:
            attempt(close_first, item)


def release_guard() -> None:
    """Undo what a tracing function's exception in a `with guard` left locked.  (A signal handler's cannot.)"""
    try:
        while True:
            guard.release()
    except RuntimeError:
        pass


def _known_sockets() -> list[Socket]:
    found = [entry() for entry in list(known.values())]
    return [sock for sock in found if sock is not None]
