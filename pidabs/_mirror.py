"""The mirror PID file: for people, `kill $(cat ...)`, `pgrep -F`, start-stop-daemon, monit, systemd's PIDFile=.

Rules: never read to decide anything; readers never see half a file; a symlink in its place is replaced, not followed;
it is flock'ed by its holder, so that `pgrep -L -F` can tell it from a stale one; it is removed only while it is ours.
"""

from __future__ import annotations

import errno
import os
import stat
from _warnings import warn

from ._linux import LOCK_EX, LOCK_NB, O_CLOEXEC, attempt, file_identity, flock, is_file, lift_file

_MODE = 0o644
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_CLOEXEC

open_files: dict[int, tuple[int, int]] = {}
"""Descriptors of written mirrors and what they are: a forked child closes its copies, which would keep the flock."""


class Mirror:
    """The PID file of one lock, and while it is written its descriptor, which is kept open for the flock."""

    __slots__ = ("_identity", "_temporary", "_text", "fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        head, tail = os.path.split(path)
        # Written before the rename; a fixed name, so that a SIGKILL leaves at most one file behind.
        self._temporary = os.path.join(head, f".{tail[:100]}.pidabs")
        self.fd = -1
        self._identity = (0, 0)
        self._text = b""

    def write(self) -> None:
        """Write our pid, in place of whatever file is there.  Raises OSError."""
        text = b"%d\n" % os.getpid()
        temporary = self._temporary
        # Straight from the system call into a list: a signal handler's exception must not lose a number.
        opened: list[int] = []
        try:
            for more_tries in (2, 1, 0):
                try:
                    opened.extend(map(os.open, (temporary,), (_NEW,), (_MODE,)))
                    break
                except FileExistsError:
                    if not more_tries:
                        raise
                    _unlink(temporary)  # a SIGKILL left it behind
                    if more_tries == 1:  # no: it is somebody's who may write there, so take one that he cannot guess
                        temporary += f"-{os.urandom(4).hex()}"
            fd = lift_file(opened)
            status = os.fstat(fd)
            if stat.S_IMODE(status.st_mode) != _MODE:  # an umask; others are to read it
                os.fchmod(fd, _MODE)
            os.write(fd, text)
            _flock(fd)
            os.rename(temporary, self.path)
            self._keep(fd, (status.st_dev, status.st_ino), text)
        except BaseException:
            for fd in opened:
                if _is_at(self.path, file_identity(fd)):  # after the rename
                    _unlink(self.path)
                os.close(fd)
            _unlink(temporary)
            self.fd = -1
            raise

    def _keep(self, fd: int, identity: tuple[int, int], text: bytes) -> None:
        self.fd, self._identity, self._text = fd, identity, text
        open_files[fd] = identity

    def move_here(self) -> None:
        """After a fork that moved the lock to this process: name it.  Warns where that cannot be done.

        In place where the directory is no longer writable, as after DaemonContext's setuid.
        """
        if self.fd < 0:
            return
        inherited, identity = self.fd, self._identity
        try:
            self.write()
        except OSError as exc:
            self.fd = inherited
            if self._is_in_place(is_file(inherited, identity)):
                text = b"%d\n" % os.getpid()
                os.pwrite(inherited, text, 0)  # the first line is whole at any moment, even before the cut
                os.ftruncate(inherited, len(text))
                self._keep(inherited, identity, text)
            else:
                self.forget()
                warn(f"PID file {self.path!r} does not name the lock's new holder: {exc}", RuntimeWarning, stacklevel=3)
        else:
            _close(inherited, identity, is_file(inherited, identity))

    def relock(self) -> None:
        """Take the flock again if DaemonContext closed our descriptor."""
        if self.fd < 0 or is_file(self.fd, self._identity) or not self._is_in_place(False):
            return
        open_files.pop(self.fd, None)
        try:
            fd = lift_file([_open_regular(self.path, os.O_RDONLY | O_CLOEXEC)])
        except OSError:
            return  # the flock is only a courtesy
        if is_file(fd, self._identity):
            self._keep(fd, self._identity, self._text)
            _flock(fd)
        else:  # exchanged since we looked
            os.close(fd)

    def remove(self) -> None:
        """Remove the file if it is written, and still ours.  Warns where that cannot be done.  Can be interrupted and
        done again."""
        if self.fd < 0:
            return
        open_still = is_file(self.fd, self._identity)
        left: OSError | None = None
        try:
            if self._text == b"%d\n" % os.getpid() and self._is_in_place(open_still):
                os.unlink(self.path)
        except OSError as exc:
            if exc.errno is None:  # a signal handler's
                raise
            if exc.errno not in (errno.ENOENT, errno.EISDIR):  # taken away, or replaced, since we looked
                if open_still:  # so that nobody is led to signal our pid
                    attempt(os.ftruncate, self.fd, 0)  # refused if it was opened by `relock`, and not for writing
                left = exc
        _close(self.fd, self._identity, open_still)
        self.fd = -1
        if left is not None:  # last: a warning can be an error
            warn(f"PID file {self.path!r} was left behind: {left}", RuntimeWarning, stacklevel=3)

    def forget(self) -> None:
        """Close our copy, if there is one; the file stays."""
        if self.fd < 0:
            return
        _close(self.fd, self._identity, is_file(self.fd, self._identity))
        self.fd = -1

    def _is_in_place(self, open_still: bool) -> bool:
        """Whether the file at our path is the one we wrote."""
        size = len(self._text) + 1
        try:
            if open_still:
                return _is_at(self.path, self._identity) and os.pread(self.fd, size, 0) == self._text
            # Our descriptor was closed behind our back, and inodes are reused: the text has to tell.
            with open(self.path, "rb", opener=_open_regular) as file:
                return is_file(file.fileno(), self._identity) and file.read(size) == self._text
        except OSError as exc:
            if exc.errno is None:
                raise
            return False


def close_inherited(keep: set[int]) -> None:
    """In a forked child: drop the copies that would keep the parent's flock, but for those of locks that moved here."""
    for fd, identity in list(open_files.items()):
        if fd not in keep:
            _close(fd, identity, is_file(fd, identity))


def _is_at(path: str, identity: tuple[int, int]) -> bool:
    status = attempt(os.lstat, path)
    return status is not None and (status.st_dev, status.st_ino) == identity


def _open_regular(path: str, flags: int) -> int:
    # Neither follow a symlink nor wait for the other end of a FIFO that somebody put there.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _unlink(path: str) -> None:
    attempt(os.unlink, path)


def _flock(fd: int) -> None:
    attempt(flock, fd, LOCK_EX | LOCK_NB)  # some file systems have none: it is only a courtesy to pgrep


def _close(fd: int, identity: tuple[int, int], open_still: bool) -> None:
    if open_files.get(fd) == identity:
        del open_files[fd]
    if open_still:
        os.close(fd)
