"""python docs/when_free.py [--count N] [--heap MIB]: when, after SIGKILL, is an abstract socket's name free?

Kills small processes that hold a name, N in each of four ways to notice it, and looks at once at the other signs.
Needs Linux and Python 3.10, not pidabs, and signals only processes that it has started.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DEADLINE = 60_000  # ms
LONGEST_LIFE = 120  # seconds; if this script is killed, nothing of it stays for longer


class Holder:
    """A child that listens on a name; a copy of its listener may be open in a child of its own."""

    def __init__(self, heap: int, copied: bool) -> None:
        self.address = b"\0when-free-%d-%d" % (os.getpid(), time.monotonic_ns())
        ready, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                hold(self.address, heap, copied, say)
            finally:
                os._exit(1)
        os.close(say)
        said = os.read(ready, 16)
        os.close(ready)
        if not said:
            raise SystemExit("the holder did not start")
        self.copy = int(said)
        self.pidfd = os.pidfd_open(self.pid)
        self.copy_fd = os.pidfd_open(self.copy) if self.copy else -1
        self.waiter = socket.socket(socket.AF_UNIX)
        self.waiter.connect(self.address)
        self.reaped = False

    def name_is_free(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.bind(self.address)
            except OSError:
                return False
            return True

    def pidfd_is_readable(self, timeout: int = 0) -> bool:
        return comes(self.pidfd, timeout)

    def waitpid_has_it(self, options: int = os.WNOHANG) -> bool:
        self.reaped = self.reaped or os.waitpid(self.pid, options)[0] == self.pid
        return self.reaped

    def end(self) -> None:
        """Whatever has happened."""
        if not self.reaped:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.copy_fd >= 0:
            try:
                signal.pidfd_send_signal(self.copy_fd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            comes(self.copy_fd, DEADLINE)
            os.close(self.copy_fd)
        os.close(self.pidfd)
        self.waiter.close()


def hold(address: bytes, heap: int, copied: bool, say: int) -> None:
    signal.alarm(LONGEST_LIFE)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    memory = bytearray(heap << 20)
    memory[::4096] = b"x" * len(memory[::4096])  # else the kernel has nothing to take back
    copy = os.fork() if copied else -1
    if copy == 0:
        signal.alarm(LONGEST_LIFE)  # a fork takes none along
    if copy != 0:
        os.write(say, b"%d" % max(copy, 0))
    os.close(say)
    while True:
        signal.pause()


def comes(fd: int, timeout: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout))


@contextmanager
def holder(heap: int, copied: bool = False) -> Iterator[Holder]:
    one = Holder(heap, copied)
    try:
        yield one
    finally:
        one.end()


WAYS: dict[str, tuple[bool, Callable[[Holder], object]]] = {
    "the name: who waits in its backlog is woken": (False, lambda one: comes(one.waiter.fileno(), DEADLINE)),
    "the pidfd: it is readable": (False, lambda one: one.pidfd_is_readable(DEADLINE)),
    "waitpid: it returns": (False, lambda one: one.waitpid_has_it(0)),
    "the pidfd, and a forked child has a copy": (True, lambda one: one.pidfd_is_readable(DEADLINE)),
}
"""How one may notice the death: whether a child has a copy of the listener, and what waits for it."""


def measure(way: str, count: int, heap: int) -> tuple[list[float], list[int]]:
    """Milliseconds from kill() to the notice; how often the name was free, the pidfd readable, and waitpid had it."""
    copied, wait = WAYS[way]
    times, seen = [], [0, 0, 0]
    for _ in range(count):
        with holder(heap, copied) as one:
            began = time.monotonic_ns()
            signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
            wait(one)
            times.append((time.monotonic_ns() - began) / 1e6)
            for sign, look in enumerate((one.name_is_free, one.pidfd_is_readable, one.waitpid_has_it)):
                seen[sign] += look()
    return times, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="kills for each row (default: 200)")
    parser.add_argument("--heap", type=int, default=0, metavar="MIB", help="memory that each holder has written to")
    options = parser.parse_args()
    print(f"{'noticed by':45} {'median ms':>10} {'longest':>8}   then: name free, pidfd readable, waitpid")
    for way in WAYS:
        times, seen = measure(way, options.count, options.heap)
        shown = "   ".join(f"{number} of {options.count}" for number in seen)
        print(f"{way:45} {statistics.median(times):10.2f} {max(times):8.2f}   {shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
