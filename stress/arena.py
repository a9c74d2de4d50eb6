"""The memory that the workers of a storm share, and the detector of two owners.

The detector does not use the lock.  Whoever has acquired the lock enters the mark, and leaves it before releasing.  It
is in two parts, which see different things:

- A POSIX record lock on a plain file.  Who enters and finds it taken is a second owner, and learns the first one's pid.
  A stopped or frozen owner keeps it.  A killed one loses it before it loses the lock: an exiting or exec'ing process
  drops record locks as it closes each descriptor (filp_close), but its sockets go only after all of them (task work).
  So nobody can be granted a dead process's lock and still find its mark: there are no false alarms.  All that a kill
  can hide is a second owner that enters in those last microseconds of the first.
- A token in shared memory: written by entering, and looked at in the middle and at the end.  If it has changed, then
  somebody else has entered meanwhile.  It tells tasks and threads of one process apart, which a record lock does not,
  and would see two owners if record locks failed.  What a dead process left there is overwritten, and means nothing.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
import time

_RECORD = struct.Struct("hhqqi4x")  # struct flock
_TAKE = _RECORD.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_LEAVE = _RECORD.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)

_ENDED, _TOKEN, _FIRST_ROW = 0, 1, 8
SEATS = 4
"""Threads or tasks that one worker may have."""
TURNS = 20
"""Of a worker, between two looks at what it has open."""
ACQUIRED, REFUSED, TIMED_OUT, CANCELLED, FORKED, EXECED, WAITING, _ROW = range(8)


class Arena:
    """One array of 64-bit cells.  A row belongs to one seat of one slot, so that nobody adds to a cell at once."""

    def __init__(self, directory: str, slots: int) -> None:
        self.cells = memoryview(mmap.mmap(-1, 8 * (_FIRST_ROW + slots * SEATS * (_ROW + 1)))).cast("Q")
        self.slots = slots
        self.marker = os.path.join(directory, "marker")
        self._trouble = os.path.join(directory, "trouble")
        for path in self.marker, self._trouble:
            with open(path, "xb"):
                pass

    @property
    def ended(self) -> bool:
        return bool(self.cells[_ENDED])

    def end(self) -> None:
        self.cells[_ENDED] = 1

    def add(self, slot: int, seat: int, what: int) -> None:
        self.cells[self._at(slot, seat, what)] += 1

    def set_waiting(self, slot: int, seat: int, waiting: bool) -> None:
        self.cells[self._at(slot, seat, WAITING)] = waiting

    def sum(self, slot: int, what: int) -> int:
        return sum(self.cells[self._at(slot, seat, what)] for seat in range(SEATS))

    def _at(self, slot: int, seat: int, what: int) -> int:
        return _FIRST_ROW + (slot * SEATS + seat) * (_ROW + 1) + what

    def owner(self) -> tuple[int, int]:
        """(slot, pid) of whoever entered the mark last; (0, 0) if that one has left it."""
        token = self.cells[_TOKEN]
        return token >> 56, token >> 32 & 0xFFFFFF

    def trouble(self, kind: str, text: str) -> None:
        """One line, in one write, so that it survives whatever comes next."""
        line = f"{kind} {time.monotonic():.4f} pid {os.getpid()}: {text}".replace("\n", " | ")
        fd = os.open(self._trouble, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)

    def troubles(self) -> list[str]:
        with open(self._trouble, encoding="utf-8") as file:
            return file.read().splitlines()


class Mark:
    """One process's access to the mark.  Only one to a process: closing any descriptor of the file drops the record."""

    def __init__(self, arena: Arena, slot: int) -> None:
        self._arena = arena
        self._slot = slot
        self.fd = os.open(arena.marker, os.O_RDWR | os.O_CLOEXEC)

    def enter(self) -> int:
        cells = self._arena.cells
        left = cells[_TOKEN]
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLK, _TAKE)
        except OSError:
            found = _RECORD.unpack(fcntl.fcntl(self.fd, fcntl.F_GETLK, _TAKE))
            self._arena.trouble("violation", f"two owners: process {found[4]} has it, too")
        if left >> 32 & 0xFFFFFF == os.getpid() & 0xFFFFFF:
            self._arena.trouble("violation", "two owners: another task or thread of this process has it, too")
        token = self._slot << 56 | (os.getpid() & 0xFFFFFF) << 32 | random.getrandbits(32)
        cells[_TOKEN] = token
        return token

    def check(self, token: int) -> None:
        found = self._arena.cells[_TOKEN]
        if found != token:
            pid = found >> 32 & 0xFFFFFF
            self._arena.trouble("violation", f"two owners: {f'process {pid}' if pid else 'somebody'} came in between")

    def leave(self, token: int) -> None:
        self.check(token)
        self._arena.cells[_TOKEN] = 0
        fcntl.fcntl(self.fd, fcntl.F_SETLK, _LEAVE)
