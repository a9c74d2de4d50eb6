"""`pidabs run`: who holds the lock and for how long, what the command finds, what waiting looks like, the exit codes.

Where flock(1) does the same, the two are run side by side.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_support import no_file, no_netlink, one_line
from programs import PIDABS, TELL, Terminal, finish, is_free, pidabs_run, program, run, terminal
from support import DEADLINE, HOLD, child, run_in, wait_until

import pidabs
from pidabs import _diag, cli
from pidabs.cli import _find

BOTH = pytest.mark.parametrize("mode", [(), ("--supervise",)], ids=["exec", "supervise"])


def flock() -> str:
    found = shutil.which("flock")
    if found is None:
        pytest.skip("flock(1) is not here")
    return found


# The lock -------------------------------------------------------------------------------------------------------------


@BOTH
def test_it_excludes_and_frees(name: str, mode: tuple[str, ...]) -> None:
    with pidabs_run(*mode, name, *TELL) as first:
        first.read_line()
        second = run("-n", *mode, name, "true")
        assert (second.returncode, second.stdout) == (1, "")
        first.tell("0")
        assert first.wait() == 0
        assert is_free(name)


def test_the_holder_is_the_command(name: str) -> None:
    with pidabs_run(name, *TELL) as running:
        said = int(running.read_line())
        holder = pidabs.holder(name)
        assert holder is not None
        assert said == running.pid == holder.pid
        assert holder.command == " ".join(TELL)


@BOTH
def test_waiters_get_it_when_the_command_ends(name: str, mode: tuple[str, ...]) -> None:
    with pidabs_run(*mode, name, *TELL) as first:
        first.read_line()
        with pidabs_run(*mode, name, *TELL) as second:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            assert second.says_nothing()
            first.tell("0")
            second.read_line()
            second.tell("0")
            assert second.wait() == 0
            assert second.errors() == ""  # it waited, without a terminal


def test_supervised_waiters_are_served_in_order(name: str) -> None:
    with pidabs_run("--supervise", name, *TELL) as running, ExitStack() as stack:
        running.read_line()
        waiters = []
        for count in 1, 2, 3:
            waiters.append(stack.enter_context(child(HOLD, args=(name,))))
            wait_until(lambda count=count: pidabs.Lock(name).waiters() == count)  # type: ignore[misc]
        running.tell("0")
        for waiter in waiters:
            waiter.expect("held")
            waiter.tell()
            waiter.expect("released")


def test_what_inherited_it_keeps_it(name: str) -> None:
    # A script's own descriptors are not ours; and cat is given its stdin, since in the background it would have none.
    with pidabs_run(name, "sh", "-c", "exec 3<&0 4<&0 5<&0 9<&0; cat <&3 & exit 0") as running:
        assert running.wait() == 0
        conflict = run("-n", name, "true")
        assert conflict.returncode == 1
        found = _find.one(pidabs.Lock(name))
        assert found is not None
        assert found.pid != running.pid
        assert f"held by pid {found.pid} (cat), uid {os.geteuid()}\n" in conflict.stderr
        assert running.process.stdin is not None
        running.process.stdin.close()
        wait_until(lambda: is_free(name))


def test_started_under_it_one_does_not_wait_for_oneself(name: str) -> None:
    done = run(name, "sh", "-c", f"{PIDABS} run -E 9 {name} true", timeout=20)
    assert done.returncode == 9
    assert "would wait for ourselves" in done.stderr


@BOTH
def test_killed_the_lock_is_free_and_the_command_gone(name: str, mode: tuple[str, ...]) -> None:
    with pidabs_run(*mode, name, *TELL) as running:
        command = os.pidfd_open(int(running.read_line()))
        running.kill()
        pidabs.Lock(name).acquire(timeout=DEADLINE).release()
        assert select.select([command], [], [], 0)[0]  # dead, whether reaped or not
        os.close(command)


@BOTH
def test_never_two_at_once(name: str, mode: tuple[str, ...], tmp_path: Path) -> None:
    """Each makes a directory that must not be there, and removes it."""
    critical = ("sh", "-c", f"for i in 1 2 3; do mkdir {tmp_path}/x && rmdir {tmp_path}/x || exit 99; done")
    many = [program(PIDABS, "run", *mode, name, *critical) for _ in range(8)]
    with ExitStack() as stack:
        running = [stack.enter_context(one) for one in many]
        assert [one.wait() for one in running] == [0] * len(many)


def test_scope(name: str) -> None:
    with pidabs_run("--scope", "one", name, *TELL) as running:
        running.read_line()
        assert run("-n", name, "true").returncode == 0
        assert run("-n", "--scope=two", name, "true").returncode == 0
        assert run("-n", name, "true", env={**os.environ, "PIDABS_SCOPE": "one"}).returncode == 1


def test_mirror_of_the_command_itself(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with pidabs_run("--mirror", path, name, *TELL) as running:
        pid = running.read_line()
        assert path.read_text() == f"{pid}\n"
        assert finish(flock(), "-n", path, "true").returncode == 1
        running.tell("0")
        assert running.wait() == 0
    # Nobody was left to remove it; that it is stale can be seen.
    assert path.read_text() == f"{pid}\n"
    assert finish(flock(), "-n", path, "true").returncode == 0
    assert run("--supervise", "--mirror", path, name, "true").returncode == 0
    assert not path.exists()


def test_mirror_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    done = run("--mirror", tmp_path / "no" / "x.pid", name, "true")
    assert done.returncode == 71
    assert "x.pid' cannot be written: No such file or directory\n" in done.stderr
    assert is_free(name)
    assert run("--mirror", "", name, "true").returncode == 2


# What the command finds -----------------------------------------------------------------------------------------------

STATUS = ("grep", "-E", "^(Sig|Shd)(Ign|Blk|Cgt|Pnd)", "/proc/self/status")


def with_signals(ignore: tuple[int, ...], block: tuple[int, ...]) -> Callable[[], None]:
    def prepare() -> None:
        for number in ignore:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, block)

    return prepare


@BOTH
@pytest.mark.parametrize(
    ("ignore", "block"),
    [
        ((), ()),
        ((signal.SIGINT, signal.SIGQUIT), ()),  # as a script's `&`
        ((signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1), (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT)),
    ],
    ids=["plain", "background", "odd"],
)
def test_signals_are_as_without_us(
    name: str, mode: tuple[str, ...], ignore: tuple[int, ...], block: tuple[int, ...]
) -> None:
    prepare = with_signals(ignore, block)
    without = finish(*STATUS, preexec_fn=prepare)
    with_ = run(*mode, name, *STATUS, preexec_fn=prepare)
    assert without.stdout.count("\n") >= 4
    assert (with_.stdout, with_.returncode) == (without.stdout, 0)


@BOTH
@pytest.mark.parametrize("locale", [{}, {"LC_CTYPE": "C"}, {"LANG": "C"}, {"LC_ALL": "C"}, {"LC_CTYPE": "C.UTF-8"}])
def test_environment_is_as_without_us(name: str, mode: tuple[str, ...], locale: dict[str, str]) -> None:
    env = {"PATH": os.environ["PATH"], "ODD": "\udcff\n", **locale}
    assert run(*mode, name, "env", env=env, text=False).stdout == finish("env", env=env, text=False).stdout


@BOTH
@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_descriptors_are_as_without_us_but_for_the_lock(
    name: str, mode: tuple[str, ...], closed: str, tmp_path: Path
) -> None:
    listing = f"for fd in /proc/self/fd/*; do readlink $fd; done > {tmp_path}/"
    shell = 'exec 7</dev/null; "$@" '
    finish("sh", "-c", f"{shell} {closed}", "sh", "sh", "-c", f"{listing}without")
    finish("sh", "-c", f"{shell} {closed}", "sh", PIDABS, "run", *mode, name, "sh", "-c", f"{listing}with")

    def kinds(file: str) -> list[str]:
        found = (tmp_path / file).read_text().splitlines()
        return sorted(line.partition(":")[0] for line in found if "/proc/" not in line and str(tmp_path) not in line)

    expected = kinds("without")
    if not mode:
        expected = sorted([*expected, "socket"])
    assert kinds("with") == expected


@BOTH
def test_a_closed_stdout_is_not_the_lock(name: str, mode: tuple[str, ...]) -> None:
    shell = f'"$@" {"".join(mode)} {name} sh -c "echo hello; exit 5" >&- 2>&-'
    assert finish("sh", "-c", shell, "sh", PIDABS, "run").returncode == 5


def test_conflict_with_a_closed_stderr_says_nothing_elsewhere(name: str) -> None:
    with pidabs.Lock(name):
        for where in "2>&-", "2>/dev/full", ">&- 2>&-":
            done = finish("sh", "-c", f"{PIDABS} run -n -E 33 {name} true {where}")
            assert (done.returncode, done.stdout, done.stderr) == (33, "", ""), where


@BOTH
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["{dir}/no-such-file"], 127),
        (["no-such-command-anywhere"], 127),
        ([""], 127),
        (["{dir}/plain"], 126),
        (["{dir}"], 126),
        (["{dir}/orphan"], 126),
        (["{dir}/script", "a b"], 3),
    ],
    ids=str,
)
def test_exit_codes_of_the_command(
    name: str, mode: tuple[str, ...], command: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "plain").write_text("exit 0\n")
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").write_text('test "$1" = "a b" && exit 3\n')  # no `#!`: the shell's, as for flock(1)
    (tmp_path / "orphan").chmod(0o755)
    (tmp_path / "script").chmod(0o755)
    done = run(*mode, name, *[word.format(dir=tmp_path) for word in command])
    assert done.returncode == code
    assert (done.stderr.startswith("pidabs: cannot run ") and done.stderr.count("\n") == 1) == (code in (126, 127))
    assert is_free(name)


def test_a_signal_kills_the_command_itself(name: str) -> None:
    assert run(name, "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert run("--supervise", name, "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", [["true"], ["sh", "-c", "exit 7"], ["sh", "-c", "exec 9>&-; exit 3"]], ids=str)
def test_side_by_side_with_flock(name: str, command: list[str], tmp_path: Path) -> None:
    theirs = finish(flock(), tmp_path / "lock", *command)
    for mode in [], ["--supervise"]:
        ours = run(*mode, name, *command)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


@pytest.mark.parametrize("options", [["-n"], ["-w", "0.1"], ["-n", "-E", "42"], ["-nE42"], ["-E", "42", "-w0.1"]])
def test_conflicts_side_by_side_with_flock(name: str, options: list[str], tmp_path: Path) -> None:
    with program(flock(), tmp_path / "lock", *TELL) as theirs, pidabs_run(name, *TELL) as ours:
        theirs.read_line()
        ours.read_line()
        expected = finish(flock(), *options, tmp_path / "lock", "true").returncode
        assert run(*options, name, "true").returncode == expected


# Conflicts and errors -------------------------------------------------------------------------------------------------


@BOTH
def test_conflict_names_the_holder(name: str, mode: tuple[str, ...]) -> None:
    with pidabs_run(name, "sleep", "60") as running:
        wait_until(lambda: (held := pidabs.holder(name)) is not None and held.command == "sleep 60")
        done = run("-n", *mode, name, "true")
        uid = os.geteuid()
        assert done.stderr == f"pidabs: cannot acquire lock '{name}': held by pid {running.pid} (sleep 60), uid {uid}\n"
        done = run("--timeout", "0.1", *mode, name, "true")
        assert done.returncode == 1
        assert f"'{name}' within 0.1 s: held by pid {running.pid}" in done.stderr


@pytest.mark.parametrize("options", [["-n", "-E", "0"], ["-nE0"], ["-w", "0.1", "-E", "0"]], ids=str)
def test_a_conflict_that_is_no_failure_is_no_news(name: str, options: list[str], tmp_path: Path) -> None:
    with pidabs.Lock(name), program(flock(), tmp_path / "lock", *TELL) as theirs:
        theirs.read_line()
        for done in run(*options, name, "false"), finish(flock(), *options, tmp_path / "lock", "false"):
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_conflict_with_a_long_command_is_short(name: str) -> None:
    with child(HOLD, args=(name, "x" * 3000)) as process:
        process.expect("held")
        done = run("-n", name, "true")
        assert f"held by pid {process.pid} (" in done.stderr
        assert len(done.stderr) < 250


def test_a_conflict_where_the_kernel_only_answers_a_connection(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        monkeypatch.setattr(_diag, "socket", no_netlink)
        monkeypatch.setattr(_diag, "open", no_file, raising=False)
        assert cli.main(["run", "-n", name, "true"]) == 1
        shown = capfd.readouterr().err
        assert one_line(shown)
        assert f": held by pid {process.pid} (" in shown


def test_conflicts_leave_few_entries(name: str) -> None:
    """A command that took our place never drops them, and cron tries once a minute."""
    with pidabs_run(name, *TELL) as holder:
        holder.read_line()
        listed = _diag.find(pidabs.Lock(name).address)
        assert listed is not None
        for _ in range(25):
            assert f"held by pid {holder.pid} (" in run("-n", name, "true").stderr
        assert len(_diag.queue(listed.inode)) <= 16


def test_a_queue_full_of_those_who_gave_up(name: str) -> None:
    """Behind a command that took our place it stays full: nobody counts them, and who waits gets the lock."""
    with pidabs_run(name, *TELL) as holder:
        holder.read_line()
        address = pidabs.Lock(name).address
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                try:
                    sock.connect(address)
                except BlockingIOError:
                    break
        assert finish(PIDABS, "status", name).stdout.endswith("  waiters  0\n")
        assert f"held by pid {holder.pid} (" in run("-n", name, "true").stderr
        stopped = finish(PIDABS, "stop", name)
        assert (stopped.returncode, f"pid {holder.pid} (sh" in stopped.stderr) == (4, True)
        with pidabs_run(name, "echo", "got it") as first, pidabs_run("--supervise", name, "echo", "got it") as second:
            assert first.says_nothing()
            assert second.says_nothing()
            holder.tell("0")
            first.expect("got it")
            second.expect("got it")
            assert (first.wait(), second.wait()) == (0, 0)


@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
@pytest.mark.parametrize("odd", ["\udcff\udcfe", "new\nline", "\033[31mred", "ümläut", "a'b\"c"], ids=ascii)
def test_odd_names_are_shown_escaped(name: str, odd: str, env: dict[str, str]) -> None:
    with pidabs.Lock(odd + name):
        done = run("-n", odd + name, "true", env={**os.environ, **env}, text=False)
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert b"\033" not in done.stderr
        assert name.encode() in done.stderr
        assert str(os.getpid()).encode() in done.stderr
    assert run(odd + name, "true", env={**os.environ, **env}).returncode == 0


@pytest.mark.parametrize("words", [["", "true"], ["#x", "true"], ["--scope", "a/b", "x", "true"]], ids=str)
def test_bad_names_are_wrong_usage(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("pidabs: a ")
    assert done.stderr.count("\n") == 1


NO_DESCRIPTORS = """
import os, resource, sys
import pidabs.cli.run, pidabs.cli._supervise, pidabs.cli._command, pidabs.cli
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
sys.exit(pidabs.cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("mode", [[], ["--supervise"], ["--mirror", "/tmp/x.pid"]], ids=str)
def test_no_descriptors_left(name: str, mode: list[str]) -> None:
    for limit in 3, 4, 5, 6, 7, 8, 9:
        done = finish(sys.executable, "-c", NO_DESCRIPTORS, limit, "run", *mode, name, "/bin/true", close_fds=True)
        # From some number on it works; and the command needs some itself.
        assert done.returncode in ((71,) if limit == 3 else (71, 127, 0)), done.stderr
        assert done.returncode != 71 or "Too many open files" in done.stderr
        wait_until(lambda: is_free(name))


# What is ours and what is the command's -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["NAME", "echo", "-n", "--timeout", "5"], "--timeout 5"),
        (["NAME", "--", "echo", "--", "-E", "9"], "-- -E 9\n"),
        (["--", "NAME", "echo", "--supervise"], "--supervise\n"),
        (["--", "NAME", "--", "echo", "--"], "--\n"),
        (["-n", "NAME", "echo", "a", "--", "b"], "a -- b\n"),
        (["--supervise", "-w", "5", "NAME", "--", "echo", "-w"], "-w\n"),
        (["-nE", "9", "NAME", "echo", "x"], "x\n"),
        (["--scope", "s", "--timeout=5", "-E3", "NAME", "echo", ""], "\n"),
        (["NAME", "echo", "demo", "@x", "a b", "-1"], "demo @x a b -1\n"),
    ],
    ids=str,
)
def test_options_of_the_command_are_its_own(name: str, words: list[str], output: str) -> None:
    words = [name if word == "NAME" else word for word in words]
    words = ["/bin/echo" if word == "echo" else word for word in words]
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


