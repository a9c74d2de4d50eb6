"""What the tests share: children that talk, waits with a deadline, and the assertion that something still blocks."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import platform
import select
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pidabs import _diag

T = TypeVar("T")

DEADLINE = 20.0
"""Seconds after which a condition that a test waits for counts as never."""

STILL_BLOCKED_AFTER = 0.15
"""Seconds after which something that has not happened counts as blocked."""

PATIENCE = {"SOON": 5.0, "_RELEASE_TIME": 10.0, "_JOIN_TIME": 5.0}
"""Seconds that the releases of a test and of its children give a waiter, in place of the constants of _handover.

On a busy machine 20 ms may pass before a waiter runs; then it is skipped, rightly, and comes back at the queue's end.
"""


def wait_until(condition: Callable[[], T], what: str = "", deadline: float = DEADLINE) -> T:
    """Poll until `condition` is true and return its value; fail past the deadline."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what or condition}")
        time.sleep(0.002)


def must_block(function: Callable[[], T]) -> Callable[[], T]:
    """Start `function` in a thread, assert that it blocks, and return a function that waits for its result."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((True, function()))
        except BaseException as exc:
            result.append((False, exc))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(STILL_BLOCKED_AFTER)
    assert thread.is_alive(), f"did not block: {result}"

    def finish() -> T:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "still blocked"
        ok, value = result[0]
        if not ok:
            raise value
        returned: T = value
        return returned

    return finish


class Child:
    """A Python process of ours that runs `code`; it prints lines, we `expect` them, and `tell` it to go on.

    In `code`, `say(text)` prints a line and `listen()` blocks until the test tells it something.  It runs with -P in an
    empty directory, so that it imports the installed pidabs as a user's program would.
    """

    PREAMBLE = textwrap.dedent(
        r"""
        import os, select, sys
        def say(*words): os.write(1, (" ".join(map(str, words)) + "\n").encode())  # by signal handlers, too
        def listen():
            line = b""
            while not line.endswith(b"\n"):
                # Never asleep for long: a signal that comes just before a read(2) is handled only when that is over.
                while not select.select([sys.stdin], [], [], 0.05)[0]:
                    pass
                byte = os.read(sys.stdin.fileno(), 1)
                if not byte:
                    break
                line += byte
            return line.decode().strip()
        """
    )
    patience = ""
    """Code before any other."""

    def __init__(self, code: str, cwd: Path | str = "/", args: tuple[str, ...] = (), **kwargs: Any) -> None:
        environment = {**os.environ, **kwargs.pop("env", {})}
        self.process = subprocess.Popen(
            [sys.executable, *_SAFE_PATH, "-c", self.PREAMBLE + self.patience + textwrap.dedent(code), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=kwargs.pop("stderr", None),
            cwd=cwd,
            env=environment,
            **kwargs,
        )
        self._pending = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def read_line(self, deadline: float = DEADLINE) -> str:
        """The next line it prints; fails past the deadline or when it has ended."""
        assert self.process.stdout is not None
        end = time.monotonic() + deadline
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not data:
                raise AssertionError(
                    f"child {self.pid} {'ended' if ready else 'said nothing'}; so far {self._pending!r}"
                )
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def expect(self, text: str) -> None:
        line = self.read_line()
        assert line == text, line

    def says_nothing(self, seconds: float = STILL_BLOCKED_AFTER) -> bool:
        """Whether it prints nothing for so long."""
        assert self.process.stdout is not None
        return not self._pending and not select.select([self.process.stdout], [], [], seconds)[0]

    def tell(self, text: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def signal(self, sig: int) -> None:
        self.process.send_signal(sig)

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


_SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()


@contextmanager
def child(code: str, **kwargs: Any) -> Iterator[Child]:
    """A Child that is killed and reaped at the end, whatever happens."""
    process = Child(code, **kwargs)
    try:
        yield process
    finally:
        process.close()


HOLD = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    lock.acquire()
    say("held")
    listen()
    lock.release()
    say("released")
"""
"""Child code: take the lock named by the first argument, say so, release it when told."""


MADE = """
    import importlib, lockfile
    module, _, cls = sys.argv[1].partition(":")
    lock = getattr(importlib.import_module(module), cls)(sys.argv[2])
"""
"""Child code: make a lock of the class that the first argument specifies; the second is its path."""

TAKEN = MADE + "    lock.acquire()\n"
"""Child code: make it and take it."""


def spec(cls: type) -> str:
    """The class for a child's command line, and for a test's id."""
    return f"{cls.__module__}:{cls.__qualname__}"


def raised(function: Callable[..., Any], *args: Any) -> tuple[type[BaseException], Any]:
    """What it raises: the class and its arguments."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function(*args)
    return type(caught.value), caught.value.args


HOLD_PIDFILE = (
    TAKEN
    + """
    say("held")
    listen()
    lock.release()
    say("released")
