"""lockfile's locks beside the originals, all but PIDLockFile: the same, but for what was wrong with those."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import pickle
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import filelock
import lockfile
import pidabs.compat.filelock
import pidabs.compat.lockfile as our_package
import pytest
from daemon.pidfile import TimeoutPIDLockFile as StockTimeoutPIDLockFile
from lockfile.pidlockfile import PIDLockFile as StockPIDLockFile
from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
from pidabs.compat.lockfile import _shared
from pidabs.compat.lockfile.pidlockfile import PIDLockFile
from support import (
    BECOME_UNPRIVILEGED,
    HOLD_PIDFILE,
    TAKEN,
    child,
    must_block,
    raised,
    spec,
    switches,
    wait_until,
)

import pidabs

NAMES = {
    "linklockfile": "LinkLockFile",
    "mkdirlockfile": "MkdirLockFile",
    "symlinklockfile": "SymlinkLockFile",
    "sqlitelockfile": "SQLiteLockFile",
}


def classes(package: str) -> list[Any]:
    return [getattr(importlib.import_module(f"{package}.{module}"), name) for module, name in NAMES.items()]


STOCK = classes("lockfile")
OURS = classes("pidabs.compat.lockfile")
PIDLOCKFILES = [StockPIDLockFile, StockTimeoutPIDLockFile, PIDLockFile, TimeoutPIDLockFile]
"""Whose other tests are in test_pidlockfile.py."""


either = pytest.mark.parametrize("cls", STOCK + OURS, ids=spec)
processes = pytest.mark.parametrize("cls", STOCK[:3] + OURS, ids=spec)
"""Those that exclude other processes, and whose objects work in any thread: SQLite's original does neither."""
ours = pytest.mark.parametrize("cls", OURS, ids=spec)
stock = pytest.mark.parametrize("cls", STOCK[:3], ids=spec)
pairs = pytest.mark.parametrize(
    ("theirs", "our"), list(zip(STOCK, OURS, strict=True)), ids=lambda cls: str(cls.__name__)
)


