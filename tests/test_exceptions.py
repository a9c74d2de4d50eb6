"""Exceptions at every point of acquire and release, as a signal handler may raise them.

After each one: the lock is held by its object or free, also while the exception is still being handled; who waits gets
it; no descriptor has leaked once the exception is gone; nothing of a stranger was closed; the object works on; and no
other thread hangs.  `PIDABS_INJECT=all` tries every opcode and runs the timed part ten times as long.
"""

from __future__ import annotations

import _socket
import asyncio
import gc
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import kinds
import pytest
import timed
from injection import (
    PATIENCE,
    PEER,
    SCENARIOS,
    STALL,
    Acquire,
    AcquireMirrored,
    GiveUp,
    Granted,
    HandOver,
    Injected,
    InjectedTimeout,
    ReleaseMirrored,
    Scenario,
    Tracer,
    call_traced,
    disturb,
    everything_works,
    is_ours,
    queue_of,
    traced,
)
from support import DEADLINE, Child, child, inode, must_block, open_descriptors, state, wait_until

import pidabs
from pidabs import _descriptors, _handover, _inherit, _lock, _ownership, _queue

pytestmark = [
    pytest.mark.impatient,
    # A socket that an exception drops on its way into a variable closes itself, which Python remarks upon; and an
    # injected exception that hits a finalizer cannot go anywhere.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EVERYTHING = os.environ.get("PIDABS_INJECT") == "all"
OTHERS = [kind for kind in kinds.ALL if kind != "Lock"]


@pytest.fixture
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    make, *kind = request.param if isinstance(request.param, tuple) else (request.param,)
    made: Scenario = make(tmp_path, *kind)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [Injected, InjectedTimeout])
@pytest.mark.parametrize("scenario", SCENARIOS, indirect=True)
def test_exception_at_every_line(scenario: Scenario, kind: type[BaseException]) -> None:
    nth = 1
    while traced(scenario, nth, "line", kind):
        nth += 1
    assert nth > 15


@pytest.mark.parametrize(
    "scenario", [(make, kind) for kind in OTHERS for make in (AcquireMirrored, ReleaseMirrored)], indirect=True
)
def test_exception_at_every_line_of_the_others(scenario: Scenario) -> None:
    """`python -m stress signals` does it in every scenario."""
    nth = 1
    while traced(scenario, nth, "line", InjectedTimeout):
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

# Not _accept and recvmsg: no bytecode runs between these and the list that has what they return.
CALLS = [
    "bind",
    "listen",
    "connect",
    "send",
    "sendmsg",
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
    [(Acquire, "bind"), (Granted, "listen"), (GiveUp, "connect"), (HandOver, "recv"), (HandOver, "sendmsg")],
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
        before = open_descriptors()
        scenario.before()
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
        if interrupted.raised and is_ours(frame.f_code) and frame.f_globals not in TIDIERS:
            tracer._local(frame, event, arg)
        return only_after

    try:
        call_traced(armed, scenario.call)
    except BaseException:
        # Not always the first: CPython 3.11 mixes up what is being handled when tracing raises as a handler is entered.
        assert interrupted.raised


def test_second_exception_is_raised_when_all_is_tidied_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Ctrl-C is pressed while an alarm's exception is on its way."""
    sweep = _descriptors.sweep
    before = open_descriptors(settled=True)
    lock = pidabs.Lock(name)

    def interrupted(*arguments: Any) -> None:
        patch.setattr(_descriptors, "sweep", sweep)
        raise KeyboardInterrupt

    def alarmed(*arguments: Any) -> None:
        raise TimeoutError("alarm")

    with monkeypatch.context() as patch:
        patch.setattr(_descriptors, "sweep", interrupted)
        patch.setattr(_queue, "bind", alarmed)
        with pytest.raises(KeyboardInterrupt) as caught:
            lock.acquire()
    assert str(caught.value.__context__) == "alarm"
    assert open_descriptors() == before
    with lock:
        assert lock.held


class Interrupting(dict[int, Any]):
    """Raises once, just after an entry has been taken out."""

    armed = True

    def _interrupt(self) -> None:
        if self.armed:
            self.armed = False
            raise Injected

    def pop(self, *arguments: Any) -> Any:
        popped = super().pop(*arguments)
        self._interrupt()
        return popped

    def __delitem__(self, number: int) -> None:
        super().__delitem__(number)
        self._interrupt()


def test_listener_that_is_getting_its_high_number_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed by the sweep, and not again when the exception is dropped: by then the number is the next listener's."""
    known = Interrupting(_descriptors.known)
    monkeypatch.setattr(_descriptors, "known", known)
    monkeypatch.setattr(_inherit, "known", known)
    lock = pidabs.Lock(tmp_path / "x.pid", mirror=True)
    with pytest.raises(Injected) as caught:
        lock.acquire()
    lock.acquire(0)
    del caught
    gc.collect()
    assert lock.held
    lock.release()


# Real signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"), [*(("Lock", mode) for mode in timed.MODES), *((kind, timed.MODES[-1]) for kind in OTHERS)]
)
def test_signal_handler_that_raises_at_any_time(kind: str, mode: str, tmp_path: Path) -> None:
    seed = str(random.getrandbits(32))
    print("seed", seed)
    timed.strike(kind, mode, str(tmp_path / "x.pid"), 2000 if EVERYTHING else 100, seed)


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


