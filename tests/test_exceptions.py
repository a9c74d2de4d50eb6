"""Exceptions at every point of acquire and release, as a signal handler may raise them.

After each one: the lock is held by its object or free, also while the exception is still being handled; who waits gets
it; no descriptor has leaked once the exception is gone; nothing of a stranger was closed; the object works on; and no
other thread hangs.  `PIDABS_INJECT=all` tries every opcode and runs the timed part ten times as long.
"""

from __future__ import annotations

import _socket
import gc
import os
import random
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import DEADLINE, Child, child, must_block, open_descriptors, wait_until

import pidabs
from pidabs import _descriptors, _diag, _lock, _ownership, _queue

pytestmark = [
    # A socket that an exception drops on its way into a variable closes itself, which Python remarks upon; and an
    # injected exception that hits a finalizer cannot go anywhere.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EVERYTHING = os.environ.get("PIDABS_INJECT") == "all"
CORE = os.path.dirname(pidabs.__file__) + os.sep
STALL = 1000  # ms
PATIENCE = 2.0

PEER = f"""
    import pidabs, select, time
    lock = pidabs.Lock(sys.argv[1])
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
        elif command == "let go":
            lock.release(); say("let go")
        elif command == "let go when waited for":
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


class Tracer:
    """Raises at the nth line (or opcode) that runs inside pidabs, and says where that was."""

    def __init__(self, nth: int, event: str = "line", kind: type[BaseException] = Injected) -> None:
        self.kind = kind
        self.nth = nth
        self.event = event
        self.seen = 0
        self.where = "nowhere"

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(CORE):
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
                self.where = (
                    f"{self.event} {self.nth}, {os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
                )
                raise self.kind(self.where)
        return self._local


class Scenario:
    """One call, what has to happen around it, and a peer process that takes part."""

    mirror = False

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / f"{uuid.uuid4().hex}.pid")
        self.lock = pidabs.Lock(self.path, mirror=self.mirror)
        self.peer = Child(PEER, args=(self.path,))

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
    def before(self) -> None:
        assert self.ask("hold") == "held"

    def call(self) -> None:
        try:
            self.lock.acquire(0)
        except pidabs.Timeout:
            pass

    def after(self) -> None:
        assert self.ask("let go") == "let go"


class GiveUp(TryInVain):
    def call(self) -> None:
        try:
            self.lock.acquire(0.01)
        except pidabs.Timeout:
            pass


class Granted(TryInVain):
    def before(self) -> None:
        super().before()
        self.peer.tell("let go when waited for")

    def call(self) -> None:
        self.lock.acquire(PATIENCE)

    def after(self) -> None:
        assert self.ask("anyway") == "let go"


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
                gone.connect(self.lock.address)
        assert self.ask("wait") == "waiting"
        wait_until(lambda: any(queue_of(self.lock)), "the peer waits")

    def after(self) -> None:
        waited = int(self.peer.read_line())
        assert self.peer.read_line() == "done"
        assert waited >= 0, "the waiter never got the lock"
        assert waited < STALL, f"the waiter stalled: {waited} ms"


class HandOverPastTheDead(HandOver):
    dead = 2


def queue_of(lock: pidabs.Lock) -> list[int]:
    found = _diag.find(lock.address)
    assert found is not None
    return _diag.queue(found.inode)


SCENARIOS = [
    Acquire,
    AcquireMirrored,
    TryInVain,
    GiveUp,
    Granted,
    GrantedMirrored,
    Release,
    ReleaseMirrored,
    HandOver,
    HandOverPastTheDead,
]


@pytest.fixture
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    made: Scenario = request.param(tmp_path)
    yield made
    made.peer.close()
    _descriptors._release_guard()  # a failure of one test is not to be that of all others


def disturb(scenario: Scenario, call: Callable[[], None]) -> None:
    """Run `call`, out of which Injected may come, and check all that is promised."""
    scenario.before()
    before = open_descriptors()
    if scenario.lock.held:
        before = {entry for entry in before if not entry.startswith(f"{scenario.lock.fileno()} ")}
    try:
        call()
    except (Injected, InjectedTimeout, pidabs.LockError):
        everything_works(scenario)
        strangers = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]  # they get the numbers that have become free
    else:
        everything_works(scenario)
        strangers = []
    # The exception is gone now, and with it the objects that it kept alive.
    for fd in strangers:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null", "a stranger's file was closed"
        os.close(fd)
    assert open_descriptors() - before == set(), "descriptors have leaked"
    scenario.lock.acquire(PATIENCE)
    scenario.lock.release()
    assert os.listdir(os.path.dirname(scenario.path)) == []


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


def traced(scenario: Scenario, nth: int, event: str, kind: type[BaseException] = Injected) -> bool:
    """Inject at one point; False when the call ended before."""
    tracer = Tracer(nth, event, kind)

    def call() -> None:
        previous = sys.gettrace()
        sys._getframe().f_trace_opcodes = event == "opcode"  # CPython 3.12 looks at this as tracing begins
        sys.settrace(tracer)
        try:
            scenario.call()
        finally:
            sys.settrace(previous)

    try:
        disturb(scenario, call)
    except AssertionError as exc:
        raise AssertionError(f"after an exception at {tracer.where}: {exc}") from exc
    return tracer.seen >= nth


@pytest.mark.parametrize("kind", [Injected, InjectedTimeout])
@pytest.mark.parametrize("scenario", SCENARIOS, indirect=True)
def test_exception_at_every_line(scenario: Scenario, kind: type[BaseException]) -> None:
    nth = 1
    while traced(scenario, nth, "line", kind):
        nth += 1
    assert nth > 15


@pytest.mark.parametrize("scenario", SCENARIOS, indirect=True)
def test_exception_at_opcodes(scenario: Scenario) -> None:
    stride = 1 if EVERYTHING else 23
    nth = first = random.randrange(stride) + 1
    try:
        while traced(scenario, nth, "opcode"):
            nth += stride
    except AssertionError:
        print(f"first opcode {first}, stride {stride}")
        raise
    assert nth > 30


# Between a system call and the assignment of its result ---------------------------------------------------------------

CALLS = [
    "bind",
    "listen",
    "connect",
    "send",
    "_accept",
    "sendmsg",
    "recvmsg",
    "recv",
    "shutdown",
    "close",
    "getsockname",
]


class Interrupted:
    """Lets a method of our sockets do its work, then raises instead of returning: once, at its nth call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, nth: int = 1) -> None:
        self.left = nth
        self.raised = False
        original = getattr(_socket.socket, method)

        def interrupted(sock: Any, *args: Any) -> Any:
            result = original(sock, *args)
            if threading.current_thread() is threading.main_thread():
                self.left -= 1
                if self.left == 0:
                    self.raised = True
                    raise Injected(method)
            return result

        monkeypatch.setattr(_descriptors.Socket, method, interrupted, raising=False)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("scenario", SCENARIOS, indirect=True)
