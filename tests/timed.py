"""Exceptions out of signal handlers, by a timer that runs out at a random microsecond of acquire and release.

A child process is hit, of which nobody but itself knows what it has open; rivals wait for the same lock meanwhile.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
import warnings
from contextlib import ExitStack
from types import FrameType

import kinds
from injection import PATIENCE, STALL, Injected, is_ours
from support import child

import pidabs

MODES = ("alone", "alone, mirrored", "contended", "contended, mirrored")
_TRIES = 80  # for each exception that is to strike, at the most
_RIVALS = 2

RIVAL = """
    import select, time
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    longest = 0.0
    say("going")
    while not select.select([0], [], [], 0)[0]:
        began = time.monotonic()
        lock.acquire()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.0002)
        lock.release()
    say(int(longest * 1000))
"""

HIT = f"""
    sys.path.append({os.path.dirname(os.path.abspath(__file__))!r})
    import timed
    timed.hit(*sys.argv[1:])
    listen()
"""


def strike(kind: str, mode: str, path: str, count: int, seed: str, patience: float = 90.0) -> int:
    """Hit a process until so many exceptions have struck, and see to it that all is well: how many tries it took.

    Raises AssertionError.
    """
    with ExitStack() as stack:
        contended = "contended" in mode
        rivals = [stack.enter_context(child(RIVAL, args=(path,))) for _ in range(_RIVALS if contended else 0)]
        for rival in rivals:
            rival.expect("going")
        victim = stack.enter_context(child(HIT, args=(kind, mode, path, str(count), seed)))
        verdict = victim.read_line(deadline=patience)
        assert verdict.startswith("fine"), verdict
        for rival in rivals:
            rival.tell()
            assert int(rival.read_line()) < STALL, "a rival stalled"
        pidabs.Lock(path).acquire(PATIENCE).release()  # while the process that was hit still lives
        return int(verdict.split()[1])


def hit(kind: str, mode: str, path: str, count: str, seed: str) -> None:
    """In the child."""
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    print(_Victim(kind, mode, path, random.Random(seed)).run(int(count)), flush=True)


class _Victim:
    def __init__(self, kind: str, mode: str, path: str, dice: random.Random) -> None:
        self.lock = kinds.ALL[kind](path, mirror="mirrored" in mode)
        self.awaited = isinstance(self.lock, kinds.Driven)
        self.contended = "contended" in mode
        self.dice = dice
        self.armed = False
        signal.signal(signal.SIGALRM, self._handle)

    def _handle(self, _: int, frame: FrameType | None) -> None:
        if not self.armed:  # it comes late, from a timer that has been stopped
            return
        if not self.awaited:
            raise Injected
        # What is raised in asyncio's own machinery may be the end of its loop, or of a task, whoever uses it.
        while frame is not None:
            if is_ours(frame.f_code):
                raise Injected
            frame = frame.f_back

    def run(self, count: int) -> str:
        began = time.monotonic()
        for _ in range(20):
            self._once()
        longest = (time.monotonic() - began) / 20 * 1.3
        before = _open()
        hits = tries = 0
        while hits < count:
            tries += 1
            if tries > count * _TRIES:
                return f"hardly any exceptions struck: {hits} in {tries} tries"
            hits += self._try(self.dice.uniform(1e-6, longest))
            if self.lock.held:
                self.lock.release()
            if _open() > before:
                gc.collect()
                if _open() > before:
                    return f"leaked after {hits} exceptions: {before} descriptors, now {_files()}"
            left = not self.contended and os.path.exists(self.lock.path)
            if left and self.lock.mirrored and not getattr(self.lock, "leaves_file", False):
                return f"the mirror was left behind after {hits} exceptions"
        return f"fine {tries}"

    def _try(self, delay: float) -> bool:
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, delay)
                self._once()
            finally:
                self.armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Injected:
            return True
        return False

    def _once(self) -> None:
        if self.lock.acquire(self.dice.choice((0, 0.0005, 5)) if self.contended else 5):
            if self.dice.random() < 0.3:
                time.sleep(0.0001)
            self.lock.release()


def _open() -> int:
    return len(os.listdir("/proc/self/fd"))


def _files() -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.lexists(link)]
