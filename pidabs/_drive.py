"""Steps, and how they are driven: by blocking the thread, or by asyncio's event loop."""

from __future__ import annotations

from time import monotonic, sleep

from ._linux import POLLIN, poll, sched_yield

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Generator
    from typing import TypeVar

    T = TypeVar("T")
    CancelCheck = Callable[[], object]
    Block = Callable[[float], bool]
    """A system call that blocks for at most so many seconds: whether it succeeded.  An event loop cannot call it."""
    Want = tuple[int | Block, float]
    """What a step waits for: until a descriptor is readable (-1: none), or a call is over, at most so many seconds."""
    Steps = Generator[Want, bool, T]
    """Yields Wants, is sent whether the descriptor is readable, or the call has succeeded.  Stop it early with throw():
    with close() it cannot hand on a lock that it was granted."""

FOR_EVER = float("inf")

SOON = 0.020  # seconds in which a partner that has just been woken answers
_LONGEST_POLL = 1 << 30  # ms
_LOOKS = 60
_LONGEST_LOOK = 0.001  # seconds
_SHORTEST_INTERVAL = 0.001  # seconds; else a `poll_interval` of 0 spins


def remaining(deadline: float) -> float:
    """Seconds until a deadline of the monotonic clock."""
    return max(0.0, deadline - monotonic())


def jitter() -> float:
    """0.5 to 1.5, so that those who were refused together do not come back together."""
    return 0.5 + monotonic() * 1e6 % 1


class Cancelled(Exception):
    """A `cancel_check` said so."""


def run(steps: Steps[T], cancel_check: CancelCheck | None = None, poll_interval: float = FOR_EVER) -> T:
    """Drive steps by blocking this thread.  An exception goes into them, so that they can tidy up.

    `cancel_check` is asked before each wait, and every `poll_interval` seconds: when it is true, Cancelled goes in.
    """
    registered = -1
    try:
        fd, seconds = next(steps)
        while True:
            try:
                soon = seconds <= SOON
                if cancel_check is not None:
                    seconds = _checked(cancel_check, seconds, poll_interval)
                if not isinstance(fd, int):
                    ready = fd(seconds)
                elif fd < 0:
                    sleep(seconds)
                    ready = False
                else:
                    if fd != registered:
                        poller = watching(fd)
                        registered = fd
                    ready = soon and comes_soon(poller)
                    ready = ready or bool(
                        poller.poll(None if seconds == FOR_EVER else min(seconds * 1000, _LONGEST_POLL))
                    )
            except BaseException as exc:
                cancel_check = None
                fd, seconds = steps.throw(exc)
            else:
                fd, seconds = steps.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()  # an exception struck here, between two steps


async def run_async(steps: Steps[T], cancel_check: CancelCheck | None = None, poll_interval: float = FOR_EVER) -> T:
    """The same by the running event loop, without a thread.  Cancelling goes into the steps, too.

    It blocks the loop only while a partner answers that is awake on another CPU: see `comes_soon`.
    """
    try:
        fd, seconds = next(steps)
        while True:
            try:
                if not isinstance(fd, int):
                    fd, seconds = -1, 0.0
                ready = fd >= 0 and seconds <= SOON and comes_soon(watching(fd))
                if cancel_check is not None:
                    seconds = _checked(cancel_check, seconds, poll_interval)
                ready = ready or await _event(fd, seconds)
            except BaseException as exc:
                cancel_check = None
                fd, seconds = steps.throw(exc)
            else:
                fd, seconds = steps.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()


def _checked(cancel_check: CancelCheck, seconds: float, poll_interval: float) -> float:
    """How long to wait before the next check.  The steps look at the clock themselves, and wait on."""
    if cancel_check():
        raise Cancelled
    return min(seconds, max(poll_interval, _SHORTEST_INTERVAL))


async def _event(fd: int, seconds: float) -> bool:
    import asyncio  # whoever calls this has it

    if fd < 0:
        await asyncio.sleep(seconds)
        return False
    loop = asyncio.get_running_loop()
    event = loop.create_future()
    timer = None
    # A signal handler's exception may have left a reader behind, here or below.  Then the loop takes this number for
    # one that it watches already, and would never wake us.
    loop.remove_reader(fd)
    try:
        loop.add_reader(fd, _settle, event, True)
        if seconds != FOR_EVER:
            timer = loop.call_later(seconds, _settle, event, False)
        return bool(await event)
    finally:
        loop.remove_reader(fd)
        if timer is not None:
            timer.cancel()


def _settle(event: Future[bool], ready: bool) -> None:
    if not event.done():
        event.set_result(ready)


def current_task() -> object:
    """The task of asyncio that runs this."""
    import asyncio

    return asyncio.current_task()


def watching(fd: int) -> poll:
    poller = poll()
    poller.register(fd, POLLIN)
    return poller


def comes_soon(poller: poll) -> bool:
    """Look for some 50 us before sleeping: a partner on another CPU answers faster than we would fall asleep and wake.

    On the same CPU the yield lets it run, and anybody else there, too.  Takes a fifth off a handoff between two CPUs
    (`python -m bench`).
    """
    end = monotonic() + _LONGEST_LOOK
    for _ in range(_LOOKS):
        if poller.poll(0):
            return True
        if monotonic() > end:
            break
        sched_yield()
    return False