def test_exception_between_a_system_call_and_its_result(
    scenario: Scenario, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nth = 1
    raised = True
    while raised:
        with monkeypatch.context() as patch:

            def call(patch: pytest.MonkeyPatch = patch, nth: int = nth) -> None:
                nonlocal raised
                interrupted = Interrupted(patch, method, nth)
                try:
                    scenario.call()
                finally:
                    raised = interrupted.raised
                    patch.undo()

            try:
                disturb(scenario, call)
            except AssertionError as exc:
                raise AssertionError(f"after an exception out of call {nth} of {method}: {exc}") from exc
        nth += 1
        assert nth < 100


@pytest.mark.parametrize(
    ("scenario", "method"),
    [(Acquire, "bind"), (Granted, "recvmsg"), (GiveUp, "connect"), (HandOver, "_accept"), (HandOver, "sendmsg")],
    indirect=["scenario"],
)
def test_second_exception_during_the_tidy_up(scenario: Scenario, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first as above; the second at the nth line of the tidy-up that it sets off, for every n.

    But for the lines of acquire and release: nobody can tidy up after a second exception that strikes before a tidy-up
    has begun.
    """
    nth = 1
    while True:
        tracer = Tracer(nth)
        scenario.before()
        before = open_descriptors()
        if scenario.lock.held:
            before = {entry for entry in before if not entry.startswith(f"{scenario.lock.fileno()} ")}
        with monkeypatch.context() as patch:
            interrupted = Interrupted(patch, method)
            call_and_trace_after(scenario, tracer, interrupted)
        try:
            everything_works(scenario)
            assert open_descriptors() - before == set(), "descriptors have leaked"
        except AssertionError as exc:
            raise AssertionError(f"after {method} and a second exception at {tracer.where}: {exc}") from exc
        if tracer.seen < nth:
            break
        nth += 1
    assert nth > 10


TIDIERS = (vars(_lock), vars(_ownership))
"""What runs before the tidy-up has begun, or in between; nothing guards that."""


def call_and_trace_after(scenario: Scenario, tracer: Tracer, interrupted: Interrupted) -> None:
    def armed(frame: FrameType, event: str, arg: Any) -> Any:
        return only_after

    def only_after(frame: FrameType, event: str, arg: Any) -> Any:
        if interrupted.raised and frame.f_code.co_filename.startswith(CORE) and frame.f_globals not in TIDIERS:
            tracer._local(frame, event, arg)
        return only_after

    previous = sys.gettrace()
    sys.settrace(armed)
    try:
        scenario.call()
    except BaseException:
        # Not always the first: CPython 3.11 mixes up what is being handled when tracing raises as a handler is entered.
        assert interrupted.raised
    finally:
        sys.settrace(previous)


# Real signals ---------------------------------------------------------------------------------------------------------

SIGNALLED = """
    import gc, random, signal, time, warnings
    import pidabs
    warnings.simplefilter("ignore")
    seed, mode, name, count = sys.argv[1:]
    random.seed(seed)
    class Injected(BaseException): pass
    armed = False
    def handler(*_):
        if armed: raise Injected  # else it comes late, from a timer that has been stopped
    signal.signal(signal.SIGALRM, handler)
    lock = pidabs.Lock(name, mirror="mirrored" in mode)
    def descriptors(): return sorted(os.listdir("/proc/self/fd"))
    def once():
        try:
            lock.acquire(random.choice([0, 0.0005, 5]) if "contended" in mode else None)
        except pidabs.Timeout:
            return
        if random.random() < 0.3: time.sleep(0.0001)
        lock.release()
    once()
    before = descriptors()
    hits = 0
    longest = 0.0
    longest_delay = 1.5e-3 if "contended" in mode else 2.5e-4 if "mirrored" in mode else 6e-5
    for i in range(int(count)):
        began = time.monotonic()
        try:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest_delay))
                once()
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Injected:
            hits += 1
        longest = max(longest, time.monotonic() - began)
        if lock.held:
            lock.release()
        if descriptors() != before:
            gc.collect()
            if descriptors() != before:
                links = [f"/proc/self/fd/{n}" for n in descriptors()]
                say("leaked", "at", i, [os.readlink(link) for link in links if os.path.lexists(link)])
                break
    else:
        say("fine", hits, int(longest * 1000))
    if "mirrored" in mode and os.path.exists(name): say("mirror left behind")
    say("end")
    listen()
