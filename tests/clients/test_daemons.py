"""Daemons as they are on PyPI, with nothing edited: after SIGKILL stock does not start again, on the runner it does.

Daemons and what they leave behind become children of this process, which kills and reaps them.
"""

from __future__ import annotations

import os
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import Program, finish, program
from real import WAYS, daemons_are_ours, environment, kill, reap_all_but
from support import in_namespace, wait_until

import pidabs

pytestmark = pytest.mark.timeout(300)

Install = Callable[..., Path]


@pytest.fixture(autouse=True)
def _daemons() -> Iterator[None]:
    with daemons_are_ours():
        yield


def number_in(path: Path) -> int:
    """The one that the daemon writes, soon."""
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), str(path)))


# ansible-runner -----------------------------------------------------------------------------------------------

PLAYBOOK = """\
#!/bin/sh
# What ansible-runner starts in place of ansible-playbook: it says that it runs, and is at it for ever.
echo $$ >"$PLAYING.new" && mv "$PLAYING.new" "$PLAYING"
exec sleep 1000
"""


@pytest.mark.parametrize("way", WAYS)
def test_ansible_runner_starts_again_after_sigkill(way: str, installed: Install, tmp_path: Path) -> None:
    target, data, playing = installed("ansible-runner==2.4.3"), tmp_path / "data", tmp_path / "playing"
    (data / "project").mkdir(parents=True)
    (data / "project" / "play.yml").write_text("[]\n")
    (tmp_path / "playbook").write_text(PLAYBOOK)
    (tmp_path / "playbook").chmod(0o755)

    def runner(command: str, *options: object) -> int:
        words = (*WAYS[way], target / "bin" / "ansible-runner", command, data, *options)
        done = finish(*words, env=environment(target, PLAYING=playing))
        assert done.stderr == ""
        return done.returncode

    def start() -> int:
        return runner("start", "-p", "play.yml", "--binary", tmp_path / "playbook")

    def played() -> int:
        pid = number_in(playing)
        playing.unlink()
        return pid

    assert start() == 0
    first, daemon = played(), number_in(data / "pid")
    assert runner("is-alive") == 0
    # A second one is refused, without a word: it says so in the background, to nobody.
    assert start() == 0
    reap_all_but(daemon, first)
    assert not playing.exists()

    kill(daemon)
    assert runner("is-alive") == 1
    assert start() == 0
    if way == "stock":  # and this is silence, too
        reap_all_but(first)
        assert not playing.exists()
        assert number_in(data / "pid") == daemon
        assert runner("is-alive") == 1
        return
    second = played()
    again = number_in(data / "pid")
    assert again != daemon
    holder = pidabs.holder(str(data / "pid"))
    assert holder is not None
    assert holder.pid == again
    assert runner("is-alive") == 0

    assert runner("stop") == 0
    reap_all_but(first, second)
    assert runner("is-alive") == 1
    assert start() == 0
    third = played()
    assert runner("stop") == 0
    reap_all_but(first, second, third)


# Airflow ------------------------------------------------------------------------------------------------------

AIRFLOW = "apache-airflow-core==3.3.2"

AIRFLOW_HELPER = """
    import argparse, ctypes, os, signal, sys
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what it leaves behind are children of this one
    from airflow.cli.commands.daemon_utils import run_command_with_daemon_option

    answers = sys.argv[1] + "/answers"
    path = sys.argv[1] + "/airflow-scheduler.pid"
    os.mkfifo(answers)
    reader = open(os.open(answers, os.O_RDWR))

    def answer(*words):
        with open(answers, "w") as file:
            print(*words, file=file)

    def scheduler():
        answer("running", os.getpid())
        signal.pause()

    def start():
        '''`airflow scheduler --daemon`, without what the scheduler does.'''
        args = argparse.Namespace(daemon=True, pid=path, stdout=None, stderr=None, log_file=None)
        if os.fork() == 0:
            try:
                run_command_with_daemon_option(args=args, process_name="scheduler", callback=scheduler)
            except BaseException as exc:
                answer(type(exc).__name__, exc)
            finally:
                os._exit(0)
        return reader.readline().strip()

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def daemon():
        with open(path) as file: return int(file.read())

    def stranger(pid):
        '''A process that has nothing to do with Airflow gets this pid.'''
        with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(pid - 1))
        child = os.fork()
        if child == 0:
            signal.pause()
        assert child == pid, child

    def show(text): print(text.replace(str(first), "FIRST").replace(path, "PATH"), flush=True)

    text = start()
    first = daemon()
    show(text)
    show(start())
    kill(first)
    stranger(first)
    show(start())
    if daemon() != first:
        kill(daemon())
    kill(first)
    open(path, "w").close()  # a machine that went down, or a full disk
    show(start())
"""

AIRFLOW_SAYS = {
    "stock": [
        "running FIRST",
        "AirflowException The scheduler is already running under PID FIRST.",
        "AirflowException The scheduler is already running under PID FIRST.",
        "AlreadyLocked PATH is already locked",
    ],
    "pidabs": [
        "running FIRST",
        "AirflowException The scheduler is already running under PID FIRST.",
        "running",
        "running",
    ],
}


