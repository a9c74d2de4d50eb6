"""The README: its Python runs, its commands are those that exist and that CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pages import ROOT, blocks
from support import child, wait_until

import pidabs

README = (ROOT / "README.md").read_text(encoding="utf-8")
(SWAP,) = blocks(README, "diff")
DEMO, TESTS = blocks(README, "sh")
DAEMON, API = blocks(README, "python")


def test_the_swap_is_two_lines_that_import_the_same_name() -> None:
    before, after = SWAP.splitlines()
    assert before.startswith("-from daemon.")
    assert after.startswith("+from pidabs.compat.daemon.")
    found: dict[str, type] = {}
    exec(before[1:], found)
    original = found.pop("TimeoutPIDLockFile")
    exec(after[1:], found)
    assert issubclass(found["TimeoutPIDLockFile"], original)


def test_the_replacements_exist() -> None:
    rows = re.findall(r"^\| `([\w.]+)\.(\w+)` \| `([\w.]+)\.(\w+)` \|$", README, re.MULTILINE)
    assert rows
    for module, name, our_module, our_name in rows:
        assert (our_module, our_name) == (f"pidabs.compat.{module}", name)
        assert hasattr(sys.modules.get(our_module) or __import__(our_module, fromlist=["*"]), name)


def test_the_api(tmp_path: Path, name: str) -> None:
    code = API.replace("nightly-backup", name).replace("/run/mydaemon.pid", f"{tmp_path}/mydaemon.pid")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    first, *listed = done.stdout.splitlines()
    assert re.match(r"pid \d+ \(uid \d+, '.*python", first)
    assert any(line.startswith(f"{name} pid ") for line in listed)


def test_the_daemon(tmp_path: Path) -> None:
    """The first start detaches, the second is refused where its caller sees it, stopping it removes the PID file."""
    pidfile = tmp_path / "mydaemon.pid"
    # The alarm ends it should the test not.
    serve = "import signal\ndef serve():\n    signal.alarm(60)\n    signal.pause()\n"
    program = tmp_path / "mydaemon.py"
    program.write_text(serve + DAEMON.replace("/run/", f"{tmp_path}/"))
    start = [sys.executable, str(program)]

    assert subprocess.run(start, cwd=tmp_path, timeout=60).returncode == 0
    wait_until(lambda: names_its_holder(pidfile), "the daemon's PID file names it")

    second = subprocess.run(start, cwd=tmp_path, timeout=60, capture_output=True, text=True)
    holder = pidabs.holder(pidfile)
    assert holder is not None
    assert second.returncode == 1
    assert second.stderr.startswith(f"mydaemon: {pidfile} is already locked")
    assert f"pid {holder.pid} " in second.stderr

    assert holder.terminate(20)
    wait_until(lambda: not pidfile.exists(), "the PID file is removed")
    assert pidabs.holder(pidfile) is None


def names_its_holder(pidfile: Path) -> bool:
    holder = pidabs.holder(pidfile)
    return holder is not None and pidfile.read_text() == f"{holder.pid}\n"


def test_a_path_is_one_lock_under_all_its_names(tmp_path: Path) -> None:
    from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile

    with pidabs.Lock(tmp_path / "x"):
        assert TimeoutPIDLockFile(str(tmp_path / "x")).is_locked()
    with child("import pidabs; lock = pidabs.Lock(sys.argv[1]); say(lock.name)", args=(f"{tmp_path}/x",)) as other:
        other.expect(str(tmp_path / "x"))


def test_the_command_it_shows_exists() -> None:
    assert DEMO.splitlines() == ['python3 -m venv .venv && .venv/bin/pip install ".[daemon]" && .venv/bin/pidabs demo']
    for extra in re.findall(r'\[(\w+)\]"', README):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_ci_runs_the_command_for_the_tests() -> None:
    (command,) = TESTS.splitlines()
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command
