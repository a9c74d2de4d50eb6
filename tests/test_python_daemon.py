"""Real daemons of python-daemon: they fork twice, close what they are not told to keep, and change their uid."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lockfile
import pytest
from daemon.pidfile import TimeoutPIDLockFile as StockTimeoutPIDLockFile
from lockfile.pidlockfile import PIDLockFile as StockPIDLockFile
from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile as OurTimeoutPIDLockFile
from pidabs.compat.lockfile.pidlockfile import PIDLockFile as OurPIDLockFile
from support import (
    BECOME_UNPRIVILEGED,
    DEADLINE,
    UNPRIVILEGED,
    Child,
    child,
    flocked,
    must_block,
    needs_root,
    spec,
    wait_until,
)

import pidabs

RESTARTS = 15  # of each style

STOCK = [StockPIDLockFile, StockTimeoutPIDLockFile]
OURS = [OurPIDLockFile, OurTimeoutPIDLockFile]


either = pytest.mark.parametrize("cls", STOCK + OURS, ids=spec)
stock = pytest.mark.parametrize("cls", STOCK, ids=spec)
ours = pytest.mark.parametrize("cls", OURS, ids=spec)

SETUP = """
    import fcntl, gc, importlib, multiprocessing, subprocess, daemon, pidabs
    module, _, cls = sys.argv[1].partition(":")
    path = sys.argv[2]
    pidfile = getattr(importlib.import_module(module), cls)(path)
    streams = dict(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)
"""

PLAIN = (
    SETUP
    + """
    context = daemon.DaemonContext(pidfile=pidfile, **streams)
    context.open()
    say(os.getpid())
    """
)
"""As every daemon of python-daemon does it: the lock is taken at the very end."""

BEFORE_DETACHING = (
    SETUP
    + """
    pidfile.acquire()
    with pidfile.across_fork():
        context = daemon.DaemonContext(pidfile=pidfile, files_preserve=[pidfile], **streams)
        context.open()
    say(os.getpid())
    """
)

AROUND = (
    SETUP
    + """
    from contextlib import ExitStack
    stack = ExitStack()
    pidfile.acquire()
    stack.enter_context(pidfile.across_fork())
    stack.enter_context(daemon.DaemonContext(pidfile=pidfile, files_preserve=[pidfile], **streams))
    say(os.getpid())
    """
)
"""`with pidfile.across_fork(), DaemonContext(...): ...` with the daemon's whole life inside."""

NATIVE = (
    SETUP
    + """
    lock = pidabs.Lock(path, mirror=True).acquire(timeout=0)
    context = daemon.DaemonContext(files_preserve=[lock], **streams)
    with lock.across_fork():
        context.open()
    say(os.getpid())
    """
)

STYLES = {"plain": PLAIN, "before detaching": BEFORE_DETACHING, "around": AROUND, "native": NATIVE}
EARLY = {name: code for name, code in STYLES.items() if name != "plain"}
every_style = pytest.mark.parametrize("code", STYLES.values(), ids=STYLES)
every_early_style = pytest.mark.parametrize("code", EARLY.values(), ids=EARLY)


class Daemon(Child):
    """A Child that detaches: what we started ends, and the daemon that goes on says its pid first.

    The daemon keeps the child's streams, and ends when its stdin does: when the test closes it, or is no more.
    """

    def __init__(self, code: str, *args: str, tail: str = "    listen()\n", **kwargs: Any) -> None:
        super().__init__(code + "\n" + tail, args=args, **kwargs)
        self.pidfd = -1
        try:
            self.daemon = int(self.read_line())
            self.pidfd = os.pidfd_open(self.daemon)
        except BaseException:
            self.close()
            raise

    def send(self, sig: int) -> None:
        signal.pidfd_send_signal(self.pidfd, sig)

    def has_ended(self, deadline: float = DEADLINE) -> bool:
        return bool(select.select([self.pidfd], [], [], deadline)[0])

    def kill_daemon(self) -> None:
        self.send(signal.SIGKILL)
        assert self.has_ended()

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        if self.pidfd >= 0:
            if not self.has_ended():
                self.send(signal.SIGKILL)
            os.close(self.pidfd)
            self.pidfd = -1
        super().close()


@contextmanager
def running(code: str, cls: type, path: Path | str, **kwargs: Any) -> Iterator[Daemon]:
    process = Daemon(code, spec(cls), str(path), **kwargs)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pid"