"""

RIVAL = """
    import time
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    import select
    longest = 0.0
    say("going")
    while not select.select([0], [], [], 0)[0]:
        began = time.monotonic()
        lock.acquire()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.0002)
        lock.release()
    say(int(longest * 1000))
"""


@pytest.mark.parametrize("mode", ["alone", "alone, mirrored", "contended", "contended, mirrored"])
def test_signal_handler_that_raises_at_any_time(mode: str, tmp_path: Path) -> None:
    path = str(tmp_path / "x.pid")
    seed = str(random.getrandbits(32))
    count = (700 if "contended" in mode else 4000) * (10 if EVERYTHING else 1)
    rivals = [Child(RIVAL, args=(path,)) for _ in range(2 if "contended" in mode else 0)]
    print("seed", seed)
    try:
        for rival in rivals:
            rival.expect("going")
        with child(SIGNALLED, args=(seed, mode, path, str(count))) as process:
            verdict = process.read_line(deadline=90)
            assert verdict.startswith("fine"), verdict
            assert int(verdict.split()[1]) > count // 10, "hardly any exceptions were raised: the timer is off the mark"
            process.expect("end")
            for rival in rivals:
                rival.tell()
                assert int(rival.read_line()) < STALL, "a rival stalled"
            pidabs.Lock(path).acquire(PATIENCE).release()  # while the process that was interrupted still lives
    finally:
        for rival in rivals:
            rival.close()


WAIT = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    say("waiting")
    try:
        lock.acquire()
    except KeyboardInterrupt:
        say("interrupted, held" if lock.held else "interrupted")
        listen()
    else:
        say("acquired")
"""


