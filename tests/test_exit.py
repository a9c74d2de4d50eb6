"""The end of a process: its locks are free, and where it ends properly they go to the head of their queues."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HOLD, child, inode, run_in, wait_until

import pidabs

ENDS = {
    "end of the program": "",
    "sys.exit": "sys.exit(3)",
    "exception": "raise KeyError",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "sys.exit in a with": "with pidabs.Lock(sys.argv[1] + '-inner'): sys.exit(3)",
}
SUDDEN_ENDS = {
    "os._exit": "os._exit(0)",
    "SIGTERM": "os.kill(os.getpid(), 15)",
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "SIGSEGV": "os.kill(os.getpid(), 11)",
    "exec": "os.execv('/bin/sleep', ['sleep', '0.01'])",
}

HOLD_AND_END = """
import pidabs, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
lock = pidabs.Lock(sys.argv[1]).acquire()
say("held")
listen()
"""


@pytest.mark.parametrize("end", [*ENDS, *SUDDEN_ENDS])
def test_lock_is_free_however_its_holder_ends(name: str, end: str) -> None:
    code = HOLD_AND_END + {**ENDS, **SUDDEN_ENDS}[end]
    with child(code, args=(name,), stderr=subprocess.DEVNULL) as process:
        process.expect("held")
        process.tell()
        process.wait()
        pidabs.Lock(name).acquire(0).release()


@pytest.mark.parametrize("end", ENDS)
def test_head_of_the_queue_is_granted_at_a_proper_end(name: str, end: str) -> None:
    """Not a race of all: the socket itself goes to the first who came, and so on."""
    with child(HOLD_AND_END + ENDS[end], args=(name,), stderr=subprocess.DEVNULL) as process, ExitStack() as stack:
        process.expect("held")
        waiters = []
        for count in range(3):
            waiters.append(stack.enter_context(child(HOLD, args=(name,))))
            wait_until(lambda count=count: pidabs.Lock(name).waiters() == count + 1)  # type: ignore[misc]
        before = inode(name)
        process.tell()
        for waiter in waiters:
            waiter.expect("held")
            assert before == inode(name)
            waiter.tell()
            waiter.expect("released")


def test_mirror_is_removed_at_a_proper_end(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    code = "import pidabs\nlock = pidabs.Lock(sys.argv[1], mirror=True).acquire()\nsay('held')\nlisten()"
    with child(code, args=(str(path),)) as process:
        process.expect("held")
        assert f"{process.pid}\n" == path.read_text()
        process.tell()
        assert process.wait() == 0
    assert os.listdir(tmp_path) == []


def test_all_locks_are_released(name: str) -> None:
    code = """
    import pidabs
    locks = [pidabs.Lock(f"{sys.argv[1]}-{number}").acquire() for number in range(5)]
    say("held"); listen()
    """
    with child(code, args=(name,)) as process, ExitStack() as stack:
        process.expect("held")
        names = [f"{name}-{number}" for number in range(5)]
        waiters = [stack.enter_context(child(HOLD, args=(one,))) for one in names]
        wait_until(lambda: all(pidabs.Lock(one).waiters() == 1 for one in names))
        inodes = [inode(one) for one in names]
        process.tell()
        for waiter in waiters:
            waiter.expect("held")
        assert inodes == [inode(one) for one in names]


def test_lock_of_a_thread_that_has_ended_is_released(name: str) -> None:
    code = """
    import pidabs, threading
    lock = pidabs.Lock(sys.argv[1])
    thread = threading.Thread(target=lock.acquire); thread.start(); thread.join()
    say("held"); listen()
    """
    with child(code, args=(name,)) as process:
        process.expect("held")
        with child(HOLD, args=(name,)) as waiter:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            before = inode(name)
            process.tell()
            waiter.expect("held")
            assert before == inode(name)


def test_daemon_thread_that_holds_is_not_robbed_while_it_runs(name: str) -> None:
    """1. the main thread ends; 2. exit handlers run, ours too; 3. the daemon thread is at work still, and holds."""
    code = """
    import atexit
    @atexit.register                  # registered first, so it runs last
    def last():
        say("at exit", lock.held)
        listen()
        say("still", lock.held)
    import pidabs, threading
    lock = pidabs.Lock(sys.argv[1])
    started = threading.Event()
    def work():
        with lock:
            started.set()
            threading.Event().wait()
    threading.Thread(target=work, daemon=True).start()
    started.wait()
    say("held"); listen()
    """
    with child(code, args=(name,)) as process:
        process.expect("held")
        with child(HOLD, args=(name,)) as waiter:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            process.tell()
            process.expect("at exit True")
            assert waiter.says_nothing()
            process.tell()
            process.expect("still True")
            waiter.expect("held")


def test_thread_that_waits_does_not_keep_a_process_from_ending(name: str) -> None:
    code = """
    import pidabs, threading
    threading.Thread(target=pidabs.Lock(sys.argv[1]).acquire, daemon=True).start()
    listen()
    """
    with pidabs.Lock(name) as lock, child(code, args=(name,)) as process:
        wait_until(lambda: lock.waiters() == 1)
        process.tell()
        assert process.wait() == 0
        assert lock.waiters() == 0


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "raise KeyError"])
def test_forked_child_that_ends_does_not_release_its_parents_lock(name: str, end: str) -> None:
    code = f"""
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    pid = os.fork()
    if pid == 0:
        {end}
    os.waitpid(pid, 0)
    say("held", lock.held)
    listen()
    """
    with child(code, args=(name,), stderr=subprocess.DEVNULL) as process:
        process.expect("held True")
        with child(HOLD, args=(name,)) as waiter:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            assert waiter.says_nothing()
            process.tell()
            waiter.expect("held")


def test_moved_lock_is_released_at_the_childs_exit_and_not_at_its_parents(name: str) -> None:
    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say("held"); listen()
    with lock.across_fork():
        pid = os.fork()
    if pid: sys.exit(0)
    say("child"); listen()
    """
    with child(code, args=(name,)) as process:
        process.expect("held")
        with child(HOLD, args=(name,)) as waiter:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            before = inode(name)
            process.tell()
            process.expect("child")
            assert process.wait() == 0
            assert waiter.says_nothing()
            process.tell()
            waiter.expect("held")
            assert before == inode(name)


@pytest.mark.impatient
def test_stopped_waiter_does_not_keep_a_process_from_ending(name: str) -> None:
    with child(HOLD_AND_END, args=(name,)) as process:
        process.expect("held")
        with child(HOLD, args=(name,)) as waiter:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            waiter.signal(signal.SIGSTOP)
            process.tell()
            assert process.wait() == 0
            pidabs.Lock(name).acquire(0).release()
            waiter.signal(signal.SIGCONT)
            waiter.expect("held")


def test_end_says_nothing(name: str) -> None:
    """No warning, no traceback: a lock that is held at the end is no mistake."""
    with child(HOLD_AND_END, args=(name,), stderr=subprocess.STDOUT) as process:
        process.expect("held")
        process.tell()
        assert process.wait() == 0
        assert process.process.stdout is not None
        assert process.process.stdout.read() == b""


def test_hold_that_follows_a_lost_one_is_released_once(name: str) -> None:
    """Lost while another thread waited for it through the same object, which was then noted twice."""
    code = """
    import pidabs, threading
    from pidabs import _held
    lock = pidabs.Lock(sys.argv[1]).acquire()
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    while not lock.waiters(): os.sched_yield()
    os.close(lock.fileno())
    thread.join()
    say(len(_held.held), lock.held)
    """
    done = run_in(["env"], code, name)
    assert (done.stdout, done.stderr) == ("1 True\n", "")
