"""pidabs.compat.filelock, what test_filelock.py leaves: logs, hooks that are awaited, errors on top of errors.

Original and ours side by side wherever they are to behave the same.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import filelock as stock
import pidabs.compat.filelock as ours
import pytest
from pidabs.compat.filelock import _core
from pidabs.compat.filelock._hold import QuietLock
from support import DEADLINE, child, must_block, raised, switches, wait_until
from test_filelock import MODERN, OURS, awaited, drive, either, either_async, in_thread, modern, until_waiting

import pidabs

PACKAGE = os.path.dirname(ours.__file__)
needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "some.lock")


class Struck(BaseException):
    """What a signal handler, or a hook, raises."""


def strike(*_: object) -> None:
    raise Struck


# Logs -------------------------------------------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture, path: str) -> list[str]:
    """What was logged since the last call, once each, without what tells objects and intervals apart."""
    lines = [re.sub(r"ock \d+ ", "ock ", record.getMessage().replace(path, "X")) for record in caplog.records]
    caplog.clear()
    return list(dict.fromkeys(re.sub(r", waiting.*", ", waiting", line) for line in lines))


TAKEN = ["Attempting to acquire lock on X", "Lock acquired on X"]
RELEASED = ["Attempting to release lock on X", "Lock released on X"]
NOT_IN_TIME = [TAKEN[0], "Lock not acquired on X, waiting", "Timeout on acquiring lock on X"]
CANCELLED = [TAKEN[0], "Lock not acquired on X, waiting", "Cancellation requested for lock on X"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, path: str) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, "filelock")
    return lambda: said(caplog, path)


@modern
def test_what_is_logged(cls: Any, path: str, log: Callable[[], list[str]]) -> None:
    lock = cls(path)
    other = cls(path, thread_local=False)
    lock.acquire()
    assert log() == TAKEN
    with pytest.raises(stock.Timeout):
        other.acquire(0.5, poll_interval=0.05)
    assert log() == NOT_IN_TIME
    looks = iter((False, True))
    with pytest.raises(stock.Timeout):
        other.acquire(DEADLINE, poll_interval=0.01, cancel_check=lambda: next(looks))
    assert log()[:3] == CANCELLED
    lock.release()
    assert log() == RELEASED


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.msg for record in caplog.records]
    caplog.clear()
    return lines


AGAIN = "Lock %s acquired on %s"
ATTEMPT, LAST = "Attempting to acquire lock %s on %s", ["Attempting to release lock %s on %s", "Lock %s released on %s"]


@either
@pytest.mark.parametrize("thread_local", [True, False])
def test_what_is_logged_of_a_nested_acquire(
    cls: Any, thread_local: bool, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every line, in order: each acquire says that it has the lock, and of the releases only the last."""
    caplog.set_level(logging.DEBUG, "filelock")
    lock = cls(path, thread_local=thread_local)
    with lock:
        with lock, lock.acquire():
            lock.acquire(blocking=False)
            lock.release()
        assert logged(caplog) == [ATTEMPT, AGAIN, AGAIN, AGAIN, AGAIN]
    assert logged(caplog) == LAST
    lock.release()
    lock.acquire()
    lock.acquire(0)
    lock.release(force=True)
    assert logged(caplog) == [ATTEMPT, AGAIN, AGAIN, *LAST]


