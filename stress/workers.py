"""What a worker process does with the lock until the storm ends, or it is killed."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
import threading
import time
import traceback
import warnings
from typing import NoReturn

import kinds

import pidabs

from . import forking
from .arena import ACQUIRED, CANCELLED, SEATS, TURNS, Arena, Mark
from .clients import Client
from .freezer import Freezer

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

THREADS, FORKS, EXECS = "Lock, threads", "Lock, forking", "Lock, exec'ing"
KINDS = (*kinds.BLOCKING, *kinds.AWAITED, THREADS, FORKS, EXECS)


class Worker:
    """One process: its seat at the mark, its dice, and what the tormentor wants to have spoilt."""

    def __init__(self, arena: Arena, slot: int, path: str, kind: str, seed: str, sabotage: str) -> None:
        self.arena, self.slot, self.kind, self.sabotage = arena, slot, kind, sabotage
        self.dice = random.Random(seed)
        self.mark = Mark(arena, slot)
        self.path = path
        self._open: int | None = None

    def name(self) -> str:
        """The lock's path.  Sabotaged: one of our own, so that the lock excludes nobody."""
        return f"{self.path}-{os.getpid()}-{random.random()}" if self.sabotage == "exclusion" else self.path

    def client(self) -> Client:
        return Client(self.kind if self.kind in (*kinds.BLOCKING, *kinds.AWAITED) else "Lock", self.name(), self.dice)

    def acquired(self, outcome: int, seat: int = 0) -> bool:
        self.arena.set_waiting(self.slot, seat, False)
        if outcome != ACQUIRED:
            self.arena.add(self.slot, seat, outcome)
        return outcome == ACQUIRED

    def enter(self, client: Client, seat: int = 0) -> int:
        token = self.mark.enter()
        self.arena.add(self.slot, seat, ACQUIRED)
        self.look(client, "after acquire")
        if self.sabotage == "lost" and isinstance(client.lock, pidabs.Lock) and self.dice.random() < 0.2:
            os.close(client.lock.fileno())
        if self.sabotage == "leak" and self.dice.random() < 0.2:
            os.dup(0)
        return token

    def leave(self, client: Client, token: int) -> None:
        self.look(client, "before release")
        self.mark.leave(token)

    def look(self, client: Client, when: str) -> None:
        if not client.held:
            self.arena.trouble("lost", f"{self.kind}: {when}, the lock says that it is not held")
        elif client.mirrored:
            with open(client.path, encoding="ascii") as file:
                written = file.read()
            if written != f"{os.getpid()}\n":
                self.arena.trouble("mirror", f"{self.kind}: {when}, the PID file says {written!r}")

    def think(self) -> float:
        """Seconds to hold the lock."""
        chance = self.dice.random()
        return 0.0 if chance < 0.7 else self.dice.random() * (0.002 if chance < 0.99 else 0.02)

    def look_for_leaks(self) -> None:
        """When nothing is held and no task runs.  What the first batch left open is taken for granted."""
        found = len(os.listdir("/proc/self/fd"))
        if self._open is not None and found > self._open:
            gc.collect()
            found = len(os.listdir("/proc/self/fd"))
            if found > self._open:
                links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
                files = [os.readlink(link) for link in links if os.path.lexists(link)]
                self.arena.trouble("leak", f"{self.kind}: {found} descriptors after {self._open}: {files}")
        self._open = found


def turn(worker: Worker, client: Client, seat: int = 0) -> None:
    """Acquire, look, hold, look, release."""
    worker.arena.set_waiting(worker.slot, seat, True)
    if worker.acquired(client.acquire(), seat):
        token = worker.enter(client, seat)
        seconds = worker.think()
        if seconds:
            time.sleep(seconds)
            worker.mark.check(token)
        worker.leave(client, token)
        client.release()


async def turn_async(worker: Worker, client: Client, seat: int) -> None:
    worker.arena.set_waiting(worker.slot, seat, True)
    outcome = await client.acquire_or_be_cancelled()
    if worker.acquired(outcome, seat):
        token = worker.enter(client, seat)
        seconds = worker.think()
        if seconds:
            await asyncio.sleep(seconds)
            worker.mark.check(token)
        worker.leave(client, token)
        letting_go = asyncio.ensure_future(client.release_async())
        if worker.dice.random() < 0.1:
            asyncio.get_running_loop().call_later(worker.dice.random() * 0.001, letting_go.cancel)
        try:
            await letting_go
        except asyncio.CancelledError:
            worker.arena.add(worker.slot, seat, CANCELLED)
    if client.held:
        worker.arena.trouble("lost", f"{worker.kind}: it says that it is held, which it was not, or not any more")


def work_blocking(worker: Worker) -> None:
    client = worker.client()
    while not worker.arena.ended:
        for _ in range(TURNS):
            if worker.dice.random() < 0.1:
                client = worker.client()
            turn(worker, client)
        worker.look_for_leaks()


def work_in_threads(worker: Worker) -> None:
    """Some threads share an object, another has its own."""
    shared, own = worker.client(), worker.client()

    def batch(seat: int, client: Client) -> None:
        try:
            for _ in range(TURNS):
                turn(worker, client, seat)
        except BaseException:
            worker.arena.trouble("error", f"{worker.kind}: {traceback.format_exc()}")

    while not worker.arena.ended:
        threads = [threading.Thread(target=batch, args=(seat, (shared, shared, own)[seat])) for seat in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        worker.look_for_leaks()


async def work_in_tasks(worker: Worker) -> None:
    async def batch(seat: int) -> None:
        client = worker.client()
        for _ in range(TURNS):
            await turn_async(worker, client, seat)

    while not worker.arena.ended:
        await asyncio.gather(*(batch(seat) for seat in range(SEATS)))
        worker.look_for_leaks()


def start(worker_arguments: tuple[Arena, int, str, str, str, str], freezer: Freezer | None) -> tuple[int, int]:
    """Fork a worker: its pid and a pidfd.  It dies with us."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run(worker_arguments, freezer, parent)
    return pid, os.pidfd_open(pid)


def _run(worker_arguments: tuple[Arena, int, str, str, str, str], freezer: Freezer | None, parent: int) -> NoReturn:
    arena, slot = worker_arguments[:2]
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        warnings.simplefilter("ignore")
        for seat in range(SEATS):
            arena.set_waiting(slot, seat, False)
        if freezer is not None:
            freezer.join(slot)
        worker = Worker(*worker_arguments)
        if worker.kind in kinds.AWAITED:
            asyncio.run(work_in_tasks(worker))
        elif worker.kind == THREADS:
            work_in_threads(worker)
        elif worker.kind == FORKS:
            forking.work_forking(worker)
        elif worker.kind == EXECS:
            forking.work_execing(worker)
        else:
            work_blocking(worker)
    except BaseException:
        arena.trouble("error", f"{worker_arguments[3]}: {traceback.format_exc()}")
    finally:
        os._exit(0)
