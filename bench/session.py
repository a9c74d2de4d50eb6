"""What one run has in hand: how thorough it is, a place for lock files, and the locks that are installed.

Subjects take turns, round by round, each round beginning with another one, so that neither a slow phase of the machine
nor what ran before favours anybody.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from .figures import Figure, figure
from .peers import PEERS, Make, Peer

T = TypeVar("T")


class Session:
    """`with Session(light) as session:`"""

    def __init__(self, light: bool, peers: Iterable[Peer] = PEERS) -> None:
        self.light = light
        self._asked = list(peers)
        self.figures: list[Figure] = []
        self.absent: dict[str, str] = {}
        self._makes: dict[str, Make] = {}
        self._numbers = itertools.count()
        # Where PID files are on most systems, and where files cost least.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._directory = tempfile.TemporaryDirectory(prefix="pidabs-bench-", dir=place)
        self.directory = self._directory.name

    def __enter__(self) -> Session:
        for peer in self._asked:
            try:
                self._makes[peer.name] = peer.load()
            except ImportError as exc:
                self.absent[peer.name] = str(exc)
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def pick(self, full: T, light: T) -> T:
        return light if self.light else full

    def present(self, peers: Iterable[Peer]) -> list[Peer]:
        return [peer for peer in peers if peer.name in self._makes]

    def make(self, peer: Peer) -> Make:
        return self._makes[peer.name]

    def path(self, suffix: str = ".pid") -> str:
        """Of a lock that nobody else has, in a directory of its own."""
        directory = os.path.join(self.directory, str(next(self._numbers)))
        os.mkdir(directory)
        return os.path.join(directory, "some" + suffix)

    def add(
        self, measure: str, subject: str, case: str, unit: str, rounds: list[list[float]], note: str = ""
    ) -> Figure | None:
        """Keep a figure, and show it.  None if there were no samples."""
        if not any(rounds):
            return None
        made = figure(measure, subject, case, unit, rounds, note)
        self.figures.append(made)
        print("  " + made.text(), flush=True)
        return made


def take_turns(subjects: Mapping[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Samples of each round of each subject; after a round that is thrown away."""
    found: dict[str, list[list[float]]] = {name: [] for name in subjects}
    order = list(subjects)
    for number in range(rounds + 1):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            samples = subjects[name]()
            if number:
                found[name].append(samples)
    return found
