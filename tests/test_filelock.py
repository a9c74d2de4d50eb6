"""pidabs.compat.filelock: original and ours side by side wherever they are to behave the same, then what is ours."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import filelock as stock
import pidabs.compat.filelock as ours
import pytest
from support import DEADLINE, HOLD, HOLD_PIDFILE, Child, child, must_block, open_descriptors, wait_until

import pidabs

RELEASE = tuple(map(int, stock.__version__.split(".")[:2]))
MODERN, LATEST = RELEASE >= (4, 1), RELEASE >= (4, 2)
"""4.1 is the last for CPython 3.10."""
REFUSES_IN_A_CHILD = int(stock.__version__.partition(".")[0]) >= 4
STOCK, OURS = stock.UnixFileLock, ours.UnixFileLock

either = pytest.mark.parametrize("cls", [STOCK, OURS], ids=["filelock", "pidabs"])
modern = pytest.mark.parametrize(
    "cls",
    [pytest.param(STOCK, marks=pytest.mark.skipif(not MODERN, reason="filelock 4.1's"), id="filelock"), OURS],
)
"""What filelock did not yet do in 3.13, and ours does whatever is installed."""

newest = pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, marks=pytest.mark.skipif(not MODERN, reason="filelock 4.1 checks its options"), id=name)
        for name, cls in (("filelock", STOCK), ("pidabs", OURS))
    ],
)
"""What filelock itself does in our class, in the version that is installed."""

needs_stock_async = pytest.mark.skipif(not hasattr(stock, "AsyncUnixFileLock"), reason="filelock has it since 3.15")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "some.lock")


def spec(cls: type) -> str:
    """A class as child code finds it."""
    return "pidabs.compat.filelock:FileLock" if cls is OURS else "filelock:FileLock"


@contextmanager
def held(cls: type, path: str) -> Iterator[Child]:
    """Another process holds the lock, until it is told to release it."""
    with child(HOLD_PIDFILE, args=(spec(cls), path)) as holder:
        holder.expect("held")
        yield holder


def is_free(cls: type, path: str) -> bool:
    probe = cls(path)
    try:
        probe.acquire(timeout=0)
    except stock.Timeout:
        return False
    probe.release()
    return True


def in_thread(function: Callable[[], Any]) -> Any:
    """Its result in a thread that has ended."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join(DEADLINE)
    return result[0]


# Taking and releasing, as the original does ---------------------------------------------------------------------------


@either
def test_it_excludes_other_objects_and_other_processes(cls: Any, path: str) -> None:
    lock = cls(path)
    with held(cls, path) as holder:
        with pytest.raises(stock.Timeout) as caught:
            lock.acquire(timeout=0)
        assert caught.value.lock_file == path
        finish = must_block(lock.acquire)
        holder.tell()
        holder.expect("released")
        finish()


@either
def test_a_killed_holder_leaves_it_free(cls: Any, path: str) -> None:
    with held(cls, path) as holder:
        holder.kill()
        with cls(path, timeout=DEADLINE) as lock:
            assert lock.is_locked


@either
def test_nested_acquires_are_counted(cls: Any, path: str) -> None:
    lock = cls(path)
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    with lock as first, lock.acquire() as second:
        assert first is second is lock
        assert (lock.is_locked, lock.lock_counter) == (True, 2)
        lock.release()
        assert (lock.is_locked, lock.lock_counter) == (True, 1)
        assert not is_free(cls, path)
        lock.acquire()
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    assert is_free(cls, path)


@either
def test_release_with_force_ignores_the_count(cls: Any, path: str) -> None:
    lock = cls(path)
    lock.acquire()
    lock.acquire()
    lock.release(force=True)
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    assert is_free(cls, path)


@either
def test_releasing_what_is_not_held_does_nothing(cls: Any, path: str) -> None:
    lock = cls(path)
    lock.release()
    lock.release(force=True)
    with lock:
        cls(path).release(force=True)
        assert lock.is_locked


