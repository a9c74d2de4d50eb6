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
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import filelock
from actors import THREADS, Actor
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import wait_until

import pidabs

CHECKS_ARGUMENTS = tuple(map(int, filelock.__version__.split(".")[:2])) >= (4, 2)
"""Of `acquire`; ours always does."""

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


def when(condition: Callable[[Any], object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A precondition of which Hypothesis does not know.

    What it draws must be the same each time that it tries a sequence again; who of several waiters gets a lock that is
    lost, and what can be done thereafter, is not.
    """

    def decorate(step: Callable[..., None]) -> Callable[..., None]:
        @wraps(step)
        def tried(machine: Any, **drawn: Any) -> None:
            if condition(machine):
                step(machine, **drawn)

        return tried

    return decorate


class Machine(RuleBasedStateMachine):
    """Processes to act in, and a directory of its own for each sequence."""

    code: str
    actors: ClassVar[tuple[list[Actor], list[list[str]]]] = ([], [])
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

    @initialize(process=processes, mirror=st.booleans())
    def begin_with_one(self, process: int, mirror: bool) -> None:
        self.make(process, mirror, 0)

    @rule(process=processes, mirror=st.booleans(), default=st.sampled_from([0, 0.01]))
    def make(self, process: int, mirror: bool, default: float) -> None:
        self.made += 1
        lock = LockObject(process, self.made, mirror)
        self.actor(lock).result(None, "make", lock.number, mirror, default)
        self.objects.append(lock)

    @rule(
        which=picks,
        thread=threads,
        how=st.sampled_from([{"timeout": 0}, {"timeout": 0.005}, {}]),
        awaited=st.booleans(),
    )
    @when(lambda self: self.objects)
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

    @rule(which=picks, thread=threads, awaited=st.booleans())
    @when(lambda self: self.objects and self.owner)
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

    @rule(which=picks)
    @when(lambda self: self.queue)
    def give_up(self, which: int) -> None:
        waiter = self.queue.pop(which % len(self.queue))
        self.cancel(waiter)

    def cancel(self, waiter: Waiter) -> None:
        actor = self.processes[waiter.process]
        actor.result(None, "cancel", waiter.token)
        assert actor.answer(waiter.order)[:2] == ["raised", "Timeout"]

    @rule(which=picks, thread=threads, awaited=st.booleans())
    @when(lambda self: self.objects)
    def release(self, which: int, thread: int, awaited: bool) -> None:
        self.release_it(self.pick(which), thread, awaited)

    @rule(thread=threads, awaited=st.booleans())
    @when(lambda self: self.owner)
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

    @rule(which=picks)
    @when(lambda self: self.objects)
    def drop(self, which: int) -> None:
        lock = self.pick(which)
        if any(waiter.lock is lock for waiter in self.queue):
            return  # it would live on in its thread
        self.objects.remove(lock)
        warned = self.actor(lock).do(None, "drop", lock.number)[2:]
        assert warned == ([["ResourceWarning"]] if lock is self.owner else [])
        if lock is self.owner:
            self.freed()

    @rule(reused=st.booleans())
    @when(lambda self: self.owner)
    def lose_its_descriptor(self, reused: bool) -> None:
        lock = self.owner
        assert lock is not None
        self.actor(lock).result(None, "lose", lock.number, reused)
        lock.lost = True
        self.leftover = self.leftover or lock.mirror
        self.freed()

    @rule(which=picks, thread=threads)
    @when(lambda self: self.objects)
    def fork(self, which: int, thread: int) -> None:
        lock = self.pick(which)
        if not self.is_idle(lock, thread):
            return
        answer = self.actor(lock).result(thread, "fork", lock.number)
        assert answer == ["returned", [False, "not held", "taken" if self.owner is not None else True]]
        if lock.mirror and self.owner is None:
            self.leftover = False

    @rule(thread=threads, released=st.booleans())
    @when(lambda self: self.owner)
    def move_to_a_child(self, thread: int, released: bool) -> None:
        lock = self.owner
        assert lock is not None
        if not self.is_idle(lock, thread):
            return
        kind, seen = self.actor(lock).result(thread, "move", lock.number, released, lock.mirror)
        assert (kind, all(seen)) == ("returned", True), seen
        self.leftover = self.leftover or (lock.mirror and not released)
        self.freed()

    @rule(process=processes)
    @when(lambda self: not self.killed)  # once: to start another takes longer than all else
    def kill_a_process(self, process: int) -> None:
        self.kill(process)
        self.objects = [lock for lock in self.objects if lock.process != process]
        self.queue = [waiter for waiter in self.queue if waiter.process != process]
        if self.owner is not None and self.owner.process == process:
            self.leftover = self.leftover or self.owner.mirror
            self.freed()

    @rule(which=picks)
    @when(lambda self: self.objects)
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


# The stand-ins beside the originals -----------------------------------------------------------------------------------

SIDE_BY_SIDE = r"""
def do_begin(directory):
    global worlds
    tidy_up()
    gc.collect()
    worlds = [directory + "/stock", directory + "/ours"]
    _local.shown.clear()

def do_descriptors():
    return descriptors()

def both(number, function, *args):
    return [alone(world, number, function, *args) for world in (0, 1)]

def alone(world, number, function, *args):
    seen = outcome(function, locks[number][world], *args)
    return json.loads(json.dumps(seen).replace(worlds[world], "DIR"))

def do_alone(world, number, method, *args):
    return alone(world, number, lambda lock: getattr(lock, method)(*args))

def do_call(number, method, *args):
    return both(number, lambda lock: getattr(lock, method)(*args))
"""
"""A call is made in both worlds: a directory where the originals work, and one where ours do."""


class Beside(Machine):
    """What is the same for both pairs."""

    def __init__(self) -> None:
        self.objects: list[tuple[int, int]] = []
        """Process and number of each pair of locks."""
        self.made = 0
        super().__init__()
        for world in ("stock", "ours"):
            (self.directory / world).mkdir()

    def pick(self, which: int) -> tuple[int, int]:
        return self.objects[which % len(self.objects)]

    def same(self, process: int, thread: int, name: str, *args: Any) -> Any:
        """What both do, which has to be the same."""
        stock, ours = self.processes[process].result(thread, name, *args)
        if stock[:2] == ["raised", "LockFailed"]:  # ours says why
            assert ours[:2] == stock[:2]
            assert ours[2][0].startswith(stock[2][0])
        elif stock[0] == "raised":
            assert ours[:3] == stock[:3]
        else:
            assert ours == stock
        return ours

    def texts(self) -> list[str | None]:
        """The PID files of both worlds."""
        files = (self.directory / world / "x.pid" for world in ("stock", "ours"))
        return [file.read_text(encoding="ascii") if file.exists() else None for file in files]


class PIDLockFileMachine(Beside):
    """PIDLockFile and TimeoutPIDLockFile.  Where ours differ on purpose a rule says why."""

    actors: ClassVar[Any] = ([], [])
    code = (
        SIDE_BY_SIDE
        + r"""
from daemon import pidfile as stock_daemon
from lockfile import pidlockfile as stock
from pidabs.compat.daemon import pidfile as our_daemon
from pidabs.compat.lockfile import pidlockfile as ours

CLASSES = {
    "PIDLockFile": (stock.PIDLockFile, ours.PIDLockFile),
    "TimeoutPIDLockFile": (stock_daemon.TimeoutPIDLockFile, our_daemon.TimeoutPIDLockFile),
}
locks, worlds = {}, []

def tidy_up():
    for world, cls in zip(worlds, CLASSES["PIDLockFile"]):
        if (lock := cls(world + "/x.pid")).i_am_locking():
            lock.release()
    locks.clear()

def do_make(number, cls, file, args, options):
    locks[number] = [made(f"{world}/{file}", *args, **options) for world, made in zip(worlds, CLASSES[cls])]

def do_drop(number):
    del locks[number]
    gc.collect()

def look(lock):
    return [lock.is_locked(), lock.i_am_locking(), lock.read_pid()]

def do_look(number):
    return both(number, look)

def do_enter(number):
    return both(number, lambda lock: lock.__enter__() is lock)

def forked(lock):
    seen = look(lock)
    for method in "release", "acquire", "release":
        seen.append(outcome(getattr(lock, method))[:2])
    return seen[:2] + seen[3:]  # without the pid, which may be the child's

def do_fork(number):
    return both(number, lambda lock: in_child(forked, lock))

def do_wait(number):
    results = [None, None]
    def wait(world):
        results[world] = alone(world, number, lambda lock: lock.acquire(timeout=10))
    waiting = [threading.Thread(target=wait, args=(world,)) for world in (0, 1)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    return results
"""
    )

    def __init__(self) -> None:
        super().__init__()
        self.owner: int | None = None
        """The process that holds it."""
        self.file_differs = False
        """Ours left, or lost, a PID file that the original's rules have no place for."""
        self.waited = False

    def acquired(self, process: int, answer: Any, expected: Any = None) -> None:
        if answer == ["returned", expected]:
            assert self.owner is None
            self.owner, self.file_differs = process, False

    @rule(
        process=processes,
        cls=st.sampled_from(["PIDLockFile", "TimeoutPIDLockFile"]),
        args=st.sampled_from([[], [None], [0], [0.02], [-1]]),
        options=st.sampled_from([{}, {"timeout": 0.02}, {"timeout": 0}, {"threaded": True}]),
    )
    def make(self, process: int, cls: str, args: list[Any], options: dict[str, Any]) -> None:
        self.made += 1
        args = args if cls == "TimeoutPIDLockFile" else []  # `threaded` is not drawn
        file = "nowhere/x.pid" if self.made % 5 == 0 else "x.pid"
        self.processes[process].result(None, "make", self.made, cls, file, args, options)
        self.objects.append((process, self.made))

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads, args=st.sampled_from([[], [None], [0], [-1], [-0.5], [0.02]]))
    def acquire(self, which: int, thread: int, args: list[Any]) -> None:
        process, number = self.pick(which)
        self.acquired(process, self.same(process, thread, "call", number, "acquire", *args))

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads)
    def enter(self, which: int, thread: int) -> None:
        process, number = self.pick(which)
        self.acquired(process, self.same(process, thread, "enter", number), True)

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads, how=st.sampled_from([["release"], ["__exit__", None, None, None]]))
    def release(self, which: int, thread: int, how: list[Any]) -> None:
        process, number = self.pick(which)
        if self.same(process, thread, "call", number, *how) == ["returned", None]:
            assert self.owner == process
            self.owner, self.file_differs = None, False

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads)
    def break_lock(self, which: int, thread: int) -> None:
        process, number = self.pick(which)
        if number % 5 and self.owner not in (None, process):
            # The original takes the lock from a live process.  Ours says that it does not.
            ours = self.processes[process].result(thread, "alone", 1, number, "break_lock")
            assert ours == ["returned", None, ["RuntimeWarning"]]
            return
        assert self.same(process, thread, "call", number, "break_lock") == ["returned", None]
        if number % 5:
            self.owner, self.file_differs = None, False

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads)
    def look(self, which: int, thread: int) -> None:
        process, number = self.pick(which)
        self.same(process, thread, "look", number)

    @precondition(lambda self: self.objects)
    @rule(which=picks, thread=threads)
    def fork(self, which: int, thread: int) -> None:
        process, number = self.pick(which)
        self.same(process, thread, "fork", number)
        if self.owner is None and number % 5:
            self.file_differs = False

    @precondition(lambda self: self.objects)
    @rule(which=picks)
    def drop(self, which: int) -> None:
        process, number = self.pick(which)
        self.objects.remove((process, number))
        assert self.processes[process].do(None, "drop", number) == ["returned", None]  # without a warning

    @precondition(lambda self: self.owner is not None and not self.waited and self.objects)
    @rule(which=picks)
    def release_for_one_who_waits(self, which: int) -> None:
        waiting, number = self.pick(which)
        holder = next((pair for pair in self.objects if pair[0] == self.owner and pair[1] % 5), None)
        if holder is None or number % 5 == 0:
            return
        self.waited = True  # once: the original polls
        order = self.processes[waiting].start(0, "wait", number)
        lock = pidabs.Lock(self.directory / "ours" / "x.pid")
        wait_until(lambda: lock.waiters() == 1, "it waits")
        assert self.same(holder[0], 1, "call", holder[1], "release") == ["returned", None]
        assert self.processes[waiting].answer(order) == ["returned", [["returned", None]] * 2]
        self.owner, self.file_differs = waiting, False

    @precondition(lambda self: not self.killed)
    @rule(process=processes, cleaned=st.booleans())
    def kill_a_process(self, process: int, cleaned: bool) -> None:
        self.kill(process)
        self.objects = [pair for pair in self.objects if pair[0] != process]
        if self.owner == process:
            self.owner = None
            self.left_behind(cleaned)

    @precondition(lambda self: self.owner is None)
    @rule(text=st.sampled_from(["", "1\n", "not a pid\n", "99999999\n"]), cleaned=st.booleans())
    def plant_a_file(self, text: str, cleaned: bool) -> None:
        for world in ("stock", "ours"):
            (self.directory / world / "x.pid").write_text(text, encoding="ascii")
        self.left_behind(cleaned)

    def left_behind(self, cleaned: bool) -> None:
        """A PID file without a holder: for the original it is the lock, until somebody removes it.  For ours not."""
        free = next((pair for pair in self.objects if pair[1] % 5), None)
        if free is not None:
            assert self.processes[free[0]].result(0, "alone", 0, free[1], "is_locked") == ["returned", True]
            assert self.processes[free[0]].result(0, "alone", 1, free[1], "is_locked") == ["returned", False]
            assert self.processes[free[0]].result(0, "alone", 1, free[1], "read_pid") == ["returned", None]
        for world in ("stock", "ours") if cleaned else ("stock",):
            (self.directory / world / "x.pid").unlink(missing_ok=True)
        self.file_differs = not cleaned

    @precondition(lambda self: self.owner is not None and not self.file_differs)
    @rule()
    def remove_the_file_of_the_holder(self) -> None:
        """The original's lock is gone with it, so only ours loses it."""
        (self.directory / "ours" / "x.pid").unlink()
        self.file_differs = True

    @invariant()
    def the_files_are_the_same(self) -> None:
        stock, ours = self.texts()
        assert stock == (None if self.owner is None else f"{self.processes[self.owner].pid}\n")
        assert self.file_differs or ours == stock
        assert pidabs.Lock(self.directory / "ours" / "x.pid").locked() == (self.owner is not None)


