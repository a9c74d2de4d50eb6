"""Milliseconds of whole processes, begun and ended: `import` of each lock, and of the commands.

An import is what a fresh isolated interpreter with it takes longer than one without, in the same round; bytecode is
compiled by the first round, which is thrown away.  Its CPU time is what is left of that on a busy machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial

from .machine import two_cpus
from .peers import OLD_FILE_LOCK, PEERS, old_filelock
from .session import Session, take_turns

IMPORT, COMMAND = "import", "command"
BARE = "bare interpreter"
OVER = "over a bare interpreter"
CPU_OVER = "CPU time over a bare interpreter"
WHOLE = "start to end"


def imports(session: Session) -> None:
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, two_cpus()[0])
    try:
        subjects = {BARE: _python(session, "pass")}
        for peer in session.present(PEERS):
            path = f"import sys; sys.path.insert(0, {old_filelock()!r}); " if peer is OLD_FILE_LOCK else ""
            subjects[peer.name] = _python(session, path + peer.statement)
        found = take_turns(subjects, session.pick(25, 1))
    finally:
        os.sched_setaffinity(0, everywhere)
    bare = found.pop(BARE)
    session.add(IMPORT, BARE, WHOLE, "ms", [[wall] for wall, _ in bare])
    for kind, case in enumerate((OVER, CPU_OVER)):
        for subject, rounds in found.items():
            over = [[with_it[kind] - without[kind]] for with_it, without in zip(rounds, bare, strict=True)]
            session.add(IMPORT, subject, case, "ms", over)


def commands(session: Session) -> None:
    path = session.path()
    pidabs = os.path.join(sysconfig.get_path("scripts"), "pidabs")
    subjects = {"true": ["true"], f"{BARE}, pass": [sys.executable, "-I", "-c", "pass"]}
    if shutil.which("flock"):
        subjects["flock FILE true"] = ["flock", path, "true"]
    if os.access(pidabs, os.X_OK):
        subjects["pidabs run NAME -- true"] = [pidabs, "run", path, "--", "true"]
        subjects["pidabs status NAME"] = [pidabs, "status", path]
    else:
        print("  without the command: pidabs is not installed here as a script")
    turns = {name: partial(_wall, session, command) for name, command in subjects.items()}
    for subject, found in take_turns(turns, session.pick(40, 1)).items():
        session.add(COMMAND, subject, WHOLE, "ms", found)


def _python(session: Session, code: str) -> Callable[[], list[float]]:
    return partial(_time, session, [sys.executable, "-I", "-c", code])


def _wall(session: Session, command: list[str]) -> list[float]:
    return _time(session, command)[:1]


def _time(session: Session, command: list[str]) -> list[float]:
    """By the clock, and of CPU."""
    began = time.perf_counter()
    # Not in the checkout, whose pidabs is not the installed one.
    process = subprocess.Popen(
        command, cwd=session.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    return [took * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3]
