"""Locks that die with their holder: a replacement for PID files and lock files on Linux.

General layout, each file importing only what stands above it:

    _errors       what can go wrong
    _names        name or path -> address, and back
    _remote       paths that other hosts may share
    _linux        constants and calls that Python lacks
    _descriptors  which sockets of this process are ours
    _diag         what the kernel lists about unix sockets
    _holder       who holds a lock
    _drive        steps, and how they are driven
    _handover     the protocol, of who lets go: offer, hear, grant
    _queue        the protocol, of who wants the lock: bind, join, receive
    _mirror       the optional PID file
    _inherit      what a forked child inherits
    _held         the locks that this process holds
    _ownership    how a lock is taken, waited for, let go, lost and moved
    _lock         Lock: the same for threads and for asyncio's tasks
    _listing      the locks of this host
    cli/          the command

Beside it stands pidabs.compat, the stand-ins for other libraries' locks; it uses what is public here, and the
guard of _descriptors.
"""

from ._errors import AlreadyHeld, LockError, MirrorError, NotHeld, Timeout, Unsupported
from ._holder import Holder, holder
from ._listing import LockInfo, list_locks
from ._lock import Lock

__all__ = [
    "AlreadyHeld",
    "Holder",
    "Lock",
    "LockError",
    "LockInfo",
    "MirrorError",
    "NotHeld",
    "Timeout",
    "Unsupported",
    "holder",
    "list_locks",
]
