"""The examples: each is started, refused a second time with the holder's name, SIGKILLed, and started again."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pages import ROOT, SCRIPT
from support import DEADLINE, needs, wait_until

import pidabs

EXAMPLES = ROOT / "examples"


def command(example: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / example), *map(str, arguments)]


def run(words: list[str], directory: Path, **kwargs: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **kwargs}
    return subprocess.run(
        words, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def refused(done: subprocess.CompletedProcess[str], code: int, holder: pidabs.Holder) -> bool:
    """Whether it ended with this code and one line, which names the holder."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    return f"held by pid {holder.pid} " in line or f"already locked by pid {holder.pid} " in line


def holder_of(name: str | Path) -> pidabs.Holder:
    return wait_until(lambda: pidabs.holder(name), f"{name} is held")


def kill(holder: pidabs.Holder) -> None:
    holder.send_signal(signal.SIGKILL)
    assert holder.wait(DEADLINE)


@pytest.fixture
def stop_holder() -> Iterator[Callable[[Path], None]]:
    """Stops, at the end, the daemons that hold these."""
    paths: list[Path] = []
    yield paths.append
    for path in paths:
        holder = pidabs.holder(path)
        if holder is not None:
            holder.terminate(DEADLINE, kill=True)


@contextmanager
def started(words: list[str], directory: Path, **kwargs: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the foreground, which is killed at the end."""
    with subprocess.Popen(
        words, cwd=directory, env={**os.environ, **kwargs}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


# Daemons ------------------------------------------------------------------------------------------------------------


def test_the_python_daemon(tmp_path: Path, stop_holder: Callable[[Path], None]) -> None:
    pidfile = tmp_path / "example.pid"
    stop_holder(pidfile)
    start = command("python_daemon.py", pidfile)

    def settled() -> pidabs.Holder | None:
        """It has detached: it is in its second fork, and its PID file names it."""
        holder = pidabs.holder(pidfile)
        there = holder is not None and pidfile.exists() and pidfile.read_text() == f"{holder.pid}\n"
        return holder if there else None

    assert run(start, tmp_path).returncode == 0
    first = wait_until(settled, "the daemon's PID file names it")
    assert refused(run(start, tmp_path), 1, first)
    kill(first)
    assert pidfile.exists()
    assert run(start, tmp_path).returncode == 0
    second = wait_until(settled, "the PID file of the dead is replaced")
    assert second.pid != first.pid
    assert run([str(SCRIPT), "stop", str(pidfile)], tmp_path).returncode == 0
    assert not pidfile.exists()


def test_the_prefork_server(tmp_path: Path, stop_holder: Callable[[Path], None]) -> None:
    """Its workers live on for a moment when it is killed, and longer if they are stopped; the lock is free at once."""
    path = tmp_path / "example.sock"
    stop_holder(path)
    start = command("prefork_server.py", path)

    def ask() -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(str(path))
            return int(client.recv(64))

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    assert run(start, tmp_path).returncode == 0
    first = holder_of(path)
    worker = ask()
    assert worker != first.pid
    assert parent(worker) == first.pid
    assert refused(run(start, tmp_path), 1, first)

    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: ask() != worker, "another worker answers")
    assert holder_of(path).pid == first.pid

    worker = ask()
    os.kill(worker, signal.SIGSTOP)
    try:
        kill(first)
        assert Path(f"/proc/{worker}").exists()
        # Not at once if it was just forking the worker's successor, which closes its copy first thing.
        wait_until(lambda: pidabs.holder(path) is None, "the lock is free")
        assert path.exists()
        assert run(start, tmp_path).returncode == 0
        second = holder_of(path)
        assert parent(ask()) == second.pid
    finally:
        os.kill(worker, signal.SIGKILL)

    assert run([str(SCRIPT), "stop", str(path)], tmp_path).returncode == 0
    assert not path.exists()


# In the foreground --------------------------------------------------------------------------------------------------


@contextmanager
def notify_socket(address: str) -> Iterator[socket.socket]:
    """As systemd makes it; a service says there that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        sock.settimeout(DEADLINE)
        yield sock


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service(tmp_path: Path, name: str, kind: str) -> None:
    lock = tmp_path / "example-service"
    address = f"{tmp_path}/notify" if kind == "path" else f"@{name}"
    start = command("service.py", lock)
    with notify_socket(address) as systemd, started(start, tmp_path, NOTIFY_SOCKET=address) as first:
        assert systemd.recv(64) == b"READY=1"
        assert holder_of(lock).pid == first.pid
        assert refused(run(start, tmp_path, NOTIFY_SOCKET=address), 75, holder_of(lock))
        first.kill()
        first.wait(DEADLINE)
        with started(start, tmp_path, NOTIFY_SOCKET=address) as second:
            assert systemd.recv(64) == b"READY=1"  # of the second: the refused one has not said it
            assert holder_of(lock).pid == second.pid
            second.terminate()
            assert second.wait(DEADLINE) == 0
        assert pidabs.holder(lock) is None


def test_the_service_without_systemd(tmp_path: Path) -> None:
    with started(command("service.py", tmp_path / "x"), tmp_path, NOTIFY_SOCKET="") as process:
        assert holder_of(tmp_path / "x").pid == process.pid


@needs("systemd-analyze")
def test_the_unit_is_right(tmp_path: Path) -> None:
    text = (EXAMPLES / "example.service").read_text()
    installed = {"/usr/bin/python3": sys.executable, "/usr/local/lib/example": str(EXAMPLES)}
    for path, ours in installed.items():
        assert path in text
        text = text.replace(path, ours)
    (tmp_path / "example.service").write_text(text)
    done = run(["systemd-analyze", "verify", str(tmp_path / "example.service")], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_and_the_service_agree() -> None:
    text = (EXAMPLES / "example.service").read_text()
    (code,) = re.findall(r"^RestartPreventExitStatus=(\d+)$", text, re.MULTILINE)
    assert f"REFUSED = {code} " in (EXAMPLES / "service.py").read_text()
    (started_as,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert Path(started_as.split()[1]).name == "service.py"


def test_the_asyncio_worker(tmp_path: Path, name: str) -> None:
    """Those that wait take over in the order they came, from one that ends; and from one that is killed."""
    start = command("asyncio_worker.py", name)
    with started(start, tmp_path) as first:
        assert line_of(first) == "working"
        impatient = run([*start, "0.1"], tmp_path)
        assert re.match(rf"waiting for pid {first.pid} ", impatient.stdout)
        assert refused(impatient, 1, holder_of(name))
        with started(start, tmp_path) as second:
            assert line_of(second).startswith(f"waiting for pid {first.pid} ")
            wait_until(lambda: pidabs.Lock(name).waiters() == 1, "it waits")
            with started(start, tmp_path) as third:
                assert line_of(third).startswith(f"waiting for pid {first.pid} ")
                wait_until(lambda: pidabs.Lock(name).waiters() == 2, "so does it")
                first.kill()
                first.wait(DEADLINE)
                # Of a killed one the order is lost.
                wait_until(lambda: holder_of(name).pid in (second.pid, third.pid), "one of them has taken over")
                active, other = (second, third) if holder_of(name).pid == second.pid else (third, second)
                assert line_of(active) == "working"
                active.terminate()
                assert line_of(active) == "ended"
                assert active.wait(DEADLINE) == 0
                assert line_of(other) == "working"


def test_an_asyncio_worker_that_is_ended_while_it_waits(tmp_path: Path, name: str) -> None:
    with pidabs.Lock(name) as lock, started(command("asyncio_worker.py", name), tmp_path) as process:
        assert line_of(process).startswith(f"waiting for pid {os.getpid()} ")
        wait_until(lambda: lock.waiters() == 1, "it waits")
        process.terminate()
        assert line_of(process) == "ended"
        assert process.wait(DEADLINE) == 0


# The cron job -------------------------------------------------------------------------------------------------------


@pytest.fixture
def backup(tmp_path: Path, name: str) -> Callable[[], list[str]]:
    """The words of the job, with a lock and a PATH of this test's."""
    text = (EXAMPLES / "nightly-backup").read_text()
    assert "-- " in text
    script = tmp_path / "nightly-backup"
    text = re.sub(r"^PATH=\S+", f"PATH={tmp_path}/bin:{SCRIPT.parent}:/usr/bin:/bin", text, flags=re.MULTILINE)
    script.write_text(text.replace(" nightly-backup -- ", f" {name} -- "))
    script.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    return lambda: ["/bin/sh", "-c", f"{script} {tmp_path}/data {tmp_path}/data.tar.gz"]


CRONS = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}


def test_the_cron_job(tmp_path: Path, name: str, backup: Callable[[], list[str]]) -> None:
    archive = tmp_path / "data.tar.gz"

    def job() -> subprocess.CompletedProcess[str]:
        return run(backup(), tmp_path, **CRONS)

    done = job()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with tarfile.open(archive) as made:
        assert "./precious" in made.getnames()
    archive.unlink()

    # One that is still at it: a tar that tells us so by opening a pipe, and does not end.
    os.mkfifo(tmp_path / "at-it")
    tar = tmp_path / "bin" / "tar"
    tar.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/at-it\nexec sleep 60\n")
    tar.chmod(0o755)
    with started(backup(), tmp_path, **CRONS):
        sleeping = int((tmp_path / "at-it").read_text())
        try:
            tar.unlink()
            held = holder_of(name)
            assert held.pid != sleeping
            assert refused(job(), 75, held)
            kill(held)
            second = job()  # what the dead one had started is still there
            assert second.returncode == 75
            assert f"pid {sleeping} " in second.stderr
        finally:
            os.kill(sleeping, signal.SIGKILL)
        wait_until(lambda: pidabs.holder(name) is None, "nothing is left of it")
        assert not archive.exists()
        assert job().returncode == 0
        assert archive.exists()


@needs("shellcheck", "crontab")
def test_checkers_find_no_fault_in_the_cron_job(tmp_path: Path) -> None:
    done = run(["shellcheck", str(EXAMPLES / "nightly-backup")], tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = re.findall(r"^# {5}(\d.*)$", (EXAMPLES / "nightly-backup").read_text(), re.MULTILINE)
    (tmp_path / "crontab").write_text(f"{line}\n")
    assert run(["crontab", "-n", str(tmp_path / "crontab")], tmp_path).returncode == 0


# The directory ------------------------------------------------------------------------------------------------------


def test_the_table_names_each_file() -> None:
    table = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\]\((.*?)\)", table)) == {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {
        "README.md"
    }


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_header_says_how_to_run_it(path: Path) -> None:
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert header is not None
    assert f"    python {path.name} " in header
