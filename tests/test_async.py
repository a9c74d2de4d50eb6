"""Lock in asyncio's tasks: the same lock, waited for by the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import pytest
import uvloop
from support import HOLD, child, open_descriptors, wait_until

import pidabs
from pidabs import _drive

T = TypeVar("T")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """asyncio.run by either event loop."""

    def with_loop(coroutine: Coroutine[Any, Any, T]) -> T:
        loop = LOOPS[request.param]()
        try:
            return loop.run_until_complete(asyncio.wait_for(coroutine, 30))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return with_loop


Run = Callable[[Coroutine[Any, Any, T]], T]


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` is true."""
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_tasks_exclude_each_other_and_have_their_turn_in_order(run: Run[None], name: str) -> None:
    async def main() -> None:
        inside: list[int] = []
        order: list[int] = []

        async def worker(number: int) -> None:
            async with pidabs.Lock(name):
                inside.append(number)
                assert inside == [number]
                order.append(number)
                await steps(3)
                inside.remove(number)

        lock = await pidabs.Lock(name).acquire_async()
        workers = []
        for number in range(10):
            workers.append(asyncio.create_task(worker(number)))
            await until(lambda number=number: lock.waiters() == number + 1)
        await lock.release_async()
        await asyncio.gather(*workers)
        assert list(range(10)) == order
        assert not lock.locked()

    run(main())


def test_one_object_shared_by_tasks(run: Run[None], name: str) -> None:
    async def main() -> None:
        lock = pidabs.Lock(name)
        inside = 0

        async def worker() -> None:
            nonlocal inside
            for _ in range(5):
                async with lock:
                    inside += 1
                    assert inside == 1
                    await steps(2)
                    inside -= 1

        await asyncio.gather(*(worker() for _ in range(8)))
        assert not lock.locked()

    run(main())


def test_a_task_does_not_wait_for_itself(run: Run[None], name: str) -> None:
    async def main() -> None:
        async with pidabs.Lock(name) as lock:
            with pytest.raises(pidabs.AlreadyHeld):
                await lock.acquire_async()
            with pytest.raises(pidabs.AlreadyHeld):
                await pidabs.Lock(name).acquire_async()
            with pytest.raises(pidabs.AlreadyHeld):
                pidabs.Lock(name).acquire()  # which would stop the loop that has to go on
            with pytest.raises(pidabs.Timeout):
                await pidabs.Lock(name).acquire_async(timeout=0.01)
            assert lock.held

    run(main())


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_timeout(run: Run[None], name: str, timeout: float) -> None:
    async def main() -> None:
        with pytest.raises(pidabs.Timeout, match=f"held by pid {process.pid}") as caught:
            await pidabs.Lock(name).acquire_async(timeout)
        assert caught.value.waited == timeout

    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        run(main())


def test_cancel_check(run: Run[None], name: str) -> None:
    async def main() -> None:
        cancelled = False
        async with pidabs.Lock(name) as lock:
            other = pidabs.Lock(name)
            task = asyncio.create_task(other.acquire_async(cancel_check=lambda: cancelled, poll_interval=0.001))
            await until(lambda: lock.waiters() == 1)
            cancelled = True
            with pytest.raises(pidabs.Timeout):
                await task
            assert lock.held
            assert not other.held

    run(main())


def test_release_of_what_is_not_held(run: Run[None], name: str) -> None:
    async def main() -> None:
        with pytest.raises(pidabs.NotHeld):
            await pidabs.Lock(name).release_async()

    run(main())


def test_waits_for_a_process_and_a_process_waits_for_it(run: Run[None], name: str) -> None:
    """And the loop goes on all the while."""

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        lock = pidabs.Lock(name)
        waiting = asyncio.create_task(lock.acquire_async())
        await until(lambda: lock.waiters() == 1)
        before = ticks
        await until(lambda: ticks > before + 5)
        assert not waiting.done()
        first.tell()
        await waiting
        assert pidabs.holder(name) == pidabs.Holder(os.getpid(), os.getuid(), os.getgid())
        with child(HOLD, args=(name,)) as second:
            await until(lambda: lock.waiters() == 1)
            await lock.release_async()
            second.expect("held")
        ticker.cancel()

    with child(HOLD, args=(name,)) as first:
        first.expect("held")
        run(main())


