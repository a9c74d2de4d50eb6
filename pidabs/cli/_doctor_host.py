"""What surrounds this process: its namespaces, /proc, its limits and its environment, and the kernel's known bugs.

Each check is a function that returns a Finding; _doctor_checks.py runs them.
"""

from __future__ import annotations

import os

from .._holder import _link as link
from .._names import resolve
from ._doctor_finding import BAD, OK, UNKNOWN, WARN, Finding, kernel_version, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    Version = tuple[int, int, int]

_FIRST_NET = "net:[4026531833]"  # since Linux 6.18 the host's own always has this number, and no other ever has
_FIRST_PID = "pid:[4026531836]"
_ALL_MAPPED = ["0", "0", "4294967295"]
_FEW_DESCRIPTORS = 256

_NO_PROC = "no /proc here, or a restricted one", "mount -t proc proc /proc"
_NET_REMEDY = "for locks shared with processes outside: --network=host, or without PrivateNetwork= and unshare -n"


def net_namespace() -> Finding:
    """The one thing that a lock file does better, so it has to be said."""
    own, first = link("/proc/self/ns/net"), link("/proc/1/ns/net")
    if own is None:
        return Finding(UNKNOWN, "/proc/self/ns/net cannot be read", *_NO_PROC)
    if own == _FIRST_NET:
        return Finding(OK, "the host's own: locks exclude everybody on this host who is not in a container")
    container = Finding(
        WARN,
        "not that of the host: locks exclude only who is in this network namespace, whatever files are shared",
        "a container, a sandbox, or unshare -n",
        _NET_REMEDY,
    )
    if first is None:
        if kernel_version() >= (6, 18, 0):
            return container
        return Finding(
            UNKNOWN, "that of pid 1 cannot be read, to compare it with ours", "needs root", "run this as root"
        )
    if own != first:
        return container._replace(found=f"not that of pid 1: {container.found.partition(': ')[2]}")
    if link("/proc/self/ns/pid") == _FIRST_PID:
        return Finding(OK, "that of pid 1: locks exclude everybody on this host who is not in a container")
    if kernel_version() >= (6, 18, 0):
        return container
    return Finding(
        UNKNOWN,
        "that of pid 1 of this container; whether it is the host's, too, cannot be seen",
        "pid 1 is not the host's",
        f"compare `readlink /proc/self/ns/net` in here and outside; {_NET_REMEDY}",
    )


def user_namespace() -> Finding:
    lines = text("/proc/self/uid_map")
    if lines is None:
        return Finding(UNKNOWN, "/proc/self/uid_map cannot be read", *_NO_PROC)
    if lines.split() == _ALL_MAPPED:
        return Finding(OK, "every user has a number here")
    euid = os.geteuid()
    ranges = [tuple(map(int, line.split())) for line in lines.splitlines()]
    if any(start <= euid < start + count for start, _, count in ranges):
        mapped = sum(count for _, _, count in ranges)
        return Finding(
            OK, f"a user namespace, uids mapped: {mapped}; waiters of other uids get no turn in our queue, they race"
        )
    return Finding(
        WARN,
        f"our user has no number here and reads as {euid}, like everybody unknown: locks exclude, in no order",
        "a user namespace whose uid map leaves our uid out",
        "map it: unshare --map-current-user, or the container's --uidmap",
    )


def pid_namespace() -> Finding:
    own = link("/proc/self/ns/pid")
    if own is None:
        return Finding(UNKNOWN, "/proc/self/ns/pid cannot be read", *_NO_PROC)
    if own == _FIRST_PID:
        return Finding(OK, "the host's own")
    found = "not the host's: a lock's holder outside of it is seen without its pid, and cannot be signalled"
    if link("/proc/self/ns/net") == _FIRST_NET:
        return Finding(
            WARN, found, "a container with the host's network, but pids of its own", "containers: --pid=host"
        )
    return Finding(OK, found)


def proc() -> Finding:
    own = link("/proc/self")
    if own is None:
        return Finding(
            WARN,
            "not there: a holder's command is not shown, the namespaces are unknown",
            "a chroot, or a sandbox without it",
            "mount -t proc proc /proc",
        )
    if own != str(os.getpid()):
        return Finding(
            WARN,
            "that of another pid namespace: a holder's command is not shown",
            "mounted outside of it",
            "unshare with --mount-proc",
        )
    options = _mount_options()
    if "subset=pid" in options:
        cause = "/proc is mounted with subset=pid"
        return Finding(WARN, "without /proc/net: locks are listed by sock_diag alone", cause, "mount it without")
    hidden = sorted(option for option in options if option.startswith("hidepid=") and option[8:] not in ("0", "off"))
    if hidden and text("/proc/1/cmdline") is None:
        return Finding(
            WARN,
            "other users' processes are hidden: a holder's pid and uid are known, its command is not",
            f"/proc is mounted with {hidden[0]}",
            "run this as root, or as a member of the group of /proc's option gid=",
        )
    return Finding(OK, "shows every process" if not hidden else f"{hidden[0]}, but not for us")


