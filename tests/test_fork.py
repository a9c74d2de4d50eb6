"""Forks: a child holds nothing and takes nothing away, unless the lock moves to it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE, HOLD, STILL_BLOCKED_AFTER, child, must_block, open_descriptors, wait_until

import pidabs
from pidabs import _descriptors, _queue


def in_fork(function: Callable[[], bool]) -> int:
    """Run `function` in a forked child: its pid.  Its exit code is 0 if that was true."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = 0 if function() else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(code)
    return pid


def reap(pid: int) -> int:
    """Its exit code, negative for a signal; killed first if it does not end by itself."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"{pid} did not end")


def raises_not_held(lock: pidabs.Lock) -> bool:
    try:
        lock.release()
    except pidabs.NotHeld as exc:
        return "across_fork" in str(exc)
    return False


# A child holds nothing ----------------------------------------------------------------------------------------


def test_child_holds_nothing(name: str) -> None:
    with pidabs.Lock(name) as lock:
        assert reap(in_fork(lambda: not lock.held and raises_not_held(lock) and not lock.held)) == 0
        assert lock.held
        assert pidabs.holder(name) == pidabs.Holder(os.getpid(), os.getuid(), os.getgid())


def test_child_sees_that_its_parent_holds(name: str) -> None:
    with pidabs.Lock(name) as lock:
        ours = lock.holder()
        assert reap(in_fork(lambda: lock.locked() and lock.holder() == ours)) == 0


def test_child_has_no_descriptor_of_the_lock(name: str) -> None:
    with pidabs.Lock(name) as lock:
        file = os.readlink(f"/proc/self/fd/{lock.fileno()}")
        assert reap(in_fork(lambda: not any(file in line for line in open_descriptors()))) == 0


def test_child_that_takes_the_lock_waits_for_its_parent(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    pid = in_fork(lambda: lock.acquire(timeout=20) is lock and lock.held)
    wait_until(lambda: lock.waiters() == 1)
    lock.release()
    assert reap(pid) == 0


def test_child_that_ends_does_not_free_the_lock(name: str) -> None:
    """Neither when it is left by os._exit, nor by the interpreter's proper end, nor when it is killed."""
    code = """
    import pidabs, signal
    lock = pidabs.Lock(sys.argv[1]).acquire()
    for ending in (lambda: os._exit(0), lambda: sys.exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        pid = os.fork()
        if pid == 0:
            ending()
        os.waitpid(pid, 0)
        say(lock.held)
    pid = os.fork()
    if pid == 0:
        del lock
        os._exit(0)
    os.waitpid(pid, 0)
    say(lock.held, lock.holder().pid == os.getpid())
    """
    with child(code, args=(name,)) as process:
        for _ in range(3):
            process.expect("True")
        process.expect("True True")


