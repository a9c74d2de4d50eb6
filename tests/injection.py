"""Exceptions at every point of acquire and release: what raises them, where, and what has to hold afterwards.

Tests use it, and so does `python -m stress signals`.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import kinds
import pidabs.compat
from support import Child, open_descriptors, wait_until

import pidabs
from pidabs import _descriptors, _diag

SOURCES = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (pidabs, pidabs.compat))
STALL = 1000  # ms
PATIENCE = 2.0

PEER = f"""
    import pidabs, select, socket, time
    from pidabs import _queue
    lock = pidabs.Lock(sys.argv[1])
    filler = socket.socket(socket.AF_UNIX)
    def listen():  # unbuffered, for the select below
        line = b""
        while not line.endswith(b"\\n"):
            byte = os.read(0, 1)
            if not byte: break
            line += byte
        return line.strip().decode()
    def take():
        began = time.monotonic()
        try:
            lock.acquire(timeout={PATIENCE})
        except pidabs.Timeout:
            return -1
        return int((time.monotonic() - began) * 1000)
    while command := listen():
        if command == "hold":
            lock.acquire(timeout={PATIENCE}); say("held")
        elif command == "hold, the queue full":
            backlog, _queue.BACKLOG = _queue.BACKLOG, 0
            lock.acquire(timeout={PATIENCE})
            _queue.BACKLOG = backlog
            filler = socket.socket(socket.AF_UNIX); filler.connect(lock.address); say("held")
        elif command == "let go":
            filler.close(); lock.release(); say("let go")
        elif command == "let go when waited for":
            filler.close()  # a dead entry, which the look for waiters drops
            while not lock.waiters() and not select.select([sys.stdin], [], [], 0.0005)[0]:
                pass
            lock.release(); listen(); say("let go")
        elif command == "take":
            took = take()
            if took >= 0: lock.release()
            say(took)
        elif command == "wait":
            say("waiting")
            took = take()
            say(took)
            if took >= 0: lock.release()
            say("done")
"""


class Injected(BaseException):
    pass


class InjectedTimeout(TimeoutError):
    """What the handlers of alarms usually raise: an OSError, which must not be taken for the kernel's."""


def is_ours(code: CodeType) -> bool:
    """Whether it is code of pidabs, out of which an exception gets to whoever called.

    Not so _settle: asyncio calls that, and keeps for itself what is raised in there, as in all of its own machinery.
    """
    return code.co_filename.startswith(SOURCES) and code.co_name != "_settle"