def test_keyboard_interrupt_in_the_queue(name: str) -> None:
    """It leaves the queue at once; who stands behind it gets the lock."""
    lock = pidabs.Lock(name).acquire()
    with child(WAIT, args=(name,)) as first:
        wait_until(lambda: lock.waiters() == 1, "the first waits")
        with child(WAIT, args=(name,)) as second:
            wait_until(lambda: lock.waiters() == 2, "the second waits")
            first.expect("waiting")
            first.signal(signal.SIGINT)
            first.expect("interrupted")
            assert lock.waiters() == 1
            lock.release()
            second.expect("waiting")
            second.expect("acquired")
            first.tell()


def test_keyboard_interrupt_while_a_grant_is_under_way(name: str) -> None:
    """Whatever Ctrl-C hits around a release: the waiter has the lock, or another one can take it."""
    for _ in range(20):
        lock = pidabs.Lock(name).acquire()
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("waiting")
            wait_until(lambda lock=lock: lock.waiters() == 1, "it waits")
            waiter.signal(signal.SIGINT)
            lock.release()
            assert waiter.read_line() in ("interrupted", "acquired")
            if waiter.process.poll() is None:
                waiter.tell()
            lock.acquire(PATIENCE).release()


THREADS = """
    import random, signal, threading, time
    import pidabs
    seed, name, seconds = sys.argv[1:]
    random.seed(seed)
    class Injected(BaseException): pass
    def handler(*_): raise Injected
    signal.signal(signal.SIGALRM, handler)
    ended = threading.Event()
    wrong = []
    turns = [0, 0]
    def work(which):
        lock = pidabs.Lock(name)
        try:
            while not ended.is_set():
                lock.acquire(10)
                turns[which] += 1
                if not lock.held: wrong.append("taken away after acquire")
                time.sleep(0.0001)
                if not lock.held: wrong.append("taken away while held")
                lock.release()
        except BaseException as exc:
            wrong.append(repr(exc))
    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(2)]
    for thread in threads: thread.start()
    mine = pidabs.Lock(name)
    hits = 0
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end and not wrong:
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2e-3))
                mine.acquire()
                mine.release()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Injected:
            hits += 1
        if mine.held: mine.release()
    ended.set()
    for thread in threads:
        thread.join(5)
        if thread.is_alive(): wrong.append("a thread hangs")
    say(hits, min(turns), wrong)
"""


def test_sweep_of_one_thread_leaves_the_others_their_lock(name: str) -> None:
    seed = str(random.getrandbits(32))
    print("seed", seed)
    with child(THREADS, args=(seed, name, "15" if EVERYTHING else "1.5")) as process:
        hits, turns, wrong = process.read_line(deadline=40).split(" ", 2)
        assert wrong == "[]"
        assert int(hits) > 20
        assert int(turns) > 20


FORKED = """
    import signal, threading
    import pidabs
    class Injected(BaseException): pass
    def handler(*_): raise Injected
    signal.signal(signal.SIGALRM, handler)
    sys.unraisablehook = lambda _: None  # Python prints what is raised in a fork hook, and drops it
    ballast = bytearray(64 << 20)
    for at in range(0, len(ballast), 4096): ballast[at] = 1  # a fork that takes some time
    lock = pidabs.Lock(sys.argv[1]).acquire()
    for i in range(60):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + i * 5e-5)
                if (pid := os.fork()) == 0: os._exit(0)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Injected:
            pass
        thread = threading.Thread(target=lambda: pidabs.Lock(sys.argv[1] + "-other").acquire(0).release(), daemon=True)
        thread.start()
        thread.join(5)
        if thread.is_alive():
            say("another thread hangs, fork", i)
            os._exit(1)
    lock.release()
    say("fine")
    os._exit(0)  # a child that was interrupted before its _exit has come here, too
"""


