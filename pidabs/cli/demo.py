"""`pidabs demo`: what happens to a PID file, and to a lock of pidabs, when a daemon is killed.

Rule: everything it says is read off real processes as it happens.  Where something is not as it claims, it says so and
fails.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import monotonic, monotonic_ns

from .. import Lock, LockError, holder
from ._codes import DONE, FAILED, SIGNALLED, UNAVAILABLE, USAGE
from ._demo_stage import Daemon, Stage
from ._interrupt import DEADLINE, Interrupted, UnexpectedError
from ._text import complain, encodable, paint

_BEFORE = "from daemon.pidfile import TimeoutPIDLockFile"
_AFTER = "from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile"

_STRANGER = "import sys; sys.stdin.read()"
_WAITER = """
import os, sys, time
from pidabs import Lock
with Lock(sys.argv[1]):
    try:
        os.write(1, b"%d %d\\n" % (os.getpid(), time.monotonic_ns()))
    except BrokenPipeError:
        pass  # the demo is gone
"""
_LOOK = 0.002  # seconds between two looks at the length of a queue

_RED, _GREEN, _BOLD = 31, 32, 1


def demo(_: object) -> int:
    """Play the demo: the command's exit code."""
    try:
        Lock("pidabs-demo")  # Unsupported where nothing of it could work
    except ValueError as exc:
        complain(f"PIDABS_SCOPE: {exc}; unset or correct it")
        return USAGE
    try:
        from daemon import DaemonContext  # noqa: F401
        from daemon.pidfile import TimeoutPIDLockFile  # noqa: F401
    except ImportError as exc:
        complain(f'the demo runs a real daemon, and python-daemon is missing ({exc}); pip install "pidabs[daemon]"')
        return UNAVAILABLE
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as exc:
        complain(f"the demo kills by pidfd, and there are none ({exc}); they need Linux 5.3, and a Python made for it")
        return UNAVAILABLE
    began = monotonic()
    try:
        with Stage() as stage:
            _play(stage)
    except Interrupted as exc:
        complain(f"ended by {exc}; everything that the demo started is gone")
        return SIGNALLED + exc.number
    except (UnexpectedError, LockError) as exc:
        _say(paint(_RED, "\nNOT AS CLAIMED: ") + str(exc))
        return FAILED
    _say(f"\nAll as claimed, in {monotonic() - began:.1f} s. Everything the demo started is gone.")
    return DONE


def _play(stage: Stage) -> None:
    _say("What becomes of a daemon's lock when the daemon is killed?")
    _say("Each process here is real, each SIGKILL too, and each number is measured as you read it.")
    before, after = _programs(stage)
    _the_problem(stage, before)
    _the_swap(stage, after)
    _recycled_pid(stage, before, after)
    _three_waiters(stage)


def _programs(stage: Stage) -> tuple[Path, Path]:
    """The daemon, and the same with the import swapped."""
    source = Path(__file__).with_name("_demo_daemon.py").read_text(encoding="utf-8")
    swapped = source.replace(f"\n{_BEFORE}\n", f"\n{_AFTER}\n")
    changed = [line for line, other in zip(source.splitlines(), swapped.splitlines(), strict=True) if line != other]
    _check(changed == [_BEFORE], f"the two daemons differ in {len(changed)} lines, not in one")
    programs = stage.directory / "before.py", stage.directory / "after.py"
    for program, text in zip(programs, (source, swapped), strict=True):
        program.write_text(text, encoding="utf-8")
    return programs


# The four scenes ------------------------------------------------------------------------------------------------------


def _the_problem(stage: Stage, program: Path) -> None:
    _title("1. A daemon on the PID file that python-daemon comes with", _BEFORE)
    pidfile = stage.directory / "problem.pid"
    daemon = _start(stage, program, pidfile)
    daemon.kill()
    daemon.wait()
    _check(_pid_in(pidfile) == daemon.pid, f"{pidfile} no longer names pid {daemon.pid}")
    _step("SIGKILL", f"pid {daemon.pid} is dead, and {pidfile.name} still says {daemon.pid}")
    _start_refused(stage, program, pidfile)
    _note("It stays down until somebody removes the file. And a daemon has left its terminal by")
    _note("the time it takes its PID file, so nobody sees that error.")


def _the_swap(stage: Stage, program: Path) -> None:
    _title("2. The same daemon with one line swapped", _AFTER)
    pidfile = stage.directory / "swap.pid"
    daemon = _start(stage, program, pidfile)
    _step("who", f"the kernel says: {_held_by(pidfile, daemon)}")
    killed = daemon.kill()
    lock = Lock(pidfile).acquire(timeout=DEADLINE)
    free = monotonic()
    lock.release()
    daemon.wait()
    _step("SIGKILL", f"pid {daemon.pid} is dead, the lock was free {paint(_BOLD, _ms(free - killed))} after the kill")
    _check(_pid_in(pidfile) == daemon.pid, f"{pidfile} no longer names pid {daemon.pid}")
    _step("look", f"{pidfile.name} still says {daemon.pid}; nobody minds, since it is only there for people and tools")
    _start(stage, program, pidfile)


