"""`pidabs run --supervise`: the lock ends with the command; signals, stops and the exit status pass through us."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_support import one_line
from programs import PIDABS, TELL, Program, Terminal, finish, is_free, pidabs_run, program, run, terminal
from support import DEADLINE, in_namespace, state, wait_until

import pidabs
from pidabs import _diag

PASSED_ON = [
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGABRT,
    signal.SIGCONT,
    signal.SIGWINCH,
    signal.SIGRTMIN + 3,
]

REPORT = """
import os, signal, sys
numbers = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTOU}
stops = {signal.SIGTSTP, signal.SIGTTIN} if "stops" in sys.argv else set()
def say(text):
    os.write(1, text.encode() + b"\\n")
signal.pthread_sigmask(signal.SIG_BLOCK, numbers - stops)
say(f"ready {os.getpid()}")
while True:
    number = signal.sigwait(numbers - stops)
    say(f"got {int(number)}")
    if number == signal.SIGTERM:
        sys.exit(5)
"""
"""A command that says what signals it gets, and ends at SIGTERM."""


def reporter(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-c", REPORT, *words)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def guard_of(running: Program, command: int) -> int:
    """The other child."""
    (found,) = set(children(running.pid)) - {command}
    return found


def test_the_holder_is_pidabs(name: str) -> None:
    with pidabs_run("--supervise", name, *TELL) as running:
        command = int(running.read_line())
        holder = pidabs.holder(name)
        assert holder is not None
        assert holder.pid == running.pid != command
        running.tell("9")
        assert running.wait() == 9


def test_the_lock_ends_with_the_command_not_with_its_children(name: str) -> None:
    with pidabs_run("--supervise", name, "sh", "-c", "exec 3<&0; cat <&3 & echo $!; exit 3") as running:
        grandchild = int(running.read_line())
        assert running.wait() == 3
        assert is_free(name)
        assert state(grandchild) in "SR"
        assert run("-n", name, "true").returncode == 0


@pytest.mark.parametrize("number", PASSED_ON, ids=lambda number: str(int(number)))
def test_signals_are_passed_on_once(name: str, number: int) -> None:
    with pidabs_run("--supervise", name, *reporter()) as running:
        running.read_line()
        running.signal(number)
        if number == signal.SIGTERM:
            running.expect(f"got {int(signal.SIGTERM)}")
        else:
            running.expect(f"got {int(number)}")
            running.signal(signal.SIGTERM)
            running.expect(f"got {int(signal.SIGTERM)}")
        assert running.wait() == 5
        assert is_free(name)


def test_a_storm_of_signals(name: str) -> None:
    with pidabs_run("--supervise", name, *reporter()) as running:
        running.read_line()
        for _ in range(200):
            for number in signal.SIGHUP, signal.SIGUSR1, signal.SIGINT:
                running.signal(number)
        running.signal(signal.SIGTERM)
        while running.read_line() != f"got {int(signal.SIGTERM)}":
            pass
        assert running.wait() == 5


def test_what_the_command_sends_its_group_does_not_come_back(name: str) -> None:
    code = "import os, signal; " + REPORT.replace("while True:", "os.kill(0, signal.SIGUSR1)\nwhile True:", 1)
    with pidabs_run("--supervise", name, sys.executable, "-c", code, start_new_session=True) as running:
        running.read_line()
        running.expect(f"got {int(signal.SIGUSR1)}")
        running.signal(signal.SIGUSR2)  # would come after it
        running.expect(f"got {int(signal.SIGUSR2)}")
        running.signal(signal.SIGTERM)
        running.expect(f"got {int(signal.SIGTERM)}")
        assert running.wait() == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV], ids=str)
def test_killed_by_a_signal(name: str, number: signal.Signals) -> None:
    with pidabs_run("--supervise", name, "sleep", "60") as running:
        wait_until(lambda: len(children(running.pid)) == 2)
        command = wait_until(lambda: next((pid for pid in children(running.pid) if named(pid, "sleep")), 0))
        os.kill(command, number)
        assert running.wait() == 128 + number


def named(pid: int, name: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == name


# Killed ---------------------------------------------------------------------------------------------------------------


def kill_at_once(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("what", ["pidabs", "guard", "both"])
def test_killed_the_command_does_not_run_without_the_lock(name: str, what: str) -> None:
    with pidabs_run("--supervise", name, *TELL) as running, ExitStack() as stack:
        command = int(running.read_line())
        pidfd = os.pidfd_open(command)
        stack.callback(os.close, pidfd)
        guard = guard_of(running, command)
        kill_at_once(*{"pidabs": [running.pid], "guard": [guard], "both": [running.pid, guard]}[what])
        if what == "guard":
            wait_until(lambda: state(guard) == "Z")
            assert run("-n", name, "true").returncode == 1
            running.tell("4")
            assert running.wait() == 4
        else:
            assert select.select([pidfd], [], [], DEADLINE)[0]
        assert is_free(name) or wait_until(lambda: is_free(name))


def test_the_next_owner_never_meets_the_killed_command(name: str, tmp_path: Path) -> None:
    """While the command lives, killed or not, nobody else has the lock: 20 times."""
    for _ in range(20):
        with pidabs_run("--supervise", name, *TELL) as running:
            pidfd = os.pidfd_open(int(running.read_line()))
            os.kill(running.pid, signal.SIGKILL)
            lock = pidabs.Lock(name).acquire(timeout=DEADLINE)
            assert select.select([pidfd], [], [], 0)[0]
            lock.release()
            os.close(pidfd)


UNKILLABLE = """
import os, sys
from pidabs.cli import _supervise, main
kill = _supervise.signal.pidfd_send_signal
def refuse(pidfd, number):
    raise PermissionError(1, "another user's")
