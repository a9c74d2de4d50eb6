"""Markdown for docs/performance.md: each table stands between two markers, and is made of the results alone."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import measure_contention as contention
from .figures import Figure, short
from .goals import Goal, goals
from .measures import MEASURES

Results = dict[str, object]


def fill(text: str, results: Results, figures: list[Figure]) -> str:
    """The page, with its tables renewed.  Raises KeyError if it asks for one that there is not."""
    makers: dict[str, Callable[[], list[str]]] = {
        "machine": lambda: _machine(results),
        "goals": lambda: goal_table(goals(figures)),
        **{name: lambda name=name: _measure(figures, name) for name in MEASURES},  # type: ignore[misc]
        contention.NAME: lambda: _contention(figures),
    }

    def table(match: re.Match[str]) -> str:
        return "\n".join([match[1], "", *makers[match[2]](), "", match[3]])

    return re.sub(r"(<!-- bench: (\w+) -->).*?(<!-- /bench -->)", table, text, flags=re.DOTALL)


def goal_table(reached: list[Goal]) -> list[str]:
    lines = ["| | goal | measured | quartiles | | bare protocol |", "|---|---|---|---|---|---|"]
    for goal in reached:
        unit = f" {goal.unit}" if goal.unit else ""
        bound, measured = f"{goal.bound:g}{unit}", f"{_value(goal.measured)}{unit}"
        spread = f"{_value(goal.low)} to {_value(goal.high)}"
        verdict = "met" if goal.met else "**missed**"
        floor = "" if goal.floor is None else f"{_value(goal.floor)}{unit}"
        lines.append(f"| {goal.what} | {goal.relation} {bound} | {measured} | {spread} | {verdict} | {floor} |")
    return lines


def _machine(results: Results) -> list[str]:
    machine = results["machine"]
    assert isinstance(machine, dict)
    rows = [
        ("CPU", f"{machine['cpu']}, {machine['cpus']} CPUs"),
        ("system", f"{machine['kernel']}, {machine['python']}, lock files on {machine['lock_files_on']}"),
        ("load average at the start", ", ".join(map(str, machine["load_at_start"]))),
        ("reading the clock", f"{machine['clock_ns']} ns, contained in each time"),
        ("peers", ", ".join(f"{name} {number}" for name, number in machine["versions"].items())),
        ("run", f"revision {machine['revision']}, {machine['seconds']:.0f} s"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _measure(figures: list[Figure], name: str) -> list[str]:
    """One row for each subject and case; with p90 and p99 where there are enough samples to tell."""
    found = [each for each in figures if each.measure == name]
    tail = max((each.n for each in found), default=0) >= 100
    head = ["", "", "median", "quartiles", *(["p90", "p99"] if tail else []), "n"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for each in found:
        tails = [short(each.p90), short(each.p99) if each.n >= 100 else ""] if tail else []
        note = f" ({each.note})" if each.note else ""
        cells = [
            each.subject + note,
            each.case,
            f"{short(each.median)} {each.unit}",
            f"{short(each.low)} to {short(each.high)}",
            *tails,
            str(each.n),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _contention(figures: list[Figure]) -> list[str]:
    """One row for each subject, one column for each number of contenders: throughput, fairness, longest wait."""
    found = [each for each in figures if each.measure == contention.NAME]
    cases = list(dict.fromkeys(each.case.rpartition(", ")[2] for each in found))
    cells = {(each.subject, each.case): short_index(each) for each in found}
    lines = []
    for what, unit in (
        (contention.THROUGHPUT, "acquisitions per second"),
        (contention.FAIRNESS, "Jain's index, 1 is fair"),
        (contention.LONGEST, "ms"),
    ):
        lines += [f"| {what}, {unit} | {' | '.join(cases)} |", "|---|" + "---|" * len(cases)]
        for subject in dict.fromkeys(each.subject for each in found):
            row = [cells.get((subject, f"{what}, {case}"), "") for case in cases]
            lines.append(f"| {subject} | {' | '.join(row)} |")
        lines.append("")
    return lines[:-1]


def short_index(each: Figure) -> str:
    return f"{each.median:.4f}" if each.case.startswith(contention.FAIRNESS) else short(each.median)


def _value(value: float) -> str:
    return f"{value:.4f}" if 0.9 < value < 1 else short(value)
