"""The system calls of a pidabs lock and nothing else: what is left when everything is taken away that can be.

Written out in one place, for one thread and one user: no check of what a stranger sends, no fork, no timeout, and
nothing that a signal handler's exception would not lose.  What a real lock costs more is Python's; what this costs more
than flock(2) is the protocol's.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from _socket import socket
from select import POLLIN, poll
from socket import AF_UNIX, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET

_STREAM = SOCK_STREAM | SOCK_NONBLOCK
_BACKLOG = 1024
_SO_PASSRIGHTS = 83  # Linux 6.16
_LOOKS = 60
_ANSWER_TIME = 20  # ms
_PAUSE = 0.001
_HIGH = 512


class Protocol:
    """A lock that speaks as pidabs.Lock does, among its own kind."""

    def __init__(self, path: str) -> None:
        self._address = b"\0bench:" + path.encode()
        self._refusable = _knows_passrights()

    def acquire(self) -> None:
        while not self._try():
            pass

    def release(self) -> None:
        sock = self._sock
        sock.getsockname()
        if not _watching(sock).poll(0):
            sock.close()
            return
        while True:
            try:
                fd, _ = sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                break
            conn = socket(AF_UNIX, _STREAM, 0, fd)
            granted = _grant(conn, sock)
            conn.close()
            if granted:
                return
        sock.close()

    def _try(self) -> bool:
        sock = socket(AF_UNIX, _STREAM)
        if self._refusable:
            sock.setsockopt(SOL_SOCKET, _SO_PASSRIGHTS, 0)
        try:
            sock.bind(self._address)
        except OSError:
            return self._join(sock)
        sock.listen(_BACKLOG)
        self._sock = sock
        return True

    def _join(self, conn: socket) -> bool:
        try:
            try:
                conn.connect(self._address)
            except BlockingIOError:  # no room: sleep until there is
                os.set_blocking(conn.fileno(), True)
                conn.connect(self._address)
        except OSError:  # just let go
            time.sleep(_PAUSE)
            return False
        try:
            if self._refusable:
                conn.setsockopt(SOL_SOCKET, _SO_PASSRIGHTS, 1)
            conn.send(b"W")
            poller = _watching(conn)
            poller.poll()
            if conn.recv(1) != b"O":
                return False
            conn.send(b"A")
            _come_soon(poller) or poller.poll()
            _, ancillary, _, _ = conn.recvmsg(1, 24, MSG_CMSG_CLOEXEC)
            if not ancillary:
                return False
            self._sock = socket(AF_UNIX, _STREAM, 0, int.from_bytes(ancillary[0][2][:4], sys.byteorder))
            self._sock.listen(_BACKLOG)
            return True
        except OSError:  # the holder was killed
            return False
        finally:
            conn.close()


class ProtocolAndFile(Protocol):
    """The same with a PID file that nobody reads half, and that is removed only while it is ours."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path
        self._temporary = path + ".new"

    def acquire(self) -> None:
        super().acquire()
        text = b"%d\n" % os.getpid()
        low = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        os.close(low)
        os.write(self._fd, text)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fstat(self._fd)
        os.rename(self._temporary, self._path)
        low = self._sock.detach()
        self._sock = socket(AF_UNIX, _STREAM, 0, fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _HIGH))
        os.close(low)

    def release(self) -> None:
        os.fstat(self._fd)
        os.lstat(self._path)
        os.pread(self._fd, 16, 0)
        os.unlink(self._path)
        os.close(self._fd)
        super().release()


def _grant(conn: socket, listener: socket) -> bool:
    """Offer, hear, and hand over; the listener is closed then."""
    try:
        conn.send(b"O")
        conn.recv(1)
        poller = _watching(conn)
        if not (_come_soon(poller) or poller.poll(_ANSWER_TIME)) or conn.recv(1) != b"A":
            return False
        descriptor = listener.fileno().to_bytes(4, sys.byteorder)
        conn.sendmsg((b"L",), ((SOL_SOCKET, SCM_RIGHTS, descriptor),))
    except OSError:
        return False
    listener.close()
    os.sched_yield()
    return True


def _watching(sock: socket) -> poll:
    poller = poll()
    poller.register(sock.fileno(), POLLIN)
    return poller


def _come_soon(poller: poll) -> bool:
    for _ in range(_LOOKS):
        if poller.poll(0):
            return True
        os.sched_yield()
    return False


def _knows_passrights() -> bool:
    with_option = socket(AF_UNIX, _STREAM)
    try:
        with_option.setsockopt(SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    finally:
        with_option.close()
    return True