class Tracer:
    """Raises at the nth line (or opcode) that runs inside pidabs, and says where that was."""

    def __init__(self, nth: int, event: str = "line", kind: type[BaseException] = Injected) -> None:
        self.kind = kind
        self.nth = nth
        self.event = event
        self.seen = 0
        self.where = "nowhere"

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes = self.event == "opcode"
        return self._local

    def _local(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "line":
            frame.f_trace_opcodes = self.event == "opcode"  # CPython 3.13 takes it only now
        if event == self.event:
            self.seen += 1
            if self.seen == self.nth:
                code = frame.f_code
                file = os.path.basename(code.co_filename)
                self.where = f"{self.event} {self.nth}, {file}:{frame.f_lineno} {code.co_name}"
                raise self.kind(self.where)
        return self._local


class Scenario:
    """One call, what has to happen around it, and a peer process that takes part."""

    mirror = False

    def __init__(self, directory: Path, kind: str = "Lock") -> None:
        self.path = str(directory / f"{uuid.uuid4().hex}.pid")
        self.lock = kinds.ALL[kind](self.path, mirror=self.mirror)
        self.address = pidabs.Lock(self.path).address
        self.peer = Child(PEER, args=(self.path,))

    def close(self) -> None:
        self.peer.close()
        if isinstance(self.lock, kinds.Driven):
            self.lock.close()
        _descriptors.release_guard()  # a failure of one is not to be that of all others

    def ask(self, command: str) -> str:
        self.peer.tell(command)
        return self.peer.read_line()

    def before(self) -> None:
        pass

    def call(self) -> None:
        raise NotImplementedError

    def after(self) -> None:
        """What the others do, while the exception is alive; the lock is given up before, if it is held."""


class Acquire(Scenario):
    def call(self) -> None:
        self.lock.acquire()


class AcquireMirrored(Acquire):
    mirror = True


class TryInVain(Scenario):
    hold = "hold"

    def before(self) -> None:
        assert self.ask(self.hold) == "held"

    def call(self) -> None:
        self.lock.acquire(0)

    def after(self) -> None:
        assert self.ask("let go") == "let go"


class GiveUp(TryInVain):
    def call(self) -> None:
        self.lock.acquire(0.01)


class GiveUpOutside(GiveUp):
    hold = "hold, the queue full"


class Granted(TryInVain):
    def before(self) -> None:
        super().before()
        self.peer.tell("let go when waited for")

    def call(self) -> None:
        self.lock.acquire(PATIENCE)

    def after(self) -> None:
        assert self.ask("anyway") == "let go"


class GrantedFromOutside(Granted):
    """The queue is full, but not for long."""

    hold = "hold, the queue full"


class GrantedMirrored(Granted):
    mirror = True


class Release(Scenario):
    def before(self) -> None:
        self.lock.acquire()

    def call(self) -> None:
        self.lock.release()


class ReleaseMirrored(Release):
    mirror = True


class HandOver(Release):
    dead = 0

    def before(self) -> None:
        self.lock.acquire()
        for _ in range(self.dead):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.connect(self.address)
        assert self.ask("wait") == "waiting"
        wait_until(lambda: any(queue_of(self.address)), "the peer waits")

    def after(self) -> None:
        waited = int(self.peer.read_line())
        assert self.peer.read_line() == "done"
        assert waited >= 0, "the waiter never got the lock"
        assert waited < STALL, f"the waiter stalled: {waited} ms"


class HandOverPastTheDead(HandOver):
    dead = 2


def queue_of(address: bytes) -> list[int]:
    found = _diag.find(address)
    assert found is not None
    return _diag.queue(found.inode)


SCENARIOS = [
    Acquire,
    AcquireMirrored,
    Release,
    ReleaseMirrored,
    TryInVain,
    GiveUp,
    GiveUpOutside,
    Granted,
    GrantedFromOutside,
    GrantedMirrored,
    HandOver,
    HandOverPastTheDead,
]


def disturb(scenario: Scenario, call: Callable[[], None]) -> None:
    """Run `call`, out of which Injected may come, and check all that is promised."""
    before, strangers = open_descriptors(), []
    scenario.before()
    try:
        call()
    except (Injected, InjectedTimeout):  # and not what somebody has made of it
        everything_works(scenario)
        strangers = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]  # they get the numbers that have become free
    else:
        everything_works(scenario)
    # The exception is gone now, and with it the objects that it kept alive.
    for fd in strangers:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null", "a stranger's file was closed"
        os.close(fd)
    if isinstance(scenario.lock, kinds.Driven):
        gc.collect()  # asyncio leaves cycles of tasks and their exceptions
    assert open_descriptors() - before == set(), "descriptors have leaked"
    scenario.lock.acquire(PATIENCE)
    scenario.lock.release()
    left = [os.path.basename(scenario.path)] if getattr(scenario.lock, "leaves_file", False) else []
    assert os.listdir(os.path.dirname(scenario.path)) == left


def everything_works(scenario: Scenario) -> None:
    no_thread_hangs()
    if scenario.lock.held:
        scenario.lock.release()
    scenario.after()
    took = int(scenario.ask("take"))
    assert took >= 0, "lost: neither held by its object nor free"
    assert took < STALL, f"it took {took} ms until the lock was free"


def no_thread_hangs() -> None:
    def work() -> None:
        pidabs.Lock(uuid.uuid4().hex).acquire(0).release()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "another thread hangs"


def call_traced(trace: Callable[..., Any], function: Callable[[], object], opcodes: bool = False) -> None:
    """Call it under a tracing function that may raise.

    What that raises at the very end of an `except` leaves CPython handling the exception for good, and all that comes
    later has it for its context; but what a generator handles ends with it.
    """

    def steps() -> Iterator[None]:
        previous = sys.gettrace()
        sys._getframe().f_trace_opcodes = opcodes  # CPython 3.12 looks at this as tracing begins
        sys.settrace(trace)
        try:
            function()
        finally:
            sys.settrace(previous)
        yield

    next(steps())


def traced(scenario: Scenario, nth: int, event: str, kind: type[BaseException] = Injected) -> bool:
    """Inject at one point; False when the call ended before."""
    tracer = Tracer(nth, event, kind)

    def call() -> None:
        call_traced(tracer, scenario.call, opcodes=event == "opcode")

    try:
        disturb(scenario, call)
    except AssertionError as exc:
        raise AssertionError(f"after an exception at {tracer.where}: {exc}") from exc
    return tracer.seen >= nth