_supervise.signal.pidfd_send_signal = refuse
_supervise._die_with_parent = lambda: None
sys.exit(main(sys.argv[1:]))
"""


def test_a_command_that_cannot_be_killed_keeps_the_lock(name: str) -> None:
    """As one that has become another user's: the guard holds the lock until it ends."""
    with program(sys.executable, "-c", UNKILLABLE, "run", "--supervise", name, *TELL) as running:
        command = int(running.read_line())
        guard = guard_of(running, command)
        running.kill()
        wait_until(lambda: (held := pidabs.holder(name)) is not None and held.pid == guard)
        assert state(command) in "SR"
        running.tell("0")
        wait_until(lambda: is_free(name))


def test_killed_before_the_command_starts(name: str) -> None:
    source = """
import os, signal, sys
from pidabs.cli import _supervise, main
_supervise._start_guard = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""
    with program(sys.executable, "-c", source, "run", "--supervise", name, "echo", "ran") as running:
        assert running.wait() == -signal.SIGKILL
        assert running.process.stdout is not None
        assert running.process.stdout.read() == b""
        wait_until(lambda: is_free(name))


def test_the_command_killed_before_it_starts(name: str) -> None:
    source = """
import os, signal, sys
from pidabs.cli import _supervise, main
start = _supervise._start_guard
def kill_first(lock, command):
    os.kill(command, signal.SIGKILL)
    os.waitid(os.P_PID, command, os.WEXITED | os.WNOWAIT)
    return start(lock, command)
_supervise._start_guard = kill_first
sys.exit(main(sys.argv[1:]))
"""
    done = finish(sys.executable, "-c", source, "run", "--supervise", name, "echo", "ran")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGKILL, "", "")
    assert is_free(name)


def test_without_proc_there_is_a_guard(name: str) -> None:
    hidden = [*in_namespace("--mount"), "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if finish(*hidden, "true").returncode:
        pytest.skip("/proc cannot be hidden here")
    with program(*hidden, PIDABS, "run", "--supervise", name, *TELL) as running:
        command = int(running.read_line())
        opened = Path(f"/proc/{guard_of(running, command)}/fd")
        wait_until(lambda: len(list(opened.iterdir())) == 3)
        running.tell("0")
        assert (running.wait(), running.errors()) == (0, "")


def test_without_a_guard_it_does_not_start(name: str) -> None:
    source = """