def in_thread(function: Callable[[], Any]) -> Any:
    """What it returns in another thread."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    thread.join(10)
    assert result, "failed, or did not end"
    return result[0]


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes those of the original SQLiteLockFile, which does not; Python 3.13 warns."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def record(*args: Any) -> sqlite3.Connection:
        opened.append(connect(*args))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", record)
    yield
    for connection in opened:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x"


# What it looks like -------------------------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize(
    "method", ["__init__", "is_locked", "i_am_locking", "acquire", "release", "break_lock", "__enter__", "__exit__"]
)
def test_signatures(theirs: type, our: type, method: str) -> None:
    def parameters(cls: type) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(getattr(cls, method)).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    assert parameters(theirs) == parameters(our)


@pairs
@pytest.mark.parametrize("kwargs", [{}, {"threaded": False}, {"timeout": 4}, {"threaded": True, "timeout": -1}])
@pytest.mark.parametrize("given", ["x", "./sub/../x", "/nowhere/x", "x.lock", "dir/", ""])
def test_attributes(theirs: type, our: type, kwargs: dict[str, Any], given: str) -> None:
    def attributes(cls: Any) -> dict[str, Any]:
        lock = cls(given, **kwargs)
        found = {name: value for name, value in vars(lock).items() if not name.startswith("_")} | {"repr": repr(lock)}
        found.pop("connection", None)
        return found

    expected = attributes(theirs)
    assert expected == attributes(our)
    assert set(expected) == {"path", "lock_file", "hostname", "pid", "tname", "unique_name", "timeout", "repr"}


@pairs
def test_are_subclasses_of_the_originals(theirs: type, our: type, path: Path) -> None:
    assert issubclass(our, theirs)
    assert isinstance(our(str(path)), theirs)
    assert issubclass(our, lockfile.LockBase)


def test_names_of_the_package() -> None:
    assert set(lockfile.__all__) <= set(our_package.__all__)
    for name in ("Error", "LockError", "LockTimeout", "AlreadyLocked", "LockFailed", "UnlockError", "NotLocked"):
        assert getattr(our_package, name) is getattr(lockfile, name)
    assert our_package.NotMyLock is lockfile.NotMyLock
    assert our_package.LockBase is lockfile.LockBase
    assert our_package.LockFile is our_package.FileLock is OURS[0]


@pytest.mark.parametrize("module", [*NAMES, "pidlockfile"])
def test_names_of_the_modules(module: str) -> None:
    theirs = importlib.import_module(f"lockfile.{module}")
    our = importlib.import_module(f"pidabs.compat.lockfile.{module}")
    for name, value in vars(theirs).items():
        if getattr(value, "__module__", "") == "lockfile":
            assert getattr(our, name) is value
        elif getattr(value, "__module__", "") == theirs.__name__:
            assert name in our.__all__


@pytest.mark.parametrize("package", [lockfile, our_package], ids=lambda package: str(package.__name__))
@pytest.mark.parametrize(
    ("factory", "module"),
    [("LinkFileLock", "linklockfile"), ("MkdirFileLock", "mkdirlockfile"), ("SQLiteFileLock", "sqlitelockfile")],
)
def test_factories(package: Any, factory: str, module: str, path: Path) -> None:
    make = getattr(package, factory)
    text = f"Import from lockfile.{module} module instead of lockfile package"
    with pytest.warns(DeprecationWarning, match=text):
        lock = make(str(path))
    assert type(lock) is getattr(importlib.import_module(f"{package.__name__}.{module}"), NAMES[module])
    with pytest.warns(DeprecationWarning, match=text):
        assert make(str(path), threaded=False, timeout=3).timeout == 3
    with pytest.warns(DeprecationWarning, match=text):  # as a method of lockfile's own tests
        assert make(object(), str(path)).path == str(path)


@pytest.mark.parametrize("package", [lockfile, our_package], ids=lambda package: str(package.__name__))
def test_decorator(package: Any, path: Path) -> None:
    @package.locked(str(path), timeout=-1)
    def function(first: int, second: int = 0) -> Any:
        """Its text."""
        assert package.FileLock(str(path)).is_locked()
        return first + second

    assert (function.__name__, function.__doc__) == ("function", "Its text.")
    assert function(4, second=3) == 7
    assert not package.FileLock(str(path)).is_locked()
    with package.FileLock(str(path), threaded=False):
        assert raised(function, 1)[0] is lockfile.AlreadyLocked
    with pytest.raises(TypeError):
        function("x")
    assert not package.FileLock(str(path)).is_locked()


@pytest.mark.parametrize("cls", STOCK[:3] + OURS + PIDLOCKFILES, ids=spec)
def test_copies_and_pickles(cls: Any, path: Path) -> None:
    lock = cls(str(path), timeout=7)
    lock.acquire()
    for other in (copy.copy(lock), copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
        assert (lock.path, lock.timeout, True) == (other.path, other.timeout, other.i_am_locking())
    other.release()
    assert not lock.is_locked()


@ours
def test_interop_by_the_environment_is_refused_aloud(cls: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIDABS_INTEROP", "1")
    with pytest.warns(RuntimeWarning, match=f"{cls.__name__} has no interop") as caught:
        cls(str(path))
    assert [warning.filename for warning in caught] == [__file__]


# What it does -------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("threaded", [True, False])
def test_acquire_and_release(cls: Any, path: Path, threaded: bool) -> None:
    lock = cls(str(path), threaded=threaded)
    assert (lock.is_locked(), lock.i_am_locking()) == (False, False)
    assert lock.acquire() is None
    assert (lock.is_locked(), lock.i_am_locking()) == (True, True)
    assert lock.release() is None
    assert (lock.is_locked(), lock.i_am_locking()) == (False, False)
    assert raised(lock.release) == (lockfile.NotLocked, (f"{path} is not locked",))
    assert not os.listdir(path.parent)


@either
@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("timeout", [None, -1, 0, 5])
def test_acquired_again_and_released_once(cls: Any, path: Path, threaded: bool, timeout: float | None) -> None:
    """As the originals say: no counter is kept."""
    lock, other = cls(str(path), threaded=threaded), cls(str(path), threaded=threaded)
    lock.acquire()
    lock.acquire(timeout)
    other.acquire(timeout)
    assert other.i_am_locking()
    other.release()
    assert not lock.is_locked()
    with lock:
        lock.acquire()
    assert not lock.is_locked()


@either
def test_another_identity_in_the_same_thread(cls: Any, path: Path) -> None:
    """Threaded and unthreaded are two, also in one thread."""
    with cls(str(path)):
        lock = cls(str(path), threaded=False)
        assert (lock.is_locked(), lock.i_am_locking()) == (True, False)
        assert raised(lock.release)[0] is lockfile.NotMyLock
        for timeout in (0, -1):
            assert raised(lock.acquire, timeout) == (lockfile.AlreadyLocked, (f"{path} is already locked",))
        text = f"Timeout waiting to acquire lock for {path}"
        assert raised(lock.acquire, 0.05) == (lockfile.LockTimeout, (text,))


@processes
@pytest.mark.parametrize("threaded", [True, False])
def test_objects_of_two_threads(cls: Any, path: Path, threaded: bool) -> None:
    """Each thread's own are others to each other if they are threaded, and one and the same if not."""
    with cls(str(path), threaded=threaded):

        def look() -> tuple[bool, bool, Any, Any]:
            lock = cls(str(path), threaded=threaded, timeout=0)
            found = lock.is_locked(), lock.i_am_locking()
            if threaded:
                return *found, raised(lock.acquire), raised(lock.release)
            return *found, lock.acquire(), None

        already = lockfile.AlreadyLocked, (f"{path} is already locked",)
        not_mine = lockfile.NotMyLock, (f"{path} is locked, but not by me",)
        expected = (True, False, already, not_mine) if threaded else (True, True, None, None)
        assert in_thread(look) == expected


