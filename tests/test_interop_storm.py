"""Old code and new code on one lock under a storm of SIGKILLs, in two network namespaces: never two owners.

The detector is a POSIX record lock on a file of its own, which knows nothing of either lock.  A process that is killed
loses it before all else that it holds.  PIDABS_STORM_SECONDS (default 5) says how long it lasts.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from lockfile.pidlockfile import PIDLockFile as StockPIDLockFile
from pidabs.compat.filelock import FileLock
from pidabs.compat.lockfile.pidlockfile import PIDLockFile
from support import in_namespace

PATIENCE = 40.0
SECONDS = float(os.environ.get("PIDABS_STORM_SECONDS", "5"))

WORKER = """
import fcntl, importlib, os, random, sys, time
import filelock, lockfile
label, module, name, path, arena = sys.argv[1:]
make = getattr(importlib.import_module(module), name)
mark, log = os.open(arena + "/mark", os.O_RDWR), os.open(arena + "/log", os.O_WRONLY | os.O_APPEND)
dice = random.Random(os.getpid())
while True:
    lock = make(path)
    try:
        lock.acquire(dice.choice((0.05, 0.5, 5)))
    except (lockfile.AlreadyLocked, lockfile.LockTimeout, filelock.Timeout):
        continue
    try:
        fcntl.lockf(mark, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except OSError:
        os.write(log, b"violation\\n")
    os.write(log, label.encode() + b"\\n")
    time.sleep(dice.choice((0, 0, dice.random() * 0.003)))
    fcntl.lockf(mark, fcntl.LOCK_UN, 1)
    lock.release()
    time.sleep(dice.random() * 0.005)  # else those that poll would hardly ever find it free
"""

PAIRS = [(StockPIDLockFile, PIDLockFile), (filelock.FileLock, FileLock)]

_RECORD = struct.Struct("hhqqi4x")  # struct flock


class Storm:
    """Workers by label, and whoever of them is the owner is killed now and then, and replaced."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = os.environ | environment
        self.workers: dict[int, tuple[subprocess.Popen[bytes], str, list[str], Any]] = {}
        for name in ("mark", "log"):
            (directory / name).touch()
        self.kills: Counter[str] = Counter()
        self.errors = open(directory / "errors", "w+", encoding="utf-8")  # noqa: SIM115
        self.mark = os.open(directory / "mark", os.O_RDWR | os.O_CLOEXEC)

    def start(self, label: str, command: list[str], cls: Any) -> None:
        # As the user names it: filelock chooses what FileLock is.
        module = "filelock" if cls is filelock.FileLock else cls.__module__
        path = str(self.directory / "x.lock")
        words = [*command, sys.executable, "-c", WORKER, label, module, cls.__name__, path, str(self.directory)]
        process = subprocess.Popen(words, cwd="/", env=self.environment, stderr=self.errors)
        self.workers[process.pid] = process, label, command, cls

    def kill_the_owner(self) -> None:
        asked = _RECORD.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, *_, pid = _RECORD.unpack(fcntl.fcntl(self.mark, fcntl.F_GETLK, asked))
        if kind != fcntl.F_UNLCK and pid in self.workers:
            process, label, command, cls = self.workers.pop(pid)
            process.kill()
            process.wait()
            self.kills[label] += 1
            self.start(label, command, cls)

    def rage(self, seconds: float, enough: Callable[[Counter[str]], bool]) -> Counter[str]:
        """For so long, and on a busy machine longer, until there has been enough."""
        dice = random.Random(1)
        began = time.monotonic()
        while True:
            time.sleep(dice.random() * 0.1)
            self.kill_the_owner()
            passed = time.monotonic() - began
            if passed > seconds:
                found = Counter((self.directory / "log").read_text(encoding="ascii").splitlines())
                if enough(found) or passed > seconds + PATIENCE:
                    return found

    def end(self) -> None:
        for process, *_ in self.workers.values():
            process.kill()
            process.wait()
        os.close(self.mark)
        self.errors.close()


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda cls: str(cls.__name__))
@pytest.mark.parametrize("interop", [True, False])
@pytest.mark.timeout(60 + PATIENCE + SECONDS)
def test_storm(old: Any, new: Any, interop: bool, tmp_path: Path) -> None:
    """Without `interop` the detector has a lot to say: else a storm that passes would prove nothing."""
    elsewhere = in_namespace("--net")
    storm = Storm(tmp_path, {"PIDABS_INTEROP": "1"} if interop else {})
    try:
        for _ in range(3):
            storm.start("old", [], old)
            storm.start("new", [], new)
        storm.start("old elsewhere", elsewhere, old)
        storm.start("new elsewhere", elsewhere, new)
        storm.start("new elsewhere", elsewhere, new)
        labels = {label for _, label, *_ in storm.workers.values()}
        if interop:
            found = storm.rage(SECONDS, lambda found: set(found) >= labels and set(storm.kills) >= {"old", "new"})
        else:
            found = storm.rage(1, lambda found: found["violation"] > 0)
        print(found, storm.kills)
    finally:
        storm.end()
    if interop:
        assert set(found) == labels
        assert set(storm.kills) >= {"old", "new"}
        assert (tmp_path / "errors").read_text(encoding="utf-8") == ""
    else:
        assert found["violation"] > 0