@modern
def test_what_is_logged_around_the_hook(cls: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is acquired when the hook has returned."""
    caplog.set_level(logging.DEBUG, "filelock")
    with cls(path, on_acquired=lambda fd: logging.getLogger("filelock").debug("hook")):
        assert logged(caplog) == [ATTEMPT, "hook", AGAIN]
    caplog.clear()
    with pytest.raises(Struck):
        cls(path, on_acquired=strike).acquire()
    assert logged(caplog) == [ATTEMPT]


@modern
def test_what_is_logged_when_force_releases_what_a_thread_left(
    cls: Any, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "filelock")
    lock = cls(path)
    in_thread(lock.acquire)
    lock.release(force=True)
    assert logged(caplog) == [ATTEMPT, AGAIN, *LAST]


@modern
def test_what_is_logged_of_a_cancelled_acquire(cls: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with cls(path):
        caplog.set_level(logging.DEBUG, "filelock")
        for timeout in (-1, DEADLINE):
            acquire = partial(cls(path).acquire, timeout, cancel_check=lambda: True)
            assert in_thread(partial(raised, acquire))[0] is stock.Timeout
            assert logged(caplog) == [ATTEMPT, "Cancellation requested for lock %s on %s"]


LOGGED_WAIT = """
    import asyncio, logging
    import pidabs.compat.filelock as filelock
    logging.getLogger().setLevel(logging.NOTSET + 1)  # and nobody shows it

    async def main():
        async with filelock.AsyncFileLock(sys.argv[1]): pass

    say("ready")
    if sys.argv[2] == "awaited":
        asyncio.run(main())
    else:
        with filelock.FileLock(sys.argv[1]): pass
    say("had it")
"""


@pytest.mark.parametrize("way", ["blocking", "awaited"])
def test_what_is_logged_wakes_nobody(path: str, way: str) -> None:
    """virtualenv logs everything, always, and shows what it is told to: its waiters are to sleep."""
    if way == "awaited" and not MODERN:
        pytest.skip("this filelock has nothing asynchronous")
    with pidabs.Lock(path) as lock, child(LOGGED_WAIT, args=(path, way)) as waiter:
        waiter.expect("ready")
        wait_until(lambda: lock.waiters() == 1)
        before = switches(waiter.pid)
        assert waiter.says_nothing(0.5)  # ten times as long as filelock's interval
        assert switches(waiter.pid) - before <= 2
        lock.release()
        waiter.expect("had it")
        lock.acquire()


@either_async
def test_what_is_logged_when_awaited(cls: str, path: str, log: Callable[[], list[str]]) -> None:
    async def main() -> None:
        lock = awaited(cls)(path)
        await lock.acquire()
        assert log() == TAKEN
        with pytest.raises(stock.Timeout):
            await awaited(cls)(path).acquire(0.5, poll_interval=0.05)
        assert log() == NOT_IN_TIME
        await lock.release()
        assert log() == RELEASED

    drive(main())


def test_nothing_is_logged_unless_somebody_wants_it(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "filelock")
    with OURS(path), pytest.raises(stock.Timeout):
        OURS(path).acquire(0.01)
    assert said(caplog, path) == []


class Interrupts(logging.Handler):
    """^C, as that line is logged."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.line):
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(log: object) -> Iterator[None]:
    """The release is logged, which is interrupted."""
    handler = Interrupts("Attempting to release")
    logger = logging.getLogger("filelock")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.parametrize("thread_local", [True, False])
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.usefixtures("interrupted")
def test_a_release_that_is_interrupted_as_it_is_logged_lets_go(path: str, thread_local: bool, force: bool) -> None:
    lock = OURS(path, thread_local=thread_local)
    lock.acquire()
    with pytest.raises(KeyboardInterrupt):
        lock.release(force)
    assert not lock.is_locked
    assert in_thread(lambda: pidabs.holder(path)) is None
    lock.acquire(0)


@pytest.mark.skipif(not MODERN, reason="this filelock has nothing asynchronous")
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.usefixtures("interrupted")
def test_an_awaited_release_that_is_interrupted_as_it_is_logged_lets_go(path: str, force: bool) -> None:
    async def main() -> None:
        lock = awaited("pidabs")(path)
        await lock.acquire()
        with pytest.raises(KeyboardInterrupt):
            await lock.release(force)
        assert not lock.is_locked
        assert pidabs.holder(path) is None
        await lock.acquire(0)

    drive(main())


# on_acquired, awaited -----------------------------------------------------------------------------------------------


@either_async
@pytest.mark.parametrize("in_executor", [True, False])
def test_hook_runs_in_the_executor_or_here(cls: str, in_executor: bool, path: str) -> None:
    seen: list[tuple[bool, bool]] = []

    def hook(fd: int) -> None:
        os.fstat(fd)
        seen.append((threading.current_thread() is threading.main_thread(), lock.is_locked))

    lock = awaited(cls)(path, on_acquired=hook, run_in_executor=in_executor)

    async def main() -> None:
        async with lock, lock:
            pass
        async with lock:
            pass

    drive(main())
    assert seen == [(not in_executor, True)] * 2


@either_async
@pytest.mark.parametrize("in_executor", [True, False])
def test_hook_that_raises_gives_the_lock_back(cls: str, in_executor: bool, path: str) -> None:
    async def main() -> None:
        lock = awaited(cls)(path, on_acquired=lambda fd: 1 // 0, run_in_executor=in_executor)
        with pytest.raises(ZeroDivisionError):
            await lock.acquire()
        assert (lock.is_locked, lock.lock_counter) == (False, 0)
        async with awaited(cls)(path, blocking=False):
            pass

    drive(main())


@either_async
def test_hook_whose_executor_is_shut_down(cls: str, path: str) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()

    async def main() -> None:
        lock = awaited(cls)(path, executor=executor, on_acquired=lambda fd: None)
        with pytest.raises(RuntimeError, match="shutdown"):
            await lock.acquire()
        assert not lock.is_locked

    drive(main())


def test_hook_that_an_executor_never_began(path: str) -> None:
    """It is shut down while the hook stands in its queue."""
    executor = ThreadPoolExecutor(1)
    go = threading.Event()
    executor.submit(go.wait, DEADLINE)

    async def main() -> None:
        lock = ours.AsyncFileLock(path, executor=executor, on_acquired=lambda fd: None)
        task = asyncio.create_task(lock.acquire())
        while not executor._work_queue.qsize():
            await asyncio.sleep(0)
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(RuntimeError, match="the executor was shut down"):
            await task
        assert not lock.is_locked

    try:
        drive(main())
    finally:
        go.set()


async def cancelled_during_the_hook(cls: str, path: str, fails: bool, **options: Any) -> Any:
    inside, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hook(fd: int) -> None:
        loop.call_soon_threadsafe(inside.set)
        assert go.wait(DEADLINE)
        os.fstat(fd)  # it has the lock's descriptor, and it is still there
        if fails:
            raise KeyError("hook")

    lock = awaited(cls)(path, on_acquired=hook, **options)
    task = asyncio.create_task(lock.acquire())
    await inside.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    await asyncio.wait({task})
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    return task


@either_async
def test_cancelled_during_the_hook(cls: str, path: str) -> None:
    async def main() -> None:
        assert (await cancelled_during_the_hook(cls, path, fails=False)).cancelled()

    drive(main())


@either_async
def test_cancelled_during_a_hook_that_fails(cls: str, path: str) -> None:
    async def main() -> None:
        error = (await cancelled_during_the_hook(cls, path, fails=True)).exception()
        assert (type(error), type(error.__context__)) == (KeyError, asyncio.CancelledError)

    # Contexts are a thread's, and an exception that a tracing function raised can stay behind for good in one of them.
    with ThreadPoolExecutor(1) as fresh:
        fresh.submit(drive, main()).result()


@needs_groups
@either_async
def test_cancelled_during_a_hook_that_fails_with_both_in_a_group(cls: str, path: str) -> None:
    async def main() -> None:
        task = await cancelled_during_the_hook(cls, path, fails=True, context_error_policy="group")
        assert [type(error) for error in task.exception().exceptions] == [asyncio.CancelledError, KeyError]

    drive(main())


# Errors on top of errors ---------------------------------------------------------------------------------------------


@needs_groups
@either_async
def test_both_errors_of_an_awaited_block_in_a_group(cls: str, path: str) -> None:
    class Sub(awaited(cls)):  # type: ignore[misc]
        async def release(self, force: bool = False) -> None:
            await super().release(force)
            raise OSError("release")

    async def main() -> None:
        with pytest.raises(Exception, match="both failed") as caught:
            async with Sub(path, context_error_policy="group"):
                raise KeyError("body")
        assert [type(error) for error in caught.value.exceptions] == [KeyError, OSError]  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="release") as plain:
            async with Sub(path):
                raise KeyError("body")
        assert isinstance(plain.value.__context__, KeyError)
        with pytest.raises(OSError, match="release"):
            async with Sub(path):
                pass

    drive(main())


@needs_groups
@modern
def test_groups_of_the_same_errors_are_not_shown_as_each_others_context(cls: Any, path: str) -> None:
    """A release that fails with what the block failed with, in a group of its own, says so once."""
    body = KeyError("body")

    class Sub(cls):  # type: ignore[misc]
        def release(self, force: bool = False) -> None:
            super().release(force)
            try:
                raise ExceptionGroup("both", [body])  # noqa: F821
            except Exception:
                raise ExceptionGroup("both", [body]) from None  # noqa: F821

    with pytest.raises(Exception, match="both failed") as caught, Sub(path, context_error_policy="group"):
        raise body
    first, second = caught.value.exceptions  # type: ignore[attr-defined]
    assert first is body
    assert (second.message, second.exceptions) == ("both", (body,))
    if cls is OURS:
        assert second.__context__ is None


@pytest.mark.skipif(not MODERN, reason="filelock 3.13 has no such class")
def test_what_asyncio_module_does_not_have() -> None:
    from pidabs.compat.filelock import asyncio as module

    assert set(dir(module)) == set(stock.asyncio.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_the_submodule_where_filelock_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As filelock 3.13, which some distributions ship."""
    from pidabs.compat.filelock import asyncio as module

    monkeypatch.setitem(sys.modules, "filelock.asyncio", None)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        module.no_such_name  # noqa: B018


def test_a_forked_child_goes_on_with_its_own_count_where_filelock_3_is_installed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "_NEW_IN_A_CHILD", False)
    lock = OURS(path)
    readable, writable = os.pipe()
    with lock:
        pid = os.fork()
        if pid == 0:
            try:
                with pytest.raises(stock.Timeout):
                    lock.acquire(0)
                os.write(writable, b"%d" % lock.lock_counter)
            finally:
                os._exit(0)
        os.close(writable)
        assert os.read(readable, 10) == b"0"
        os.close(readable)
        os.waitpid(pid, 0)
        assert lock.lock_counter == 1


# One object, several tasks -------------------------------------------------------------------------------------------


def test_loop_that_is_closed_while_its_task_waits_for_its_turn(path: str) -> None:
    """The task that leaves finds nobody to wake there."""
    lock = ours.AsyncFileLock(path)
    abandoned: list[asyncio.Future[Any]] = []

    def waiting_loop() -> None:
        async def main() -> None:
            task = asyncio.ensure_future(lock.acquire())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            abandoned.append(task)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()

    async def first() -> None:
        with pidabs.Lock(path):
            task = asyncio.create_task(lock.acquire())
            await until_waiting(path, 1)
            thread = threading.Thread(target=waiting_loop)
            thread.start()
            await asyncio.to_thread(thread.join, DEADLINE)
            assert abandoned
        await task
        assert lock.lock_counter == 1
        await lock.release()

    drive(first())
    for task in abandoned:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_loops_that_are_the_first_to_use_an_object_at_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Two threads find that it has no gate yet; 2. each makes one; 3. both are inside, and one fails."""
    from pidabs.compat.filelock import asyncio as module

    both = threading.Barrier(2)

    class MadeSlowly(module._Gate):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            try:
                both.wait(1)
            except threading.BrokenBarrierError:
                pass

    monkeypatch.setattr(module, "_Gate", MadeSlowly)
    lock = ours.AsyncFileLock(path)
    with pidabs.Lock(path):
        first, second = (must_block(lambda: asyncio.run(lock.acquire(DEADLINE))) for _ in range(2))
    first()
    second()
    assert lock.lock_counter == 2
    drive(lock.release(force=True))
    assert not lock.is_locked


def test_cancelled_while_waiting_for_the_turn_to_release(path: str) -> None:
    async def main() -> None:
        lock = ours.AsyncFileLock(path)
        await lock.acquire()
        gate = lock._mine.hold.gate
        someone = object()
        assert gate.enter(someone) is None  # another task is taking or dropping it
        task = asyncio.create_task(lock.release())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lock.lock_counter == 1
        gate.leave(someone)
        await lock.release()
        assert not lock.is_locked

    drive(main())


def test_cancel_check_while_another_task_is_taking_it(path: str) -> None:
    async def main() -> None:
        lock = ours.AsyncFileLock(path)
        with pidabs.Lock(path):
            task = asyncio.create_task(lock.acquire())
            await until_waiting(path, 1)
            looks = iter((False, False, True))
            with pytest.raises(stock.Timeout):
                await lock.acquire(poll_interval=0.001, cancel_check=lambda: next(looks))
            assert next(looks, None) is None
        await task
        await lock.release()

    drive(main())


def test_awaited_lock_that_is_lost_is_released_silently(path: str, log: Callable[[], list[str]]) -> None:
    async def main() -> None:
        lock = ours.AsyncFileLock(path)
        await lock.acquire()
        os.close(lock._mine.hold.lock.fileno())
        assert not lock.is_locked
        await lock.release()
        assert (lock.is_locked, lock.lock_counter) == (False, 0)
        async with lock:
            assert lock.is_locked

    drive(main())


# The recursion limit -------------------------------------------------------------------------------------------------


def below_the_limit(margin: int, function: Callable[[], object]) -> bool:
    """Call it so many frames below the limit: whether that was enough."""
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back

    def call(frames: int) -> None:
        if frames:
            call(frames - 1)
        else:
            function()

    try:
        call(sys.getrecursionlimit() - depth - margin - 1)
    except RecursionError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # at one depth pidabs.Lock leaves that to the collector
@modern
@pytest.mark.parametrize("options", [{}, {"thread_local": False}, {"interop": True}], ids=str)
def test_release_that_fails_at_the_recursion_limit(cls: Any, options: dict[str, Any], path: str) -> None:
    """Then the lock is held still, and can be released, or it is free: `is_locked` says which."""
    if cls is not OURS and "interop" in options:
        pytest.skip("ours alone")
    cls(path, **options).acquire().lock.release()  # whatever is imported late is there now
    failed = 0
    for margin in range(1, 60):
        lock = cls(path, **options)
        lock.acquire()
        if below_the_limit(margin, lock.release):
            assert not lock.is_locked
            break
        failed += 1
        if lock.is_locked:
            with pytest.raises(stock.Timeout):
                cls(path, **options).acquire(blocking=False)
            lock.release()
        gc.collect()  # see above
        cls(path, **options).acquire(blocking=False).lock.release()
        assert (lock.is_locked, lock.lock_counter) == (False, 0)
        lock.acquire(blocking=False)
        lock.release()
    assert 0 < failed < 58


def test_lock_that_was_never_made_is_collected_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with pytest.raises(TypeError):
        QuietLock()  # type: ignore[call-arg]  # or, with the right ones, at the recursion limit
    gc.collect()
    assert complaints == []


# Subclasses -----------------------------------------------------------------------------------------------------------


@either
def test_leaving_the_proxy_calls_release_and_not_the_exit_of_a_subclass(cls: Any, path: str) -> None:
    class Sub(cls):  # type: ignore[misc]
        def __exit__(self, *exc: object) -> None:
            called.append("exit")
            super().__exit__(*exc)

        def release(self, force: bool = False) -> None:
            called.append("release")
            super().release(force)

    called: list[str] = []
    lock = Sub(path)
    with lock:
        pass
    assert called == ["exit", "release"]
    called.clear()
    with lock.acquire():
        pass
    assert called == ["release"]


@either_async
def test_leaving_the_awaited_proxy_calls_release_and_not_the_exit_of_a_subclass(cls: str, path: str) -> None:
    class Sub(awaited(cls)):  # type: ignore[misc]
        async def __aexit__(self, *exc: object) -> None:
            called.append("exit")
            await super().__aexit__(*exc)

        async def release(self, force: bool = False) -> None:
            called.append("release")
            await super().release(force)

    called: list[str] = []

    async def main() -> None:
        lock = Sub(path)
        async with lock:
            pass
        assert called == ["exit", "release"]
        called.clear()
        async with await lock.acquire():
            pass
        assert called == ["release"]

    drive(main())


@either
def test_subclass_with_a_finalizer(cls: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sub(cls):  # type: ignore[misc]
        def __del__(self) -> None:
            super().__del__()
            finalized.append(True)

    finalized: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", finalized.append)
    Sub(path).acquire()
    gc.collect()
    assert finalized == [True]
    cls(path).acquire(blocking=False).lock.release()


@pytest.mark.parametrize("name", ["FileLock", "UnixFileLock", "AsyncFileLock", "AsyncUnixFileLock"])
def test_the_signature_is_filelocks(name: str) -> None:
    if not hasattr(stock, name):
        pytest.skip("this filelock has nothing asynchronous")
    theirs, our = getattr(stock, name), getattr(ours, name)
    assert inspect.signature(our) == inspect.signature(theirs)
    if MODERN:  # filelock 3.13 shows what a subclass takes
        theirs, our = (type("Sub", (cls,), {"__init__": lambda self, path: None}) for cls in (theirs, our))
        assert inspect.signature(our) == inspect.signature(theirs)


# Signal handlers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_handler_that_raises_as_the_lock_is_let_go(when: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before the release, or just after it: in either case the lock is free, and its waiter has it."""
    lock = OURS(path)
    lock.acquire()
    real = pidabs.Lock.release
    strikes = iter((True,))

    def release(self: pidabs.Lock) -> None:
        if when == "before" and next(strikes, False):
            raise Struck
        real(self)
        if when == "after" and next(strikes, False):
            raise Struck

    waits = must_block(lambda: OURS(path, thread_local=False).acquire(DEADLINE).lock)
    monkeypatch.setattr(pidabs.Lock, "release", release)
    with pytest.raises(Struck):
        lock.release()
    assert (lock.is_locked, lock.lock_counter) == (False, 0)
    waits().release()


def test_exception_after_any_call_leaves_the_gate_open(path: str) -> None:
    """A signal handler raises after a call into C.  Threads that share a lock all pass one gate."""
    lock = OURS(path, thread_local=False)
    for nth in range(1000):
        calls = itertools.count()

        def strike(frame: FrameType, event: str, _: object, nth: int = nth, calls: Iterator[int] = calls) -> None:
            if event == "c_return" and frame.f_code.co_filename.startswith(PACKAGE) and next(calls) == nth:
                raise Struck

        sys.setprofile(strike)
        try:
            lock.acquire()
            lock.release()
        except Struck:
            struck = True
        else:
            struck = False
        finally:
            sys.setprofile(None)
        in_thread(lambda: lock.acquire(DEADLINE).lock.release())
        lock.release(force=True)
        assert not lock.is_locked
        if not struck:
            break
    assert 3 < nth < 999


@either
def test_what_an_option_is_set_to_is_shown(cls: Any, path: str) -> None:
    lock = cls(path)
    lock.timeout = 5
    lock.poll_interval = 0.2
    lock.blocking = False
    assert (lock.timeout, lock.poll_interval, lock.blocking) == (5, 0.2, False)


def test_release_by_a_signal_handler_on_top_of_the_acquire(path: str) -> None:
    code = """
    import signal
    from pidabs.compat.filelock import FileLock
    lock = FileLock(sys.argv[1])
    def handler(*_):
        lock.release(); say("released nothing", lock.is_locked)
    signal.signal(signal.SIGUSR1, handler)
    say("asks")
    lock.acquire()
    say("held", lock.lock_counter)
    lock.acquire(); listen(); lock.release(force=True)
    say(lock.is_locked)
    """
    with pidabs.Lock(path) as holder, child(code, args=(path,)) as process:
        process.expect("asks")
        wait_until(holder.waiters)
        process.signal(signal.SIGUSR1)
        process.expect("released nothing False")
        holder.release()
        process.expect("held 1")
        process.tell()
        process.expect("False")
        holder.acquire()
