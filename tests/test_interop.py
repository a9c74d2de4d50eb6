"""Old code and new code on one lock: the real originals, in processes of their own, beside ours with `interop`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import filelock
import lockfile
import pytest
from daemon.pidfile import TimeoutPIDLockFile as StockTimeoutPIDLockFile
from lockfile.pidlockfile import PIDLockFile as StockPIDLockFile
from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
from pidabs.compat.filelock import AsyncFileLock, FileLock
from pidabs.compat.lockfile import _pidfile
from pidabs.compat.lockfile.pidlockfile import PIDLockFile
from support import (
    BECOME_UNPRIVILEGED,
    HOLD_PIDFILE,
    TAKEN,
    Child,
    child,
    in_namespace,
    must_block,
    state,
    switches,
    wait_until,
)

import pidabs

INTEROP = {"PIDABS_INTEROP": "1"}
OLD_OF = {PIDLockFile: StockPIDLockFile, TimeoutPIDLockFile: StockTimeoutPIDLockFile, FileLock: filelock.FileLock}
NEW_OF = {old: new for new, old in OLD_OF.items()}
PIDFILES = (PIDLockFile, TimeoutPIDLockFile)


def spec(cls: Any) -> str:
    """The class for a child's command line, and for a test's id."""
    return "filelock:FileLock" if cls is filelock.FileLock else f"{cls.__module__}:{cls.__qualname__}"


def id_of(value: Any) -> str:
    return f"{'new' if value in OLD_OF else 'old'} {value.__name__}" if isinstance(value, type) else str(value)


kinds = pytest.mark.parametrize("new", list(OLD_OF), ids=lambda cls: cls.__name__)
two_kinds = pytest.mark.parametrize("new", [PIDLockFile, FileLock], ids=lambda cls: cls.__name__)
directions = pytest.mark.parametrize(
    ("holds", "wants"),
    [pair for new, old in OLD_OF.items() for pair in ((old, new), (new, old), (new, new))],
    ids=id_of,
)
"""Who holds, and who wants it."""


def make(cls: Any, path: Path) -> Any:
    return cls(str(path), interop=True) if cls in OLD_OF else cls(str(path))


def hold(cls: Any, path: Path, **options: Any) -> Any:
    return child(HOLD_PIDFILE, args=(spec(cls), str(path)), env=INTEROP, **options)


def take(lock: Any, seconds: float) -> bool:
    """Whether it was taken in time; 0 tries once."""
    try:
        lock.acquire(seconds)
    except (lockfile.AlreadyLocked, lockfile.LockTimeout, filelock.Timeout):
        return False
    return True


def is_refused(process: Child, cls: Any) -> bool:
    """A PID file's acquire fails at once, the other waits."""
    return process.says_nothing() if cls.__name__ == "UnixFileLock" else process.wait() == 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.lock"


# Both directions ----------------------------------------------------------------------------------------------


@directions
def test_excludes(holds: Any, wants: Any, path: Path) -> None:
    lock = make(wants, path)
    with hold(holds, path) as holder:
        holder.expect("held")
        assert not take(lock, 0)
        assert not take(lock, 0.1)
        finish = must_block(lambda: take(lock, 8))
        holder.tell()
        holder.expect("released")
        assert finish()
        with hold(holds, path, stderr=subprocess.DEVNULL) as second:
            assert is_refused(second, holds)
            lock.release()


@directions
def test_a_killed_holder(holds: Any, wants: Any, path: Path) -> None:
    """All get the lock but old code that finds a PID file: that is what is wrong with it."""
    with hold(holds, path) as holder:
        holder.expect("held")
        holder.kill()
    lock = make(wants, path)
    if wants in (StockPIDLockFile, StockTimeoutPIDLockFile):
        assert not take(lock, 0)
    else:
        assert take(lock, 0)
        lock.release()


@directions
def test_a_waiter_and_a_killed_holder(holds: Any, wants: Any, path: Path) -> None:
    lock = make(wants, path)
    with hold(holds, path) as holder:
        holder.expect("held")
        if wants not in (StockPIDLockFile, StockTimeoutPIDLockFile):
            finish = must_block(lambda: take(lock, 8))
            holder.kill()
            assert finish()
            lock.release()