@processes
def test_unthreaded_is_released_by_another_thread(cls: Any, path: Path) -> None:
    lock = cls(str(path), threaded=False)
    lock.acquire()
    in_thread(cls(str(path), threaded=False).release)
    assert not lock.is_locked()


@processes
def test_an_object_has_the_identity_of_the_thread_that_made_it(cls: Any, path: Path) -> None:
    lock = in_thread(lambda: cls(str(path)))
    here = cls(str(path))
    lock.acquire()
    assert (lock.i_am_locking(), here.i_am_locking()) == (True, False)
    assert lock.unique_name != here.unique_name
    assert raised(here.release)[0] is lockfile.NotMyLock
    lock.release()


@processes
def test_a_thread_waits_for_another(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    lock.acquire()

    def take() -> bool:
        with cls(str(path), timeout=15) as other:
            return bool(other.i_am_locking())

    finish = must_block(take)
    lock.release()
    assert finish()


@processes
@pytest.mark.parametrize("threaded", [True, False])
def test_held_by_another_process(cls: Any, path: Path, threaded: bool) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        lock = cls(str(path), threaded=threaded)
        assert (lock.is_locked(), lock.i_am_locking()) == (True, False)
        for timeout in (0, -1, -0.5):
            assert raised(lock.acquire, timeout) == (lockfile.AlreadyLocked, (f"{path} is already locked",))
        late = lockfile.LockTimeout, (f"Timeout waiting to acquire lock for {path}",)
        assert raised(lock.acquire, 0.05) == late
        assert raised(lock.release) == (lockfile.NotMyLock, (f"{path} is locked, but not by me",))
        holder.tell()
        holder.expect("released")
        assert lock.acquire() is None
        lock.release()


@processes
def test_the_constructors_timeout_is_the_default(cls: Any, path: Path) -> None:
    waits, tries = cls(str(path), timeout=0.05), cls(str(path), timeout=0)
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        assert raised(waits.acquire)[0] is lockfile.LockTimeout
        assert raised(waits.acquire, None)[0] is lockfile.LockTimeout
        assert raised(waits.acquire, 0)[0] is lockfile.AlreadyLocked
        assert raised(tries.acquire)[0] is lockfile.AlreadyLocked
        assert raised(tries.acquire, 0.05)[0] is lockfile.LockTimeout
        assert raised(waits.__enter__)[0] is lockfile.LockTimeout


@processes
def test_no_timeout_waits_for_ever(cls: Any, path: Path) -> None:
    lock = cls(str(path), threaded=False)
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        finish = must_block(lock.acquire)
        holder.tell()
        holder.expect("released")
        finish()
        assert lock.i_am_locking()
        lock.release()


@either
def test_context_manager(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    with lock as entered:
        assert entered is lock
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.is_locked()


@either
def test_break_lock(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    assert lock.break_lock() is None
    lock.acquire()
    assert cls(str(path), threaded=False).break_lock() is None
    assert not lock.is_locked()
    assert raised(lock.release)[0] is lockfile.NotLocked


@processes
def test_break_lock_of_another_thread(cls: Any, path: Path) -> None:
    """For which it is there: a thread that failed to unlock."""
    in_thread(cls(str(path)).acquire)
    lock = cls(str(path), timeout=0)
    assert lock.is_locked()
    lock.break_lock()
    with lock:
        assert lock.i_am_locking()


@processes
def test_pathlike(cls: Any, path: Path) -> None:
    with cls(path):
        assert cls(str(path)).is_locked()


@either
@pytest.mark.parametrize("bad", [None, 3, b"x"], ids=repr)
def test_bad_path(cls: Any, bad: Any) -> None:
    with pytest.raises(TypeError):
        cls(bad)


# What is better, or different ---------------------------------------------------------------------------------


@stock
def test_stock_stays_locked_after_sigkill(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        holder.kill()
    assert raised(cls(str(path)).acquire, 0)[0] is lockfile.AlreadyLocked


@ours
def test_free_after_sigkill(cls: Any, path: Path) -> None:
    lock = cls(str(path), threaded=False)
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        finish = must_block(lock.acquire)
        holder.kill()
        finish()
    lock.release()
    assert os.listdir(path.parent) == []


@ours
def test_waiters_sleep_and_are_served_in_order(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    lock.acquire()
    with ExitStack() as stack:
        queue = []
        for number in range(3):
            queue.append(stack.enter_context(child(HOLD_PIDFILE, args=(spec(cls), str(path)))))
            wait_until(lambda: pidabs.Lock(lock.lock_file).waiters() == number + 1, "it has joined")  # noqa: B023
        before = [switches(waiter.pid) for waiter in queue]
        assert queue[0].says_nothing(0.4)
        assert before == [switches(waiter.pid) for waiter in queue]
        lock.release()
        for waiter in queue:
            waiter.expect("held")
            waiter.tell()
            waiter.expect("released")


@ours
def test_break_lock_of_a_live_process(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        lock = cls(str(path))
        with pytest.warns(RuntimeWarning, match=f"pid {holder.pid} "):
            lock.break_lock()
        assert raised(lock.acquire, 0)[0] is lockfile.AlreadyLocked
        holder.tell()
        holder.expect("released")


@ours
def test_a_refusal_names_the_holder(cls: Any, path: Path) -> None:
    with child(HOLD_PIDFILE, args=(spec(cls), str(path))) as holder:
        holder.expect("held")
        with pytest.raises(lockfile.AlreadyLocked, match=f"^{path} is already locked by pid {holder.pid} "):
            cls(str(path)).acquire(0)
        with pytest.raises(lockfile.LockTimeout, match=f"lock for {path}, held by pid {holder.pid} "):
            cls(str(path)).acquire(0.05)


@ours
def test_waiting_for_ourselves_is_an_error(cls: Any, path: Path) -> None:
    """The originals wait for ever."""
    with cls(str(path)):
        kind, args = raised(cls(str(path), threaded=False).acquire)
        assert kind is lockfile.AlreadyLocked
        assert "by this thread" in args[0]


@ours
def test_no_directory_is_needed(cls: Any, path: Path) -> None:
    with cls(str(path / "nowhere" / "x")) as lock:
        assert lock.i_am_locking()
    assert os.listdir(path.parent) == []


@ours
def test_no_write_permission_is_needed(cls: Any, public_dir: Path) -> None:
    code = "    import importlib; importlib.import_module(sys.argv[1].partition(':')[0])\n"
    with child(code + BECOME_UNPRIVILEGED + HOLD_PIDFILE, args=(spec(cls), str(public_dir / "x"))) as holder:
        holder.expect("held")
        assert cls(str(public_dir / "x")).is_locked()


@ours
def test_a_forked_child_does_not_hold(cls: Any, path: Path) -> None:
    code = (
        TAKEN
        + """
    if os.fork() == 0:
        try:
            lock.release()
        except lockfile.NotMyLock:
            say("not mine", lock.i_am_locking(), lock.is_locked())
        os._exit(0)
    os.wait()
    say(lock.i_am_locking())
    lock.release()
    """
    )
    with child(code, args=(spec(cls), str(path))) as process:
        process.expect("not mine False True")
        process.expect("True")
        assert process.wait() == 0


@ours
def test_a_fork_that_takes_the_lock_along(cls: Any, path: Path) -> None:
    code = (
        TAKEN
        + """
    with lock.across_fork():
        pid = os.fork()
    say("child" if pid == 0 else "parent", lock.i_am_locking())
    if pid == 0:
        listen()
        lock.release()
        os._exit(0)
    os.wait()
    """
    )
    with child(code, args=(spec(cls), str(path))) as process:
        assert {process.read_line(), process.read_line()} == {"child True", "parent False"}
        assert cls(str(path)).is_locked()
        process.tell()
        assert process.wait() == 0
    assert not cls(str(path)).is_locked()


@ours
def test_a_relative_path_and_a_chdir(cls: Any, path: Path) -> None:
    code = HOLD_PIDFILE.replace("lock.acquire()", "os.chdir('/'); lock.acquire()")
    with child(code, cwd=path.parent, args=(spec(cls), "x")) as holder:
        holder.expect("held")
        assert cls(str(path)).is_locked()


@ours
def test_dropped_while_it_holds(cls: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls(str(path)).acquire()
        assert cls(str(path)).i_am_locking()
        cls(str(path)).release()


@ours
def test_lost_lock(cls: Any, path: Path) -> None:
    lock = cls(str(path))
    lock.acquire()
    os.close(lock.fileno())
    assert (lock.is_locked(), lock.i_am_locking()) == (False, False)
    kind, args = raised(lock.release)
    assert kind is lockfile.NotLocked
    assert "behind our back" in args[0]
    with lock:
        assert lock.i_am_locking()


@ours
def test_what_was_lost_is_forgotten(cls: Any, path: Path) -> None:
    """Some daemon loses its lock each time that it detaches, and takes it again."""
    lock = cls(str(path))
    for _ in range(3):
        lock.acquire()
        os.close(lock.fileno())
    lock.acquire()
    assert sum(hold.lock.name == lock.lock_file for hold in _shared._held) == 1
    lock.release()


@pytest.mark.parametrize("holder", OURS, ids=spec)
@pytest.mark.parametrize("cls", OURS, ids=spec)
def test_all_kinds_are_one_lock(holder: Any, cls: Any, path: Path) -> None:
    """As the three that make a file were.  One kind is somebody else to another, also in one thread."""
    with holder(str(path)):
        lock = cls(str(path))
        assert (lock.is_locked(), lock.i_am_locking()) == (True, cls is holder)
        if cls is not holder:
            assert raised(lock.acquire, 0)[0] is lockfile.AlreadyLocked
            assert raised(lock.release)[0] is lockfile.NotMyLock


@pytest.mark.parametrize("holder", STOCK[:3], ids=spec)
@pytest.mark.parametrize("cls", STOCK[:3], ids=spec)
def test_stock_kinds_exclude_each_other(holder: Any, cls: Any, path: Path) -> None:
    lock = holder(str(path))
    lock.acquire()
    try:
        if cls is not holder:
            assert raised(cls(str(path)).acquire, 0)[0] is lockfile.AlreadyLocked
    finally:
        lock.release()


@ours
def test_what_the_name_is(cls: Any, path: Path) -> None:
    """`lock_file`, for every other API; so not the PID file's, which is the path itself."""
    with cls(str(path)) as lock, PIDLockFile(str(path)):
        assert lock.lock_file == f"{path}.lock"
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(lock.lock_file).acquire(timeout=0)
        with pytest.raises(filelock.Timeout):
            pidabs.compat.filelock.FileLock(lock.lock_file).acquire(timeout=0)
        assert raised(PIDLockFile(lock.lock_file).acquire)[0] is lockfile.AlreadyLocked


def test_stock_is_locked_for_ever_by_what_filelock_left(path: Path) -> None:
    with filelock.FileLock(f"{path}.lock"):
        pass
    assert raised(STOCK[0](str(path)).acquire, 0)[0] is lockfile.AlreadyLocked


def test_stock_sqlite_excludes_no_other_process(path: Path) -> None:
    """The database is each process's own; ours does exclude (test_held_by_another_process)."""
    with child(HOLD_PIDFILE, args=(spec(STOCK[3]), str(path))) as holder:
        holder.expect("held")
        with STOCK[3](str(path)) as lock:
            assert lock.i_am_locking()
