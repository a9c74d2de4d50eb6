"""What is counted, what is wrong, and how it is shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

KINDS_OF_TROUBLE = {
    "violation": "two owners at once",
    "stall": "nobody acquired, though somebody who could run waited",
    "lost": "an owner whose lock says that it is not held",
    "leak": "descriptors that stay open",
    "inversion": "a waiter served before one that had joined earlier",
    "mirror": "a PID file that does not name the owner",
    "not free": "the lock is taken though nobody is left",
    "hang": "a process that does not come to an end",
    "held or free": "after an exception a lock that is neither, or something else left behind",
    "error": "an exception that nobody expects",
}
SHOWN = 50
"""So many lines of trouble, at the most."""


@dataclass
class Figures:
    """Of one run.  It has passed if there is no trouble."""

    command: str
    seed: str
    seconds: float = 0.0
    freezer: str = ""
    acquired: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    longest_without_acquisition: float = 0.0
    trouble: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def blame(self, lines: list[str]) -> None:
        """Lines of trouble, each beginning with its kind."""
        kinds = Counter(next(kind for kind in KINDS_OF_TROUBLE if line.startswith(kind)) for line in lines)
        self.trouble = {kind: kinds[kind] for kind in KINDS_OF_TROUBLE}
        self.lines = lines[:SHOWN]

    @property
    def passed(self) -> bool:
        return not any(self.trouble.values())

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "passed": self.passed})

    def as_table(self) -> str:
        rows = [("seconds", f"{self.seconds:.0f}"), ("seed", self.seed)]
        if self.freezer:
            rows.append(("freezer", self.freezer))
        rows += [(f"acquired: {kind}", f"{count:,}") for kind, count in self.acquired.items()]
        rows += [(what, f"{count:,}") for what, count in self.counts.items()]
        if self.acquired:
            rows.append(("longest without an acquisition", f"{self.longest_without_acquisition * 1000:.0f} ms"))
        rows += [(f"{kind}: {KINDS_OF_TROUBLE[kind]}", str(count)) for kind, count in self.trouble.items()]
        width = max(len(what) for what, _ in rows)
        verdict = "passed" if self.passed else "FAILED"
        return "\n".join([*(f"{what:{width}}  {value}" for what, value in rows), *self.lines, verdict])