def test_a_name_and_a_command_that_look_like_options(name: str, tmp_path: Path) -> None:
    script = tmp_path / "--cmd"
    script.write_text("#!/bin/sh\nexit 6\n")
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run("--", f"--{name}", "--", "--cmd", env=env).returncode == 6
    with pidabs.Lock(f"--{name}"):
        assert run("-n", "--", f"--{name}", "--", "--cmd", env=env).returncode == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "required: NAME, CMD"),
        (["x"], "required: CMD"),
        (["x", "--"], "required: CMD"),
        (["--", "x", "--"], "required: CMD"),
        (["x", "--nonblock", "true"], "--nonblock: options go before NAME"),
        (["--no-such", "x", "true"], "--no-such"),
        (["-n", "-w", "3", "x", "true"], "not allowed with"),
        (["-w", "-1", "x", "true"], "-w"),
        (["-w", "nan", "x", "true"], "not a number of seconds"),
        (["-w", "x", "true"], "not a number of seconds, such as 2.5: 'x'"),
        (["-w"], "expected one argument"),
        (["-E", "256", "x", "true"], "not an exit code"),
        (["--mirror", "--", "x", "true"], "expected one argument"),
    ],
    ids=str,
)
def test_wrong_usage(words: list[str], complaint: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_help_says_what_becomes_of_a_mirror() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--mirror" in done.stdout
    assert "-m pidabs" not in done.stdout


# Waiting --------------------------------------------------------------------------------------------------------------


def waiting(name: str, *options: str) -> tuple[object, ...]:
    return (PIDABS, "run", *options, name, "echo", "done")


def has_waited(screen: bytes) -> bool:
    return b"waiting 1 s for lock " in screen


def test_a_line_tells_whom_we_wait_for(name: str) -> None:
    with pidabs_run(name, *TELL) as holder:
        holder.read_line()
        with terminal(*waiting(name)) as on:
            on.read_until(has_waited)
            assert f"held by pid {holder.pid} (uid {os.geteuid()}, 'sh -c ".encode() in on.screen
            assert b"\n" not in on.screen  # in place
            assert b"\033" not in on.screen
            holder.tell("0")
            on.read_rest()
            assert on.process.wait(DEADLINE) == 0
            assert on.shown() == ["done", ""]


def test_the_line_fits_on_a_narrow_terminal(name: str) -> None:
    with pidabs.Lock("ü" * 40 + name), terminal(*waiting("ü" * 40 + name, "-w", "1.5"), columns=50) as on:
        on.read_until(lambda screen: b"waiting 1 s" in screen)
        for shown in on.screen.decode().split("\r"):
            assert len(shown) < 50
        on.read_rest()
        assert on.process.wait(DEADLINE) == 1
        assert on.shown()[0].startswith("pidabs: cannot acquire lock")


def test_the_line_fits_where_little_can_be_shown(name: str) -> None:
    """What the locale lacks is escaped, and takes more room."""
    environment = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "",
    }  # tox sets that
    odd = "ü" * 10 + name
    with pidabs.Lock(odd), terminal(*waiting(odd, "-w", "1.5"), columns=60, **environment) as on:
        on.read_rest()
        lines = on.screen.decode("ascii").split("\r")
        assert [line[-3:] for line in lines if "waiting 1 s" in line] == ["..."]
        assert max(len(line) for line in lines if "waiting" in line) < 60


