"""Where there are no abstract sockets: elsewhere the originals are handed out, in a sandbox on Linux nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import SECCOMP, child, has_seccomp

# Not Linux ----------------------------------------------------------------------------------------------------

ELSEWHERE = """
    import socket, subprocess, threading, warnings, daemon, lockfile.pidlockfile
    sys.platform = sys.argv[1]
    import pidabs
"""
"""Child code: the standard library is imported, and then this is another system."""

elsewhere = pytest.mark.parametrize("system", ["darwin", "win32", "freebsd14"])

WINDOWS = """
    # Before the standard library's own modules are asked for the last time: what Windows has not.
    import asyncio, filelock, os, select, signal, socket, _socket, daemon, lockfile, lockfile.linklockfile
    import lockfile.mkdirlockfile, lockfile.pidlockfile, lockfile.sqlitelockfile, lockfile.symlinklockfile
    getattr(filelock, "AsyncFileLock", None)
    sys.modules["fcntl"] = sys.modules["_posixsubprocess"] = sys.modules["resource"] = sys.modules["pwd"] = None
    for module in (select, _socket, socket, os, signal):
        for name in ("poll", "epoll", "AF_UNIX", "CMSG_SPACE", "socketpair", "sched_yield", "register_at_fork", "fork",
                     "geteuid", "getuid", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "pidfd_open", "SIGKILL",
                     "SIGHUP", "get_blocking", "set_blocking", "fchmod", "pread", "pwrite", "sysconf", "kill"):
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "win32"
"""


def test_on_windows_all_is_imported_and_the_originals_handed_out() -> None:
    code = (
        WINDOWS
        + """
    import warnings
    import pidabs
    try:
        pidabs.Lock("name")
    except pidabs.Unsupported as exc:
        say(exc)
    warnings.simplefilter("always")
    with warnings.catch_warnings(record=True) as caught:
        import pidabs.compat.filelock, pidabs.compat.lockfile.pidlockfile, pidabs.compat.daemon.pidfile
    say(len(caught))
    say(pidabs.compat.filelock.FileLock is filelock.FileLock, pidabs.compat.lockfile.LockFile is lockfile.LockFile)
    say(pidabs.compat.lockfile.pidlockfile.PIDLockFile is lockfile.pidlockfile.PIDLockFile)
    """
    )
    with child(code) as process:
        assert "win32 has no abstract unix sockets" in process.read_line()
        process.expect("1")
        process.expect("True True")
        process.expect("True")
        assert process.wait() == 0


@elsewhere
@pytest.mark.parametrize("arguments", ["'name'", "'/run/x.pid', mirror=True", "os.path"])
def test_lock_is_unsupported(system: str, arguments: str) -> None:
    code = (
        ELSEWHERE
        + f"""
    try:
        pidabs.Lock({arguments})
    except pidabs.Unsupported as exc:
        say(exc)
    """
    )
    with child(code, args=(system,)) as process:
        message = process.read_line()
        assert f"{system} has no abstract unix sockets" in message
        assert process.wait() == 0


@elsewhere
def test_the_stand_ins_are_the_originals(system: str, tmp_path: Path) -> None:
    """With one warning, however many of them are imported."""
    code = (
        ELSEWHERE
        + """
    warnings.simplefilter("always")
    with warnings.catch_warnings(record=True) as caught:
        from pidabs.compat.lockfile.pidlockfile import PIDLockFile
        from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
        from pidabs.compat.daemon import pidfile
    import daemon.pidfile
    for warning in caught:
        say(warning.category.__name__, warning.message)
    say("imported")
    say(PIDLockFile is lockfile.pidlockfile.PIDLockFile, pidfile.PIDLockFile is PIDLockFile)
    say(TimeoutPIDLockFile is daemon.pidfile.TimeoutPIDLockFile)
    with TimeoutPIDLockFile("x.pid") as lock:
        say(lock.read_pid() == os.getpid(), os.listdir("."))
    """
    )
    with child(code, args=(system,), cwd=tmp_path) as process:
        warning = process.read_line()
        assert warning.startswith("RuntimeWarning")
        assert system in warning
        assert "original" in warning
        process.expect("imported")
        process.expect("True True")
        process.expect("True")
        process.expect("True ['x.pid']")
        assert process.wait() == 0


@pytest.mark.parametrize("system", ["darwin", "freebsd14"])
def test_filelocks_stand_in_is_filelock(system: str, tmp_path: Path) -> None:
    code = (
        "    import asyncio, filelock\n"
        + ELSEWHERE
        + """
    getattr(filelock, "AsyncFileLock", None)
    warnings.simplefilter("always")
    with warnings.catch_warnings(record=True) as caught:
        import pidabs.compat.filelock as ours
    say(len(caught), caught[0].message)
    say(ours.FileLock is filelock.FileLock, ours.UnixFileLock is filelock.UnixFileLock)
    say(not hasattr(filelock, "AsyncFileLock") or ours.AsyncFileLock is filelock.AsyncFileLock)
    with ours.FileLock("x.lock") as lock:
        say(lock.is_locked, os.listdir("."))
    """
    )
    with child(code, args=(system,), cwd=tmp_path) as process:
        warning = process.read_line()
        assert warning.startswith("1 ")
        assert f"{system} has no abstract unix sockets" in warning
        process.expect("True True")
        process.expect("True")
        process.expect("True ['x.lock']")
        assert process.wait() == 0


def test_here_the_stand_ins_are_ours_and_silent() -> None:
    code = """
    import warnings
    warnings.simplefilter("error")
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile
    from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
    from pidabs.compat.filelock import FileLock
    say(PIDLockFile.__module__, TimeoutPIDLockFile.__module__, FileLock.__module__)
    """
    with child(code) as process:
        process.expect("pidabs.compat.lockfile.pidlockfile pidabs.compat.daemon.pidfile pidabs.compat.filelock")


# A sandbox ----------------------------------------------------------------------------------------------------

DENIED = SECCOMP + "    deny(sys.argv[1], int(sys.argv[2]))\n"

EPERM, EACCES, EAFNOSUPPORT = 1, 13, 97

sandboxes = pytest.mark.parametrize(
    ("call", "number"),
    [("socket", EPERM), ("socket", EACCES), ("socket", EAFNOSUPPORT), ("bind", EPERM), ("bind", EACCES)],
    ids=["socket EPERM", "socket EACCES", "socket EAFNOSUPPORT", "bind EPERM", "bind EACCES"],
)


def sandboxed(code: str, *args: str, cwd: Path) -> list[str]:
    """What `code` says, run where sockets are denied."""
    with child(code, args=args, cwd=cwd) as process:
        lines = [process.read_line()]
        if lines == ["no seccomp"]:
            pytest.skip("no seccomp filters here")
        while lines[-1] != "end":
            lines.append(process.read_line())
        assert process.wait() == 0
    return lines[:-1]


@has_seccomp
@sandboxes
@pytest.mark.parametrize("timeout", ["0", "0.1", "None"])
def test_lock_in_a_sandbox(call: str, number: int, timeout: str, tmp_path: Path) -> None:
    code = (
        "    import pidabs\n"
        + DENIED
        + f"""
    lock = pidabs.Lock("x", mirror="x.pid")
    try:
        lock.acquire(timeout={timeout})
    except pidabs.Unsupported as exc:
        say(isinstance(exc.__cause__, OSError), exc.__cause__.errno, lock.held)
        say(exc)
    say("end")
    """
    )
    first, message = sandboxed(code, call, str(number), cwd=tmp_path)
    assert first == f"True {number} False"
    assert "denied" in message
    assert "'x'" in message
    assert list(tmp_path.iterdir()) == []


@has_seccomp
@sandboxes
def test_the_stand_ins_in_a_sandbox(call: str, number: int, tmp_path: Path) -> None:
    """An error, and not the originals: some processes on sockets and some on files would exclude nobody."""
    code = (
        DENIED
        + """
    import warnings, lockfile
    warnings.simplefilter("error")
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile
    from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
    for cls in (PIDLockFile, TimeoutPIDLockFile):
        for timeout in (None, 0, 0.1):
            lock = cls("x.pid")
            try:
                lock.acquire(timeout)
            except lockfile.LockFailed as exc:
                say("failed to create x.pid: " in str(exc), "denied" in str(exc), exc.__cause__.__cause__.errno)
    say("end")
    """
    )
    assert sandboxed(code, call, str(number), cwd=tmp_path) == [f"True True {number}"] * 6
    assert list(tmp_path.iterdir()) == []


@has_seccomp
@sandboxes
def test_filelocks_stand_in_in_a_sandbox(call: str, number: int, tmp_path: Path) -> None:
    code = (
        """
    import asyncio, pidabs
    from pidabs.compat.filelock import AsyncFileLock, FileLock
    loop = asyncio.new_event_loop()
    """
        + DENIED.lstrip()
        + """
    lock = FileLock("x.lock")
    awaited = AsyncFileLock("x.lock")
    for take in (lock.acquire, lambda: lock.acquire(0), lambda: loop.run_until_complete(awaited.acquire())):
        try:
            take()
        except pidabs.Unsupported as exc:
            say("denied" in str(exc), exc.__cause__.errno, lock.is_locked, lock.lock_counter)
    say("end")
    """
    )
    assert sandboxed(code, call, str(number), cwd=tmp_path) == [f"True {number} False 0"] * 3
    assert list(tmp_path.iterdir()) == []