# DaemonContext ------------------------------------------------------------------------------------------------


@either
def test_detaches_and_takes_its_pidfile(cls: Any, path: Path) -> None:
    tail = """
    say(os.getcwd(), os.getsid(0) != os.getpid())
    listen()
    """
    with running(PLAIN, cls, path, tail=tail) as daemon:
        assert daemon.wait() == 0
        assert daemon.daemon != daemon.pid
        daemon.expect("/ True")
        pidfile = cls(str(path))
        assert (pidfile.is_locked(), pidfile.read_pid()) == (True, daemon.daemon)
        assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"
        daemon.tell()
        assert daemon.has_ended()
        assert not path.exists()
        assert not pidfile.is_locked()


@every_style
def test_the_lock_and_its_mirror_are_the_daemons(code: str, path: Path) -> None:
    with running(code, OurPIDLockFile, path) as daemon:
        assert daemon.wait() == 0
        holder = pidabs.holder(path)
        assert holder is not None
        assert holder.pid == daemon.daemon
        assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"
        assert path.stat().st_mode & 0o777 == 0o644
        assert flocked(path)
        assert os.listdir(path.parent) == ["x.pid"]
        daemon.tell()
        assert daemon.has_ended()
        assert os.listdir(path.parent) == []


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="procps is not installed")
@every_style
def test_pgrep_finds_the_daemon_while_it_lives(code: str, path: Path) -> None:
    command = ["pgrep", "-L", "-F", str(path)]
    with running(code, OurPIDLockFile, path) as daemon:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
        assert found.stdout == f"{daemon.daemon}\n"
        daemon.kill_daemon()
        assert subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE).returncode == 1


@every_style
def test_a_relative_path(code: str, path: Path) -> None:
    with running(code, OurTimeoutPIDLockFile, "./x.pid", cwd=path.parent) as daemon:
        assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"
        assert OurPIDLockFile(str(path)).read_pid() == daemon.daemon
        daemon.tell()
        assert daemon.has_ended()
        assert not path.exists()


@either
def test_options(cls: Any, path: Path) -> None:
    """files_preserve, umask and working_directory do what they do for the original."""
    code = (
        SETUP
        + """
    kept, closed = (open(os.path.join(os.path.dirname(path), name), "w") for name in ("kept", "closed"))
    context = daemon.DaemonContext(
        pidfile=pidfile, files_preserve=[kept], umask=0o027, working_directory=os.path.dirname(path), **streams
    )
    context.open()
    say(os.getpid())
    kept.write("kept")
    kept.close()
    try:
        os.write(closed.fileno(), b"x")
    except OSError:
        say("closed")
    say(os.getcwd(), oct(os.umask(0)))
    """
    )
    with running(code, cls, path) as daemon:
        for line in ("closed", f"{path.parent} 0o27"):
            daemon.expect(line)
        assert (path.parent / "kept").read_text(encoding="ascii") == "kept"
        assert cls(str(path)).read_pid() == daemon.daemon


@needs_root
@either
def test_uid_and_gid_change(cls: Any, public_dir: Path) -> None:
    """The daemon takes the lock as somebody else, in a directory of his."""
    code = (
        SETUP
        + f"""
    context = daemon.DaemonContext(pidfile=pidfile, uid={UNPRIVILEGED}, gid={UNPRIVILEGED}, umask=0o022, **streams)
    context.open()
    say(os.getpid())
    say(*os.getresuid(), *os.getresgid())
    """
    )
    os.chown(public_dir, UNPRIVILEGED, UNPRIVILEGED)
    path = public_dir / "x.pid"
    with running(code, cls, path) as daemon:
        daemon.expect(" ".join([str(UNPRIVILEGED)] * 6))
        assert cls(str(path)).read_pid() == daemon.daemon
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (UNPRIVILEGED, 0o644)
        with pytest.raises(lockfile.AlreadyLocked):
            cls(str(path)).acquire()
        daemon.tell()
        assert daemon.has_ended()
        assert not path.exists()


