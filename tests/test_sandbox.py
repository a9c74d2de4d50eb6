"""Namespaces and sandboxes: what still holds where processes see each other only in part, or may do less than usual.

Every sandbox is a real one; a test is skipped where the kernel or our own sandbox does not let us make it.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import (
    BECOME_UNPRIVILEGED,
    DEADLINE,
    HOLD,
    LANDLOCK,
    SECCOMP,
    UNPRIVILEGED,
    Child,
    address,
    child,
    has_scopes,
    has_seccomp,
    in_namespace,
    inode,
    queued,
    wait_until,
)

import pidabs


def may(code: str) -> bool:
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


can_change_root = pytest.mark.skipif(not may("import os; os.chroot('/')"), reason="may not change the root directory")
can_change_user = pytest.mark.skipif(
    not may(f"import os; os.setuid({UNPRIVILEGED})"), reason="may not become another user"
)

WAIT = (
    """
    import pidabs
    say("asks")
"""
    + HOLD
    + "    listen()\n"
)


class Contained(Child):
    """A Child behind the words of `in_namespace`."""

    def __init__(self, command: list[str], code: str, *args: str) -> None:
        super().__init__(
            f"""
            import subprocess
            sys.exit(subprocess.call({command!r} + [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]))
            """,
            args=(Child.PREAMBLE + textwrap.dedent(code), *args),
        )


@contextmanager
def contained(command: list[str], code: str, *args: str) -> Iterator[Contained]:
    process = Contained(command, code, *args)
    try:
        yield process
    finally:
        assert process.process.stdin is not None
        process.process.stdin.close()  # listen() returns: what is inside ends by itself, and is not left behind
        try:
            process.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            pass
        process.process.stdin = None
        process.close()


@contextmanager
def queueing(name: str, process: Child, before: int) -> Iterator[Child]:
    process.expect("asks")
    wait_until(lambda: queued(name) == before + 1, "the waiter to be in the queue")
    yield process


# Namespaces ---------------------------------------------------------------------------------------------------

PID = ["--pid", "--fork", "--mount-proc"]
NAMESPACES = {
    "pid": PID,
    "mount": ["--mount"],
    "user, mapped": ["--user", "--map-root-user"],
    "user, mapped, and pid": ["--user", "--map-root-user", *PID],
    "time": ["--time", "--fork"],
    "ipc, uts and cgroup": ["--ipc", "--uts", "--cgroup"],
}


@pytest.mark.parametrize("flags", NAMESPACES.values(), ids=NAMESPACES.keys())
def test_one_queue_for_all_namespaces_of_one_network(name: str, flags: list[str]) -> None:
    """Us, one inside, another in a sibling, us again: in the order they came, and the socket stays the same."""
    command = in_namespace(*flags)
    lock = pidabs.Lock(name).acquire()
    first = inode(name)
    with (
        contained(command, WAIT, name) as inside,
        queueing(name, inside, 0),
        contained(command, WAIT, name) as sibling,
        queueing(name, sibling, 1),
        child(WAIT, args=(name,)) as outside,
        queueing(name, outside, 2),
    ):
        lock.release()
        for process in (inside, sibling, outside):
            process.expect("held")
            assert inode(name) == first
            process.tell()
            process.expect("released")
    assert not lock.locked()


def test_processes_without_a_uid_exclude_each_other(name: str) -> None:
    """In a user namespace without a map all are 65534: nobody is granted, everybody has the lock once it is free."""
    command = in_namespace("--user")
    code = "import os; say(os.geteuid())\n" + textwrap.dedent(WAIT)
    with contained(command, code, name) as holder, contained(command, code, name) as waiter:
        for process in (holder, waiter):
            assert process.read_line() != "0"
        lines = {holder.read_line(), waiter.read_line()}
        assert lines == {"asks"}
        first = wait_until(lambda: next((one for one in (holder, waiter) if not one.says_nothing(0)), None))
        second = waiter if first is holder else holder
        first.expect("held")
        assert second.says_nothing()
        first.tell()
        first.expect("released")
        second.expect("held")
        second.tell()
        second.expect("released")


def test_other_network_namespaces_do_not_exclude(name: str) -> None:
    """The one thing that a lock file does better."""
    with pidabs.Lock(name), contained(in_namespace("--net"), WAIT, name) as other:
        other.expect("asks")
        other.expect("held")


def test_holder_that_leaves_its_network_namespace_keeps_the_lock(name: str) -> None:
    """The lock stays where it was taken, and is handed on there."""
    code = """
    import ctypes, pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say("held")
    listen()
    if ctypes.CDLL(None).unshare(0x40000000): say("denied")
    say(lock.held, lock.locked(), lock.holder().pid == os.getpid(), pidabs.Lock(sys.argv[1]).locked())
    with pidabs.Lock(sys.argv[1]): say("another of the same name")
    lock.release()
    say("released")
    """
    with child(code, args=(name,)) as holder:
        holder.expect("held")
        with child(WAIT, args=(name,)) as waiter, queueing(name, waiter, 0):
            first = inode(name)
            holder.tell()
            line = holder.read_line()
            if line == "denied":
                pytest.skip("may not make a network namespace")
            assert line == "True True True False"
            holder.expect("another of the same name")
            holder.expect("released")
            waiter.expect("held")
            assert inode(name) == first


def test_path_that_another_container_uses_collides_and_says_so(name: str, tmp_path: Path) -> None:
    """It fails closed, and the error names the way out."""
    path = str(tmp_path / name)
    with contained(in_namespace("--mount"), WAIT, path) as container:
        container.expect("asks")
        container.expect("held")
        with pytest.raises(pidabs.Timeout, match=r"in another container it seems: .* set PIDABS_SCOPE"):
            pidabs.Lock(path).acquire(0)
        pidabs.Lock(path, scope="host").acquire(0).release()


# A smaller world ----------------------------------------------------------------------------------------------

EVERYTHING = """
    def everything(name):
        '''Use all of the API, as a process that can do so little can.'''
        lock = pidabs.Lock(name)
        for attempt in (lambda: lock.acquire(0), lambda: lock.acquire(0.05)):
            try: attempt()
            except pidabs.Timeout as exc:
                say("timeout", exc.holder.pid is not None, exc.holder.uid, "held by " in str(exc))
        say(lock.locked(), name in [one.name for one in pidabs.list_locks()], lock.waiters() >= 0)
        say(pidabs.holder(name).wait(0))
        try: lock.acquire(cancel_check=stop)
        except KeyboardInterrupt: say("interrupted", lock.held)
        say("asks")
        lock.acquire()
        say("held", lock.holder().pid == os.getpid())
        listen()
        if os.fork() == 0: os._exit(lock.held)
        say(os.wait()[1])
        lock.release()
        say("released")
        long = pidabs.Lock("x" * 200 + name)
        with long: say("long", long.locked())
        listen()

    def stop(): raise KeyboardInterrupt
