"""Many processes that ask for one lock again as soon as they have let go of it, and hold it for 0.2 ms.

Throughput; fairness, as Jain's index of how often each had it, which is 1 if all had it equally often, and 1/n if one
had it alone; and the longest wait.  Each sample is a run of some seconds in processes of its own, see crowd.py, on all
CPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

from . import ROOT
from .peers import OUR_PID_LOCK_FILE, PEERS, Peer
from .session import Session

NAME = "contention"
THROUGHPUT, FAIRNESS, LONGEST = "throughput", "fairness", "longest wait"
POINTS = (2, 8, 16, 64, 512, 2000)
_SECONDS = {512: 4.0, 2000: 5.0}
_ROUNDS = {16: 5, 512: 2, 2000: 1}
_TIME_LIMIT = 300.0


def case(count: int) -> str:
    return f"{count} contenders"


def measure(session: Session) -> None:
    peers = session.present(peer for peer in PEERS if peer.waits and peer is not OUR_PID_LOCK_FILE)
    for count in session.pick(POINTS, (2, 8)):
        seconds = session.pick(_SECONDS.get(count, 1.0), 0.1)
        found: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
        for number in range(session.pick(_ROUNDS.get(count, 3), 1)):
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                try:
                    found[peer.name].append(crowd(session, peer, count, seconds))
                except subprocess.SubprocessError as exc:  # too many for this machine
                    print(f"  {peer.name}, {case(count)}: {exc}")
        for subject, runs in found.items():
            add = partial(session.add, NAME, subject)
            for what, unit, key in (
                (THROUGHPUT, "1/s", "per_second"),
                (FAIRNESS, "", "jain"),
                (LONGEST, "ms", "longest_ms"),
            ):
                add(f"{what}, {case(count)}", unit, [[run[key]] for run in runs])


def crowd(session: Session, peer: Peer, count: int, seconds: float, *options: str) -> dict[str, float]:
    directory = os.path.dirname(session.path())
    command = [sys.executable, "-m", "bench.crowd", peer.name, str(count), str(seconds), directory, *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=_TIME_LIMIT)
    found: dict[str, float] = json.loads(done.stdout)
    return found
