"""`pidabs signal` and `pidabs stop`: the holder gets the signal, nobody else does, and "stopped" means gone."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cli_support import COMMAND, INHERITED, PASSED_ON, no_file, no_netlink, one_line, run, run_as_another
from support import HOLD, Child, child, in_namespace, must_block, needs_root, run_in, wait_until

import pidabs
from pidabs import _holder
from pidabs.cli import stop

CATCHES = """
    import pidabs, signal
    def caught(number, frame):
        os.write(1, signal.Signals(number).name.encode() + b"\\n")  # it may strike amidst a say()
    for number in signal.SIGUSR1, signal.SIGTERM: signal.signal(number, caught)
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say("held")
    while listen() != "release": pass
    lock.release()
    say("released")
    listen()
"""
"""Child code: take the lock, tell each signal and live on."""

SELF = """
    # As `pidabs run NAME -- pidabs COMMAND NAME` does.
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    os.set_inheritable(lock.fileno(), True)
    os.execv(sys.executable, [sys.executable, "-m", "pidabs", sys.argv[2], *sys.argv[1:2], *sys.argv[3:]])
"""


@contextmanager
def holding(name: str, code: str = HOLD, **options: Any) -> Iterator[Child]:
    with child(code, args=(name,), **options) as process:
        process.expect("held")
        yield process


def lives(process: Child) -> bool:
    return process.process.poll() is None


# signal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("term", 15), ("15", 15), ("0", 0), ("64", 64), ("RTMIN", signal.SIGRTMIN)]
    + [("sigrtmin+1", signal.SIGRTMIN + 1), ("CHLD", signal.SIGCHLD), ("SIGRTMAX-14", signal.SIGRTMAX - 14)]
    + [(bad, None) for bad in ("", "FOO", "65", "-1", "1.5", "_DFL", "SIG_DFL", "SIG", "9" * 30, "TERM+1", "RTMIN+99")]
    + [(bad, None) for bad in ("\u0661", "RTMIN+", "RTMIN+x", "RTMIN+\u00b2", "RTMIN-1", "RTMAX-99", "RTMAX+1")]
    + [(bad, None) for bad in ("__name__", "\x1b", "SIGSIGTERM", "NALS", " TERM", "TERM\n")],
)  # fmt: skip
def test_signal_names(text: str, number: int | None) -> None:
    assert stop.signal_number(text) == number


@pytest.mark.parametrize("name_of_signal", ["USR1", "SIGUSR1", str(int(signal.SIGUSR1))])
def test_signal_is_sent(name: str, name_of_signal: str) -> None:
    with holding(name, CATCHES) as process:
        done = run("signal", name, name_of_signal)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        process.expect("SIGUSR1")


def test_no_signal_at_all(name: str) -> None:
    with holding(name) as process:
        assert run("signal", name, "0").returncode == 0
        assert lives(process)


def test_nobody_to_signal(name: str) -> None:
    done = run("signal", name, "TERM")
    assert (done.returncode, done.stdout) == (3, "")
    assert one_line(done.stderr)


def test_signal_that_does_not_exist(name: str) -> None:
    with holding(name) as process:
        done = run("signal", name, "FOO")
        assert (done.returncode, one_line(done.stderr)) == (2, True)
        assert lives(process)


@needs_root
@pytest.mark.parametrize("command", [("signal", "TERM"), ("stop",), ("stop", "--kill")], ids=str)
def test_not_permitted(name: str, command: tuple[str, ...]) -> None:
    with holding(name) as process:
        done = run_as_another(command[0], name, *command[1:])
        assert (done.returncode, done.stdout, one_line(done.stderr)) == (1, "", True)
        assert f"not permitted to signal pid {process.pid} (" in done.stderr
        assert "uid 0; do it as that user or as root" in done.stderr
        assert lives(process)


@pytest.mark.parametrize("command", ["signal", "stop"])
def test_holder_in_another_pid_namespace(name: str, command: str) -> None:
    namespace = in_namespace("--pid", "--fork", "--mount-proc")
    code = "from pidabs.cli import main\nsay(main(sys.argv[1:]))"
    with holding(name) as process:
        done = run_in(namespace, code, command, name, *(["9"] if command == "signal" else ["--kill"]))
        assert (done.stdout, one_line(done.stderr)) == ("4\n", True)
        assert "in another pid namespace, with uid" in done.stderr
        assert lives(process)


@pytest.mark.parametrize("command", [("signal", "KILL"), ("signal", "0"), ("stop",), ("stop", "--kill")], ids=str)
def test_never_itself(name: str, command: tuple[str, ...]) -> None:
    done = run_in(["env"], SELF, name, *command)
    assert (done.returncode, done.stdout, one_line(done.stderr)) == (1, "", True)
    assert "it does not signal itself" in done.stderr


@pytest.mark.parametrize("command", [("signal", "KILL"), ("stop", "--kill")], ids=str)
def test_who_has_merely_inherited_it_is_named_and_left_alone(name: str, command: tuple[str, ...]) -> None:
    with child(INHERITED, args=(name,)) as process:
        keeper, brand = sorted((process.read_line(), process.read_line()), key=int, reverse=True)
        done = run(command[0], name, *command[1:])
        assert (done.returncode, one_line(done.stderr)) == (4, True)
        assert f"pid {brand}, which took lock '{name}', has it no longer; pid {keeper} (" in done.stderr
        os.kill(int(keeper), 0)


@needs_root
@pytest.mark.parametrize("command", [("signal", "KILL"), ("stop", "--kill")], ids=str)
def test_lock_pressed_into_the_hands_of_another_user(name: str, command: tuple[str, ...]) -> None:
    """Nobody can make root stop a process by handing it a lock."""
    with child(PASSED_ON, args=(name,)) as process:
        process.expect("has it")
        done = run(command[0], name, *command[1:])
        assert (done.returncode, one_line(done.stderr)) == (4, True)
        assert lives(process)


@needs_root
def test_lock_pressed_into_the_hands_of_another_user_with_a_full_queue(name: str) -> None:
    with child(PASSED_ON.replace("listen(9)", "listen(0)"), args=(name,)) as process:
        process.expect("has it")
        with socket.socket(socket.AF_UNIX) as only:
            only.connect(pidabs.Lock(name).address)
            for command in ("signal", name, "KILL"), ("stop", name, "--kill"):
                done = run(*command)
                assert (done.returncode, one_line(done.stderr)) == (4, True)
                assert "its queue is full" in done.stderr
        assert lives(process)


def test_kernel_that_only_answers_a_connection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pidabs import _diag

    with holding(name, CATCHES) as process:
        monkeypatch.setattr(_diag, "socket", no_netlink)
        monkeypatch.setattr(_diag, "open", no_file, raising=False)
        assert pidabs.cli.main(["signal", name, "USR1"]) == 0
        process.expect("SIGUSR1")


# stop ------------------------------------------------------------------------------------------------------------


def test_stop(name: str) -> None:
    with holding(name) as process:
        done = run("stop", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"pid {process.pid} (")
        assert done.stdout.endswith(f") is gone; lock '{name}' is free\n")
        assert process.wait() == -signal.SIGTERM


def test_stop_a_process_that_was_asked_often_who_it_is(name: str) -> None:
    with holding(name) as process:
        for _ in range(_holder.MOST_ASKED + 1):
            pidabs.holder(name)
        assert run("stop", name).returncode == 0
        assert process.wait() == -signal.SIGTERM


def test_nothing_to_stop(name: str) -> None:
    done = run("stop", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lock '{name}' is free: nothing to stop\n", "")


def test_stop_waits_until_the_process_is_gone(name: str) -> None:
    """It lets go of the lock and lives on: that is not enough."""
    with holding(name, CATCHES) as process:
        finish = must_block(lambda: run("stop", name))
        process.expect("SIGTERM")
        process.tell("release")
        process.expect("released")
        assert run("status", name).returncode == 3
        must_block(finish)
        process.kill()
        assert finish().returncode == 0


def test_stop_says_when_the_process_has_let_go_but_lives_on(name: str) -> None:
    with holding(name, CATCHES) as process:
        finish = must_block(lambda: run("stop", "-w", "3", name))
        process.expect("SIGTERM")
        process.tell("release")
        process.expect("released")
        done = finish()
        assert (done.returncode, done.stdout, one_line(done.stderr)) == (1, "", True)
        assert f"has let go of lock '{name}', but still runs 3 s after SIGTERM" in done.stderr
        assert lives(process)


def test_stop_a_process_that_ignores_it(name: str) -> None:
    with holding(name, CATCHES) as process:
        done = run("stop", "--timeout", "0.2", name)
        assert (done.returncode, done.stdout, one_line(done.stderr)) == (1, "", True)
        assert "still runs, 0.2 s after SIGTERM; wait longer, or stop it with --kill" in done.stderr
        process.expect("SIGTERM")
        assert run("stop", "--timeout", "5", "--kill", name).returncode == 0
        process.expect("SIGTERM")
        assert process.wait() == -signal.SIGKILL


def test_stop_a_suspended_process(name: str) -> None:
    with holding(name) as process:
        process.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        done = run("stop", "-w", "0.2", name)
        assert (done.returncode, one_line(done.stderr)) == (1, True)
        assert "is suspended, and gets SIGTERM when it goes on" in done.stderr
        assert run("stop", "-w", "0.2", "--kill", name).returncode in (0, 1)  # it may take longer to die
        assert process.wait() == -signal.SIGKILL


def test_the_advice_for_a_suspended_process_names_the_scope(name: str) -> None:
    with holding(name, env={"PIDABS_SCOPE": "blue"}) as process:
        process.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        done = run("stop", "-w", "0", "--scope", "blue", name)
        assert f"; `pidabs signal --scope 'blue' '{name}' CONT`, or " in done.stderr


def test_stopped_process_goes_on_and_ends(name: str) -> None:
    with holding(name) as process:
        process.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        run("stop", "-w", "0", name)
        assert run("signal", name, "CONT").returncode == 0
        assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize("end", ["killed", "released"])
def test_waiter_that_takes_over_is_named_and_not_stopped(name: str, end: str) -> None:
    code = textwrap.dedent(HOLD)
    if end == "released":
        code = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(lock.release()))\n" + code
    with holding(name, code) as first, child(HOLD, args=(name,)) as second:
        wait_until(lambda: pidabs.Lock(name).waiters() == 1)
        done = run("stop", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"pid {first.pid} (")
        assert f"is gone; lock '{name}' is now held by pid {second.pid} (" in done.stdout
        assert done.stdout.endswith("), which was not stopped\n")
        second.expect("held")
        assert lives(second)


def test_stop_from_inside_a_command_that_has_the_lock(name: str) -> None:
    """`pidabs run x -- sh -c 'pidabs stop x'`: the shell is the holder, and we have its lock open, too."""
    code = """
    import pidabs, subprocess
    lock = pidabs.Lock(sys.argv[1]).acquire()
    command = [sys.executable, "-m", "pidabs", "stop", sys.argv[1]]
    subprocess.run(command, pass_fds=[lock.fileno()])
    """
    with subprocess.Popen(
        [sys.executable, "-c", Child.PREAMBLE + textwrap.dedent(code), name], cwd="/", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(20) == -signal.SIGTERM
        assert f"pid {process.pid} (" in said
        assert f"lock '{name}' is free when this command has ended" in said


def test_holder_that_ends_by_itself(name: str) -> None:
    with holding(name, CATCHES) as process:
        finish = must_block(lambda: run("stop", name))
        process.expect("SIGTERM")
        process.tell("release")
        process.expect("released")
        process.tell()
        assert (finish().returncode, process.wait()) == (0, 0)


def test_unreaped_process_is_gone(name: str) -> None:
    with holding(name) as process:
        done = run("stop", name)
        assert (done.returncode, done.stderr) == (0, "")
        os.kill(process.pid, 0)  # still there for who waits for it, that is for us
        assert process.process.returncode is None


@needs_root
def test_stop_the_holder_of_another_user(name: str) -> None:
    code = "import pidabs\nos.setgroups([]); os.setgid(12348); os.setuid(12349)\n"
    with holding(name, code + textwrap.dedent(HOLD)) as process:
        assert run("stop", name).returncode == 0
        assert process.wait() == -signal.SIGTERM


def test_stop_leaves_the_exit_code_when_it_cannot_say_so(name: str) -> None:
    with holding(name), open("/dev/full", "w") as full:
        done = run("stop", name, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert (done.returncode, one_line(done.stderr)) == (0, True)


def test_stop_interrupted(name: str) -> None:
    with holding(name, CATCHES) as holder, subprocess.Popen([*COMMAND, "stop", name], cwd="/", stderr=-1) as process:
        holder.expect("SIGTERM")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert lives(holder)


# Between one look and the next --------------------------------------------------------------------------------------


def asked(name: str) -> pidabs.Holder:
    holder = pidabs.holder(name)
    assert holder is not None
    return holder


@pytest.mark.parametrize("gone", [0, 1])
def test_holder_that_ended_after_it_was_found(name: str, gone: int, capfd: pytest.CaptureFixture[str]) -> None:
    """To signal it has failed; to stop it has succeeded."""
    with holding(name) as process:
        holder = asked(name)
        process.kill()
    assert stop._send(pidabs.Lock(name), holder, signal.SIGTERM, "pid 1", gone=gone) == gone
    assert ("pid 1 is gone; `pidabs status`" in capfd.readouterr().err) == (gone == 1)


def test_holder_without_a_handle_is_not_signalled(name: str) -> None:
    """The kernel gave us none: it may be another process by now."""
    with holding(name) as process:
        holder = pidabs.Holder(process.pid, os.getuid(), os.getgid())
        with pytest.raises(stop.Unknown, match="cannot signal pid 1: no handle"):
            stop._send(pidabs.Lock(name), holder, signal.SIGTERM, "pid 1")
        assert not stop.has_ended(holder)
        assert lives(process)


def test_kernel_that_can_no_longer_be_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be said is left out, and nothing made up."""

    def fail(*_: object) -> None:
        raise PermissionError(1, "no netlink")

    lock = pidabs.Lock(name)
    with holding(name) as process:
        holder = asked(name)
        monkeypatch.setattr(stop._diag, "find", fail)
        monkeypatch.setattr(stop._diag, "sockets", fail)
        assert stop._seen(lock) == "try again"
        assert stop._successor(lock, None) == "who holds the lock now is not known"
        arguments = argparse.Namespace(timeout=0.1, kill=False)
        assert "pid 1 still runs, 0.1 s after SIGTERM" in stop._still_there(lock, holder, "pid 1", arguments)
        arguments.kill = True
        assert "still dying" in stop._still_there(lock, holder, "pid 1", arguments)
        process.kill()
    assert not stop._stopped(holder)