"""


def everything_works(name: str, prepare: str, command: list[str] | None = None, args: tuple[str, ...] = ()) -> None:
    """A process that has prepared its sandbox, in the queue between two of ours."""
    code = "    import ctypes, pidabs\n" + EVERYTHING + prepare + "\n    say('ready')\n    everything(sys.argv[1])\n"
    with child(HOLD, args=(name,)) as holder, ExitStack() as stack:
        holder.expect("held")
        if command is None:
            process: Child = stack.enter_context(child(code, args=(name, *args)))
        else:
            process = stack.enter_context(contained(command, code, name, *args))
        line = process.read_line()
        if line != "ready":
            pytest.skip(f"cannot make this sandbox: {line}")
        for _ in range(2):
            process.expect(f"timeout True {os.getuid()} True")
        process.expect("True True True")
        process.expect("False")
        process.expect("interrupted False")
        process.expect("asks")
        wait_until(lambda: pidabs.Lock(name).waiters() == 1)
        with child(WAIT, args=(name,)) as behind:
            behind.expect("asks")
            wait_until(lambda: pidabs.Lock(name).waiters() == 2)
            first = inode(name)
            holder.tell()
            process.expect("held True")
            assert behind.says_nothing()
            process.tell()
            process.expect("0")
            process.expect("released")
            process.expect("long True")
            behind.expect("held")
            assert inode(name) == first


def test_everything_works_without_a_sandbox(name: str) -> None:
    everything_works(name, "")


@can_change_root
def test_in_a_chroot_with_nothing_in_it(name: str, tmp_path: Path) -> None:
    """No /proc, no library to import from: a daemon that has been there for long."""
    everything_works(name, "    os.chroot(sys.argv[2]); os.chdir('/')", args=(str(tmp_path),))


@can_change_root
def test_in_a_chroot_paths_are_as_seen_from_there(name: str, tmp_path: Path) -> None:
    code = """
    import pidabs
    os.chroot(sys.argv[1]); os.chdir("/")
    lock = pidabs.Lock(sys.argv[2], mirror=True).acquire()
    say("held")
    listen()
    lock.release()
    """
    with child(code, args=(str(tmp_path), f"/{name}")) as process:
        process.expect("held")
        assert (tmp_path / name).read_text(encoding="ascii") == f"{process.pid}\n"
        with pytest.raises(pidabs.Timeout, match=f"held by pid {process.pid} "):
            pidabs.Lock(f"/{name}").acquire(0)
        process.tell()
        assert process.wait() == 0
        assert os.listdir(tmp_path) == []


MOUNT = """
    def mount(what, where, kind, flags=0, options=b""):
        return ctypes.CDLL(None).mount(what, where, kind, flags, options)