def test_signal_handler_that_raises_during_a_fork(name: str) -> None:
    """What arrives during fork() is raised in our hook, where Python drops it: the guard must not stay locked."""
    with child(FORKED, args=(name,)) as process:
        process.expect("fine")
    pidabs.Lock(name).acquire(PATIENCE).release()


PENDING = """
    import signal
    from functools import partial
    from operator import methodcaller
    import pidabs
    class Injected(BaseException): pass
    def handler(*_): raise Injected
    signal.signal(signal.SIGALRM, handler)
    dropped = []
    sys.unraisablehook = dropped.append
    lock = pidabs.Lock(sys.argv[1]).acquire()
    inode = os.readlink(f"/proc/self/fd/{lock.fileno()}")
    # No bytecode runs between the timer and the fork, so the signal is pending as the first hook begins.
    timer, busy = partial(signal.setitimer, signal.ITIMER_REAL, 1e-5), partial(sum, range(300000))
    _, _, pid = map(methodcaller("__call__"), (timer, busy, os.fork))
    if pid == 0:
        copies = []
        for fd in os.listdir("/proc/self/fd"):
            try: copies.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError: pass
        say("the child has a copy" if inode in copies else "the child has none")
        os._exit(0)
    os.waitpid(pid, 0)
    say("still held" if lock.held and dropped else "not tested")
"""


def test_signal_that_is_pending_as_fork_is_called(name: str) -> None:
    with child(PENDING, args=(name,)) as process:
        process.expect("the child has none")
        process.expect("still held")


# Steps that are dropped -----------------------------------------------------------------------------------------------


@pytest.fixture
def peer(name: str) -> Iterator[Child]:
    with child(PEER, args=(name,)) as process:
        yield process


def in_queue(name: str) -> tuple[Any, list[Any], int]:
    lock = pidabs.Lock(name)
    hand: list[Any] = []
    steps = _queue.wait(_descriptors.open_socket(), lock.address, time.monotonic() + DEADLINE, hand)
    fd, _ = next(steps)
    while fd < 0:  # the peer was between bind and listen
        fd, _ = steps.send(False)
    return steps, hand, fd


def readable(fd: int) -> None:
    assert select.select([fd], [], [], DEADLINE)[0], "nothing came"


def takes(peer: Child) -> None:
    peer.tell("take")
    took = int(peer.read_line())
    assert 0 <= took < STALL


def test_dropped_waiter_leaves_the_queue(name: str, peer: Child) -> None:
    peer.tell("hold")
    peer.expect("held")
    before = open_descriptors()
    steps, hand, _ = in_queue(name)
    del steps
    assert not hand
    assert open_descriptors() == before
    peer.tell("let go")
    peer.expect("let go")
    takes(peer)


def test_waiter_dropped_with_a_grant_to_read_frees_the_lock(name: str, peer: Child) -> None:
    peer.tell("hold")
    peer.expect("held")
    before = open_descriptors()
    steps, hand, fd = in_queue(name)
    peer.tell("let go")
    readable(fd)
    fd, _ = steps.send(True)  # the offer is accepted
    readable(fd)
    peer.expect("let go")
    steps.close()
    assert len(hand) == 1, "the grant was lost on the way"
    hand.pop()
    gc.collect()
    assert open_descriptors() == before
    takes(peer)


def test_interrupted_waiter_hands_the_grant_on(name: str, peer: Child) -> None:
    """Unlike a dropped one it can: the next in the queue gets it, without a race."""
    peer.tell("hold")
    peer.expect("held")
    steps, hand, fd = in_queue(name)
    next_one = pidabs.Lock(name)
    finish = must_block(lambda: next_one.acquire(DEADLINE))
    peer.tell("let go")
    readable(fd)
    fd, _ = steps.send(True)
    readable(fd)
    peer.expect("let go")
    with pytest.raises(Injected):
        steps.throw(Injected())
    finish()
    assert not hand
    next_one.release()


