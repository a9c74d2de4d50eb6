"""docs/migration.md: its blocks are run, those "before" with the originals, in a directory that stands for the root."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pages
import pytest
from pages import DOCS, SCRIPT, blocks
from support import DEADLINE, needs, wait_until

import pidabs

PAGE = (DOCS / "migration.md").read_text(encoding="utf-8")

# Whoever adds a block adds its name here, and its test below.
DAEMON, IMPORTER, INDEX = blocks(PAGE, "python")
DAEMON_DIFF, IMPORTER_DIFF, INDEX_DIFF = blocks(PAGE, "diff")
(
    FIND,
    UNMODIFIED,
    EDIT,
    WHO_IS_OLD,
    BACK,
    WRAP,
    SCRIPT_BEFORE,
    SCRIPT_AFTER,
    START_STOP_BEFORE,
    START_STOP_WRAPPED,
    START_STOP_AFTER,
) = blocks(PAGE, "sh")
UNIT_BEFORE, UNIT_AFTER = blocks(PAGE, "ini")

SOURCES = {"mydaemon": DAEMON, "importer": IMPORTER, "index": INDEX}


def test_there_are_no_other_blocks() -> None:
    assert set(re.findall(r"^```(\w*)$", PAGE, re.MULTILINE)) == {"", "python", "diff", "sh", "ini"}
    named = re.findall(r"in `src/(\w+)\.py`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert dict(named) == SOURCES


# What stands for the root directory ---------------------------------------------------------------------------------


class Root(pages.Root):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, words: list[object], **variables: str) -> subprocess.Popen[str]:
        """What it prints, errors too, is in its stdout; its stdin stays open until the end of the test."""
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=self.path,
            env=self.environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait(DEADLINE)
            for stream in process.stdin, process.stdout:
                assert stream is not None
                stream.close()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path)
    yield root
    root.close()


def line_of(process: subprocess.Popen[str]) -> str:
    """Its next line; "" at the end of its output, when all that have it open have ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def rest_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read().rstrip("\n")


def edited(name: str, root: Root) -> str:
    """The source as phase 3 leaves it."""
    (root.path / "src").mkdir(exist_ok=True)
    path = root.path / "src" / f"{name}.py"
    path.write_text(SOURCES[name])
    done = root.shell(EDIT)
    assert done.returncode == 0, done.stderr
    return path.read_text()


# Phase 1 and the diffs ----------------------------------------------------------------------------------------------


def test_find(root: Root) -> None:
    doctor, migrate, grep = FIND.splitlines()
    assert root.shell(doctor).returncode == 0

    (root.path / "src").mkdir()
    for name, source in SOURCES.items():
        (root.path / "src" / f"{name}.py").write_text(source)
    found = root.shell(migrate)
    assert (found.returncode, found.stdout) == (1, "")
    note, last = found.stderr.splitlines()
    assert note.startswith("src/importer.py:4: LockFile has no interop")
    assert last == "3 files would change; --write does it; 1 place to look at"
    assert (root.path / "pidabs.diff").read_text() == IMPORTER_DIFF + INDEX_DIFF + DAEMON_DIFF

    (root.path / "etc/systemd/a.service").write_text(UNIT_BEFORE)
    (root.path / "etc/init.d/b").write_text(START_STOP_BEFORE)
    (root.path / "etc/cron.d/c").write_text("5 * * * * root kill -HUP $(cat /run/x.pid)\n")
    (root.path / "etc/cron.d/d").write_text("5 * * * * root true\n")
    lines = root.shell(grep).stdout.splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines] == ["a.service", "b", "b", "c"]


@needs("patch")
def test_edit_and_back(root: Root) -> None:
    (root.path / "src").mkdir()
    root.shell(FIND.splitlines()[1])
    for name, source in SOURCES.items():
        (root.path / "src" / f"{name}.py").write_text(source)
    root.shell(FIND.splitlines()[1])
    for name in SOURCES:
        assert "from pidabs.compat." in edited(name, root)
    done = root.shell(BACK)
    assert done.returncode == 0, done.stdout
    for name, source in SOURCES.items():
        assert (root.path / "src" / f"{name}.py").read_text() == source


# python-daemon, through all phases ----------------------------------------------------------------------------------

SERVE = """\
import os, signal, sys
def serve():
    print("serving", os.getpid(), flush=True)
    signal.alarm(90)  # it ends, should the test not end it
    signal.pause()
"""