@either
def test_an_exception_in_the_block_goes_on_and_releases(cls: Any, path: str) -> None:
    lock = cls(path)
    for context in (lock, lock.acquire()):
        with pytest.raises(ZeroDivisionError), context:
            raise ZeroDivisionError
    lock.release(force=True)
    assert is_free(cls, path)


@either
def test_as_a_decorator(cls: Any, path: str) -> None:
    lock = cls(path)

    @lock
    def counter() -> int:
        return int(lock.lock_counter)

    assert [counter(), counter(), lock.lock_counter] == [1, 1, 0]


@either
def test_a_dropped_object_releases(cls: Any, path: str) -> None:
    lock = cls(path)
    lock.acquire()
    lock.acquire()
    del lock
    gc.collect()
    assert is_free(cls, path)


@either
@pytest.mark.parametrize("wait", [0, 0.05])
def test_timeouts(cls: Any, path: str, wait: float) -> None:
    lock = cls(path, timeout=wait)
    with cls(path):
        for acquire in (lock.acquire, lambda: lock.acquire(timeout=wait), lock.__enter__):
            began = time.monotonic()
            with pytest.raises(stock.Timeout, match="could not be acquired"):
                acquire()
            assert wait <= time.monotonic() - began + 0.001
        assert lock.lock_counter == 0
        lock.timeout = 0
        with pytest.raises(stock.Timeout):
            lock.acquire()
    lock.acquire(-1)
    lock.release()


@either
def test_without_blocking_it_tries_once(cls: Any, path: str) -> None:
    with cls(path), pytest.raises(stock.Timeout):
        cls(path).acquire(blocking=False)
    with cls(path), pytest.raises(stock.Timeout):
        cls(path, timeout=-1).acquire(timeout=-1, blocking=False)


@either
def test_the_positional_order(cls: Any, path: str) -> None:
    lock = cls(path, 7, 0o640, False)
    assert (lock.lock_file, lock.timeout, lock.mode, lock.is_thread_local()) == (path, 7, 0o640, False)
    lock.acquire(0, 0.01).lock.release(True)
    assert not lock.is_locked


@either
def test_the_defaults(cls: Any, path: str) -> None:
    lock = cls(Path(path))
    assert (lock.lock_file, lock.timeout, lock.mode) == (path, -1, 0o644)
    assert (lock.is_thread_local(), lock.is_singleton) == (True, False)


@modern
def test_the_defaults_of_what_came_later(cls: Any, path: str) -> None:
    lock = cls(path)
    assert (lock.blocking, lock.poll_interval, lock.lifetime, lock.has_explicit_mode) == (True, 0.05, None, False)
    assert (lock.context_error_policy, lock.close_error_policy) == ("chain", "default")
    assert (lock.fallback_to_soft, lock.preserve_lock_file, lock.on_acquired) == (True, False, None)


@either
def test_missing_directories_are_made(cls: Any, tmp_path: Path) -> None:
    with cls(tmp_path / "a" / "b" / "lock") as lock:
        assert lock.is_locked
    assert (tmp_path / "a" / "b").is_dir()


@modern
@pytest.mark.parametrize(("path", "error"), [("", OSError), (".", OSError), ("\0", ValueError)])
def test_what_cannot_be_a_lock_file(cls: Any, path: str, error: type[Exception]) -> None:
    lock = cls(path)
    with pytest.raises(error):
        lock.acquire()
    assert (lock.is_locked, lock.lock_counter) == (False, 0)


@either
def test_the_misspelt_poll_interval_warns(cls: Any, path: str) -> None:
    with pytest.warns(DeprecationWarning, match="use poll_interval instead"):
        cls(path).acquire(poll_intervall=0.01)


@either
def test_timeout_is_the_originals_and_can_be_pickled(cls: Any, path: str) -> None:
    with cls(path), pytest.raises(stock.Timeout) as caught:
        cls(path).acquire(timeout=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.lock_file, str(again)) == (stock.Timeout, path, str(caught.value))
    assert str(ours.Timeout(path)) == str(caught.value)


# Threads --------------------------------------------------------------------------------------------------------------