"""
)
"""The same for a PIDLockFile: the class as MODULE:NAME, and its path."""

SECCOMP = """
    import ctypes, struct

    def deny(call, number):
        '''From now on this call fails with this errno: "socket" of AF_UNIX, "netlink" (another), "bind", "shutdown".'''
        calls = {"x86_64": (0xC000003E, 41, 49, 48), "aarch64": (0xC00000B7, 198, 200, 210)}[os.uname().machine]
        arch, socket, bind, shutdown = calls
        AF_UNIX, AF_NETLINK = 1, 16
        found, family = {
            "socket": (socket, AF_UNIX), "netlink": (socket, AF_NETLINK),
            "bind": (bind, None), "shutdown": (shutdown, None),
        }[call]
        load, equal, leave = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
        allow, refuse = (leave, 0, 0, 0x7FFF0000), (leave, 0, 0, 0x00050000 | number)
        if family is not None:
            checks = [(load, 0, 0, 0), (equal, 0, 3, found), (load, 0, 0, 16), (equal, 0, 1, family)]
        else:
            checks = [(load, 0, 0, 0), (equal, 0, 1, found)]
        program = [(load, 0, 0, 4), (equal, 1, 0, arch), allow, *checks, refuse, allow]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
        header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
        no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
        if prctl(no_new_privileges, 1, None, 0, 0) or prctl(set_seccomp, filter_mode, header, 0, 0):
            say("no seccomp")
            sys.exit()
"""
"""Child code: a filter of system calls.  It says "no seccomp" and ends where it cannot have one."""

_KNOWN_MACHINE = platform.machine() in ("x86_64", "aarch64")
has_seccomp = pytest.mark.skipif(not _KNOWN_MACHINE, reason="the filter knows the calls of x86_64 and aarch64")

LANDLOCK = """
    import ctypes, struct
    def restrict(files=0, scoped=0):
        libc = ctypes.CDLL(None, use_errno=True)
        rules = ctypes.create_string_buffer(struct.pack("=QQQ", files, 0, scoped))
        fd = libc.syscall(444, rules, ctypes.c_size_t(24), 0)
        assert fd >= 0 and libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, fd, 0) == 0, ctypes.get_errno()
        os.close(fd)
    MAKE_FILE, SCOPE_SOCKETS, SCOPE_SIGNALS = 1 << 8, 1, 2
"""
"""Child code: `restrict` denies this to the process from now on."""


def _landlock_version() -> int:
    create_ruleset, ask_version = 444, 1
    call = ctypes.CDLL(None, use_errno=True).syscall
    return call(create_ruleset, None, ctypes.c_size_t(0), ask_version) if _KNOWN_MACHINE else 0


has_scopes = pytest.mark.skipif(_landlock_version() < 6, reason="this kernel has no Landlock scopes (Linux 6.12)")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

UNPRIVILEGED = 12345
"""A uid and gid that nobody has."""

BECOME_UNPRIVILEGED = f"""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid({UNPRIVILEGED})
        os.setuid({UNPRIVILEGED})
"""
"""Child code: root may do what it is denied.  Import everything first, the library may be root's own."""


def in_namespace(*flags: str) -> list[str]:
    """The words that run a program in namespaces of its own; skips the test where that is denied."""
    command = ["unshare", *flags, "--"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip(f"{' '.join(command)} is denied here")
    return command


def run_in(command: list[str], code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `code`, as a Child would, behind the words of `in_namespace`, and wait for its end."""
    return subprocess.run(
        [*command, sys.executable, *_SAFE_PATH, "-c", Child.PREAMBLE + textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )


def state(pid: int) -> str:
    """As in /proc/PID/stat; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def cpu_time(pid: int) -> float:
    """Seconds that a process has run, to the hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> int:
    """How often a process has gone to sleep.  Waits until it sleeps."""
    wait_until(lambda: state(pid) == "S", "asleep")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def address(name: str) -> bytes:
    """Of a lock with a plain name."""
    return b"\0pidabs:" + name.encode()


def inode(name: str) -> int | None:
    """Of the socket that is the lock; None if it is free."""
    listed = _diag.find(address(name))
    return listed.inode if listed else None


def queued(name: str) -> int:
    """Entries in the lock's queue, dead ones included."""
    listed = _diag.find(address(name))
    return listed.queued if listed else 0


def flocked(path: Path) -> bool:
    """Whether another open file has `path` locked with flock(2)."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def open_descriptors(settled: bool = False) -> set[str]:
    """What this process has open: 'number -> file'.

    If `settled`, without what earlier tests have left as garbage, which may go at any moment.
    """
    if settled:
        gc.collect()
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} -> {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            pass  # the listing's own
    return found


def needs(*programs: str, files: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Skips a test unless these programs and files are installed.

    Under tox that is one environment's matter: `companions`, which installs them, so there it is an error.
    """
    environment = os.environ.get("TOX_ENV_NAME", "")
    if environment not in ("", "companions"):
        return pytest.mark.skip(reason="tox -e companions runs it")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    missing += [file for file in files if not os.path.exists(file)]
    reason = f"not installed: {', '.join(missing)}; tests/install-tools.sh installs all of it"
    if missing and environment:
        raise AssertionError(reason)
    return pytest.mark.skipif(bool(missing), reason=reason)
