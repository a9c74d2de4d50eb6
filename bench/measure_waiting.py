"""What it takes to wait: CPU time of 50 processes over 10 s, and memory of each.

CPU by the processes' own clocks, from when all of them slept.  Memory: what each process shares with nobody, and what
the kernel's objects take (all of the system's: it needs a quiet machine, and root to be exact), when they wait, less
what it was before.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from .measure_contention import crowd
from .peers import FILE_LOCK, FLOCK, LOCK, OFD, PEERS
from .session import Session

NAME = "waiting"
PROCESSES, SECONDS = 50, 10.0
CPU = f"CPU of {PROCESSES} waiters in {SECONDS:g} s"
PROCESS, KERNEL = "memory of a waiter, its process", "memory of a waiter, the kernel"


def measure(session: Session) -> None:
    waiting = session.present(peer for peer in PEERS if peer.waits)
    count, seconds = session.pick((PROCESSES, SECONDS), (4, 0.5))
    with ThreadPoolExecutor(len(waiting) or 1) as pool:  # all at once: each process has its own clock
        found = list(pool.map(lambda peer: crowd(session, peer, count, seconds, "--idle"), waiting))
    for peer, result in zip(waiting, found, strict=True):
        session.add(NAME, peer.name, CPU, "ms", [[result["cpu_ms"]]], peer.waits)

    peers = session.present([LOCK, FLOCK, OFD, FILE_LOCK])
    runs: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for _ in range(session.pick(3, 1)):
        for peer in peers:
            runs[peer.name].append(crowd(session, peer, session.pick(500, 10), 0.0, "--idle"))
    for subject, results in runs.items():
        session.add(NAME, subject, PROCESS, "KiB", [[result["private_kib"]] for result in results])
        session.add(NAME, subject, KERNEL, "KiB", [[result["kernel_kib"]] for result in results])
