"""Random call sequences: pidabs.Lock against a model of it, the stand-ins side by side with the originals.

Each machine below draws calls, makes them in real processes with several threads, and compares every answer with what
its model, or the original, says.  A failure is printed as the shortest sequence that shows it.

PIDABS_STATEFUL=long makes thousands of new sequences instead of a few that are the same each time:

    PIDABS_STATEFUL=long pytest tests/test_stateful.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from actors import THREADS, Actor
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import wait_until

import pidabs

LONG = os.environ.get("PIDABS_STATEFUL", "quick") == "long"

PROCESSES = 2
processes = st.integers(0, PROCESSES - 1)
threads = st.integers(0, THREADS - 1)
picks = st.integers(0, 7)
"""Which of the objects: counted round."""


def budget(quick: int, long: int) -> settings:
    return settings(
        max_examples=long if LONG else quick,
        stateful_step_count=60 if LONG else 30,
        derandomize=not LONG,  # what is red in CI is red again
        database=None,
        deadline=None,  # sequences that wait for processes
        print_blob=True,
        phases=[Phase.generate, *[Phase.shrink] * LONG],
        suppress_health_check=list(HealthCheck),
    )


class Machine(RuleBasedStateMachine):
    """Processes to act in, and a directory of its own for each sequence."""

    code: str
    actors: tuple[list[Actor], list[list[str]]] = ([], [])
    """Kept from one sequence to the next: the processes, and the descriptors that an idle one has."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = False
        self.directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="pidabs-stateful-")))
        self.path = str(self.directory / "x.pid")
        self.processes, self.idle = type(self).actors
        for number in range(PROCESSES):
            if number == len(self.processes):
                self.processes.append(Actor(self.code))
                self.idle.append([])
            self.begin(number)

    def begin(self, number: int) -> None:
        self.processes[number].result(None, "begin", str(self.directory))
        if not self.idle[number]:
            self.idle[number] = self.processes[number].result(None, "descriptors")

    def kill(self, number: int) -> None:
        self.killed = True
        self.processes[number].child.kill()
        self.processes[number].end()
        self.processes[number] = Actor(self.code)
        self.idle[number] = []
        self.begin(number)

    def teardown(self) -> None:
        try:
            for number, actor in enumerate(self.processes):
                if any(not actor.has_answered(order) for order in actor.waiting):
                    self.end()  # something failed while a thread was blocked
                    return
                actor.result(None, "begin", "/")
                assert self.idle[number] == actor.result(None, "descriptors")
        except BaseException:
            self.end()
            raise
        finally:
            shutil.rmtree(self.directory)

    @classmethod
    def end(cls) -> None:
        for actor in cls.actors[0]:
            actor.end()
        cls.actors[0].clear()
        cls.actors[1].clear()


# pidabs.Lock against a model ------------------------------------------------------------------------------------------


class LockObject:
    """What the model knows of one Lock."""

    def __init__(self, process: int, number: int, mirror: bool) -> None:
        self.process = process
        self.number = number
        self.mirror = mirror
        self.lost = False
        """Its descriptor was closed behind its back, and it has not noticed yet."""


class Waiter(NamedTuple):
    """Who waits: for the answer to an order."""

    process: int
    thread: int
    order: int
    token: int
    lock: LockObject


