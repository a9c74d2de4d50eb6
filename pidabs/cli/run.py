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
import sys
from fcntl import F_DUPFD, fcntl

from .. import Lock, Timeout, _diag, _linux, _mirror
from ._codes import Unknown
from ._find import named, one
from ._proc import has_open
from ._text import complain, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

_FIRST_FREE_OF_SHELLS = 10


def run(parsed: Namespace) -> int:
    """Run the command: the exit code, if we are still there."""
    lock = named(parsed, parsed.mirror)
    try:
        if not _take(lock, 0.0 if parsed.nonblock else parsed.timeout):
            code: int = parsed.conflict_exit_code
            if code:
                complain(_conflict(lock, parsed.timeout))
            return code
        if parsed.supervise:
            from ._supervise import supervise

            return supervise(lock, parsed.argv)
        return _become(lock, parsed.argv)
    except KeyboardInterrupt:
        if lock.held:
            lock.release()
        raise


def _take(lock: Lock, seconds: float | None) -> bool:
    """Take the lock: whether we have it."""
    try:
        lock.acquire(0)
        return True
    except Timeout:
        if seconds == 0 or _is_inherited(lock):
            return False
    from ._waiting import INTERVAL, WaitingLine

    line = WaitingLine(lock) if sys.stderr.isatty() else None
    try:
        lock.acquire(seconds, cancel_check=line, poll_interval=INTERVAL)
        return True
    except Timeout:
        return False
    finally:
        if line is not None:
            line.erase()


def _is_inherited(lock: Lock) -> bool:
    """Whether we have the lock's listener open ourselves, from a `pidabs run` that we were started by."""
    listed = _linux.attempt(_diag.find, lock.address)
    return listed is not None and has_open(os.getpid(), listed.inode) is True


def _conflict(lock: Lock, seconds: float | None) -> str:
    what = f"cannot acquire lock {quoted(lock.name)}" + (f" within {seconds:g} s" if seconds else "")
    if _is_inherited(lock):
        return f"{what}: we were started under it, and would wait for ourselves"
    try:
        found = one(lock)
    except Unknown as exc:
        holder = _linux.attempt(lock.holder)  # a sandbox may deny all that `one` needs, but not a connection
        return f"{what}: held by {holder}" if holder else f"{what}: it is held; {exc}"
    if found is None:
        return f"{what}: it was held, and has been freed since; try again"
    hint = "" if found.pid else f"; {found.advice()}"
    if found.is_elsewhere():  # the one surprise of a name that no file stands behind
        hint = ", in another container it seems: if it is meant to be another lock, set PIDABS_SCOPE"
    return f"{what}: held by {found}, uid {found.uid}{hint}"


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
