"""Programs for the tests of the command: started as a user starts them, in a pipe or on a terminal, and read line by
line."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import DEADLINE, Child

import pidabs

PIDABS = str(Path(sys.executable).with_name("pidabs"))

TELL = ("sh", "-c", "echo $$; read line; exit $line")
"""A command that says its pid, and ends with the code that it is told."""


class Program(Child):
    """A Child that is any program."""

    def __init__(self, *command: object, **options: Any) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": "/"} | options
        self.process = subprocess.Popen(list(map(str, command)), **options)
        self._pending = b""

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextmanager
def program(*command: object, **options: Any) -> Iterator[Program]:
    running = Program(*command, **options)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def pidabs_run(*words: object, **options: Any) -> Iterator[Program]:
    with program(PIDABS, "run", *words, **options) as running:
        yield running


def finish(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/", "check": False} | options
    return subprocess.run(list(map(str, command)), **options)


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return finish(PIDABS, "run", *words, **options)


def is_free(name: str) -> bool:
    return not pidabs.Lock(name).locked()


class Terminal:
    """A program on a terminal of its own, as the leader of its session; or, with `shell`, as a job of a little shell.

    The shell reports what becomes of its job on a pipe, and continues it in the foreground when told.
    """

    def __init__(self, command: list[str], shell: bool = False, columns: int = 200, **environment: str) -> None:
        self.screen = b""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        reports, report = os.pipe()
        orders, order = os.pipe()
        self._reports, self._order = reports, order
        words = [sys.executable, "-c", _SHELL, str(report), str(orders), *command] if shell else command
        self.process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd="/",
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
            pass_fds=(report, orders) if shell else (),
            preexec_fn=_take_terminal,
        )
        for fd in theirs, report, orders:
            os.close(fd)

    def read_until(self, condition: Callable[[bytes], object] | bytes) -> None:
        wanted = condition if callable(condition) else lambda screen: condition in screen
        end = time.monotonic() + DEADLINE
        while not wanted(self.screen):
            assert self._read(end - time.monotonic()), f"ended without {condition!r}: {self.screen!r}"

    def read_rest(self) -> None:
        end = time.monotonic() + DEADLINE
        while self._read(end - time.monotonic()):
            pass

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, seconds))
        assert ready, f"stuck: {self.screen!r}"
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # nobody has it open any more
            data = b""
        self.screen += data
        return bool(data)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def hang_up(self) -> None:
        os.close(self._ours)
        self._ours = -1

    def report(self) -> str:
        """What the shell says next of its job."""
        ready, _, _ = select.select([self._reports], [], [], DEADLINE)
        assert ready, f"no news of the job: {self.screen!r}"
        return os.read(self._reports, 100).decode().strip()

    def foreground(self) -> None:
        """Tell the shell to continue its job."""
        os.write(self._order, b"fg\n")

    def shown(self) -> list[str]:
        """The lines as they look in the end."""
        lines = []
        for line in self.screen.decode().replace("\r\n", "\n").split("\n"):
            cells: list[str] = []
            for part in line.split("\r"):
                clears, part = part.startswith("\033[K"), part.replace("\033[K", "")
                cells[: len(cells) if clears else len(part)] = part
            lines.append("".join(cells).rstrip())
        return lines

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        for fd in self._ours, self._reports, self._order:
            if fd >= 0:
                os.close(fd)


@contextmanager
def terminal(*command: object, **options: Any) -> Iterator[Terminal]:
    on = Terminal(list(map(str, command)), **options)
    try:
        yield on
    finally:
        on.close()


def _take_terminal() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in a script's background
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


_SHELL = """
import os, signal, sys
report, orders = int(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.close(report), os.close(orders)
    os.execvp(sys.argv[3], sys.argv[3:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.tcsetpgrp(0, os.getpgrp())
        os.write(report, b"stopped by %d\\n" % os.WSTOPSIG(status))
        os.read(orders, 10)
        os.tcsetpgrp(0, job)
        os.killpg(job, signal.SIGCONT)
    else:
        os.write(report, b"ended with %d\\n" % os.waitstatus_to_exitcode(status))
        break
"""