@needs_root
@pytest.mark.parametrize("writable", [True, False])
def test_uid_change_after_taking_the_lock(public_dir: Path, writable: bool) -> None:
    """Where the daemon may not write to the directory, it writes its pid in place, and has to leave the file behind."""
    code = (
        SETUP
        + f"""
    import warnings
    lock = pidabs.Lock(path, mirror=True).acquire(timeout=0)
    context = daemon.DaemonContext(files_preserve=[lock], uid={UNPRIVILEGED}, gid={UNPRIVILEGED}, **streams)
    with lock.across_fork():
        context.open()
    say(os.getpid())
    listen()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock.release()
    say(*(warning.message for warning in caught))
    """
    )
    if writable:
        os.chown(public_dir, UNPRIVILEGED, UNPRIVILEGED)
    path = public_dir / "x.pid"
    with running(code, OurPIDLockFile, path) as daemon:
        assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"
        assert flocked(path)
        holder = pidabs.holder(path)
        assert holder is not None
        assert (holder.pid, holder.uid, holder.gid) == (daemon.daemon, UNPRIVILEGED, UNPRIVILEGED)
        daemon.tell()
        warning = daemon.read_line()
        assert ("left behind" in warning, "Permission denied" in warning, path.exists()) == (not writable,) * 3
        assert pidabs.holder(path) is None
        assert writable or not flocked(path)


@needs_root
@ours
def test_chroot(cls: Any, path: Path) -> None:
    """The PID file is written inside, as the original does; the lock is the path's, as seen outside."""
    code = (
        SETUP
        + """
    context = daemon.DaemonContext(pidfile=pidfile, chroot_directory=sys.argv[3], **streams)
    context.open()
    say(os.getpid())
    """
    )
    inside = path.parent / "jail" / path.relative_to("/")
    inside.parent.mkdir(parents=True)
    process = Daemon(code, spec(cls), str(path), str(path.parent / "jail"))
    try:
        assert inside.read_text(encoding="ascii") == f"{process.daemon}\n"
        assert not path.exists()
        assert cls(str(path)).read_pid() == process.daemon
        process.tell()
        assert process.has_ended()
        assert not inside.exists()
    finally:
        process.close()


# A second start -----------------------------------------------------------------------------------------------


@either
def test_a_second_start_is_refused_out_of_sight(cls: Any, path: Path) -> None:
    """The refusal comes after the detach: exit code 0, and the reason goes where stderr goes, as a rule /dev/null."""
    with running(PLAIN, cls, path) as daemon:
        with child(PLAIN + "\n    listen()\n", args=(spec(cls), str(path)), stderr=subprocess.PIPE) as second:
            assert second.wait() == 0
            assert b"AlreadyLocked" in second.process.stderr.read()
            assert second.process.stdout.read() == b""
        assert cls(str(path)).read_pid() == daemon.daemon
        assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"


@every_early_style
def test_a_second_start_is_refused_at_the_terminal(code: str, path: Path) -> None:
    with running(code, OurPIDLockFile, path) as daemon:
        with child(code, args=(spec(OurPIDLockFile), str(path)), stderr=subprocess.PIPE) as second:
            assert second.wait() == 1
            last_line = second.process.stderr.read().decode().splitlines()[-1]
            assert f"by pid {daemon.daemon} " in last_line
            assert str(path) in last_line
            assert second.process.stdout.read() == b""
        assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"
        assert pidabs.holder(path).pid == daemon.daemon  # type: ignore[union-attr]


@ours
def test_acquire_timeout_waits_for_the_first_to_end(cls: Any, path: Path) -> None:
    code = PLAIN.replace("(path)", "(path, timeout=15)")
    with (
        running(PLAIN, cls, path) as first,
        child(code + "\n    listen()\n", args=(spec(cls), str(path))) as second,
    ):
        assert second.wait() == 0
        wait_until(lambda: pidabs.Lock(path).waiters() == 1)
        first.tell()
        pid = int(second.read_line())
        assert path.read_text(encoding="ascii") == f"{pid}\n"
        second.tell()
        wait_until(lambda: not path.exists())


# How it ends --------------------------------------------------------------------------------------------------


@every_style
def test_sigterm_removes_the_mirror(code: str, path: Path) -> None:
    with running(code, OurPIDLockFile, path) as daemon:
        daemon.send(signal.SIGTERM)
        assert daemon.has_ended()
        assert os.listdir(path.parent) == []
        assert not pidabs.Lock(path).locked()