def in_pid_namespace() -> list[str]:
    """With a /proc of its own, in which the next pid can be chosen.

    Its first process is a shell: python-daemon takes what that one starts for started by init, and does not detach it.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can choose the next pid")
    words = in_namespace("--pid", "--fork", "--kill-child", "--mount-proc")
    return [*words, "sh", "-c", '"$@"; exit $?', "sh"]


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_airflow_helper_is_not_fooled_by_a_recycled_pid(way: str, installed: Install, tmp_path: Path) -> None:
    """check_if_pidfile_process_is_running and run_command_with_daemon_option, of the whole of apache-airflow-core."""
    (tmp_path / "program.py").write_text(textwrap.dedent(AIRFLOW_HELPER))
    home = environment(installed(AIRFLOW), AIRFLOW_HOME=tmp_path, PYTHONWARNINGS="ignore")
    done = finish(*in_pid_namespace(), *WAYS[way], tmp_path / "program.py", tmp_path, env=home, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(AIRFLOW_SAYS[way]), done
    assert all(map(str.startswith, lines, AIRFLOW_SAYS[way])), lines


AIRFLOW_COMMAND = """
    import ctypes, os, signal, subprocess, sys, time
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what it leaves behind are children of this one
    path = os.environ["AIRFLOW_HOME"] + "/airflow-scheduler.pid"

    def start():
        "`airflow scheduler --daemon`: whether another process has the PID file then."
        words = [*sys.argv[1:], "scheduler", "--daemon"]
        before = daemon()
        ended = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            return ended.stderr.strip().splitlines()[-1]
        while daemon() in (0, before):
            time.sleep(0.05)
        return "running"

    def daemon():
        try:
            with open(path) as file: return int(file.read() or 0)
        except FileNotFoundError:
            return 0

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def show(text): print(text.replace(str(first), "FIRST"), flush=True)

    text = start()
    first = daemon()
    show(text)
    show(start())
    kill(first)  # and not what it has forked
    with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(first - 1))
    stranger = os.fork()
    if stranger == 0:
        signal.pause()
    assert stranger == first
    show(start())
"""


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_airflow_scheduler_is_not_fooled_by_a_recycled_pid(way: str, installed: Install, tmp_path: Path) -> None:
    """The command itself, with its database, log server and workers."""
    target = installed(AIRFLOW)
    settings = {"AIRFLOW__CORE__LOAD_EXAMPLES": False, "AIRFLOW__CORE__PARALLELISM": 2}
    settings["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"] = 0
    home = environment(target, AIRFLOW_HOME=tmp_path, PYTHONWARNINGS="ignore", **settings)
    airflow = (*WAYS[way], target / "bin" / "airflow")
    migrated = finish(*airflow, "db", "migrate", env=home, timeout=120)
    assert migrated.returncode == 0, migrated.stderr
    (tmp_path / "program.py").write_text(textwrap.dedent(AIRFLOW_COMMAND))
    done = finish(*in_pid_namespace(), sys.executable, "-P", tmp_path / "program.py", *airflow, env=home, timeout=200)
    running, *refused = done.stdout.splitlines()
    assert running == "running", done
    already = "airflow.sdk.exceptions.AirflowException: The scheduler is already running under PID FIRST."
    assert refused == [already, already if way == "stock" else "running"], done


# Jasmin -------------------------------------------------------------------------------------------------------

JASMIN = (
    *("--no-deps", "jasmin==0.11.1", "lockfile==0.12.2", "Twisted==23.10.0", "txAMQP3==0.9.4", "txredisapi==1.4.12"),
    *("smpp.pdu3==0.6", "pyOpenSSL==23.3.0", "cryptography==41.0.7", "service_identity==23.1.0", "setuptools<81"),
    *("attrs", "automat", "cffi", "constantly", "hyperlink", "idna", "incremental", "packaging", "pyasn1"),
    *("pyasn1_modules", "pycparser", "six", "typing_extensions", "zope.interface"),
)
"""What its dlrlookupd needs.  All that it asks for takes half a minute."""


@pytest.mark.parametrize("way", WAYS)
def test_jasmin_starts_again_after_sigkill(way: str, installed: Install, tmp_path: Path) -> None:
    """dlrlookupd, which maps receipts to messages; it has its lock while it looks for a broker, which is not there."""
    target, name = installed(*JASMIN), uuid.uuid4().hex
    lock = Path(f"/tmp/dlrlookupd-{name}.lock")
    home = environment(target, ROOT_PATH=tmp_path, PYTHONWARNINGS="ignore")
    daemon = (*WAYS[way], target / "bin" / "dlrlookupd.py", "-i", name)

    def has_it(process: Program) -> bool:
        assert process.process.poll() is None, process.errors()
        if way == "stock":
            return lock.exists()
        holder = pidabs.holder(str(lock))
        return holder is not None and holder.pid == process.pid

    try:
        with program(*daemon, env=home) as first:
            wait_until(lambda: has_it(first), deadline=60)
            second = finish(*daemon, env=home)
            assert (second.stdout, second.returncode) == ("Lock not acquired ! exiting\n", 0)
            first.kill()
        if way == "stock":
            again = finish(*daemon, env=home)
            assert (again.stdout, again.returncode) == ("Lock not acquired ! exiting\n", 0)
            return
        with program(*daemon, env=home) as third:
            wait_until(lambda: has_it(third), deadline=60)
        assert not lock.exists()
    finally:
        if lock.exists():  # with the file that it is a second link of
            leftover = lock.stat()
            for entry in os.scandir("/tmp"):
                if entry.inode() == leftover.st_ino and os.path.samestat(entry.stat(follow_symlinks=False), leftover):
                    os.unlink(entry)