@kinds
def test_what_a_killed_new_holder_left_is_nothing_to_new_code(new: Any, path: Path) -> None:
    for _ in range(3):
        with hold(new, path) as holder:
            holder.expect("held")
            holder.kill()
    with make(new, path), hold(OLD_OF[new], path, stderr=subprocess.DEVNULL) as old:
        assert is_refused(old, new)


@directions
@pytest.mark.parametrize("inside", ["holder", "waiter"])
def test_across_network_namespaces(holds: Any, wants: Any, path: Path, inside: str) -> None:
    """They share the directory, and no socket."""
    command = in_namespace("--net")
    code = f"import subprocess; sys.exit(subprocess.call({command!r} + [sys.executable, '-c', *sys.argv[1:]]))"
    waiting = HOLD_PIDFILE.replace("lock.acquire()", "say('asks'); lock.acquire(8)")

    def start(cls: Any, program: str, elsewhere: bool) -> Any:
        args = (spec(cls), str(path))
        if not elsewhere:
            return child(program, args=args, env=INTEROP)
        return child(code, args=(Child.PREAMBLE + "\nif True:" + program, *args), env=INTEROP)

    with start(holds, HOLD_PIDFILE, inside == "holder") as holder, ExitStack() as stack:
        holder.expect("held")
        waiter = stack.enter_context(start(wants, waiting, inside == "waiter"))
        waiter.expect("asks")
        assert waiter.says_nothing(0.3)
        holder.tell()
        holder.expect("released")
        waiter.expect("held")
        waiter.tell()
        waiter.expect("released")


@two_kinds
def test_several_of_each_wait(new: Any, path: Path) -> None:
    """Of the new ones one looks at the file; the others are asleep in its queue, and are served in order."""
    program = HOLD_PIDFILE.replace("lock.acquire()", "lock.acquire(30)")
    with ExitStack() as stack:
        holder = stack.enter_context(hold(OLD_OF[new], path))
        holder.expect("held")
        waiters = []
        for number in range(3):
            waiters.append(stack.enter_context(child(program, args=(spec(new), str(path)), env=INTEROP)))
            wait_until(lambda: pidabs.Lock(path).waiters() == number if number else is_bound(path), "it waits")  # noqa: B023
        before = [switches(waiter.pid) for waiter in waiters]
        assert waiters[0].says_nothing(0.3)
        after = [switches(waiter.pid) for waiter in waiters]
        assert before[1:] == after[1:]
        assert 1 <= after[0] - before[0] <= 30
        holder.tell()
        holder.expect("released")
        for waiter in waiters:
            waiter.expect("held")
            assert not take(make(OLD_OF[new], path), 0)
            waiter.tell()
            waiter.expect("released")


def is_bound(path: Path) -> bool:
    return pidabs.Lock(path).locked()


