"""What the kernel lists about unix sockets: sock_diag first, /proc/net/unix second.  Asking leaves no trace.

Kernel facts: NETLINK_SOCK_DIAG needs no privilege and shows this network namespace only; a dump whose first socket has
a long queue comes back silently empty when the queue is asked for on a fresh netlink socket; the answer about one
socket has to fit into what is allocated for a page, and else is EMSGSIZE: a queue of 950 always fits, one of 1957 on
Linux 6.18 with pages of 4 KiB, and ours have up to 1025; /proc/net/unix prints NUL as '@', breaks its lines at a
newline in a name, and is missing under `subset=pid`.
"""

from __future__ import annotations

import errno
import os
import sys
from _socket import socket
from struct import Struct

from ._linux import SOCK_STREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Socket = tuple[int, int, int, dict[int, bytes]]
    """Inode, type, state, attributes."""

_AF_NETLINK = 16
_SOCK_RAW = 3
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP_INTR = 0x10
_NLM_F_DUMP = 0x300
_SHOW_NAME = 0x1
_SHOW_ICONS = 0x8
_SHOW_RQLEN = 0x10
_SHOW_UID = 0x40  # Linux 5.3
_ATTR_NAME = 0
_ATTR_ICONS = 3
_ATTR_RQLEN = 4
_ATTR_UID = 7
_CLOSED = 7  # bound, not listening: a lock between its bind and its listen, or a squatter
_LISTEN = 10
_LOCK_STATES = 1 << _LISTEN | 1 << _CLOSED

_HEADER = Struct("=IHHII")
_REQUEST = Struct("=BBHIIIII")
_MESSAGE = Struct("=BBBBIII")
_ATTRIBUTE = Struct("=HH")
_ALL_STATES = 0xFFFFFFFF
_ANY_COOKIE = 0xFFFFFFFF
_BUFFER = 1 << 16
_DUMP_TRIES = 5
_MANY = 500  # queues that are asked for one by one; a dump of all sockets takes as long, where there are 10,000
_TIMEOUT = 5.0  # seconds; the kernel answers at once or not at all

_PROC_FLAG_LISTENING = 0x10000
_PROC_UNCONNECTED = 1


class Listed:
    """One abstract SOCK_STREAM socket that owns its name."""

    __slots__ = ("address", "inode", "listening", "queued", "uid")

    def __init__(self, address: bytes, inode: int, listening: bool, uid: int | None, queued: int) -> None:
        self.address = address
        self.inode = inode
        self.listening = listening
        self.uid = uid
        self.queued = queued  # connections in the backlog, dead ones included


def sockets(prefix: bytes) -> list[Listed]:
    """Every socket whose address begins with `prefix`, listening or only bound.

    Raises OSError where neither source can be read.
    """
    try:
        return [found for found in _dump_names() if found.address.startswith(prefix)]
    except OSError as netlink_error:
        try:
            with open("/proc/net/unix", "rb") as file:
                return [found for found in parse_proc(file.read()) if found.address.startswith(prefix)]
        except OSError:
            raise netlink_error from None


def find(address: bytes) -> Listed | None:
    """The socket that owns this address, if any."""
    for _ in range(2):  # a long dump can miss a socket while others come and go; it invents none
        for found in sockets(address):
            if found.address == address:
                return found
    return None


def queues(found: list[Listed]) -> dict[int, list[int]]:
    """Inode of each of these sockets -> inodes of its waiters in queue order, 0 for those that are gone.

    Sockets may be missing (see above); raises OSError where there is no sock_diag.
    """
    queued = [listed.inode for listed in found if listed.queued]
    if len(queued) > _MANY:
        return _dump_queues()
    known: dict[int, list[int]] = {listed.inode: [] for listed in found}
    for inode in queued:
        try:
            known[inode] = queue(inode)
        except FileNotFoundError:  # let go since
            del known[inode]
        except OSError as exc:
            if exc.errno != errno.EMSGSIZE:
                raise
            return _dump_queues()
    return known


def _dump_queues() -> dict[int, list[int]]:
    with _Netlink() as netlink:
        netlink.dump(1 << _LISTEN, 0)  # grows the kernel's buffer for the one that follows
        return {
            inode: _integers(attributes.get(_ATTR_ICONS, b""))
            for inode, _, _, attributes in netlink.dump(1 << _LISTEN, _SHOW_ICONS)
        }


def queue(inode: int) -> list[int]:
    """The same for one socket, in 0.01 ms.  Raises OSError, also when there is no such socket or its queue too long."""
    with _Netlink() as netlink:
        _, _, _, attributes = netlink.get(inode, _SHOW_ICONS)
        return _integers(attributes.get(_ATTR_ICONS, b""))


