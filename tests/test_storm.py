"""Real processes under a storm of signals: no two owners, no stall, first come first served, free at the end.

The storm itself, and its detectors, are in stress/.  PIDABS_STORM_SECONDS (default 8) says how long it lasts here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kinds
import pytest
from support import child

SECONDS = float(os.environ.get("PIDABS_STORM_SECONDS", "8"))
STALL = 2.0

ROOT = Path(__file__).parent.parent


def stress(*words: str, deadline: float) -> dict[str, Any]:
    """Run the documented command, and return what it found; its exit status has to say the same."""
    done = subprocess.run(
        [sys.executable, "-m", "stress", *words, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(found)
    assert done.returncode == (0 if found["passed"] else 1)
    return found


@pytest.mark.timeout(90 + SECONDS)
def test_storm() -> None:
    """Workers of every kind, killed, stopped, frozen, forking, exec'ing, cancelled: as `python -m stress storm`."""
    found = stress("storm", "--seconds", str(SECONDS), "--rounds", "20", deadline=60 + SECONDS)
    assert found["passed"], found["lines"]
    assert set(found["acquired"]) >= {*kinds.BLOCKING, *kinds.AWAITED}
    assert all(found["acquired"].values())
    assert found["counts"]["kills"] > 3 * SECONDS
    assert found["counts"]["kills of owners"] > 0
    assert found["counts"]["stops"] > SECONDS / 2
    assert found["counts"]["freezes"] > SECONDS / 2 or found["freezer"] != "cgroup v2"
    assert all(found["counts"][what] for what in ("forks", "execs", "timeouts", "cancellations", "grants in order"))


@pytest.mark.parametrize(
    ("sabotage", "trouble"),
    [("exclusion", "violation"), ("lost", "lost"), ("leak", "leak"), ("stall", "stall"), ("order", "inversion")],
)
def test_the_storm_sees_what_is_spoilt(sabotage: str, trouble: str) -> None:
    """Locks that exclude nobody, above all: else a storm that passes proves nothing."""
    rounds, seconds = ("10", "0") if sabotage == "order" else ("0", "30")
    words = ("--seconds", seconds, "--rounds", rounds, "--stall", "0.5", "--sabotage", sabotage)
    found = stress("storm", *words, deadline=90)
    assert found["trouble"][trouble]


ENDED_EARLY = """
import subprocess, sys
from stress.storm import Storm
storm = Storm(sys.argv[1], "seed", 1.0, "")
subprocess.Popen(["sleep", "0.2"])
storm._end()
print(storm.arena.troubles())
"""


def test_the_storm_that_is_ended_before_it_has_begun_clears_up(tmp_path: Path) -> None:
    """By a signal, while it starts its workers."""
    command = [sys.executable, "-c", ENDED_EARLY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


FAILS_EVERYWHERE = """
import sys
from pathlib import Path
from stress import figures, signals
def fails(*_): raise AssertionError("as ever")
signals.injection.traced = fails
trouble = []
signals._every_line("Lock", Path(sys.argv[1]), trouble)
print(len(trouble) == figures.SHOWN)
"""


def test_exceptions_at_every_line_come_to_an_end_where_all_fail(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILS_EVERYWHERE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


DAEMONS = """
    import select, signal, time
    import pidabs
    kind, path, count = sys.argv[1:]
    if kind == "PIDLockFile":
        from pidabs.compat.lockfile.pidlockfile import PIDLockFile
        def take(): PIDLockFile(path).acquire()
        def locked(): return PIDLockFile(path).is_locked()
    else:
        def take():
            global lock
            lock = pidabs.Lock(path, mirror=True)
            lock.acquire(0)
        def locked(): return pidabs.Lock(path).locked()

    def daemon(reader, writer):
        try:
            take()
        except BaseException as exc:
            os.write(writer, b"refused: " + repr(exc).encode() + b" " + str(exc).encode())
            os._exit(1)
        if number % 10 == 0 and os.fork() == 0:
            os.close(writer)
            time.sleep(0.3)  # a worker, which outlives it
            os._exit(0)
        os.write(writer, b"up")
        signal.pause()

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    times = []
    for number in range(int(count)):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            daemon(reader, writer)
        os.close(writer)
        said = os.read(reader, 1000)
        os.close(reader)
        if said != b"up":
            say(f"start {number}:", said.decode())
            break
        if int(open(path).read()) != pid: say("the mirror is wrong")
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        began = time.monotonic()
        if number % 2:
            select.select([pidfd], [], [])
        else:
            while locked() and time.monotonic() < began + 5: pass
        times.append(time.monotonic() - began)
        if number % 3 == 0: os.waitpid(pid, 0)  # else it is a zombie, for now
        os.close(pidfd)
    else:
        say("fine", int(max(times) * 1000))
"""


@pytest.mark.parametrize("kind", ["Lock", "PIDLockFile"])
def test_thousand_daemons_are_started_killed_and_started(kind: str, tmp_path: Path) -> None:
    """Never a refusal once the kernel has let go: seen by its pidfd, or by looking at the lock."""
    if kind == "PIDLockFile":
        pytest.importorskip("lockfile")
    with child(DAEMONS, args=(kind, str(tmp_path / "daemon.pid"), "1000")) as helper:
        verdict = helper.read_line(deadline=60)
        assert verdict.startswith("fine"), verdict
        assert int(verdict.split()[1]) < STALL * 1000