def test_parents_waiters_are_not_disturbed(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(HOLD, args=(name,)) as waiter:
        wait_until(lambda: lock.waiters() == 1)
        assert reap(in_fork(lambda: True)) == 0
        assert waiter.says_nothing()
        assert lock.waiters() == 1
        lock.release()
        waiter.expect("held")


def test_worker_does_not_keep_a_killed_daemons_lock(name: str) -> None:
    code = """
    import pidabs, time
    lock = pidabs.Lock(sys.argv[1]).acquire()
    pid = os.fork()
    if pid == 0:
        say(os.getpid())
        time.sleep(60)
    listen()
    """
    with child(code, args=(name,)) as daemon:
        worker = int(daemon.read_line())
        try:
            daemon.kill()
            with pidabs.Lock(name, timeout=20):
                os.kill(worker, 0)  # it lives
        finally:
            os.kill(worker, signal.SIGKILL)


def test_lock_freed_right_after_a_fork_is_free(name: str) -> None:
    """The child may not have run yet, and must not have a copy that makes the lock look taken."""
    lock = pidabs.Lock(name)
    for _ in range(100):
        lock.acquire(0)
        pid = in_fork(lambda: True)
        lock.release()
        lock.acquire(0)
        lock.release()
        assert reap(pid) == 0


def test_fork_leaves_no_descriptors(name: str) -> None:
    with pidabs.Lock(name) as lock:
        before = open_descriptors(settled=True)
        for _ in range(5):
            reap(in_fork(lambda: True))
        assert before == open_descriptors()
        assert lock.held


# Threads and forks --------------------------------------------------------------------------------------------


def test_child_does_not_swallow_the_grant_of_a_waiting_thread(name: str) -> None:
    """The child lives on with the waiter's connection closed; its copy would be where nobody reads."""
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        blocked = must_block(lambda: pidabs.Lock(name).acquire())
        lives, ends = os.pipe()
        pid = in_fork(lambda: os.close(ends) is None and os.read(lives, 1) == b"")
        os.close(lives)
        try:
            holder.tell()
            holder.expect("released")
            lock = blocked()
            assert lock.held
            lock.release()
            assert not lock.locked()
        finally:
            os.close(ends)
            assert reap(pid) == 0


def test_waiting_threads_process_is_killed_while_its_child_lives(name: str) -> None:
    code = """
    import pidabs, threading, time
    thread = threading.Thread(target=lambda: pidabs.Lock(sys.argv[1]).acquire(), daemon=True)
    thread.start()
    listen()
    pid = os.fork()
    if pid == 0:
        say(os.getpid())
        time.sleep(60)
    listen()
    """
    lock = pidabs.Lock(name).acquire()
    with child(code, args=(name,)) as process:
        wait_until(lambda: lock.waiters() == 1)
        process.tell()
        orphan = int(process.read_line())
        try:
            process.kill()
            wait_until(lambda: lock.waiters() == 0, "the killed process to be in the queue no more")
            with child(HOLD, args=(name,)) as second:
                wait_until(lambda: lock.waiters() == 1)
                lock.release()
                second.expect("held")
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_fork_between_bind_and_listen_of_another_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket has its name, and its Lock does not know yet."""
    bound, go_on = threading.Event(), threading.Event()
    original = _descriptors.Socket.bind

    class Slow(_descriptors.Socket):
        __slots__ = ()

        def bind(self, address: Any) -> None:
            original(self, address)
            bound.set()
            assert go_on.wait(20)

    monkeypatch.setattr(_descriptors, "Socket", Slow)
    lock = pidabs.Lock(name)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    assert bound.wait(20)
    stay, go = os.pipe()
    pid = in_fork(lambda: os.close(go) is None and os.read(stay, 1) == b"")
    os.close(stay)
    go_on.set()
    thread.join()
    lock.release()
    assert not lock.locked()
    os.close(go)
    assert reap(pid) == 0


def test_fork_while_another_thread_cycles(name: str) -> None:
    """At whatever moment of an acquire, a hand-over or a release the fork comes, its child keeps no copy.

    Two processes that both fork and both cycle, so that all of it happens; then both are killed, and what forked lives.
    """
    code = """
    import pidabs, threading, time
    lock = pidabs.Lock(sys.argv[1])
    def cycle():
        while True:
            with lock: pass
    thread = threading.Thread(target=cycle, daemon=True)
    thread.start()
    children = []
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        children.append(pid)
    say(*children)
    listen()
    """
    with child(code, args=(name,)) as one, child(code, args=(name,)) as other:
        children = [int(pid) for process in (one, other) for pid in process.read_line().split()]
        try:
            one.kill()
            other.kill()
            with pidabs.Lock(name, timeout=20):
                assert len(children) == 120
                for pid in children:
                    os.kill(pid, 0)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)


# The lock moves -----------------------------------------------------------------------------------------------


def test_lock_moves_to_the_child(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    stay, go = os.pipe()
    with lock.across_fork():
        pid = in_fork(lambda: lock.held and os.close(go) is None and os.read(stay, 1) == b"")
        os.close(stay)
        assert not lock.held
        with pytest.raises(pidabs.NotHeld):
            lock.release()
    assert not lock.held
    assert pidabs.holder(name) == pidabs.Holder(pid, os.getuid(), os.getgid())
    os.close(go)
    assert reap(pid) == 0
    assert not lock.locked()


def test_waiters_go_with_the_lock(name: str) -> None:
    """They are not woken by the move, and the child hands over in their order."""
    lock = pidabs.Lock(name).acquire()
    stay, go = os.pipe()

    def hold_and_release() -> bool:
        os.close(go)
        os.read(stay, 1)
        lock.release()
        return True

    with child(HOLD, args=(name,)) as first:
        wait_until(lambda: lock.waiters() == 1)
        with lock.across_fork():
            pid = in_fork(hold_and_release)
        os.close(stay)
        assert first.says_nothing()
        assert pidabs.Lock(name).waiters() == 1
        with child(HOLD, args=(name,)) as second:
            wait_until(lambda: pidabs.Lock(name).waiters() == 2)
            os.close(go)
            first.expect("held")
            first.tell()
            second.expect("held")
        assert reap(pid) == 0


def test_lock_that_moved_and_came_back_is_freed_with_its_object(name: str) -> None:
    """The fork that is over keeps no object alive."""
    locks = [pidabs.Lock(name).acquire()]
    with locks[0].across_fork():
        assert reap(in_fork(lambda: locks[0].held)) == 0
    locks[0].acquire()
    with pytest.warns(ResourceWarning, match="collected while held"):
        locks.clear()
    assert not pidabs.Lock(name).locked()


def test_double_fork(name: str) -> None:
    """As daemons do: the first child ends, the second has the lock, and dies with it."""
    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    with lock.across_fork():
        if os.fork(): os._exit(0)
        os.setsid()
        if os.fork(): os._exit(0)
    say(os.getpid(), lock.held)
    listen()
    lock.release()
    say("released", lock.held)
    listen()
    """
    with child(code, args=(name,)) as process:
        pid, held = process.read_line().split()
        assert process.wait() == 0
        assert held == "True"
        assert pidabs.holder(name) == pidabs.Holder(int(pid), os.getuid(), os.getgid())
        with pytest.raises(pidabs.Timeout, match=f"held by pid {pid} "):
            pidabs.Lock(name).acquire(0)
        process.tell()
        process.expect("released False")
        pidabs.Lock(name).acquire(0).release()


def test_daemon_killed_after_a_double_fork_frees_the_lock(name: str) -> None:
    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    with lock.across_fork():
        if os.fork(): listen(); os._exit(0)      # a parent that stays
        if os.fork(): listen(); os._exit(0)
    say(os.getpid())
    import time
    time.sleep(60)
    """
    with child(code, args=(name,)) as process:
        pid = int(process.read_line())
        os.kill(pid, signal.SIGKILL)
        with pidabs.Lock(name, timeout=20):
            assert process.process.poll() is None


def test_lock_taken_inside_the_block_moves_too(name: str) -> None:
    lock = pidabs.Lock(name)
    with lock.across_fork():
        lock.acquire()
        pid = in_fork(lambda: lock.held)
        assert not lock.held
    assert reap(pid) == 0


def test_lock_that_is_not_held_does_not_move(name: str) -> None:
    lock = pidabs.Lock(name)
    with lock.across_fork():
        assert reap(in_fork(lambda: not lock.held)) == 0
    with lock:
        pass


def test_only_the_locks_of_the_block_move(name: str) -> None:
    lock, other = pidabs.Lock(name).acquire(), pidabs.Lock(name + "-other").acquire()
    with lock.across_fork():
        pid = in_fork(lambda: lock.held and not other.held)
    assert other.held
    assert not lock.held
    other.release()
    assert reap(pid) == 0


def test_two_locks_move_together(name: str) -> None:
    lock, other = pidabs.Lock(name).acquire(), pidabs.Lock(name + "-other").acquire()
    with lock.across_fork(), other.across_fork():
        pid = in_fork(lambda: lock.held and other.held)
    assert not lock.held
    assert not other.held
    assert reap(pid) == 0


def test_after_the_block_nothing_moves(name: str) -> None:
    with pidabs.Lock(name) as lock:
        with lock.across_fork():
            pass
        assert reap(in_fork(lambda: not lock.held)) == 0
        assert lock.held


def test_child_of_the_block_moves_it_on_no_more_when_it_has_left(name: str) -> None:
    lock = pidabs.Lock(name).acquire()

    def leave_and_fork() -> bool:
        block.__exit__(None, None, None)
        return reap(in_fork(lambda: not lock.held)) == 0 and lock.held

    block = lock.across_fork()
    block.__enter__()
    pid = in_fork(leave_and_fork)
    block.__exit__(None, None, None)
    assert reap(pid) == 0


def test_fork_of_another_thread_does_not_move_it(name: str) -> None:
    result: list[int] = []
    with pidabs.Lock(name) as lock:
        with lock.across_fork():
            thread = threading.Thread(target=lambda: result.append(reap(in_fork(lambda: not lock.held))))
            thread.start()
            thread.join()
        assert result == [0]
        assert lock.held


def test_fork_that_fails_moves_nothing(name: str) -> None:
    """Here for want of processes; RLIMIT_NPROC does not bind root."""
    code = """
    import pidabs, resource
    if os.geteuid() == 0:
        os.setgroups([]); os.setgid(12347); os.setuid(12347)
    lock = pidabs.Lock(sys.argv[1]).acquire()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    before = len(os.listdir("/proc/self/fd"))
    with lock.across_fork():
        try:
            os.fork()
        except OSError:  # of which kind Python 3.10 forgets while it runs the hooks
            say("failed")
        say(lock.held, lock.holder().pid == os.getpid())
    say(lock.held, len(os.listdir("/proc/self/fd")) - before)
    listen()
    lock.release()
    say("released")
    """
    with child(code, args=(name,)) as process:
        process.expect("failed")
        process.expect("True True")
        process.expect("True 0")
        with child(HOLD, args=(name,)) as waiter:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            process.tell()
            process.expect("released")
            waiter.expect("held")


def test_fork_without_a_descriptor_for_its_word_moves_nothing(name: str) -> None:
    """Python reports that the hook failed; the lock is never in two hands, nor in none."""
    code = """
    import pidabs, resource
    lock = pidabs.Lock(sys.argv[1]).acquire()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0); os.close(free)
    sys.unraisablehook = lambda unraisable: say(type(unraisable.exc_value).__name__)
    with lock.across_fork():
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        pid = os.fork()
        if pid == 0:
            os._exit(lock.held)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lock.held)
    lock.release()
    say(lock.locked())
    """
    with child(code, args=(name,)) as process:
        process.expect("OSError")
        process.expect("0 True")
        process.expect("False")


def test_child_killed_right_after_the_fork(name: str) -> None:
    """Before or after the lock has reached it: it is held by the parent, or free, and never stuck."""
    for _ in range(30):
        lock = pidabs.Lock(name).acquire(5)
        with lock.across_fork():
            pid = in_fork(lambda: time.sleep(60) is None)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if lock.held:
            lock.release()
        pidabs.Lock(name).acquire(5).release()


@pytest.mark.impatient
def test_child_that_is_gone_before_its_hook_moves_nothing(name: str) -> None:
    """A hook that runs before ours, as another library may have, ends the child; the parent sees EOF and holds on."""
    code = """
    import os
    os.register_at_fork(after_in_child=lambda: os._exit(7) if armed else None)
    armed = False
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    armed = True
    with lock.across_fork():
        pid = os.fork()
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lock.held, lock.holder().pid == os.getpid())
    lock.release()
    say(lock.locked())
    """
    with child(code, args=(name,)) as process:
        process.expect("7 True True")
        process.expect("False")


RELEASED_IN_FORK = """
import os, signal, threading, time
os.register_at_fork(after_in_child=lambda: time.sleep(0.4) if armed else None)  # before ours: the parent waits so long
armed = False
import pidabs
lock = pidabs.Lock(sys.argv[1]).acquire()
say("held")
listen()
def release(*_):
    try:
        lock.release()
    except pidabs.NotHeld:
        pass