def _recycled_pid(stage: Stage, before: Path, after: Path) -> None:
    _title("3. A stale PID file whose pid belongs to another process by now")
    stranger = stage.process(_STRANGER)
    _step("start", f"an unrelated process, pid {stranger.pid}")
    for program, line in (before, _BEFORE), (after, _AFTER):
        pidfile = stage.directory / f"recycled-{program.stem}.pid"
        pidfile.write_text(f"{stranger.pid}\n")
        _say(f"\n     {line}")
        _step("write", f"{stranger.pid} into {pidfile.name}, as a daemon left it that once had this pid")
        if program == before:
            daemon = _start_refused(stage, program, pidfile)
            _check(daemon.saw == stranger.pid, f"read_pid() says {daemon.saw}, not the stranger's {stranger.pid}")
            _step("read_pid()", f'{daemon.saw}: {paint(_RED, "fooled")}, who stops "the daemon" now kills a stranger')
        else:
            daemon = _start(stage, program, pidfile)
            _check(daemon.saw is None, f"read_pid() says {daemon.saw} on a free lock")
            _step(
                "read_pid()",
                f"said {daemon.saw} before the start: {paint(_GREEN, 'not fooled')}; now it is {daemon.pid}",
            )
            _held_by(pidfile, daemon)
    _check(stranger.runs(), f"the unrelated process, pid {stranger.pid}, has ended")


def _three_waiters(stage: Stage) -> None:
    _title("4. Three processes wait for one lock", "with pidabs.Lock(name):")
    reader, writer = os.pipe()
    try:
        lock = Lock(stage.directory / "queue")
        with lock:
            _step("acquire", f"the demo itself holds the lock, pid {os.getpid()}")
            waiters = []
            for number in (1, 2, 3):
                waiters.append(stage.process(_WAITER, lock.name, stdout=writer).pid)
                _wait_for_queue(stage, lock, number)
                _step("wait", f"waiter {number}, pid {waiters[-1]}, is asleep in the kernel's queue")
            released = monotonic_ns()
        _step("release", "and none of them polls")
        report = b""
        while report.count(b"\n") < len(waiters):
            stage.wait(reader, "the waiters' turns")
            report += os.read(reader, 4096)
    finally:
        os.close(reader)
        os.close(writer)
    turns = [tuple(map(int, line.split())) for line in report.splitlines()]
    for pid, when in turns:
        _step("got it", f"waiter {waiters.index(pid) + 1}, pid {pid}, {_ms((when - released) / 1e9)} after the release")
    _check([pid for pid, _ in turns] == waiters, "the waiters did not get the lock in the order in which they came")


# What they are made of ------------------------------------------------------------------------------------------------


def _start(stage: Stage, program: Path, pidfile: Path) -> Daemon:
    daemon = stage.daemon(program, pidfile)
    _check(daemon.pid is not None, f"the daemon was refused: {daemon.refusal}")
    _check(_pid_in(pidfile) == daemon.pid, f"{pidfile} does not name the daemon, pid {daemon.pid}")
    _step("start", f"{paint(_GREEN, 'runs')}, pid {daemon.pid}, and {pidfile.name} says so")
    return daemon


def _start_refused(stage: Stage, program: Path, pidfile: Path) -> Daemon:
    daemon = stage.daemon(program, pidfile)
    _check(daemon.refusal is not None, f"the daemon was not refused, it runs as pid {daemon.pid}")
    _step("start", f"{paint(_RED, 'REFUSED')}, {daemon.refusal}")
    return daemon


def _held_by(pidfile: Path, daemon: Daemon) -> str:
    """Who holds the lock, which has to be this daemon."""
    found = holder(pidfile)
    _check(
        found is not None and found.pid == daemon.pid, f"the lock's holder is {found}, not the daemon, pid {daemon.pid}"
    )
    return f"held by pid {found.pid}, uid {found.uid}" if found else ""


def _wait_for_queue(stage: Stage, lock: Lock, length: int) -> None:
    deadline = monotonic() + DEADLINE
    while lock.waiters() < length:
        _check(monotonic() < deadline, f"waiter {length} did not join the queue within {DEADLINE:g} s")
        stage.pause(_LOOK)


def _pid_in(pidfile: Path) -> int | None:
    try:
        return int(pidfile.read_text())
    except (OSError, ValueError):
        return None


def _check(true: bool, otherwise: str) -> None:
    if not true:
        raise UnexpectedError(otherwise)


# What it looks like ---------------------------------------------------------------------------------------------------


def _title(text: str, code: str = "") -> None:
    _say("\n" + paint(_BOLD, text))
    if code:
        _say(f"     {code}")


def _step(verb: str, text: str) -> None:
    _say(f"   {verb:<10} {text}")


def _note(text: str) -> None:
    _say(f"   {text}")


def _say(text: str) -> None:
    print(encodable(text, sys.stdout), flush=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
