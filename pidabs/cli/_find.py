"""What can be known about a lock, found without leaving a trace where that is possible.

Each question asked over a connection leaves a dead entry in the holder's queue, which has room for some 1000, and a
release looks past 256: a monitor that asks once a minute would use them up in hours, and from then on waiters lose
their order.  So:

1. sock_diag, else /proc/net/unix, says whether the lock is held, by which socket, and how many wait.  No trace.
2. /proc shows who has that socket open: root sees all processes, others their own.  It counts where it is one process
   alone, of the user who made the socket: a descriptor can be pressed into the hands of a stranger.  No trace.
3. A connection's SO_PEERCRED names who called listen() last.  It counts unless that process is seen to be gone, or to
   have the socket no longer, as after a fork whose parent has ended; then 2 counts.

A single lock is asked 3 first, which is the faster, up to _POLITE dead entries; a listing asks 2 first.  Beyond
_MOST dead entries 3 is never asked.  To signal a process only 3 will do (see stop.py).
"""

from __future__ import annotations

import errno
import os
import re
from time import sleep

from .. import Holder, Lock, LockError, _descriptors, _diag, _holder, _linux
from .._names import MAX_ADDRESS, PREFIX, parse
from ._codes import USAGE, Unknown
from ._proc import has_open, is_open, openers, running
from ._text import complain, cut, quoted, reason, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_POLITE = 16
_MOST = _holder.MOST_ASKED
_TRIES = 3  # while the lock changes hands
_MOST_MOVED = 20  # in one listing
_COMMAND_WIDTH = 60
_HIDDEN = "it is in another pid namespace"
_LISTEN_TIME = 0.001  # between a holder's bind and its listen pass microseconds


class Found:
    """A lock that is held.  None, or `why`, where something could not be found out.

    `running` is how long, in seconds, its process has been running: it cannot have held the lock for longer.
    """

    def __init__(self, listed: _diag.Listed, name: str, scope: str | None, queue: list[int] | None) -> None:
        self.name = name
        self.scope = scope
        self.address = listed.address
        self.inode = listed.inode
        self.listening = listed.listening
        self.waiters = listed.queued if queue is None else sum(1 for inode in queue if inode)
        self.dead = listed.queued - (0 if queue is None else self.waiters)
        self.pid: int | None = None
        self.uid = listed.uid
        self.command: str | None = None
        self.running: float | None = None
        self.why = ""
        self.seen: list[int] = []  # who has it open, where that is not the answer
        self.moved = False  # who took it had it no longer when we looked: it may just have been handed on

    def __str__(self) -> str:
        if self.pid is None:
            return f"a process that cannot be named ({self.why})"
        return process(self.pid, self.command)

    def advice(self) -> str:
        """Where `pid` is unknown: how to find out."""
        if self.seen:
            return f"`ps -fp {','.join(map(str, self.seen))}` says more"
        if self.why == _HIDDEN:
            return "ask from there"
        return "ask as root" if os.geteuid() else "`ss -xlp` may show it"

    def is_elsewhere(self) -> bool:
        """Whether it is in a container that is not ours."""
        ours, theirs = (_holder._mount_namespace(process) for process in ("self", str(self.pid)))
        return self.why == _HIDDEN or (_holder._proc_is_ours() and bool(ours and theirs) and ours != theirs)


def process(pid: int | None, command: str | None) -> str:
    """For a message of one line."""
    return f"pid {pid}" + (f" ({cut(show(command), _COMMAND_WIDTH)})" if command else "")


def has_ended(holder: Holder) -> bool:
    """Whether that is certain."""
    try:
        return holder.wait(0)
    except LockError:  # no handle
        return False


def named(arguments: argparse.Namespace, mirror: str | None = None) -> Lock:
    """The lock that is meant on the command line.  Raises SystemExit, OSError.

    `list` shows #HASH:TAIL for a name that is too long: that is enough to find the lock, but not to take it.
    """
    hashed = re.match("#[0-9a-f]{32}:", arguments.name) is not None
    try:
        lock = Lock("x" if hashed else arguments.name, scope=arguments.scope, mirror=mirror or False)
        if hashed:
            lock.name, lock.address = arguments.name, lock.address[:-1] + os.fsencode(arguments.name)
            if arguments.command == "run" or len(lock.address) != MAX_ADDRESS:
                raise ValueError(f"{quoted(lock.name)} is not a whole name, nor all that `pidabs list` shows of it")
    except ValueError as exc:
        complain(f"{exc}; see `pidabs {arguments.command} --help`")
        raise SystemExit(USAGE) from None
    except OSError as exc:  # a relative path, and the working directory is gone
        raise OSError(f"cannot resolve a relative path here: {exc.strerror}; give an absolute one") from exc
    return lock


def unknown(exc: OSError, lock: Lock | None = None) -> Unknown:
    """The error of a kernel that cannot be asked."""
    what = "the locks of this host" if lock is None else f"lock {quoted(lock.name)}"
    return Unknown(f"cannot find out about {what}: {reason(exc, 'allow netlink sockets or /proc/net/unix here')}")