def _mount_options() -> set[str]:
    """Those of the /proc that is on top."""
    options: set[str] = set()
    for line in (text("/proc/self/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[1] == "/proc":
            options = set(fields[3].split(","))
    return options


def descriptors() -> Finding:
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

    soft, hard = getrlimit(RLIMIT_NOFILE)
    most = "any number" if hard == RLIM_INFINITY else str(hard)
    if soft != RLIM_INFINITY and soft < _FEW_DESCRIPTORS:
        return Finding(
            WARN,
            f"at most {soft} open files; each lock that is held or waited for takes one, its PID file another",
            "RLIMIT_NOFILE",
            f"ulimit -n 1024 (we may have {most}), or LimitNOFILE= in a systemd unit",
        )
    return Finding(OK, f"{'any number' if soft == RLIM_INFINITY else soft} open files; a held lock takes one")


def environment() -> Finding:
    scope = os.environ.get("PIDABS_SCOPE")
    if not scope:
        return Finding(OK, "PIDABS_SCOPE is not set")
    try:
        resolve("doctor")
    except ValueError as exc:
        return Finding(BAD, f"PIDABS_SCOPE: {exc}", "every lock is refused with it", "unset or correct it")
    return Finding(OK, f"PIDABS_SCOPE={scope!a}: locks exclude only who has the same")


# Bugs ---------------------------------------------------------------------------------------------------------

_BUGS: dict[str, tuple[tuple[Version, Version], ...]] = {
    "CVE-2024-26923 (a listener in flight while somebody connects)": (
        ((2, 6, 23), (4, 19, 314)),
        ((4, 20, 0), (5, 4, 275)),
        ((5, 5, 0), (5, 10, 216)),
        ((5, 11, 0), (5, 15, 156)),
        ((5, 16, 0), (6, 1, 87)),
        ((6, 2, 0), (6, 6, 28)),
        ((6, 7, 0), (6, 8, 7)),
    ),
    "CVE-2024-26780 (MSG_OOB)": (
        ((6, 1, 78), (6, 1, 81)),
        ((6, 6, 17), (6, 6, 21)),
        ((6, 7, 5), (6, 7, 9)),
    ),
    "CVE-2025-40214 (a connection passed on before it is accepted)": (
        ((6, 1, 141), (6, 1, 159)),
        ((6, 6, 93), (6, 6, 117)),
        ((6, 10, 0), (6, 12, 59)),
        ((6, 13, 0), (6, 17, 9)),
    ),
    "CVE-2026-23394 (MSG_PEEK)": (
        ((6, 1, 141), (6, 1, 183)),
        ((6, 6, 93), (6, 6, 142)),
        ((6, 10, 0), (6, 12, 92)),
        ((6, 13, 0), (6, 18, 23)),
        ((6, 19, 0), (6, 19, 10)),
    ),
}
"""Bugs where unix sockets pass descriptors: from which version on, and the first without it, as the records say."""


def bugs_of(version: Version) -> list[str]:
    """Those that a kernel of this version has, unless somebody has brought the fix to it."""
    return [name for name, ranges in _BUGS.items() if any(first <= version < fixed for first, fixed in ranges)]


def bugs() -> Finding:
    version = kernel_version()
    shown = ".".join(map(str, version))
    found = bugs_of(version)
    if not found:
        return Finding(OK, f"Linux {shown} has none of those we know, going by its number")
    return Finding(
        WARN,
        f"going by its number, Linux {shown} may have {', '.join(found)}; it may also have the fixes as backports",
        "pidabs does none of what sets them off, but any local process can",
        "see your distribution's security tracker, and update the kernel",
    )


HOST_CHECKS = {
    "net_namespace": ("network namespace", net_namespace),
    "user_namespace": ("user namespace", user_namespace),
    "pid_namespace": ("pid namespace", pid_namespace),
    "proc": ("/proc", proc),
    "descriptors": ("open files", descriptors),
    "environment": ("environment", environment),
    "bugs": ("kernel bugs", bugs),
}
"""By id: the title, and the check."""
