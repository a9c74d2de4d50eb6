"""What was measured.  A figure is what one subject did in one case: a median with its spread, never a single number.

The spread is that between the quartiles of all samples.  A ratio compares two subjects round by round, so that a slow
phase of the machine, which hits both, falls out of it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from itertools import cycle

STEPS, ENOUGH = 20, 50
"""So many quantiles are kept of the samples, where there are enough of them."""


@dataclass
class Figure:
    measure: str
    subject: str
    case: str
    unit: str
    median: float
    low: float
    high: float
    p90: float
    p99: float
    n: int
    rounds: list[float]
    lowest: float
    highest: float
    quantiles: list[float] = field(default_factory=list)
    note: str = ""

    def text(self) -> str:
        spread = f"({short(self.low)} to {short(self.high)})"
        note = f"  {self.note}" if self.note else ""
        return f"{self.subject:29} {self.case:43} {short(self.median):>9} {self.unit:5} {spread:24} n={self.n}{note}"


@dataclass
class Ratio:
    median: float
    low: float
    high: float


def quantile(ordered: list[float], part: float) -> float:
    """The smallest sample that is not below this part of all."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def figure(measure: str, subject: str, case: str, unit: str, rounds: list[list[float]], note: str = "") -> Figure:
    """Of all samples of all rounds."""
    rounds = [samples for samples in rounds if samples]
    ordered = sorted(sample for samples in rounds for sample in samples)
    return Figure(
        measure,
        subject,
        case,
        unit,
        median=statistics.median(ordered),
        low=quantile(ordered, 0.25),
        high=quantile(ordered, 0.75),
        p90=quantile(ordered, 0.9),
        p99=quantile(ordered, 0.99),
        n=len(ordered),
        rounds=[statistics.median(samples) for samples in rounds],
        lowest=ordered[0],
        highest=ordered[-1],
        quantiles=[quantile(ordered, step / STEPS) for step in range(1, STEPS)] if len(ordered) >= ENOUGH else [],
        note=note,
    )


def ratio(above: Figure, below: Figure) -> Ratio:
    """Of the medians; low and high are the quartiles of the rounds' ratios."""
    # One of them may have fewer rounds, because the other is that slow.
    count = max(len(above.rounds), len(below.rounds))
    pairs = list(zip(range(count), cycle(above.rounds), cycle(below.rounds), strict=False))
    each = sorted(first / second for _, first, second in pairs if second) or [math.inf]
    median = above.median / below.median if below.median else math.inf
    return Ratio(median, quantile(each, 0.25), quantile(each, 0.75))


def short(value: float) -> str:
    """Three digits that count, as people write them."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"