class Fleet:
    """The daemon in its versions, of which each start says either that it serves, or why not."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.pidfile = root.run / "mydaemon.pid"
        self.serving: list[int] = []
        self.old = [sys.executable, root.program("mydaemon", self.runnable(DAEMON))]
        self.new = [sys.executable, root.program("mydaemon-new", self.runnable(edited("mydaemon", root)))]
        self.unmodified = ["sh", "-c", root.here(UNMODIFIED)]

    def runnable(self, source: str) -> str:
        """With work to do, and its output where we see it."""
        assert "DaemonContext(pidfile" in source
        return SERVE + source.replace(
            "DaemonContext(pidfile", "DaemonContext(stdout=sys.stdout, stderr=sys.stderr, pidfile"
        )

    def start(self, words: list[object], **variables: str) -> int | None:
        """Its pid, or None if it refused to start, in which case nothing is left of it."""
        process = self.root.start(words, **variables)
        said = line_of(process)
        if said.startswith("serving "):
            pid = int(said.split()[1])
            self.serving.append(os.pidfd_open(pid))
            return pid
        assert said.startswith("Traceback ")
        assert "LockTimeout: Timeout waiting to acquire lock" in rest_of(process)
        return None

    def end(self, number: int) -> None:
        """The last one that serves."""
        pidfd = self.serving.pop()
        signal.pidfd_send_signal(pidfd, number)
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)

    def close(self) -> None:
        while self.serving:
            self.end(signal.SIGKILL)


@pytest.fixture
def fleet(root: Root) -> Iterator[Fleet]:
    fleet = Fleet(root)
    yield fleet
    fleet.close()


def test_python_daemon_before(fleet: Fleet) -> None:
    first = fleet.start(fleet.old)
    assert fleet.pidfile.read_text() == f"{first}\n"
    assert fleet.start(fleet.old) is None
    fleet.end(signal.SIGKILL)
    assert fleet.start(fleet.old) is None  # and so for ever
    assert fleet.pidfile.read_text() == f"{first}\n"


def test_python_daemon_after(fleet: Fleet) -> None:
    fleet.start(fleet.new)
    assert fleet.start(fleet.new) is None
    fleet.end(signal.SIGKILL)
    second = fleet.start(fleet.new)
    assert second is not None
    assert fleet.pidfile.read_text() == f"{second}\n"
    fleet.end(signal.SIGTERM)
    assert not fleet.pidfile.exists()


INTEROP = {"PIDABS_INTEROP": "1"}


@needs("ps")
def test_through_all_phases_and_back(fleet: Fleet) -> None:
    root, old, new, unmodified = fleet.root, fleet.old, fleet.new, fleet.unmodified

    def who_is_old() -> str:
        done = root.shell(WHO_IS_OLD)
        return done.stdout

    # Mixed: the old one is there and cannot be restarted.
    first = fleet.start(old)
    assert first is not None
    assert fleet.start(unmodified) is None
    assert fleet.start(new, **INTEROP) is None
    assert re.fullmatch(rf"{fleet.pidfile}: .*mydaemon\n", who_is_old())
    # It has ended at last, as badly as can be: new code starts all the same, and keeps old code out.
    fleet.end(signal.SIGKILL)
    # Whose pid 1 does not reap has a zombie there.
    assert re.fullmatch(rf"{fleet.pidfile}: (stale|.*<defunct>)\n", who_is_old())
    assert fleet.start(unmodified) is not None
    assert who_is_old() == ""
    assert fleet.start(old) is None
    assert fleet.start(new, **INTEROP) is None
    assert fleet.start(new) is None
    fleet.end(signal.SIGTERM)
    assert fleet.start(new, **INTEROP) is not None
    assert fleet.start(old) is None
    # Native: with the last old one gone, and those with interop still there.
    assert fleet.start(new) is None
    fleet.end(signal.SIGKILL)
    assert fleet.start(new) is not None
    assert fleet.start(new, **INTEROP) is None
    # Back.
    fleet.end(signal.SIGTERM)
    assert fleet.start(new, **INTEROP) is not None
    assert fleet.start(old) is None
    fleet.end(signal.SIGKILL)
    assert fleet.start(old) is None  # it finds a stale PID file, as it would after its own end
    fleet.pidfile.unlink()
    assert fleet.start(old) is not None
    assert fleet.start(new, **INTEROP) is None


# lockfile and filelock ----------------------------------------------------------------------------------------------

REBUILD = """\
import sys
def rebuild():
    print("rebuilding", flush=True)
    sys.stdin.read()