class LockMachine(Machine):
    """The model: who holds the lock, taken by which thread; who waits; whether a PID file may have been left.

    Which waiter is next is not in it: on a busy machine one that does not answer at once is passed over, as it should.
    """

    actors: ClassVar[Any] = ([], [])
    code = r"""
    import pidabs

    locks, strangers, cancelled = {}, [], set()

    def do_begin(directory):
        global path
        path = directory + "/x.pid"
        locks.clear()
        for fd in strangers:
            os.close(fd)
        strangers.clear()
        cancelled.clear()
        gc.collect()
        _local.shown.clear()  # of what was still held

    def do_descriptors():
        return descriptors()

    def do_make(number, mirror, default):
        locks[number] = pidabs.Lock(path, mirror=mirror, timeout=default)

    def do_acquire(number, awaited, how, token=None):
        if token is not None:
            how |= {"cancel_check": lambda: token in cancelled, "poll_interval": 0.005}
        lock = locks[number]
        if awaited:
            import asyncio
            assert asyncio.run(lock.acquire_async(**how)) is lock
        else:
            assert lock.acquire(**how) is lock

    def do_cancel(token):
        cancelled.add(token)

    def do_release(number, awaited):
        if awaited:
            import asyncio
            asyncio.run(locks[number].release_async())
        else:
            locks[number].release()

    def do_drop(number):
        del locks[number]
        gc.collect()

    def do_lose(number, reused):
        fd = locks[number].fileno()
        if reused:
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, fd)
            os.close(null)
            strangers.append(fd)
        else:
            os.close(fd)

    def do_look(number):
        lock = locks[number]
        holder = lock.holder()
        return [lock.held, lock.locked(), lock.waiters(), holder and holder.pid]

    def do_strangers():
        return all(os.path.samestat(os.fstat(fd), os.stat("/dev/null")) for fd in strangers)

    def forked(number):
        lock = locks[number]
        seen = [lock.held]
        try:
            lock.release()
        except pidabs.NotHeld:
            seen.append("not held")
        try:
            lock.acquire(timeout=0)
        except pidabs.Timeout:
            seen.append("taken")
        else:
            seen.append(lock.held and lock.holder().pid == os.getpid())
            lock.release()
        return seen

    def do_fork(number):
        return in_child(forked, number)

    def moved(number, released, mirrored):
        lock = locks[number]
        seen = [lock.held, lock.holder().pid == os.getpid()]
        if mirrored:
            with open(path) as file:
                seen.append(int(file.read()) == os.getpid())
        if released:
            lock.release()
        return seen

    def do_move(number, released, mirrored):
        with locks[number].across_fork():
            return in_child(moved, number, released, mirrored)
    """

    def __init__(self) -> None:
        super().__init__()
        self.probe = pidabs.Lock(self.path)
        self.made = 0
        self.objects: list[LockObject] = []
        self.owner: LockObject | None = None
        self.took = 0
        """The thread that took it."""
        self.queue: list[Waiter] = []
        self.leftover = False
        """A mirror that its holder could not remove may be there."""

    # What the rules need -------------------------------------------------------------------------------------------

    def actor(self, lock: LockObject) -> Actor:
        return self.processes[lock.process]

    def pick(self, which: int) -> LockObject:
        return self.objects[which % len(self.objects)]

    def is_idle(self, lock: LockObject, thread: int) -> bool:
        return all((waiter.process, waiter.thread) != (lock.process, thread) for waiter in self.queue)

    def taken_by(self, lock: LockObject, thread: int) -> None:
        self.owner, self.took, lock.lost = lock, thread, False
        if lock.mirror:
            self.leftover = False  # replaced

    def freed(self) -> None:
        """The owner has let go: if anybody waits, one of those has it now."""
        self.owner = None
        if self.queue:
            answered = wait_until(
                lambda: [waiter for waiter in self.queue if self.processes[waiter.process].has_answered(waiter.order)],
                "somebody who waits gets the lock",
            )
            assert len(answered) == 1
            self.queue.remove(answered[0])
            process, thread, order, _, lock = answered[0]
            assert self.processes[process].answer(order) == ["returned", None]
            self.taken_by(lock, thread)

    def expected_error(self, lock: LockObject, thread: int, awaited: bool, for_ever: bool) -> str | None:
        """What acquire raises: for another task than the one that took it, the lock is just taken."""
        if self.owner is None:
            return None
        mine = self.owner.process == lock.process and self.took == thread and not awaited
        return "AlreadyHeld" if mine and (self.owner is lock or for_ever) else "Timeout"

    # What can happen -----------------------------------------------------------------------------------------------

    @rule(process=processes, mirror=st.booleans(), default=st.sampled_from([0, 0.01]))
    def make(self, process: int, mirror: bool, default: float) -> None:
        self.made += 1
        lock = LockObject(process, self.made, mirror)
        self.actor(lock).result(None, "make", lock.number, mirror, default)
        self.objects.append(lock)

    @precondition(lambda self: self.objects)
    @rule(
        which=picks,
        thread=threads,
        how=st.sampled_from([{"timeout": 0}, {"timeout": 0.005}, {}]),
        awaited=st.booleans(),
    )
    def acquire(self, which: int, thread: int, how: dict[str, float], awaited: bool) -> None:
        lock = self.pick(which)
        if not self.is_idle(lock, thread):
            return
        error = self.expected_error(lock, thread, awaited, for_ever=False)
        answer = self.actor(lock).do(thread, "acquire", lock.number, awaited, how)
        if error is None:
            assert answer == ["returned", None]
            self.taken_by(lock, thread)
        else:
            assert answer[:2] == ["raised", error], answer
            lock.lost = False  # it has noticed

    @precondition(lambda self: self.objects and self.owner)
    @rule(which=picks, thread=threads, awaited=st.booleans())
    def acquire_and_wait(self, which: int, thread: int, awaited: bool) -> None:
        lock = self.pick(which)
        if not self.is_idle(lock, thread):
            return
        self.made += 1
        order = self.actor(lock).start(thread, "acquire", lock.number, awaited, {"timeout": None}, self.made)
        lock.lost = False
        if self.expected_error(lock, thread, awaited, for_ever=True) == "AlreadyHeld":
            assert self.actor(lock).answer(order)[:2] == ["raised", "AlreadyHeld"]
        else:
            self.queue.append(Waiter(lock.process, thread, order, self.made, lock))

    @precondition(lambda self: self.queue)
    @rule(which=picks)
    def give_up(self, which: int) -> None:
        waiter = self.queue.pop(which % len(self.queue))
        self.cancel(waiter)

    def cancel(self, waiter: Waiter) -> None:
        actor = self.processes[waiter.process]
        actor.result(None, "cancel", waiter.token)
        assert actor.answer(waiter.order)[:2] == ["raised", "Timeout"]

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads, awaited=st.booleans())
    def release(self, which: int, thread: int, awaited: bool) -> None:
        self.release_it(self.pick(which), thread, awaited)

    @precondition(lambda self: self.owner)
    @rule(thread=threads, awaited=st.booleans())
    def release_what_is_held(self, thread: int, awaited: bool) -> None:
        assert self.owner is not None
        self.release_it(self.owner, thread, awaited)

    def release_it(self, lock: LockObject, thread: int, awaited: bool) -> None:
        if not self.is_idle(lock, thread):
            return
        answer = self.actor(lock).do(thread, "release", lock.number, awaited)
        if lock is self.owner:
            assert answer == ["returned", None]
            self.freed()
        else:
            assert answer[:2] == ["raised", "NotHeld"], answer
            assert ("was lost" in answer[3]) == lock.lost, answer

    @precondition(lambda self: self.objects)
    @rule(which=picks)
    def drop(self, which: int) -> None:
        lock = self.pick(which)
        if any(waiter.lock is lock for waiter in self.queue):
            return  # it would live on in its thread
        self.objects.remove(lock)
        warned = self.actor(lock).do(None, "drop", lock.number)[2:]
        assert warned == ([["ResourceWarning"]] if lock is self.owner else [])
        if lock is self.owner:
            self.freed()

    @precondition(lambda self: self.owner)
    @rule(reused=st.booleans())
    def lose_its_descriptor(self, reused: bool) -> None:
        lock = self.owner
        assert lock is not None
        self.actor(lock).result(None, "lose", lock.number, reused)
        lock.lost = True
        self.leftover = self.leftover or lock.mirror
        self.freed()

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads)
    def fork(self, which: int, thread: int) -> None:
        lock = self.pick(which)
        if not self.is_idle(lock, thread):
            return
        answer = self.actor(lock).result(thread, "fork", lock.number)
        assert answer == ["returned", [False, "not held", "taken" if self.owner is not None else True]]
        if lock.mirror and self.owner is None:
            self.leftover = False

    @precondition(lambda self: self.owner)
    @rule(thread=threads, released=st.booleans())
    def move_to_a_child(self, thread: int, released: bool) -> None:
        lock = self.owner
        assert lock is not None
        if not self.is_idle(lock, thread):
            return
        kind, seen = self.actor(lock).result(thread, "move", lock.number, released, lock.mirror)
        assert (kind, all(seen)) == ("returned", True), seen
        self.leftover = self.leftover or (lock.mirror and not released)
        self.freed()

    @precondition(lambda self: not self.killed)  # once: to start another takes longer than all else
    @rule(process=processes)
    def kill_a_process(self, process: int) -> None:
        self.kill(process)
        self.objects = [lock for lock in self.objects if lock.process != process]
        self.queue = [waiter for waiter in self.queue if waiter.process != process]
        if self.owner is not None and self.owner.process == process:
            self.leftover = self.leftover or self.owner.mirror
            self.freed()

    @precondition(lambda self: self.objects)
    @rule(which=picks)
    def look(self, which: int) -> None:
        lock = self.pick(which)
        pid = self.actor(self.owner).pid if self.owner is not None else None
        expected = [lock is self.owner, self.owner is not None, len(self.queue), pid]
        assert self.actor(lock).result(None, "look", lock.number) == expected

    # What is always true -------------------------------------------------------------------------------------------

    @invariant()
    def the_kernel_agrees(self) -> None:
        assert self.probe.locked() == (self.owner is not None)
        holder = self.probe.holder()
        assert (holder and holder.pid) == (self.owner and self.actor(self.owner).pid)
        wait_until(lambda: self.probe.waiters() == len(self.queue), "all that wait are in the queue")
        for waiter in self.queue:
            assert not self.processes[waiter.process].has_answered(waiter.order), "two have it"

    @invariant()
    def the_mirror_says_so(self) -> None:
        try:
            text = Path(self.path).read_text(encoding="ascii")
        except FileNotFoundError:
            text = ""
        if self.owner is not None and self.owner.mirror:
            assert text == f"{self.actor(self.owner).pid}\n"
        elif not self.leftover:
            assert text == ""
        assert [name for name in os.listdir(self.directory) if name != "x.pid"] == []

    @invariant()
    def nobody_elses_file_is_closed(self) -> None:
        for actor in self.processes:
            assert actor.result(None, "strangers")

    def teardown(self) -> None:
        for waiter in self.queue:
            self.cancel(waiter)
        super().teardown()


TestLock = LockMachine.TestCase
TestLock.settings = budget(quick=15, long=3000)
