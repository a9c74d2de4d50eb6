"""Who holds a lock, in the kernel's words.

SO_PEERCRED of a connection names who last called listen(); SO_PEERPIDFD (Linux 6.5) adds a pidfd, and every signal goes
through that, so a recycled pid cannot be hit.  Older kernels: pidfd_open, kept only if that process has the lock's
socket open; whoever may signal a process may look that up, so nothing is lost.

To have a socket open proves little where a stranger made it: any daemon that takes descriptors can be sent it, any
setuid program started with it.  So a stranger's lock is looked for among that stranger's own processes.  And an inode
out of /proc/net/unix proves nothing: a name with newlines in it forges lines there.

A connection leaves a dead entry in the holder's queue, until the holder looks there.  So where MOST_ASKED stand, who
has the socket open is named instead.  A dead pidfd does not mean that the lock is free, since a grant may be in flight:
only bind decides.
"""

from __future__ import annotations

import errno
import os
from time import sleep

from . import _diag, _linux
from ._descriptors import Socket, abandon, open_socket
from ._errors import LockError
from ._linux import attempt
from ._names import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._names import Name

_LONGEST_POLL = 1 << 30  # ms
MOST_ASKED = 128  # dead entries; behind 256 a release finds nobody, and the waiters lose their order
_CONNECT_TRIES = 20  # over about 10 ms; between bind and listen pass microseconds


