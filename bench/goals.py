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
from .peers import FILE_LOCK, FLOCK, LOCK, OUR_FILE_LOCK, OUR_PID_LOCK_FILE, PID_LOCK_FILE


@dataclass
class Goal:
    what: str
    relation: str
    bound: float
    unit: str
    measured: float
    low: float
    high: float

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
    lock, flock, filelock = LOCK.name, FLOCK.name, FILE_LOCK.name

    def fairness(count: int) -> Ratio | None:
        return alone(contention.NAME, lock, f"{contention.FAIRNESS}, {contention.case(count)}")

    def speed(peer: str) -> Ratio | None:
        return pairs(contention.NAME, lock, peer, f"{contention.THROUGHPUT}, {contention.case(16)}")

    table: list[tuple[str, str, float, str, Callable[[], Ratio | None]]] = [
        (
            "acquire+release: `Lock` to the bare system calls", "<=", 1.5, "",
            lambda: pairs(uncontended.NAME, lock, uncontended.FLOOR, uncontended.ONE),
        ),
        (
            "acquire+release: filelock to its stand-in", ">=", 8, "",
            lambda: pairs(uncontended.NAME, filelock, OUR_FILE_LOCK.name, uncontended.ONE),
        ),
        (
            "acquire+release: PIDLockFile to its stand-in, mirror written", ">=", 1.0, "",
            lambda: pairs(uncontended.NAME, PID_LOCK_FILE.name, OUR_PID_LOCK_FILE.name, uncontended.ONE),
        ),
        (
            "handoff p50: `Lock` to flock(2), on two CPUs", "<=", 4, "",
            lambda: pairs(handoff.NAME, lock, flock, handoff.TWO),
        ),
        (
            "the same, both on one CPU", "<=", 4, "",
            lambda: pairs(handoff.NAME, lock, flock, handoff.ONE),
        ),
        (
            "handoff p50: filelock, polling, to `Lock`", ">=", 150, "",
            lambda: pairs(handoff.NAME, filelock, lock, handoff.TWO),
        ),
        ("Jain index, 16 contenders", ">=", 0.999, "", lambda: fairness(16)),
        ("Jain index, 512 contenders", ">=", 0.999, "", lambda: fairness(512)),
        ("throughput, 16 contenders: `Lock` to flock(2)", ">=", 0.6, "", lambda: speed(flock)),
        ("throughput, 16 contenders: `Lock` to filelock", ">=", 1.3, "", lambda: speed(filelock)),
        (f"{waiting.CPU}", "<=", 0, "ms", lambda: alone(waiting.NAME, lock, waiting.CPU)),
        ("`import pidabs` over a bare interpreter", "<=", 5, "ms", lambda: alone(start.IMPORT, lock, start.OVER)),
        ("the same, in CPU time", "<=", 5, "ms", lambda: alone(start.IMPORT, lock, start.CPU_OVER)),
        ("400 waiters whose holder is killed: all back", "<=", 50, "ms", lambda: alone(death.NAME, lock, death.ALL)),
    ]  # fmt: skip
    return [
        Goal(what, relation, bound, unit, measured.median, measured.low, measured.high)
        for what, relation, bound, unit, look in table
        if (measured := look()) is not None
    ]
