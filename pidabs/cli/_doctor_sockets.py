"""What this kernel and sandbox allow to do with unix sockets, found out by doing it.

Each check is a function that returns a Finding; _doctor_checks.py runs them.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
import socket
from contextlib import ExitStack
from secrets import token_hex

from .. import Lock, LockError, Timeout, _diag, _linux, _queue
from ._doctor_finding import BAD, OK, UNKNOWN, WARN, Finding, kernel_version, text, why
from ._interrupt import readable

_TURN = 5.0
"""Seconds in which a waiter surely gets a lock that was let go,"""

_JOIN = 0.2
"""and joins its queue."""

_BELOW = "see the checks below"
_STRANGE = "this is not a Linux kernel as we know it"
_FAMILIES = "systemd: RestrictAddressFamilies=AF_UNIX AF_NETLINK; containers: a seccomp profile that allows it"


def lock() -> Finding:
    """A real Lock: taken, refused to another, handed to a waiter."""
    try:
        first, other = (Lock(name) for name in [f"pidabs-doctor-{token_hex(8)}"] * 2)
        first.acquire(0)
    except (LockError, OSError, ValueError) as exc:
        return Finding(BAD, f"cannot be taken: {exc}", _BELOW, _BELOW)
    try:
        other.acquire(0)
    except Timeout:
        pass
    else:
        return Finding(BAD, "two held one lock at once", _STRANGE, "report it")
    taken = _thread.allocate_lock()
    taken.acquire()
    failures: list[Exception] = []

    def wait() -> None:
        try:
            other.acquire(_TURN)
        except Exception as exc:
            failures.append(exc)
        taken.release()

    try:
        _thread.start_new_thread(wait, ())
    except RuntimeError:
        return Finding(OK, "taken and refused to another (no thread can be started here to wait for it)")
    readable(_JOIN, first.fileno())  # until it has joined our queue, if it may
    first.release()
    if not taken.acquire(timeout=_TURN * 2) or failures:
        return Finding(BAD, f"a waiter did not get it: {failures[0] if failures else 'it still waits'}", _BELOW)
    other.release()
    return Finding(OK, "taken, refused to another, given to a waiter, freed")


def bind() -> Finding:
    step = "socket"
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = _address()
            step = "bind"
            sock.bind(address)
            step = "listen"
            sock.listen(_queue.BACKLOG)
        except OSError as exc:
            return Finding(BAD, f"{step}: {why(exc)}", *_denied(exc))
        try:
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return Finding(OK, "bound and listening, and nobody else can bind the name")
            raise
        return Finding(BAD, "a name could be bound twice", _STRANGE, "report it")


def connect() -> Finding:
    with ExitStack() as stack:
        listener = _listener(stack)
        try:
            _connect(stack, listener)
        except OSError as exc:
            effect = "waiters cannot queue: they try again every 1 to 50 ms, in no order"
            return Finding(WARN, f"connect: {why(exc)}; {effect}", _denied(exc)[0], "allow connect(2) on unix sockets")
    return Finding(OK, "waiters can join the queue")


def peercred() -> Finding:
    with ExitStack() as stack:
        try:
            pid, uid, _ = _linux.peer_credentials(_listener(stack))
        except OSError as exc:
            return Finding(
                BAD, f"SO_PEERCRED: {why(exc)}; nobody can wait for a lock", _denied(exc)[0], "allow getsockopt(2)"
            )
    if (pid, uid) != (os.getpid(), os.geteuid()):
        return Finding(WARN, f"the kernel says pid {pid}, uid {uid} of ourselves; we are {os.getpid()}, {os.geteuid()}")
    return Finding(OK, "the kernel names a lock's holder and its waiters")


def peerpidfd() -> Finding:
    with ExitStack() as stack:
        listener = _listener(stack)
        os.close(os.dup(listener.fileno()))  # else a lack of descriptors would look like a lack of pidfds
        found = _linux.peer_pidfd(listener)
    if found is not None:
        os.close(found)
        return Finding(OK, "the kernel hands out a pidfd of a lock's holder")
    old = kernel_version() < (6, 5, 0)
    return Finding(
        WARN,
        "the kernel hands out no pidfd of a lock's holder; pidabs opens one by pid, and looks twice",
        f"this is Linux {os.uname().release}, and it came with 6.5" if old else "a sandbox denies it",
        "none is needed, but for a holder in another pid namespace: Linux 6.5" if old else "allow getsockopt(2)",
    )


def pidfd() -> Finding:
    step = "pidfd_open"
    try:
        found = os.pidfd_open(os.getpid())
        try:
            step = "pidfd_send_signal"
            signal.pidfd_send_signal(found, 0)
        finally:
            os.close(found)
    except OSError as exc:
        return Finding(
            WARN,
            f"{step}: {why(exc)}; a holder cannot be signalled or waited for",
            "Linux before 5.3" if exc.errno == errno.ENOSYS and kernel_version() < (5, 3, 0) else _denied(exc)[0],
            f"allow {step}(2) in the seccomp profile",
        )
    return Finding(OK, "a holder can be signalled, and never another process with its pid")


def rights() -> Finding:
    with ExitStack() as stack:
        listener = _listener(stack)
        conn = _connect(stack, listener)
        accepted = stack.enter_context(listener.accept()[0])
        try:
            socket.send_fds(accepted, [b"L"], [listener.fileno()])
            _, passed, flags, _ = socket.recv_fds(conn, 1, 1)
            if flags & socket.MSG_CTRUNC:
                os.close(os.dup(conn.fileno()))  # raises, if that was for want of descriptors
            got = stack.enter_context(socket.socket(fileno=passed[0]))
        except (OSError, IndexError) as exc:
            return Finding(
                WARN,
                f"a lock cannot be handed over: {why(exc) if isinstance(exc, OSError) else 'it did not arrive'}; "
                "it is freed instead, and all waiters race for it",
                "a security module (AppArmor, SELinux, BPF) or a seccomp filter denies to pass descriptors",
                "allow SCM_RIGHTS between the processes that share locks",
            )
        if got.getsockname() != listener.getsockname():
            return Finding(WARN, "another socket arrived than was sent", "", "report it")
    return Finding(OK, "a lock can be handed to its next holder")


def queue() -> Finding:
    with ExitStack() as stack:
        listener = _listener(stack)
        room = 0
        while room <= _queue.BACKLOG:
            # Closed at once: a connection keeps its place, so this needs one descriptor and not a thousand.
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                    sock.connect(listener.getsockname())
            except BlockingIOError:
                break
            except PermissionError:
                return Finding(UNKNOWN, "cannot be filled, since connect is denied")
            room += 1
    if room >= _queue.BACKLOG:
        return Finding(OK, f"a lock has room for {room} waiters")
    most = text("/proc/sys/net/core/somaxconn")
    return Finding(
        WARN,
        f"a lock has room for {room} waiters; all others sleep until there is room, in no order",
        f"net.core.somaxconn is {most} in this network namespace" if most else "net.core.somaxconn, it seems",
        f"sysctl -w net.core.somaxconn={_queue.BACKLOG} (containers: docker run --sysctl)",
    )


def sock_diag() -> Finding:
    with ExitStack() as stack:
        listener = _listener(stack)
        try:
            _connect(stack, listener)
        except OSError:
            pass
        try:
            _diag.queue(os.fstat(listener.fileno()).st_ino)
        except OSError as exc:
            effect = "who waits is read from /proc/net/unix instead"
            if exc.errno == errno.ENOENT:
                return Finding(
                    WARN, f"{why(exc)}; {effect}", "this kernel has no unix_diag module", "modprobe unix_diag"
                )
            return Finding(WARN, f"{why(exc)}; {effect}", "a sandbox denies netlink sockets", _FAMILIES)
    return Finding(OK, "the kernel lists locks and their waiters")


def proc_net_unix() -> Finding:
    with ExitStack() as stack:
        address = _listener(stack).getsockname()
        try:
            with open("/proc/net/unix", "rb") as file:
                listed = any(found.address == address for found in _diag.parse_proc(file.read()))
            found = "lists locks, too" if listed else "is of another network namespace: it does not list our socket"
        except OSError as exc:
            found, listed = why(exc), False
    if listed:
        return Finding(OK, found)
    if sock_diag().status == OK:
        return Finding(OK, f"{found}; sock_diag works, so it is not needed")
    return Finding(
        WARN,
        f"{found}, and sock_diag fails, too; `list`, `status` and Lock.locked() cannot tell who holds what",
        "/proc is missing, or mounted with subset=pid",
        "mount /proc without subset=pid, or allow netlink (see sock_diag)",
    )


def _address() -> bytes:
    # No colon behind "pidabs": no lock's address, so that `pidabs list` does not show it.
    return b"\0pidabs-doctor-" + token_hex(8).encode()


def _listener(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(_address())
    sock.listen(_queue.BACKLOG)
    return sock


def _connect(stack: ExitStack, listener: socket.socket) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(listener.getsockname())
    return sock


def _denied(exc: OSError) -> tuple[str, str]:
    """Cause and remedy."""
    if exc.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
        return "a sandbox denies unix sockets", "systemd: add AF_UNIX to RestrictAddressFamilies="
    if exc.errno == errno.EACCES:
        return "AppArmor, SELinux or a seccomp filter denies it", "allow abstract unix sockets in it"
    if exc.errno in (errno.EPERM, errno.ENOSYS):
        return "a seccomp filter or a security module denies it", "allow socket, bind, listen and connect in it"
    return "", ""


SOCKET_CHECKS = {
    "lock": ("a real lock", lock),
    "bind": ("abstract sockets", bind),
    "connect": ("waiting", connect),
    "peercred": ("SO_PEERCRED", peercred),
    "peerpidfd": ("SO_PEERPIDFD", peerpidfd),
    "pidfd": ("signals", pidfd),
    "rights": ("handing over", rights),
    "queue": ("queue length", queue),
    "sock_diag": ("sock_diag", sock_diag),
    "proc_net_unix": ("/proc/net/unix", proc_net_unix),
}
"""By id: the title, and the check."""
