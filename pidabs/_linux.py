"""The kernel's constants and calls that Python lacks, each with the Linux version it came with, probed when used.

Importable everywhere; `supported()` says whether the rest of pidabs can work here.
"""

from __future__ import annotations

import errno
import os
import sys
from _socket import socket
from struct import Struct

# All of it now: after a daemon's chroot or setuid the library may be out of reach.
try:
    from _socket import SO_ACCEPTCONN, SO_DOMAIN, SO_PEERCRED, SO_SNDTIMEO, SO_TYPE, socketpair
    from fcntl import F_DUPFD_CLOEXEC, LOCK_EX, LOCK_NB, fcntl, flock, ioctl
    from os import O_CLOEXEC, sched_yield
    from select import poll
except ImportError:  # not Linux: there all is imported, and nothing called
    F_DUPFD_CLOEXEC = LOCK_EX = LOCK_NB = O_CLOEXEC = 0  # type: ignore[misc]
    SO_ACCEPTCONN = SO_DOMAIN = SO_PEERCRED = SO_SNDTIMEO = SO_TYPE = 0  # type: ignore[misc]
    fcntl = flock = ioctl = sched_yield = poll = socketpair = None  # type: ignore[assignment, misc]

__all__ = [  # handed on
    "F_DUPFD_CLOEXEC",
    "LOCK_EX",
    "LOCK_NB",
    "O_CLOEXEC",
    "fcntl",
    "flock",
    "ioctl",
    "poll",
    "sched_yield",
    "socketpair",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

AF_UNIX = 1
SOCK_STREAM = 1
SOCK_NONBLOCK = 0o4000
SOL_SOCKET = 1
SCM_RIGHTS = 1
SHUT_RDWR = 2
MSG_CTRUNC = 0x8
MSG_DONTWAIT = 0x40
MSG_NOSIGNAL = 0x4000
MSG_CMSG_CLOEXEC = 0x40000000
POLLIN = 0x1
POLLHUP = 0x10
HIGH = 512
"""From here on a daemon's descriptors have their numbers: half of what most processes may have.

A daemon closes all descriptors as it detaches.  What had them may close them again when it is collected, or write what
it had buffered, as Airflow's scheduler does, and hits whoever has the low numbers by then.
"""
SO_PASSRIGHTS = 83  # Linux 6.16

_SO_NETNS_COOKIE = 71  # Linux 5.14
_SO_PEERPIDFD = 77  # Linux 6.5

_UCRED = Struct("iII")
_TIMEVAL = Struct("qq" if SO_SNDTIMEO == 67 else "ll")  # 67: a 32-bit system with 64 bits for times
_overflow: int | None = None


def attempt(call: Callable[..., T], *arguments: object) -> T | None:
    """What the call returns, None if the kernel refuses it.

    An OSError without an errno is not the kernel's but a signal handler's, often an alarm's TimeoutError, and goes on.
    """
    try:
        return call(*arguments)
    except OSError as exc:
        if exc.errno is None:
            raise
        return None


def supported() -> bool:
    """Whether this system has abstract unix sockets at all."""
    return sys.platform in ("linux", "android")


def peer_credentials(sock: socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the peer, or of whoever called listen() last; pid 0 if its pid namespace is hidden."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def peer_pidfd(sock: socket) -> int | None:
    """A pidfd of the peer (Linux 6.5); None where the kernel has none, or the peer has been reaped."""
    try:
        return sock.getsockopt(SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None


def limit_send(sock: socket, seconds: float) -> None:
    """How long a blocking connect(2), or send, of this socket may take; more than nothing, which would be for ever."""
    sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _TIMEVAL.pack(int(seconds), max(1, int(seconds % 1 * 1e6))))


def say(sock: socket, byte: bytes) -> bool:
    return attempt(sock.send, byte, MSG_NOSIGNAL | MSG_DONTWAIT) == 1


def read_byte(sock: socket) -> bytes | None:
    """One byte, none at the end, None if it has not been said yet or never will be."""
    return attempt(sock.recv, 1, MSG_DONTWAIT)


def is_listening_stream(sock: socket) -> bool:
    return sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN) == 1 and sock.getsockopt(SOL_SOCKET, SO_TYPE) == SOCK_STREAM


def network_namespace(sock: socket) -> bytes:
    """A cookie of the socket's network namespace (Linux 5.14); empty on older kernels."""
    try:
        return sock.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def trusted(uid: int) -> bool:
    """Whether a peer of this uid may be granted a lock, and believed when it grants one: root and ourselves."""
    return (uid == 0 or uid == os.geteuid()) and is_somebody(uid)


def is_somebody(uid: int) -> bool:
    """Whether this is one user.  In a user namespace everybody who is not mapped reads as the overflow uid."""
    return uid != _overflow_uid() or _all_mapped()


def _all_mapped() -> bool:
    """Whether every uid has a number here, as outside of user namespaces: then 65534 is just the user `nobody`."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return file.read().split() == [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def _overflow_uid() -> int:
    global _overflow
    if _overflow is None:
        try:
            with open("/proc/sys/kernel/overflowuid", "rb") as file:
                _overflow = int(file.read())
        except (OSError, ValueError):
            _overflow = 65534
    return _overflow


def file_identity(fd: int) -> tuple[int, int]:
    """What tells one open file from another that came to the same descriptor later: device and inode."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_file(fd: int, identity: tuple[int, int]) -> bool:
    """Whether `fd` is still the file that had this identity; false once it is closed."""
    return attempt(file_identity, fd) == identity


def close_first(numbers: list[int]) -> None:
    """In one call into C: interrupted, and done again, it would close what has the number by then."""
    any(map(os.close, map(numbers.pop, (0,))))


def lift_file(opened: list[int]) -> int:
    """Give the one file that is opened a high number, if the limit of descriptors lets it have one: its new number.

    The list has what is open at any moment, also when a signal handler raises."""
    attempt(opened.extend, map(fcntl, opened[:], (F_DUPFD_CLOEXEC,), (HIGH,)))
    if len(opened) > 1:
        close_first(opened)
    return opened[0]


def denied(exc: OSError) -> bool:
    """Whether the error of socket() or bind() means that a sandbox forbids abstract sockets."""
    return exc.errno in (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS, errno.EPROTONOSUPPORT)