def is_granted(steps: Any, fd: int, peer: Child) -> None:
    """The peer lets go: the steps have answered its offer, and its grant has come."""
    peer.tell("let go")
    readable(fd)
    fd, _ = steps.send(True)
    readable(fd)
    peer.expect("let go")


def takes(peer: Child) -> None:
    peer.tell("take")
    took = int(peer.read_line())
    assert 0 <= took < STALL


def test_dropped_waiter_leaves_the_queue(name: str, peer: Child) -> None:
    peer.tell("hold")
    peer.expect("held")
    before = open_descriptors(settled=True)
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
    before = open_descriptors(settled=True)
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
    is_granted(steps, fd, peer)
    with pytest.raises(Injected):
        steps.throw(Injected())
    finish()
    assert not hand
    next_one.release()


def test_interrupted_waiter_hands_the_grant_on_past_one_that_is_stopped(name: str, peer: Child) -> None:
    peer.tell("hold")
    peer.expect("held")
    before = inode(name)
    steps, hand, fd = in_queue(name)
    with child(PEER, args=(name,)) as stopped:
        stopped.tell("take")
        wait_until(lambda: len(queue_of(pidabs.Lock(name).address)) == 2, "the second waits")
        stopped.signal(signal.SIGSTOP)
        wait_until(lambda: state(stopped.pid) == "T", "the second is stopped")
        next_one = pidabs.Lock(name)
        finish = must_block(lambda: next_one.acquire(DEADLINE))
        is_granted(steps, fd, peer)
        asked, _ = steps.throw(Injected())
        assert asked >= 0
        with pytest.raises(Injected):
            steps.send(False)
        finish()
        assert inode(name) == before
    assert not hand
    next_one.release()


def test_interrupted_waiter_lets_go_of_a_listener_that_another_program_made_blocking(name: str) -> None:
    steps: Any = None
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(pidabs.Lock(name).address)
        holder.listen(10)
        steps, _, _ = in_queue(name)
        with holder.accept()[0] as conn:
            conn.send(b"O")
            steps.send(True)
            socket.send_fds(conn, [b"L"], [holder.fileno()])
            holder.close()
            with pytest.raises(Injected):  # and does not wait for somebody to connect
                steps.throw(Injected())
    assert not pidabs.Lock(name).locked()