def test_it_asks_once(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with terminal(*waiting(name)) as on:
        on.read_until(lambda screen: b"waiting 2 s" in screen)
        listed = _diag.find(lock.address)
        assert listed is not None
        assert len(_diag.queue(listed.inode)) == 2  # its own place, and one question
        lock.release()
        on.read_rest()


def test_a_new_holder_is_named(name: str) -> None:
    with pidabs_run("--supervise", name, *TELL) as first:
        first.read_line()
        with pidabs_run("--supervise", name, *TELL) as second:
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            with terminal(*waiting(name)) as on:
                on.read_until(f"held by pid {first.pid} ".encode())
                first.tell("0")
                on.read_until(f"held by pid {second.pid} ".encode())
                second.tell("0")
                on.read_rest()
                assert on.process.wait(DEADLINE) == 0


def test_nothing_is_shown_in_the_background(name: str) -> None:
    script = f"{PIDABS} run -w 1.5 {name} true & wait $!; echo code $?"
    with pidabs.Lock(name), terminal("bash", "-c", f"set -m; {script}") as on:
        on.read_rest()
        assert b"waiting" not in on.screen
        assert b"code 1" in on.screen


def interrupted(on: Terminal, name: str, echo: str = "") -> None:
    on.read_rest()
    assert on.process.wait(DEADLINE) == -signal.SIGINT
    assert on.shown() in ([""], [echo])  # the terminal's own echo may come before we erase the line, or after
    assert pidabs.Lock(name).waiters() == 0


def test_ctrl_c_while_waiting_leaves_no_trace(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with pidabs.Lock(name), terminal(*waiting(name, "--mirror", str(path))) as on:
        on.read_until(has_waited)
        on.type(b"\x03")
        interrupted(on, name, "^C")
        assert not path.exists()


def test_sigint_while_waiting_leaves_no_trace(name: str) -> None:
    with pidabs.Lock(name), terminal(*waiting(name)) as on:
        on.read_until(has_waited)
        on.process.send_signal(signal.SIGINT)
        interrupted(on, name)


def test_sigint_without_a_terminal(name: str) -> None:
    with pidabs.Lock(name) as lock:
        with pidabs_run(name, "true") as running:
            wait_until(lambda: lock.waiters() == 1)
            running.signal(signal.SIGINT)
            assert running.wait() == -signal.SIGINT
            assert running.errors() == ""
        assert lock.waiters() == 0


def test_a_script_stops_at_ctrl_c(name: str) -> None:
    """Which a shell does only if its command was killed by the signal."""
    with pidabs.Lock(name), terminal("bash", "-c", f"{PIDABS} run {name} true; echo went on") as on:
        on.read_until(has_waited)
        on.type(b"\x03")
        on.read_rest()
        assert b"went on" not in on.screen


def test_ctrl_c_reaches_the_command_that_took_our_place(name: str) -> None:
    with terminal(PIDABS, "run", name, "sh", "-c", "trap 'echo caught; exit 4' INT; echo ready; read x") as on:
        on.read_until(b"ready")
        on.type(b"\x03")
        on.read_rest()
        assert on.process.wait(DEADLINE) == 4
        assert b"caught" in on.screen


def test_start_up_is_quick(name: str) -> None:
    """Within some 60 ms of a bare interpreter on a quiet machine; here, by processor time, with room for a busy one."""

    def cost(*command: object) -> float:
        before = os.times()
        for _ in range(5):
            assert finish(*command).returncode == 0
        after = os.times()
        return (after.children_user + after.children_system - before.children_user - before.children_system) / 5

    bare = min(cost(sys.executable, "-c", "pass") for _ in range(2))
    ours = min(cost(PIDABS, "run", name, "true") for _ in range(2))
    assert ours - bare < max(0.06, 3 * bare)


@pytest.mark.parametrize(
    ("started_with", "set_to", "restored"),
    [(None, "C.UTF-8", "None"), ("C", "C.UTF-8", "C"), ("de_DE", "de_DE", "de_DE"), ("C", None, "None")],
)
def test_locale_of_the_command_is_ours_as_we_were_started(
    started_with: str | None, set_to: str | None, restored: str
) -> None:
    """In the C locale, which cron's is, Python sets LC_CTYPE, for its children too (PEP 538)."""
    code = f"""
    from pidabs.cli._command import _restore_locale
    os.environ.pop("LC_CTYPE", None)
    if {set_to!r} is not None: os.environ["LC_CTYPE"] = {set_to!r}
    _restore_locale()
    say(os.environ.get("LC_CTYPE"))
    """
    words = ["env", "-u", "LC_CTYPE", "LC_ALL=C.UTF-8"] + ([f"LC_CTYPE={started_with}"] if started_with else [])
    done = run_in(words, code)
    assert done.stdout == restored + "\n", done.stderr
