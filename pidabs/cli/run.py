"""`pidabs run`: a command under a lock.

By default the command takes our place, with the lock's listener left open: the holder's pid is the command's own, and
the lock is free when the last process that inherited the listener is gone.  Nobody answers those who wait meanwhile:
when it is free they race.  The mirror's descriptor is left open, too, so that its flock lasts as long as the lock;
the file stays behind, since nobody is left to remove it.

With --supervise we stay: see _supervise.py.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from fcntl import F_DUPFD, fcntl

from .. import Lock, Timeout, _mirror, list_locks
from . import USAGE, complain
from ._waiting import INTERVAL, WaitingLine, heir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

_FIRST_FREE_OF_SHELLS = 10


def run(parsed: Namespace) -> int:
    """Run the command: the exit code, if we are still there."""
    try:
        lock = Lock(parsed.name, mirror=parsed.mirror or False, scope=parsed.scope)
    except ValueError as exc:
        complain(exc)
        return USAGE
    try:
        conflict = _take(lock, 0.0 if parsed.nonblock else parsed.timeout)
        if conflict:
            if parsed.conflict_exit_code:
                complain(conflict)
            code: int = parsed.conflict_exit_code
            return code
        if parsed.supervise:
            from ._supervise import supervise

            return supervise(lock, parsed.argv)
        return _become(lock, parsed.argv)
    except KeyboardInterrupt:
        if lock.held:
            lock.release()
        return _die_of_interrupt()


def _take(lock: Lock, seconds: float | None) -> str:
    """Take the lock: why not, if not."""
    try:
        lock.acquire(0)
        return ""
    except Timeout as exc:
        if _is_inherited(lock):
            return f"cannot acquire lock {lock.name!r}: we were started under it, and would wait for ourselves"
        if seconds == 0:
            return _explain(exc)
    line = WaitingLine(lock) if sys.stderr.isatty() else None
    try:
        lock.acquire(seconds, cancel_check=line, poll_interval=INTERVAL)
        return ""
    except Timeout as exc:
        return _explain(exc)
    finally:
        if line is not None:
            line.erase()


def _explain(exc: Timeout) -> str:
    try:
        holder = exc.holder
    except OSError:
        holder = None
    return f"{exc}{heir(holder) if holder else ''}"


def _is_inherited(lock: Lock) -> bool:
    """Whether we have the lock's listener open ourselves, from a `pidabs run` that we were started by."""
    try:
        inodes = {listed.inode for listed in list_locks() if listed.address == lock.address}
        numbers = list(map(int, os.listdir("/proc/self/fd"))) if inodes else []
    except OSError:
        return False
    return any(_socket_inode(number) in inodes for number in numbers)


def _socket_inode(fd: int) -> int:
    try:
        status = os.fstat(fd)
    except OSError:
        return 0  # the listing's own
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else 0


def _become(lock: Lock, argv: list[str]) -> int:
    from ._command import execute

    copies: list[int] = []
    try:
        copies.extend(map(_inheritable, (lock.fileno(), *_mirror.open_files)))
        return execute(argv)
    finally:
        for fd in copies:
            os.close(fd)
        lock.release()


def _inheritable(fd: int) -> int:
    """A copy that the command inherits, under a number that a script has no redirection for: `exec 3<file` would free
    the lock."""
    try:
        return fcntl(fd, F_DUPFD, _FIRST_FREE_OF_SHELLS)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EMFILE):
            raise
        copy = os.dup(fd)  # the limit is as low as that
        os.set_inheritable(copy, True)
        return copy


def _die_of_interrupt() -> int:
    """As the shell wants it: a script stops at ^C only if its command was killed by it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    return 128 + signal.SIGINT  # blocked
