"""lockfile's own lock, the PID file: whoever makes it (O_EXCL) has the lock, and removing it is letting go.

Rules:
- A PID file counts while its holder has it flock'ed (new code; seen across pid namespaces), or while the process that
  it names lives and was not started after it was written (old code; by the pids of our namespace).  One without a pid
  counts for a moment: old code makes the file first and writes then.
- What we cannot judge counts: a file that we may not read, a process that we may not see.
- A stale file is removed by whoever has an flock on it and finds it in its place after that.  So of new processes two
  never remove one after the other, and none removes another's new file.
- Old code does not know that rule: a program that looks at the pid itself and calls break_lock may have judged the same
  stale file, and remove ours.  So after we have replaced a stale file we look again whether ours is still there.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from warnings import warn

from .._interop import InteropLock, OldLock, from_the_kernel

__all__ = ["InteropLock", "PidFile"]

_MODE = 0o644
_RELOCK_TRIES, _RELOCK_PAUSE = 100, 0.01  # seconds
_WRITING = 10.0  # seconds in which a file without a pid may be one that is just being written
_AGAIN = 0.02  # seconds; a program that calls break_lock has done so by then
_EXACT_TO = 2.0  # seconds: ticks, granularity of file times, small steps of the clock
_TICKS = os.sysconf("SC_CLK_TCK")

_written: dict[str, tuple[int, int]] = {}
"""The files of this process, by path: one whose lock was lost says that we live, and is not to keep us out."""


class PidFile(OldLock):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._other = OldLock(path)  # a file that may be another's, and is not ours to remove

    def take(self) -> bool:
        self.doubt = 0.0
        try:
            fd = self._create()
            if fd is None and self.clear():
                self.doubt = _AGAIN
                fd = self._create()
            if fd is None:
                return False
            _flocked(fd, LOCK_EX)
            self._name_us(fd)
            os.fchmod(fd, _MODE)  # whatever the umask: others are to read it
            self.taken = True
            return True
        except BaseException:
            self.free()
            raise

    def _create(self) -> int | None:
        try:
            return self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)
        except FileExistsError:
            return None

    def _name_us(self, fd: int) -> None:
        text = _text()
        os.pwrite(fd, text, 0)  # the first line is whole at any moment, even before the cut
        os.ftruncate(fd, len(text))
        if self._identity is not None:
            _written[self.path] = self._identity

    def clear(self) -> bool:
        """Remove it if it is stale: whether there is none now.  Raises OSError if it cannot be judged, or removed."""
        found = self._other
        try:
            fd = _open_regular(found)
            if self._owner_of(fd, leftover=True) is not None or not _flocked(fd, LOCK_EX):
                return False
            if self._owner_of(fd, leftover=True) is not None or not found._is_at_path(fd):
                return False  # it is not what it was when we opened it
            os.unlink(self.path)
            return True
        except FileNotFoundError as exc:
            from_the_kernel(exc)
            return True
        except PermissionError as exc:
            from_the_kernel(exc)
            if found._fds:
                raise
            return False  # we may not read it
        finally:
            found.close()

    def free(self) -> None:
        if self.taken or self._fds:
            try:
                if self.stands():
                    os.unlink(self.path)
            except OSError as exc:
                from_the_kernel(exc)
                if exc.errno != errno.ENOENT:  # taken away since we looked
                    self._leave_behind(exc)
            _written.pop(self.path, None)
        self.close()

    def _leave_behind(self, reason: OSError) -> None:
        """Empty, so that nobody is led to signal our pid, and new code finds that nobody has it."""
        fd = self._fd()
        if fd is not None:
            os.ftruncate(fd, 0)
        self.close()
        warn(f"PID file {self.path!r} was left behind: {reason}", RuntimeWarning, stacklevel=5)

    def close(self) -> None:
        super().close()
        self._other.close()

    def stands(self) -> bool:
        """Whether the file at the path is ours."""
        fd, identity = self._fd(), self._identity
        if fd is not None:
            return self._is_at_path(fd)
        # Our descriptor was closed behind our back, and inodes are reused: the text has to tell.
        try:
            found = _open_regular(self._other)
            return self._other._identity == identity and os.pread(found, 64, 0) == _text()
        except OSError as exc:
            from_the_kernel(exc)
            return False
        finally:
            self._other.close()

    def arrive(self) -> None:
        fd = self._fd()
        if fd is not None:
            self._name_us(fd)

    def relock(self) -> None:
        """The flock again, if our descriptor was closed: those in another pid namespace go by it."""
        if not self.taken or self._fd() is not None or not self.stands():
            return
        self._fds.clear()
        fd = self._open(os.O_RDWR)
        for _ in range(_RELOCK_TRIES):  # our parent may have its copy still, or somebody be looking
            if _flocked(fd, LOCK_EX):
                return
            time.sleep(_RELOCK_PAUSE)

    def owner(self) -> int | None:
        look = OldLock(self.path)
        try:
            fd = _open_regular(look)
            pid = self._owner_of(fd)
            return 0 if pid is None and not _flocked(fd, LOCK_SH) else pid
        except OSError as exc:
            from_the_kernel(exc)
            return None if exc.errno == errno.ENOENT else 0
        finally:
            look.close()

    def _owner_of(self, fd: int, leftover: bool = False) -> int | None:
        """The pid that counts, 0 if there is none yet, None if the file is stale: also what is left over of a lock that
        this process has lost, if we hold the socket and so know that."""
        status = os.fstat(fd)
        try:
            pid = int(os.pread(fd, 64, 0).partition(b"\n")[0])
        except ValueError:
            pid = 0
        if not 0 < pid < 1 << 31:
            return 0 if abs(time.time() - status.st_mtime) < _WRITING else None
        if leftover and pid == os.getpid() and _written.get(self.path) == (status.st_dev, status.st_ino):
            return None
        return pid if _may_have_written(pid, status.st_mtime) else None


def _text() -> bytes:
    return b"%d\n" % os.getpid()


def _open_regular(file: OldLock) -> int:
    fd = file._open(os.O_RDONLY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EEXIST, "what is there is no regular file", file.path)
    return fd


def _flocked(fd: int, how: int) -> bool:
    try:
        flock(fd, how | LOCK_NB)
    except OSError as exc:
        from_the_kernel(exc)
        return not isinstance(exc, BlockingIOError)  # some file systems have none: the pid has to do
    return True


def _may_have_written(pid: int, when: float) -> bool:
    """Whether there is a process of this pid that was there at that time.  Raises nothing; in doubt, there is."""
    try:
        os.kill(pid, 0)
    except OSError as exc:
        from_the_kernel(exc)
        if isinstance(exc, ProcessLookupError):
            return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError as exc:
        from_the_kernel(exc)
        return True  # hidden, or no /proc
    state, threads, ticks = fields[0], int(fields[17]), int(fields[19])
    if state in b"ZX" and threads <= 1:  # the first thread may have ended before the others
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS
    return started <= when + _EXACT_TO