"""


def test_without_proc(name: str) -> None:
    prepare = MOUNT + "    if mount(b'none', b'/proc', b'tmpfs'): say('may not mount'); sys.exit()"
    everything_works(name, prepare, in_namespace("--mount"))


def test_with_only_processes_in_proc(name: str) -> None:
    """subset=pid: no /proc/net, no /proc/sys."""
    prepare = (
        MOUNT + "    if mount(b'proc', b'/proc', b'proc', 0, b'subset=pid'): say('may not mount'); sys.exit()\n"
        "    assert not os.path.exists('/proc/net/unix')"
    )
    everything_works(name, prepare, in_namespace("--mount"))


@can_change_user
@pytest.mark.parametrize("mode", [b"hidepid=1", b"hidepid=2", b"hidepid=4"])
def test_where_processes_of_others_are_hidden(name: str, mode: bytes) -> None:
    """The kernel still says who holds the lock, since it is asked and not /proc; but not what that runs."""
    code = (
        "    import ctypes, pidabs\n"
        + MOUNT
        + f"""
    if mount(b"proc", b"/proc", b"proc", 0, {mode!r}): say("may not mount"); sys.exit()
    """
        + BECOME_UNPRIVILEGED
        + """
    say("ready")
    lock = pidabs.Lock(sys.argv[1])
    try: lock.acquire(0.05)
    except pidabs.Timeout as exc: say(exc.holder.pid, exc.holder.uid, exc.holder.command, str(exc).endswith("(uid 0)"))
    try: pidabs.holder(sys.argv[1]).send_signal(9)
    except PermissionError: say("not permitted")
    say(pidabs.holder(sys.argv[1]).wait(0))
    lock.acquire()
    say("held", lock.holder().pid == os.getpid())
    """
    )
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with contained(in_namespace("--mount"), code, name) as process:
            line = process.read_line()
            if line != "ready":
                pytest.skip(f"no {mode.decode()} here: {line}")
            process.expect(f"{holder.pid} 0 None True")
            process.expect("not permitted")
            process.expect("False")
            holder.tell()
            process.expect("held True")


# Filters of system calls --------------------------------------------------------------------------------------


@has_seccomp
@pytest.mark.parametrize("number", [1, 13, 97], ids=["EPERM", "EACCES", "EAFNOSUPPORT"])
def test_netlink_is_denied(name: str, number: int) -> None:
    """/proc/net/unix says the rest."""
    everything_works(name, SECCOMP + f"    deny('netlink', {number})")


@has_seccomp
def test_netlink_is_denied_and_the_queue_full(name: str) -> None:
    """Who holds it cannot be told for certain, so it is told that somebody does."""
    code = (
        "    import pidabs\n"
        + SECCOMP
        + """
    deny("netlink", 1)
    try: pidabs.Lock(sys.argv[1]).acquire(0.05)
    except pidabs.Timeout as exc: say(exc.holder.pid, exc)
    say("end")
    """
    )
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as only:
        sock.bind(address(name))
        sock.listen(0)
        only.connect(sock.getsockname())
        with child(code, args=(name,)) as process:
            line = process.read_line()
            if line == "no seccomp":
                pytest.skip("no seccomp filters here")
            assert line.startswith("None cannot acquire lock ")
            assert line.endswith("held by a process that is not visible from here")
            process.expect("end")


@has_seccomp
def test_neither_netlink_nor_proc_net(name: str) -> None:
    """Then nothing can be listed, which is an error and not an empty list; locking is as ever."""
    code = (
        "    import ctypes, pidabs\n"
        + MOUNT
        + SECCOMP
        + """
    if mount(b"proc", b"/proc", b"proc", 0, b"subset=pid"): say("may not mount"); sys.exit()
    deny("netlink", 1)
    lock = pidabs.Lock(sys.argv[1])
    for ask in (pidabs.list_locks, lock.locked, lock.waiters):
        try: ask()
        except PermissionError: say("cannot be asked")
    try: lock.acquire(0.05)
    except pidabs.Timeout as exc: say(exc)
    say("asks")
    lock.acquire()
    say("held", lock.locked())
    listen()
    lock.release()
    say("released")
    try: say(pidabs.holder(sys.argv[1]))
    except PermissionError: say("cannot be asked")
    """
    )
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with contained(in_namespace("--mount"), code, name) as process:
            line = process.read_line()
            if line in ("may not mount", "no seccomp"):
                pytest.skip(line)
            assert line == "cannot be asked"
            process.expect("cannot be asked")
            process.expect("cannot be asked")
            assert f"held by pid {holder.pid} " in process.read_line()
            process.expect("asks")
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            holder.tell()
            process.expect("held True")
            process.tell()
            process.expect("released")
            process.expect("cannot be asked")


@has_seccomp
def test_giving_up_where_shutdown_is_denied(name: str) -> None:
    """Without it the end never comes that giving up reads for: it must not read for ever."""
    code = (
        "    import pidabs\n"
        + SECCOMP
        + """
    deny("shutdown", 1)
    lock = pidabs.Lock(sys.argv[1])
    for _ in range(3):
        try: lock.acquire(0.05)
        except pidabs.Timeout: say("timeout")
    lock.acquire()
    say("held")
    """
    )
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with child(code, args=(name,)) as process:
            line = process.read_line()
            if line == "no seccomp":
                pytest.skip("no seccomp filters here")
            assert line == "timeout"
            process.expect("timeout")
            process.expect("timeout")
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            holder.tell()
            process.expect("held")


# Landlock -----------------------------------------------------------------------------------------------------


@has_scopes
def test_landlock_that_denies_signals(name: str) -> None:
    code = (
        "    import pidabs\n"
        + LANDLOCK
        + """
    restrict(scoped=SCOPE_SIGNALS)
    holder = pidabs.holder(sys.argv[1])
    for act in (lambda: holder.send_signal(9), lambda: holder.terminate(0, kill=True)):
        try: act()
        except PermissionError: say("not permitted")
    say(holder.wait(0))
    """
    )
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with child(code, args=(name,)) as process:
            process.expect("not permitted")
            process.expect("not permitted")
            process.expect("False")
        assert holder.process.poll() is None


@has_scopes
def test_landlock_holder_hands_on_to_those_outside(name: str) -> None:
    """What is denied to it is to connect, and it is they who connect."""
    code = "    import pidabs\n" + LANDLOCK + "    restrict(scoped=SCOPE_SOCKETS | SCOPE_SIGNALS)\n" + WAIT
    with child(code, args=(name,)) as holder:
        holder.expect("asks")
        holder.expect("held")
        first = inode(name)
        with child(WAIT, args=(name,)) as waiter, queueing(name, waiter, 0):
            holder.tell()
            waiter.expect("held")
            assert inode(name) == first


@has_scopes
def test_landlock_that_denies_the_mirror(tmp_path: Path) -> None:
    code = (
        "    import pidabs\n"
        + LANDLOCK
        + """
    restrict(files=MAKE_FILE)
    lock = pidabs.Lock(sys.argv[1], mirror=True)
    try: lock.acquire()
    except pidabs.MirrorError as exc: say(exc.__cause__.errno, lock.held, lock.locked())
    """
    )
    with child(code, args=(str(tmp_path / "x.pid"),)) as process:
        process.expect("13 False False")
    assert os.listdir(tmp_path) == []


# Limits -------------------------------------------------------------------------------------------------------


def test_no_descriptor_left(tmp_path: Path) -> None:
    """Each call says so, nothing is held or left behind, and what needs none works."""
    code = """
    import pidabs, resource
    name, free_name = sys.argv[1], sys.argv[1] + "-free"
    mirrored, lock, free = pidabs.Lock(free_name, mirror=True), pidabs.Lock(name), pidabs.Lock(free_name)
    error = None
    try: lock.acquire(0)
    except pidabs.Timeout as exc: error = exc
    next_free = os.dup(0); os.close(next_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    def limit(count): resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    limit(next_free)
    for call in (lambda: lock.acquire(0), lambda: lock.acquire(0.1), free.acquire, lock.locked, pidabs.list_locks,
                 lock.waiters, lambda: pidabs.holder(name)):
        try: call()
        except OSError as exc: say(exc.errno)
    say(error)
    limit(next_free + 1)  # enough for the lock, and not for its mirror
    try: mirrored.acquire()
    except pidabs.MirrorError as exc: say(exc.__cause__.errno, mirrored.held)
    free.acquire().release()
    limit(soft)
    say(free.locked(), lock.locked(), os.listdir(os.path.dirname(name)))
    """
    path = str(tmp_path / "x")
    with child(HOLD, args=(path,)) as holder:
        holder.expect("held")
        with child(code, args=(path,)) as process:
            for _ in range(7):
                process.expect("24")
            assert "it is held, and who holds it cannot be asked" in process.read_line()
            process.expect("24 False")
            process.expect("False True []")


# Where the mirror cannot be written ---------------------------------------------------------------------------

READ_ONLY = (
    "    import ctypes, errno, pidabs, warnings\n"
    + MOUNT
    + """
    MS_RDONLY, MS_REMOUNT = 1, 32
    directory = sys.argv[1].encode()
    path = sys.argv[1] + "/x.pid"
    if mount(b"none", directory, b"tmpfs"): say("may not mount"); sys.exit()
    def read_only(yes): assert not mount(b"none", directory, None, MS_REMOUNT | (MS_RDONLY if yes else 0))
    lock = pidabs.Lock(path, mirror=True)
"""
)


def in_a_mount(code: str, tmp_path: Path) -> list[str]:
    """What code says that runs with a file system of its own at `tmp_path`."""
    with contained(in_namespace("--mount"), READ_ONLY + code.rstrip() + "\n    say('end')", str(tmp_path)) as process:
        lines = [process.read_line()]
        if lines == ["may not mount"]:
            pytest.skip("may not mount a file system")
        while lines[-1] != "end":
            lines.append(process.read_line())
    return lines[:-1]


@pytest.mark.parametrize("proc", [True, False], ids=["", "and no /proc"])
def test_file_system_that_is_read_only(tmp_path: Path, proc: bool) -> None:
    """The error is that of the file, also where /proc is not there to look for what may have been opened."""
    hide = "" if proc else "    mount(b'none', b'/proc', b'tmpfs')\n"
    code = """
    read_only(True)
    try: lock.acquire()
    except pidabs.MirrorError as exc: say(errno.errorcode[exc.__cause__.errno], exc, lock.held, lock.locked())
    """
    [line] = in_a_mount(hide + code, tmp_path)
    assert line.startswith("EROFS cannot acquire lock ")
    assert line.endswith(f"{os.strerror(30)} False False")


def test_file_system_that_has_become_read_only(tmp_path: Path) -> None:
    """The lock is let go all the same; what is left behind cannot be helped, and is told."""
    code = """
    lock.acquire()
    reopened = os.open(path, os.O_RDONLY)
    fd = lock._mirror.fd
    os.dup2(reopened, fd); os.close(reopened)  # else the file system is busy: it is open for writing
    read_only(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock.release()
    say(len(caught), "was left behind" in str(caught[0].message), lock.locked(), os.listdir(directory))
    """
    assert in_a_mount(code, tmp_path) == ["1 True False [b'x.pid']"]


def test_disk_that_is_full_as_the_lock_moves(tmp_path: Path) -> None:
    """A daemon's child cannot write a new file, so it corrects the one that is there."""
    code = """
    assert not mount(b"none", directory, None, MS_REMOUNT, b"size=8k")
    lock.acquire()
    with open(directory + b"/fill", "wb", buffering=0) as file:
        try:
            while True: file.write(b"x" * 4096)
        except OSError as exc: say(errno.errorcode[exc.errno])
    with lock.across_fork():
        if os.fork() == 0:
            say(lock.held, open(path).read() == f"{os.getpid()}\\n")
            lock.release()
            os._exit(0)
    os.wait()
    say(lock.held, lock.locked(), os.listdir(directory))
    """
    assert in_a_mount(code, tmp_path) == ["ENOSPC", "True True", "False False [b'fill']"]


# Clocks -------------------------------------------------------------------------------------------------------

JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
/* Each look at the wall clock finds it a year on, or a year back. */
static long jump(void) { static long looks; return (__sync_fetch_and_add(&looks, 1) & 1 ? 1 : -1) * 31536000L; }
int clock_gettime(clockid_t which, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, which, now);
    if (!result && which == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}
int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec found;
    int result = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec; now->tv_usec = found.tv_nsec / 1000;
    return result;
}
time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for a clock that jumps")
def test_wall_clock_that_jumps_changes_nothing(name: str, tmp_path: Path) -> None:
    """By a year, at every look, in the holder and in the waiter."""
    (tmp_path / "jump.c").write_text(JUMPING_CLOCK, encoding="ascii")
    built = subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "jump.so"), str(tmp_path / "jump.c")], check=False, timeout=60
    )
    if built.returncode:
        pytest.skip("the C compiler cannot build a library")
    environment = {"LD_PRELOAD": str(tmp_path / "jump.so")}
    code = """
    import asyncio, pidabs, time
    looks = [time.time() for _ in range(4)]
    say(max(looks) - min(looks) > 1e7)
    lock = pidabs.Lock(sys.argv[1])
    def timed(wait):
        began = time.monotonic()
        try: wait()
        except pidabs.Timeout: say(0.2 <= time.monotonic() - began < 2)
    timed(lambda: lock.acquire(0.2))
    timed(lambda: asyncio.run(lock.acquire_async(0.2)))
    say(pidabs.holder(sys.argv[1]).wait(0.05))
    say("asks")
    lock.acquire()
    say("held")
    listen()
    """
    with child(HOLD, args=(name,), env=environment) as holder:
        holder.expect("held")
        with child(code, args=(name,), env=environment) as waiter:
            line = waiter.read_line()
            if line == "False":
                pytest.skip("this interpreter cannot be given another clock")
            waiter.expect("True")
            waiter.expect("True")
            waiter.expect("False")
            waiter.expect("asks")
            wait_until(lambda: pidabs.Lock(name).waiters() == 1)
            first = inode(name)
            holder.tell()
            waiter.expect("held")
            assert inode(name) == first