@two_kinds
def test_by_the_environment(new: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(OLD_OF[new], path) as holder:
        holder.expect("held")
        monkeypatch.setenv("PIDABS_INTEROP", "1")
        assert not take(new(str(path)), 0)
        assert take(new(str(path), interop=False), 0)
    if new is not FileLock:
        new(str(path), interop=False).release()


@two_kinds
def test_costs_nothing_when_it_is_off(new: Any, path: Path) -> None:
    code = HOLD_PIDFILE.replace("listen()", "say(sorted(name for name in sys.modules if 'interop' in name))")
    with child(code, args=(spec(new), str(path))) as process:
        process.expect("held")
        process.expect("[]")


@two_kinds
def test_a_timeout_is_for_both_parts(new: Any, path: Path) -> None:
    """A new waiter before us has the socket for half of our time, and then we look at the file for the rest."""
    program = HOLD_PIDFILE.replace("lock.acquire()", "lock.acquire(0.3)")
    with hold(OLD_OF[new], path) as holder:
        holder.expect("held")
        with child(program, args=(spec(new), str(path)), env=INTEROP, stderr=subprocess.DEVNULL):
            wait_until(lambda: is_bound(path), "the other waits")
            began = time.monotonic()
            assert not take(make(new, path), 0.6)
            assert 0.6 <= time.monotonic() - began < 5


@two_kinds
def test_an_exception_while_the_file_is_waited_for(new: Any, path: Path) -> None:
    """It lets go of the socket, and the lock can be taken afterwards."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with hold(OLD_OF[new], path) as holder:
            holder.expect("held")
            lock = make(new, path)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(InterruptedError):
                lock.acquire(15)
            assert not is_bound(path)
            holder.tell()
            holder.expect("released")
            assert take(lock, 0)
            lock.release()
    finally:
        signal.signal(signal.SIGALRM, before)


# Forks --------------------------------------------------------------------------------------------------------

FORKS = (
    TAKEN
    + """
    if os.fork() == 0:
        listen()
        os._exit(0)
    say("held")
    if sys.argv[3] == "release":
        lock.release()
        say("released")
        os.waitpid(-1, 0)
"""
)


@two_kinds
@pytest.mark.parametrize("end", ["release", "exit"])
def test_a_worker_that_was_forked_does_not_keep_it(new: Any, path: Path, end: str) -> None:
    with child(FORKS, args=(spec(new), str(path), end), env=INTEROP) as holder:
        holder.expect("held")
        if end == "release":
            holder.expect("released")
        else:
            assert holder.wait() == 0  # the worker lives on
        assert take(make(OLD_OF[new], path), 0)


@two_kinds
def test_a_worker_that_was_forked_does_not_release_it(new: Any, path: Path) -> None:
    code = (
        TAKEN
        + """
    if os.fork() == 0:
        try:
            lock.release()
        except (RuntimeError, lockfile.NotMyLock):
            pass
        del lock
        os._exit(0)
    os.wait()
    say("held")
    listen()
    """
    )
    with child(code, args=(spec(new), str(path)), env=INTEROP) as holder:
        holder.expect("held")
        assert not take(make(OLD_OF[new], path), 0)


@pytest.mark.parametrize("preserved", ["the socket", "nothing else is closed"])
def test_a_daemon_that_takes_it_before_it_detaches(path: Path, preserved: str) -> None:
    code = """
    from daemon import DaemonContext
    from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
    pidfile = TimeoutPIDLockFile(sys.argv[1], interop=True)
    pidfile.acquire()
    reader, writer = os.pipe()
    answer, ask = os.pipe()
    with pidfile.across_fork():
        pid = os.fork()
    if pid == 0:
        keep = [pidfile, writer, answer, sys.stdout, sys.stderr]
        if sys.argv[2] != "the socket":
            keep += range(3, 64)
        with pidfile.across_fork(), DaemonContext(
            pidfile=pidfile, files_preserve=keep, stdout=sys.stdout, stderr=sys.stderr, detach_process=False
        ):
            os.write(writer, b"%d %d" % (os.getpid(), pidfile.i_am_locking()))
            os.read(answer, 1)
        os.write(writer, b"gone %d" % pidfile.is_locked())
        os._exit(0)
    say(os.read(reader, 100).decode())
    say(pidfile.i_am_locking())
    listen()
    os.write(ask, b"1")
    say(os.read(reader, 100).decode())
    """
    with child(code, args=(str(path), preserved), env=INTEROP) as process:
        pid, locking = process.read_line().split()
        assert (locking, pid) == ("1", path.read_text(encoding="ascii").strip())
        assert int(pid) != process.pid
        process.expect("False")
        assert not take(StockPIDLockFile(str(path)), 0)
        with open(path, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.tell()
        process.expect("gone 0")
        assert not path.exists()


# PID files ----------------------------------------------------------------------------------------------------


def test_the_pid_file(path: Path) -> None:
    before = os.umask(0o077)
    try:
        with PIDLockFile(str(path), interop=True, mirror=False) as lock:
            assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
            assert stat.S_IMODE(path.lstat().st_mode) == 0o644
            assert os.listdir(path.parent) == [path.name]
            assert (lock.is_locked(), lock.i_am_locking(), lock.read_pid()) == (True, True, os.getpid())
            assert StockPIDLockFile(str(path)).i_am_locking()
            with open(path, "rb") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.umask(before)
    assert os.listdir(path.parent) == []
    assert (lock.is_locked(), lock.read_pid()) == (False, None)


def test_looking_at_an_old_holder(path: Path) -> None:
    lock = PIDLockFile(str(path), interop=True)
    with hold(StockPIDLockFile, path) as holder:
        holder.expect("held")
        assert (lock.is_locked(), lock.i_am_locking(), lock.read_pid()) == (True, False, holder.pid)
        with pytest.raises(lockfile.NotMyLock):
            lock.release()
        with pytest.raises(lockfile.AlreadyLocked, match=f"already locked by pid {holder.pid} .*{sys.executable}"):
            lock.acquire()
        with pytest.warns(RuntimeWarning, match=f"pid {holder.pid} "):
            lock.break_lock()
        assert path.exists()
        program = HOLD_PIDFILE.replace("acquire()", "acquire(15)")
        with child(program, args=(spec(PIDLockFile), str(path)), env=INTEROP) as waiter:
            wait_until(lambda: is_bound(path), "somebody waits")
            assert lock.read_pid() == holder.pid  # and not the waiter, which has the socket
            holder.kill()
            waiter.expect("held")
            assert lock.read_pid() == waiter.pid


def backdate(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def sleeper() -> Iterator[Child]:
    with child("say('up'); listen()") as process:
        process.expect("up")
        yield process


STALE: dict[str, Callable[[Path, Child], None]] = {}
COUNTS: dict[str, Callable[[Path, Child], None]] = {}


def case(table: dict[str, Callable[[Path, Child], None]]) -> Callable[[Callable[..., None]], None]:
    def add(function: Callable[[Path, Child], None]) -> None:
        table[function.__name__.replace("_", " ")] = function

    return add


def write(path: Path, text: object, age: float = 0) -> None:
    path.write_text(f"{text}\n", encoding="ascii")
    backdate(path, age)


@case(STALE)
def of_a_dead_process(path: Path, sleeper: Child) -> None:
    write(path, sleeper.pid)
    sleeper.kill()


@case(STALE)
def of_a_zombie(path: Path, sleeper: Child) -> None:
    write(path, sleeper.pid)
    sleeper.signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)


@case(STALE)
def of_a_recycled_pid(path: Path, sleeper: Child) -> None:
    write(path, sleeper.pid, 60)


@case(STALE)
def of_our_own_pid_recycled(path: Path, sleeper: Child) -> None:
    write(path, os.getpid(), 86400 * 365)


@case(STALE)
def empty_for_long(path: Path, sleeper: Child) -> None:
    write(path, "", 60)


@case(STALE)
def without_a_pid(path: Path, sleeper: Child) -> None:
    write(path, "\0\0\0\0", 60)


@case(STALE)
def of_no_possible_pid(path: Path, sleeper: Child) -> None:
    write(path, 10**12, 60)


@case(COUNTS)
def of_a_live_process(path: Path, sleeper: Child) -> None:
    write(path, sleeper.pid)


@case(COUNTS)
def of_the_future(path: Path, sleeper: Child) -> None:
    write(path, sleeper.pid, -3600)


@case(COUNTS)
def of_our_own_process(path: Path, sleeper: Child) -> None:
    """Old code within it has the lock."""
    StockPIDLockFile(str(path)).acquire()


@case(COUNTS)
def just_made(path: Path, sleeper: Child) -> None:
    write(path, "")


@case(COUNTS)
def locked_by_somebody_of_another_pid_namespace(path: Path, sleeper: Child) -> None:
    write(path, 2**22 + 1)
    sleeper.keep = open(path, "rb")  # type: ignore[attr-defined]  # noqa: SIM115
    fcntl.flock(sleeper.keep, fcntl.LOCK_EX)  # type: ignore[attr-defined]


@pytest.mark.parametrize("make_file", STALE.values(), ids=STALE)
@pytest.mark.parametrize("clear", [False, True])
def test_a_stale_pid_file(path: Path, sleeper: Child, make_file: Callable[[Path, Child], None], clear: bool) -> None:
    make_file(path, sleeper)
    lock = PIDLockFile(str(path), interop=True)
    assert (lock.is_locked(), lock.read_pid()) == (False, None)
    if clear:
        lock.break_lock()
        assert not path.exists()
    with lock:
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("make_file", COUNTS.values(), ids=COUNTS)
def test_a_pid_file_that_counts(path: Path, sleeper: Child, make_file: Callable[[Path, Child], None]) -> None:
    make_file(path, sleeper)
    inode = path.stat().st_ino
    lock = PIDLockFile(str(path), interop=True)
    assert lock.is_locked()
    assert not take(lock, 0)
    assert not take(lock, 0.1)
    with pytest.warns(RuntimeWarning, match="stays so"):
        lock.break_lock()
    assert path.stat().st_ino == inode
    assert not is_bound(path)
    path.unlink()
    if keep := getattr(sleeper, "keep", None):
        keep.close()
    with lock:
        assert lock.i_am_locking()


def test_a_thread_that_lives_on(path: Path) -> None:
    """Its first thread has ended, and the process is called a zombie; it holds all the same."""
    code = """
    import ctypes, threading, lockfile.pidlockfile
    lockfile.pidlockfile.PIDLockFile(sys.argv[1]).acquire()
    threading.Thread(target=listen).start()
    say("held")
    ctypes.CDLL(None).pthread_exit(None)  # CDLL has let go of the interpreter
    """
    with child(code, args=(str(path),)) as holder:
        holder.expect("held")
        wait_until(lambda: state(holder.pid) == "Z", "its first thread to end")
        assert not take(PIDLockFile(str(path), interop=True), 0)


@pytest.mark.parametrize("what", ["directory", "symlink", "fifo"])
def test_what_is_no_pid_file(path: Path, what: str) -> None:
    """Old code is locked for ever by it; we say why."""
    {"directory": path.mkdir, "symlink": lambda: path.symlink_to("y"), "fifo": lambda: os.mkfifo(path)}[what]()
    lock = PIDLockFile(str(path), interop=True)
    with pytest.raises(lockfile.LockFailed, match=r"no regular file|symbolic link"):
        lock.acquire()
    assert not is_bound(path)
    assert os.path.lexists(path)


@two_kinds
def test_a_directory_where_we_may_not_write(new: Any, public_dir: Path) -> None:
    """An error, as the originals'; the socket is free again."""
    code = f"""
    import {new.__module__}, lockfile, filelock
    locks = [getattr(sys.modules[sys.argv[1]], sys.argv[2])(sys.argv[3]) for _ in range(2)]
    {BECOME_UNPRIVILEGED.strip()}
    for lock in locks:
        try:
            lock.acquire()
        except (PermissionError, lockfile.LockFailed) as exc:
            say("failed", "denied" in str(exc))
    """
    os.chmod(public_dir, 0o555)
    with child(code, args=(*spec(new).split(":"), str(public_dir / "x")), env=INTEROP) as process:
        process.expect("failed True")
        process.expect("failed True")
        assert process.wait() == 0
        assert not is_bound(public_dir / "x")


def test_a_pid_file_that_we_may_not_read(public_dir: Path) -> None:
    """Old code would be refused, and so are we."""
    path = public_dir / "x.pid"
    write(path, 2**22 + 1)
    path.chmod(0o600)
    code = f"    import {PIDLockFile.__module__}, lockfile\n"
    code += "    lock = sys.modules[sys.argv[1]].PIDLockFile(sys.argv[2])\n" + BECOME_UNPRIVILEGED
    code += """
    try:
        lock.acquire()
    except lockfile.AlreadyLocked:
        say("refused", lock.is_locked())
    """
    with child(code, args=(PIDLockFile.__module__, str(path)), env=INTEROP) as process:
        process.expect("refused True")


def test_a_release_that_may_not_remove_the_file(public_dir: Path) -> None:
    """A daemon that has given up its rights: the file is emptied, and new code goes by that after a while."""
    path = public_dir / "x.pid"
    code = f"    import {PIDLockFile.__module__}, warnings\n"
    code += "    lock = sys.modules[sys.argv[1]].PIDLockFile(sys.argv[2])\n    lock.acquire()\n" + BECOME_UNPRIVILEGED
    code += """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock.release()
    say([warning.category.__name__ for warning in caught], os.path.getsize(sys.argv[2]))
    listen()
    """
    with child(code, args=(PIDLockFile.__module__, str(path)), env=INTEROP) as process:
        process.expect("['RuntimeWarning'] 0" if os.geteuid() == 0 else "[] 0")
        lock = PIDLockFile(str(path), interop=True)
        assert not take(lock, 0)
        backdate(path, 60)
        with lock:
            assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"


def test_two_that_remove_a_stale_file(path: Path) -> None:
    """1. both have opened it and found it stale; 2. one removes it and makes its own; 3. the other spares that."""
    write(path, 2**22 + 1)
    one, two = _pidfile.PidFile(str(path)), _pidfile.PidFile(str(path))
    judged: list[bool] = []

    def one_comes_first(fd: int, how: int) -> bool:
        if not judged:
            judged.append(True)
            assert one.take()
        return flocked(fd, how)

    flocked = _pidfile._flocked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pidfile, "_flocked", one_comes_first)
        assert not two.take()
    assert judged
    assert one.stands()
    assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
    one.free()