class FileLockObject(NamedTuple):
    process: int
    number: int
    first: int
    """The number of the first that is the same object: a singleton."""
    is_local: bool


class FileLockMachine(Beside):
    """FileLock: of threads and processes, nested, singletons, with every way in and out and every setter.

    A call that would block for ever is not made.  What ours do otherwise, on purpose, does not show in these calls: no
    file is made, and waiters come in order.
    """

    actors: ClassVar[Any] = ([], [])
    code = (
        SIDE_BY_SIDE
        + r"""
import filelock
from pidabs.compat.filelock import FileLock

CLASSES = filelock.FileLock, FileLock
locks, worlds = {}, []

def tidy_up():
    locks.clear()

def construct(world, number, options):
    made = locks[number][world] = CLASSES[world](f"{worlds[world]}/lock", **options)
    return next(number for number, pair in locks.items() if pair[world] is made)

def do_make(number, options):
    locks[number] = [None, None]
    seen = []
    for world in (0, 1):
        result = outcome(construct, world, number, options)
        seen.append(json.loads(json.dumps(result).replace(worlds[world], "DIR")))
    if None in locks[number]:
        del locks[number]
    return seen

def do_drop(number):
    del locks[number]
    gc.collect()

def acquire(lock, options, cancelled):
    if cancelled:
        options["cancel_check"] = lambda: True
    return [lock.acquire(**options).lock is lock, lock.lock_counter]

def do_acquire(number, options, cancelled):
    return both(number, acquire, options, cancelled)

def do_wait(number):
    "Ours first, so that it does wait; the original is free by then, or polls."
    return [alone(world, number, acquire, {"timeout": 15, "blocking": True}, False) for world in (1, 0)][::-1]

def release(lock, force):
    return [lock.release(force), lock.lock_counter]

def do_release(number, force):
    return both(number, release, force)

def block(lock, options, nested, failing):
    with lock.acquire(**options) as taken:
        seen = [taken is lock, lock.lock_counter]
        if nested:
            with lock as again:
                seen += [again is lock, lock.lock_counter]
        if failing:
            raise KeyError(seen)
    return [*seen, lock.lock_counter]

def do_block(number, *args):
    return both(number, block, *args)

def do_leave(number):
    return both(number, lambda lock: [lock.__exit__(None, None, None), lock.lock_counter])

def look(lock):
    options = [lock.timeout, lock.blocking, lock.poll_interval, lock.mode, lock.lifetime, lock.lock_file]
    return [lock.is_locked, lock.lock_counter, lock.is_thread_local(), lock.is_singleton, *map(repr, options)]

def do_look(number):
    return both(number, look)

def do_set(number, name, value):
    return both(number, lambda lock: setattr(lock, name, value))

def forked(lock):
    seen = [outcome(acquire, lock, {"timeout": 0}, False), outcome(lock.release)]
    other = type(lock)(lock.lock_file)
    seen.append(outcome(acquire, other, {"timeout": 0}, False))
    return [step[:2] for step in seen]

def do_fork(number):
    return both(number, lambda lock: in_child(forked, lock))
"""
    )

    def __init__(self) -> None:
        super().__init__()
        self.locks: list[FileLockObject] = []
        self.owner: tuple[FileLockObject, int] | None = None
        """Who holds it, and the thread that took it."""
        self.probe = filelock.FileLock(self.directory / "stock" / "lock", thread_local=False)
        self.our_probe = pidabs.Lock(self.directory / "ours" / "lock")
        self.waited = False

    def choose(self, which: int) -> FileLockObject:
        return self.locks[which % len(self.locks)]

    def is_owner(self, lock: FileLockObject, thread: int) -> bool:
        if self.owner is None:
            return False
        owner, took = self.owner
        same = (owner.process, owner.first) == (lock.process, lock.first)
        return same and (took == thread or not lock.is_local)

    def returns(self, lock: FileLockObject, thread: int) -> bool:
        """Whether an acquire without a limit ends: taken, taken once more, or refused as this thread has it already."""
        if self.owner is None or self.is_owner(lock, thread):
            return True
        return self.owner[0].process == lock.process and self.owner[1] == thread

    def limited(self, lock: FileLockObject, thread: int, options: dict[str, Any]) -> dict[str, Any]:
        return options if self.returns(lock, thread) else {"timeout": 0, **options} | {"blocking": False}

    def counted(self, lock: FileLockObject, thread: int, answer: Any) -> None:
        """After a call that answers with the counter."""
        if answer[0] != "returned":
            return
        if answer[1][-1]:
            self.owner = self.owner or (lock, thread)
        elif self.is_owner(lock, thread):
            self.owner = None

    @precondition(lambda self: len(self.locks) < 5)
    @rule(
        process=processes,
        thread=threads,
        is_singleton=st.booleans(),
        options=st.sampled_from(
            [
                {},
                {"thread_local": False},
                {"timeout": 0},
                {"timeout": 0.02, "blocking": False},
                {"poll_interval": 0.01, "mode": 0o600},
                {"timeout": "1"},
                {"blocking": 1},
                {"unknown": 1},
            ]
        ),
    )
    def make(self, process: int, thread: int, is_singleton: bool, options: dict[str, Any]) -> None:
        self.made += 1
        if is_singleton:
            options = {**options, "is_singleton": True}
        answer = self.same(process, thread, "make", self.made, options)
        if answer[0] == "returned":
            is_local = options.get("thread_local", True)
            self.locks.append(FileLockObject(process, self.made, answer[1], is_local))

    @precondition(lambda self: self.locks)
    @rule(
        which=picks,
        thread=threads,
        options=st.sampled_from([{}, {"timeout": 0}, {"timeout": 0.02, "poll_interval": 0.005}, {"blocking": False}]),
        cancelled=st.booleans(),
    )
    def acquire(self, which: int, thread: int, options: dict[str, Any], cancelled: bool) -> None:
        lock = self.choose(which)
        if {"timeout", "blocking"}.isdisjoint(options):
            options = self.limited(lock, thread, options)
        self.counted(lock, thread, self.same(lock.process, thread, "acquire", lock.number, options, cancelled))

    @precondition(lambda self: self.locks and CHECKS_ARGUMENTS)
    @rule(
        which=picks, thread=threads, options=st.sampled_from([{"timeout": "x"}, {"blocking": 0}, {"poll_interval": -1}])
    )
    def acquire_wrongly(self, which: int, thread: int, options: dict[str, Any]) -> None:
        lock = self.choose(which)
        answer = self.same(lock.process, thread, "acquire", lock.number, options, False)
        assert answer[0] == "raised"

    @precondition(lambda self: self.locks)
    @rule(which=picks, thread=threads, force=st.booleans())
    def release(self, which: int, thread: int, force: bool) -> None:
        lock = self.choose(which)
        self.counted(lock, thread, self.same(lock.process, thread, "release", lock.number, force))

    def held_object(self) -> FileLockObject | None:
        """One that has not been dropped and is the owner, for the thread that took it."""
        return next((lock for lock in self.locks if self.owner and self.is_owner(lock, self.owner[1])), None)

    @precondition(lambda self: self.held_object())
    @rule(options=st.sampled_from([{}, {"timeout": 0}]))
    def nest(self, options: dict[str, Any]) -> None:
        lock = self.held_object()
        assert lock is not None
        assert self.owner is not None
        answer = self.same(lock.process, self.owner[1], "acquire", lock.number, options, False)
        assert answer[0] == "returned"

    @precondition(lambda self: self.held_object())
    @rule(force=st.booleans())
    def release_what_is_held(self, force: bool) -> None:
        lock = self.held_object()
        assert lock is not None
        assert self.owner is not None
        thread = self.owner[1]
        self.counted(lock, thread, self.same(lock.process, thread, "release", lock.number, force))

    @precondition(lambda self: self.locks)
    @rule(which=picks, thread=threads)
    def leave(self, which: int, thread: int) -> None:
        lock = self.choose(which)
        self.counted(lock, thread, self.same(lock.process, thread, "leave", lock.number))

    @precondition(lambda self: self.locks)
    @rule(which=picks, thread=threads, nested=st.booleans(), failing=st.booleans())
    def block(self, which: int, thread: int, nested: bool, failing: bool) -> None:
        lock = self.choose(which)
        options = self.limited(lock, thread, {})
        self.counted(lock, thread, self.same(lock.process, thread, "block", lock.number, options, nested, failing))

    @precondition(lambda self: self.locks)
    @rule(which=picks, thread=threads)
    def look(self, which: int, thread: int) -> None:
        lock = self.choose(which)
        self.same(lock.process, thread, "look", lock.number)

    @precondition(lambda self: self.locks)
    @rule(
        which=picks,
        thread=threads,
        option=st.sampled_from(
            [
                ("timeout", 0.01),
                ("timeout", -1),
                ("timeout", "x"),
                ("timeout", None),
                ("blocking", False),
                ("blocking", 1),
                ("poll_interval", 0.01),
                ("poll_interval", -1),
                ("lifetime", None),
                ("lock_file", "other"),
            ]
        ),
    )
    def set(self, which: int, thread: int, option: tuple[str, Any]) -> None:
        lock = self.choose(which)
        self.same(lock.process, thread, "set", lock.number, *option)

    @precondition(lambda self: self.locks)
    @rule(which=picks, thread=threads)
    def fork(self, which: int, thread: int) -> None:
        lock = self.choose(which)
        self.same(lock.process, thread, "fork", lock.number)

    @precondition(lambda self: self.locks)
    @rule(which=picks)
    def drop(self, which: int) -> None:
        lock = self.choose(which)
        others = [other for other in self.locks if (other.process, other.first) == (lock.process, lock.first)]
        holds = self.owner is not None and (self.owner[0].process, self.owner[0].first) == (lock.process, lock.first)
        thread = self.owner[1] if holds and self.owner is not None else 0
        self.locks.remove(lock)
        assert self.processes[lock.process].do(thread, "drop", lock.number) == ["returned", None]
        if holds and len(others) == 1:
            self.owner = None

    @precondition(lambda self: self.owner is not None and not self.waited and self.locks)
    @rule(which=picks, thread=threads)
    def release_for_one_who_waits(self, which: int, thread: int) -> None:
        lock = self.choose(which)
        assert self.owner is not None
        holder, took = self.owner
        held = self.held_object()
        if held is None or (lock.process, thread) == (holder.process, took) or self.is_owner(lock, thread):
            return
        self.waited = True
        order = self.processes[lock.process].start(thread, "wait", lock.number)
        wait_until(lambda: self.our_probe.waiters() == 1, "it waits")
        assert self.same(held.process, took, "release", held.number, True) == ["returned", [None, 0]]
        assert self.processes[lock.process].answer(order) == ["returned", [["returned", [True, 1]]] * 2]
        self.owner = lock, thread

    @precondition(lambda self: not self.killed)
    @rule(process=processes)
    def kill_a_process(self, process: int) -> None:
        self.kill(process)
        self.locks = [lock for lock in self.locks if lock.process != process]
        if self.owner is not None and self.owner[0].process == process:
            self.owner = None

    @invariant()
    def both_are_taken_or_free(self) -> None:
        assert self.our_probe.locked() == (self.owner is not None)
        try:
            self.probe.acquire(timeout=0)
        except filelock.Timeout:
            assert self.owner is not None
        else:
            self.probe.release()
            assert self.owner is None


TestLock = LockMachine.TestCase
TestLock.settings = budget(quick=10, long=3000)
TestPIDLockFile = PIDLockFileMachine.TestCase
TestPIDLockFile.settings = budget(quick=10, long=3000)
TestFileLock = FileLockMachine.TestCase
TestFileLock.settings = budget(quick=10, long=3000)