"""

BUSY = "somebody else is at it"


class Job:
    """A program that rebuilds, until its stdin is closed, or says that somebody else is at it."""

    def __init__(self, root: Root, name: str) -> None:
        self.root = root
        self.old = [sys.executable, root.program(name, REBUILD + SOURCES[name])]
        self.new = [sys.executable, root.program(f"{name}-new", REBUILD + edited(name, root))]

    def start(self, words: list[object], **variables: str) -> subprocess.Popen[str]:
        """One that rebuilds, and goes on."""
        process = self.root.start(words, **variables)
        assert line_of(process) == "rebuilding"
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE) == 0

    def says(self, words: list[object], **variables: str) -> str:
        process = self.root.start(words, **variables)
        assert process.stdin is not None
        process.stdin.close()
        said = rest_of(process)
        assert process.wait(DEADLINE) == 0
        return said


@pytest.mark.parametrize("name", ["importer", "index"])
@pytest.mark.parametrize("version", ["old", "new"])
def test_one_at_a_time_and_after_a_sigkill(root: Root, name: str, version: str) -> None:
    job = Job(root, name)
    words = getattr(job, version)
    first = job.start(words)
    assert job.says(words) == BUSY
    job.end(first)
    first = job.start(words)
    first.kill()
    first.wait(DEADLINE)
    stays_locked = (name, version) == ("importer", "old")
    assert job.says(words) == (BUSY if stays_locked else "rebuilding")


def test_files_that_are_left(root: Root) -> None:
    importer, index = Job(root, "importer"), Job(root, "index")
    for version in "new", "old":
        importer.says(getattr(importer, version))
        index.says(getattr(index, version))
        left = sorted(
            path.name for directory in ("spool", "cache") for path in (root.path / "var" / directory).iterdir()
        )
        # some versions of filelock remove it
        assert left == [] if version == "new" else left in ([], ["index.lock"])


def test_filelock_has_interop(root: Root) -> None:
    job = Job(root, "index")
    holder = job.start(job.old)
    assert job.says(job.new, **INTEROP) == BUSY
    assert job.says(job.new) == "rebuilding"  # what must not run beside old code
    job.end(holder)
    holder = job.start(job.new, **INTEROP)
    assert job.says(job.old) == job.says(job.new, **INTEROP) == job.says(job.new) == BUSY


def test_lockfile_has_no_interop(root: Root) -> None:
    job = Job(root, "importer")
    job.start(job.old)
    for words in (job.new, ["python", "-m", "pidabs.compat", *job.old[1:]]):
        said = job.says(words, **INTEROP)
        assert said.endswith("rebuilding")
        assert "RuntimeWarning: LinkLockFile has no interop" in said


# By hand ------------------------------------------------------------------------------------------------------------


def put_rebuild(root: Root) -> None:
    """The command, which ends when its stdin does."""
    root.program("rebuild", "#!/bin/sh\necho rebuilding\nexec cat >/dev/null\n")


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has got a dead one's pid."""
    with subprocess.Popen(["sleep", "90"]) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(DEADLINE) == 0


def test_the_script_before(root: Root) -> None:
    put_rebuild(root)
    script = root.program("import.sh", SCRIPT_BEFORE)
    first = root.start([script])
    assert line_of(first) == "rebuilding"
    assert root.shell(f"{script}").stderr == "import.sh: already running\n"
    finish(first)
    assert root.shell(f"{script}").stdout == "rebuilding\n"
    with stranger() as other:
        (root.run / "import.pid").write_text(f"{other.pid}\n")
        assert root.shell(f"{script}").stderr == "import.sh: already running\n"  # which it is not


def test_the_script_wrapped(root: Root) -> None:
    """Those that are wrapped exclude by the lock, too; those that are not by the PID file, as ever."""
    put_rebuild(root)
    script = root.program("import.sh", SCRIPT_BEFORE)
    assert "./import.sh" in WRAP
    wrapped = WRAP.replace("./import.sh", str(script)).strip()
    first = root.start([script])
    assert line_of(first) == "rebuilding"
    assert root.shell(wrapped).stderr == "import.sh: already running\n"
    finish(first)
    first = root.start(["sh", "-c", f"exec {root.here(wrapped)}"])
    assert line_of(first) == "rebuilding"
    assert root.shell(f"{script}").stderr == "import.sh: already running\n"
    refused = root.shell(wrapped)
    assert refused.returncode == 1
    assert f"held by pid {first.pid} " in refused.stderr
    finish(first)

    assert root.shell(wrapped).stdout == "rebuilding\n"
    with_mirror = wrapped.replace("run ", "run --mirror /run/import.pid ", 1)
    assert root.shell(with_mirror).stderr == "import.sh: already running\n"  # by its own pid