armed = True
if sys.argv[2] == "thread":
    threading.Timer(0.1, release).start()
else:
    signal.signal(signal.SIGALRM, release)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
with lock.across_fork():
    pid = os.fork()
    if pid == 0:
        say("child holds", lock.held)
        time.sleep(0.5)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("who", ["thread", "handler"])
def test_release_during_the_fork_does_not_hand_over_what_moves(name: str, who: str) -> None:
    """Found by the model (drop-in-fork).

    1. The parent forks, and waits for the child's word.
    2. Meanwhile its other thread, or its signal handler, releases, and grants the lock to the waiter.
    3. The child arrives, and holds it, too.
    """
    with child(RELEASED_IN_FORK, args=(name, who)) as parent:
        parent.expect("held")
        taken = threading.Event()

        def wait() -> pidabs.Lock:
            lock = pidabs.Lock(name).acquire(20)
            taken.set()
            return lock

        waiting = must_block(wait)
        parent.tell()
        parent.expect("child holds True")
        assert not taken.wait(STILL_BLOCKED_AFTER)
        waiting().release()


def test_subprocess_does_not_move_it(name: str) -> None:
    with pidabs.Lock(name) as lock:
        with lock.across_fork():
            assert subprocess.run(["true"], check=True).returncode == 0
            assert os.system("true") == 0
            assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0
            assert lock.held
        assert lock.held


