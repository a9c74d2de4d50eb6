"""What was to be reached, as ratios within one run on two cores, and whether it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import measure_contention as contention
from . import measure_death as death
from . import measure_handoff as handoff
from . import measure_start as start
from . import measure_uncontended as uncontended
from . import measure_waiting as waiting
from .figures import Figure, Ratio, ratio
from .peers import FILE_LOCK, FLOCK, LOCK, OUR_FILE_LOCK, OUR_PID_LOCK_FILE, PID_LOCK_FILE, PROTOCOL

Look = Callable[[str], "Ratio | None"]
"""Finds the figure, or the ratio, of this subject."""


@dataclass
class Goal:
    what: str
    relation: str
    bound: float
    unit: str
    measured: float
    low: float
    high: float
    floor: float | None
    """The same of the bare protocol, see floor.py."""

    @property
    def met(self) -> bool:
        return self.measured <= self.bound if self.relation == "<=" else self.measured >= self.bound


class Found:
    """The figures of a run, to be looked up."""

    def __init__(self, figures: list[Figure]) -> None:
        self._figures = {(each.measure, each.subject, each.case): each for each in figures}

    def figure(self, measure: str, subject: str, case: str) -> Figure | None:
        return self._figures.get((measure, subject, case))

    def alone(self, measure: str, subject: str, case: str) -> Ratio | None:
        found = self.figure(measure, subject, case)
        return Ratio(found.median, found.low, found.high) if found else None

    def ratio(self, measure: str, above: str, below: str, case: str) -> Ratio | None:
        first, second = self.figure(measure, above, case), self.figure(measure, below, case)
        return ratio(first, second) if first and second else None


def goals(figures: list[Figure]) -> list[Goal]:
    """Those that this run says something about."""
    found = Found(figures)
    pairs, alone = found.ratio, found.alone
    lock, bare, flock, filelock = LOCK.name, PROTOCOL.name, FLOCK.name, FILE_LOCK.name

    def fairness(count: int) -> Look:
        return lambda ours: alone(contention.NAME, ours, f"{contention.FAIRNESS}, {contention.case(count)}")

    def speed(peer: str) -> Look:
        return lambda ours: pairs(contention.NAME, ours, peer, f"{contention.THROUGHPUT}, {contention.case(16)}")

    table: list[tuple[str, str, float, str, str, str, Look]] = [
        (
            "acquire+release: `Lock` to the bare system calls", "<=", 1.5, "", lock, bare,
            lambda ours: pairs(uncontended.NAME, ours, uncontended.FLOOR, uncontended.ONE),
        ),
        (
            "acquire+release: filelock to its stand-in", ">=", 8, "", OUR_FILE_LOCK.name, bare,
            lambda ours: pairs(uncontended.NAME, filelock, ours, uncontended.ONE),
        ),
        (
            "acquire+release: PIDLockFile to its stand-in, mirror written", ">=", 1.0, "",
            OUR_PID_LOCK_FILE.name, uncontended.FLOOR_WITH_FILE,
            lambda ours: pairs(uncontended.NAME, PID_LOCK_FILE.name, ours, uncontended.ONE),
        ),
        (
            "handoff p50: `Lock` to flock(2), on two CPUs", "<=", 4, "", lock, bare,
            lambda ours: pairs(handoff.NAME, ours, flock, handoff.TWO),
        ),
        (
            "the same, both on one CPU", "<=", 4, "", lock, bare,
            lambda ours: pairs(handoff.NAME, ours, flock, handoff.ONE),
        ),
        (
            "handoff p50: filelock, polling, to `Lock`", ">=", 150, "", lock, bare,
            lambda ours: pairs(handoff.NAME, filelock, ours, handoff.TWO),
        ),
        ("Jain index, 16 contenders", ">=", 0.999, "", lock, bare, fairness(16)),
        ("Jain index, 512 contenders", ">=", 0.999, "", lock, bare, fairness(512)),
        ("throughput, 16 contenders: `Lock` to flock(2)", ">=", 0.6, "", lock, bare, speed(flock)),
        ("throughput, 16 contenders: `Lock` to filelock", ">=", 1.3, "", lock, bare, speed(filelock)),
        (waiting.CPU, "<=", 0, "ms", lock, bare, lambda ours: alone(waiting.NAME, ours, waiting.CPU)),
        (
            "`import pidabs` over a bare interpreter", "<=", 5, "ms", lock, "",
            lambda ours: alone(start.IMPORT, ours, start.OVER),
        ),
        ("the same, in CPU time", "<=", 5, "ms", lock, "", lambda ours: alone(start.IMPORT, ours, start.CPU_OVER)),
        (
            "400 waiters whose holder is killed: all back", "<=", 50, "ms", lock, "",
            lambda ours: alone(death.NAME, ours, death.ALL),
        ),
    ]  # fmt: skip
    reached = []
    for what, relation, bound, unit, ours, floor, look in table:
        measured, least = look(ours), look(floor)
        if measured is not None:
            lowest = least.median if least is not None else None
            reached.append(Goal(what, relation, bound, unit, measured.median, measured.low, measured.high, lowest))
    return reached