import errno, os, sys
from pidabs.cli import _supervise, main
def refuse(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
_supervise.os.pidfd_open = refuse
sys.exit(main(sys.argv[1:]))
"""
    with program(sys.executable, "-c", source, "run", "--supervise", name, "echo", "ran") as running:
        assert running.wait() == 71
        assert running.process.stdout is not None
        assert running.process.stdout.read() == b""
        assert "Too many open files" in running.errors()
        assert is_free(name)


def test_stopped_by_force_the_guard_is_no_successor(name: str) -> None:
    """It holds the lock until the command is dead, too; here it is held up itself."""
    source = "import sys; from pidabs.cli import main, stop; stop._TAKE_OVER = {}; sys.exit(main(sys.argv[1:]))"
    for patience, said in (60, f"; lock '{name}' is free\n"), (0, f"; lock '{name}' is free when the command that it "):
        with pidabs_run("--supervise", name, "sh", "-c", "trap '' TERM; echo $$; read line; read line") as running:
            guard = guard_of(running, int(running.read_line()))
            wait_until(lambda: Path(f"/proc/{guard}/comm").read_text() == "pidabs-guard\n")  # noqa: B023
            os.kill(guard, signal.SIGSTOP)
            wait_until(lambda: state(guard) == "T")  # noqa: B023
            words = ("stop", "--timeout", "0.1", "--kill", name)
            with program(sys.executable, "-c", source.format(patience), *words) as stopping:
                assert running.wait() == -signal.SIGKILL
                if patience:
                    assert stopping.says_nothing()
                    os.kill(guard, signal.SIGCONT)
                assert said in stopping.read_line() + "\n"
                assert stopping.wait() == 0
            if not patience:
                os.kill(guard, signal.SIGCONT)
            wait_until(lambda: is_free(name))


def test_no_process_can_be_started(name: str) -> None:
    source = """
import os, sys
from pidabs.cli import _supervise, main
def refuse():
    raise BlockingIOError(0, "Error")  # as Python 3.11 says it
_supervise.os.fork = refuse
sys.exit(main(sys.argv[1:]))
"""
    done = finish(sys.executable, "-c", source, "run", "--supervise", name, "echo", "ran")
    assert (done.returncode, done.stdout) == (71, "")
    assert done.stderr.startswith("pidabs: cannot start a process: Resource temporarily unavailable; raise the limit")
    assert one_line(done.stderr)
    assert is_free(name)


def test_the_guard_keeps_nothing_else_open(name: str) -> None:
    with pidabs_run("--supervise", name, *TELL) as running:
        guard = guard_of(running, int(running.read_line()))

        def kinds() -> list[str]:
            links = [os.readlink(entry) for entry in Path(f"/proc/{guard}/fd").iterdir()]
            return sorted(link.partition(":[")[0] for link in links)

        wait_until(lambda: len(kinds()) == 3)
        assert "socket" in kinds()  # the lock; the others are pidfds
        assert os.readlink(f"/proc/{guard}/cwd") == "/"
        running.tell("0")
        assert running.wait() == 0


def test_dead_entries_are_dropped_now_and_then(name: str) -> None:
    source = "import sys; from pidabs.cli import _supervise, main; _supervise._TIDY_EVERY = 0.01; main(sys.argv[1:])"
    with program(sys.executable, "-c", source, "run", "--supervise", name, *TELL) as running:
        running.read_line()
        for _ in range(20):
            pidabs.holder(name)
        address = pidabs.Lock(name).address

        def entries() -> int:
            listed = _diag.find(address)
            assert listed is not None
            return listed.queued

        wait_until(lambda: entries() == 0)
        running.tell("0")


# On a terminal --------------------------------------------------------------------------------------------------------


def supervised(name: str, *command: str) -> tuple[str, ...]:
    return (PIDABS, "run", "--supervise", name, *command)


@pytest.mark.parametrize("shell", [False, True], ids=["leader", "job"])
@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)], ids=["^C", "^\\"])
def test_keys_reach_the_command_once(name: str, shell: bool, key: bytes, number: signal.Signals) -> None:
    with terminal(*supervised(name, *reporter()), shell=shell) as on:
        on.read_until(b"ready")
        on.type(key)
        on.read_until(b"got %d" % number)
        supervisor = pidabs.holder(name)
        assert supervisor is not None
        supervisor.send_signal(signal.SIGUSR2)  # passed on after the key's, if that were passed on
        on.read_until(b"got %d" % signal.SIGUSR2)
        supervisor.send_signal(signal.SIGTERM)
        on.read_rest()
        assert on.screen.count(b"got %d\r" % number) == 1


def test_a_hangup_reaches_the_command_of_a_leader(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"trap 'echo hup >> {log}; exit 0' HUP; echo ready; while :; do read x || sleep 0.01; done"
    with terminal(*supervised(name, "sh", "-c", script)) as on:
        on.read_until(b"ready")
        on.hang_up()
        assert on.process.wait(DEADLINE) == 0
        assert log.read_text() == "hup\n"
        assert is_free(name)


def stop_and_continue(on: Terminal, name: str, stop: bytes | int) -> None:
    on.read_until(b"ready ")
    wait_until(lambda: on.screen.rstrip().rpartition(b"ready ")[2].isdigit() or on._read(1))
    command = int(on.screen.rpartition(b"ready ")[2])
    supervisor = pidabs.holder(name)
    assert supervisor is not None
    assert supervisor.pid is not None
    for turn in 1, 2, 3:
        supervisor.send_signal(signal.SIGUSR2)
        # It answers, so it is itself again after the last time.
        on.read_until(lambda screen, turn=turn: screen.count(b"got %d\r" % signal.SIGUSR2) == turn)  # type: ignore[misc]
        if isinstance(stop, bytes):
            on.type(stop)
        else:
            supervisor.send_signal(stop)
        assert on.report() == f"stopped by {int(signal.SIGTSTP)}"
        assert state(command) == state(supervisor.pid) == "T"
        seen = on.screen.count(b"got %d" % signal.SIGCONT)
        on.foreground()
        on.read_until(lambda screen, seen=seen: screen.count(b"got %d" % signal.SIGCONT) > seen)  # type: ignore[misc]
    supervisor.send_signal(signal.SIGTERM)
    assert on.report() == "ended with 5"
    on.read_rest()
    assert on.screen.count(b"got %d" % signal.SIGCONT) == 3


def test_ctrl_z_stops_and_fg_continues(name: str) -> None:
    with terminal(*supervised(name, *reporter("stops")), shell=True) as on:
        stop_and_continue(on, name, b"\x1a")


def test_a_stop_sent_to_us_stops_both(name: str) -> None:
    with terminal(*supervised(name, *reporter("stops")), shell=True) as on:
        stop_and_continue(on, name, signal.SIGTSTP)


def test_a_command_that_took_our_place_stops_by_itself(name: str) -> None:
    with terminal(PIDABS, "run", name, *TELL, shell=True) as on:
        on.read_until(b"\n")
        on.type(b"\x1a")
        assert on.report() == f"stopped by {int(signal.SIGTSTP)}"
        on.foreground()
        on.type(b"3\n")
        assert on.report() == "ended with 3"


def test_a_waiter_can_be_stopped_and_does_not_block_the_others(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with terminal(*supervised(name, "echo", "done"), shell=True) as on:
        on.read_until(b"waiting 1 s")
        on.type(b"\x1a")
        assert on.report() == f"stopped by {int(signal.SIGTSTP)}"
        with pidabs_run(name, *TELL) as other:
            wait_until(lambda: lock.waiters() == 2)
            lock.release()
            other.read_line()
            on.foreground()
            other.tell("0")
            assert other.wait() == 0
        assert on.report() == "ended with 0"
        on.read_rest()
        assert b"done" in on.screen
