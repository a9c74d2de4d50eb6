"""The tormentor: starts a worker of each kind twice, and kills, stops and freezes them at random moments.

One of the two is a victim, killed as often as can be; the other is killed rarely, so that it lives long enough to show
leaks.  Most blows are aimed at the owner of the moment, be it the child of a worker, if there is one that may be hit.

A stall is counted while somebody waits who is neither stopped nor frozen nor killed, and the owner is not asleep
either; and only in small steps, so that a machine which does not run us for a while does not look like one.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import tempfile
import time

import pidabs

from . import order, workers
from .arena import ACQUIRED, CANCELLED, EXECED, FORKED, REFUSED, TIMED_OUT, WAITING, Arena
from .figures import Figures
from .freezer import Freezer

_PR_SET_CHILD_SUBREAPER = 36
_PACE = 0.0015  # seconds between two blows, at the most
_MERCY = 0.01  # the chance that a blow which kills is not for a victim
_AIMED = 0.7
_NAPS = (0.001, 0.003, 0.01, 0.03, 0.15)
_MOST_ASLEEP = 2
_STEP = 0.05
_PATIENCE = 20.0


class Slot:
    """Where one worker after the other lives."""

    def __init__(self, number: int, kind: str, lives_long: bool) -> None:
        self.number, self.kind, self.lives_long = number, kind, lives_long
        self.pid = self.pidfd = -1
        self.killed = False
        self.wakes = 0.0  # when it is woken again, if it is asleep
        self.frozen = False

    @property
    def can_run(self) -> bool:
        return not self.killed and not self.wakes


class Storm:
    def __init__(self, directory: str, seed: str, stall: float, sabotage: str) -> None:
        self.dice = random.Random(seed)
        self.seed, self.sabotage, self.stall = seed, sabotage, stall
        self.path = os.path.join(directory, "locked", "storm.pid")
        os.mkdir(os.path.dirname(self.path))
        kinds = [(kind, lives_long) for lives_long in (False, True) for kind in workers.KINDS]
        self.slots = [Slot(number, kind, lives_long) for number, (kind, lives_long) in enumerate(kinds)]
        self.victims = [slot for slot in self.slots if not slot.lives_long]
        self.arena = Arena(directory, len(self.slots))
        self.counts = dict.fromkeys(("kills", "kills of owners", "stops", "freezes", "workers"), 0)
        self.longest = 0.0
        self._total, self._idle, self._looked = 0, 0.0, time.monotonic()
        try:
            self.freezer: Freezer | None = Freezer(len(self.slots))
            self.freezer_found = "cgroup v2"
        except OSError as exc:
            self.freezer = None
            self.freezer_found = f"none: {exc}"
        # Orphans fall to us, so that we see them end.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def run(self, seconds: float, kills: int) -> None:
        """For so long, or until so many have been killed."""
        gc.freeze()  # a child's collections need not copy what is ours
        end = time.monotonic() + seconds
        spoiler = pidabs.Lock(self.path)
        try:
            if self.sabotage == "stall":
                spoiler.acquire()
            for slot in self.slots:
                self._start(slot)
            self._looked = time.monotonic()
            while time.monotonic() < end and self.counts["kills"] < kills and not self._seen():
                time.sleep(self.dice.random() * _PACE)
                self._strike()
                self._wake(time.monotonic())
                self._reap()
                self._look(time.monotonic())
        finally:
            if spoiler.held:
                spoiler.release()
            self._end()

    def _seen(self) -> bool:
        """What has been spoilt need not be seen twice."""
        return bool(self.sabotage and self.arena.troubles())

    def _start(self, slot: Slot) -> None:
        seed = f"{self.seed}-{self.counts['workers']}"
        self.counts["workers"] += 1
        arguments = (self.arena, slot.number, self.path, slot.kind, seed, self.sabotage)
        slot.killed = False
        slot.pid, slot.pidfd = workers.start(arguments, self.freezer)

    # Blows -----------------------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        """Mostly kill one of the victims; else send anybody to sleep."""
        kill = self.dice.random() < 0.8
        slot = self.dice.choice(self.victims if kill and self.dice.random() > _MERCY else self.slots)
        number, owner = self.arena.owner()
        if owner and self.dice.random() < _AIMED:
            aimed = self.slots[number]
            if kill and owner != aimed.pid and self._kill_child(owner):
                return
            if owner == aimed.pid and not (kill and aimed.lives_long):
                slot = aimed
        if slot.killed:
            return
        if kill:
            slot.killed = self._signal(slot.pidfd, signal.SIGKILL)
            self.counts["kills"] += slot.killed
            self.counts["kills of owners"] += slot.killed and slot.pid == owner
        elif not slot.wakes and sum(bool(each.wakes) for each in self.slots) < _MOST_ASLEEP:
            self._send_to_sleep(slot)

    def _send_to_sleep(self, slot: Slot) -> None:
        slot.wakes = time.monotonic() + self.dice.choice(_NAPS)
        slot.frozen = self.freezer is not None and self.dice.random() < 0.5
        if slot.frozen and self.freezer is not None:
            self.freezer.set(slot.number, True)
            self.counts["freezes"] += 1
        else:
            self.counts["stops"] += self._signal(slot.pidfd, signal.SIGSTOP)

    def _kill_child(self, pid: int) -> bool:
        """An owner that a worker has forked; or has been: then it is dead, and perhaps the pid is another's."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        ours = _parent(pid) in {os.getpid(), *(slot.pid for slot in self.slots)}
        killed = ours and self._signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        self.counts["kills"] += killed
        self.counts["kills of owners"] += killed
        return killed

    @staticmethod
    def _signal(pidfd: int, sig: int) -> bool:
        try:
            signal.pidfd_send_signal(pidfd, sig)
        except ProcessLookupError:
            return False
        return True

    def _wake(self, now: float) -> None:
        for slot in self.slots:
            if slot.wakes and now >= slot.wakes:
                slot.wakes = 0.0
                if slot.frozen and self.freezer is not None:
                    self.freezer.set(slot.number, False)
                else:
                    self._signal(slot.pidfd, signal.SIGCONT)

    def _reap(self) -> None:
        """Replace the workers that have ended; let their orphans go."""
        for pid in _ended_children():
            for slot in self.slots:
                if slot.pid == pid:
                    if slot.wakes:  # its successor lives in the same cgroup
                        self._wake(slot.wakes)
                    os.close(slot.pidfd)
                    self._start(slot)

    def _look(self, now: float) -> None:
        """Whether the lock still goes round."""
        step, self._looked = min(now - self._looked, _STEP), now
        total = sum(self.arena.sum(slot.number, ACQUIRED) for slot in self.slots)
        number, owner = self.arena.owner()
        if total != self._total:
            self._total, self._idle = total, 0.0
        elif not (owner and self.slots[number].wakes) and any(
            slot.can_run and self.arena.sum(slot.number, WAITING) for slot in self.slots
        ):
            self._idle += step
        self.longest = max(self.longest, self._idle)
        if self._idle > self.stall:
            self.arena.trouble("stall", f"nobody has acquired it for {self._idle:.1f} s: {pidabs.holder(self.path)}")
            self._idle = 0.0

    # The end ---------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Half of them end by themselves, half are killed; then nobody may be left, and the lock must be free."""
        self.arena.end()
        self._wake(float("inf"))
        for slot in self.slots[::2]:
            if slot.pidfd >= 0:
                self._signal(slot.pidfd, signal.SIGKILL)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and _has_children():
            _ended_children()
            time.sleep(0.01)
        for pid in _children():
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                self.arena.trouble("hang", f"process {pid} does not end: {file.read()!r}")
            os.kill(pid, signal.SIGKILL)  # a child of ours that nobody has reaped yet, so the pid is its
            os.waitpid(pid, 0)
        if self.freezer is not None:
            self.freezer.remove()
        self._look_for_remains()

    def _look_for_remains(self) -> None:
        lock = pidabs.Lock(self.path)
        if self.path in [listed.name for listed in pidabs.list_locks()]:
            self.arena.trouble("not free", f"the name is still bound: {pidabs.holder(self.path)}")
        try:
            lock.acquire(1).release()
        except pidabs.Timeout as exc:
            self.arena.trouble("not free", str(exc))
        with open("/proc/net/unix", "rb") as file:
            if lock.address[1:] in file.read():
                self.arena.trouble("not free", "connections to the lock are left")


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _ended_children() -> list[int]:
    """Reaped."""
    ended = []
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.append(pid)
    except ChildProcessError:
        pass
    return ended


def storm(seconds: float, kills: int, rounds: int, seed: str, stall: float, sabotage: str) -> Figures:
    figures = Figures("storm", seed)
    with tempfile.TemporaryDirectory(prefix="pidabs-stress-") as directory:
        began = time.monotonic()
        order_counts, inversions = order.look(os.path.join(directory, "order.pid"), rounds, seed, sabotage)
        raging = Storm(os.path.realpath(directory), seed, stall, sabotage)
        raging.run(seconds, kills)
        figures.seconds = time.monotonic() - began
        figures.freezer = raging.freezer_found
        arena = raging.arena
        for slot in raging.slots:
            figures.acquired[slot.kind] = figures.acquired.get(slot.kind, 0) + arena.sum(slot.number, ACQUIRED)
        sums = {"forks": FORKED, "execs": EXECED, "tries in vain": REFUSED, "timeouts": TIMED_OUT}
        sums["cancellations"] = CANCELLED
        raging.counts.update({k: sum(arena.sum(slot.number, v) for slot in raging.slots) for k, v in sums.items()})
        figures.counts = {**raging.counts, **order_counts}
        figures.longest_without_acquisition = raging.longest
        figures.blame([*arena.troubles(), *inversions])
    return figures
