"""The protocol: order, hand-over, giving up, and peers that are dead, stopped, hostile or wrong.

A race is forced: raw sockets play the holder or a waiter, and say each byte when the test wants it said.
"""

from __future__ import annotations

import array
import os
import platform
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from support import (
    DEADLINE,
    HOLD,
    LANDLOCK,
    STILL_BLOCKED_AFTER,
    Child,
    address,
    child,
    cpu_time,
    has_scopes,
    in_namespace,
    inode,
    must_block,
    needs_root,
    open_descriptors,
    queued,
    run_in,
    state,
    switches,
    wait_until,
)

import pidabs
from pidabs import _descriptors, _drive, _handover, _linux, _queue

STRANGER = 12346


def living(name: str) -> int:
    return pidabs.Lock(name).waiters()


@contextmanager
def raw() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        yield sock


def play_holder(sock: socket.socket, name: str, backlog: int = 100) -> socket.socket:
    sock.bind(address(name))
    sock.listen(backlog)
    return sock


def play_waiter(sock: socket.socket, name: str, word: bytes = b"W") -> socket.socket:
    sock.connect(address(name))
    if word:
        sock.send(word)
    return sock


@contextmanager
def full_queue(name: str) -> Iterator[socket.socket]:
    """The holder of a queue in which nobody else has room."""
    with raw() as holder, raw() as only:
        play_holder(holder, name, backlog=0)
        play_waiter(only, name)
        yield holder


def grant(conn: socket.socket, *descriptors: int, word: bytes = b"L") -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    conn.sendmsg([word], ancillary)


