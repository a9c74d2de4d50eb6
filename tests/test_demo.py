"""`pidabs demo`, run as a user runs it: what it shows, and that nothing of it stays however it ends."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_support import one_line
from support import DEADLINE, child, wait_until

DEMO = [sys.executable, "-m", "pidabs", "demo"]

HELD = """
import sys
from pidabs.cli import demo, main
from pidabs.cli._demo_stage import Stage

say, enter = demo._say, Stage.__enter__
stages = []
def say_and_stop(text):
    say(text)
    if sys.argv[1] in text:
        stages[0].pause(60)
def remember(stage):
    stages.append(stage)
    return enter(stage)
demo._say, Stage.__enter__ = say_and_stop, remember
sys.exit(main(["demo"]))
"""
"""A demo that goes no further when it has said what the argument names, but for being interrupted."""

MOMENTS = {
    "1. A daemon": 1,
    "problem.pid says so": 2,  # and a daemon on a PID file
    "swap.pid says so": 2,  # and one on a lock
    "unrelated process": 3,  # and a child
    "waiter 3, pid": 7,  # and another daemon, and three who wait for the lock
}
"""What it says, and how many processes it is then, itself included."""

LAST = "waiter 3, pid"


class Demo:
    """A running demo, its output read piece by piece."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self.shown = b""
        self._output = output

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + DEADLINE
        while text not in self.shown:
            assert self._read(end - time.monotonic()), f"ended without {text!r}: {self.shown.decode()}"

    def type(self, keys: bytes) -> None:
        """On its terminal."""
        os.write(self._output, keys)

    def finish(self) -> int:
        """Read on to the end: the exit code."""
        end = time.monotonic() + DEADLINE
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(DEADLINE)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._output], [], [], max(0.0, seconds))
        assert ready, f"the demo is stuck: {self.shown.decode()}"
        try:
            data = os.read(self._output, 4096)
        except OSError:  # a terminal that nobody has open any more
            data = b""
        self.shown += data
        return bool(data)


@contextmanager
def demo(tmp_path: Path, *, terminal: bool = False, command: list[str] = DEMO, **env: str) -> Iterator[Demo]:
    """Run it with its temporary files in `tmp_path`, its output in a pipe or on a terminal of its own."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**{key: value for key, value in os.environ.items() if key != "NO_COLOR"}, "TMPDIR": str(tmp_path), **env},
        stdin=theirs if terminal else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: _prepare(terminal),
    )
    os.close(theirs)
    running = Demo(process, ours)
    try:
        yield running
    finally:
        process.kill()
        process.wait(DEADLINE)
        os.close(ours)


def _prepare(terminal: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in a script's background
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def held(tmp_path: Path, moment: str, *, terminal: bool = False) -> Iterator[Demo]:
    """A demo that has just said `moment` and goes no further."""
    with demo(tmp_path, terminal=terminal, command=[sys.executable, "-c", HELD, moment]) as running:
        running.read_until(moment.encode())
        yield running


def assert_nothing_left(tmp_path: Path) -> None:
    assert alive_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def alive_in(tmp_path: Path) -> list[str]:
    """The command lines of the processes that have to do with this directory.  A zombie does not count: whoever adopted
    a dead daemon may not have reaped it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(tmp_path) in command or str(tmp_path) in os.readlink(process / "cwd"):
                found.append(command)
        except OSError:
            pass  # it has ended
    return found


def test_all_is_as_claimed_and_nothing_is_left(tmp_path: Path) -> None:
    began = time.monotonic()
    with demo(tmp_path) as running:
        assert running.finish() == 0, running.shown.decode()
        took = time.monotonic() - began
        text = running.shown.decode()
        assert took < 20, text
        assert text.count("REFUSED, AlreadyLocked: ") == 2
        assert text.count("runs, pid ") == 4
        assert re.search(r"the lock was free \d+\.\d\d ms after the kill", text)
        assert text.count(": fooled") == text.count(": not fooled") == 1
        waiting = re.findall(r"waiter (\d), pid (\d+), is asleep", text)
        assert [number for number, _ in waiting] == ["1", "2", "3"]
        assert re.findall(r"got it +waiter (\d), pid (\d+), \d+\.\d\d ms", text) == waiting
        assert "\033" not in text
        assert text.isascii()  # for any terminal
        assert_nothing_left(tmp_path)


def test_stale_pid_files_name_the_process_that_was_killed(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        assert running.finish() == 0
        dead = re.findall(r"SIGKILL +pid (\d+) is dead", running.shown.decode())
        assert len(dead) == 2
        assert re.findall(r"\.pid still says (\d+)", running.shown.decode()) == dead


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sig: sig.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_it_leaves_nothing(tmp_path: Path, sig: signal.Signals, moment: str) -> None:
    with held(tmp_path, moment) as running:
        wait_until(lambda: len(alive_in(tmp_path)) == MOMENTS[moment], f"the demo is {MOMENTS[moment]} processes")
        running.process.send_signal(sig)
        assert running.finish() == 128 + sig, running.shown.decode()
        assert f"ended by {sig.name}" in running.shown.decode()
        assert "Traceback" not in running.shown.decode()
        assert_nothing_left(tmp_path)


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    with held(tmp_path, LAST, terminal=True) as running:
        running.type(b"\x03")
        assert running.finish() == 130, running.shown.decode()
        assert "Traceback" not in running.shown.decode()
        assert_nothing_left(tmp_path)


def test_a_second_ctrl_c_does_not_stop_the_tidying_up(tmp_path: Path) -> None:
    with held(tmp_path, LAST) as running:
        for _ in range(20):
            running.process.send_signal(signal.SIGINT)
        assert running.finish() == 130, running.shown.decode()
        assert_nothing_left(tmp_path)


def test_signals_that_are_ignored_stay_ignored(tmp_path: Path) -> None:
    with demo(tmp_path, command=["nohup", *DEMO]) as running:
        running.read_until(b"problem.pid says so")
        running.process.send_signal(signal.SIGHUP)
        assert running.finish() == 0, running.shown.decode()


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_its_processes_end_by_themselves(tmp_path: Path, moment: str) -> None:
    with held(tmp_path, moment) as running:
        running.process.kill()
        running.finish()
        wait_until(lambda: not alive_in(tmp_path), "the demo's processes end")
        assert "Traceback" not in running.shown.decode()


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    # So little room that it cannot say all before the reader has gone.
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * (size - 1000))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(DEMO, cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    wait_until(lambda: waiting_bytes(reader) > size - 500, "it has said something")
    os.close(reader)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (141, b"")
    assert_nothing_left(tmp_path)


def waiting_bytes(fd: int) -> int:
    number = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, number)
    return number[0]


