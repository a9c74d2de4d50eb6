"""Which sockets of this process are ours.

Rules:
- Every socket of a lock is a `Socket`, and `known` from before it is bound or connected until it is closed.
- What the kernel hands us as a bare number (accept, SCM_RIGHTS) becomes a Socket under `guard`; forks and sweeps hold
  `guard` too, so a fork never copies, and a sweep never closes, what another thread is just receiving.
- `known` is weak: a Socket that an exception dropped on its way into a variable closes itself.  But an exception that
  is still handled keeps alive all that it met on its way, so each Socket says in whose `hand` it came: the acquire or
  release that is interrupted closes those.
- A number in `known` may have become somebody else's file: DaemonContext closes every descriptor behind our back, and
  the numbers come back.  So look before you use (`is_listener`) and before you close (`abandon`): what a socket of ours
  is called, or connected to, depends on its `role`.
"""

from __future__ import annotations

import _thread
import os
from _operator import itemgetter, methodcaller
from _socket import socket
from _weakref import ref

from ._linux import (
    AF_UNIX,
    F_DUPFD_CLOEXEC,
    HIGH,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SO_PASSRIGHTS,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    attempt,
    fcntl,
    is_unix_stream,
)
from ._names import PREFIX

TYPE_CHECKING = False

_NONBLOCKING_STREAM = SOCK_STREAM | SOCK_NONBLOCK
# Room for two descriptors (alignment gives that to CMSG_SPACE of one, too): enough to see that it was not exactly one.
_CONTROL_SPACE = 24
_MAX_SCANNED = 65536

FRESH, LISTENER, CONNECTION = range(3)


class Socket(socket):
    """A socket of ours, close-on-exec, and for Python never blocking.

    `role`: FRESH has no name and no peer yet; a LISTENER, and a connection it accepted, has our name; a CONNECTION, in
    which we wait, has a peer of our name.
    """

    __slots__ = ("__weakref__", "hand", "role")

    hand: object
    role: int

    if TYPE_CHECKING:  # the one method of _socket that typeshed does not know

        def _accept(self) -> tuple[int, object]: ...


guard = _thread.RLock()
known: dict[int, ref[Socket]] = {}

_arriving: list[Socket] = []
"""Under `guard`: sockets that are not known yet."""
_inspected: list[socket] = []

_refusable = True
"""Whether the kernel knows SO_PASSRIGHTS, as far as we have seen."""

_accept = methodcaller("_accept")
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
        # One call into C from the accept to the list: a signal handler cannot raise in between, and lose the number.
        _arriving.extend(map(Socket, (AF_UNIX,), (_NONBLOCKING_STREAM,), (0,), map(_number, map(_accept, (listener,)))))
        return _adopt(hand)


def lift(sock: Socket) -> None:
    """Give the listener a high number, if the limit of descriptors lets it have one: see HIGH."""
    with guard:
        low = sock.fileno()
        high = attempt(fcntl, low, F_DUPFD_CLOEXEC, HIGH)
        if high is not None:
            # Known by both numbers in between: else a sweep closes what it takes for nobody's, and the Socket, when it
            # is collected, closes the number again.  Whatever an exception leaves open the sweep finds.
            known[high] = known[low]
            Socket.__init__(sock, AF_UNIX, _NONBLOCKING_STREAM, 0, high)
            del known[low]
            os.close(low)


def say(conn: Socket, byte: bytes) -> bool:
    return attempt(conn.send, byte, MSG_NOSIGNAL | MSG_DONTWAIT) == 1


def read_byte(conn: Socket) -> bytes | None:
    """One byte, none at the end, None if it has not been said yet or never will be."""
    return attempt(conn.recv, 1, MSG_DONTWAIT)


def receive_message(conn: Socket, hand: object = None) -> tuple[bytes, list[Socket], int]:
    """One message: its first bytes, its descriptors as sockets (those that are no sockets are closed), its flags."""
    with guard:
        data, ancillary, flags, _ = conn.recvmsg(2, _CONTROL_SPACE, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        passed = []
        for level, kind, payload in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                for fd in memoryview(payload).cast("i"):
                    try:
                        _arriving.extend(map(Socket, (AF_UNIX,), (_NONBLOCKING_STREAM,), (0,), (fd,)))
                        passed.append(_adopt(hand))
                    except OSError as exc:
                        if exc.errno is None:  # a signal handler's
                            raise
                        os.close(fd)  # no socket
    return data, passed, flags


def _adopt(hand: object) -> Socket:
    sock = _arriving[-1]
    sock.hand = hand
    sock.role = LISTENER
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


def sweep(address: bytes, hand: object) -> None:
    """After an exception that may have struck anywhere: close what came in this hand, and what nobody knows.

    A signal handler can raise between a system call's return and the assignment of its result; then the number of an
    accepted connection or a granted listener is lost, and with it a waiter or the lock.  Can be interrupted and done
    again.
    """
    release_guard()
    with guard:
        _put_back()
        for sock in _arriving:
            sock.close()
        _arriving.clear()
        for sock in _known_sockets():
            if sock.hand is hand:
                abandon(sock)
        numbers = {sock.fileno() for sock in _known_sockets()}
        for fd in _open_descriptors():
            if fd in numbers:
                continue
            try:
                if os.get_inheritable(fd):  # not ours, which are close-on-exec: a listener that we were started with
                    continue
                # Straight from C into the list: an exception must never find this object on the stack and close a file
                # that is not ours with it.  The type is spelled out, else socket.setdefaulttimeout() would change it.
                _inspected.extend(map(socket, (AF_UNIX,), (_NONBLOCKING_STREAM,), (0,), (fd,)))
                if is_unix_stream(_inspected[-1]) and address in _names(_inspected[-1]):
                    _inspected[-1].close()
            except OSError as exc:
                if exc.errno is None:  # a signal handler's
                    raise
            _put_back()


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


def _put_back() -> None:
    for sock in _inspected:
        sock.detach()
    _inspected.clear()


def _names(sock: socket) -> tuple[object, object]:
    """Its own name, which accepted connections and listeners have, and its peer's, which a waiting connection has."""
    return sock.getsockname(), attempt(sock.getpeername)


def _open_descriptors() -> list[int]:
    listed = attempt(os.listdir, "/proc/self/fd")
    if listed is None:  # no /proc, or no descriptor left to read it with
        return list(range(min(os.sysconf("SC_OPEN_MAX"), _MAX_SCANNED)))
    return [int(name) for name in listed]