def test_dropped_release_frees_the_lock(name: str, peer: Child) -> None:
    before = open_descriptors()
    hand: list[Any] = []
    lock = pidabs.Lock(name)
    listener = _descriptors.open_socket()
    assert _queue.bind(listener, lock.address)
    peer.tell("wait")
    peer.expect("waiting")
    wait_until(lambda: any(queue_of(lock)), "the peer waits")
    steps = _queue.hand_over(listener, hand)
    next(steps)  # offered
    del steps
    assert open_descriptors() == before
    assert 0 <= int(peer.read_line()) < STALL
    peer.expect("done")


# Strangers ------------------------------------------------------------------------------------------------------------


def test_sweep_leaves_strangers_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, sockets of other kinds, and even of our very name but another type; blocking stays blocking."""
    lock = pidabs.Lock(name)
    pair = socket.socketpair()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagram.bind(lock.address)
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets.bind(lock.address)
    packets.listen()
    similar = socket.socket(socket.AF_UNIX)
    similar.bind(lock.address + b"x")
    similar.listen()
    internet = socket.socket()
    sockets = [*pair, datagram, packets, similar, internet]
    reader, writer = os.pipe()
    before = {entry: os.get_blocking(int(entry.split()[0])) for entry in open_descriptors()}
    assert set(before.values()) == {True}
    socket.setdefaulttimeout(5)
    try:
        with monkeypatch.context() as patch:
            Interrupted(patch, "bind")
            with pytest.raises(Injected):
                lock.acquire()
    finally:
        socket.setdefaulttimeout(None)
    assert {entry: os.get_blocking(int(entry.split()[0])) for entry in open_descriptors()} == before
    assert [sock.gettimeout() for sock in sockets] == [None] * len(sockets)
    for sock in sockets:
        sock.close()
    os.close(reader)
    os.close(writer)
    lock.acquire(0).release()


def test_sweep_leaves_an_inherited_listener(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pidabs run` leaves the listener open over the exec; the program may try the same lock, and be interrupted."""
    lock = pidabs.Lock(name)
    with socket.socket(socket.AF_UNIX) as inherited:
        inherited.bind(lock.address)
        inherited.listen()
        inherited.set_inheritable(True)
        with monkeypatch.context() as patch:
            Interrupted(patch, "connect")
            with pytest.raises(Injected):
                lock.acquire(1)
        assert inherited.getsockname() == lock.address
        with pytest.raises(pidabs.Timeout):
            lock.acquire(0)
    lock.acquire(0).release()


NO_DESCRIPTORS = """
    import pidabs
    from pidabs import _descriptors
    from _socket import socket as raw
    class Injected(BaseException): pass
    def interrupted(sock, *args):
        raw.recvmsg(sock, *args)
        del _descriptors.Socket.recvmsg
        raise Injected
    lock = pidabs.Lock(sys.argv[1])
    filling = []
    import _posixsubprocess
    say("ready")
    listen()
    libc = __import__("ctypes").CDLL(None)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 3  # the connection, and the grant
    assert libc.setrlimit(7, (__import__("ctypes").c_ulong * 2)(limit, 4096)) == 0
    while True:
        try: filling.append(os.dup(0))
        except OSError: break
    os.close(filling.pop()); os.close(filling.pop())
    _descriptors.Socket.recvmsg = interrupted
    if sys.argv[2] == "no /proc":
        def listdir(_): raise OSError(2, "No such file or directory")
        os.listdir = listdir
    say("waiting")
    try:
        lock.acquire(10)
    except Injected:
        say("interrupted")
        listen()
"""


@pytest.mark.parametrize("kind", ["full", "no /proc"])
def test_sweep_with_all_descriptors_taken(name: str, kind: str, peer: Child) -> None:
    """The grant took the last descriptor, and its number is lost."""
    lock = pidabs.Lock(name).acquire()
    with child(NO_DESCRIPTORS, args=(name, kind)) as process:
        process.expect("ready")
        process.tell()
        process.expect("waiting")
        wait_until(lambda: lock.waiters() == 1, "it waits")
        lock.release()
        process.expect("interrupted")
        takes(peer)
        process.tell()