def test_old_code_that_breaks_locks_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. it judges a stale file; 2. we replace that; 3. it removes ours and takes the lock: we have not got it."""
    monkeypatch.setattr(_pidfile, "_AGAIN", 0.5)
    code = """
    from lockfile.pidlockfile import PIDLockFile
    lock = PIDLockFile(sys.argv[1])
    say(lock.read_pid())
    listen()
    lock.break_lock()
    lock.acquire()
    say("held")
    listen()
    """
    write(path, 2**22 + 1)
    lock = PIDLockFile(str(path), interop=True)
    with child(code, args=(str(path),)) as old:
        old.expect(str(2**22 + 1))
        finish = must_block(lambda: take(lock, 1))
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
        old.tell()
        old.expect("held")
        assert not finish()
        assert path.read_text(encoding="ascii") == f"{old.pid}\n"


def test_a_lost_lock_of_our_own_does_not_keep_us_out(path: Path) -> None:
    """As after a DaemonContext that was told nothing: the file still says that we live."""
    code = """
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile
    lock = PIDLockFile(sys.argv[1])
    lock.acquire()
    os.closerange(3, 1024)
    say(lock.i_am_locking())
    other = PIDLockFile(sys.argv[1])
    other.acquire()
    say(other.i_am_locking(), open(sys.argv[1]).read() == f"{os.getpid()}\\n")
    other.release()
    say(os.path.exists(sys.argv[1]))
    """
    with child(code, args=(str(path),), env=INTEROP) as process:
        process.expect("False")
        process.expect("True True")
        process.expect("False")


def test_a_lost_lock_is_released(path: Path) -> None:
    code = """
    import fcntl, lockfile
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile
    lock = PIDLockFile(sys.argv[1])
    lock.acquire()
    numbers = [number for number in map(int, os.listdir("/proc/self/fd")) if number >= 512]
    os.closerange(3, 1024)
    files = [fcntl.fcntl(os.open("/dev/null", os.O_RDONLY), fcntl.F_DUPFD, number) for number in numbers]
    say(files == numbers, len(files))
    try:
        lock.release()
    except lockfile.NotLocked as exc:
        say("behind our back" in str(exc), os.path.exists(sys.argv[1]))
    del lock
    for file in files:
        os.close(file)
    say("fine")
    """
    with child(code, args=(str(path),), env=INTEROP) as process:
        process.expect("True 2")
        process.expect("True False")
        process.expect("fine")


def test_lock_that_is_collected_while_another_thread_forks(path: Path) -> None:
    """1. A thread has the guard of descriptors; 2. another forks, and waits for it; 3. the first drops a lock."""
    code = """
    import threading, pidabs
    from pidabs._descriptors import guard
    forking = threading.Event()
    os.register_at_fork(before=forking.set)  # called after what is registered from here on, and before the guard's
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile
    lock = PIDLockFile(sys.argv[1], interop=True)
    def fork():
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    thread = threading.Thread(target=fork, daemon=True)
    with guard:
        thread.start()
        forking.wait()
        del lock
    thread.join()
    say("both went on")
    """
    with child(code, args=(str(path),)) as process:
        process.expect("both went on")


# flock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o606, 0o606)])
def test_the_lock_file(path: Path, mode: int | None, expected: int) -> None:
    before = os.umask(0o027)
    try:
        with FileLock(str(path), interop=True, **({} if mode is None else {"mode": mode})) as lock:
            assert lock.is_locked
            assert stat.S_IMODE(path.lstat().st_mode) == expected
            assert path.read_bytes() == b""
    finally:
        os.umask(before)
    assert path.exists()
    path.write_text("precious", encoding="ascii")
    with lock:
        pass
    assert path.read_text(encoding="ascii") == "precious"


def test_the_mirror_is_in_the_lock_file(path: Path) -> None:
    with FileLock(str(path), interop=True, mirror=True):
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
        inode = path.stat().st_ino
        assert not take(filelock.FileLock(str(path)), 0)
    assert (path.read_text(encoding="ascii"), path.stat().st_ino) == ("", inode)


def test_an_old_holder_that_unlinks_the_file(path: Path) -> None:
    """As some versions of filelock do.  1. we open the file; 2. it unlinks it and lets go; 3. we lock what is left."""
    lock = FileLock(str(path), interop=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finish = must_block(lambda: take(lock, 8))
        path.unlink()
    assert finish()
    with open(path, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()


def test_a_lost_flock(path: Path) -> None:
    code = """
    from pidabs.compat.filelock import FileLock
    lock = FileLock(sys.argv[1])
    lock.acquire()
    say(lock.is_locked)
    for number in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{number}") and os.readlink(f"/proc/self/fd/{number}") == sys.argv[1]:
            os.close(int(number))
    say(lock.is_locked)
    file = os.open("/dev/null", os.O_RDONLY)
    lock.release()
    os.close(file)
    say(lock.is_locked)
    """
    with child(code, args=(str(path),), env=INTEROP) as process:
        process.expect("True")
        process.expect("False")
        process.expect("False")
        assert process.wait() == 0


def test_taken_twice(path: Path) -> None:
    lock = FileLock(str(path), interop=True)
    with lock, lock:
        assert lock.lock_counter == 2
        assert not take(filelock.FileLock(str(path)), 0)
    assert take(filelock.FileLock(str(path)), 0)


def test_cancel_check(path: Path) -> None:
    with hold(filelock.FileLock, path) as holder:
        holder.expect("held")
        asked: list[None] = []
        with pytest.raises(filelock.Timeout):
            FileLock(str(path), interop=True).acquire(cancel_check=lambda: asked.append(None) or len(asked) > 3)
        assert not is_bound(path)


def test_awaited(path: Path) -> None:
    async def main() -> None:
        lock = AsyncFileLock(str(path), interop=True)
        with hold(filelock.FileLock, path) as holder:
            holder.expect("held")
            with pytest.raises(filelock.Timeout):
                await lock.acquire(0.1)
            with pytest.raises(filelock.Timeout):
                await lock.acquire(blocking=False)
            waiting = asyncio.ensure_future(lock.acquire())
            turns = 0
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                await asyncio.sleep(0.001)
                turns += 1
            assert turns > 3, "the loop runs on"
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not is_bound(path)
            waiting = asyncio.ensure_future(lock.acquire())
            await asyncio.sleep(0)
            holder.tell()
            holder.expect("released")
            await asyncio.wait_for(waiting, 10)
            assert lock.is_locked
            assert not take(filelock.FileLock(str(path)), 0)
            await lock.release()
        assert take(filelock.FileLock(str(path)), 0)

    asyncio.run(main())