def test_colours_are_for_terminals_that_want_them(tmp_path: Path) -> None:
    for wanted, env in (
        (True, {"TERM": "xterm"}),
        (False, {"TERM": "dumb"}),
        (False, {"TERM": "xterm", "NO_COLOR": "1"}),
    ):
        with demo(tmp_path, terminal=True, **env) as running:
            assert running.finish() == 0, running.shown.decode()
            assert (b"\033[" in running.shown) == wanted, env


def test_a_scope_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIDABS_SCOPE", "a/b")
    done = altered(tmp_path, "pass")
    assert (done.returncode, done.stdout, one_line(done.stderr)) == (2, "", True)
    assert done.stderr.startswith("pidabs: PIDABS_SCOPE: ")


def test_without_python_daemon_it_says_what_to_install(tmp_path: Path) -> None:
    done = altered(tmp_path, "sys.modules.update(daemon=None, lockfile=None)  # as if they could not be imported")
    assert done.returncode == 69
    assert done.stdout == ""
    assert 'pip install "pidabs[daemon]"' in done.stderr
    assert one_line(done.stderr)


def test_without_pidfds_it_says_what_it_needs(tmp_path: Path) -> None:
    done = altered(tmp_path, "import os; del os.pidfd_open  # as in a Python made for an older kernel")
    assert (done.returncode, done.stdout, one_line(done.stderr)) == (69, "", True)
    assert "Linux 5.3" in done.stderr


def test_an_output_that_lacks_a_character(tmp_path: Path) -> None:
    (tmp_path / "\u2192").mkdir()
    with demo(tmp_path / "\u2192", PYTHONIOENCODING="ascii") as running:
        assert running.finish() == 0, running.shown.decode()
        assert b"/\\u2192/" in running.shown


@pytest.mark.parametrize(
    ("alteration", "complaint"),
    [
        ("demo._programs = lambda stage: programs(stage)[1:] * 2", "the daemon was not refused, it runs as pid "),
        ("demo._programs = lambda stage: programs(stage)[:1] * 2", "the lock's holder is None, not the daemon"),
        ("demo._AFTER = 'raise SystemExit(\"no luck\")'", "the daemon does not start\nno luck"),
        ("demo._BEFORE = 'no such line'", "the two daemons differ"),
        ("demo.DEADLINE, demo._WAITER = 2.0, ''", "waiter 1 did not join the queue"),
    ],
    ids=["not-refused", "not-held", "not-started", "not-swapped", "not-waiting"],
)
def test_what_is_not_as_claimed_fails_the_demo(tmp_path: Path, alteration: str, complaint: str) -> None:
    done = altered(tmp_path, f"programs = demo._programs; {alteration}")
    assert done.returncode == 1, done.stdout
    assert "\nNOT AS CLAIMED: " in done.stdout
    assert complaint in done.stdout
    assert "All as claimed" not in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def altered(tmp_path: Path, alteration: str) -> subprocess.CompletedProcess[str]:
    """Run a demo with something in it changed."""
    code = f"import sys; from pidabs.cli import demo, main; {alteration}\nsys.exit(main(['demo']))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


# The daemon of the demo, which the demo only runs as copies of its file -------------------------------------------

DAEMON = """
    import socket, sys
    from pidabs.cli._demo_daemon import main
    main(sys.argv[1], int(sys.argv[2]))
"""


@contextmanager
def daemon_of(pidfile: Path) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE)
    with ours, theirs, child(DAEMON, args=(str(pidfile), str(theirs.fileno())), pass_fds=(theirs.fileno(),)):
        theirs.close()
        yield ours


def test_daemon_runs_until_the_demo_ends(tmp_path: Path) -> None:
    pidfile = tmp_path / "x.pid"
    with daemon_of(pidfile) as demo:
        assert demo.recv(100) == b"sees None"
        said, [pidfd], _, _ = socket.recv_fds(demo, 100, 1)
        assert said == f"runs {pidfile.read_text().strip()}".encode()
        with daemon_of(pidfile) as second:
            assert second.recv(100) == b"sees " + said[5:]
            assert second.recv(1000) == f"refused AlreadyLocked: {pidfile} is already locked".encode()
            assert second.recv(100) == b""
    with os.fdopen(pidfd):
        assert select.select([pidfd], [], [], DEADLINE)[0]
    assert not pidfile.exists()
