"""Who holds a lock, and what may be done to it: nothing that could hit another process."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import (
    HOLD,
    Child,
    address,
    child,
    in_namespace,
    must_block,
    needs_root,
    queued,
    run_in,
    wait_until,
)

import pidabs
from pidabs import _holder, _linux

OURS = pidabs.Holder(os.getpid(), os.getuid(), os.getgid())


def asked(name: str) -> pidabs.Holder:
    holder = pidabs.holder(name)
    assert holder is not None
    return holder


def handle(holder: pidabs.Holder) -> int:
    assert holder._pidfd is not None
    return holder._pidfd


# Who ----------------------------------------------------------------------------------------------------------


def test_free_lock_has_no_holder(name: str) -> None:
    assert pidabs.holder(name) is None
    assert pidabs.Lock(name).holder() is None
    with pidabs.Lock(name):
        pass
    assert pidabs.holder(name) is None


def test_holder_is_another_process(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        assert (process.pid, os.getuid(), os.getgid()) == (holder.pid, holder.uid, holder.gid)
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        assert command[:2000].decode() == (holder.command or "")[:2000]


def test_holder_is_ourselves(name: str) -> None:
    with pidabs.Lock(name) as lock:
        assert lock.holder() == asked(name) == OURS
        assert lock.holder() == pidabs.Lock(name).holder()
        assert not asked(name).wait(0)


@needs_root
def test_holder_is_another_user(name: str) -> None:
    code = "import pidabs\nos.setgroups([]); os.setgid(12348); os.setuid(12349)\n"
    with child(code + textwrap.dedent(HOLD), args=(name,)) as process:
        process.expect("held")
        assert asked(name) == pidabs.Holder(process.pid, 12349, 12348)


def test_process_without_a_command_line_is_called_by_its_name(name: str) -> None:
    """The lock stays with a program whose own name it was not even told."""
    code = """
    import ctypes, pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    os.set_inheritable(lock.fileno(), True)
    say("held")
    ctypes.CDLL(None).execv(b"/bin/sh", (ctypes.c_char_p * 2)(b"", None))
    """
    with child(code, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        wait_until(lambda: holder.command == "sh", "it is another program")
        assert f"pid {process.pid} (uid {os.getuid()}, 'sh')" in str(holder)


def test_asking_leaves_one_entry_at_most(name: str) -> None:
    with pidabs.Lock(name) as lock:
        asked(name)
        assert queued(name) <= 1
        assert lock.waiters() == 0
        assert queued(name) == 0


def test_asking_again_and_again_costs_the_waiters_no_order(name: str) -> None:
    """A release looks past 256 dead entries; behind more, all waiters race."""
    with child(HOLD, args=(name,)) as process, ExitStack() as stack:
        process.expect("held")
        holders = [asked(name) for _ in range(300)]
        assert [process.pid] * 300 == [holder.pid for holder in holders]
        assert queued(name) == _holder.MOST_ASKED
        assert holders[_holder.MOST_ASKED - 1].gid == os.getgid()
        assert holders[_holder.MOST_ASKED].gid is None
        holders[-1].send_signal(0)
        waiters = []
        for number in range(8):
            waiters.append(stack.enter_context(child(HOLD, args=(name,))))
            wait_until(lambda number=number: pidabs.Lock(name).waiters() == number + 1)  # type: ignore[misc]
        process.tell()
        for waiter in waiters:
            waiter.expect("held")
            waiter.tell()


@pytest.mark.usefixtures("no_netlink")
def test_asking_again_and_again_where_the_dead_cannot_be_told_from_the_living(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        for _ in range(_holder.MOST_ASKED + 10):
            asked(name)
        assert queued(name) == _holder.MOST_ASKED


def test_long_queue_of_the_living_is_asked(name: str) -> None:
    with child(HOLD, args=(name,)) as process, ExitStack() as stack:
        process.expect("held")
        for _ in range(_holder.MOST_ASKED + 10):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(address(name))
        assert asked(name).gid == os.getgid()


def test_bad_names() -> None:
    with pytest.raises(ValueError, match="empty"):
        pidabs.holder("")


def test_who_only_binds_is_seen(name: str) -> None:
    """Between bind and listen, or for ever: it cannot be asked, but it has the socket open."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address(name))
        holder = asked(name)
        assert holder.pid == os.getpid()
        assert holder.uid == os.getuid()