@stock
def test_stock_is_refused_after_sigkill(cls: Any, path: Path) -> None:
    with running(PLAIN, cls, path) as daemon:
        daemon.kill_daemon()
    with child(PLAIN, args=(spec(cls), str(path)), stderr=subprocess.PIPE) as second:
        assert second.wait() == 0
        assert b"AlreadyLocked" in second.process.stderr.read()
        assert second.process.stdout.read() == b""


@every_style
def test_sigkill_and_restart(code: str, path: Path) -> None:
    cls = OurTimeoutPIDLockFile
    for _ in range(RESTARTS):
        with running(code, cls, path) as daemon:
            assert path.read_text(encoding="ascii") == f"{daemon.daemon}\n"
            daemon.send(signal.SIGKILL)
            wait_until(lambda: not cls(str(path)).is_locked(), "the kernel has let go", 5)
            assert path.exists()


@ours
def test_restarted_at_once_with_an_acquire_timeout(cls: Any, path: Path) -> None:
    """The new one starts before the old one is gone."""
    code = PLAIN.replace("(path)", "(path, timeout=15)")
    started: list[Daemon] = []
    try:
        for _ in range(5):
            if started:
                started[-1].send(signal.SIGKILL)
            started.append(Daemon(code, spec(cls), str(path)))
            assert path.read_text(encoding="ascii") == f"{started[-1].daemon}\n"
    finally:
        for daemon in started:
            daemon.close()


# What a daemon starts does not keep its lock ------------------------------------------------------------------

FORKED = """
    if os.fork() == 0:
        say("worker")
        listen()
        say("alive")
        listen()
        os._exit(0)
    os.wait()
"""
MULTIPROCESSING = """
    def work():
        say("worker")
        sys.stdin = stdin
        listen()
        say("alive")
        listen()
        os._exit(0)
    stdin = os.fdopen(os.dup(0))  # multiprocessing closes sys.stdin
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
"""
EXECED = """
    subprocess.run(["sh", "-c", "echo worker; read line; echo alive; read line; :"], close_fds=False)
"""
PREEXEC = EXECED.replace("close_fds=False", "close_fds=False, preexec_fn=lambda: None")


@every_style
@pytest.mark.parametrize(
    "worker",
    [FORKED, MULTIPROCESSING, EXECED, PREEXEC],
    ids=["fork", "multiprocessing", "exec", "exec with preexec_fn"],
)
def test_a_worker_does_not_keep_the_lock(code: str, worker: str, path: Path) -> None:
    with running(code, OurPIDLockFile, path, tail=worker) as daemon:
        daemon.expect("worker")
        pidfile = OurPIDLockFile(str(path))
        assert pidfile.read_pid() == daemon.daemon
        daemon.kill_daemon()
        wait_until(lambda: not pidfile.is_locked(), "the kernel has let go", 5)
        assert not flocked(path)
        pidfile.acquire()
        daemon.tell()
        daemon.expect("alive")
        pidfile.release()


# Not preserved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", [True, False], ids=["across_fork", "plain fork"])
def test_a_lock_that_was_not_preserved_is_lost(path: Path, across: bool) -> None:
    """DaemonContext has closed it, and other files got its numbers: those are left alone."""
    code = (
        SETUP
        + f"""
    from contextlib import nullcontext
    lock = pidabs.Lock(path, mirror=True).acquire(timeout=0)
    context = daemon.DaemonContext(**streams)
    with lock.across_fork() if {across} else nullcontext():
        context.open()
    strangers = [open("/dev/null") for _ in range(32)]
    say(os.getpid())
    say(lock.held)
    try:
        lock.release()
    except pidabs.NotHeld as exc:
        say(exc)
    del lock
    gc.collect()
    say(all(os.path.samestat(os.fstat(file.fileno()), os.stat("/dev/null")) for file in strangers))
    with pidabs.Lock(path, mirror=True, timeout=15):
        say(open(path).read() == str(os.getpid()) + "\\n")
    say(all(os.path.samestat(os.fstat(file.fileno()), os.stat("/dev/null")) for file in strangers))
    """
    )
    with running(code, OurPIDLockFile, path) as daemon:
        daemon.expect("False")
        message = daemon.read_line()
        assert "was lost" in message
        assert "files_preserve=[lock]" in message
        assert "across_fork" in message
        for _ in range(3):
            daemon.expect("True")


