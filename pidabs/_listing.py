"""The locks of this host, or rather of this network namespace: abstract names are visible no further."""

from __future__ import annotations

from . import _diag, _holder
from ._holder import Holder
from ._names import PREFIX, parse


class LockInfo:
    """One held lock.

    `name` is '#HASH:TAIL' where it was too long for an address.  `uid` made the socket, and is None where only
    /proc/net/unix can be read.  `waiters` then counts those that have gone, too.
    """

    __slots__ = ("address", "inode", "name", "scope", "uid", "waiters")

    def __init__(self, name: str, scope: str | None, uid: int | None, inode: int, waiters: int, address: bytes) -> None:
        self.name: str = name
        self.scope: str | None = scope
        self.uid: int | None = uid
        self.inode: int = inode
        self.waiters: int = waiters
        self.address: bytes = address

    def holder(self) -> Holder | None:
        """Who holds it now; see `pidabs.holder`."""
        return _holder.ask(self.address)

    def __repr__(self) -> str:
        scope = f" scope={self.scope!r}" if self.scope else ""
        return f"<LockInfo {self.name!r}{scope} uid={self.uid} inode={self.inode} waiters={self.waiters}>"


def list_locks() -> list[LockInfo]:
    """Every lock that is held in this network namespace, by name.  Leaves no trace in their queues.

    Raises OSError where the kernel cannot be asked: neither sock_diag nor /proc/net/unix.
    """
    found = _diag.sockets(PREFIX)
    try:
        queues = _diag.queues(found)
    except OSError:
        queues = {}
    locks = []
    for listed in found:
        parsed = parse(listed.address)
        if parsed is not None:
            queue = queues.get(listed.inode)
            waiters = listed.queued if queue is None else sum(1 for inode in queue if inode)
            locks.append(LockInfo(*parsed, listed.uid, listed.inode, waiters, listed.address))
    return sorted(locks, key=lambda lock: (lock.name, lock.scope or ""))
