"""What /proc shows of processes: who has a socket open, and for how long a process has been running.

Rule: where /proc counts pids otherwise than we do, as that of a container's host, it shows nothing.
"""

from __future__ import annotations

import os

from .. import _holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


GUARD = "pidabs-guard"
"""What the guard of `pidabs run --supervise` calls itself: it holds the lock of a killed pidabs for a moment."""


def is_guard(pid: int) -> bool:
    return _holder._read_proc(pid, "comm").rstrip() == GUARD.encode()


def has_open(pid: int, inode: int) -> bool | None:
    """Whether that process has the socket open; None if that cannot be seen."""
    if not _holder._proc_is_ours():
        return None
    try:
        return any(is_open(pid, fd, inode) for fd in os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return None


def openers(inodes: set[int]) -> dict[int, dict[int, str]]:
    """Inode -> the processes that are seen to have it open, and as which descriptor."""
    found: dict[int, dict[int, str]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for pid, fd, target in _open_files():
        if target in wanted:
            found.setdefault(wanted[target], {})[pid] = fd
    return found


def _open_files() -> Iterator[tuple[int, str, str]]:
    if not _holder._proc_is_ours():
        return
    for entry in filter(str.isdigit, os.listdir("/proc")):
        directory = f"/proc/{entry}/fd"
        try:
            for fd in os.listdir(directory):
                try:
                    yield int(entry), fd, os.readlink(f"{directory}/{fd}")
                except OSError:
                    pass  # closed meanwhile
        except OSError:
            pass  # gone meanwhile, or not to be seen


def running(pid: int | None) -> float | None:
    """For how many seconds; None if that cannot be seen."""
    from time import CLOCK_BOOTTIME, clock_gettime

    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            started = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return max(0.0, clock_gettime(CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))


def is_open(pid: int, fd: str, inode: int) -> bool:
    return _holder._link(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]"