def granted(conn: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = conn.recvmsg(1, socket.CMSG_SPACE(64))
    found = array.array("i")
    for _, _, payload in ancillary:
        found.frombytes(payload)
    return data, list(found)


WAIT = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    timeout = float(sys.argv[2]) if len(sys.argv) > 2 else None
    say("asks")
    try:
        lock.acquire(timeout)
    except pidabs.Timeout:
        say("timeout")
    else:
        say("held")
        listen()
        lock.release()
        say("released")
"""


@contextmanager
def waiting(name: str, count: int = 1, *args: str) -> Iterator[list[Child]]:
    """That many processes in the queue of a lock that is held, in the order of the list."""
    with ExitStack() as stack:
        children = []
        for _ in range(count):
            before = queued(name)
            process = stack.enter_context(child(WAIT, args=(name, *args)))
            process.expect("asks")
            wait_until(lambda before=before: queued(name) == before + 1, "the waiter to be in the queue")  # type: ignore[misc]
            children.append(process)
        yield children


# Order --------------------------------------------------------------------------------------------------------


def test_waiters_get_the_lock_in_the_order_they_came(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name, 5) as processes:
        lock.release()
        for number, process in enumerate(processes):
            process.expect("held")
            assert pidabs.holder(name) == pidabs.Holder(process.pid, os.getuid(), os.getgid())
            assert all(later.says_nothing(0) for later in processes[number + 1 :])
            process.tell()
            process.expect("released")
    assert not lock.locked()


def test_the_socket_stays_the_same_from_owner_to_owner(name: str) -> None:
    """Had it been freed in between, anybody might have barged in."""
    lock = pidabs.Lock(name).acquire()
    before = inode(name)
    with waiting(name, 2) as (first, second):
        lock.release()
        first.expect("held")
        first.tell()
        second.expect("held")
        assert inode(name) == before


def test_cancel_check_is_asked_and_the_place_in_the_queue_is_kept(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    asked: list[int] = []
    first = must_block(lambda: pidabs.Lock(name).acquire(cancel_check=lambda: asked.append(1), poll_interval=0.005))
    with waiting(name) as (second,):
        before = len(asked)
        wait_until(lambda: len(asked) > before + 5)
        assert lock.waiters() == 2
        lock.release()
        taken = first()
        assert second.says_nothing()
        taken.release()
        second.expect("held")


@pytest.mark.parametrize("poll_interval", [-1, 0, 0.01])
def test_cancel_check_ends_the_wait(name: str, poll_interval: float) -> None:
    """As a timeout does; who waits behind us has the lock next."""
    lock = pidabs.Lock(name).acquire()
    cancelled = threading.Event()
    other = pidabs.Lock(name)
    finish = must_block(lambda: other.acquire(cancel_check=cancelled.is_set, poll_interval=poll_interval))
    with waiting(name) as (second,):
        cancelled.set()
        with pytest.raises(pidabs.Timeout):
            finish()
        assert not other.held
        assert lock.held
        lock.release()
        second.expect("held")


def test_cancel_check_that_raises(name: str) -> None:
    def check() -> bool:
        raise KeyError

    with pidabs.Lock(name), pytest.raises(KeyError):
        pidabs.Lock(name).acquire(timeout=20, cancel_check=check)
    assert not pidabs.Lock(name).locked()


def test_newcomer_cannot_overtake(name: str) -> None:
    """1. a waiter queues; 2. it is offered the lock, and is slow; 3. a newcomer tries all the while, in vain."""
    with child(HOLD, args=(name,)) as holder, raw() as waiter:
        holder.expect("held")
        play_waiter(waiter, name)
        holder.tell()
        assert waiter.recv(1) == b"O"
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(name).acquire(timeout=0)
        waiter.send(b"A")
        holder.expect("released")
        with pytest.raises(pidabs.Timeout):  # the grant is under way, and nobody has it open
            pidabs.Lock(name).acquire(timeout=0)
        word, (listener,) = granted(waiter)
        assert word == b"L"
        with socket.socket(fileno=listener) as sock:
            assert address(name) == sock.getsockname()


def test_releaser_that_comes_back_at_once_waits_its_turn(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name) as (other,):
        lock.release()
        with pytest.raises(pidabs.Timeout):
            lock.acquire(timeout=0)
        other.expect("held")


def test_threads_of_the_holders_process_are_granted_at_once(name: str) -> None:
    """A waiter of our own process may be a task of the releasing thread, so it need not answer first."""
    lock = pidabs.Lock(name).acquire()
    with raw() as waiter:
        play_waiter(waiter, name)
        lock.release()  # in this thread: nobody can answer meanwhile
        word, descriptors = granted(waiter)
        if word == b"O":
            word, descriptors = granted(waiter)
        assert word == b"L"
        os.close(*descriptors)


def test_lock_that_its_next_owner_frees_at_once_is_free(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the model (free-at-once).

    1. A grants the lock to B, and has not come to run again.  2. B frees it.  3. Nobody holds it: a single try has to
    succeed.  As long as A had its copy of the listener it failed, every second time.
    """
    lock = pidabs.Lock(name).acquire()
    took = []

    def meanwhile() -> None:
        assert granted(waiter)[0] == b"O"
        word, descriptors = granted(waiter)
        assert word == b"L"
        os.close(*descriptors)
        took.append(pidabs.Lock(name).acquire(timeout=0))

    with raw() as waiter:
        play_waiter(waiter, name)
        monkeypatch.setattr(_linux, "sched_yield", meanwhile)  # where the releaser lets the next owner run
        lock.release()
        took.pop().release()


def test_threads_and_processes_stand_in_one_queue(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name) as (first,):
        thread = must_block(lambda: pidabs.Lock(name).acquire())
        wait_until(lambda: living(name) == 2)
        lock.release()
        first.expect("held")
        first.tell()
        thread().release()


# Waiters that cannot take it ----------------------------------------------------------------------------------


@pytest.mark.impatient
def test_stopped_head_is_skipped_and_has_its_turn_later(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name, 2) as (stopped, second):
        stopped.signal(signal.SIGSTOP)
        wait_until(lambda: state(stopped.pid) == "T")
        lock.release()
        second.expect("held")
        stopped.signal(signal.SIGCONT)
        wait_until(lambda: living(name) == 1, "the stopped one to queue again")
        assert stopped.says_nothing()
        second.tell()
        stopped.expect("held")


def test_order_is_kept_behind_one_that_is_skipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is offered the lock, rather than that all are let go to race."""
    monkeypatch.setattr(_handover, "SOON", 0.001)
    monkeypatch.setattr(_handover, "_RELEASE_TIME", DEADLINE)
    lock = pidabs.Lock(name).acquire()
    with child(PLAY_WAITER, args=(name,)) as silent, child(PLAY_WAITER, args=(name,)) as slow:
        for waiter in silent, slow:
            waiter.tell()
            waiter.expect("waits")
        lock.release()
        silent.expect("O")
        slow.expect("O")


def test_releaser_waits_for_the_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handover, "SOON", DEADLINE)
    monkeypatch.setattr(_handover, "_RELEASE_TIME", DEADLINE)
    lock = pidabs.Lock(name).acquire()
    with child(PLAY_WAITER, args=(name,)) as slow:
        slow.tell()
        slow.expect("waits")
        finish = must_block(lock.release)
        slow.expect("O")
        slow.tell()
        slow.expect("L")
        finish()


PLAY_WAITER = """
    import socket
    sock = socket.socket(socket.AF_UNIX)
    listen()
    sock.connect("\\0pidabs:" + sys.argv[1])
    sock.send(b"W")
    say("waits")
    say(sock.recv(1).decode())
    listen()
    sock.send(b"A")
    say(sock.recv(1).decode())
"""
"""Child code: wait in the queue, say which message comes, and answer when told."""


@pytest.mark.impatient
def test_only_waiter_is_stopped_and_the_lock_is_free(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name) as (stopped,):
        stopped.signal(signal.SIGSTOP)
        wait_until(lambda: state(stopped.pid) == "T")
        lock.release()
        assert not lock.locked()
        stopped.signal(signal.SIGCONT)
        stopped.expect("held")


@pytest.mark.impatient
@pytest.mark.parametrize("release", ["lock.release()", "asyncio.run(lock.release_async())"])
def test_listener_that_is_descriptor_0_is_handed_over(name: str, release: str) -> None:
    """As in a daemon that has closed its standard streams."""
    code = f"""
    import asyncio, pidabs, time
    os.close(0)
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say(lock.fileno())
    while not lock.waiters(): time.sleep(0.002)
    {release}
    say("released")
    while True: time.sleep(1)
    """
    with child(code, args=(name,)) as holder:
        holder.expect("0")
        with child(PLAY_WAITER, args=(name,)) as waiter:
            waiter.tell()
            waiter.expect("waits")
            waiter.expect("O")
            holder.expect("released")


def test_waiter_killed_in_the_queue(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name, 3) as (first, killed, third):
        killed.kill()
        lock.release()
        first.expect("held")
        first.tell()
        third.expect("held")


def test_holder_killed_with_waiters(name: str) -> None:
    """All wake and race: one gets it, then the next, never two."""
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with waiting(name, 3) as processes:
            holder.kill()
            left = list(processes)
            while left:
                winner = wait_until(lambda: next((one for one in left if not one.says_nothing(0)), None))
                winner.expect("held")
                left.remove(winner)
                assert pidabs.holder(name) == pidabs.Holder(winner.pid, os.getuid(), os.getgid())
                assert all(other.says_nothing(0.05) for other in left)
                winner.kill()
    assert not pidabs.Lock(name).locked()


def test_next_owner_killed_before_it_reads_its_grant(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with (
        child(
            """
            import socket
            sock = socket.socket(socket.AF_UNIX); sock.connect(b"\\0pidabs:" + sys.argv[1].encode()); sock.send(b"W")
            say("queued")
            say(sock.recv(1).decode())
            sock.send(b"A")
            import select
            select.select([sock], [], [])                 # the grant is here, and never read
            say("granted")
            listen()
            """,
            args=(name,),
        ) as doomed,
    ):
        doomed.expect("queued")
        with waiting(name) as (second,):
            lock.release()
            doomed.expect("O")
            doomed.expect("granted")
            assert second.says_nothing()
            assert lock.locked()
            doomed.kill()
            second.expect("held")


@pytest.mark.parametrize("answered", ["at_once", "later"])
def test_holder_that_is_stopped_right_after_its_grant_keeps_nothing(name: str, answered: str) -> None:
    """1. A grants, and is preempted; 2. B has the lock and lets it go; 3. it is free, though A has not run since."""
    code = """
    import signal
    from pidabs import _descriptors, _handover
    _handover.comes_soon = lambda poller: sys.argv[2] == "at_once" and bool(poller.poll())
    close = _descriptors.close
    def close_and_stop(sock):
        _descriptors.close = close
        close(sock)
        os.kill(os.getpid(), signal.SIGSTOP)
    _descriptors.close = close_and_stop
    """
    with child(textwrap.dedent(code) + textwrap.dedent(HOLD), args=(name, answered)) as holder:
        holder.expect("held")
        with waiting(name) as (waiter,):
            holder.tell()
            waiter.expect("held")
            wait_until(lambda: state(holder.pid) == "T")
            waiter.tell()
            waiter.expect("released")
            pidabs.Lock(name).acquire(0).release()
            holder.signal(signal.SIGCONT)
            holder.expect("released")


@pytest.fixture
def deadly_pipes() -> Iterator[None]:
    """As in a program that has restored SIGPIPE's default: a write to a peer that is gone kills it, unless told not."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGPIPE, before)


@pytest.mark.usefixtures("deadly_pipes")
def test_waiter_that_says_yes_and_leaves_before_the_grant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is offered it then, rather than that all are let go to race."""
    monkeypatch.setattr(_handover, "SOON", DEADLINE)
    monkeypatch.setattr(_handover, "_RELEASE_TIME", DEADLINE)
    lock = pidabs.Lock(name).acquire()
    with child(
        """
        import socket, pidabs
        sock = socket.socket(socket.AF_UNIX); sock.connect(b"\\0pidabs:" + sys.argv[1].encode()); sock.send(b"W")
        say("queued")
        sock.recv(1); sock.shutdown(socket.SHUT_RD); sock.send(b"A")
        say("left")
        listen()
        """,
        args=(name,),
    ) as leaving:
        leaving.expect("queued")
        with child(PLAY_WAITER, args=(name,)) as second:
            second.tell()
            second.expect("waits")
            finish = must_block(lock.release)
            leaving.expect("left")
            second.expect("O")
            second.tell()
            second.expect("L")
            finish()


def test_waiter_that_times_out(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with waiting(name, 1, "0.3") as (brief,), waiting(name) as (second,):
        brief.expect("timeout")
        wait_until(lambda: living(name) == 1)
        lock.release()
        second.expect("held")


@pytest.mark.impatient
@pytest.mark.parametrize("word", [b"", b"X", b"A", b"O", b"L", b"XWA"])
def test_connections_that_are_no_waiters_are_skipped(name: str, word: bytes) -> None:
    """Who only looks who holds the lock does not say W, and must not be handed it."""
    lock = pidabs.Lock(name).acquire()
    with raw() as probe:
        play_waiter(probe, name, word)
        with waiting(name) as (waiter,):
            lock.release()
            waiter.expect("held")
        assert b"L" not in probe.recv(10)


@pytest.mark.impatient
def test_silent_connection_holds_up_a_release_for_milliseconds(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    assert lock._sock is not None
    with raw() as probe:
        play_waiter(probe, name, b"")
        steps = _handover.hand_over(lock._sock, [])
        assert steps is not None
        _, seconds = next(steps)
        assert 0.001 <= seconds <= 0.005
        steps.close()
    assert not pidabs.Lock(name).locked()
    lock._leave()


@pytest.mark.parametrize("answer", [b"W", b"N", b"L", b"\0"])
def test_wrong_answers_are_skipped(name: str, answer: bytes) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with raw() as strange, ExitStack() as stack:
            play_waiter(strange, name)
            (waiter,) = stack.enter_context(waiting(name))
            holder.tell()
            assert strange.recv(1) == b"O"
            strange.send(answer)
            waiter.expect("held")
            assert granted(strange) == (b"", [])


def test_head_that_says_w_twice_has_not_answered(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with raw() as head, ExitStack() as stack:
            play_waiter(head, name, b"WWA")
            (waiter,) = stack.enter_context(waiting(name))
            holder.tell()
            waiter.expect("held")
            assert head.recv(1) == b"O"
            with pytest.raises(ConnectionResetError):  # closed with the A unread
                head.recv(1)


def test_look_whether_the_head_answers_is_short_beside_a_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A yield may give the CPU away for milliseconds."""
    yields = []

    def sched_yield() -> None:
        yields.append(True)
        time.sleep(0.002)

    monkeypatch.setattr(_drive, "sched_yield", sched_yield)
    near, far = socket.socketpair()
    with near, far:
        assert not _drive.comes_soon(_drive.watching(near.fileno()))
    assert len(yields) == 1


@contextmanager
def released_to_who_says_nothing_yet(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[socket.socket, Callable[[], None]]]:
    monkeypatch.setattr(_handover, "_JOIN_TIME", DEADLINE)
    lock = pidabs.Lock(name).acquire()
    with raw() as conn:
        play_waiter(conn, name, b"")
        yield conn, must_block(lock.release)


def test_waiter_that_is_preempted_between_its_connect_and_its_w(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with released_to_who_says_nothing_yet(name, monkeypatch) as (conn, released):
        conn.send(b"W")
        assert conn.recv(1) == b"O"
        conn.send(b"A")
        released()
        assert granted(conn)[0] == b"L"


def test_late_first_word_that_is_no_w_is_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with released_to_who_says_nothing_yet(name, monkeypatch) as (conn, released):
        conn.send(b"A")
        released()
        assert conn.recv(10) == b"O"
        assert conn.recv(10) == b""


@pytest.mark.impatient
def test_waiter_that_never_answers_is_skipped(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with raw() as silent, ExitStack() as stack:
            play_waiter(silent, name)
            (waiter,) = stack.enter_context(waiting(name))
            holder.tell()
            waiter.expect("held")
            assert granted(silent) == (b"O", [])
            assert granted(silent) == (b"", [])


@pytest.mark.impatient
def test_release_does_not_wait_for_many_who_never_answer(name: str) -> None:
    """Past its time it frees the lock, and whoever can take it does."""
    with child(HOLD, args=(name,)) as holder, ExitStack() as stack:
        holder.expect("held")
        silent = [stack.enter_context(raw()) for _ in range(100)]
        for sock in silent:
            play_waiter(sock, name)
        (waiter,) = stack.enter_context(waiting(name))
        holder.tell()
        holder.expect("released")
        waiter.expect("held")
        assert sum(is_offered(sock) for sock in silent) < 10


def is_offered(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b"O"
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("dead", [1, 255, 256, 600])
def test_dead_entries_at_the_head(name: str, dead: int) -> None:
    lock = pidabs.Lock(name).acquire()
    for _ in range(dead):
        with raw() as gone:
            play_waiter(gone, name)
    assert queued(name) == dead
    with waiting(name) as (waiter,):
        lock.release()
        waiter.expect("held")


def test_dead_entries_are_drained_when_the_holder_asks(name: str) -> None:
    with pidabs.Lock(name) as lock:
        for _ in range(100):
            with raw() as gone:
                play_waiter(gone, name)
        assert queued(name) == 100
        with waiting(name) as (waiter,):
            assert lock.waiters() == 1
            assert queued(name) == 1
            assert waiter.says_nothing()
            lock.release()
            waiter.expect("held")
            waiter.tell()
            waiter.expect("released")
        lock.acquire()  # for the `with` to release


@pytest.mark.parametrize("rival", ["waiters", "release"])
def test_another_thread_takes_the_dead_that_we_are_dropping(
    name: str, rival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. We see a dead head.  2. Another thread accepts it.  3. We accept the next: who lives must not be that."""
    lock = pidabs.Lock(name).acquire()
    with raw() as gone:
        play_waiter(gone, name)
    real = _descriptors.accept
    us, other = threading.current_thread(), threading.Thread(target=getattr(lock, rival), daemon=True)
    accepted, dropped = threading.Event(), threading.Event()

    def accept(listener: _descriptors.Socket, hand: object = None) -> _descriptors.Socket:
        if threading.current_thread() is other and not accepted.is_set():
            conn = real(listener, hand)
            accepted.set()
            dropped.wait(DEADLINE)
            return conn
        if threading.current_thread() is us and other.ident is None:
            other.start()
            accepted.wait(STILL_BLOCKED_AFTER)
        return real(listener, hand)

    with waiting(name, 2) as (first, second):
        monkeypatch.setattr(_descriptors, "accept", accept)
        assert lock.waiters() == 2
        dropped.set()
        other.join(DEADLINE)
        assert not other.is_alive()
        if lock.held:
            assert queued(name) == 2
            lock.release()
        first.expect("held")
        assert second.says_nothing()


def test_queue_of_a_lock_that_is_on_its_way_is_not_ours_to_drain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the sending of the grant and the close of our copy the next owner accepts from the same queue."""
    lock = pidabs.Lock(name).acquire()
    lengths = []
    with waiting(name) as (waiter,):
        with raw() as gone:
            play_waiter(gone, name)

        def looks_on_the_way() -> None:
            lock.waiters()
            lengths.append(queued(name))

        monkeypatch.setattr(_linux, "sched_yield", lambda: None)
        close = _descriptors.close
        listener = lock._sock

        def slowly(sock: _descriptors.Socket) -> None:
            if sock is listener and not lengths:
                lock._sock = listener  # as a thread sees it that looked just before
                looks_on_the_way()
                lock._sock = None
            close(sock)

        monkeypatch.setattr(_descriptors, "close", slowly)
        lock.release()
        assert lengths == [1]
        waiter.expect("held")


def test_others_do_not_drain(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with raw() as gone:
            play_waiter(gone, name)
        assert living(name) == 0
        assert queued(name) == 1


# Giving up ----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@contextmanager
def hold_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Stop a waiter of this process at the moment in which it gives up; go on when told."""

    class Stop:
        reached = threading.Event()
        go_on = threading.Event()

    original = _queue.give_up

    def give_up(*args: Any) -> Any:
        Stop.reached.set()
        assert Stop.go_on.wait(20)
        return original(*args)

    monkeypatch.setattr(_queue, "give_up", give_up)
    yield Stop


@contextmanager
def granted_as_it_gives_up(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], pidabs.Lock]]:
    """1. the deadline passes; 2. the grant is sent; 3. the waiter goes on when this is called: what it then has."""
    with hold_up(monkeypatch) as stop, child(GRANT_WHEN_TOLD, args=(name,)) as holder:
        holder.expect("listens")
        blocked = must_block(lambda: pidabs.Lock(name).acquire(0.3))
        holder.expect("W")
        assert stop.reached.wait(20)
        holder.tell("L")
        holder.expect("granted")

        def go_on() -> pidabs.Lock:
            stop.go_on.set()
            return blocked()

        yield go_on


def test_grant_that_arrives_as_the_waiter_gives_up_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shuts down, reads once more, and has it."""
    with granted_as_it_gives_up(name, monkeypatch) as go_on:
        lock = go_on()
        assert lock.held
        assert pidabs.holder(name) == lock.holder() == pidabs.Holder(os.getpid(), os.getuid(), os.getgid())
        lock.release()
        assert not lock.locked()


def test_no_descriptor_for_a_grant_that_arrives_as_the_waiter_gives_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grant is dropped, and the lock with it: the last try finds it free."""
    with granted_as_it_gives_up(name, monkeypatch) as go_on:
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            lock = go_on()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert lock.held
        lock.release()


def test_offer_and_grant_that_arrive_as_the_waiter_gives_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder grants to its own process without waiting for an answer, so both may be there to be read."""
    with hold_up(monkeypatch) as stop:
        lock = pidabs.Lock(name).acquire()
        before = inode(name)
        blocked = must_block(lambda: pidabs.Lock(name).acquire(0.3))
        assert stop.reached.wait(20)
        lock.release()
        stop.go_on.set()
        granted = blocked()
        assert inode(name) == before  # and not a lock that was freed, and for all to race for
        granted.release()
        assert not lock.locked()


@pytest.mark.impatient
def test_offer_that_arrives_as_the_waiter_gives_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not answered any more, the holder goes on, and the next one gets the lock."""
    with hold_up(monkeypatch) as stop, child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        blocked = must_block(lambda: pidabs.Lock(name).acquire(0.3))
        with waiting(name) as (second,):
            assert stop.reached.wait(20)
            holder.tell()
            second.expect("held")
            stop.go_on.set()
            with pytest.raises(pidabs.Timeout):
                blocked()
            assert pidabs.holder(name) == pidabs.Holder(second.pid, os.getuid(), os.getgid())


def test_grant_after_the_waiter_has_given_up_fails_and_the_next_gets_it(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with raw() as leaving:
        play_waiter(leaving, name)
        leaving.shutdown(socket.SHUT_RDWR)
        with waiting(name) as (second,):
            lock.release()
            second.expect("held")


def test_grant_after_the_last_look_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be lost with the connection: nobody reads it any more."""
    said: list[str] = []
    original = _descriptors.abandon

    def abandon(sock: _descriptors.Socket) -> None:
        if not said:  # the waiter, as it gives up
            holder.expect("W")
            holder.tell("L")
            said.append(holder.read_line())
        original(sock)

    with child(GRANT_WHEN_TOLD, args=(name,)) as holder:
        holder.expect("listens")
        monkeypatch.setattr(_descriptors, "abandon", abandon)
        try:
            pidabs.Lock(name).acquire(0.01).release()
        except pidabs.Timeout:
            pass  # the holder was not yet gone
        assert said == ["too late"]


GRANT_WHEN_TOLD = """
    import socket, array
    listener = socket.socket(socket.AF_UNIX); listener.bind(b"\\0pidabs:" + sys.argv[1].encode()); listener.listen(100)
    say("listens")
    conn, _ = listener.accept()
    say(conn.recv(1).decode())
    while word := listen():
        if word == "O":
            conn.send(b"O")
            say(conn.recv(1).decode())
        if word == "L":
            grant = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))]
            try: conn.sendmsg([b"L"], grant)
            except PermissionError: done = "refused"
            except BrokenPipeError: done = "too late"
            else: done = "granted"
            listener.close()
            say(done)
"""
"""Child code: hold a lock by hand."""

CANCELLED = """
    import pidabs, signal
    def interrupt(*_): raise KeyboardInterrupt
    signal.signal(signal.SIGUSR1, interrupt)
    lock = pidabs.Lock(sys.argv[1])
    try:
        lock.acquire()
    except KeyboardInterrupt:
        say("cancelled", lock.held)
    listen()
"""


def test_waiter_that_is_interrupted_leaves_the_queue(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(CANCELLED, args=(name,)) as cancelled:
        wait_until(lambda: living(name) == 1)
        with waiting(name) as (second,):
            cancelled.signal(signal.SIGUSR1)
            cancelled.expect("cancelled False")
            assert living(name) == 1
            lock.release()
            second.expect("held")


def test_cancel_with_a_grant_in_flight_hands_it_on(name: str) -> None:
    """1. the waiter has said yes; 2. it is cancelled; 3. the grant is here; 4. it goes to the next, not to the race."""
    with child(GRANT_WHEN_TOLD, args=(name,)) as holder:
        holder.expect("listens")
        hand: list[Any] = []
        sock = _descriptors.open_socket()
        steps = _queue.wait(sock, address(name), time.monotonic() + 20, hand)
        want = next(steps)
        assert want[0] >= 0
        holder.expect("W")
        holder.tell("O")
        with waiting(name) as (second,):
            want = steps.send(True)  # reads the offer, answers
            holder.expect("A")
            before = inode(name)
            holder.tell("L")
            holder.expect("granted")
            with pytest.raises(Interrupted):
                _finish(steps, steps.throw(Interrupted()))
            second.expect("held")
            assert inode(name) == before


def _finish(steps: Any, want: Any) -> None:
    """Drive the rest of the steps."""
    while True:
        fd, seconds = want
        poller = select.poll()
        if fd >= 0:
            poller.register(fd, select.POLLIN)
        want = steps.send(bool(poller.poll(20_000 if seconds is None else seconds * 1000)))


# Where one cannot queue ---------------------------------------------------------------------------------------


def test_full_queue(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the order and the wake-up, not the lock."""
    monkeypatch.setattr(_queue, "BACKLOG", 1)
    lock = pidabs.Lock(name).acquire()
    with raw() as first, raw() as second:
        play_waiter(first, name)
        play_waiter(second, name)
        with raw() as third:
            third.setblocking(False)
            with pytest.raises(BlockingIOError):
                third.connect(address(name))
        blocked = must_block(lambda: pidabs.Lock(name).acquire())
        with pytest.raises(pidabs.Timeout, match=f"held by pid {os.getpid()} "):
            pidabs.Lock(name).acquire(0.05)
        first.close()
        second.close()
        lock.release()
        blocked().release()
    assert not lock.locked()


def test_somaxconn_of_a_small_host(name: str) -> None:
    """The kernel's own bound on a queue: here one of 2 entries, and 6 processes that want the lock."""
    code = """
import subprocess
with open("/proc/sys/net/core/somaxconn", "w") as file: file.write("1")
worker = "import pidabs, sys\\nwith pidabs.Lock(sys.argv[1]):\\n    print('one', flush=True)"
import pidabs
lock = pidabs.Lock(sys.argv[1]).acquire()
workers = [subprocess.Popen([sys.executable, "-c", worker, sys.argv[1]]) for _ in range(6)]
import time
end = time.monotonic() + 20
while pidabs._diag.find(lock.address).queued < 2: assert time.monotonic() < end
lock.release()
assert [worker.wait(20) for worker in workers] == [0] * 6
say("done", lock.locked())
"""
    done = run_in(in_namespace("--net", "--mount-proc", "--pid", "--fork"), code, name)
    assert done.stdout.split("\n") == ["one"] * 6 + ["done False", ""], done.stderr


def test_window_between_bind_and_listen(name: str) -> None:
    """A connect there is refused as on a free name; the waiter goes on trying, and queues once there is a queue."""
    with raw() as taking:
        taking.bind(address(name))
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            assert waiter.says_nothing()
            with pytest.raises(pidabs.Timeout):
                pidabs.Lock(name).acquire(0)
            with pytest.raises(pidabs.Timeout):
                pidabs.Lock(name).acquire(0.05)
            taking.listen(10)
            wait_until(lambda: living(name) == 1)
            assert waiter.says_nothing(0.05)
            taking.close()
            waiter.expect("held")


def test_bound_and_never_listening_and_then_closed(name: str) -> None:
    with raw() as taking:
        taking.bind(address(name))
        blocked = must_block(lambda: pidabs.Lock(name).acquire(20))
        taking.close()
        blocked().release()


@pytest.mark.parametrize("delay", [0.0, 0.0003, 0.002])
def test_squatter_that_throws_us_out_does_not_make_us_spin(name: str, delay: float) -> None:
    with raw() as squatter, ExitStack() as stack:
        play_holder(squatter, name)
        stack.enter_context(child(WAIT, args=(name,)))
        thrown_out = 0
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            conn, _ = squatter.accept()
            time.sleep(delay)
            conn.close()
            thrown_out += 1
        # Pauses grow to 5 ms, so some 100 to 200; without them there are some 10,000.
        assert thrown_out < 400


def test_pauses_grow_each_time_we_are_thrown_out(name: str) -> None:
    hand: list[_descriptors.Socket] = []
    with raw() as squatter:
        play_holder(squatter, name)
        steps = _queue.wait(_descriptors.open_socket(), address(name), time.monotonic() + DEADLINE, hand)
        fd, _ = next(steps)
        pauses = []
        for _ in range(8):
            assert fd >= 0
            squatter.accept()[0].close()
            fd, seconds = steps.send(True)
            assert fd == -1
            pauses.append(seconds)
            fd, _ = steps.send(False)
        steps.close()
    assert 0 < pauses[0] < 0.0002
    assert 0.0025 <= pauses[-1] <= 0.0075


def test_who_finds_the_queue_full_and_cannot_sleep_pauses_and_leaves_nothing(name: str) -> None:
    """An event loop cannot call what blocks: pauses of up to 50 ms between single tries.  An exception ends them."""
    sock = _descriptors.open_socket()
    with full_queue(name):
        steps = _queue.wait(sock, address(name), time.monotonic() + DEADLINE, [])
        wants = [next(steps)] + [steps.send(False) for _ in range(25)]
        assert all(not isinstance(block, int) for block, _ in wants[::2])
        pauses = wants[1::2]
        assert {-1} == {fd for fd, _ in pauses}
        assert 0.025 <= pauses[-1][1] <= 0.075
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)
    assert sock.fileno() == -1


CONNECT = {"x86_64": "42", "aarch64": "203"}.get(platform.machine())
"""The number of the system call."""

in_full_queue = pytest.mark.skipif(CONNECT is None, reason="which number connect(2) has here is not known")

WAIT_AND_CATCH = (
    """
    import signal
    def handler(number, frame):
        if number == signal.SIGUSR2: raise RAISED
        say("handled")
    signal.signal(signal.SIGUSR1, handler); signal.signal(signal.SIGUSR2, handler)
"""
    + WAIT
)


@contextmanager
def outside(name: str, *args: str, raised: str = "") -> Iterator[tuple[socket.socket, Child]]:
    """The holder of a queue that is full, and a process that sleeps until there is room."""
    code = WAIT_AND_CATCH.replace("RAISED", raised or "None")
    with full_queue(name) as holder, child(code, args=(name, *args)) as waiter:
        waiter.expect("asks")
        wait_until(lambda: connecting(waiter.pid), "the waiter to sleep in connect(2)")
        yield holder, waiter


def connecting(pid: int) -> bool:
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == CONNECT and state(pid) == "S"


@in_full_queue
def test_who_finds_the_queue_full_sleeps_until_there_is_room(name: str) -> None:
    with outside(name) as (holder, waiter):
        before = switches(waiter.pid)
        assert waiter.says_nothing(0.5)
        assert switches(waiter.pid) == before
        holder.accept()[0].close()
        wait_until(lambda: queued(name) == 1, "the waiter to be in the queue")
        conn, _ = holder.accept()
        with conn:
            assert conn.recv(1) == b"W"
            conn.send(b"O")
            assert conn.recv(1) == b"A"
            grant(conn, holder.fileno())
            holder.close()
            waiter.expect("held")


@in_full_queue
def test_who_sleeps_outside_a_full_queue_wakes_when_the_lock_is_free(name: str) -> None:
    with outside(name) as (holder, waiter):
        holder.close()
        waiter.expect("held")


@in_full_queue
def test_who_sleeps_outside_a_full_queue_keeps_its_deadline(name: str) -> None:
    with outside(name, "1.5") as (_, waiter):
        waiter.expect("timeout")


@in_full_queue
@pytest.mark.parametrize("stopped", [False, True])
def test_signal_that_comes_while_it_sleeps_outside_is_no_place_in_the_queue(name: str, stopped: bool) -> None:
    """CPython takes a blocking connect that was interrupted for a success."""
    with outside(name) as (holder, waiter):
        if stopped:
            waiter.signal(signal.SIGSTOP)
            wait_until(lambda: state(waiter.pid) == "T")
            waiter.signal(signal.SIGCONT)
        else:
            waiter.signal(signal.SIGUSR1)
            waiter.expect("handled")
        wait_until(lambda: connecting(waiter.pid), "it to sleep again")
        assert queued(name) == 1
        holder.close()
        waiter.expect("held")


@in_full_queue
@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "InterruptedError", "PermissionError", "TimeoutError"])
def test_exception_that_strikes_while_it_sleeps_outside_ends_the_wait(name: str, raised: str) -> None:
    """Also one that the kernel's refusals are told by."""
    code = (
        f"sys.__dict__.update(excepthook=lambda kind, *_: os._exit(7 if kind is {raised} else 8)) or {raised}('mine')"
    )
    with outside(name, raised=code) as (holder, waiter):
        waiter.signal(signal.SIGUSR2)
        assert waiter.wait() == 7
        assert queued(name) == 1
        holder.close()


CLOSED_OUTSIDE = """
    import pidabs, socket, threading
    from pidabs import _descriptors
    def wait():
        say(threading.get_native_id())
        with pidabs.Lock(sys.argv[1]): say("held")
    thread = threading.Thread(target=wait)
    thread.start()
    listen()
    [fd] = _descriptors.known
    pair = socket.socketpair()
    other = os.open("/dev/null", os.O_RDONLY) if sys.argv[2] == "file" else pair[0].fileno()
    os.dup2(other, fd)
    say("closed")
    thread.join()
    say(os.path.sameopenfile(fd, other), os.get_blocking(fd))
"""


@in_full_queue
@pytest.mark.parametrize("room", [False, True])
@pytest.mark.parametrize("other", ["file", "socket"])
def test_descriptor_that_is_closed_while_it_sleeps_outside_is_left_alone(name: str, room: bool, other: str) -> None:
    """DaemonContext closes them all, and the numbers become other files."""
    with full_queue(name) as holder, child(CLOSED_OUTSIDE, args=(name, other)) as waiter:
        thread = int(waiter.read_line())
        wait_until(lambda: connecting(thread), "the waiter to sleep in connect(2)")
        waiter.tell()
        waiter.expect("closed")
        if room:
            holder.accept()[0].close()
            wait_until(lambda: queued(name) == 1)
        holder.close()
        waiter.expect("held")
        waiter.expect("True True")


ASK_OUTSIDE = """
    import pidabs, time
    asked = []
    def check():
        asked.append(time.monotonic())
        return len(asked) > 5
    try:
        pidabs.Lock(sys.argv[1]).acquire(cancel_check=check, poll_interval=0.01)
    except pidabs.Timeout:
        say("cancelled", asked[-1] - asked[0] < 2)
"""


def test_cancel_check_is_asked_outside_a_full_queue(name: str) -> None:
    with full_queue(name), child(ASK_OUTSIDE, args=(name,)) as waiter:
        waiter.expect("cancelled True")


SANDBOXED = (
    LANDLOCK
    + """
    import pidabs
    restrict(scoped=SCOPE_SOCKETS)
    try:
        pidabs.Lock(sys.argv[1]).acquire(timeout=0.05)
    except pidabs.Timeout as exc:
        say("timeout", exc)
    say("asks")
"""
    + HOLD
)


@has_scopes
def test_sandbox_that_may_not_connect_still_excludes_and_gets_the_lock(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with child(SANDBOXED, args=(name,)) as sandboxed:
            # It may not ask who; it is told at least that there is somebody.
            assert sandboxed.read_line().startswith(f"timeout cannot acquire lock '{name}' within 0.05 s: held by ")
            sandboxed.expect("asks")
            assert sandboxed.says_nothing()
            assert queued(name) == 0
            holder.tell()
            sandboxed.expect("held")
            with pytest.raises(pidabs.Timeout):
                pidabs.Lock(name).acquire(0)
            with waiting(name) as (waiter,):
                sandboxed.tell()
                sandboxed.expect("released")
                waiter.expect("held")


# Grants that are not to be believed ---------------------------------------------------------------------------


FalseGrant = Callable[[str], "tuple[bytes, list[int]]"]


def listening(path: bytes, kind: int = socket.SOCK_STREAM, listen: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    if listen:
        sock.listen()
    return sock


def a_file(name: str) -> tuple[bytes, list[int]]:
    return b"L", [os.open("/dev/null", os.O_RDONLY)]


def a_datagram_socket(name: str) -> tuple[bytes, list[int]]:
    return b"L", [listening(address(name), socket.SOCK_DGRAM, False).detach()]


def a_seqpacket_listener(name: str) -> tuple[bytes, list[int]]:
    return b"L", [listening(address(name), socket.SOCK_SEQPACKET).detach()]


def another_name(name: str) -> tuple[bytes, list[int]]:
    return b"L", [listening(address(name) + b"-").detach()]


def a_longer_name_with_a_nul(name: str) -> tuple[bytes, list[int]]:
    return b"L", [listening(address(name) + b"\0").detach()]


def a_tcp_listener(name: str) -> tuple[bytes, list[int]]:
    return b"L", [socket.create_server(("127.0.0.1", 0)).detach()]


def a_connection_to_the_lock(name: str) -> tuple[bytes, list[int]]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address(name))
    return b"L", [sock.detach()]


def nothing(name: str) -> tuple[bytes, list[int]]:
    return b"L", []


def wrong_byte(name: str) -> tuple[bytes, list[int]]:
    return b"X", []


def wrong_byte_with_a_descriptor(name: str) -> tuple[bytes, list[int]]:
    return b"X", [os.open("/dev/null", os.O_RDONLY)]


def long_message(name: str) -> tuple[bytes, list[int]]:
    return b"L" * 5000, []


FALSE_GRANTS: list[FalseGrant] = [
    a_file,
    a_datagram_socket,
    a_seqpacket_listener,
    another_name,
    a_longer_name_with_a_nul,
    a_tcp_listener,
    a_connection_to_the_lock,
    nothing,
    wrong_byte,
    wrong_byte_with_a_descriptor,
    long_message,
]


@contextmanager
def answered_offer(listener: socket.socket, process: Child) -> Iterator[socket.socket]:
    """The connection of a waiter that has said yes."""
    process.expect("asks")
    conn, _ = listener.accept()
    with conn:
        conn.settimeout(20)
        assert conn.recv(1) == b"W"
        conn.send(b"O")
        assert conn.recv(1) == b"A"
        yield conn


COUNTS = """
    import pidabs
    before = len(os.listdir("/proc/self/fd"))
    lock = pidabs.Lock(sys.argv[1])
    say("asks")
    lock.acquire()
    say("held", len(os.listdir("/proc/self/fd")) == before + 1)
    listen()
"""
"""Child code: acquire, and tell whether the lock's is the only new descriptor."""


@pytest.mark.parametrize("make", FALSE_GRANTS)
@pytest.mark.parametrize("offered", [True, False])
def test_false_grants_are_not_believed(name: str, make: FalseGrant, offered: bool) -> None:
    """The waiter hangs up, closes what it was sent, and asks again."""
    with raw() as listener, child(COUNTS, args=(name,)) as waiter:
        play_holder(listener, name)
        if offered:
            with answered_offer(listener, waiter) as conn:
                word, descriptors = make(name)
                grant(conn, *descriptors, word=word)
                assert hung_up(conn)
        else:
            waiter.expect("asks")
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(20)
                assert conn.recv(1) == b"W"  # before that it takes no descriptors at all (Linux 6.16)
                word, descriptors = make(name)
                grant(conn, *descriptors, word=word)
                assert hung_up(conn)
        for descriptor in descriptors:
            os.close(descriptor)
        assert waiter.says_nothing(0.05)
        listener.close()
        waiter.expect("held True")


def hung_up(conn: socket.socket) -> bool:
    """Whether the other side closes the connection, whatever it had said before."""
    while True:
        try:
            if not conn.recv(10):
                return True
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("count", [2, 3, 10])
def test_grant_with_several_descriptors_is_not_believed(name: str, count: int) -> None:
    with raw() as listener, child(COUNTS, args=(name,)) as waiter:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            grant(conn, *[listener.fileno()] * count)
            assert hung_up(conn)
        assert waiter.says_nothing(0.05)
        listener.close()
        waiter.expect("held True")


def test_grant_with_a_file_beside_the_listener_is_not_believed(name: str) -> None:
    with raw() as listener, child(COUNTS, args=(name,)) as waiter, open("/dev/null", "rb") as file:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            grant(conn, file.fileno(), listener.fileno())
            assert hung_up(conn)
        listener.close()
        waiter.expect("held True")


def test_offers_with_descriptors_give_nothing(name: str) -> None:
    with raw() as listener, child(COUNTS, args=(name,)) as waiter:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            grant(conn, listener.fileno(), word=b"O")
            assert hung_up(conn)
        conn, _ = listener.accept()
        with conn, open("/dev/null", "rb") as file:
            assert conn.recv(1) == b"W"
            grant(conn, file.fileno(), word=b"O")
            assert waiter.says_nothing(0.05)
        listener.close()
        waiter.expect("held True")


def test_socket_that_is_bound_and_does_not_listen_is_no_grant(name: str) -> None:
    """The name is right, and its owner has not the lock: it would be deaf to whoever comes."""
    with child(COUNTS, args=(name,)) as waiter, raw() as listener, raw() as deaf:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            listener.close()
            deaf.bind(address(name))
            grant(conn, deaf.fileno())
            assert hung_up(conn)
        assert waiter.says_nothing(0.05)
        deaf.close()
        waiter.expect("held True")


def test_right_name_from_another_network_namespace_is_no_grant(name: str) -> None:
    code = """
import socket, array
sock = socket.socket(socket.AF_UNIX); sock.bind(b"\\0pidabs:" + sys.argv[1].encode()); sock.listen()
out = socket.socket(fileno=int(sys.argv[2]))
out.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))])
"""
    command = in_namespace("--net")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [*command, sys.executable, "-c", Child.PREAMBLE + code, name, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            check=True,
            timeout=20,
        )
        _, (foreign,) = granted(ours)
    with raw() as listener, child(COUNTS, args=(name,)) as waiter:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            grant(conn, foreign)
            assert hung_up(conn)
        os.close(foreign)
        assert waiter.says_nothing(0.05)
        listener.close()
        waiter.expect("held True")


def test_woken_with_nothing_to_read(name: str) -> None:
    """As poll(2) says may happen: nothing was granted, and nothing is over."""
    with raw() as holder:
        play_holder(holder, name)
        conn, hand = _descriptors.open_socket(), list[_descriptors.Socket]()
        assert _queue.join(conn, address(name)) is None
        _queue.receive(conn, address(name), hand)
        assert hand == []
        assert _descriptors.is_connection(conn, address(name))
        _descriptors.close(conn)


def test_signal_handlers_error_is_not_taken_for_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's have an errno.  A handler may raise just as a system call of ours ends."""

    class Struck:
        def sendmsg(self, *_: object) -> None:
            raise ConnectionError("by a handler")

    def strike(*_: object) -> None:
        raise ConnectionError("by a handler")

    with raw() as holder:
        play_holder(holder, name)
        conn, listener = _descriptors.open_socket(), _descriptors.open_socket()
        assert _queue.join(conn, address(name)) is None
        monkeypatch.setattr(_descriptors, "receive_message", strike)
        with pytest.raises(ConnectionError, match="by a handler"):
            _queue.receive(conn, address(name), [])
        with pytest.raises(ConnectionError, match="by a handler"):
            _handover._grant(cast("_descriptors.Socket", Struck()), listener)
        _descriptors.close(conn)
        _descriptors.close(listener)


def test_right_grant_by_hand_is_believed(name: str) -> None:
    """The counterpart to all these: what a C program that takes part would send."""
    with raw() as listener, child(COUNTS, args=(name,)) as waiter:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            grant(conn, listener.fileno())
            listener.close()
            waiter.expect("held True")
            assert pidabs.holder(name) == pidabs.Holder(waiter.pid, os.getuid(), os.getgid())


def test_offered_again_and_granted_much_later(name: str) -> None:
    """A holder may be stopped after its offer.  Who has said yes sleeps until it hears more, and keeps its place."""
    with raw() as listener, child(COUNTS, args=(name,)) as waiter:
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            conn.send(b"O")
            assert conn.recv(1) == b"A"
            before = cpu_time(waiter.pid)
            assert waiter.says_nothing(0.5)
            assert cpu_time(waiter.pid) - before < 0.05
            grant(conn, listener.fileno())
            listener.close()
            waiter.expect("held True")


def test_granted_listener_that_blocks_does_not_block_its_next_release(name: str) -> None:
    """O_NONBLOCK travels with the socket, and a program in C may not have set it."""
    with raw() as listener, raw() as gone, child(WAIT, args=(name,)) as waiter:
        listener.setblocking(True)
        play_holder(listener, name)
        with answered_offer(listener, waiter) as conn:
            listener.setblocking(True)
            grant(conn, listener.fileno())
            listener.close()
        waiter.expect("held")
        play_waiter(gone, name)
        gone.close()  # an entry to skip, and then none
        waiter.tell()
        waiter.expect("released")


# Other users --------------------------------------------------------------------------------------------------

AS_STRANGER = f"""
    import pidabs, socket, array, select
    os.setgroups([]); os.setuid({STRANGER})
"""
"""He stays in our group: that makes nobody trusted."""


@needs_root
def test_waiter_of_another_user_is_not_granted(name: str) -> None:
    """Not even when it says yes to everything; the lock excludes it, and it has it when it is freed."""
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with child(AS_STRANGER + WAIT, args=(name,)) as stranger:
            stranger.expect("asks")
            wait_until(lambda: queued(name) == 1)
            with waiting(name) as (friend,):
                holder.tell()
                friend.expect("held")
                assert stranger.says_nothing()
                friend.kill()
                stranger.expect("held")
                owner = pidabs.holder(name)
                assert owner is not None
                assert (stranger.pid, STRANGER) == (owner.pid, owner.uid)


OVERFLOW_UID = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))

AS_NOBODY = f"""
    import pidabs
    os.setgroups([]); os.setgid({OVERFLOW_UID}); os.setuid({OVERFLOW_UID})
"""


@needs_root
def test_nobody_is_a_user_like_any_other_where_all_are_mapped(name: str) -> None:
    """Daemons do run as `nobody`; the socket stays the same, so it was granted and not raced for."""
    with child(AS_NOBODY + HOLD, args=(name,)) as holder:
        holder.expect("held")
        before = inode(name)
        with child(AS_NOBODY + WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            wait_until(lambda: queued(name) == 1)
            holder.tell()
            waiter.expect("held")
            assert inode(name) == before
            waiter.tell()
            waiter.expect("released")


def test_nobody_in_particular_is_not_trusted() -> None:
    """In a user namespace without a map everybody reads as the overflow uid, ourselves among them."""
    code = """
    from pidabs import _linux
    say(os.geteuid(), _linux.trusted(os.geteuid()))
    """
    done = run_in(in_namespace("--user"), code)
    assert f"{OVERFLOW_UID} False" == done.stdout.strip(), done.stderr


@needs_root
def test_connection_of_another_user_is_not_even_offered(name: str) -> None:
    code = (
        AS_STRANGER
        + """
    sock = socket.socket(socket.AF_UNIX); sock.connect(b"\\0pidabs:" + sys.argv[1].encode()); sock.send(b"WAAAA")
    say("queued")
    try: say(sock.recv(10))
    except OSError as exc: say(type(exc).__name__)
    """
    )
    lock = pidabs.Lock(name).acquire()
    with child(code, args=(name,)) as stranger:
        stranger.expect("queued")
        lock.release()
        assert stranger.read_line() in ("b''", "ConnectionResetError")
    assert not lock.locked()


@needs_root
def test_holder_of_another_user_is_not_believed(name: str) -> None:
    """It plays by the rules, and hands us the true listener: still, we take the lock only when it is free."""
    code = AS_STRANGER + GRANT_WHEN_TOLD
    with child(code, args=(name,)) as holder:
        holder.expect("listens")
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            holder.expect("W")
            holder.tell("L")
            # Refused since Linux 6.16; before that, the descriptor that was not received is gone with its connection.
            assert holder.read_line() in ("refused", "granted")
            waiter.expect("held")
            owner = pidabs.holder(name)
            assert owner is not None
            assert (waiter.pid, 0) == (owner.pid, owner.uid)


@needs_root
def test_offer_of_another_user_is_not_answered(name: str) -> None:
    code = (
        AS_STRANGER
        + """
    listener = socket.socket(socket.AF_UNIX); listener.bind(b"\\0pidabs:" + sys.argv[1].encode()); listener.listen(100)
    say("listens")
    conn, _ = listener.accept()
    assert conn.recv(1) == b"W"
    conn.send(b"O")
    try: say(conn.recv(1))
    except OSError as exc: say(type(exc).__name__)
    listen()
    """
    )
    with child(code, args=(name,)) as holder:
        holder.expect("listens")
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            assert holder.read_line() in ("b''", "ConnectionResetError")
            assert waiter.says_nothing()
            with pytest.raises(pidabs.Timeout, match=f"held by pid {holder.pid} .uid {STRANGER}"):
                pidabs.Lock(name).acquire(0)
            holder.kill()
            waiter.expect("held")


@needs_root
def test_users_exclude_each_other(name: str) -> None:
    with child(AS_STRANGER + HOLD, args=(name,)) as stranger:
        stranger.expect("held")
        blocked = must_block(lambda: pidabs.Lock(name).acquire())
        stranger.tell()
        stranger.expect("released")
        blocked().release()


@needs_root
def test_root_is_granted_by_others(name: str) -> None:
    """Who holds may be anybody; root is trusted by all."""
    with child(AS_STRANGER + HOLD, args=(name,)) as stranger:
        stranger.expect("held")
        with raw() as root:
            play_waiter(root, name)
            stranger.tell()
            assert root.recv(1) == b"O"
            root.send(b"A")
            stranger.expect("released")
            word, (listener,) = granted(root)
            os.close(listener)
            assert word == b"L"


# At the limit of descriptors ----------------------------------------------------------------------------------


def test_owner_without_a_descriptor_to_accept_with_frees_the_lock(name: str) -> None:
    code = """
    import pidabs, resource
    lock = pidabs.Lock(sys.argv[1]).acquire()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    say("held")
    listen()
    free = os.dup(0); os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    lock.release()
    say("released")
    listen()
    """
    with child(code, args=(name,)) as holder:
        holder.expect("held")
        with waiting(name) as (waiter,):
            holder.tell()
            holder.expect("released")
            waiter.expect("held")


def test_thousands_of_handovers_leave_nothing_open(name: str) -> None:
    before = open_descriptors(settled=True)
    lock = pidabs.Lock(name)
    with child(
        """
        import pidabs
        lock = pidabs.Lock(sys.argv[1])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(500):
            with lock: pass
        say(len(os.listdir("/proc/self/fd")) - before)
        """,
        args=(name,),
    ) as other:
        for _ in range(500):
            with lock:
                pass
        other.expect("0")
        assert other.wait() == 0
    assert before == open_descriptors()
    assert not lock.locked()