@either
def test_a_thread_local_lock_is_each_threads_own(cls: Any, path: str) -> None:
    lock = cls(path, timeout=3)
    with lock:
        assert in_thread(lambda: (lock.is_locked, lock.lock_counter)) == (False, 0)
        assert in_thread(lambda: lock.release(force=True)) is None
        assert lock.is_locked
        finish = must_block(lambda: lock.acquire(timeout=DEADLINE).lock.release())
    finish()


@either
def test_a_shared_lock_is_everybodys(cls: Any, path: str) -> None:
    lock = cls(path, thread_local=False)
    lock.acquire()
    assert in_thread(lambda: lock.acquire().lock.lock_counter) == 2
    in_thread(lambda: lock.release(force=True))
    assert not lock.is_locked
    assert is_free(cls, path)


@modern
def test_threads_wait_for_the_one_that_is_taking_a_shared_lock(cls: Any, path: str) -> None:
    lock = cls(path, thread_local=False)
    with held(cls, path) as holder:
        first, second = must_block(lock.acquire), must_block(lock.acquire)
        with pytest.raises(stock.Timeout):
            lock.acquire(timeout=0.05)
        with pytest.raises(stock.Timeout):
            lock.acquire(cancel_check=lambda: True)
        holder.tell()
        first()
        second()
    assert lock.lock_counter == 2
    lock.release(force=True)


@newest
def test_what_a_thread_sets_is_its_own(cls: Any, path: str) -> None:
    for thread_local in (True, False):
        lock = cls(path, thread_local=thread_local)
        lock.timeout, lock.blocking, lock.poll_interval = 5, False, 1
        seen = in_thread(lambda lock=lock: (lock.timeout, lock.blocking, lock.poll_interval))
        assert seen == ((-1, True, 0.05) if thread_local else (5, False, 1))


@modern
def test_force_releases_what_an_ended_thread_left(cls: Any, path: str) -> None:
    lock = cls(path)
    in_thread(lock.acquire)
    assert not is_free(cls, path)
    lock.release()
    assert not is_free(cls, path)
    lock.release(force=True)
    assert is_free(cls, path)