def test_the_script_after(root: Root) -> None:
    put_rebuild(root)
    script = root.program("import.sh", SCRIPT_AFTER)
    pidfile = root.run / "import.pid"
    with stranger() as other:
        pidfile.write_text(f"{other.pid}\n")
        first = root.start([script])
        assert line_of(first) == "rebuilding"
    assert pidfile.read_text() == f"{first.pid}\n"
    refused = root.shell(f"{script}")
    assert refused.returncode == 1
    assert f"held by pid {first.pid} " in refused.stderr
    first.kill()
    first.wait(DEADLINE)
    assert pidabs.holder(pidfile) is not None  # what it had started
    assert first.stdin is not None
    first.stdin.close()
    wait_until(lambda: pidabs.holder(pidfile) is None, "that has ended, too")
    assert pidfile.exists()
    assert root.shell(f"{script}").stdout == "rebuilding\n"


@contextmanager
def stopped_at_the_end(root: Root) -> Iterator[Path]:
    path = root.run / "mydaemon.pid"
    root.program("mydaemon", "#!/bin/sh\nexec sleep 90\n")
    try:
        yield path
    finally:
        root.shell(f"pidabs stop --kill {path}")


@needs("start-stop-daemon")
def test_start_stop_daemon_before(root: Root) -> None:
    start, stop = START_STOP_BEFORE.splitlines()
    with stopped_at_the_end(root) as path:
        assert root.shell(start).returncode == 0
        wait_until(lambda: path.exists() and path.read_text(), "its PID file")
        assert root.shell(start).returncode == 1
        assert root.shell(stop).returncode == 0
    with stranger() as other:
        path.write_text(f"{other.pid}\n")
        assert root.shell(start).returncode == 1  # it does nothing
        reaped = root.start(["sh", "-c", root.here(stop)])  # it waits for the end of a process that we have to reap
        assert other.wait(DEADLINE) == -signal.SIGTERM
        finish(reaped)


@needs("start-stop-daemon")
def test_start_stop_daemon_wrapped(root: Root) -> None:
    """The old stop works as ever, and new and old starts of it exclude each other."""
    old_start, stop = START_STOP_BEFORE.splitlines()
    start = START_STOP_WRAPPED
    with stopped_at_the_end(root) as path:
        assert root.shell(start).returncode == 0
        holder = wait_until(lambda: pidabs.holder(path), "it holds the lock")
        assert path.read_text() == f"{holder.pid}\n"
        assert root.shell(start).returncode == 1
        assert root.shell(old_start).returncode == 1
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(DEADLINE)
        wait_until(lambda: root.shell(start).returncode == 0, "it starts again")
        again = wait_until(lambda: pidabs.holder(path), "it holds the lock")
        assert again.pid != holder.pid
        # It waits for the process to be reaped, by pid 1; that does not always do so in a container.
        done = root.shell(stop.replace("TERM/10/KILL/5", "TERM/1"))
        assert again.wait(DEADLINE)
        assert done.returncode in (0, 2)


@needs("setsid")
def test_start_stop_daemon_after(root: Root) -> None:
    start, stop = START_STOP_AFTER.splitlines()
    with stopped_at_the_end(root) as path, stranger() as other:
        path.write_text(f"{other.pid}\n")
        assert root.shell(start).returncode == 0
        holder = wait_until(lambda: pidabs.holder(path), "it holds the lock")
        assert holder.pid != other.pid
        root.shell(f"{start}\nwait")
        assert f"held by pid {holder.pid} " in (root.path / "var/log/mydaemon.log").read_text()
        assert root.shell(stop).returncode == 0
        assert holder.wait(0)
        assert root.shell(stop).returncode == 0
        assert other.poll() is None


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", [UNIT_BEFORE, UNIT_AFTER], ids=["before", "after"])
def test_the_units_are_right(root: Root, unit: str) -> None:
    root.program("mydaemon", "#!/bin/sh\n")
    text = unit.replace("/usr/local/bin/", f"{root.path}/usr/local/bin/").replace("/usr/bin/pidabs", str(SCRIPT))
    (root.path / "mydaemon.service").write_text(text)
    done = root.shell(f"systemd-analyze verify {root.path}/mydaemon.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_unit_starts(root: Root) -> None:
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT_AFTER, re.MULTILINE)
    (code,) = re.findall(r"^RestartPreventExitStatus=(.*)$", UNIT_AFTER, re.MULTILINE)
    root.program("mydaemon", '#!/bin/sh\n[ "$1" = --foreground ] && echo runs && exec cat\n')
    words = root.here(command).split()
    first = root.start([*words])
    assert line_of(first) == "runs"
    holder = pidabs.holder(root.run / "mydaemon.pid")
    assert holder is not None
    assert holder.pid == first.pid
    assert root.shell(command).returncode == int(code)
    first.kill()
    first.wait(DEADLINE)
    second = root.start([*words])
    assert line_of(second) == "runs"
