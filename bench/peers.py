"""The locks, behind one interface: make(path) gives an object with acquire(), which waits, and release().

Each is used as its own documentation shows, with its own defaults, polling above all.  It is imported when it is asked
for, so that a process pays only for what it measures.  What is compared with a lock that sleeps in the kernel keeps its
file open, which is the fastest that flock(2) can be.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any
from typing import Protocol as Interface

from .floor import Protocol

OLD_FILELOCK = "3.13.4"
_OLD_FILELOCK_AT = os.path.join(sys.prefix, "share", f"bench-filelock-{OLD_FILELOCK}")
_LONG = 3600.0
_PATIENCE = 1.0
"""Seconds of one try of lockfile's PIDLockFile.  It polls ten times in it, so as often as lockfile's others do."""


class Mutex(Interface):
    def acquire(self) -> object: ...
    def release(self) -> object: ...


Make = Callable[[str], Mutex]


@dataclass(frozen=True)
class Peer:
    name: str
    package: str
    statement: str
    """What a program has at its top."""
    load: Callable[[], Make]
    waits: str
    """How it waits; empty if it cannot."""
    longest_pause: float = 0.0
    """Seconds between two polls."""
    dies: bool = True
    """Whether the lock is free as soon as its holder is dead."""


class Flock:
    """Blocking flock(2)."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def acquire(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


class OpenedFlock:
    """The same by a program that opens the file for each lock, as it does if it may be removed or replaced."""

    def __init__(self, path: str) -> None:
        self._path = path

    def acquire(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        os.close(self._fd)


class OpenFileDescriptionLock:
    """fcntl(F_OFD_SETLKW), which waits like lockf(3) and belongs to the open file."""

    def __init__(self, path: str) -> None:
        import struct

        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self._lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        self._unlock = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)

    def acquire(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, self._lock)

    def release(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, self._unlock)


class _Patient:
    """A PIDLockFile, ours or the original, that is asked again until it has the lock."""

    def __init__(self, lock: Any, timeout: type[Exception], seconds: float) -> None:
        self._lock = lock
        self._timeout = timeout
        self._seconds = seconds
        self.release = lock.release

    def acquire(self) -> None:
        while True:
            try:
                self._lock.acquire(timeout=self._seconds)
                return
            except self._timeout:
                continue


class _Constructed:
    """zc.lockfile and oslo.concurrency: a new object each time."""

    def __init__(self, enter: Callable[[], Callable[[], object]]) -> None:
        self._enter = enter

    def acquire(self) -> None:
        self.release = self._enter()


class _PidFile:
    """pid.PidFile, with the names of the others."""

    def __init__(self, lock: Any) -> None:
        self.acquire = lock.create
        self.release = lock.close


def lock(**options: Any) -> Make:
    from pidabs import Lock

    return lambda path: Lock(path, **options)


def our_file_lock(**options: Any) -> Make:
    from pidabs.compat.filelock import FileLock

    return lambda path: FileLock(path, **options)


def our_pid_lock_file(**options: Any) -> Make:
    from lockfile import LockTimeout
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile

    return lambda path: _Patient(PIDLockFile(path, **options), LockTimeout, _LONG)


def _file_lock() -> Make:
    from filelock import FileLock

    return lambda path: FileLock(path)


