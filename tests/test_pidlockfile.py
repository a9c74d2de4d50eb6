"""PIDLockFile and TimeoutPIDLockFile beside the originals: the same, but for what was wrong with those."""

from __future__ import annotations

import fcntl
import gc
import inspect
import itertools
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lockfile
import pytest
from daemon.pidfile import TimeoutPIDLockFile as StockTimeoutPIDLockFile
from injection import call_traced
from lockfile import pidlockfile as stock_module
from lockfile.pidlockfile import PIDLockFile as StockPIDLockFile
from pidabs.compat.daemon import pidfile as our_daemon_module
from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile as OurTimeoutPIDLockFile
from pidabs.compat.lockfile import _shared
from pidabs.compat.lockfile import pidlockfile as our_module
from pidabs.compat.lockfile.pidlockfile import PIDLockFile as OurPIDLockFile
from support import (
    BECOME_UNPRIVILEGED,
    DEADLINE,
    HOLD_PIDFILE,
    MADE,
    TAKEN,
    Child,
    child,
    must_block,
    raised,
    spec,
    wait_until,
)

import pidabs
from pidabs import _diag

STOCK = (StockPIDLockFile, StockTimeoutPIDLockFile)
OURS = (OurPIDLockFile, OurTimeoutPIDLockFile)
PAIRS = tuple(zip(STOCK, OURS, strict=True))


either = pytest.mark.parametrize("cls", STOCK + OURS, ids=spec)
stock = pytest.mark.parametrize("cls", STOCK, ids=spec)
ours = pytest.mark.parametrize("cls", OURS, ids=spec)
pairs = pytest.mark.parametrize(("theirs", "our"), PAIRS, ids=lambda cls: cls.__name__)


def pid_text(path: Path) -> str:
    return path.read_text(encoding="ascii")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pid"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


# What it looks like -------------------------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize(
    "method",
    ["__init__", "read_pid", "is_locked", "i_am_locking", "acquire", "release", "break_lock", "__enter__", "__exit__"],
)
def test_signatures(theirs: type, our: type, method: str) -> None:
    def parameters(cls: type, added: bool) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(getattr(cls, method)).parameters.values()
        return [(p.name, p.kind, p.default) for p in found if not (added and p.kind is p.KEYWORD_ONLY)]

    assert parameters(theirs, added=False) == parameters(our, added=True)


@pairs
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((None,), {}),
        ((3,), {}),
        ((), {"timeout": 4}),
        ((0,), {"timeout": 4}),
        ((), {"threaded": True}),
        ((-1, True, 5), {}),
    ],
)
@pytest.mark.parametrize("given", ["x.pid", "./sub/../x.pid", "/nowhere/x.pid", ""])
def test_attributes(theirs: type, our: type, args: tuple[Any, ...], kwargs: dict[str, Any], given: str) -> None:
    def attributes(cls: Any) -> dict[str, Any]:
        lock = cls(given, *args[: 3 if "Timeout" in cls.__name__ else 2], **kwargs)
        return {name: value for name, value in vars(lock).items() if not name.startswith("_")} | {"repr": repr(lock)}

    expected = attributes(theirs)
    assert expected == attributes(our)
    assert {"path", "lock_file", "unique_name", "hostname", "pid", "tname", "timeout", "repr"} <= set(expected)
    assert ("acquire_timeout" in expected) == ("Timeout" in theirs.__name__)


@either
def test_path_by_keyword(cls: Any, path: Path) -> None:
    with cls(path=str(path)):
        assert path.exists()


@either
def test_path_as_pathlike(cls: Any, path: Path) -> None:
    with cls(path):
        assert path.exists()


@either
@pytest.mark.parametrize("bad", [None, 3, b"x.pid"], ids=repr)
def test_bad_path(cls: Any, bad: Any) -> None:
    with pytest.raises(TypeError):
        cls(bad)


@pairs
def test_are_subclasses_of_the_originals(theirs: type, our: type, path: Path) -> None:
    assert issubclass(our, theirs)
    assert isinstance(our(path), theirs)
    assert issubclass(our, StockPIDLockFile)
    assert issubclass(our, lockfile.LockBase)