@pytest.mark.impatient
def test_release_to_a_stopped_process_does_not_stop_the_loop(run: Run[None], name: str) -> None:
    async def main() -> None:
        lock = await pidabs.Lock(name).acquire_async()
        with child(HOLD, args=(name,)) as waiter:
            await until(lambda: lock.waiters() == 1)
            waiter.signal(signal.SIGSTOP)
            releasing = asyncio.create_task(lock.release_async())
            await steps(3)
            assert not releasing.done()  # it waits for an answer, and we go on
            await releasing
            assert not lock.locked()
            waiter.signal(signal.SIGCONT)
            waiter.expect("held")

    run(main())


def test_cancelled_at_every_step(run: Run[None], name: str) -> None:
    """A holder lets go after i steps of the loop, its waiter is cancelled after k: the lock is never lost nor stuck."""

    async def main() -> None:
        before = open_descriptors(settled=True)
        taken = 0
        for let_go in range(12):
            for cancelled in range(24):
                holder, waiter, third = (pidabs.Lock(name) for _ in range(3))
                await holder.acquire_async()
                task = asyncio.create_task(waiter.acquire_async())
                await until(lambda holder=holder: holder.waiters() == 1)
                last = asyncio.create_task(third.acquire_async())
                await until(lambda holder=holder: holder.waiters() == 2)

                async def release(holder: pidabs.Lock = holder, count: int = let_go) -> None:
                    await steps(count)
                    await holder.release_async()

                releasing = asyncio.create_task(release())
                await steps(cancelled)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    assert not waiter.held
                else:
                    taken += 1
                    await waiter.release_async()
                await releasing
                await last
                await third.release_async()
                assert not third.locked()
        assert 0 < taken < 12 * 24  # both have happened
        assert before == open_descriptors()

    run(main())