def one(lock: Lock) -> Found | None:
    """What is known about this lock; None if it is free.  Raises Unknown."""
    try:
        return _inspect(lock.address, lock.name)
    except OSError as exc:
        raise unknown(exc, lock) from exc


def _inspect(address: bytes, name: str) -> Found | None:
    found = None
    for _ in range(_TRIES):
        listed = _diag.find(address)
        if listed is not None and not listed.listening:
            sleep(_LISTEN_TIME)
            listed = _diag.find(address)
        if listed is None:
            return None
        found = Found(listed, name, (parse(address) or ("", None))[1], _queues([listed]).get(listed.inode))
        if found.dead < _POLITE and _ask(found, {}):
            break
        theirs = openers({found.inode}).get(found.inode, {})
        if _look(found, theirs, {}) or (not found.why and _ask(found, {})):
            break
        found.seen = sorted(theirs.keys() - {os.getpid()})
        if not found.moved:
            break
    return found


def every() -> list[Found]:
    """All locks that are held in this network namespace, by name.  Raises Unknown."""
    try:
        locks = [(listed, parsed) for listed in _diag.sockets(PREFIX) if (parsed := parse(listed.address)) is not None]
        queues = _queues([listed for listed, _ in locks])
        seen_in = openers({listed.inode for listed, _ in locks}) if locks else {}
        seen: dict[int, Holder | None] = {}
        found = []
        moved = 0
        for listed, (name, scope) in locks:
            lock = Found(listed, name, scope, queues.get(listed.inode))
            theirs = seen_in.get(lock.inode, {})
            if not _look(lock, theirs, seen) and not _ask(lock, theirs):
                _look(lock, theirs, seen)  # now that we know who made it
            if lock.pid is None and lock.moved and moved < _MOST_MOVED:
                moved += 1
                again = _inspect(lock.address, name)
                if again is None:
                    continue
                lock = again
            found.append(lock)
    except OSError as exc:
        raise unknown(exc) from exc
    return sorted(found, key=lambda lock: (lock.name, lock.scope or ""))


def _queues(found: list[_diag.Listed]) -> dict[int, list[int]]:
    try:
        return _diag.queues(found)
    except OSError:
        return {}


def _look(found: Found, theirs: dict[int, str], seen: dict[int, Holder | None]) -> bool:
    """Whether one process alone is seen to have the lock: then it is the holder.  `seen` keeps handles, few of them."""
    others = [(pid, fd) for pid, fd in theirs.items() if pid != os.getpid()]  # we may have been started with it
    if len(others) != 1:
        return False
    ((pid, fd),) = others
    if pid not in seen:
        seen.clear()  # a descriptor each
        seen[pid] = _handle(pid)
    holder = seen[pid]
    if holder is None or holder.uid is None or holder.uid != found.uid or not is_open(pid, fd, found.inode):
        return False
    _describe(found, holder)
    return True


def _handle(pid: int) -> Holder | None:
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        uid = None
    return Holder(pid, uid, None, pidfd=pidfd)


def _ask(found: Found, theirs: dict[int, str]) -> bool:
    """Ask over a connection: whether the answer is certain.  `theirs`: who is seen to have it, if known."""
    if not found.listening:
        found.why = "it does not listen, so it cannot be asked who it is"
    if found.dead >= _MOST:
        found.why = f"its queue has {found.dead} entries of those who only asked"
    if found.why:
        return False
    sock = _descriptors.open_socket()
    try:
        sock.connect(found.address)
        pid, uid, gid = _linux.peer_credentials(sock)
        pidfd = _linux.peer_pidfd(sock)
    except OSError as exc:
        full = exc.errno == errno.EAGAIN
        found.why = "its queue is full" if full else f"it cannot be asked: {exc.strerror}"
        return False
    finally:
        _descriptors.abandon(sock)
    found.uid = uid
    if not pid:
        found.why = _HIDDEN
        return False
    given = pidfd is not None
    if pidfd is None:  # before Linux 6.5, or it has been reaped
        pidfd = _linux.attempt(os.pidfd_open, pid) if hasattr(os, "pidfd_open") else None
    holder = Holder(pid, uid, gid, pidfd=pidfd)
    has = pid in theirs or has_open(pid, found.inode)
    if not given and has is None:
        holder = Holder(pid, uid, gid)  # the pid may be another's by now: nothing more is said about it
    if has is False or (given and holder.wait(0)):
        found.why = f"pid {pid}, which took the lock, has it no longer: it has been inherited or passed on"
        found.moved = True
        return False
    _describe(found, holder)
    return True


def _describe(found: Found, holder: Holder) -> None:
    found.pid = holder.pid
    found.why = ""
    found.moved = False
    found.command = holder.command
    if found.command is not None:  # so /proc can be read, and is about this process
        seconds = running(found.pid)
        found.running = None if holder.wait(0) else seconds
