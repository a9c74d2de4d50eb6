"""`pidabs doctor`: what this kernel and sandbox allow, and how fast a killed holder's lock is free here.

Rule: everything it says was tried or read here and now; where it cannot be found out, it says `unknown`.
"""

from __future__ import annotations

import os
import platform
import sys
from textwrap import wrap
from time import monotonic

from .._linux import supported
from ._codes import DONE, FAILED, SIGNALLED, UNAVAILABLE, USAGE
from ._doctor_finding import BAD, OK, UNKNOWN, WARN, Finding
from ._text import complain, paint, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ._doctor_measure import Measured
    from ._doctor_plot import Plot

_SCHEMA = 1
_WIDTH = 110
_COLUMN = 9, 19
_COLOURS = {OK: 32, WARN: 33, BAD: 31, UNKNOWN: 36}


def doctor(parsed: argparse.Namespace) -> int:
    """Examine, measure, report: the command's exit code."""
    if parsed.plot is None:
        return _examine(parsed.json, parsed.quick, None)
    if parsed.quick:
        return _fail("--plot draws what is measured, and --quick measures nothing: leave one out", USAGE)
    if not parsed.plot.endswith(".svg"):
        return _fail(f"the plot is an SVG: let its name, {parsed.plot!r}, end in .svg", USAGE)
    from ._doctor_plot import Plot

    try:
        plot = Plot(parsed.plot)
    except ImportError as exc:
        return _fail(str(exc), UNAVAILABLE)
    except OSError as exc:
        return _fail(f"cannot write the plot: {reason(exc)}; choose another place", FAILED)
    with plot:
        return _examine(parsed.json, False, plot)


def _examine(as_json: bool, quick: bool, plot: Plot | None) -> int:
    report = Report(as_json)
    if not supported():
        finding = Finding(BAD, f"{sys.platform} has no abstract unix sockets", "pidabs needs Linux's", "use Linux")
        report.add_check("system", "system", finding)
        return report.end()
    from ._doctor_checks import run
    from ._doctor_children import Workshop
    from ._doctor_measure import measure
    from ._interrupt import Interrupted

    try:
        with Workshop() as shop:
            for check in run(shop):
                report.add_check(*check)
            if report.works and not quick:
                report.begin_measuring()
                for case in measure(shop):
                    report.add_measured(case)
    except Interrupted as exc:
        return _fail(f"ended by {exc}; everything it started is gone", SIGNALLED + exc.number)
    if plot is not None:
        if not any(case.times for case in report.measured):
            return _fail("there is nothing to draw: no time could be measured", report.end() or FAILED)
        try:
            plot.draw(report.measured, report.host)
        except Exception as exc:  # whatever is wrong with it, or with its numpy
            report.end()
            return _fail(f"cannot draw the plot: {exc}", FAILED)
    return report.end()


def _fail(message: str, code: int) -> int:
    complain(message)
    return code


class Report:
    """What is found, shown to a person as it is found, or to a program at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._began = monotonic()
        self._checks: list[tuple[str, str, Finding]] = []
        self.measured: list[Measured] = []
        system = platform.uname()
        python = f"{platform.python_implementation()} {platform.python_version()}"
        self.host: str = f"{system.system} {system.release}, {system.machine}, {os.cpu_count()} CPUs, {python}"
        self._say(f"pidabs {_version() or '(not installed)'}, {self.host}\n")

    @property
    def works(self) -> bool:
        return all(finding.status != BAD for _, _, finding in self._checks)

    def add_check(self, name: str, title: str, finding: Finding) -> None:
        self._checks.append((name, title, finding))
        first, second = _COLUMN
        status = paint(_COLOURS[finding.status], f"{finding.status:<{first}}")
        self._say(status + f"{title:<{second}} " + _folded(finding.found, first + second + 1))
        for label, line in ("cause", finding.cause), ("remedy", finding.remedy):
            if line and finding.status != OK:
                self._say(" " * first + f"{label:>{second}} " + _folded(line, first + second + 1))

    def begin_measuring(self) -> None:
        self._say("\nUntil the next holder has the lock, in milliseconds, measured here and now:")
        self._say(f"{'':<33}{'n':>6}{'p50':>10}{'p99':>10}{'max':>10}")

    def add_measured(self, case: Measured) -> None:
        self.measured.append(case)
        figures = [] if case.reason else [case.quantile(0.5), case.quantile(0.99), case.times[-1]]
        row = "".join(f"{value:>10.3f}" for value in figures)
        self._say(f"{case.title:<33}" + (f"{len(case.times):>6}{row}" if row else f"     - {case.reason}"))

    def end(self) -> int:
        """Say the verdict: the exit code."""
        ratio = self._ratio()
        if ratio is not None:
            self._say(f"{'a handoff takes':<33}{ratio:>6.1f} times as long as with flock(2), and is in order")
        colour, verdict = self._verdict()
        self._say("\n" + paint(colour, verdict))
        if self._as_json:
            import json

            print(json.dumps(self._as_object(verdict, ratio), indent=2))
        return DONE if self.works else FAILED

    def _verdict(self) -> tuple[int, str]:
        titles = {
            status: ", ".join(title for _, title, finding in self._checks if finding.status == status)
            for status in (BAD, WARN, UNKNOWN)
        }
        if titles[BAD]:
            return _COLOURS[BAD], f"Locks do NOT work here: see {titles[BAD]}."
        if titles[WARN]:
            return _COLOURS[WARN], f"Locks work here, but see {titles[WARN]}."
        if titles[UNKNOWN]:
            return _COLOURS[OK], f"Locks work here; not everything could be found out: {titles[UNKNOWN]}."
        return _COLOURS[OK], "Locks work here."

    def _ratio(self) -> float | None:
        medians = {case.case: case.quantile(0.5) for case in self.measured if case.times}
        return medians["handoff"] / medians["flock"] if medians.keys() >= {"handoff", "flock"} else None

    def _as_object(self, verdict: str, ratio: float | None) -> dict[str, object]:
        return {
            "schema": _SCHEMA,
            "pidabs": _version(),
            "host": self.host,
            "works": self.works,
            "verdict": verdict,
            "seconds": round(monotonic() - self._began, 3),
            "checks": [{"id": name, "title": title, **found._asdict()} for name, title, found in self._checks],
            "measured": [case.as_json() for case in self.measured],
            "handoff_to_flock": ratio and round(ratio, 2),
        }

    def _say(self, text: str) -> None:
        if not self._as_json:
            print(_ascii(text), flush=True)


def _version() -> str | None:
    try:
        from importlib.metadata import version

        return version("pidabs")
    except (ImportError, OSError):  # not installed, or not for us to read
        return None


def _folded(text: str, indent: int) -> str:
    """On as many lines as it takes, all but the first indented."""
    return ("\n" + " " * indent).join(wrap(text, _WIDTH - indent, break_on_hyphens=False, break_long_words=False))


def _ascii(text: str) -> str:
    """What any locale can print; an environment variable may hold anything."""
    return text.encode("ascii", "backslashreplace").decode()
