"""`pidabs doctor`, in real sandboxes: what it finds, what it measures, and that nothing of it stays however it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import (
    BECOME_UNPRIVILEGED,
    DEADLINE,
    HOLD,
    Child,
    child,
    has_scopes,
    has_seccomp,
    in_namespace,
    wait_until,
)

from pidabs.cli import _doctor_checks, _doctor_finding, _doctor_host, _doctor_measure, _interrupt, main
from pidabs.cli._doctor_children import Workshop
from pidabs.cli._doctor_finding import Finding
from pidabs.cli._doctor_measure import Measured

DOCTOR = [sys.executable, "-m", "pidabs", "doctor"]
QUICK = [*DOCTOR, "--quick", "--json"]
DOCS = Path(__file__).parent.parent / "docs" / "command.md"

CHECKS = [
    "lock bind connect peercred peerpidfd pidfd rights queue sock_diag proc_net_unix net_namespace user_namespace",
    "pid_namespace proc descriptors environment bugs landlock",
]
IDS = " ".join(CHECKS).split()
CASES = ["kill", "kill-zombie", "kill-threads", "kill-heap", "handoff", "flock"]


class Report:
    """What a run with --json said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert "Traceback" not in done.stderr, done.stderr
        self.code = done.returncode
        self.object: dict[str, Any] = json.loads(done.stdout)
        self.checks = {check["id"]: check for check in self.object["checks"]}
        assert self.object["works"] == (self.code == 0)

    def status(self, name: str) -> str:
        return str(self.checks[name]["status"])

    def text(self, name: str) -> str:
        return " | ".join(str(self.checks[name][part]) for part in ("found", "cause", "remedy"))