def owns(inode: int, address: bytes) -> bool:
    """Whether the socket `inode` still owns this address, in 0.01 ms.  A lock that is handed over keeps its socket.

    Raises OSError where there is no sock_diag.
    """
    with _Netlink() as netlink:
        try:
            _, _, _, attributes = netlink.get(inode, _SHOW_NAME)
        except FileNotFoundError:
            return False
    return attributes.get(_ATTR_NAME) == address


def parse_proc(text: bytes) -> list[Listed]:
    """The abstract sockets in /proc/net/unix that own their name.  A connection still in a backlog has inode 0."""
    owners: dict[bytes, Listed] = {}
    backlog: dict[bytes, int] = {}
    for line in text.split(b"\n"):
        fields = line.split(None, 6)  # Num: RefCount Protocol Flags Type St Inode @Name
        inode, _, name = fields[6].partition(b" ") if len(fields) == 7 else (b"", b"", b"")
        if not name.startswith(b"@") or not fields[0].endswith(b":"):
            continue
        address = b"\0" + name[1:]
        try:
            flags, kind, state, number = int(fields[3], 16), int(fields[4], 16), int(fields[5], 16), int(inode)
        except ValueError:
            continue
        if kind != SOCK_STREAM:
            continue
        if number == 0:
            backlog[address] = backlog.get(address, 0) + 1
        elif state == _PROC_UNCONNECTED:
            owners[address] = Listed(address, number, bool(flags & _PROC_FLAG_LISTENING), None, 0)
    for address, found in owners.items():
        found.queued = backlog.get(address, 0)
    return list(owners.values())


def _dump_names() -> list[Listed]:
    with _Netlink() as netlink:
        return [
            Listed(
                address=attributes[_ATTR_NAME],
                inode=inode,
                listening=state == _LISTEN,
                uid=_integer(attributes[_ATTR_UID]) if _ATTR_UID in attributes else None,
                queued=_integer(attributes.get(_ATTR_RQLEN, b"")) if state == _LISTEN else 0,
            )
            for inode, kind, state, attributes in netlink.dump(_LOCK_STATES, _SHOW_NAME | _SHOW_UID | _SHOW_RQLEN)
            if kind == SOCK_STREAM and attributes.get(_ATTR_NAME, b"").startswith(b"\0")
        ]


class _Netlink:
    """A sock_diag socket, for one question: kept open, a DaemonContext would close it, and its number come back."""

    def __enter__(self) -> _Netlink:
        self._sock = socket(_AF_NETLINK, _SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._sock.settimeout(_TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def dump(self, states: int, show: int) -> list[Socket]:
        """All sockets in one of these states.  A dump that sockets came or went under is taken again."""
        for _ in range(_DUMP_TRIES):
            self._ask(_NLM_F_DUMP, states, 0, show)
            found: list[Socket] = []
            interrupted = False
            for flags, payload in self._answers():
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                found.append(parse_socket(payload))
            if not interrupted:
                break
        return found

    def get(self, inode: int, show: int) -> Socket:
        """One socket.  Raises FileNotFoundError."""
        self._ask(0, _ALL_STATES, inode, show)
        for _, payload in self._answers():
            return parse_socket(payload)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _ask(self, flags: int, states: int, inode: int, show: int) -> None:
        body = _REQUEST.pack(1, 0, 0, states, inode, show, _ANY_COOKIE, _ANY_COOKIE)
        header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
        self._sock.send(header + body)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """Flags and payload of each socket.  DONE ends a dump; nothing follows a single answer: do not wait for it."""
        while True:
            for kind, flags, payload in parse_messages(self._sock.recv(_BUFFER)):
                if kind == _NLMSG_ERROR:
                    code = -int.from_bytes(payload[:4], sys.byteorder, signed=True) & 0xFFFF  # errno, strerror is picky
                    raise OSError(code, f"sock_diag: {os.strerror(code)}")
                if kind == _NLMSG_DONE:
                    return
                if kind == _SOCK_DIAG_BY_FAMILY and len(payload) >= _MESSAGE.size:
                    yield flags, payload


def _integer(payload: bytes) -> int:
    return int.from_bytes(payload[:4], sys.byteorder)


def _integers(payload: bytes) -> list[int]:
    return [_integer(payload[at : at + 4]) for at in range(0, len(payload), 4)]


def parse_messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, payload) of each netlink message; stops at the first that is cut short."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def parse_socket(payload: bytes) -> Socket:
    """One unix_diag_msg and its attributes; those that are cut short are left out."""
    _, kind, state, _, inode, _, _ = _MESSAGE.unpack_from(payload)
    attributes = {}
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(payload):
        length, attribute = _ATTRIBUTE.unpack_from(payload, at)
        if not _ATTRIBUTE.size <= length <= len(payload) - at:
            break
        attributes[attribute] = payload[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return inode, kind, state, attributes