def test_dropped_release_frees_the_lock(name: str, peer: Child) -> None:
    before = open_descriptors(settled=True)
    hand: list[Any] = []
    lock = pidabs.Lock(name)
    listener = _descriptors.open_socket()
    assert _queue.bind(listener, lock.address)
    peer.tell("wait")
    peer.expect("waiting")
    wait_until(lambda: any(queue_of(lock.address)), "the peer waits")
    peer.signal(signal.SIGSTOP)
    wait_until(lambda: state(peer.pid) == "T", "the peer is stopped")
    steps = _handover.hand_over(listener, hand)
    assert steps is not None
    next(steps)  # offered
    del steps
    assert open_descriptors() == before
    peer.signal(signal.SIGCONT)
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
    assert all(os.get_blocking(sock.fileno()) for sock in sockets)
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


AUDITED = """
    import pidabs
    from pidabs import _descriptors
    class Injected(BaseException): pass
    def hook(event, args):
        if event == "socket.__new__" and _descriptors._arriving:
            raise Injected
    sys.addaudithook(hook)
    before = os.listdir("/proc/self/fd")
    lock = pidabs.Lock(sys.argv[1], mirror=sys.argv[2] == "lifted")
    say("asks")
    try:
        lock.acquire()
    except Injected:
        pass
    say(lock.held, os.listdir("/proc/self/fd") == before)
    listen()
"""


@pytest.mark.parametrize("way", ["granted", "lifted"])
def test_audit_hook_that_raises_as_a_socket_is_made_of_a_number(tmp_path: Path, way: str) -> None:
    """As a signal handler may in one: filelock has a hook, in Python, which runs in the middle of our calls into C."""
    path = str(tmp_path / "x")
    lock = pidabs.Lock(path)
    if way == "granted":
        lock.acquire()
    with child(AUDITED, args=(path, way)) as process:
        process.expect("asks")
        if way == "granted":
            wait_until(lambda: lock.waiters() == 1, "it waits")
            lock.release()
        process.expect("False True")
        lock.acquire(PATIENCE).release()
        assert os.listdir(tmp_path) == []
        process.tell()


@pytest.mark.parametrize("task", [False, True])
def test_interrupted_wait_leaves_the_others_of_this_process_alone(name: str, task: bool) -> None:
    """A second copy of pidabs, a C library: whoever else here holds the lock keeps it."""

    def interrupt(number: int, frame: object) -> None:
        raise Injected

    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(pidabs.Lock(name).address)
        holder.listen(5)
        if task:

            async def main() -> None:
                waiting = asyncio.ensure_future(pidabs.Lock(name).acquire_async())
                await asyncio.to_thread(lambda: wait_until(lambda: pidabs.Lock(name).waiters() == 1))
                waiting.cancel()
                await asyncio.wait({waiting})

            asyncio.run(main())
        else:
            before = signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Injected):
                pidabs.Lock(name).acquire()
            signal.signal(signal.SIGALRM, before)
        assert holder.getsockname() == pidabs.Lock(name).address
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(name).acquire(0)


NO_DESCRIPTORS = """
    import ctypes, pidabs
    from pidabs import _descriptors
    class Injected(BaseException): pass
    numbers = _descriptors._numbers
    def interrupted(message):
        _descriptors._numbers = numbers
        raise Injected
    lock = pidabs.Lock(sys.argv[1])
    filling = []
    say("ready")
    listen()
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 3  # the connection, and the grant
    assert ctypes.CDLL(None).setrlimit(7, (ctypes.c_ulong * 2)(limit, 4096)) == 0
    while True:
        try: filling.append(os.dup(0))
        except OSError: break
    os.close(filling.pop()); os.close(filling.pop())
    _descriptors._numbers = interrupted
    say("waiting")
    try:
        lock.acquire(10)
    except Injected:
        say("interrupted")
        listen()
"""


def test_grant_that_took_the_last_descriptor_is_given_back(name: str, peer: Child) -> None:
    """It has been read, and is no socket of ours yet, as the exception strikes."""
    lock = pidabs.Lock(name).acquire()
    with child(NO_DESCRIPTORS, args=(name,)) as process:
        process.expect("ready")
        process.tell()
        process.expect("waiting")
        wait_until(lambda: lock.waiters() == 1, "it waits")
        lock.release()
        process.expect("interrupted")
        takes(peer)
        process.tell()
