"""The README's table, where a SIGKILL decides: who holds a lock after its holder was killed, alone or with a child."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import DEADLINE, child

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TAKE = {
    "pidabs": "import pidabs; lock = pidabs.Lock(sys.argv[1])",
    "filelock": "import filelock; lock = filelock.FileLock(sys.argv[1])",
    "lockfile": "import lockfile.pidlockfile; lock = lockfile.pidlockfile.PIDLockFile(sys.argv[1])",
}


def cell(row: str, column: str) -> str:
    head, _, *rows = re.findall(r"^\|.*\|$", README.partition("## Beside what you have")[2], re.MULTILINE)
    (at,) = (number for number, name in enumerate(head.split("|")) if name.strip().startswith(column))
    (found,) = (line.split("|")[at].strip().strip("*") for line in rows if line.startswith(f"| {row} |"))
    return found


def free(tool: str, path: Path) -> bool:
    command = [sys.executable, "-c", f"import sys; {TAKE[tool]}; lock.acquire(timeout=0)", str(path)]
    return subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL, timeout=DEADLINE, check=False).returncode == 0


@pytest.mark.parametrize("tool", TAKE)
def test_holder_is_killed(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with child(f"{TAKE[tool]}; lock.acquire(timeout=0); say('held'); listen()", args=(str(path),)) as holder:
        holder.expect("held")
        assert not free(tool, path)
        holder.kill()
        assert free(tool, path) == cell("free when its holder is killed", tool).startswith("yes")


@pytest.mark.parametrize("tool", TAKE)
def test_holder_is_killed_and_its_child_lives_on(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    reader, writer = os.pipe()
    fork = "if not os.fork(): say('forked'); os.read(int(sys.argv[2]), 1); os._exit(0)"
    code = f"{TAKE[tool]}; lock.acquire(timeout=0)\n{fork}\nlisten()"
    try:
        with child(code, args=(str(path), str(reader)), pass_fds=(reader,)) as holder:
            holder.expect("forked")
            holder.kill()
            assert free(tool, path) == cell("also if a child that it forked lives on", tool).startswith("yes")
    finally:
        os.close(writer)
        os.close(reader)


def test_flock_is_killed_and_its_command_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    command = ["flock", str(path), "sh", "-c", "echo held; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait(DEADLINE)
        assert subprocess.run(["flock", "-n", str(path), "true"], timeout=DEADLINE, check=False).returncode == 1
    assert cell("free when its holder is killed", "flock(1)") == "no, if the command lives on"
