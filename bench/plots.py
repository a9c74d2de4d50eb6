"""SVG by matplotlib: dark on white, whatever the page around it is, so that they can be read in dark mode, too.

pidabs is blue, what the kernel has, and the bare protocol, is grey, all others, which poll or cannot wait, are orange.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullLocator

from . import measure_contention as contention
from . import measure_growth as growth
from . import measure_handoff as handoff
from . import measure_start as start
from . import measure_uncontended as uncontended
from .figures import Figure, short
from .peers import FASTENERS, FILE_LOCK, FLOCK, LINK_LOCK_FILE, LOCK, OFD, OUR_FILE_LOCK, PORTALOCKER, PROTOCOL

OURS, KERNEL, OTHERS = "#1f5fbf", "#5a5f66", "#d9771a"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pidabs",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "text.color": "#24292f",
    "axes.labelcolor": "#24292f",
    "axes.edgecolor": "#c4c9d0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#57606a",
    "ytick.color": "#24292f",
    "legend.frameon": False,
}
_TICKS = [10, 100, 1000, 10_000, 100_000], ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms"]
_KNOWN = [each.name for each in (LOCK, OUR_FILE_LOCK, FLOCK, FILE_LOCK, LINK_LOCK_FILE, FASTENERS, PORTALOCKER)]
_MARKS = "osDv^<>pPX*h"


def draw(figures: list[Figure], output: Path) -> None:
    """All plots that this run has the figures for."""
    by_measure: dict[str, list[Figure]] = {}
    for each in figures:
        by_measure.setdefault(each.measure, []).append(each)
    for name, measure, plot in (
        ("handoff", handoff.NAME, _handoff),
        ("polling", handoff.NAME, _polling),
        ("uncontended", uncontended.NAME, _uncontended),
        ("import", start.IMPORT, _imports),
        ("contention", contention.NAME, _contention),
        ("growth", growth.GROWTH, _growth),
    ):
        if by_measure.get(measure):
            with rc_context(_STYLE):
                (output / f"{name}.svg").write_bytes(_svg(plot(by_measure[measure])))


def _svg(canvas: Canvas) -> bytes:
    written = BytesIO()
    FigureCanvasSVG(canvas)
    canvas.savefig(written, format="svg", facecolor="white", metadata={"Date": None})
    # Without the white space at the ends of lines, which whitespace checks and editors remove.
    return b"\n".join(line.rstrip() for line in written.getvalue().split(b"\n"))


def _colour(subject: str) -> str:
    if subject.startswith("pidabs"):
        return OURS
    if subject.startswith((uncontended.FLOOR, PROTOCOL.name, FLOCK.name, OFD.name)):
        return KERNEL
    return OTHERS


def _time(us: float) -> str:
    if us < 1000:
        return f"{short(us)} µs"
    return f"{short(us / 1000)} ms" if us < 1e6 else f"{short(us / 1e6)} s"


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _ranked(axes: Axes, found: list[Figure]) -> None:
    """One line for each subject, the fastest above: its median as a dot and a number, half of all, nearly all."""
    found = sorted(found, key=lambda each: each.median, reverse=True)
    for row, each in enumerate(found):
        colour = _colour(each.subject)
        high = each.p99 if each.n >= 100 else each.highest
        for low, above, width, alpha in (each.lowest, high, 2, 0.35), (each.low, each.high, 6, 0.5):
            axes.plot([low, above], [row, row], color=colour, linewidth=width, alpha=alpha, solid_capstyle="round")
        axes.plot([each.median], [row], "o", color=colour, markersize=8)
        _number(axes, row, max(high, each.median) * 1.12, each, _time(each.median))
    _name_rows(axes, found)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 2.2)


def _number(axes: Axes, row: int, place: float, each: Figure, text: str) -> None:
    weight = "bold" if _colour(each.subject) == OURS else "normal"
    axes.annotate(text, (place, row), va="center", fontsize=9, fontweight=weight)


def _name_rows(axes: Axes, found: list[Figure]) -> None:
    axes.set_yticks(range(len(found)), [each.subject for each in found])
    for label, each in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color(_colour(each.subject))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _handoff(found: list[Figure]) -> Canvas:
    found = [each for each in found if each.case == handoff.TWO]
    canvas = Canvas(figsize=(8.4, 0.34 * len(found) + 1.5), layout="constrained")
    axes = canvas.add_subplot()
    _ranked(axes, found)
    axes.set_xticks(*_TICKS)
    axes.set_title("A lock is released: how long until the sleeping waiter has it")
    axes.set_xlabel("median, half of all, fastest to p99 (or slowest); logarithmic")
    return canvas


def _polling(found: list[Figure]) -> Canvas:
    """For the README: a few that everybody knows.  Of fewer than a hundred samples nobody can tell a p99."""
    found = [each for each in found if each.case == handoff.TWO and each.subject in _KNOWN]
    found = sorted(found, key=lambda each: each.median, reverse=True)
    canvas = Canvas(figsize=(8.4, 0.5 * len(found) + 1.3), layout="constrained")
    axes = canvas.add_subplot()
    for row, each in enumerate(found):
        colour = _colour(each.subject)
        highest = each.p99 if each.n >= 100 else each.p90
        axes.plot([each.median, highest], [row, row], color=colour, linewidth=2, alpha=0.35)
        axes.plot([each.median, each.p90], [row, row], color=colour, linewidth=6, alpha=0.5, solid_capstyle="butt")
        if each.n >= 100:
            axes.plot([highest], [row], "|", color=colour, markersize=11, alpha=0.6)
        axes.plot([each.median], [row], "o", color=colour, markersize=9)
        axes.annotate(_time(each.median), (each.median, row), (0, 8), textcoords="offset points", ha="center")
    _name_rows(axes, found)
    axes.set_yticklabels([f"{each.subject}, {each.note}" for each in found])
    axes.set_ylim(-0.5, len(found) - 0.2)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(*_TICKS)
    axes.set_title("A lock is released: how long until the sleeping waiter has it")
    axes.set_xlabel("dot and number: median; thick: to p90; thin: to p99, of 100 samples or more; logarithmic")
    return canvas


def _uncontended(found: list[Figure]) -> Canvas:
    found = [each for each in found if each.case == uncontended.ONE]
    canvas = Canvas(figsize=(8.4, 0.3 * len(found) + 1.3), layout="constrained")
    axes = canvas.add_subplot()
    _ranked(axes, found)
    axes.set_xticks([1, 10, 100, 1000], ["1 µs", "10 µs", "100 µs", "1 ms"])
    axes.set_title("Acquire and release of a free lock")
    axes.set_xlabel("median, half of all, fastest to p99 (or slowest); logarithmic")
    return canvas


def _imports(found: list[Figure]) -> Canvas:
    found = [each for each in found if each.case == start.OVER and _colour(each.subject) != KERNEL]
    found = sorted(found, key=lambda each: each.median, reverse=True)
    canvas = Canvas(figsize=(8.4, 0.3 * len(found) + 1.3), layout="constrained")
    axes = canvas.add_subplot()
    axes.barh(range(len(found)), [each.median for each in found], color=[_colour(each.subject) for each in found])
    for row, each in enumerate(found):
        _number(axes, row, each.median + found[0].median * 0.01, each, f"{short(each.median)} ms")
    _name_rows(axes, found)
    axes.set_title("Import, over a bare interpreter")
    axes.set_xlabel("ms")
    return canvas


def _contention(found: list[Figure]) -> Canvas:
    canvas = Canvas(figsize=(8.4, 8.6), layout="constrained")
    rows = canvas.subplots(3, 1, sharex=True)
    subjects = list(dict.fromkeys(each.subject for each in found))
    for axes, (what, title) in zip(
        rows,
        (
            (contention.THROUGHPUT, "Acquisitions per second, held for 0.2 ms each"),
            (contention.FAIRNESS, "Fairness: Jain's index of how often each had the lock"),
            (contention.LONGEST, "Longest wait, in s"),
        ),
        strict=True,
    ):
        for number, subject in enumerate(subjects):
            mine = [each for each in found if each.subject == subject and each.case.startswith(what)]
            scale = 1e-3 if what == contention.LONGEST else 1.0
            axes.plot(
                [int(each.case.rpartition(", ")[2].split()[0]) for each in mine],
                [each.median * scale for each in mine],
                marker=_MARKS[number % len(_MARKS)],
                markersize=5,
                linewidth=2.2 if _colour(subject) == OURS else 1.2,
                color=_colour(subject),
                linestyle="--" if subject in (OUR_FILE_LOCK.name, OFD.name) else "-",
                alpha=1 if _colour(subject) == OURS else 0.75,
                label=subject,
                zorder=3 if _colour(subject) == OURS else 2,
            )
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        if what == contention.LONGEST:
            _log_y(axes)
        else:
            axes.set_ylim(bottom=0)
    ticks = sorted({int(each.case.rpartition(", ")[2].split()[0]) for each in found})
    rows[-1].set_xticks(ticks, [str(tick) for tick in ticks])
    rows[-1].minorticks_off()
    rows[-1].set_xlabel("processes that want it")
    canvas.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return canvas


def _growth(found: list[Figure]) -> Canvas:
    canvas = Canvas(figsize=(8.4, 3.2), layout="constrained")
    axes = canvas.add_subplot()
    for label, mark in ((growth.QUEUE, "o"), (growth.DEAD, "s")):
        mine = [each for each in found if each.subject == LOCK.name and each.case.endswith(label)]
        numbers = [int(each.case.split()[1]) for each in mine]
        medians = [each.median for each in mine]
        axes.plot(numbers, medians, marker=mark, color=OURS, linestyle="-" if mark == "o" else "--", label=label)
        if mine:
            lows, highs = [each.low for each in mine], [each.high for each in mine]
            axes.fill_between(numbers, lows, highs, color=OURS, alpha=0.12, linewidth=0)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xticks([0, 10, 100, 1000], ["0", "10", "100", "1000"])
    axes.minorticks_off()
    _log_y(axes)
    axes.set_title("Handoff of a Lock with others in its queue")
    axes.set_ylabel("µs")
    axes.legend()
    return canvas
