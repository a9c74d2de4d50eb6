"""Real programs, started as they are and on our locks, and what they leave running."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import wait_until

WAYS = {
    "stock": (sys.executable, "-P"),
    "pidabs": (sys.executable, "-P", "-m", "pidabs.compat"),
}
"""How a Python program is started: the words in front of its own."""


def environment(target: Path | None = None, **values: object) -> dict[str, str]:
    """This process's, with what pip has put into `target`."""
    path = {} if target is None else {"PYTHONPATH": str(target)}
    return {**os.environ, **path, **{name: str(value) for name, value in values.items()}}


def _tasks(pid: int, file: str) -> Iterator[str]:
    """What this file of each of its threads says."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            yield (task / file).read_text()
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended


CLOCK_NANOSLEEP = {"x86_64": "230 ", "aarch64": "115 "}.get(platform.machine(), "unknown")


def sleeps_for_a_time(pid: int) -> bool:
    """Whether a thread of it is in time.sleep(), as one that polls is."""
    return any(call.startswith(CLOCK_NANOSLEEP) for call in _tasks(pid, "syscall"))


def _switches(pid: int) -> int:
    lines = "".join(_tasks(pid, "status")).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def times_awake(pid: int, seconds: float = 1.0) -> int:
    """How often a process that waits wakes up and goes to sleep again in so much time."""
    before = _switches(pid)
    time.sleep(seconds)  # not for something to happen: it is what is measured
    return _switches(pid) - before


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry), int(fields[1])


def children() -> set[int]:
    """Of this process, zombies included."""
    return {pid for pid, parent in _parents() if parent == os.getpid()}


def kill(pid: int) -> None:
    """SIGKILL to a child, and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def daemons_are_ours() -> Iterator[None]:
    """What detaches itself becomes a child of this process, so that it can be reaped, and is killed at the end."""
    set_child_subreaper, prctl = 36, ctypes.CDLL(None).prctl
    assert prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    before = children()
    try:
        yield
    finally:
        while left := children() - before:
            for pid in left:
                kill(pid)
        prctl(set_child_subreaper, 0, 0, 0, 0)


def reap_all_but(*pids: int) -> None:
    """Wait for the end of all children but these."""
    wait_until(lambda: _reaped() and not children() - set(pids), f"only {pids} are left")


def _reaped() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return True