def run(*command: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program, with pidabs' own settings out of its environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIDABS_")}
    environment.update(options.pop("env", {}))
    return subprocess.run(
        list(command), cwd=cwd, capture_output=True, text=True, timeout=90, check=False, env=environment, **options
    )


def quick(*before: str, cwd: Path, **options: Any) -> Report:
    """The checks alone, behind the words of `in_namespace`."""
    return Report(run(*before, *QUICK, cwd=cwd, **options))


def behind(code: str, *args: str, before: tuple[str, ...] = (), cwd: Path) -> Report:
    """The checks alone, in a process that ran `code` first."""
    done = run(*before, sys.executable, "-c", Child.PREAMBLE + code + EXEC, *args, cwd=cwd)
    if done.stdout.startswith("cannot:"):
        pytest.skip(done.stdout.strip())
    return Report(done)


EXEC = f"\nos.execv(sys.executable, {QUICK!r})\n"

# Everything as it should be -----------------------------------------------------------------------------------


def test_each_check_is_there_and_in_order(tmp_path: Path) -> None:
    report = quick(cwd=tmp_path)
    assert list(report.checks) == IDS
    for check in report.object["checks"]:
        assert list(check) == ["id", "title", "status", "found", "cause", "remedy"]
        assert check["status"] in ("ok", "warn", "bad", "unknown")
        assert check["found"]
        assert "cannot be tried" not in check["found"]
        if check["status"] == "warn":
            assert check["cause"]
            assert check["remedy"]
    assert report.object["measured"] == []
    assert report.object["handoff_to_flock"] is None


def test_locks_work_where_the_tests_run(tmp_path: Path) -> None:
    report = quick(cwd=tmp_path)
    assert report.code == 0
    for name in "lock", "bind", "connect", "peercred", "rights":
        assert report.status(name) == "ok", report.text(name)


def test_for_people(tmp_path: Path) -> None:
    done = run(*DOCTOR, "--quick", cwd=tmp_path, env={"LC_ALL": "C"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert done.stderr == ""
    assert lines[-1].startswith("Locks work here")
    assert "\033" not in done.stdout
    assert done.stdout.isascii()
    assert max(map(len, lines)) <= 110
    assert sum(line.startswith(("ok ", "warn ", "bad ", "unknown ")) for line in lines) == len(IDS)


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals(env: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    base = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    with subprocess.Popen(
        [*DOCTOR, "--quick"], stdout=theirs, cwd=tmp_path, env={**base, "TERM": "xterm", **env}
    ) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], DEADLINE)[0]:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # nobody has it open any more
                break
        assert process.wait(DEADLINE) == 0
    os.close(ours)
    assert (b"\033[32mok" in shown) == coloured
    assert (b"\033" in shown) == coloured


def test_stdout_that_is_closed(tmp_path: Path) -> None:
    done = run("sh", "-c", '"$@" >&-', "sh", *DOCTOR, "--quick", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_not_linux(tmp_path: Path) -> None:
    code = "import sys; from pidabs.cli import main; sys.platform = 'darwin'; sys.exit(main(['doctor', '--json']))"
    report = Report(run(sys.executable, "-c", code, cwd=tmp_path))
    assert report.code == 1
    assert report.status("system") == "bad"


# Sandboxes: seccomp -------------------------------------------------------------------------------------------

SECCOMP = """
import ctypes, struct
call, action, first = sys.argv[1:4]
numbers = dict(socket=(41, 198), bind=(49, 200), connect=(42, 203), sendmsg=(46, 211), getsockopt=(55, 209),
               pidfd_send_signal=(424, 424), pidfd_open=(434, 434), landlock_create_ruleset=(444, 444))
arch, column = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}[os.uname().machine]
load, equal, leave = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
refuse = 0x80000000 if action == "kill" else 0x00050000 | int(action)
checks = [(load, 0, 0, 0), (equal, 0, 3 if first else 1, numbers[call][column])]
if first:
    checks += [(load, 0, 0, 16), (equal, 0, 1, int(first))]
program = [(load, 0, 0, 4), (equal, 1, 0, arch), (leave, 0, 0, 0x7FFF0000), *checks,
           (leave, 0, 0, refuse), (leave, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
if prctl(38, 1, None, 0, 0) or prctl(22, 2, header, 0, 0):
    print("cannot: no seccomp filters here", flush=True)
    sys.exit()
"""
"""Child code: from now on a system call fails with this errno, or kills, if its first argument is so."""

UNIX, NETLINK = "1", "16"
EPERM, EACCES, EAFNOSUPPORT = "1", "13", "97"


@has_seccomp
@pytest.mark.parametrize(
    ("call", "action", "first", "check", "says"),
    [
        ("socket", EPERM, UNIX, "bind", "socket: EPERM"),
        ("socket", EAFNOSUPPORT, UNIX, "bind", "RestrictAddressFamilies"),
        ("socket", "kill", UNIX, "bind", "SIGSYS"),
        ("bind", EACCES, "", "bind", "AppArmor"),
        ("bind", "kill", "", "lock", "SIGSYS"),
        ("getsockopt", EPERM, "", "peercred", "SO_PEERCRED: EPERM"),
    ],
)
def test_sandbox_in_which_locks_are_impossible(
    call: str, action: str, first: str, check: str, says: str, tmp_path: Path
) -> None:
    report = behind(SECCOMP, call, action, first, cwd=tmp_path)
    assert report.code == 1
    assert (report.status("lock"), report.status(check)) == ("bad", "bad")
    assert says in report.text(check)
    assert report.object["verdict"].startswith("Locks do NOT work here: see a real lock")
    assert list(report.checks) == IDS  # all were tried, though some may have been killed


@has_seccomp
@pytest.mark.parametrize(
    ("call", "action", "first", "check", "status", "says"),
    [
        ("connect", EPERM, "", "connect", "warn", "they try again"),
        ("sendmsg", EPERM, "", "rights", "warn", "race"),
        ("socket", EPERM, NETLINK, "sock_diag", "warn", "AF_NETLINK"),
        ("socket", EAFNOSUPPORT, NETLINK, "sock_diag", "warn", "EAFNOSUPPORT"),
        ("socket", "kill", NETLINK, "sock_diag", "warn", "SIGSYS"),
        ("pidfd_open", EPERM, "", "pidfd", "warn", "pidfd_open: EPERM"),
        ("pidfd_send_signal", "kill", "", "pidfd", "warn", "SIGSYS"),
        ("landlock_create_ruleset", EPERM, "", "landlock", "unknown", "EPERM"),
    ],
)
def test_sandbox_in_which_locks_only_do_less(
    call: str, action: str, first: str, check: str, status: str, says: str, tmp_path: Path
) -> None:
    # In a network namespace of its own, else the landlock check may find somebody else's lock to ask.
    before = tuple(in_namespace("-n")) if check == "landlock" else ()
    report = behind(SECCOMP, call, action, first, before=before, cwd=tmp_path)
    assert report.code == 0, report.object["verdict"]
    assert report.status("lock") == "ok"
    assert report.status(check) == status
    assert says in report.text(check)


@has_seccomp
def test_peerpidfd_that_is_denied(tmp_path: Path) -> None:
    assert behind(SECCOMP, "getsockopt", EPERM, "", cwd=tmp_path).status("peerpidfd") == "warn"
    if _doctor_finding.kernel_version() >= (6, 5, 0):
        assert quick(cwd=tmp_path).status("peerpidfd") == "ok"


def test_check_that_hangs_or_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are made all the same."""

    def hang() -> Finding:
        time.sleep(DEADLINE)
        raise AssertionError

    def end() -> Finding:
        os._exit(3)

    def fail() -> Finding:
        raise ZeroDivisionError("here")

    monkeypatch.setattr(_interrupt, "DEADLINE", 1.0)
    for name, check in ("connect", hang), ("bind", end), ("queue", fail):
        monkeypatch.setitem(_doctor_checks.CHECKS, name, ("title", check))
    for name in [name for name in IDS if name not in ("connect", "bind", "queue", "proc", "environment")]:
        monkeypatch.delitem(_doctor_checks.CHECKS, name)
    with Workshop() as shop:
        found = {name: finding for name, _, finding in _doctor_checks.run(shop)}
    assert {name: finding.status for name, finding in found.items()} == {
        "bind": "bad",
        "connect": "unknown",
        "queue": "unknown",
        "proc": found["proc"].status,
        "environment": "ok",
    }
    assert "exit status 3" in found["bind"].found
    assert "not within 1 s" in found["connect"].found
    assert "ZeroDivisionError: here" in found["queue"].found


# Sandboxes: Landlock ------------------------------------------------------------------------------------------

LANDLOCK = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
rules = ctypes.create_string_buffer(struct.pack("=QQQ", 0, 0, int(sys.argv[1])))
fd = libc.syscall(444, rules, ctypes.c_size_t(24), 0)
if fd < 0 or libc.prctl(38, 1, 0, 0, 0) or libc.syscall(446, fd, 0):
    print("cannot: no Landlock scopes here (Linux 6.12)", flush=True)
    sys.exit()
"""
ABSTRACT_SOCKETS, SIGNALS = "1", "2"


def test_no_landlock(tmp_path: Path) -> None:
    report = quick(cwd=tmp_path)
    if report.status("landlock") != "ok":
        pytest.skip(f"the tests themselves run in a sandbox: {report.text('landlock')}")
    assert re.search("in no sandbox|is off|knows no scopes", report.text("landlock"))


@has_scopes
def test_landlock_that_keeps_us_from_a_lock_outside(name: str, tmp_path: Path) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        report = behind(LANDLOCK, ABSTRACT_SOCKETS, cwd=tmp_path)
    assert report.code == 0
    assert report.status("landlock") == "warn"
    assert "layers: 1" in report.text("landlock")


@has_scopes
def test_landlock_that_lets_us_wait(name: str, tmp_path: Path) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        report = behind(LANDLOCK, SIGNALS, cwd=tmp_path)
    assert report.status("landlock") == "ok"
    assert "could be reached (layers: 1)" in report.text("landlock")


@has_scopes
def test_landlock_and_nobody_to_ask(tmp_path: Path) -> None:
    report = behind(LANDLOCK, ABSTRACT_SOCKETS, before=tuple(in_namespace("-n")), cwd=tmp_path)
    assert report.code == 0
    assert report.status("landlock") == "unknown"
    assert "layers: 1" in report.text("landlock")


# Sandboxes: namespaces and /proc ------------------------------------------------------------------------------


def in_mounts(mount: str) -> list[str]:
    """The words that run a program where `mount` was run first."""
    before = [*in_namespace("-m"), "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{mount!r} is denied here")
    return before


def test_network_namespace(tmp_path: Path) -> None:
    report = quick(*in_namespace("-n"), cwd=tmp_path)
    assert report.code == 0
    assert report.status("net_namespace") == "warn"
    assert "locks exclude only who is in this network namespace" in report.text("net_namespace")
    here = quick(cwd=tmp_path)
    if here.status("net_namespace") != "ok":
        pytest.skip(f"the tests themselves run in a container: {here.text('net_namespace')}")
    assert here.text("net_namespace").startswith(("the host's own", "that of pid 1"))


@pytest.mark.parametrize(
    ("ours", "first", "pids", "version", "status"),
    [
        ("net:[4026531833]", None, None, (6, 18, 0), "ok"),  # the host's, and we are not root
        ("net:[4026531840]", "net:[4026531840]", "pid:[4026531836]", (6, 1, 0), "ok"),
        ("net:[4026532300]", "net:[4026531840]", "pid:[4026531836]", (6, 1, 0), "warn"),
        ("net:[4026532300]", "net:[4026532300]", "pid:[4026532299]", (6, 1, 0), "unknown"),  # a container
        ("net:[4026532300]", "net:[4026532300]", "pid:[4026532299]", (6, 18, 0), "warn"),
        ("net:[4026532300]", None, "pid:[4026531836]", (6, 1, 0), "unknown"),  # not root
        ("net:[4026532300]", None, "pid:[4026531836]", (6, 18, 0), "warn"),
        (None, None, None, (6, 18, 0), "unknown"),
    ],
)
def test_network_namespace_on_other_kernels(
    ours: str | None,
    first: str | None,
    pids: str | None,
    version: tuple[int, int, int],
    status: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links = {"/proc/self/ns/net": ours, "/proc/1/ns/net": first, "/proc/self/ns/pid": pids}
    monkeypatch.setattr(_doctor_host, "link", links.get)
    monkeypatch.setattr(_doctor_host, "kernel_version", lambda: version)
    assert _doctor_host.net_namespace().status == status


def test_user_namespace(tmp_path: Path) -> None:
    assert quick(*in_namespace("-U", "-n"), cwd=tmp_path).status("user_namespace") == "warn"
    mapped = quick(*in_namespace("-U", "-r", "-n"), cwd=tmp_path)
    assert mapped.status("user_namespace") == "ok"
    assert "uids mapped: 1" in mapped.text("user_namespace")


def test_pid_namespace(tmp_path: Path) -> None:
    alone = quick(*in_namespace("-p", "-f", "-n", "--mount-proc"), cwd=tmp_path)
    assert (alone.code, alone.status("pid_namespace"), alone.status("proc")) == (0, "ok", "ok")
    assert "not the host's" in alone.text("pid_namespace")
    with_host = quick(*in_namespace("-p", "-f", "--mount-proc"), cwd=tmp_path)
    if quick(cwd=tmp_path).text("net_namespace").startswith("the host's own"):
        assert with_host.status("pid_namespace") == "warn"


def test_proc_of_another_pid_namespace(tmp_path: Path) -> None:
    report = quick(*in_namespace("-p", "-f"), cwd=tmp_path)
    assert report.code == 0
    assert report.status("proc") == "warn"
    assert "another pid namespace" in report.text("proc")


def test_no_proc(tmp_path: Path) -> None:
    report = quick(*in_mounts("mount -t tmpfs none /proc"), cwd=tmp_path)
    assert report.code == 0
    assert report.status("proc") == "warn"
    for name in "net_namespace", "user_namespace", "pid_namespace":
        assert report.status(name) == "unknown"
    assert report.status("proc_net_unix") == "ok"
    assert "sock_diag works" in report.text("proc_net_unix")


@has_seccomp
def test_nothing_to_list_locks_with(tmp_path: Path) -> None:
    before = tuple(in_mounts("mount -t proc -o subset=pid proc /proc"))
    report = behind(SECCOMP, "socket", EPERM, NETLINK, before=before, cwd=tmp_path)
    assert report.code == 0
    for name in "proc", "sock_diag", "proc_net_unix":
        assert report.status(name) == "warn"
    assert "subset=pid" in report.text("proc")


UNPRIVILEGED = f"""
import contextlib, io, resource, tempfile
from pidabs.cli import main, _doctor_measure
with contextlib.redirect_stdout(io.StringIO()):
    main(["doctor", "--quick", "--json"])
{BECOME_UNPRIVILEGED.replace(chr(10) + "    ", chr(10))}
"""
"""Child code: nobody in particular, who has imported all that only its owner may read, by doing it once as root."""


def test_hidepid(public_dir: Path) -> None:
    before = in_mounts("mount -t proc -o hidepid=2 proc /proc")
    report = quick(*before, cwd=public_dir)
    if os.geteuid() == 0:
        assert report.status("proc") == "ok"
        assert "not for us" in report.text("proc")
    code = f"{Child.PREAMBLE}{UNPRIVILEGED}\nsys.exit(main(['doctor', '--quick', '--json']))"
    report = Report(run(*before, sys.executable, "-c", code, cwd=public_dir))
    assert report.code == 0
    assert report.status("proc") == "warn"
    assert "hidepid=" in report.text("proc")


def test_short_queue(tmp_path: Path) -> None:
    before = [*in_namespace("-n"), "sh", "-c", 'echo 100 > /proc/sys/net/core/somaxconn && exec "$@"', "sh"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("somaxconn cannot be set here")
    report = quick(*before, cwd=tmp_path)
    assert report.code == 0
    assert report.status("queue") == "warn"
    assert "room for 101 waiters" in report.text("queue")
    assert "somaxconn is 100" in report.text("queue")


# Sandboxes: limits and environment ----------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "code"), [(64, 0), (6, 1)])
def test_few_descriptors(limit: int, code: int, tmp_path: Path) -> None:
    """With 6 there is hardly room for Python itself, and the checks must say so and not blame a sandbox."""

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    report = quick(cwd=tmp_path, preexec_fn=restrict)
    assert report.code == code
    assert report.status("descriptors") == "warn"
    if code:
        assert "Too many open files" in report.text("lock")
        assert report.status("rights") == "unknown"
        assert "EMFILE" in report.text("rights")


def test_enough_descriptors(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1024:
        pytest.skip("we may not have enough")

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    assert quick(cwd=tmp_path, preexec_fn=allow).status("descriptors") == "ok"


def test_no_processes(public_dir: Path) -> None:
    """Where none can be started the checks are made all the same, and nothing is measured."""
    code = f"""{Child.PREAMBLE}{UNPRIVILEGED}
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    if os.fork() == 0: os._exit(0)
    print("cannot: RLIMIT_NPROC does not keep this user from starting processes", flush=True)
    sys.exit()
except BlockingIOError:
    pass
sys.exit(main(["doctor", "--json"]))
"""
    done = run(sys.executable, "-c", code, cwd=public_dir)
    if done.stdout.startswith("cannot:"):
        pytest.skip(done.stdout.strip())
    report = Report(done)
    assert report.code == 0
    assert "no thread can be started" in report.text("lock")
    assert [case["case"] for case in report.object["measured"]] == CASES
    assert all(case["n"] == 0 and "unavailable" in case["reason"] for case in report.object["measured"])


@pytest.mark.parametrize(
    ("scope", "status", "says"),
    [("blue", "ok", "'blue'"), ("a/b", "bad", "a scope is"), ("\udcff\x1b", "ok", "udcff"), ("", "ok", "not set")],
)
def test_scope(scope: str, status: str, says: str, tmp_path: Path) -> None:
    report = quick(cwd=tmp_path, env={"PIDABS_SCOPE": scope})
    assert report.status("environment") == status
    assert says in report.text("environment")
    assert report.code == (status == "bad")
    shown = run(*DOCTOR, "--quick", cwd=tmp_path, env={"PIDABS_SCOPE": scope, "LC_ALL": "C"}).stdout
    assert shown.isascii()
    assert "\033" not in shown


# Kernel bugs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ((5, 10, 215), ["CVE-2024-26923"]),
        ((5, 10, 216), []),
        ((6, 1, 79), ["CVE-2024-26923", "CVE-2024-26780"]),
        ((6, 1, 87), []),
        ((6, 6, 100), ["CVE-2025-40214", "CVE-2026-23394"]),
        ((6, 8, 6), ["CVE-2024-26923"]),
        ((6, 9, 0), []),
        ((6, 12, 59), ["CVE-2026-23394"]),
        ((6, 17, 8), ["CVE-2025-40214", "CVE-2026-23394"]),
        ((6, 18, 22), ["CVE-2026-23394"]),
        ((6, 18, 23), []),
        ((7, 0, 0), []),
    ],
)
def test_bugs(version: tuple[int, int, int], found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [bug.partition(" ")[0] for bug in _doctor_host.bugs_of(version)] == found
    monkeypatch.setattr(_doctor_host, "kernel_version", lambda: version)
    finding = _doctor_host.bugs()
    assert finding.status == ("warn" if found else "ok")
    assert "going by its number" in finding.found
    assert ("backports" in finding.found) == bool(found)


@pytest.mark.parametrize(
    ("release", "build", "signature", "version"),
    [
        ("6.18.44-fc-v669", "#1 SMP", None, (6, 18, 44)),
        ("5.10.0-28-amd64", "#1 SMP Debian 5.10.209-2 (2024-01-31)", None, (5, 10, 209)),
        ("5.15.0-105-generic", "#115-Ubuntu SMP", "Ubuntu 5.15.0-105.115-generic 5.15.148", (5, 15, 148)),
        ("6.9-rc1", "#1", None, (6, 9, 0)),
        ("7.0.0", "#1", None, (7, 0, 0)),
    ],
)
def test_kernel_version(
    release: str, build: str, signature: str | None, version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.uname_result(("Linux", "host", release, build, "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: name)
    monkeypatch.setattr(_doctor_finding, "text", lambda path: signature)
    assert _doctor_finding.kernel_version() == version


# Measuring ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A whole run, once for all that look at it."""
    directory = tmp_path_factory.mktemp("measured")
    plot = ["--plot", "times.svg"] if find_spec("matplotlib") else []
    return Report(run(*DOCTOR, "--json", *plot, cwd=directory)), directory / "times.svg"


def test_figures_are_sane(measured: tuple[Report, Path]) -> None:
    report, _ = measured
    assert report.code == 0
    assert [case["case"] for case in report.object["measured"]] == CASES
    for case in report.object["measured"]:
        assert case["n"] > 0, case["reason"]
        assert list(case) == ["case", "title", "n", "p50_ms", "p99_ms", "max_ms"]
        assert 0 < case["p50_ms"] <= case["p99_ms"] <= case["max_ms"]
    assert report.object["handoff_to_flock"] > 0


def test_schema_is_documented(measured: tuple[Report, Path]) -> None:
    report, _ = measured
    text = DOCS.read_text(encoding="utf-8").partition("## pidabs doctor")[2].partition("\n## ")[0]
    words = set(report.object) | set(report.object["checks"][0]) | set(report.object["measured"][0]) | {"reason"}
    for word in words | set(IDS) | set(CASES) | {"system"}:
        assert f"`{word}`" in text, word


def test_plot(measured: tuple[Report, Path]) -> None:
    report, path = measured
    if not find_spec("matplotlib"):
        pytest.skip("matplotlib is not installed")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = "\n".join(root.itertext())
    for case in report.object["measured"]:
        assert f"{case['title']} (n={case['n']}, p50 " in shown
    assert report.object["host"] in shown


@pytest.mark.parametrize(
    ("times", "p50", "p99"),
    [([5.0], 5.0, 5.0), ([2.0, 1.0], 1.0, 2.0), ([float(n) for n in range(1, 201)], 100.0, 198.0)],
)
def test_quantiles(times: list[float], p50: float, p99: float) -> None:
    case = Measured("case", "title", times)
    assert (case.quantile(0.5), case.quantile(0.99)) == (p50, p99)


# What is asked for, and cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--plot", "no-such-dir/x.svg"], 1, "no-such-dir"),
        (["--plot", "x.png"], 2, ".svg"),
        (["--plot", "x.svg", "--quick"], 2, "--quick"),
    ],
)
@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")
def test_plot_that_cannot_be_is_found_before_measuring(
    arguments: list[str], code: int, says: str, tmp_path: Path
) -> None:
    done = run(*DOCTOR, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("pidabs: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_plot_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["doctor", "--plot", str(tmp_path / "x.svg")]) == 69
    shown = capfd.readouterr()
    assert shown.out == ""
    assert 'pip install "pidabs[plot]"' in shown.err
    assert list(tmp_path.iterdir()) == []


def test_something_is_measured_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it was suspended meanwhile."""
    monkeypatch.setattr(_doctor_measure, "_HANDING", 0.0)
    with Workshop() as shop:
        assert len(_doctor_measure._kills(shop, lambda: None, seconds=0.0)) == 1
        assert all(case.times for case in _doctor_measure._handoffs(shop))


# However it ends ----------------------------------------------------------------------------------------------


def test_children_are_reaped_though_that_is_ignored(tmp_path: Path) -> None:
    report = quick(cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None)
    assert report.code == 0


class Running:
    """A doctor that measures, marked in its environment, so that all processes it starts can be found."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self._mark = f"TEST_MARK={uuid.uuid4().hex}"
        key, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            [*DOCTOR, *arguments],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path), key: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )

    def read_until(self, text: bytes) -> None:
        assert self.process.stdout is not None
        shown = b""
        while text not in shown:
            ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
            data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert data, f"no {text!r} in {shown.decode()}"
            shown += data

    def pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self._mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # gone, or not ours
                pass
        return found

    def finish(self) -> str:
        """Wait for its end and for that of all that it started: what it said on stderr."""
        _, errors = self.process.communicate(timeout=DEADLINE)
        wait_until(lambda: not self.pids(), "what it started is still there")
        return errors.decode()


MOMENTS = [b"a real lock", b"Until the next holder", b"reaped at once", b"16 threads", b"heap of"]
"""What it says last, before it checks, or measures the next case."""


@pytest.mark.parametrize(
    ("moment", "sig"),
    [*((moment, signal.SIGINT) for moment in MOMENTS), (MOMENTS[0], signal.SIGTERM), (MOMENTS[2], signal.SIGHUP)],
    ids=str,
)
def test_interrupted(moment: bytes, sig: signal.Signals, tmp_path: Path) -> None:
    running = Running(tmp_path)
    try:
        running.read_until(moment)
        time.sleep(0.05)  # into what comes next
        running.process.send_signal(sig)
        errors = running.finish()
    finally:
        running.process.kill()
    assert running.process.returncode == 128 + sig
    assert errors == f"pidabs: ended by {sig.name}; everything it started is gone\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", [MOMENTS[1], MOMENTS[-1]], ids=bytes.decode)
def test_killed(moment: bytes, tmp_path: Path) -> None:
    """Nothing can be cleaned up then; what it started ends by itself."""
    running = Running(tmp_path)
    running.read_until(moment)
    time.sleep(0.05)
    running.process.kill()
    running.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")
@pytest.mark.parametrize("before", [None, "what was there"])
def test_plot_of_an_interrupted_run(before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    if before is not None:
        path.write_text(before)
    running = Running(tmp_path, "--plot", str(path))
    try:
        running.read_until(b"reaped at once")
        running.process.send_signal(signal.SIGTERM)
        running.finish()
    finally:
        running.process.kill()
    assert running.process.returncode == 128 + signal.SIGTERM
    assert (path.read_text() if path.exists() else None) == before


def test_reader_that_has_seen_enough(tmp_path: Path) -> None:
    running = Running(tmp_path)
    assert running.process.stdout is not None
    running.read_until(b"Until the next holder")
    running.process.stdout.close()
    assert running.process.stderr is not None
    assert running.process.wait(DEADLINE) == 128 + signal.SIGPIPE
    assert running.process.stderr.read() == b""
    running.process.stderr.close()
    wait_until(lambda: not running.pids(), "what it started is still there")
