"""examples/lock.c: a program in C and pidabs take one lock, wait in one queue, and hand it to each other."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support import (
    BECOME_UNPRIVILEGED,
    DEADLINE,
    HOLD,
    Child,
    child,
    must_block,
    needs,
    needs_root,
    switches,
    wait_until,
)

import pidabs

STRANGER = "\n    import pidabs\n" + BECOME_UNPRIVILEGED + HOLD
SOURCE = Path(__file__).parent.parent / "examples" / "lock.c"

pytestmark = needs("gcc")

PATIENT = {"ANSWER_TIME = 20,": "ANSWER_TIME = 5000,", "RELEASE_TIME = 50,": "RELEASE_TIME = 10000,"}
"""On a busy machine 20 ms may pass before who waits runs; then he is skipped, which a test of the order cannot have."""


def compiled(directory: Path, text: str) -> Path:
    """By the line of its header."""
    (line,) = (line for line in text.splitlines() if line.startswith(" *     gcc "))
    words = line.removeprefix(" *     ").split()
    assert {"-Wall", "-Wextra", "-Werror"} <= set(words)
    (directory / "lock.c").write_text(text)
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return directory / "lock"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("c"), SOURCE.read_text())


@pytest.fixture(scope="module")
def patient_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = SOURCE.read_text()
    for short, longer in PATIENT.items():
        assert short in text
        text = text.replace(short, longer)
    return compiled(tmp_path_factory.mktemp("patient"), text)


class Program(Child):
    """The C program, which says its lines as our children do."""

    def __init__(self, words: list[str], **kwargs: object) -> None:
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **kwargs)  # type: ignore[call-overload]
        self._pending = b""


Start = Callable[..., Program]


@pytest.fixture
def launch() -> Iterator[Start]:
    running: list[Program] = []

    def launch(program: Path, *arguments: str, **kwargs: object) -> Program:
        running.append(Program([str(program), *arguments], **kwargs))
        return running[-1]

    yield launch
    for process in running:
        process.close()


@pytest.fixture
def start(launch: Start, program: Path) -> Start:
    return partial(launch, program)


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def waiting(name: str, count: int) -> None:
    """Wait until so many sleep in the queue."""
    wait_until(lambda: pidabs.Lock(name).waiters() == count, f"{count} wait for {name}")


# C holds ------------------------------------------------------------------------------------------------------------


def test_c_holds_and_python_sees_it(start: Start, program: Path, name: str) -> None:
    holder = start(name)
    holder.expect("held")
    found = pidabs.holder(name)
    assert found is not None
    assert (found.pid, found.uid) == (holder.pid, os.geteuid())
    with pytest.raises(pidabs.Timeout, match=f"pid {holder.pid} "):
        pidabs.Lock(name).acquire(timeout=0)
    second = run(program, "-n", name)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == f"lock: {name} is held by pid {holder.pid} (uid {os.geteuid()})\n"


def test_both_wait_in_one_queue(launch: Start, patient_program: Path, name: str) -> None:
    """C, Python, C, C, Python: each gets it from the one before, in the order they came, never whoever is fastest."""
    first = launch(patient_program, name)
    first.expect("held")
    python = pidabs.Lock(name)
    has_second = must_block(python.acquire)
    waiting(name, 1)
    third = launch(patient_program, name)
    waiting(name, 2)
    fourth = launch(patient_program, name)
    waiting(name, 3)
    fifth = pidabs.Lock(name)
    has_fifth = must_block(fifth.acquire)
    waiting(name, 4)

    first.signal(signal.SIGTERM)
    first.expect("released")
    assert first.wait() == 0
    second = has_second()
    assert third.says_nothing()
    second.release()
    third.expect("held")
    assert fourth.says_nothing()
    found = pidabs.holder(name)
    assert found is not None
    assert found.pid == third.pid
    third.signal(signal.SIGINT)
    fourth.expect("held")
    assert third.wait() == 0
    assert not fifth.held
    fourth.signal(signal.SIGTERM)
    has_fifth().release()


def test_c_is_killed_and_python_gets_the_lock(start: Start, name: str) -> None:
    holder = start(name)
    holder.expect("held")
    finish = must_block(pidabs.Lock(name).acquire)
    holder.kill()
    finish().release()
    again = start(name)
    again.expect("held")


def test_c_lets_go_of_a_lock_for_which_nobody_waits(start: Start, name: str) -> None:
    holder = start(name)
    holder.expect("held")
    holder.signal(signal.SIGTERM)
    assert holder.wait() == 0
    with pidabs.Lock(name, timeout=0):
        pass


def test_c_skips_the_stopped_the_dead_and_those_who_only_ask(start: Start, name: str) -> None:
    holder = start(name)
    holder.expect("held")
    assert pidabs.holder(name) is not None  # leaves a dead entry
    with socket.socket(socket.AF_UNIX) as mute, child(HOLD, args=(name,)) as stopped:
        mute.connect(pidabs.Lock(name).address)
        waiting(name, 2)
        stopped.signal(signal.SIGSTOP)
        with child(HOLD, args=(name,)) as third:
            waiting(name, 3)
            holder.signal(signal.SIGTERM)
            third.expect("held")
            stopped.signal(signal.SIGCONT)
            assert stopped.says_nothing()
            third.tell()
            stopped.expect("held")


@needs_root
def test_c_does_not_grant_to_a_stranger(start: Start, name: str) -> None:
    """A stranger is first in the queue, then root, whom root's process trusts."""
    holder = start(name)
    holder.expect("held")
    with child(STRANGER, args=(name,)) as stranger:
        waiting(name, 1)
        with child(HOLD, args=(name,)) as ours:
            waiting(name, 2)
            holder.signal(signal.SIGTERM)
            ours.expect("held")
            assert stranger.says_nothing()
            ours.tell()
            stranger.expect("held")