class Holder:
    """The process that holds a lock: `pid`, `uid` and `gid` are the kernel's.

    `pid` is None where the holder's pid namespace is not visible from ours.  uid and gid are those of the moment the
    lock was taken.  Where the holder cannot be asked (it was asked often, its queue is full, or Landlock denies it),
    `gid` is None, `uid` is the one that made the lock's socket, and `pid` is the process that has it open, if that can
    be seen.
    """

    __slots__ = ("_identity", "_pidfd", "gid", "pid", "uid")

    def __init__(self, pid: int | None, uid: int | None, gid: int | None, *, pidfd: int | None = None) -> None:
        self.pid: int | None = pid or None
        self.uid: int | None = uid
        self.gid: int | None = gid
        self._pidfd = pidfd
        self._identity = None if pidfd is None else _linux.file_identity(pidfd)

    @property
    def command(self) -> str | None:
        """Its command line, or its name where there is none; None if it is gone or cannot be seen for certain."""
        if self.pid is None or not self._has_handle() or not _proc_is_ours():
            return None
        text = _read_proc(self.pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ")
        text = text or _read_proc(self.pid, "comm").strip()
        # Alive after the read, so the pid was still this process while we read.
        return None if self.wait(0) else os.fsdecode(text) or None

    def send_signal(self, sig: int) -> None:
        """Send it a signal, never another process that got the same pid since.

        Raises ProcessLookupError if it is gone, PermissionError if we may not, LockError if the kernel gave us no
        handle to it or its pid namespace is out of our reach.
        """
        # Built in, unlike `signal`, which a daemon that has changed its root or uid may not be able to read any more.
        from _signal import pidfd_send_signal  # type: ignore[import-not-found]

        try:
            pidfd_send_signal(self._handle(), sig)
        except OSError as exc:
            if exc.errno != errno.EINVAL or self.pid is not None:
                raise
            raise LockError(f"cannot signal {self}: its pid namespace is not visible from here") from exc

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has exited, at most `timeout` seconds: whether it has.  A zombie has exited.

        Raises LockError if the kernel gave us no handle to it, ValueError if `timeout` is not a number.
        """
        from select import POLLIN, poll

        if timeout is not None and timeout != timeout:
            raise ValueError("a timeout must be a number of seconds, not NaN")
        poller = poll()
        poller.register(self._handle(), POLLIN)
        return bool(poller.poll(None if timeout is None else min(max(0, timeout) * 1000, _LONGEST_POLL)))

    def terminate(self, timeout: float | None = None, kill: bool = False) -> bool:
        """SIGTERM, then wait at most `timeout` seconds; with `kill`, SIGKILL after that, and wait as long again.

        Whether it has exited.  Raises what `send_signal` raises, but for a process that is gone already.
        """
        from _signal import SIGKILL, SIGTERM

        for sig in (SIGTERM, SIGKILL) if kill else (SIGTERM,):
            try:
                self.send_signal(sig)
            except ProcessLookupError:
                return True
            if self.wait(timeout):
                return True
        return False

    def _handle(self) -> int:
        if self._pidfd is None:
            raise LockError(f"no handle to {self}: the kernel gave none")
        if not self._has_handle():
            raise LockError(f"the handle to {self} is lost: its descriptor was closed, as DaemonContext does")
        return self._pidfd

    def _has_handle(self) -> bool:
        """Whether the pidfd is there, and not a number that was closed behind our back and given to another file."""
        return self._pidfd is not None and self._identity is not None and _linux.is_file(self._pidfd, self._identity)

    def __del__(self) -> None:
        if self._pidfd is not None and self._has_handle():
            os.close(self._pidfd)

    def __str__(self) -> str:
        who = "a process that is not visible from here" if self.pid is None else f"pid {self.pid}"
        about = [] if self.uid is None else [f"uid {self.uid}"]
        about += [repr(command)] if (command := self.command) else []
        return who + (f" ({', '.join(about)})" if about else "") + self._elsewhere()

    def _elsewhere(self) -> str:
        """The hint for the one surprise of a name that no file stands behind: two containers that use the same path."""
        visible = self._has_handle() and _proc_is_ours()
        ours, theirs = _mount_namespace("self"), _mount_namespace(str(self.pid)) if visible else None
        hidden = self.pid is None and self.gid is not None
        if hidden or (ours and theirs and ours != theirs):
            return ", in another container it seems: if it is meant to be another lock, set PIDABS_SCOPE"
        return ""

    def __repr__(self) -> str:
        return f"<Holder pid={self.pid} uid={self.uid} gid={self.gid}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holder) and (self.pid, self.uid, self.gid) == (other.pid, other.uid, other.gid)

    def __hash__(self) -> int:
        return hash((self.pid, self.uid, self.gid))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.pid, self.uid, self.gid)  # a pidfd does not travel


def holder(name: Name) -> Holder | None:
    """Who holds the lock of this name or path; None if nobody does.

    Raises OSError where the kernel cannot be asked.
    """
    return ask(resolve(name)[1])


def ask(address: bytes, sparing: bool = True) -> Holder | None:
    """Who holds the lock of this address.  `sparing` its queue: asked by a monitor it would fill up in a day."""
    if sparing and _asked_often(address):
        return _guess(address)
    sock = open_socket()
    try:
        for turn in range(_CONNECT_TRIES):
            try:
                sock.connect(address)
            except ConnectionRefusedError:
                if _diag.find(address) is None:
                    return None
                sleep(turn * 0.00005)  # taken, and about to listen, or let go
            except (BlockingIOError, PermissionError):
                break  # a full queue, or Landlock
            else:
                return of_peer(sock, address)
        return _guess(address)
    finally:
        abandon(sock)


def _asked_often(address: bytes) -> bool:
    try:
        listed = _diag.find(address)
    except OSError:  # it can only be asked
        return False
    if listed is None or listed.queued < MOST_ASKED:
        return False
    queue = attempt(_diag.queue, listed.inode)
    return queue is None or queue.count(0) >= MOST_ASKED


def of_peer(sock: Socket, address: bytes) -> Holder:
    """The holder at the other end of a connection, or of our own listener."""
    pid, uid, gid = _linux.peer_credentials(sock)
    pidfd = _linux.peer_pidfd(sock)
    if pidfd is None and pid:
        pidfd = _open_verified(pid, address)
    return Holder(pid, uid, gid, pidfd=pidfd)


def _guess(address: bytes) -> Holder | None:
    """Who has the lock's socket open, where it cannot be connected to."""
    listed = _diag.find(address)
    if listed is None:
        return None
    for pid in map(int, filter(str.isdigit, os.listdir("/proc") if _proc_is_ours() else ())):
        if _holds(pid, listed) and (pidfd := _open_verified(pid, address)) is not None:
            return Holder(pid, listed.uid, None, pidfd=pidfd)
    return Holder(None, listed.uid, None)


def _open_verified(pid: int, address: bytes) -> int | None:
    """A pidfd of `pid` if that process has the socket of `address` open."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
    try:
        listed = _diag.find(address)
        if listed is not None and _holds(pid, listed):
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None


def _holds(pid: int, listed: _diag.Listed) -> bool:
    """Whether this process has the socket open, and nobody can have foisted it upon it."""
    uid = listed.uid
    if uid is None or not _linux.is_somebody(uid):
        return False
    return (_linux.trusted(uid) or _uids(pid) == {uid}) and _has_open(pid, listed.inode)


def _uids(pid: int) -> set[int]:
    """Real, effective, saved and file system uid: more than one while it runs a setuid program."""
    for line in _read_proc(pid, "status").split(b"\n"):
        if line.startswith(b"Uid:"):
            return set(map(int, line.split()[1:]))
    return set()


def _has_open(pid: int, inode: int) -> bool:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_link(f"/proc/{pid}/fd/{number}") == f"socket:[{inode}]" for number in numbers)


def _mount_namespace(process: str) -> str | None:
    return _link(f"/proc/{process}/ns/mnt")


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _read_proc(pid: int, file: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{file}", "rb") as opened:
            return opened.read(4096)
    except OSError:
        return b""


def _proc_is_ours() -> bool:
    """Whether /proc counts pids as we do; in a container it may be the host's."""
    return _link("/proc/self") == str(os.getpid())
