"""From kill(SIGKILL) of a holder to the next owner, see killing.py.

PIDLockFile and LinkLockFile are left out: after SIGKILL nobody gets their lock, ever.

And 400 waiters whose holder is killed: all are thrown out, one gets the lock, and the others queue behind it.  How long
until all of them are there, looked at every millisecond.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from . import ROOT
from .children import BenchError, Troop, end
from .crowd import Crowd
from .killing import hold
from .peers import LOCK, PEERS, Make, Mutex, Peer
from .session import Session, take_turns

NAME = "sigkill"
ONE, ALL = "the next owner has it", "400 waiters, all queued again"
_NEVER = 60.0


def measure(session: Session) -> None:
    gc.disable()
    try:
        _next_owner(session)
        if session.present([LOCK]):
            _all_back(session)
    finally:
        gc.enable()


class Killer:
    """An interpreter of its own, see killing.py."""

    def __init__(self, session: Session, peer: Peer) -> None:
        command = [sys.executable, "-m", "bench.killing", peer.name, os.path.dirname(session.path())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]

    def times(self, count: int) -> list[float]:
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        except BrokenPipeError:
            said = ""
        if not said:
            raise BenchError("the interpreter of the holders has ended")  # having said why
        found: list[float] = json.loads(said)
        return found

    def close(self) -> None:
        self._process.communicate()


def _next_owner(session: Session) -> None:
    peers = session.present(peer for peer in PEERS if peer.waits and peer.dies)
    with ExitStack() as stack:
        subjects = {}
        for peer in peers:
            killer = Killer(session, peer)
            stack.callback(killer.close)
            subjects[peer.name] = partial(killer.times, session.pick(3 if peer.longest_pause else 20, 2))
        for subject, found in take_turns(subjects, session.pick(10, 1)).items():
            session.add(NAME, subject, ONE, "us", found)


def _all_back(session: Session) -> None:
    count, kills = session.pick(400, 20), session.pick(5, 1)
    make = session.make(LOCK)
    found = [_kills_in_a_row(session, make, count, kills) for _ in range(session.pick(5, 1))]
    session.add(NAME, LOCK.name, ALL, "ms", found)


def _kills_in_a_row(session: Session, make: Make, count: int, kills: int) -> list[float]:
    """Milliseconds of each, after a first one, in which freshly forked processes copy their memory."""
    path = session.path()
    with Crowd(make, path, count + kills, keep=True) as crowd, Troop() as troop:
        holder = troop.start(partial(hold, make=make, path=path))
        holder.hear()
        asked = make(path)
        if not crowd.go(_NEVER):
            raise BenchError("the waiters never fell asleep")
        found = [_back(asked, count + kills - 1, lambda: os.kill(holder.pid, signal.SIGKILL))]
        for left in range(count + kills - 2, count - 2, -1):
            owner = crowd.owner()
            found.append(_back(asked, left, lambda owner=owner: end([owner])))  # type: ignore[misc]
    return found[1:]


def _back(lock: Mutex, count: int, kill: Callable[[], object]) -> float:
    """Milliseconds until so many are in the queue of another holder."""
    killed = time.monotonic()
    kill()
    while lock.waiters() != count:  # type: ignore[attr-defined]
        if time.monotonic() - killed > _NEVER:
            raise BenchError("the waiters never came back")
        time.sleep(0.001)
    return (time.monotonic() - killed) * 1e3