def _old_file_lock() -> Make:
    place = os.path.join(old_filelock(), "filelock")
    spec = importlib.util.spec_from_file_location(
        "old_filelock", os.path.join(place, "__init__.py"), submodule_search_locations=[place]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["old_filelock"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: module.FileLock(path)


def old_filelock() -> str:
    """Where it is; it is installed beside the newer one, for this alone, if it is not there yet."""
    if not any(distributions(name="filelock", path=[_OLD_FILELOCK_AT])):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", _OLD_FILELOCK_AT]
        done = subprocess.run([*command, f"filelock=={OLD_FILELOCK}"], capture_output=True, check=False)
        if done.returncode:
            raise ImportError(f"filelock {OLD_FILELOCK} cannot be installed into {_OLD_FILELOCK_AT}")
    return _OLD_FILELOCK_AT


def _pid_lock_file() -> Make:
    from lockfile import LockTimeout
    from lockfile.pidlockfile import PIDLockFile

    return lambda path: _Patient(PIDLockFile(path), LockTimeout, _PATIENCE)


def _link_lock_file() -> Make:
    from lockfile.linklockfile import LinkLockFile

    return lambda path: LinkLockFile(path)


def _fasteners() -> Make:
    from fasteners import InterProcessLock

    return lambda path: InterProcessLock(path)


def _portalocker() -> Make:
    from portalocker import Lock

    return lambda path: Lock(path, timeout=_LONG)


def _zc_lockfile() -> Make:
    from zc.lockfile import LockFile

    return lambda path: _Constructed(lambda: LockFile(path).close)


def _pid() -> Make:
    from pid import PidFile

    return lambda path: _PidFile(PidFile(os.path.basename(path), os.path.dirname(path)))


def _oslo() -> Make:
    from oslo_concurrency import lockutils

    def make(path: str) -> Mutex:
        directory, name = os.path.split(path)

        def enter() -> Callable[[], object]:
            held = lockutils.lock(name, external=True, lock_path=directory, do_log=False)
            held.__enter__()
            return lambda: held.__exit__(None, None, None)

        return _Constructed(enter)

    return make


LOCK = Peer("pidabs.Lock", "pidabs", "import pidabs", lock, "in the queue")
OUR_FILE_LOCK = Peer(
    "pidabs FileLock", "pidabs", "from pidabs.compat.filelock import FileLock", our_file_lock, "in the queue"
)
OUR_PID_LOCK_FILE = Peer(
    "pidabs PIDLockFile",
    "pidabs",
    "from pidabs.compat.lockfile.pidlockfile import PIDLockFile",
    our_pid_lock_file,
    "in the queue",
)
FLOCK = Peer("flock(2)", "", "import fcntl", lambda: Flock, "in the kernel")
OFD = Peer("OFD lock", "", "import fcntl", lambda: OpenFileDescriptionLock, "in the kernel")
PROTOCOL = Peer("bare protocol", "", "import _socket", lambda: Protocol, "in the queue")
"""No lock to use: the floor of ours."""
FILE_LOCK = Peer("filelock", "filelock", "import filelock", _file_lock, "polls, 50 ms", 0.05)
OLD_FILE_LOCK = Peer(f"filelock {OLD_FILELOCK[:4]}", "", "import filelock", _old_file_lock, "polls, 50 ms", 0.05)
PID_LOCK_FILE = Peer(
    "PIDLockFile", "lockfile", "import lockfile.pidlockfile", _pid_lock_file, "polls, 100 ms", 0.1, dies=False
)
LINK_LOCK_FILE = Peer(
    "LinkLockFile", "lockfile", "import lockfile.linklockfile", _link_lock_file, "polls, 100 ms", 0.1, dies=False
)
FASTENERS = Peer("fasteners", "fasteners", "import fasteners", _fasteners, "polls, 10 to 100 ms", 0.1)
PORTALOCKER = Peer("portalocker", "portalocker", "import portalocker", _portalocker, "polls, 250 ms", 0.25)
OSLO = Peer(
    "oslo.concurrency", "oslo.concurrency", "from oslo_concurrency import lockutils", _oslo, "polls, 10 to 100 ms", 0.1
)
ZC_LOCKFILE = Peer("zc.lockfile", "zc.lockfile", "import zc.lockfile", _zc_lockfile, "")
PID = Peer("pid", "pid", "import pid", _pid, "")

PEERS = (
    LOCK, OUR_FILE_LOCK, OUR_PID_LOCK_FILE, PROTOCOL, FLOCK, OFD, FILE_LOCK, OLD_FILE_LOCK, PID_LOCK_FILE,
    LINK_LOCK_FILE, FASTENERS, PORTALOCKER, OSLO, ZC_LOCKFILE, PID,
)  # fmt: skip


def named(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)