def test_the_timeout_variant_is_a_pidlockfile_of_ours(path: Path) -> None:
    assert issubclass(OurTimeoutPIDLockFile, OurPIDLockFile)


def test_module_names() -> None:
    for name in ("read_pid_from_pidfile", "remove_existing_pidfile", "write_pid_to_pidfile"):
        assert getattr(stock_module, name) is getattr(our_module, name)
    for name in ("LockBase", "AlreadyLocked", "LockFailed", "NotLocked", "NotMyLock", "LockTimeout"):
        assert getattr(stock_module, name) is getattr(our_module, name)
    assert all(hasattr(our_module, name) for name in our_module.__all__)
    assert our_daemon_module.PIDLockFile is OurPIDLockFile


# What it does -------------------------------------------------------------------------------------------------


@either
def test_acquire_and_release(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    assert (lock.is_locked(), lock.i_am_locking(), lock.read_pid()) == (False, False, None)
    assert lock.acquire() is None
    assert (True, True, os.getpid()) == (lock.is_locked(), lock.i_am_locking(), lock.read_pid())
    assert lock.release() is None
    assert (lock.is_locked(), lock.i_am_locking(), lock.read_pid()) == (False, False, None)
    assert not path.exists()


@either
def test_pid_file(cls: Any, path: Path, umask: None) -> None:
    with cls(str(path)):
        assert f"{os.getpid()}\n" == pid_text(path)
        assert path.lstat().st_mode == stat.S_IFREG | 0o644
        assert os.getpid() == our_module.read_pid_from_pidfile(str(path))
        assert os.listdir(path.parent) == ["x.pid"]


@either
def test_the_users_own_reading(cls: Any, path: Path) -> None:
    """As ansible-runner's `stop` does."""
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        with open(path, encoding="ascii") as file:
            assert holder.pid == int(file.readline())


@either
@pytest.mark.parametrize("args", [(), (None,), (0,), (-1,), (-0.5,)], ids=repr)
def test_held_by_another_process(cls: Any, path: Path, args: tuple[Any, ...]) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        lock = cls(str(path))
        assert (True, False, holder.pid) == (lock.is_locked(), lock.i_am_locking(), lock.read_pid())
        assert (lockfile.AlreadyLocked, (f"{path} is already locked",)) == raised(lock.acquire, *args)
        assert (lockfile.NotMyLock, (f"{path} is locked, but not by me",)) == raised(lock.release)
        assert (lockfile.LockTimeout, (f"Timeout waiting to acquire lock for {path}",)) == raised(lock.acquire, 0.05)
        assert f"{holder.pid}\n" == pid_text(path)
        holder.tell()
        holder.expect("released")
        assert lock.acquire() is None
        lock.release()


@either
@pytest.mark.parametrize("args", [(), (None,), (0,), (-1,)], ids=repr)
def test_held_by_ourselves(cls: Any, path: Path, args: tuple[Any, ...]) -> None:
    lock = cls(str(path))
    with lock:
        for other in (lock, cls(str(path))):
            assert (lockfile.AlreadyLocked, (f"{path} is already locked",)) == raised(other.acquire, *args)
            expected = lockfile.LockTimeout, (f"Timeout waiting to acquire lock for {path}",)
            assert raised(other.acquire, 0.05) == expected
            assert other.i_am_locking()


@either
def test_the_constructors_timeout_is_the_default(cls: Any, path: Path) -> None:
    waits, tries = cls(str(path), timeout=0.05), cls(str(path), timeout=-1)
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        assert lockfile.LockTimeout is raised(waits.acquire)[0]
        assert lockfile.LockTimeout is raised(waits.acquire, None)[0]
        assert lockfile.AlreadyLocked is raised(waits.acquire, 0)[0]
        assert lockfile.AlreadyLocked is raised(tries.acquire)[0]
        assert lockfile.LockTimeout is raised(tries.acquire, 0.05)[0]
        assert lockfile.LockTimeout is raised(waits.__enter__)[0]


@pytest.mark.parametrize("cls", [StockTimeoutPIDLockFile, OurTimeoutPIDLockFile], ids=spec)
@pytest.mark.parametrize(
    ("acquire_timeout", "timeout", "given", "expected"),
    [
        (None, None, None, lockfile.AlreadyLocked),
        (0, None, None, lockfile.AlreadyLocked),
        (-1, None, None, lockfile.AlreadyLocked),
        (0.05, None, None, lockfile.LockTimeout),
        (0.05, None, 0, lockfile.AlreadyLocked),
        (-1, None, 0.05, lockfile.LockTimeout),
        (None, 0.05, None, lockfile.LockTimeout),
        (0, 0.05, None, lockfile.AlreadyLocked),
    ],
)
def test_acquire_timeout(cls: Any, path: Path, acquire_timeout: Any, timeout: Any, given: Any, expected: type) -> None:
    lock = cls(str(path), acquire_timeout, timeout=timeout)
    with lock:
        assert expected is raised(lock.acquire, given)[0]


@either
def test_no_timeout_is_one_try(cls: Any, path: Path) -> None:
    """The originals' docs say that acquire() waits for ever; they do not, and nor do we."""
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        with child(HOLD_PIDFILE, args=(spec(cls), str(path)), stderr=subprocess.DEVNULL) as second:
            assert second.wait() == 1


@either
def test_a_wait_ends_when_the_holder_releases(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        finish = must_block(lambda: lock.acquire(timeout=15))
        holder.tell()
        holder.expect("released")
        finish()
        assert (True, f"{os.getpid()}\n") == (lock.i_am_locking(), pid_text(path))
        lock.release()


@either
def test_release_of_a_free_lock(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    assert (lockfile.NotLocked, (f"{path} is not locked",)) == raised(lock.release)
    lock.acquire()
    lock.release()
    assert (lockfile.NotLocked, (f"{path} is not locked",)) == raised(lock.release)


@either
def test_context_manager(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    with lock as entered:
        assert entered is lock
        assert lock.i_am_locking()
        assert lockfile.AlreadyLocked is raised(cls(str(path)).__enter__)[0]
    assert not lock.is_locked()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.is_locked()
    with pytest.raises(lockfile.NotLocked), lock:
        lock.release()


@either
def test_release_through_another_object(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    lock.acquire()
    cls(str(path)).release()
    assert (lock.is_locked(), path.exists()) == (False, False)
    assert lockfile.NotLocked is raised(lock.release)[0]
    lock.acquire()
    lock.release()


@either
def test_an_object_dropped_while_it_holds(cls: Any, path: Path) -> None:
    cls(str(path)).acquire()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lockfile.AlreadyLocked is raised(cls(str(path)).acquire)[0]
        assert path.exists()
        cls(str(path)).release()
    assert not cls(str(path)).is_locked()


@either
def test_any_thread_of_the_process_holds_and_releases(cls: Any, path: Path) -> None:
    """lockfile's own compliance suite, unthreaded, in spirit."""
    taken, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with cls(str(path), threaded=False):
            taken.set()
            go_on.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert taken.wait(10)
        lock = cls(str(path), threaded=True)
        assert (lock.is_locked(), lock.i_am_locking()) == (True, True)
        assert lockfile.AlreadyLocked is raised(lock.acquire, -1)[0]
        assert lockfile.AlreadyLocked is raised(lock.acquire, 0)[0]
        assert lockfile.LockTimeout is raised(lock.acquire, 0.05)[0]
    finally:
        go_on.set()
        thread.join()
    assert not lock.is_locked()


@either
def test_a_forked_child_does_not_hold(cls: Any, path: Path) -> None:
    code = (
        TAKEN
        + """
    if os.fork() == 0:
        try:
            lock.release()
        except lockfile.NotMyLock:
            say("not mine", lock.i_am_locking(), lock.is_locked(), lock.read_pid() == os.getppid())
        os._exit(0)
    os.wait()
    say(lock.i_am_locking(), open(sys.argv[2]).read() == f"{os.getpid()}\\n")
    lock.release()
    """
    )
    with child(code, args=(spec(cls), str(path))) as process:
        process.expect("not mine False True True")
        process.expect("True True")
        assert process.wait() == 0
    assert not path.exists()


@either
def test_a_missing_directory(cls: Any, path: Path) -> None:
    lock = cls(str(path / "nowhere" / "x.pid"))
    kind, args = raised(lock.acquire)
    assert lockfile.LockFailed is kind
    assert args[0].startswith(f"failed to create {lock.path}")
    assert (lock.is_locked(), lock.i_am_locking()) == (False, False)
    assert lockfile.NotLocked is raised(lock.release)[0]


@either
def test_a_read_only_directory(cls: Any, public_dir: Path) -> None:
    code = (
        MADE
        + BECOME_UNPRIVILEGED
        + """
    try:
        lock.acquire()
    except lockfile.LockFailed as exc:
        say("failed", lock.is_locked(), lock.i_am_locking())
    """
    )
    os.chmod(public_dir, 0o555)
    with child(code, args=(spec(cls), str(public_dir / "x.pid"))) as process:
        process.expect("failed False False")
        assert process.wait() == 0
    assert os.listdir(public_dir) == []


@either
def test_break_lock(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    assert lock.break_lock() is None
    lock.acquire()
    assert cls(str(path)).break_lock() is None
    assert (lock.is_locked(), path.exists()) == (False, False)
    assert lockfile.NotLocked is raised(lock.release)[0]


@either
def test_break_lock_before_every_acquire(cls: Any, path: Path) -> None:
    """As d3r does."""
    for _ in range(3):
        with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as killed:
            killed.expect("held")
            killed.kill()
        lock = cls(str(path))
        lock.break_lock()
        assert not path.exists()
        with lock:
            assert f"{os.getpid()}\n" == pid_text(path)


# What is better -----------------------------------------------------------------------------------------------


def write_stale(path: Path) -> int:
    """A PID file that nobody holds, with the pid of a live process that has nothing to do with it."""
    path.write_text(f"{os.getppid()}\n", encoding="ascii")
    return os.getppid()


@stock
def test_stock_believes_a_stale_pid_file(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    pid = write_stale(path)
    assert (True, pid) == (lock.is_locked(), lock.read_pid())
    assert lockfile.AlreadyLocked is raised(lock.acquire)[0]


@ours
def test_a_stale_pid_file_of_a_live_process(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    write_stale(path)
    assert (lock.is_locked(), lock.i_am_locking(), lock.read_pid()) == (False, False, None)
    with lock:
        assert (True, os.getpid()) == (lock.is_locked(), lock.read_pid())
        assert f"{os.getpid()}\n" == pid_text(path)
    assert not path.exists()


@ours
def test_a_stale_pid_file_with_our_own_pid(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    path.write_text(f"{os.getpid()}\n", encoding="ascii")
    assert (lock.is_locked(), lock.i_am_locking(), lock.read_pid()) == (False, False, None)
    assert lockfile.NotLocked is raised(lock.release)[0]
    assert path.exists()


@ours
def test_a_removed_pid_file_does_not_free_the_lock(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        path.unlink()
        lock = cls(str(path))
        assert (True, holder.pid) == (lock.is_locked(), lock.read_pid())
        assert lockfile.AlreadyLocked is raised(lock.acquire)[0]
        holder.tell()
        holder.expect("released")


@stock
def test_stock_stays_locked_after_sigkill(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        holder.kill()
    assert lockfile.AlreadyLocked is raised(cls(str(path)).acquire)[0]


@ours
def test_free_after_sigkill(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        holder.kill()
    lock = cls(str(path))
    assert f"{holder.pid}\n" == pid_text(path)
    assert (lock.is_locked(), lock.read_pid()) == (False, None)
    with lock:
        assert f"{os.getpid()}\n" == pid_text(path)


@ours
def test_a_waiter_is_woken_by_sigkill(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        finish = must_block(lambda: lock.acquire(timeout=15))
        holder.kill()
        finish()
    lock.release()


@ours
def test_released_at_interpreter_exit(cls: Any, path: Path) -> None:
    with child(TAKEN, args=(spec(cls), str(path))) as process:
        assert process.wait() == 0
    assert not path.exists()


@ours
def test_a_refusal_names_the_holder(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        with pytest.raises(lockfile.AlreadyLocked, match=f"^{path} is already locked by pid {holder.pid} ") as caught:
            cls(str(path)).acquire()
        assert sys.executable in str(caught.value)
        with pytest.raises(lockfile.LockTimeout, match=f"lock for {path}, held by pid {holder.pid} "):
            cls(str(path)).acquire(0.05)
        text = str(pickle.loads(pickle.dumps(caught.value)))
        assert str(caught.value) == text


@ours
def test_a_refusal_whose_holder_cannot_be_asked(cls: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: pidabs.Lock) -> None:
        raise PermissionError("no way to ask")

    monkeypatch.setattr(pidabs.Lock, "holder", fail)
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        with pytest.raises(lockfile.AlreadyLocked) as caught:
            cls(str(path)).acquire()
        assert str(caught.value) == f"{path} is already locked"


class Struck(BaseException):
    """What a signal handler raises."""


@ours
@pytest.mark.parametrize("error", [Struck, TimeoutError])  # the latter is an OSError, and not the kernel's
def test_a_signal_handler_that_ends_a_wait(cls: Any, path: Path, error: type[BaseException]) -> None:
    def strike(*args: object) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, strike)
    main = threading.main_thread().ident
    try:
        with pidabs.Lock(path) as holder:

            def strike_when_it_waits() -> None:
                wait_until(holder.waiters)
                signal.pthread_kill(main, signal.SIGUSR1)

            thread = threading.Thread(target=strike_when_it_waits)
            thread.start()
            lock = cls(str(path))
            with pytest.raises(error):
                lock.acquire(DEADLINE)
            thread.join(DEADLINE)
            assert not lock.i_am_locking()
    finally:
        signal.signal(signal.SIGUSR1, before)
    lock.acquire()
    lock.release()


@ours
@pytest.mark.parametrize("error", [Struck, TimeoutError])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_handler_that_strikes_as_the_lock_is_taken(
    cls: Any, path: Path, error: type[BaseException], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lock's acquire and the note that it is held, or right after that: nobody would know of it."""

    class Noting(dict[Any, None]):
        def __setitem__(self, hold: Any, _: None) -> None:
            assert hold.lock.held
            if when == "after":
                super().__setitem__(hold, None)
            raise error

    noted = Noting()
    lock = cls(str(path))
    with monkeypatch.context() as patched:
        patched.setattr(_shared, "_held", noted)
        with pytest.raises(error):
            lock.acquire()
        assert noted == {}
    assert not lock.is_locked()
    assert not path.exists()
    lock.acquire()
    lock.release()


@ours
@pytest.mark.parametrize("same", [False, True], ids=["another object", "the same object"])
def test_who_is_granted_it_in_the_midst_of_a_release_holds_it(cls: Any, path: Path, same: bool) -> None:
    """After each step of the release in turn somebody tries to take the lock, as another thread would."""
    one = cls(str(path))
    two = one if same else cls(str(path))
    taken = 0
    for nth in range(1000):
        steps = itertools.count()

        def trace(frame: FrameType, event: str, _: object, nth: int = nth, steps: Iterator[int] = steps) -> Any:
            if frame.f_code.co_name != "release" or frame.f_code.co_filename != _shared.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and next(steps) == nth:
                with suppress(lockfile.AlreadyLocked):
                    two.acquire()
            return trace

        one.acquire()
        call_traced(trace, one.release, opcodes=True)
        if two.is_locked():
            taken += 1
            assert two.i_am_locking()
            cls(str(path)).release()
        assert not _shared._held
        if next(steps) <= nth:
            break
    assert 3 < taken < 500


@ours
def test_a_refusal_that_nobody_reads_leaves_no_trace(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        for _ in range(5):
            assert lockfile.AlreadyLocked is raised(cls(str(path)).acquire)[0]
            assert cls(str(path)).is_locked()
        [found] = [lock for lock in pidabs.list_locks() if lock.name == str(path)]
        assert found.waiters == 0
        assert _diag.queue(found.inode) == []


@stock
def test_stock_loses_its_relative_path(cls: Any, path: Path) -> None:
    assert "not locked" in chdir_and_release(cls, path)


@ours
def test_a_relative_path_and_a_chdir(cls: Any, path: Path) -> None:
    assert chdir_and_release(cls, path) == "released"
    assert not path.exists()


def chdir_and_release(cls: type, path: Path) -> str:
    code = (
        TAKEN
        + """
    os.chdir("/")
    try:
        lock.release()
        say("released")
    except lockfile.NotLocked as exc:
        say(exc)
    """
    )
    with child(code, cwd=path.parent, args=(spec(cls), "x.pid")) as process:
        return process.read_line()


@ours
def test_constructed_before_and_acquired_after_a_chdir(cls: Any, path: Path) -> None:
    code = HOLD_PIDFILE.replace("lock.acquire()", "os.chdir('/'); lock.acquire()")
    with child(code, cwd=path.parent, args=(spec(cls), "x.pid")) as holder:
        holder.expect("held")
        assert f"{holder.pid}\n" == pid_text(path)
        assert holder.pid == cls(str(path)).read_pid()


@ours
def test_one_lock_through_a_symlinked_directory(cls: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to("run")
    with cls(str(tmp_path / "var-run" / "x.pid")):
        other = cls(str(tmp_path / "run" / "x.pid"))
        assert other.i_am_locking()
        assert lockfile.AlreadyLocked is raised(other.acquire)[0]


def test_all_that_names_the_path_is_one_lock(path: Path) -> None:
    with OurPIDLockFile(str(path)):
        assert OurTimeoutPIDLockFile(str(path)).i_am_locking()
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(path).acquire(timeout=0)
        holder = pidabs.holder(path)
        assert holder is not None
        assert os.getpid() == holder.pid


@ours
def test_break_lock_of_a_live_process(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        lock = cls(str(path))
        with pytest.warns(RuntimeWarning, match=f"pid {holder.pid} "):
            lock.break_lock()
        assert (True, holder.pid) == (lock.is_locked(), lock.read_pid())
        assert f"{holder.pid}\n" == pid_text(path)
        assert lockfile.AlreadyLocked is raised(lock.acquire)[0]
        holder.tell()
        holder.expect("released")
        assert not path.exists()


@ours
@pytest.mark.parametrize("what", ["file", "symlink", "dangling", "fifo", "mode 0"])
def test_break_lock_removes_what_is_stale(cls: Any, path: Path, what: str) -> None:
    target = path.parent / "target"
    if what == "fifo":
        os.mkfifo(path)
    elif what in ("symlink", "dangling"):
        path.symlink_to(target)
        if what == "symlink":
            target.write_text("precious", encoding="ascii")
    else:
        write_stale(path)
        path.chmod(0 if what == "mode 0" else 0o644)
    cls(str(path)).break_lock()
    assert not os.path.lexists(path)
    assert what != "symlink" or target.read_text(encoding="ascii") == "precious"


@ours
def test_break_lock_spares_a_pid_file_just_taken(cls: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. we look, the lock is free; 2. somebody takes it and writes the file; 3. we remove the stale file."""
    lock = cls(str(path))
    monkeypatch.setattr(lock, "is_locked", lambda: False)
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        lock.break_lock()
        assert f"{holder.pid}\n" == pid_text(path)


@ours
def test_break_lock_spares_a_pid_file_put_there_as_it_looks(
    cls: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. we open the stale file; 2. somebody takes the lock and puts his file there; 3. we remove what is there."""
    path.write_text("4711\n", encoding="ascii")
    flock = fcntl.flock

    def slowly(fd: int, how: int) -> None:
        flock(fd, how)
        new = path.with_suffix(".new")
        new.write_text("4712\n", encoding="ascii")
        new.rename(path)

    monkeypatch.setattr(fcntl, "flock", slowly)
    cls(str(path)).break_lock()
    assert pid_text(path) == "4712\n"


@ours
def test_a_path_that_is_a_directory(cls: Any, path: Path) -> None:
    path.mkdir()
    lock = cls(str(path))
    assert not lock.is_locked()
    kind, args = raised(lock.acquire)
    assert lockfile.LockFailed is kind
    assert "directory" in args[0]
    assert (lock.is_locked(), lock.i_am_locking(), path.is_dir()) == (False, False, True)


@ours
def test_no_descriptors_left(cls: Any, path: Path) -> None:
    code = (
        MADE
        + """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    files = []
    try:
        while True:
            files.append(open("/dev/null"))
    except OSError:
        pass
    for spare in range(3):
        try:
            lock.acquire()
        except lockfile.LockFailed as exc:
            say("failed", type(exc.__cause__).__name__)
        else:
            say("acquired")
            lock.release()
        files.pop().close()
    say(lock.is_locked())
    """
    )
    with child(code, args=(spec(cls), str(path))) as process:
        process.expect("failed OSError")  # no socket
        process.expect("failed MirrorError")  # no PID file: and the socket is closed
        process.expect("acquired")
        process.expect("False")


@ours
def test_a_daemon_that_drops_threading(cls: Any, path: Path) -> None:
    """As sendria does, before it takes its lock."""
    code = (
        """
    import threading, importlib
    importlib.import_module(sys.argv[1].partition(":")[0])
    del sys.modules["threading"]
    """
        + HOLD_PIDFILE
    )
    with child(code, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        assert holder.pid == cls(str(path)).read_pid()
        holder.tell()
        holder.expect("released")
        assert holder.wait() == 0


@ours
def test_mirror_can_be_left_out(cls: Any, path: Path) -> None:
    with cls(str(path), mirror=False) as lock:
        assert (True, os.getpid()) == (lock.is_locked(), lock.read_pid())
        assert not path.exists()


@ours
def test_fileno_is_the_held_sockets(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    assert lockfile.NotLocked is raised(lock.fileno)[0]
    with lock:
        assert stat.S_ISSOCK(os.fstat(lock.fileno()).st_mode)
        assert lock.fileno() == cls(str(path)).fileno()


@ours
def test_the_same_path_held_again_after_another_object_released(cls: Any, path: Path) -> None:
    """1. one takes it; 2. two releases it; 3. a child takes it; 4. one neither holds nor releases the child's."""
    one, two = cls(str(path)), cls(str(path))
    one.acquire()
    two.release()
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        assert not one.i_am_locking()
        assert lockfile.NotMyLock is raised(one.release)[0]
        assert holder.pid == one.read_pid()
        assert f"{holder.pid}\n" == pid_text(path)


@ours
def test_waiters_of_a_released_pidfile_are_served_in_order(cls: Any, path: Path) -> None:
    code = HOLD_PIDFILE.replace("lock.acquire()", "lock.acquire(15)")
    lock = cls(str(path))
    lock.acquire()
    waiters: list[Child] = []
    try:
        for number in range(3):
            waiters.append(Child(code, args=(spec(cls), str(path))))
            wait_until(lambda: pidabs.Lock(path).waiters() == number + 1, "it has joined the queue")  # noqa: B023
        lock.release()
        for waiter in waiters:
            waiter.expect("held")
            assert waiter.pid == lock.read_pid() == int(pid_text(path))
            waiter.tell()
            waiter.expect("released")
    finally:
        for waiter in waiters:
            waiter.close()
    assert not lock.is_locked()


@ours
def test_sigterm_default_leaves_a_stale_file_that_hinders_nobody(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        holder.signal(signal.SIGTERM)
        assert holder.wait() == -signal.SIGTERM
    with cls(str(path)) as lock:
        assert lock.i_am_locking()
