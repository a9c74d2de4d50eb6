"""Where `pidabs demo` plays: its temporary directory, its processes, its waiting.

Rules:
- Whatever ends the demo, no process of it stays.  It is left through `Stage.__exit__`, also on Ctrl-C and SIGTERM; and
  each process ends by itself once the demo's end of its socket, pipe or lock is gone, should the demo be SIGKILLed.
- Only processes of ours are signalled, through a pidfd: opened before the child was reaped, or sent by the daemon
  itself.
- A signal interrupts the demo only where it waits; every wait is for a descriptor and has a deadline (_interrupt.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

from ._interrupt import Interruptible, UnexpectedError, readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FAREWELL = 5.0


class Stage(Interruptible):
    """A context manager; inside it processes can be started, and are gone at its end."""

    def __enter__(self) -> Stage:
        self._processes: list[Daemon | Process] = []
        super().__enter__()
        self.directory = Path(tempfile.mkdtemp(prefix="pidabs-demo-"))
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.end()
        shutil.rmtree(self.directory, ignore_errors=True)
        super().__exit__()

    def daemon(self, program: Path, pidfile: Path) -> Daemon:
        """Start a daemon, and wait until it says that it runs, or is refused."""
        daemon = Daemon(self, program, pidfile)
        self._processes.append(daemon)
        daemon.hear()
        return daemon

    def process(self, code: str, *arguments: str, stdout: int = subprocess.DEVNULL) -> Process:
        """Start a Python process that runs `code`.  Its stdin ends when the demo does."""
        command = [sys.executable, "-c", code, *arguments]
        process = Process(command, self.directory, stdin=subprocess.PIPE, stdout=stdout)
        self._processes.append(process)
        return process


class Process:
    """A child process."""

    def __init__(self, command: list[str], directory: Path, **options: Any) -> None:
        # Its own session: Ctrl-C is for the demo, which ends it.
        self._process = subprocess.Popen(command, cwd=directory, start_new_session=True, **options)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)  # not reaped yet, so it is this child

    def runs(self) -> bool:
        """Whether it is alive."""
        return not readable(0, self._pidfd)

    def end(self) -> None:
        """SIGKILL, and reap."""
        _kill(self._pidfd)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        os.close(self._pidfd)


class Daemon:
    """A daemon that was started: `pid` if it runs, `refusal` if it does not, and whose pid it `saw` before that."""

    def __init__(self, stage: Stage, program: Path, pidfile: Path) -> None:
        self.pid: int | None = None
        self.refusal: str | None = None
        self.saw: int | None = None
        self._stage = stage
        self._pidfd: int | None = None
        self._errors = tempfile.TemporaryFile(dir=stage.directory)  # noqa: SIM115
        self._link, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            self._launcher = Process(
                [sys.executable, str(program), str(pidfile), str(theirs.fileno())],
                stage.directory,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
            )

    def hear(self) -> None:
        """Wait for its reports, until one says what has become of it."""
        while self.pid is None and self.refusal is None:
            self._stage.wait(self._link.fileno(), "a daemon's report")
            data, passed, _, _ = socket.recv_fds(self._link, 4096, 1)
            word, _, rest = data.decode().partition(" ")
            if word == "sees":
                self.saw = None if rest == "None" else int(rest)
            elif word == "runs":
                self.pid, (self._pidfd,) = int(rest), passed
            elif word == "refused":
                self.refusal = rest
            else:  # it has ended
                self._errors.seek(0)
                raise UnexpectedError(
                    f"the daemon does not start\n{self._errors.read().decode(errors='replace')}".rstrip()
                )

    def kill(self) -> float:
        """SIGKILL: the moment of it.  Dying may take it a while."""
        assert self._pidfd is not None
        now = monotonic()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        return now

    def wait(self) -> None:
        """Until it is dead."""
        assert self._pidfd is not None
        self._stage.wait(self._pidfd, f"the death of pid {self.pid}")

    def end(self) -> None:
        """Let it end by itself, as it does when the demo is gone; kill it if it does not."""
        self._link.shutdown(socket.SHUT_WR)
        # Nothing more to read: all who had the other end are gone, even a daemon we have not heard of yet.
        while readable(_FAREWELL, self._link.fileno()) and self._link.recv(4096):
            pass
        self._launcher.end()
        if self._pidfd is not None:
            if not readable(_FAREWELL, self._pidfd):
                _kill(self._pidfd)
                readable(_FAREWELL, self._pidfd)
            os.close(self._pidfd)
        self._link.close()
        self._errors.close()


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