def test_program_that_is_run_does_not_keep_the_lock(name: str) -> None:
    """All is close-on-exec."""
    code = """
    import pidabs, subprocess
    lock = pidabs.Lock(sys.argv[1]).acquire()
    process = subprocess.Popen(["sleep", "60"], close_fds=False)
    say(process.pid)
    listen()
    """
    with child(code, args=(name,)) as daemon:
        sleeper = int(daemon.read_line())
        try:
            daemon.kill()
            with pidabs.Lock(name, timeout=20):
                os.kill(sleeper, 0)
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_program_that_a_moved_lock_execs_does_not_keep_it(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with lock.across_fork():
        pid = in_fork(lambda: os.execv("/bin/sleep", ["sleep", "60"]) is None)
    try:
        with pidabs.Lock(name, timeout=20):
            wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_child_outlives_a_parent_that_is_killed_in_its_fork(name: str) -> None:
    """The child's word finds nobody; that must not kill it (SIGPIPE), and it must not keep the lock."""
    code = """
    import os, signal, sys
    parent = os.getpid()
    def kill_parent():
        if armed:
            os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent: pass
    armed = False
    os.register_at_fork(after_in_child=kill_parent)   # runs before the hook of pidabs
    import pidabs, time
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    lock = pidabs.Lock(sys.argv[1]).acquire()
    armed = True
    if os.fork() == 0:
        say("lives", os.getpid(), lock.held)
        time.sleep(60)
    time.sleep(60)
    """
    with child(code, args=(name,)) as process:
        lives, pid, held = process.read_line().split()
        try:
            assert (lives, held) == ("lives", "False")
            pidabs.Lock(name).acquire(5).release()
        finally:
            os.kill(int(pid), signal.SIGKILL)


# Signal handlers that fork, and other threads -------------------------------------------------------------------------

FORKS_ON_ITS_WAY = """
    from pidabs import _descriptors
    import pidabs
    where = sys.argv[2]
    original = getattr(_descriptors, where)
    def forking(*args):
        # As a signal handler's would, with the lock, or who waits for it, on its way from the kernel to us.
        setattr(_descriptors, where, original)
        pid = os.fork()
        if pid == 0:
            copies = []
            for fd in os.listdir("/proc/self/fd"):
                try: copies.append(os.readlink(f"/proc/self/fd/{fd}"))
                except OSError: pass
            os._exit(sum(copy.startswith("socket:") for copy in copies))
        say("copies:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return original(*args)
    lock = pidabs.Lock(sys.argv[1])
    if sys.argv[3] == "release":
        lock.acquire()
        say("held")
        listen()
    setattr(_descriptors, where, forking)
    if sys.argv[3] == "release":
        lock.release()
        say("released")
    else:
        say("asks")
        lock.acquire()
        say("held")
        lock.release()
"""


@pytest.mark.parametrize("where", ["_numbers", "_adopt"])
def test_child_forked_while_the_grant_arrives_has_no_copy_of_the_lock(name: str, where: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(FORKS_ON_ITS_WAY, args=(name, where, "acquire")) as process:
        process.expect("asks")
        wait_until(lambda: lock.waiters() == 1)
        lock.release()
        process.expect("copies: 0")
        process.expect("held")
        assert process.wait() == 0
    assert not lock.locked()


def test_child_forked_while_a_waiter_is_accepted_has_no_copy_of_it(name: str) -> None:
    with child(FORKS_ON_ITS_WAY, args=(name, "_adopt", "release")) as process:
        process.expect("held")
        finish = must_block(lambda: pidabs.Lock(name).acquire())
        process.tell()
        process.expect("copies: 0")
        process.expect("released")
        finish().release()


def test_child_that_returns_to_the_acquire_that_it_was_forked_in(name: str) -> None:
    """Its handler returns into a receive that is its parent's: it is in no queue, and tries again."""
    code = """
    from pidabs import _descriptors
    import pidabs
    numbers = _descriptors._numbers
    def forking(message):
        global pid
        _descriptors._numbers = numbers
        pid = os.fork()
        return numbers(message)
    pid = -1
    lock = pidabs.Lock(sys.argv[1])
    _descriptors._numbers = forking
    say("asks")
    lock.acquire()
    if pid == 0:
        lock.release()
        os._exit(5)
    say("held", pid > 0)
    listen()
    lock.release()
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    lock = pidabs.Lock(name).acquire()
    with child(code, args=(name,)) as process:
        process.expect("asks")
        wait_until(lambda: lock.waiters() == 1)
        lock.release()
        process.expect("held True")
        wait_until(lambda: lock.waiters() == 1, "the child waits for itself")
        process.tell()
        process.expect("5")


def test_subprocess_that_has_not_come_to_its_exec_does_not_fail_the_next_try(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """subprocess forks without our hooks, and the copies last until exec."""
    monkeypatch.setattr(_queue, "_EXEC_TIME", DEADLINE)
    lock = pidabs.Lock(name).acquire()
    readable, writable = os.pipe()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        os.read(readable, 1)
        os._exit(0)
    lock.release()
    retry = must_block(lambda: lock.acquire(0))
    os.write(writable, b"x")
    retry().release()
    os.waitpid(pid, 0)
    os.close(readable)
    os.close(writable)


def test_single_try_looks_again_once_and_only_after_its_own_release(name: str) -> None:
    def looks(address: bytes) -> bool:
        sock = _descriptors.open_socket()
        steps = _queue.bind_after_exec(sock, address)
        try:
            return next(steps, None) is not None
        finally:
            steps.close()
            _descriptors.close(sock)

    lock, taken = pidabs.Lock(name), pidabs.Lock(name).address
    lock.acquire().release()
    with pidabs.Lock(name + "-other") as other:
        assert not looks(other.address)
        assert not looks(taken)  # whoever tries next may not be who needs it, so only the first does
    lock.acquire().release()
    with pidabs.Lock(name):
        assert looks(taken)
        assert not looks(taken)
