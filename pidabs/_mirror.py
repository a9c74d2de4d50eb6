"""The mirror PID file: for people, `kill $(cat ...)`, `pgrep -F`, start-stop-daemon, monit, systemd's PIDFile=.

Rules: never read to decide anything; readers never see half a file; a symlink in its place is replaced, not followed;
it is flock'ed by its holder, so that `pgrep -L -F` can tell it from a stale one; it is removed only while it is ours.
"""

from __future__ import annotations

import errno
import os
import stat
from fcntl import LOCK_EX, LOCK_NB, flock  # now: after a daemon's chroot or setuid the library may be out of reach

from ._linux import file_identity, is_file

_MODE = 0o644

open_files: dict[int, tuple[int, int]] = {}
"""Descriptors of written mirrors and what they are: a forked child closes its copies, which would keep the flock."""


class Mirror:
    """One written mirror file, held open for its flock."""

    __slots__ = ("_fd", "_identity", "_text", "path")

    def __init__(self, path: str) -> None:
        """Write it, in place of whatever file is at `path`.  Raises OSError."""
        self.path = path
        self._write()

    def _write(self) -> None:
        text = b"%d\n" % os.getpid()
        temporary = _free_name_beside(self.path)
        fd = -1
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            os.fchmod(fd, _MODE)  # whatever the umask: others are to read it
            os.write(fd, text)
            _flock(fd)
            os.rename(temporary, self.path)
            self._fd, self._identity, self._text = fd, file_identity(fd), text
            open_files[fd] = self._identity
        except BaseException:
            # A signal handler can raise between the open and its assignment: then only the kernel knows the number.
            for opened in (fd,) if fd >= 0 else _opened_as(temporary):
                if is_file_at(self.path, opened):  # after the rename
                    _unlink(self.path)
                os.close(opened)
            _unlink(temporary)
            raise

    def fileno(self) -> int:
        return self._fd

    def move_here(self) -> None:
        """After a fork that moved the lock to this process: name it.

        In place where the directory is no longer writable, as after DaemonContext's setuid.  Raises OSError.
        """
        inherited, identity = self._fd, self._identity
        try:
            self._write()
        except OSError:
            if not self._is_in_place():
                raise
            text = b"%d\n" % os.getpid()
            os.pwrite(inherited, text, 0)  # the first line is whole at any moment, even before the cut
            os.ftruncate(inherited, len(text))
            self._text = text
            open_files[inherited] = identity
        else:
            _close(inherited, identity)

    def relock(self) -> None:
        """Take the flock again if DaemonContext closed our descriptor."""
        if is_file(self._fd, self._identity) or not self._is_in_place():
            return
        open_files.pop(self._fd, None)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return  # the flock is only a courtesy
        self._identity = file_identity(self._fd)
        open_files[self._fd] = self._identity
        _flock(self._fd)

    def remove(self) -> None:
        """Remove the file if it is still ours.  Raises OSError if it is and cannot be; it is closed in any case."""
        try:
            if self._text == b"%d\n" % os.getpid() and self._is_in_place():
                os.unlink(self.path)
        except OSError:
            self._empty()
            raise
        finally:
            self.forget()

    def _empty(self) -> None:
        """So that nobody is led to signal our pid."""
        try:
            if is_file(self._fd, self._identity):
                os.ftruncate(self._fd, 0)
        except OSError:
            pass  # opened again by `relock`, and not for writing

    def forget(self) -> None:
        """Close our copy; the file stays."""
        _close(self._fd, self._identity)

    def __del__(self) -> None:
        if hasattr(self, "_text") and is_file(
            self._fd, self._identity
        ):  # an exception dropped it on its way to the lock
            self.remove()

    def _is_in_place(self) -> bool:
        """Whether the file at our path is the one we wrote: inodes are reused, so the text has to be ours as well."""
        try:
            with open(self.path, "rb", opener=_open_regular) as file:
                return is_file(file.fileno(), self._identity) and file.read(len(self._text) + 1) == self._text
        except OSError:
            return False


def close_inherited(keep: set[int]) -> None:
    """In a forked child: drop the copies that would keep the parent's flock, but for those of locks that moved here."""
    for fd, identity in list(open_files.items()):
        if fd not in keep:
            _close(fd, identity)


def _free_name_beside(path: str) -> str:
    """A name to write to before the rename.  Usually a fixed one, so that a SIGKILL leaves at most one file behind."""
    if stat.S_ISDIR(_mode(path)):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    head, tail = os.path.split(path)
    name = os.path.join(head, f".{tail[:100]}.pidabs")
    _unlink(name)
    # Somebody else's, in a sticky directory: never mind.
    return f"{name}-{os.urandom(4).hex()}" if _mode(name) else name


def is_file_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


def _opened_as(path: str) -> list[int]:
    try:
        return [int(fd) for fd in os.listdir("/proc/self/fd") if os.readlink(f"/proc/self/fd/{fd}") == path]
    except OSError:
        return []


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _open_regular(path: str, flags: int) -> int:
    # Neither follow a symlink nor wait for the other end of a FIFO that somebody put there.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _flock(fd: int) -> bool:
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except OSError:
        return False  # a file system without: the flock is only a courtesy to pgrep
    return True


def _close(fd: int, identity: tuple[int, int]) -> None:
    if open_files.get(fd) == identity:
        del open_files[fd]
    if is_file(fd, identity):
        os.close(fd)