# Python holds, C waits ----------------------------------------------------------------------------------------------


def test_python_is_killed_and_c_gets_the_lock(start: Start, name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        waiter = start(name)
        assert waiter.says_nothing()
        waiting(name, 1)
        holder.kill()
        waiter.expect("held")
        with pytest.raises(pidabs.Timeout, match=f"pid {waiter.pid} "):
            pidabs.Lock(name).acquire(timeout=0)


def test_c_sleeps_while_it_waits(start: Start, name: str) -> None:
    with pidabs.Lock(name):
        waiter = start(name)
        waiting(name, 1)
        before = switches(waiter.pid)
        assert waiter.says_nothing(0.5)
        assert switches(waiter.pid) == before


@pytest.mark.impatient
def test_a_stopped_c_is_skipped_and_asks_again(start: Start, name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    stopped = start(name)
    waiting(name, 1)
    stopped.signal(signal.SIGSTOP)
    with child(HOLD, args=(name,)) as second:
        waiting(name, 2)
        lock.release()
        second.expect("held")
        stopped.signal(signal.SIGCONT)
        assert stopped.says_nothing()
        waiting(name, 1)
        second.tell()
        stopped.expect("held")


def test_c_that_is_killed_while_it_waits_is_skipped(start: Start, name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    killed = start(name)
    waiting(name, 1)
    second = start(name)
    waiting(name, 2)
    killed.kill()
    lock.release()
    second.expect("held")


def test_c_gives_up(start: Start, program: Path, name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    done = run(program, "-w", "0.2", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"lock: {name} is held by pid {os.getpid()} (uid {os.geteuid()})\n"
    after = start(name)
    waiting(name, 1)
    lock.release()
    after.expect("held")


def test_c_gives_up_while_it_is_granted_the_lock(start: Start, name: str) -> None:
    """At any moment: either it has the lock, or it does not and the lock is free."""
    for delay in range(20):
        lock = pidabs.Lock(name).acquire()
        waiter = start("-w", "0.1", name, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 0.09 + delay * 0.001
        wait_until(partial(is_past, give_up), "it is about to give up")
        lock.release()
        assert waiter.process.stdout is not None
        said = waiter.process.stdout.readline()
        if said:
            assert said == b"held\n"
            waiter.signal(signal.SIGTERM)
            assert waiter.wait() == 0
        else:
            assert waiter.wait() == 1
        with pidabs.Lock(name, timeout=0):
            pass


def is_past(moment: float) -> bool:
    return time.monotonic() >= moment


@needs_root
def test_c_behind_a_stranger_gets_the_lock_when_it_is_free(start: Start, name: str) -> None:
    with child(STRANGER, args=(name,)) as stranger:
        stranger.expect("held")
        waiter = start(name)
        waiting(name, 1)
        stranger.tell()
        waiter.expect("held")


# Both at once -------------------------------------------------------------------------------------------------------


def test_never_two_of_them(launch: Start, program: Path, name: str) -> None:
    """C and Python contend for the lock, and C is killed while it holds it, every other time."""
    alone = threading.Lock()
    rounds = range(8)

    def in_c(number: int) -> int:
        for turn in rounds:
            process = launch(program, name)
            process.expect("held")
            assert alone.acquire(blocking=False)
            alone.release()
            process.signal(signal.SIGKILL if (turn + number) % 2 else signal.SIGTERM)
            process.wait()
        return len(rounds)

    def in_python(number: int) -> int:
        for _ in rounds:
            with pidabs.Lock(name, timeout=DEADLINE):
                assert alone.acquire(blocking=False)
                os.sched_yield()
                alone.release()
        return len(rounds)

    with ThreadPoolExecutor() as pool:
        turns = [pool.submit(contend, number) for number in range(3) for contend in (in_c, in_python)]
        assert [turn.result(3 * DEADLINE) for turn in turns] == [len(rounds)] * 6
    with pidabs.Lock(name, timeout=0):
        pass


# What C must not believe --------------------------------------------------------------------------------------------


def forge(name: str) -> socket.socket:
    """The lock, held as anybody can, to say what we like to those who wait."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(pidabs.Lock(name).address)
    listener.listen()
    listener.settimeout(DEADLINE)
    return listener


def offer(listener: socket.socket) -> socket.socket:
    """To the next who comes: its connection, when it has answered."""
    conn, _ = listener.accept()
    conn.settimeout(DEADLINE)
    assert conn.recv(1) == b"W"
    conn.send(b"O")
    assert conn.recv(1) == b"A"
    return conn


def grant(conn: socket.socket, data: bytes, *passed: socket.socket) -> None:
    descriptors = array.array("i", [sock.fileno() for sock in passed])
    conn.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if passed else [])


def test_c_believes_no_false_grant(start: Start, name: str) -> None:
    with forge(name) as lock, forge(f"{name}x") as other, forge(name[:-1]) as shorter, socket.socket() as unbound:
        waiter = start(name)
        for data, *passed in [
            (b"L",),
            (b"L", other),
            (b"L", shorter),
            (b"L", unbound),
            (b"L", lock, lock),
            (b"L", lock, other, unbound),
            (b"LL", lock),
            (b"X", lock),
            (b"O",),
        ]:
            with offer(lock) as conn:
                grant(conn, data, *passed)
                assert conn.recv(1) == b""  # it has left
        with offer(lock) as conn:  # and come back, with nothing of all that left open
            files = [os.readlink(file) for file in Path(f"/proc/{waiter.pid}/fd").iterdir()]
            assert len([file for file in files if file.startswith("socket:")]) == 1
            grant(conn, b"L", lock)
            waiter.expect("held")


def test_c_does_not_take_a_lock_that_it_was_not_offered(start: Start, name: str) -> None:
    with forge(name) as lock:
        waiter = start(name)
        conn, _ = lock.accept()
        with conn:
            assert conn.recv(1) == b"W"
            grant(conn, b"L", lock)
            assert conn.recv(1) == b""
    waiter.expect("held")  # since it is free


def test_c_waits_for_a_name_that_nobody_listens_on(start: Start, name: str) -> None:
    """As in the moment between bind and listen."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(pidabs.Lock(name).address)
        waiter = start(name)
        assert waiter.says_nothing()
    waiter.expect("held")


# Names --------------------------------------------------------------------------------------------------------------


def test_names_mean_the_same_lock(start: Start, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "redirected").symlink_to("/nowhere")
    names = [
        name,
        f"{name} with spaces, umlauts äöü and\nmore",
        "x" * (99 - len(name)) + name,
        f"{tmp_path}/link/x",
        f"{tmp_path}/real//x",
        f"/{tmp_path}/link/../real/x",
        f"{tmp_path}/real/redirected",
        "./x",
        "link/x",
        f"/{name}",
    ]
    for spelled in names:
        waiter = start(spelled)
        waiter.expect("held")
        found = pidabs.holder(spelled)
        assert found is not None, spelled
        assert found.pid == waiter.pid
        waiter.kill()


def test_scopes(launch: Start, program: Path, name: str) -> None:
    scoped = launch(program, name, env={**os.environ, "PIDABS_SCOPE": "blue"})
    scoped.expect("held")
    assert pidabs.Lock(name, scope="blue").holder().pid == scoped.pid  # type: ignore[union-attr]
    assert pidabs.holder(name) is None
    plain = launch(program, name, env={**os.environ, "PIDABS_SCOPE": ""})
    plain.expect("held")
    for wrong in "a:b", "a/b", "x" * 33:
        assert run(program, name, PIDABS_SCOPE=wrong).returncode == 2


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("",),
        ("#x",),
        ("x" * 100,),
        ("/run/",),
        ("/run/.",),
        ("..", "x"),
        ("/no/such/directory/x",),
        ("-w", "x", "y"),
        ("-w", "-1", "y"),
        ("-x", "y"),
        ("-w", "nan", "y"),
    ],
)
def test_wrong_usage_and_names_that_are_refused(program: Path, wrong: tuple[str, ...]) -> None:
    done = run(program, *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(("lock: not a name for a lock: ", f"usage: {program} "))