@ours
def test_a_pidfile_that_was_not_preserved_is_lost(cls: Any, path: Path) -> None:
    code = (
        SETUP
        + """
    pidfile.acquire()
    with pidfile.across_fork():
        daemon.DaemonContext(**streams).open()
    strangers = [open("/dev/null") for _ in range(32)]
    say(os.getpid())
    say(pidfile.i_am_locking(), pidfile.is_locked())
    try:
        pidfile.release()
    except Exception as exc:
        say(type(exc).__name__, exc)
    try:
        pidfile.release()
    except Exception as exc:
        say(type(exc).__name__, exc)
    say(all(os.path.samestat(os.fstat(file.fileno()), os.stat("/dev/null")) for file in strangers))
    """
    )
    with running(code, cls, path) as daemon:
        daemon.expect("False False")
        message = daemon.read_line()
        assert message.startswith(f"NotLocked {path} is not locked (")
        assert "files_preserve" in message
        daemon.expect(f"NotLocked {path} is not locked")
        daemon.expect("True")


@ours
def test_a_pidfile_that_was_not_preserved_is_taken_again(cls: Any, path: Path) -> None:
    """DaemonContext enters it last, when the descriptor is closed: then it takes the lock as if for the first time."""
    code = BEFORE_DETACHING.replace("files_preserve=[pidfile], ", "")
    assert code != BEFORE_DETACHING
    with running(code, cls, path) as daemon:
        pidfile = cls(str(path))
        assert pidfile.read_pid() == daemon.daemon == int(path.read_text(encoding="ascii"))
        assert flocked(path)
        daemon.tell()
        assert daemon.has_ended()
        assert not path.exists()
        assert not pidfile.is_locked()


# across_fork by itself ----------------------------------------------------------------------------------------

ACROSS = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    lock.acquire()
    say("held")
    listen()
    with lock.across_fork():
        pid = os.fork()
    if pid == 0:
        say("child", os.getpid(), lock.held)
        listen()
        lock.release()
        say("released")
        os._exit(0)
"""
"""The child goes on as the holder; what its parent does is the test's."""


def child_pid(process: Child) -> int:
    word, pid, held = process.read_line().split()
    assert (word, held) == ("child", "True")
    return int(pid)


def test_the_kernel_names_the_child(name: str) -> None:
    with child(ACROSS + "\n    os.wait()\n", args=(name,)) as process:
        process.expect("held")
        process.tell()
        pid = child_pid(process)
        holder = pidabs.holder(name)
        assert holder is not None
        assert holder.pid == pid != process.pid
        process.tell()
        process.expect("released")
        assert process.wait() == 0
    assert pidabs.holder(name) is None


def test_the_parent_holds_it_no_more(name: str) -> None:
    tail = """
    say("parent", lock.held)
    try:
        lock.release()
    except pidabs.NotHeld:
        say("not held")
    try:
        lock.acquire(timeout=0)
    except pidabs.Timeout as exc:
        say(exc.holder.pid == pid)
    os.wait()
    """
    code = ACROSS.replace('say("child", os.getpid(), lock.held)', "") + tail
    with child(code, args=(name,)) as process:
        process.expect("held")
        process.tell()
        for line in ("parent False", "not held", "True"):
            process.expect(line)
        process.tell()
        process.expect("released")


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_the_parents_end_does_not_free_it(name: str, end: str) -> None:
    lock = pidabs.Lock(name)
    with child(ACROSS + "\n    " + end + "\n", args=(name,)) as process:
        process.expect("held")
        finish = must_block(lambda: lock.acquire(timeout=15))
        process.tell()
        pid = child_pid(process)
        process.wait()
        holder = pidabs.holder(name)
        assert holder is not None
        assert holder.pid == pid
        assert lock.waiters() == 1  # who joined before the fork is still in the queue
        process.tell()
        process.expect("released")
        finish()
        lock.release()


def test_waiters_stay_in_order(name: str) -> None:
    order: list[int] = []

    def take(number: int) -> None:
        with pidabs.Lock(name, timeout=15):
            order.append(number)

    with child(ACROSS + "\n    os.wait()\n", args=(name,)) as process:
        process.expect("held")
        waiting = []
        for number in range(3):
            waiting.append(must_block(lambda number=number: take(number)))  # type: ignore[misc]
        process.tell()
        child_pid(process)
        waiting.append(must_block(lambda: take(3)))
        assert order == []
        process.tell()
        process.expect("released")
        for finish in waiting:
            finish()
    assert order == [0, 1, 2, 3]