def test_loop_runs_between_steps_in_which_it_cannot_block(run: Run[None]) -> None:
    """Else who finds the queue full, each turn taking long beside busy threads, could not be cancelled."""

    def tries() -> Generator[Any, bool, bool]:
        for _ in range(1000):
            assert not (yield blocks, 1.0)
        return True

    def blocks(seconds: float) -> bool:
        raise AssertionError("called")

    async def main() -> None:
        task = asyncio.ensure_future(_drive.run_async(tries()))
        await steps(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_cancelled_while_releasing(run: Run[None], name: str) -> None:
    """Whoever waits gets the lock, asked or not."""

    async def main() -> None:
        before = open_descriptors(settled=True)
        for count in range(40):
            lock = await pidabs.Lock(name).acquire_async()
            peer.tell()
            await until(lambda lock=lock: lock.waiters() == 1)
            task = asyncio.create_task(lock.release_async())
            await steps(1 + count % 8)  # a task that is cancelled before its first step never begins
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not lock.held
            peer.expect("held")
            await until(lambda lock=lock: not lock.locked())
        assert before == open_descriptors()

    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    while listen():
        lock.acquire()
        say("held")
        lock.release()
    """
    with child(code, args=(name,)) as peer:
        run(main())


def test_cancelled_a_thousand_times_between_processes(run: Run[None], name: str) -> None:
    """Timers strike anywhere between joining a queue and owning the lock that others hand round."""
    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    say("started")
    while True:
        with lock: pass
    """

    async def main() -> None:
        lock = pidabs.Lock(name)
        before = open_descriptors(settled=True)
        taken = 0
        for number in range(1000):
            try:
                await asyncio.wait_for(lock.acquire_async(), number % 50 * 0.00002)
            except (asyncio.TimeoutError, TimeoutError):
                assert not lock.held
            else:
                taken += 1
                await lock.release_async()
        assert taken
        assert before == open_descriptors()
        await lock.acquire_async(timeout=10)
        await lock.release_async()

    with child(code, args=(name,)) as one, child(code, args=(name,)) as other:
        one.expect("started")
        other.expect("started")
        run(main())


def test_two_loops_that_release_to_each_other_do_not_stall(run: Run[None], name: str) -> None:
    """Each lets go of one lock while the other waits for it, and waits for the other's."""
    code = """
    import asyncio, pidabs
    async def pump(name):
        for _ in range(100):
            async with pidabs.Lock(name):
                await asyncio.sleep(0)
    async def main():
        await asyncio.gather(*(pump(name) for name in sys.argv[1:] * 3))
        say("done")
    say("started")
    asyncio.run(main())
    """
    with child(code, args=(name, name + "-2")) as one, child(code, args=(name, name + "-2")) as other:
        for process in (one, other):
            process.expect("started")
        for process in (one, other):
            assert process.read_line(60) == "done"


def test_loops_in_threads(name: str) -> None:
    inside: list[int] = []
    failed: list[BaseException] = []

    async def pump(number: int) -> None:
        for _ in range(100):
            async with pidabs.Lock(name):
                inside.append(number)
                assert inside == [number]
                await asyncio.sleep(0)
                inside.remove(number)

    def work(number: int) -> None:
        try:
            asyncio.run(pump(number))
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


def test_one_object_in_one_loop_after_the_other(name: str) -> None:
    lock = pidabs.Lock(name)

    async def use() -> None:
        async with lock:
            assert lock.held

    for _ in range(3):
        asyncio.run(use())
    with lock:
        assert lock.held


def test_body_that_raises_releases(run: Run[None], name: str) -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with pidabs.Lock(name):
                raise KeyError
        assert not pidabs.Lock(name).locked()

    run(main())


def test_coroutine_that_is_dropped_while_it_waits(name: str) -> None:
    """As when a loop is closed under its tasks."""
    before = open_descriptors(settled=True)
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        loop = asyncio.new_event_loop()
        lock = pidabs.Lock(name)
        waiting = [lock.acquire_async()]

        async def start() -> None:
            waiting[0].send(None)

        loop.run_until_complete(start())
        wait_until(lambda: lock.waiters() == 1)
        waiting.pop().close()
        loop.close()
        gc.collect()
        assert lock.waiters() == 0
        process.tell()
        process.expect("released")
    lock.acquire(timeout=10)
    lock.release()
    wait_until(lambda: before == open_descriptors())


def test_mirror_names_us_and_goes(run: Run[None], tmp_path: Any) -> None:
    async def main() -> None:
        path = tmp_path / "x.pid"
        async with pidabs.Lock(path, mirror=True):
            assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
        assert not path.exists()

    run(main())


@pytest.mark.parametrize("where", ["after add_reader", "before remove_reader"])
def test_a_reader_that_an_exception_left_behind(where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises beside the loop's own call: 1. the reader stays in the loop's map while its descriptor is
    closed, 2. the next connection gets that number, 3. the loop takes it for one that it watches already."""

    class Injected(BaseException):
        pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        lock = pidabs.Lock(name)
        with child(HOLD, args=(name,)) as holder:
            holder.expect("held")
            with monkeypatch.context() as patch:
                add, remove = loop.add_reader, loop.remove_reader
                added = []

                def add_and_raise(fd: int, *args: Any) -> None:
                    add(fd, *args)
                    added.append(fd)
                    if where == "after add_reader":
                        raise Injected

                def remove_or_raise(fd: int) -> bool:
                    if added:
                        raise Injected
                    return remove(fd)

                patch.setattr(loop, "add_reader", add_and_raise)
                patch.setattr(loop, "remove_reader", remove_or_raise)
                with pytest.raises(Injected):
                    await lock.acquire_async(0.01)
            waiting = asyncio.create_task(lock.acquire_async(20))
            await until(lambda: lock.waiters() == 1)
            await steps(3)
            holder.tell()
            await waiting
        await lock.release_async()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 10))
    finally:
        loop.close()
