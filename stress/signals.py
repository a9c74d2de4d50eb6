"""Exceptions at every line of acquire and release, and out of signal handlers at random moments, for each kind of lock.

What has to hold afterwards is said, and checked, in tests/injection.py and tests/timed.py.
"""

from __future__ import annotations

import random
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import injection
import kinds
import timed

from .figures import SHOWN, Figures

_SLOWEST = 0.5  # seconds for one exception of the timer, its failed tries included


def signals(count: int, seed: str) -> Figures:
    """`count` exceptions by the timer, in all; and one at each line, in each scenario."""
    figures = Figures("signals", seed)
    dice = random.Random(seed)
    began = time.monotonic()
    trouble: list[str] = []
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="pidabs-stress-") as directory:
        for kind in kinds.ALL:
            lines = _every_line(kind, Path(directory), trouble)
            figures.counts[f"{kind}: lines at which an exception was raised"] = lines
        share = -(-count // (len(kinds.ALL) * len(timed.MODES)))
        for kind in kinds.ALL:
            struck = 0
            for mode in timed.MODES:
                try:
                    timed.strike(kind, mode, f"{directory}/x.pid", share, str(dice.random()), 60 + share * _SLOWEST)
                    struck += share
                except AssertionError as exc:
                    trouble.append(f"held or free: {kind}, {mode}: {exc}")
            figures.counts[f"{kind}: exceptions out of a signal handler"] = struck
    figures.seconds = time.monotonic() - began
    figures.blame(trouble)
    return figures


def _every_line(kind: str, directory: Path, trouble: list[str]) -> int:
    raised = 0
    for make in injection.SCENARIOS:
        for exception in injection.Injected, injection.InjectedTimeout:
            nth = 1
            scenario = _prepare(make, directory, kind)
            try:
                while len(trouble) < SHOWN:  # a lock that fails everywhere has no last line
                    try:
                        if not injection.traced(scenario, nth, "line", exception):
                            break
                    except (Exception, injection.Injected) as exc:
                        what = traceback.format_exception_only(exc)[-1].strip()
                        place = f"{kind}, {make.__name__}, {exception.__name__}, line {nth}"
                        trouble.append(f"held or free: {place}: {what}")
                        scenario.close()
                        scenario = _prepare(make, directory, kind)
                    raised += 1
                    nth += 1
            finally:
                scenario.close()  # it has a thread, which would outlive a SIGTERM
    return raised


def _prepare(make: type[injection.Scenario], directory: Path, kind: str) -> injection.Scenario:
    """In a directory of its own, which has to be empty after each exception."""
    return make(Path(tempfile.mkdtemp(dir=directory)), kind)