@either
def test_many_threads_exclude_each_other(cls: Any, path: str) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with cls(path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1


# Waiting for oneself; singletons --------------------------------------------------------------------------------------


@modern
def test_waiting_for_oneself_is_an_error(cls: Any, path: str) -> None:
    with cls(path) as lock:
        other = cls(path)
        with pytest.raises(RuntimeError, match="Deadlock"):
            other.acquire()
        with pytest.raises(RuntimeError, match="Deadlock"):
            other.acquire(timeout=math.inf)
        with pytest.raises(stock.Timeout):
            other.acquire(timeout=0.01)
        assert (lock.is_locked, other.is_locked, other.lock_counter) == (True, False, 0)


@modern
def test_a_singleton_is_one_object(cls: Any, path: str) -> None:
    first = cls(path, is_singleton=True)
    assert cls(path, is_singleton=True) is first
    assert cls(path) is not first
    with first, cls(path, is_singleton=True) as again:
        assert again.lock_counter == 2
    with pytest.raises(ValueError, match="differing arguments"):
        cls(path, is_singleton=True, timeout=3)
    del first, again
    gc.collect()
    assert cls(path, is_singleton=True, timeout=3).timeout == 3


@newest
def test_a_singleton_by_any_spelling(cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    first = cls("lock", is_singleton=True)
    assert cls(tmp_path / "link" / "lock", is_singleton=True) is first
    assert cls("./lock", is_singleton=True, timeout=-5) is first
    with pytest.raises(TypeError, match="unknown"):
        cls("lock", is_singleton=True, unknown=1)


@modern
def test_a_singleton_is_initialised_once_and_is_its_class_own(cls: Any, path: str) -> None:
    calls = []

    class Sub(cls):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            calls.append(args)
            super().__init__(*args, **kwargs)

    first = Sub(path, is_singleton=True)
    assert Sub(path, is_singleton=True) is first
    assert len(calls) == 1
    assert cls(path, is_singleton=True) is not first


# Arguments ------------------------------------------------------------------------------------------------------------


@newest
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": None}, TypeError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"blocking": 1}, TypeError),
        ({"poll_interval": -1}, ValueError),
        ({"poll_interval": math.inf}, ValueError),
        ({"poll_interval": math.nan}, ValueError),
        ({"poll_interval": "1"}, TypeError),
        ({"mode": "rw"}, TypeError),
        ({"mode": 0o7777}, ValueError),
        ({"mode": 0o044}, ValueError),
        ({"lifetime": -1}, ValueError),
        ({"lifetime": True}, TypeError),
        ({"context_error_policy": "other"}, ValueError),
        ({"close_error_policy": "other"}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
    ids=str,
)
def test_bad_options_are_refused(cls: Any, path: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        cls(path, **options)


@newest
def test_bad_arguments_of_acquire_are_refused(cls: Any, path: str) -> None:
    if cls is STOCK and not LATEST:
        pytest.skip("filelock 4.2's")
    lock = cls(path)
    for arguments, error in (
        ({"timeout": math.nan}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"blocking": "no"}, TypeError),
        ({"poll_interval": -1}, ValueError),
    ):
        with pytest.raises(error):
            lock.acquire(**arguments)
    with pytest.raises(ValueError, match="nan"):
        cls(path, timeout=math.nan).acquire()
    with cls(path, timeout=math.nan).acquire(blocking=False):
        pass
    assert (lock.lock_counter, lock.is_locked) == (0, False)


@modern
def test_any_real_number_is_a_timeout(cls: Any, path: str) -> None:
    assert cls(path, timeout=Decimal("1.5")).timeout == 1.5
    assert cls(path, timeout=Decimal("-1e-400")).timeout < 0


@modern
def test_lifetime_is_ignored_with_a_warning(cls: Any, path: str) -> None:
    with pytest.warns(UserWarning, match="lifetime is ignored for UnixFileLock") as caught:
        lock = cls(path, lifetime=5)
    assert (lock.lifetime, caught[0].filename) == (None, __file__)


@modern
def test_on_acquired_is_called_once_for_each_hold(cls: Any, path: str) -> None:
    called: list[int] = []
    lock = cls(path, on_acquired=called.append)
    with lock, lock:
        assert len(called) == 1
        os.fstat(called[0])
    with lock:
        assert len(called) == 2


@modern
def test_on_acquired_that_raises_gives_the_lock_back(cls: Any, path: str) -> None:
    lock = cls(path, on_acquired=lambda fd: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        lock.acquire()
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    assert is_free(cls, path)


@modern
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_both_errors_of_a_block_in_a_group(cls: Any, path: str) -> None:
    class Sub(cls):  # type: ignore[misc]
        def release(self, force: bool = False) -> None:
            super().release(force)
            raise OSError("release")

    with pytest.raises(Exception, match="both failed") as caught, Sub(path, context_error_policy="group"):
        raise KeyError("body")
    assert [type(error) for error in caught.value.exceptions] == [KeyError, OSError]  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="release") as plain, Sub(path):
        raise KeyError("body")
    assert isinstance(plain.value.__context__, KeyError)


@modern
def test_cancel_check_is_called_every_poll_interval(cls: Any, path: str) -> None:
    lock = cls(path)
    lock.acquire(cancel_check=lambda: pytest.fail("asked though the lock was free"))
    lock.release()
    calls: list[float] = []
    with cls(path), pytest.raises(stock.Timeout):
        lock.acquire(5, poll_interval=0.02, cancel_check=lambda: calls.append(time.monotonic()) or len(calls) > 4)
    assert len(calls) == 5
    assert 0.06 <= calls[-1] - calls[0] < 2
    assert lock.lock_counter == 0


# Signal handlers ------------------------------------------------------------------------------------------------------


@modern
def test_a_signal_handler_that_takes_the_very_lock_fails_at_once(cls: Any, path: str) -> None:
    lock = cls(path)
    caught: list[BaseException] = []

    def handler(number: int, frame: object) -> None:
        try:
            lock.acquire()
        except RuntimeError as exc:
            caught.append(exc)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with held(cls, path):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(stock.Timeout):
                lock.acquire(timeout=0.3)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "acquired again while this thread's acquire" in str(caught[0])
    assert lock.lock_counter == 0


# Forks ----------------------------------------------------------------------------------------------------------------


def in_fork(function: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


@modern
def test_a_forked_child_neither_holds_nor_releases(cls: Any, path: str) -> None:
    lock = cls(path)

    def check() -> bool:
        seen = (lock.is_locked, lock.lock_counter)
        lock.release(force=True)
        lock.__exit__(None, None, None)
        return seen == (False, 0) and not is_free(cls, path)

    with lock:
        assert in_fork(check)
        assert lock.is_locked
        assert not is_free(cls, path)


@modern
@pytest.mark.skipif(not REFUSES_IN_A_CHILD, reason="filelock 3 lets the child use the lock")
def test_a_forked_child_needs_a_lock_of_its_own(cls: Any, path: str) -> None:
    lock = cls(path)

    def check() -> bool:
        with pytest.raises(RuntimeError, match="inherited across fork"):
            lock.acquire()
        with cls(path):
            return True

    assert in_fork(check)


@pytest.mark.skipif(REFUSES_IN_A_CHILD, reason="filelock 4 refuses")
@either
def test_a_forked_child_can_use_the_lock_where_filelock_3_is_installed(cls: Any, path: str) -> None:
    lock = cls(path)
    assert in_fork(lambda: lock.acquire().lock.is_locked)


ADD_ONE = """
import importlib, multiprocessing, sys
from pathlib import Path

def add_one(module, path, number):
    for _ in range(10):
        with importlib.import_module(module).FileLock(path):
            number.write_text(str(int(number.read_text()) + 1))

if __name__ == "__main__":
    module, method, directory = sys.argv[1:]
    number = Path(directory, "number")
    number.write_text("0")
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=add_one, args=(module, directory + "/lock", number)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    print(number.read_text())
"""


@pytest.mark.parametrize("module", ["filelock", "pidabs.compat.filelock"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(module: str, method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ADD_ONE)
    command = [sys.executable, str(program), module, method, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout == "40\n"


# Subclasses -----------------------------------------------------------------------------------------------------------


@either
def test_a_subclass_with_a_narrower_init(cls: Any, path: str) -> None:
    """As virtualenv has it."""

    class Counted(cls):  # type: ignore[misc]
        def __init__(self, lock_file: str) -> None:
            super().__init__(lock_file)
            self.count = 0
            self.thread_safe = threading.RLock()

        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().acquire(*args, **kwargs)

        def release(self, force: bool = False) -> None:
            self.count -= 1
            super().release(force=force)

    lock = Counted(path)
    with lock, lock.acquire():
        assert (lock.count, lock.lock_counter) == (2, 2)
    assert (lock.count, lock.is_locked) == (0, False)


@modern
def test_a_narrower_init_is_called_without_the_defaults_it_does_not_take(cls: Any, path: str) -> None:
    class Narrow(cls):  # type: ignore[misc]
        def __init__(self, lock_file: str, *, mine: int = 0) -> None:
            super().__init__(lock_file)
            self.mine = mine

    assert Narrow(path, timeout=-1, blocking=True, mine=3).mine == 3
    with pytest.raises(TypeError, match="timeout"):
        Narrow(path, timeout=4)


@modern
def test_a_subclass_that_names_its_own(cls: Any, tmp_path: Path) -> None:
    """As datasets has it."""
    base = stock.UnixFileLock

    class Named(cls):  # type: ignore[misc]
        def __init__(self, lock_file: str, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("mode", 0o666 & ~0o22)
            super().__init__(self.shortened(lock_file), *args, **kwargs)

        @classmethod
        def shortened(cls, path: str) -> str:
            return path[:-100] if issubclass(cls, base) else path

    with Named(str(tmp_path / "a") + "x" * 100, 5) as lock:
        assert (lock.lock_file, lock.timeout, lock.mode) == (str(tmp_path / "a"), 5, 0o644)


# What is ours ---------------------------------------------------------------------------------------------------------


def test_it_passes_for_the_originals() -> None:
    assert ours.FileLock is ours.UnixFileLock is not stock.UnixFileLock
    assert issubclass(ours.FileLock, stock.BaseFileLock)
    assert issubclass(ours.FileLock, stock.UnixFileLock)
    assert not issubclass(ours.FileLock, stock.SoftFileLock)
    assert isinstance(ours.FileLock("x").acquire(), stock.AcquireReturnProxy)


@needs_stock_async
def test_the_awaited_pass_for_the_originals() -> None:
    assert ours.AsyncFileLock is ours.AsyncUnixFileLock
    for base in (stock.BaseAsyncFileLock, stock.AsyncUnixFileLock, stock.BaseFileLock, ours.UnixFileLock):
        assert issubclass(ours.AsyncFileLock, base)


def test_every_other_name_is_the_originals() -> None:
    mine = {"FileLock", "UnixFileLock", "AsyncFileLock", "AsyncUnixFileLock", "asyncio"}
    assert set(ours.__all__) == set(stock.__all__)
    for name in stock.__all__:
        assert (getattr(ours, name) is getattr(stock, name)) == (name not in mine), name
    assert {*stock.__all__} <= {*dir(ours)}
    with pytest.raises(AttributeError):
        _ = ours.no_such_name


@needs_stock_async
def test_the_submodule() -> None:
    module = importlib.import_module("pidabs.compat.filelock.asyncio")
    original = importlib.import_module("filelock.asyncio")
    assert module.AsyncUnixFileLock is ours.AsyncFileLock
    assert module.AsyncSoftFileLock is original.AsyncSoftFileLock


@pytest.mark.skipif(not LATEST, reason="filelock itself imports it")
def test_importing_it_does_not_import_asyncio() -> None:
    code = """
        import pidabs.compat.filelock as filelock
        filelock.FileLock(sys.argv[1]).acquire()
        say("asyncio" in sys.modules)
    """
    with child(code, args=(f"/tmp/{uuid.uuid4().hex}",)) as process:
        process.expect("False")


def test_it_uses_no_private_module_of_filelock() -> None:
    source = Path(str(ours.__file__)).parent
    for file in source.glob("*.py"):
        assert not re.search(r"(?<!compat\.)filelock\._(?!_version__)", file.read_text())


def test_no_file_is_made_or_left(tmp_path: Path) -> None:
    with ours.FileLock(tmp_path / "lock"):
        assert os.listdir(tmp_path) == []
    (tmp_path / "lock").write_text("mine")
    with ours.FileLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == "mine"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_mirror(how: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("PIDABS_MIRROR", "1")
    lock = ours.UnixFileLock(path, mirror=True) if how == "option" else ours.UnixFileLock(path)
    with lock:
        assert Path(path).read_text() == f"{os.getpid()}\n"
    assert not os.path.exists(path)
    with ours.UnixFileLock(path, mirror=False):
        assert not os.path.exists(path)


def test_it_is_the_lock_of_the_resolved_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    with ours.FileLock("link/lock"), pytest.raises(pidabs.Timeout):
        pidabs.Lock(tmp_path / "real" / "lock").acquire(0)
    with child(HOLD, args=(str(tmp_path / "real" / "lock"),)) as holder:
        holder.expect("held")
        with pytest.raises(stock.Timeout):
            ours.FileLock("real/../link/lock").acquire(0)


@either
def test_a_relative_path_means_where_we_are_when_we_acquire(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    lock = cls("lock")
    lock.acquire()
    lock.release()
    monkeypatch.chdir(tmp_path / "b")
    with lock:
        assert is_free(cls, str(tmp_path / "a" / "lock"))
        assert not is_free(cls, str(tmp_path / "b" / "lock"))


@either
def test_a_directory_that_has_been_replaced(cls: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    lock = cls(tmp_path / "link" / "lock")
    lock.acquire()
    lock.release()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("b")
    with lock:
        assert not is_free(cls, str(tmp_path / "b" / "lock"))


def test_waiters_come_in_order(path: str) -> None:
    with ours.FileLock(path) as lock:
        order: list[int] = []
        threads = []
        native = pidabs.Lock(path)
        for number in range(5):
            thread = threading.Thread(target=lambda n=number: [ours.FileLock(path).acquire(), order.append(n)])
            thread.start()
            threads.append(thread)
            wait_until(lambda n=number: native.waiters() == n + 1)
        lock.release()
        for thread in threads:
            thread.join(DEADLINE)
    assert order == [0, 1, 2, 3, 4]


def test_cancel_check_keeps_the_place_in_the_queue(path: str) -> None:
    with child(HOLD, args=(path,)) as holder:
        holder.expect("held")
        calls: list[int] = []
        finish = must_block(
            lambda: ours.FileLock(path).acquire(poll_interval=0.01, cancel_check=lambda: calls.append(1))
        )
        native = pidabs.Lock(path)
        assert native.waiters() == 1
        with child(HOLD, args=(path,)) as next_one:
            wait_until(lambda: native.waiters() == 2)
            holder.tell()
            proxy = finish()
            assert next_one.says_nothing()
            proxy.lock.release(force=True)
            del proxy
            next_one.expect("held")
    assert len(calls) > 5


def test_nothing_is_left_open(path: str) -> None:
    with ours.FileLock(path):
        pass
    before = open_descriptors()
    for _ in range(50):
        with ours.FileLock(path), pytest.raises(stock.Timeout):
            ours.FileLock(path).acquire(timeout=0)
    assert open_descriptors() <= before


def test_a_lock_lost_with_its_descriptor_is_not_held(path: str) -> None:
    """DaemonContext closes it."""
    lock = ours.FileLock(path, on_acquired=os.close)
    lock.acquire()
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    lock.release()
    lock.acquire()
    lock.release()


def test_it_cannot_be_copied(path: str) -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(ours.FileLock(path))
    with pytest.raises(TypeError):
        pickle.dumps(ours.FileLock(path))


# Awaited --------------------------------------------------------------------------------------------------------------

either_async = pytest.mark.parametrize(
    "cls",
    [
        pytest.param("filelock", marks=pytest.mark.skipif(not MODERN, reason="filelock 4.1's"), id="filelock"),
        "pidabs",
    ],
)


def awaited(name: str) -> Any:
    return (stock if name == "filelock" else ours).AsyncFileLock


def drive(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def until_waiting(path: str, number: int) -> None:
    """Until so many wait for the lock; whoever runs it sets the deadline."""
    while pidabs.Lock(path).waiters() < number:
        await asyncio.sleep(0)


@either_async
def test_awaited_the_same(cls: str, path: str) -> None:
    async def main() -> None:
        lock = awaited(cls)(path)
        async with lock as first, await lock.acquire() as second:
            assert first is second is lock
            assert (lock.is_locked, lock.lock_counter, lock.is_thread_local()) == (True, 2, False)
            with pytest.raises(stock.Timeout):
                await awaited(cls)(path).acquire(timeout=0.05)
            with pytest.raises(stock.Timeout):
                await awaited(cls)(path, blocking=False).acquire()
            with pytest.raises(RuntimeError, match="Deadlock"):
                await awaited(cls)(path).acquire()
            calls: list[int] = []
            with pytest.raises(stock.Timeout):
                await awaited(cls)(path).acquire(
                    5, poll_interval=0.01, cancel_check=lambda: calls.append(1) or len(calls) > 2
                )
            assert len(calls) == 3
        assert (lock.is_locked, lock.lock_counter) == (False, 0)
        await lock.acquire()
        await lock.acquire()
        await lock.release(force=True)
        await lock.release()
        assert not lock.is_locked
        with pytest.raises(NotImplementedError, match="async with"), lock:
            pass

    drive(main())


@either_async
def test_awaited_options(cls: str, path: str) -> None:
    lock = awaited(cls)(path, 1, 0o600, False, run_in_executor=False)
    assert (lock.timeout, lock.mode, lock.run_in_executor, lock.executor, lock.loop) == (1, 0o600, False, None, None)
    if hasattr(stock, "AsyncUnixFileLock"):  # which checks it for ours, too
        with pytest.raises(ValueError, match="run_in_executor"):
            awaited(cls)(path, thread_local=True)
    assert awaited(cls)(path, is_singleton=True) is awaited(cls)(path, is_singleton=True)


@either_async
def test_awaited_while_another_task_is_taking_the_same_object(cls: str, path: str) -> None:
    async def main() -> None:
        lock = awaited(cls)(path)
        other = awaited(cls)(path)
        await other.acquire()
        waits = asyncio.Event()  # cancel_check is asked before each wait
        tasks = [asyncio.create_task(lock.acquire(cancel_check=lambda: waits.set())) for _ in range(3)]
        await waits.wait()
        with pytest.raises(stock.Timeout):
            await lock.acquire(timeout=0.02)
        tasks[1].cancel()
        await other.release()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in done] == [False, True, False]
        assert lock.lock_counter == 2
        await lock.release(force=True)

    drive(main())


def test_awaited_and_blocking_exclude_each_other(path: str) -> None:
    async def main() -> None:
        async with ours.AsyncFileLock(path):
            with pytest.raises(stock.Timeout):
                ours.FileLock(path).acquire(timeout=0)
        with ours.FileLock(path), pytest.raises(stock.Timeout):
            await ours.AsyncFileLock(path).acquire(timeout=0.02)
        with child(HOLD_PIDFILE, args=(spec(OURS), path)) as holder:
            holder.expect("held")
            task = asyncio.create_task(ours.AsyncFileLock(path).acquire())
            await until_waiting(path, 1)
            assert not task.done()
            holder.tell()
            await (await task).lock.release()

    drive(main())


def test_awaited_without_a_thread(path: str) -> None:
    async def main() -> None:
        async with ours.AsyncFileLock(path):
            tasks = [asyncio.create_task(once()) for _ in range(20)]
            await until_waiting(path, 20)
            assert threading.active_count() == before
        await asyncio.gather(*tasks)

    async def once() -> None:
        async with ours.AsyncFileLock(path):
            await asyncio.sleep(0)

    before = threading.active_count()
    drive(main())


def test_cancelled_at_every_moment_it_is_neither_lost_nor_leaked(path: str) -> None:
    async def worker(lock: Any) -> None:
        async with lock:
            await asyncio.sleep(0)

    async def main() -> None:
        gc.collect()
        descriptors = open_descriptors()
        for number in range(1000):
            shared = ours.AsyncFileLock(path)
            holder = ours.FileLock(path)
            holder.acquire()
            tasks = [asyncio.create_task(worker(shared)), asyncio.create_task(worker(ours.AsyncFileLock(path)))]
            for step in range(number % 12):
                if step == number % 5:
                    holder.release()
                await asyncio.sleep(0)
            tasks[number % 2].cancel()
            holder.release()
            await asyncio.wait(tasks)
            assert is_free(OURS, path), number
            assert shared.lock_counter == 0
        gc.collect()
        assert open_descriptors() <= descriptors

    asyncio.run(main())


def test_several_loops_share_one_object(path: str) -> None:
    lock = ours.AsyncFileLock(path)
    inside = []

    async def work() -> None:
        for _ in range(30):
            await lock.acquire()
            inside.append(lock.lock_counter)
            await lock.release()

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(inside) == 120
    assert not lock.is_locked
    assert is_free(OURS, path)


def test_an_awaited_lock_that_is_dropped_releases(path: str) -> None:
    async def main() -> None:
        await ours.AsyncFileLock(path).acquire()
        gc.collect()
        assert is_free(OURS, path)

    drive(main())


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_other_loops(loops: str, path: str) -> None:
    loop = pytest.importorskip(loops).new_event_loop()

    async def main() -> None:
        async with ours.AsyncFileLock(path):
            task = asyncio.create_task(ours.AsyncFileLock(path).acquire(timeout=DEADLINE))
            await until_waiting(path, 1)
        await (await task).lock.release()

    try:
        loop.run_until_complete(asyncio.wait_for(main(), 60))
    finally:
        loop.close()
