"""docs/companions.md: what other programs see of a lock, with the real programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pages import DOCS, ROOT, SCRIPT, SYSTEM_PATH, blocks, blocks_of
from support import DEADLINE, Child, child, needs, state, wait_until

import pidabs

PAGE = (DOCS / "companions.md").read_text(encoding="utf-8")
COMPANIONS = DOCS / "companions"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PIDFILE = "/run/mydaemon.pid"

LINES = [line for block in blocks_of(PAGE) for line in block.text.splitlines()]
KILL, PGREP, STATUS, STOP, PIDABS_STATUS, PIDABS_STOP, SS, CRON, BASH, ZSH, FISH = LINES

HOLD_MIRRORED = """
    import pidabs, signal
    lock = pidabs.Lock(sys.argv[1], mirror=True).acquire()
    say("held")
    signal.pause()
"""


def shell(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of the page, with the test's directory for /run."""
    return subprocess.run(
        ["sh", "-c", line.replace("/run/", f"{directory}/")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=directory,
        env={"PATH": f"{SCRIPT.parent}:{SYSTEM_PATH}"},
    )


@contextmanager
def held(directory: Path) -> Iterator[Child]:
    with child(HOLD_MIRRORED, args=(PIDFILE.replace("/run", str(directory)),)) as holder:
        holder.expect("held")
        yield holder


# Programs that read PID files ---------------------------------------------------------------------------------


def test_kill(tmp_path: Path) -> None:
    with held(tmp_path):
        assert shell(KILL, tmp_path).returncode == 0


@needs("pgrep")
def test_pgrep(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        assert shell(PGREP, tmp_path).stdout == f"{holder.pid}\n"
        holder.kill()
    stale = shell(PGREP, tmp_path)
    assert (stale.returncode, stale.stdout) == (1, "")


@needs("pgrep", "start-stop-daemon")
def test_a_stale_mirror_whose_number_is_anothers(tmp_path: Path) -> None:
    """start-stop-daemon takes that process for the daemon; pgrep does not, and the kernel knows better."""
    with held(tmp_path) as holder:
        holder.kill()
    pidfile = tmp_path / "mydaemon.pid"
    assert pidfile.read_text() == f"{holder.pid}\n"
    pidfile.write_text(f"{os.getpid()}\n")
    assert shell(STATUS, tmp_path).returncode == 0
    assert shell(PGREP, tmp_path).returncode == 1
    assert pidabs.holder(pidfile) is None


@needs("start-stop-daemon")
def test_start_stop_daemon_status(tmp_path: Path) -> None:
    assert shell(STATUS, tmp_path).returncode == 3
    with held(tmp_path) as holder:
        assert shell(STATUS, tmp_path).returncode == 0
        holder.kill()
    assert shell(STATUS, tmp_path).returncode == 1  # dead, and a PID file is there


@needs("start-stop-daemon")
def test_start_stop_daemon_stop(tmp_path: Path) -> None:
    line = STOP.replace("/run/", f"{tmp_path}/")
    # It waits for the end of the process, which is a zombie until we reap it.
    with held(tmp_path) as holder, subprocess.Popen(["sh", "-c", line], env={"PATH": SYSTEM_PATH}) as stop:
        assert holder.wait() == -15
        assert stop.wait(DEADLINE) == 0
    assert pidabs.holder(tmp_path / "mydaemon.pid") is None


def test_pidabs_instead(tmp_path: Path) -> None:
    assert shell(PIDABS_STATUS, tmp_path).returncode == 3
    with held(tmp_path) as holder:
        status = shell(PIDABS_STATUS, tmp_path)
        assert status.returncode == 0
        assert str(holder.pid) in status.stdout
        assert shell(PIDABS_STOP, tmp_path).returncode == 0
        assert holder.wait() == -15
    assert shell(PIDABS_STATUS, tmp_path).returncode == 3
    assert shell(PIDABS_STOP, tmp_path).returncode == 0


# ss -----------------------------------------------------------------------------------------------------------


@needs("ss")
def test_ss(tmp_path: Path) -> None:
    path = tmp_path / "mydaemon.pid"

    def row() -> list[str]:
        lines = shell(SS, tmp_path).stdout.splitlines()
        (found,) = [line.split() for line in lines if f"@pidabs:{path}" in line.split()]
        return found

    with held(tmp_path) as holder:
        before = row()
        assert before[:2] == ["u_str", "LISTEN"]
        assert f"pid={holder.pid}," in before[-1]
        with child("import pidabs; lock = pidabs.Lock(sys.argv[1]).acquire()", args=(str(path),)):
            wait_until(lambda: int(row()[2]) > int(before[2]), "the waiter shows in Recv-Q")


# systemd ------------------------------------------------------------------------------------------------------


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", sorted(COMPANIONS.glob("*.service")), ids=lambda unit: unit.name)
def test_units_are_right(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text().replace("/usr/bin/pidabs", str(SCRIPT)).replace("/usr/local/bin/mydaemon", str(SCRIPT))
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def exec_start(directory: Path) -> list[str]:
    """The command of the example's unit."""
    (line,) = re.findall(r"^ExecStart=(.*)$", (COMPANIONS / "pidabs-example.service").read_text(), re.MULTILINE)
    return line.replace("/usr/bin/pidabs", str(SCRIPT)).replace("/run/", f"{directory}/").split()


def test_the_units_main_process_is_the_holder(tmp_path: Path) -> None:
    first = subprocess.Popen(exec_start(tmp_path), cwd=tmp_path)
    try:
        wait_until(lambda: pidabs.holder(tmp_path / "pidabs-example.pid"), "the lock is held")
        holder = pidabs.holder(tmp_path / "pidabs-example.pid")
        assert holder is not None
        assert holder.pid == first.pid
        second = subprocess.run(exec_start(tmp_path), cwd=tmp_path, capture_output=True, timeout=60, check=False)
        assert second.returncode == 75
    finally:
        first.kill()
        first.wait(DEADLINE)


def test_the_mirror_of_a_forking_daemon_never_names_a_dead_process(tmp_path: Path) -> None:
    """systemd reads it when the first process ends, and again when the process that it found there ends."""
    program = tmp_path / "mydaemon.py"
    (code,) = (code for code in blocks(README, "python") if "DaemonContext" in code)
    serve = "import signal\ndef serve():\n    signal.alarm(60)\n    signal.pause()\n"
    program.write_text(serve + code.replace("/run/", f"{tmp_path}/"))
    pidfile = tmp_path / "mydaemon.pid"
    launcher = subprocess.Popen([sys.executable, program], cwd=tmp_path)
    named = None

    def settled() -> bool:
        nonlocal named
        ended = launcher.poll() is not None
        text = pidfile.read_text() if pidfile.exists() else None
        if named is not None and text == named:
            # Looked up again: it may have ended since, having rewritten the file before that.
            assert state(int(named)) not in "ZX" or pidfile.read_text() != named
        named = text
        assert not ended or (text is not None and int(text) != launcher.pid)
        holder = pidabs.holder(pidfile) if ended else None
        return holder is not None and text == f"{holder.pid}\n" and os.getsid(int(text)) != int(text)

    try:
        wait_until(settled, "the daemon has detached")
        assert launcher.returncode == 0
    finally:
        holder = pidabs.holder(pidfile)
        assert holder is not None
        assert holder.terminate(DEADLINE)


# The init script ----------------------------------------------------------------------------------------------

INIT = COMPANIONS / "pidabs-example.init"


def test_the_init_script_is_executable_and_has_its_header() -> None:
    text = INIT.read_text()
    assert os.access(INIT, os.X_OK)
    keys = re.findall(r"^# ([\w-]+): ", text.partition("### END INIT INFO")[0], re.MULTILINE)
    assert keys == [
        "Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop", "Short-Description",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [["sh", "-n"], pytest.param(["shellcheck"], marks=needs("shellcheck"))],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("script", [INIT, ROOT / "tests" / "install-tools.sh"], ids=lambda script: script.name)
def test_checkers_find_no_fault(command: list[str], script: Path) -> None:
    done = subprocess.run([*command, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Service:
    """The init script, in a directory of its own."""

    def __init__(self, directory: Path, daemon: str = "sleep 600") -> None:
        self.lock = directory / "pidabs-example.pid"
        self.script = directory / "init"
        text = INIT.read_text()
        for place in "/run", "/var/log", "/etc/default":
            assert f"{place}/pidabs-example" in text
            text = text.replace(f"{place}/pidabs-example", f"{directory}/pidabs-example")
        self.script.write_text(text)
        self.script.chmod(0o755)
        (directory / "pidabs-example").write_text(f'DAEMON="{daemon}"\n')

    def __call__(self, *arguments: str) -> int:
        # Not a pipe for its output: the daemon must not keep it open, but if it does, this test ends all the same.
        return subprocess.run(
            [self.script, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
            env={"PATH": f"{SCRIPT.parent}:{SYSTEM_PATH}"},
        ).returncode

    @property
    def pid(self) -> int | None:
        holder = pidabs.holder(self.lock)
        return None if holder is None else holder.pid


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    holder = pidabs.holder(service.lock)
    if holder is not None:
        holder.terminate(DEADLINE, kill=True)


@needs("setsid")
def test_the_init_script(service: Service) -> None:
    assert service("status") == 3
    assert service("start") == 0
    first = service.pid
    assert first is not None
    assert service("status") == 0
    assert service("start") == 0  # LSB: it runs already, which is a success
    assert service.pid == first
    assert service("restart") == 0
    second = service.pid
    assert second not in (None, first)
    assert service("force-reload") == 0
    assert service("try-restart") == 0
    assert service("stop") == 0
    assert service("status") == 3
    assert service("stop") == 0
    assert service("try-restart") == 0
    assert service("status") == 3
    assert service("restart") == 0
    assert service("status") == 0


@needs("setsid")
def test_the_init_script_after_a_sigkill(service: Service) -> None:
    assert service("start") == 0
    holder = pidabs.holder(service.lock)
    assert holder is not None
    holder.send_signal(9)
    assert holder.wait(DEADLINE)
    assert service("status") == 3
    assert service("start") == 0
    assert service.pid not in (None, holder.pid)


@needs("setsid")
def test_the_init_script_cannot_start(tmp_path: Path) -> None:
    service = Service(tmp_path)
    (tmp_path / "pidabs-example.log").mkdir()  # so that the shell cannot open it
    assert service("start") == 1
    assert service("status") == 3


@pytest.mark.parametrize("daemon", ["/no/such/daemon --option", "no-such-daemon", "/dev/null"])
def test_the_init_script_of_what_is_not_installed(tmp_path: Path, daemon: str) -> None:
    service = Service(tmp_path, daemon=daemon)
    assert service("start") == 5  # as LSB has it
    assert service("status") == 3
    assert service("restart") == 5
    assert not (tmp_path / "pidabs-example.log").exists()


def test_the_init_script_is_used_wrongly(tmp_path: Path) -> None:
    service = Service(tmp_path)
    assert service() == 2
    assert service("frobnicate") == 2


# cron ---------------------------------------------------------------------------------------------------------


@needs("crontab")
def test_cron_reads_the_line(tmp_path: Path) -> None:
    (tmp_path / "crontab").write_text(f"{CRON}\n")
    done = subprocess.run(
        ["crontab", "-n", tmp_path / "crontab"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "crontab").write_text(f"{CRON.replace('*', 'x')}\n")
    done = subprocess.run(
        ["crontab", "-n", tmp_path / "crontab"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0


def test_the_cron_job(tmp_path: Path, name: str) -> None:
    """As cron runs it: by sh, with hardly an environment.  While the lock is held it does and mails nothing."""
    backup = tmp_path / "backup.tar.gz"
    command = " ".join(CRON.split()[5:]).replace("/usr/local/bin/pidabs", str(SCRIPT))
    command = command.replace("nightly-backup", name).replace("/tmp/backup.tar.gz", str(backup))

    def job() -> tuple[int, str]:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SHELL": "/bin/sh", "LOGNAME": "nobody"},
        )
        return done.returncode, done.stdout

    with pidabs.Lock(name):
        assert job() == (0, "")
        assert not backup.exists()
    assert job()[0] == 0
    assert backup.stat().st_size > 0


# Shells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "line", "listed"),
    [
        pytest.param(
            ["bash", "--norc", "-c"],
            f"{BASH}; complete -p pidabs",
            "complete -F _pidabs pidabs",
            marks=needs("bash"),
            id="bash",
        ),
        pytest.param(
            ["zsh", "-f", "-c"],
            f"autoload -Uz compinit; compinit -u -D; {ZSH}; echo $_comps[pidabs]",
            "_pidabs",
            marks=needs("zsh"),
            id="zsh",
        ),
        pytest.param(
            ["fish", "-c"],
            f"{FISH}; complete -C 'pidabs statu'",
            "status\tsay who holds a lock",
            marks=needs("fish"),
            id="fish",
        ),
    ],
)
def test_completions_can_be_had_at_start(command: list[str], line: str, listed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*command, line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={"PATH": f"{SCRIPT.parent}:{SYSTEM_PATH}", "HOME": str(tmp_path)},
    )
    assert (done.stdout, done.stderr) == (f"{listed}\n", "")


def test_each_companion_is_on_the_page() -> None:
    linked = set(re.findall(r"\]\(companions/(.*?)\)", PAGE))
    assert linked == {path.name for path in COMPANIONS.iterdir()}
