"""Workers that fork while they hold or wait for the lock, and workers that exec.

Children are nobody's slot: they end by themselves within seconds, and the tormentor, to whom orphans fall, sees to it.
A child that finds itself the owner enters the mark as everybody does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from pidabs import Lock, NotHeld, Timeout

from .arena import ACQUIRED, EXECED, FORKED, TURNS

if TYPE_CHECKING:
    from .clients import Client
    from .workers import Worker

_LS = shutil.which("ls") or "/bin/ls"
_SLEEP = shutil.which("sleep") or "/bin/sleep"


class Children:
    """The children of one worker, and how they are forked."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._running: list[int] = []

    def fork(self, work: Callable[[], None], seat: int = 0) -> int:
        worker = self._worker
        pid = os.fork()
        if pid == 0:
            _run(worker, work)
        worker.arena.add(worker.slot, seat, FORKED)
        self._running.append(pid)
        return pid

    def reap(self) -> None:
        """Those that have ended."""
        self._running = [pid for pid in self._running if os.waitpid(pid, os.WNOHANG)[0] == 0]

    def wait(self, pid: int) -> int:
        self._running.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def wait_for_all(self) -> None:
        while self._running:
            self.wait(self._running[0])


def _run(worker: Worker, work: Callable[[], None]) -> NoReturn:
    try:
        worker.dice.seed(os.getpid())  # else it rolls what its parent rolls
        work()
    except BaseException:
        worker.arena.trouble("error", f"child of {worker.kind}: {traceback.format_exc()}")
    finally:
        os._exit(0)


# Forking --------------------------------------------------------------------------------------------------------------


def work_forking(worker: Worker) -> None:
    children = Children(worker)
    while not worker.arena.ended:
        ended = threading.Event()
        forker = threading.Thread(target=_fork_beside, args=(worker, ended))
        if worker.dice.random() < 0.2:
            forker.start()  # our waiting connections are copied, too
        for _ in range(TURNS):
            client = worker.client()
            worker.arena.set_waiting(worker.slot, 0, True)
            if worker.acquired(client.acquire()):
                worker.dice.choice((_child_tries, _child_outlives, _hand_over))(worker, client, children)
            children.reap()
        ended.set()
        if forker.ident is not None:
            forker.join()
        children.wait_for_all()
        worker.look_for_leaks()


def _fork_beside(worker: Worker, ended: threading.Event) -> None:
    """In a thread: fork while the other one waits for the lock, holds it, or lets it go."""
    children = Children(worker)
    while not ended.wait(0.005):
        children.fork(lambda: time.sleep(0.01), seat=1)
        children.reap()
    children.wait_for_all()


def _child_tries(worker: Worker, client: Client, children: Children) -> None:
    """It does not hold its parent's lock, cannot release it, and gets it only when the parent has lost it."""
    token = worker.enter(client)
    pid = children.fork(lambda: _try(worker, client))
    if worker.dice.random() < 0.7:
        children.wait(pid)
    worker.leave(client, token)
    client.release()


def _try(worker: Worker, client: Client) -> None:
    if client.held:
        worker.arena.trouble("violation", "a forked child says that it holds its parent's lock")
    try:
        client.release()
        worker.arena.trouble("violation", "a forked child has released its parent's lock")
    except NotHeld:
        pass
    try:
        client.lock.acquire(worker.dice.choice((0, 0.005)))  # not long: our parent waits for us, and holds it
    except Timeout:
        return
    _own(worker, client)


def _child_outlives(worker: Worker, client: Client, children: Children) -> None:
    """The child has closed its copies, so it does not matter how long it lives."""
    token = worker.enter(client)
    children.fork(lambda: time.sleep(worker.dice.random() * 0.05))
    worker.leave(client, token)
    client.release()


def _hand_over(worker: Worker, client: Client, children: Children) -> None:
    """To the child, or the child's child, as a daemon does it.  We may be killed at any moment of it."""
    token = worker.enter(client)
    worker.leave(client, token)  # the new owner enters by itself

    def child() -> None:
        if worker.dice.random() < 0.3:
            children.fork(lambda: _own(worker, client), seat=2)
            if client.held:
                worker.arena.trouble("violation", "the lock has moved to a child, and its parent says that it holds it")
        else:
            _own(worker, client)

    with client.lock.across_fork():
        pid = children.fork(child)
        if client.held:
            worker.arena.trouble("violation", "the lock has moved to a child, and its parent says that it holds it")
    if worker.dice.random() < 0.5:
        children.wait(pid)


def _own(worker: Worker, client: Client) -> None:
    token = worker.enter(client)
    if worker.dice.random() < 0.3:
        time.sleep(worker.dice.random() * 0.01)
    worker.leave(client, token)
    client.release()


# Exec'ing -------------------------------------------------------------------------------------------------------------


def work_execing(worker: Worker) -> None:
    children = Children(worker)
    while not worker.arena.ended:
        for _ in range(TURNS // 2):
            if worker.dice.random() < 0.7:
                _exec_while_holding(worker, children)
            else:
                _spawn_while_holding(worker)
        worker.look_for_leaks()


def _exec_while_holding(worker: Worker, children: Children) -> None:
    """A child takes the lock and becomes another program, which lists what it has inherited: no socket.

    Unless it is meant to: then it has the lock, and its mark, until it ends.
    """
    keep = worker.dice.random() < 0.3
    reader, writer = os.pipe()

    def child() -> None:
        lock = Lock(worker.name())
        try:
            lock.acquire(0.5)
        except Timeout:
            os._exit(3)
        worker.mark.enter()
        worker.arena.add(worker.slot, 0, ACQUIRED)
        if keep:
            os.set_inheritable(lock.fileno(), True)
            os.set_inheritable(worker.mark.fd, True)
        os.dup2(writer, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # our parent may be killed, and its pipe be broken
        os.execv(_LS, ["ls", "-l", "/proc/self/fd"])

    pid = children.fork(child)
    os.close(writer)
    with open(reader, "rb") as file:
        listed = file.read()
    if children.wait(pid) == 0:
        worker.arena.add(worker.slot, 0, EXECED)
        if (b"socket:" in listed) != keep:
            what = "did not survive" if keep else "survived"
            worker.arena.trouble("leak", f"the lock's descriptor {what} the exec: {listed!r}")


def _spawn_while_holding(worker: Worker) -> None:
    """Another program is started while the lock is held, and outlives that."""
    client = worker.client()
    worker.arena.set_waiting(worker.slot, 0, True)
    if worker.acquired(client.acquire()):
        token = worker.enter(client)
        program = subprocess.Popen([_SLEEP, "0.02"], stdin=subprocess.DEVNULL)
        worker.leave(client, token)
        client.release()
        program.wait()
        worker.arena.add(worker.slot, 0, EXECED)