@pytest.mark.parametrize("offset", ["+31536000", "+1"])
def test_timeouts_in_a_time_namespace(name: str, offset: str) -> None:
    """Its monotonic clock is a year ahead of the holder's; nothing in the protocol is a time."""
    command = in_namespace("--time", "--fork", "--monotonic", offset)
    code = """
    import pidabs, time
    lock = pidabs.Lock(sys.argv[1])
    began = time.monotonic()
    try: lock.acquire(0.2)
    except pidabs.Timeout: say(0.2 <= time.monotonic() - began < 2, began)
    lock.acquire()
    say("held")
    """
    lock = pidabs.Lock(name).acquire()
    with contained(command, code, name) as process:
        ended, began = process.read_line().split()
        assert ended == "True"
        assert float(began) - time.monotonic() > float(offset) - 10
        wait_until(lambda: lock.waiters() == 1)
        lock.release()
        process.expect("held")


def test_no_source_looks_at_the_wall_clock() -> None:
    """Nor at when a process was started, in which a jump of the clock shows."""
    wall = {"time", "time_ns", "localtime", "gmtime", "datetime", "CLOCK_REALTIME", "st_mtime", "st_ctime"}
    for path in Path(pidabs.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert wall.isdisjoint(alias.name for alias in node.names), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in wall, path


def test_stopped_for_longer_than_the_timeout(name: str) -> None:
    """As a suspended machine looks: time has passed, and the wait is over when it runs again."""
    code = """
    import pidabs
    say("asks")
    try: pidabs.Lock(sys.argv[1]).acquire(0.3)
    except pidabs.Timeout: say("timeout")
    """
    with pidabs.Lock(name) as lock, child(code, args=(name,)) as waiter:
        waiter.expect("asks")
        wait_until(lambda: lock.waiters() == 1)
        waiter.signal(signal.SIGSTOP)
        assert waiter.says_nothing(0.5)
        waiter.signal(signal.SIGCONT)
        waiter.expect("timeout")
        wait_until(lambda: lock.waiters() == 0)
