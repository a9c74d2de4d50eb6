"""The mirror PID file: for people, `kill $(cat ...)`, `pgrep -F`, start-stop-daemon, monit, systemd's PIDFile=.

Rules: never read to decide anything; readers never see half a file; a symlink in its place is replaced, not followed;
it is flock'ed by its holder, so that `pgrep -L -F` can tell it from a stale one; it is removed only while it is ours.
"""

from __future__ import annotations

import errno
import os
import stat
from _warnings import warn

from ._descriptors import guard
from ._linux import LOCK_EX, LOCK_NB, O_CLOEXEC, attempt, close_first, file_identity, flock, is_file, lift_file

_MODE = 0o644
_TRIES = 100  # more forks than one thread can make meanwhile
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_CLOEXEC

open_files: dict[int, tuple[int, int]] = {}
"""Descriptors of written mirrors and what they are: a forked child closes its copies, which would keep the flock."""
_being_written: list[Mirror] = []
forks = 0
"""How often this process has begun to fork, or is a child."""


class Mirror:
    """The PID file of one lock, and while it is written its descriptor, which is kept open for the flock."""

    __slots__ = ("_begun", "_identity", "_opened", "_temporary", "_text", "fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        head, tail = os.path.split(path)
        # Written before the rename; a fixed name, so that a SIGKILL leaves at most one file behind.
        self._temporary = os.path.join(head, f".{tail[:100]}.pidabs")
        self.fd = -1
        self._identity = (0, 0)
        self._text = b""
        self._begun = ""
        """The file that is being written, under the name it has before the rename."""
        self._opened: list[int] = []
        """Its descriptor, straight from the system call: a signal handler's exception must not lose it, nor may a child
        that is forked meanwhile keep a copy."""

    def write(self) -> None:
        """Write our pid, in place of whatever file is there.  Raises OSError."""
        text = b"%d\n" % os.getpid()
        self._begun = self._temporary
        _being_written.append(self)
        try:
            fd = self._open()
            status = os.fstat(fd)
            if stat.S_IMODE(status.st_mode) != _MODE:  # an umask; others are to read it
                os.fchmod(fd, _MODE)
            os.write(fd, text)
            _flock(fd)
            os.rename(self._begun, self.path)
            self._keep(fd, (status.st_dev, status.st_ino), text)
            self._end()
        except BaseException:
            self._undo()
            raise

    def _open(self) -> int:
        """The file, in `_opened` and nowhere else: a copy that a child has would have the flock, too."""
        for _ in range(_TRIES):
            with guard:  # no fork is under way
                forked = forks
            for more_tries in (2, 1, 0):
                try:
                    self._opened.extend(map(os.open, (self._begun,), (_NEW,), (_MODE,)))
                    break
                except FileExistsError:
                    if not more_tries:
                        raise
                    _unlink(self._begun)  # a SIGKILL left it behind
                    if more_tries == 1:  # no: it is somebody's who may write there, so take one that he cannot guess
                        self._begun += f"-{os.urandom(4).hex()}"
            fd = lift_file(self._opened)
            with guard:
                if forked == forks:
                    return fd
            # Another thread has forked, perhaps between a system call and the list.
            self._close_opened()
            _unlink(self._begun)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _undo(self) -> None:
        """Undo what `write` has begun.  Can be interrupted and done again."""
        if self._opened:
            if _is_at(self.path, file_identity(self._opened[0])):  # after the rename
                _unlink(self.path)
            _unlink(self._begun)
        self._close_opened()
        self._end()

    def _close_opened(self) -> None:
        while self._opened:
            open_files.pop(self._opened[0], None)
            self.fd = -1
            attempt(close_first, self._opened)

    def _end(self) -> None:
        self._opened.clear()
        while self in _being_written:
            _being_written.remove(self)
        self._begun = ""

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
        if self._begun:
            self._undo()
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
    for mirror in list(_being_written):  # by another thread, or by this one, beneath a signal handler that has forked
        if mirror.fd < 0 or mirror.fd not in keep:
            mirror._close_opened()
        mirror._end()
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