def test_full_queue(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as only:
        sock.bind(address(name))
        sock.listen(0)
        only.connect(address(name))
        holder = asked(name)
        assert holder.pid == os.getpid()
        assert "another container" not in str(holder)


# What may be done to it ---------------------------------------------------------------------------------------


def test_signal_and_wait(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        holder.send_signal(0)
        assert not holder.wait(0)
        assert not holder.wait(0.05)
        blocked = must_block(lambda: holder.wait())
        holder.send_signal(signal.SIGTERM)
        assert blocked() is True
        assert holder.wait(0)
        assert process.wait() == -signal.SIGTERM


def test_zombie_has_exited(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        process.signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert holder.wait(0)
        assert holder.wait()
        assert holder.command is None
        assert holder.terminate(0) is True
        assert f"pid {process.pid}" in str(holder)


def test_reaped_process_is_gone(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        process.kill()
        assert holder.wait(0)
        with pytest.raises(ProcessLookupError):
            holder.send_signal(0)
        assert holder.terminate(0) is True
        assert holder.command is None


@pytest.mark.parametrize("timeout", [1e10, float("inf"), sys.float_info.max])
def test_long_waits(name: str, timeout: float) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        blocked = must_block(lambda: holder.wait(timeout))
        process.signal(signal.SIGKILL)
        assert blocked() is True


def test_wait_takes_no_nan(name: str) -> None:
    with pidabs.Lock(name) as lock:
        holder = lock.holder()
        assert holder is not None
        with pytest.raises(ValueError, match="NaN"):
            holder.wait(float("nan"))
        assert not holder.wait(-1)


def test_terminate(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        assert asked(name).terminate(20) is True
        assert process.wait() == -signal.SIGTERM


IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + textwrap.dedent(HOLD)


def test_terminate_a_process_that_ignores_it(name: str) -> None:
    with child(IGNORES_TERM, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        assert holder.terminate(0.05) is False
        assert process.process.poll() is None
        assert holder.terminate(0.05, kill=True) in (True, False)  # the kernel may take longer to end it
        assert process.wait() == -signal.SIGKILL
        assert holder.terminate(0.05, kill=True) is True


def test_signal_that_does_not_exist(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        with pytest.raises(OSError, match="Invalid argument") as caught:
            asked(name).send_signal(999)
        assert caught.value.errno == errno.EINVAL


@needs_root
def test_signal_that_is_not_permitted(name: str) -> None:
    code = """
    import pidabs
    holder = pidabs.holder(sys.argv[1])
    os.setgroups([]); os.setgid(12348); os.setuid(12348)
    try: holder.send_signal(9)
    except PermissionError: say("not permitted")
    """
    with pidabs.Lock(name), child(code, args=(name,)) as process:
        process.expect("not permitted")


# Where its pid cannot be seen ---------------------------------------------------------------------------------


def test_holder_in_a_pid_namespace_above_ours(name: str) -> None:
    """Waiting works, signals do not, and the text says which container's fault it is."""
    code = """
        import pidabs
        holder = pidabs.holder(sys.argv[1])
        say(holder.pid, holder.uid, holder.gid, holder.command)
        say(holder)
        try: holder.send_signal(9)
        except pidabs.LockError as exc: say(type(exc).__name__, exc)
        say(holder.wait(0))
        try: pidabs.Lock(sys.argv[1]).acquire(0)
        except pidabs.Timeout as exc: say(exc)
        print("kill it", file=sys.stderr, flush=True)
        say(holder.wait(20))
        say(pidabs.holder(sys.argv[1]))
    """
    command = in_namespace("--pid", "--fork", "--mount-proc")
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with child(
            f"""
            import subprocess
            command = {[*command, sys.executable, "-c", Child.PREAMBLE + textwrap.dedent(code)]!r}
            process = subprocess.Popen(command + sys.argv[1:], stderr=subprocess.PIPE)
            process.stderr.readline()
            say("asked")
            sys.exit(process.wait(30))
            """,
            args=(name,),
        ) as asker:
            asker.expect(f"None {os.getuid()} {os.getgid()} None")
            line = asker.read_line()
            assert line.startswith("a process that is not visible from here (uid ")
            assert "in another container it seems: if it is meant to be another lock, set PIDABS_SCOPE" in line
            line = asker.read_line()
            assert line.startswith("LockError cannot signal a process that is not visible from here")
            assert "its pid namespace is not visible from here" in line
            asker.expect("False")
            assert "held by a process that is not visible from here" in asker.read_line()
            asker.expect("asked")
            assert holder.process.poll() is None
            holder.kill()
            asker.expect("True")
            asker.expect("None")
            assert asker.wait() == 0


def test_holder_in_a_pid_namespace_below_ours(name: str) -> None:
    """It has a pid here, too, and that is the one we are told."""
    command = in_namespace("--pid", "--fork", "--kill-child")
    with subprocess.Popen(
        [*command, sys.executable, "-c", Child.PREAMBLE + textwrap.dedent(HOLD), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            holder = asked(name)
            inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert [str(holder.pid)] == inside
            holder.terminate(0.05, kill=True)  # the first process of a namespace is deaf to SIGTERM
            assert holder.wait(20)
        finally:
            process.kill()


# Kernels without SO_PEERPIDFD, and sockets whose holder is not who took the lock ------------------------------


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linux, "peer_pidfd", lambda sock: None)


@pytest.mark.usefixtures("old_kernel")
def test_old_kernel_looks_whether_the_process_has_the_socket(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        assert holder.pid == process.pid
        assert not holder.wait(0)
        assert holder.terminate(20) is True
        assert process.wait() == -signal.SIGTERM


@pytest.mark.usefixtures("old_kernel")
def test_old_kernel_does_not_signal_who_has_not_the_socket(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a recycled pid looks: it is alive, and has nothing to do with the lock."""
    with child("listen()") as innocent, child(HOLD, args=(name,)) as process:
        process.expect("held")
        monkeypatch.setattr(_linux, "peer_credentials", lambda sock: (innocent.pid, 0, 0))
        holder = asked(name)
        for act in (lambda: holder.send_signal(9), holder.terminate, holder.wait):
            with pytest.raises(pidabs.LockError, match=r"no handle to .*pid"):
                act()
        assert innocent.process.poll() is None


@pytest.mark.usefixtures("old_kernel")
def test_old_python_has_no_pidfd_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with pidabs.Lock(name) as lock:
        holder = lock.holder()
        assert holder == OURS
        with pytest.raises(pidabs.LockError, match="no handle"):
            holder.send_signal(0)


RECYCLED = """
    # 1. `brand` takes the lock by hand, and leaves a copy of it to `keeper`; 2. it ends; 3. its pid comes back.
    import array, signal, socket, time
    name = sys.argv[1]
    told, tell = os.pipe()
    brand = os.fork()
    if brand == 0:
        listener = socket.socket(socket.AF_UNIX); listener.bind(b"\\0pidabs:" + name.encode()); listener.listen(10)
        keeper = os.fork()
        if keeper == 0:
            time.sleep(60); os._exit(0)
        os.write(tell, b"%d" % keeper)
        os._exit(0)
    os.waitpid(brand, 0)
    keeper = int(os.read(told, 20))
    with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(brand - 1))
    innocent = os.fork()
    if innocent == 0:
        time.sleep(60); os._exit(0)
    say(innocent == brand)

    import pidabs
    if sys.argv[2] == "old": pidabs._linux.peer_pidfd = lambda sock: None
    holder = pidabs.holder(name)
    say(holder.pid == brand)
    for act in (lambda: holder.send_signal(signal.SIGKILL), lambda: holder.terminate(1, kill=True)):
        try: say("did" if act() is not True else "gone")
        except (ProcessLookupError, pidabs.LockError): say("gone")
    say(os.waitpid(innocent, os.WNOHANG) == (0, 0), os.kill(keeper, 0))
    try: pidabs.Lock(name).acquire(0)
    except pidabs.Timeout: say("taken")
"""


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_pid_that_came_back_is_not_signalled(name: str, kernel: str) -> None:
    """A pid namespace of its own, in which the next pid can be chosen."""
    done = run_in(in_namespace("--pid", "--fork", "--mount-proc"), RECYCLED, name, kernel)
    if done.stdout.startswith("False"):
        pytest.skip("the pid could not be brought back")
    assert done.stdout.split("\n") == ["True", "True", "gone", "gone", "True None", "taken", ""], done.stderr


# The handle ---------------------------------------------------------------------------------------------------


def test_handle_is_closed_with_its_object(name: str) -> None:
    with pidabs.Lock(name):
        holder = asked(name)
        fd = handle(holder)
        os.fstat(fd)
        del holder
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_handle_closed_behind_our_back(name: str) -> None:
    """Its number belongs to a stranger now, which is neither signalled through nor closed."""
    with child(HOLD, args=(name,)) as process, child("listen()") as innocent:
        process.expect("held")
        holder = asked(name)
        fd = handle(holder)
        os.close(fd)
        stranger = os.pidfd_open(innocent.pid)
        if stranger != fd:
            os.dup2(stranger, fd)
            os.close(stranger)
        acts: list[tuple[Any, int]] = [(holder.send_signal, 9), (holder.wait, 0), (holder.terminate, 0)]
        for act, argument in acts:
            with pytest.raises(pidabs.LockError, match=r"the handle to .* is lost: its descriptor was closed"):
                act(argument)
        del act, acts, holder
        os.fstat(fd)
        os.close(fd)
        assert innocent.process.poll() is None


def test_handle_closed_and_the_error_is_still_shown(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        with pytest.raises(pidabs.Timeout) as caught:
            pidabs.Lock(name).acquire(0)
        assert caught.value.holder is not None
        os.close(handle(caught.value.holder))
        assert f"pid {process.pid}" in str(caught.value)


# As a value ---------------------------------------------------------------------------------------------------


def test_str_and_repr(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        holder = asked(name)
        assert f"<Holder pid={process.pid} uid={os.getuid()} gid={os.getgid()}>" == repr(holder)
        assert str(holder).startswith(f"pid {process.pid} (uid {os.getuid()}, '{sys.executable} ")


def test_equality_and_hash(name: str) -> None:
    with pidabs.Lock(name):
        assert asked(name) == asked(name) == OURS
        assert len({asked(name), OURS}) == 1
        assert pidabs.Holder(1, 0, 0) != OURS
        assert asked(name) != "a holder"


def test_pickled_holder_has_no_handle(name: str) -> None:
    with pidabs.Lock(name):
        copy = pickle.loads(pickle.dumps(asked(name)))
    assert copy == OURS
    with pytest.raises(pidabs.LockError, match="no handle"):
        copy.send_signal(9)


def test_kernel_that_cannot_be_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, and no way to see whether the name is free or about to listen."""

    def fail(address: bytes) -> None:
        raise PermissionError(errno.EPERM, "no netlink here")

    monkeypatch.setattr(_holder._diag, "find", fail)
    with pytest.raises(PermissionError):
        pidabs.holder(name)
    error = pidabs.Timeout(name, 0.0, pidabs.Lock(name).holder)
    assert "it is held, and who holds it cannot be asked (" in str(error)
    assert pickle.loads(pickle.dumps(error)).name == name


def test_next_owner_is_the_holder(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(HOLD, args=(name,)) as process:
        wait_until(lambda: lock.waiters() == 1)
        lock.release()
        process.expect("held")
        assert asked(name).pid == process.pid