def test_the_childs_death_frees_it(name: str) -> None:
    code = ACROSS.replace("listen()\n        lock.release()", "listen(); os.kill(os.getpid(), 9)")
    with child(code + "\n    os.wait(); say('reaped'); listen()\n", args=(name,)) as process:
        process.expect("held")
        process.tell()
        child_pid(process)
        process.tell()
        process.expect("reaped")
        assert process.process.poll() is None  # the parent lives, and keeps no copy
        pidabs.Lock(name).acquire(timeout=0).release()


def test_several_locks_move_together(name: str, path: Path) -> None:
    code = """
    import pidabs
    locks = [pidabs.Lock(sys.argv[1] + suffix).acquire() for suffix in "abc"] + [pidabs.Lock(sys.argv[2], mirror=True)]
    locks[3].acquire()
    with locks[0].across_fork(), locks[1].across_fork(), locks[3].across_fork():
        pid = os.fork()
        if pid == 0:
            say(*(lock.held for lock in locks), open(sys.argv[2]).read().strip() == str(os.getpid()))
            locks[3].release()
            os._exit(0)
        os.wait()
        say(*(lock.held for lock in locks), os.path.exists(sys.argv[2]))
    """
    with child(code, args=(name, str(path))) as process:
        process.expect("True True False True True")
        process.expect("False False True False False")
        assert process.wait() == 0


def test_a_mirror_that_cannot_follow_does_not_stop_the_lock(public_dir: Path) -> None:
    """1. the lock is taken; 2. somebody deletes its PID file; 3. we may not write another; 4. we fork."""
    code = (
        """
    import pidabs, warnings
    lock = pidabs.Lock(sys.argv[1], mirror=True).acquire()
    os.unlink(sys.argv[1])
    os.chmod(os.path.dirname(sys.argv[1]), 0o555)
    """
        + BECOME_UNPRIVILEGED
        + """
    before = len(os.listdir("/proc/self/fd"))
    with lock.across_fork(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pid = os.fork()
        if pid == 0:
            say("child", os.getpid(), lock.held, len(caught), "new holder" in str(caught[0].message))
            listen()
            lock.release()
            say("released", len(os.listdir("/proc/self/fd")) < before)
            os._exit(0)
    say("parent", lock.held)
    os.wait()
    """
    )
    path = public_dir / "x.pid"
    with child(code, args=(str(path),)) as process:
        lines = sorted([process.read_line(5), process.read_line(5)])
        assert lines[1] == "parent False"
        pid = int(lines[0].split()[1])
        assert lines[0] == f"child {pid} True 1 True"
        assert pidabs.holder(path).pid == pid  # type: ignore[union-attr]
        process.tell()
        process.expect("released True")
        assert process.wait() == 0
    assert not pidabs.Lock(path).locked()


COLLECTED_LATER = """
    # 1. Something has descriptors; 2. DaemonContext closes them, and the lock gets their numbers; 3. it is collected.
    import socket, daemon
    from pidabs.compat.daemon.pidfile import PIDLockFile
    old = [open(os.devnull, "w"), socket.socket(), socket.socket()]
    old[0].write("flushed late")
    lock = PIDLockFile(sys.argv[1], interop=sys.argv[2] == "True")
    context = daemon.DaemonContext(pidfile=lock, detach_process=False, signal_map={}, stdout=1, stderr=2)
    context.stdout, context.stderr = sys.stdout, sys.stderr
    context.open()
    say("held", lock.is_locked())
    for one in old:
        try: one.close()
        except OSError: pass
    mirror = os.stat(sys.argv[1])
    flocked = any(f":{mirror.st_ino} " in line and " FLOCK " in line for line in open("/proc/locks"))
    say("held", lock.is_locked(), open(sys.argv[1]).read().split() == [str(os.getpid())], flocked)
    lock.release()
    say("removed", not os.path.exists(sys.argv[1]))
    os._exit(0)
"""


@pytest.mark.parametrize("interop", [False, True])
def test_what_was_made_before_the_daemon_and_is_collected_later(interop: bool, tmp_path: Path) -> None:
    """As in Airflow's scheduler: the numbers that it closes once more, or writes to, are not the lock's by then."""
    with child(COLLECTED_LATER, args=(str(tmp_path / "x.pid"), str(interop))) as daemon:
        daemon.expect("held True")
        daemon.expect("held True True True")
        daemon.expect("removed True")
