"""`pidabs status`, `pid`, `list` and `wait`: who holds a lock, and when it is free.

Rule: an answer is the kernel's or it is "unknown" (4), with the reason.  A lock is not taken to look at it, and nobody
who waits for it is kept waiting.
"""

from __future__ import annotations

import os
from time import monotonic, sleep

from .. import _diag
from .._names import parse
from ._codes import DONE, FAILED, FREE, UNKNOWN, Unknown
from ._find import Found, every, named, one, unknown
from ._proc import has_open
from ._text import complain, duration, quoted, reply, show, table, terminal_width, unicode, width

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from .. import Lock

_LOOK = 0.05  # seconds between two looks of `wait`, and
_SHARE = 10  # so many times longer than a look has taken: a tenth of a CPU at the most

_HEADER = ("PID", "USER", "WAITERS", "NAME", "COMMAND")
_RIGHT = (0, 2)
_USER_WIDTH = 16
_LEAST = 12

_users: dict[int, str] = {}


def status(arguments: argparse.Namespace) -> int:
    """Say who holds a lock."""
    lock = named(arguments)
    try:
        found = one(lock)
    except Unknown:
        if arguments.json:
            reply(_json(_object(lock, None, None)), UNKNOWN)
        raise
    code = DONE if found else FREE
    return reply(_json(_object(lock, found, found is not None)) if arguments.json else _text(lock, found), code)


def pid(arguments: argparse.Namespace) -> int:
    """Print the pid of a lock's holder."""
    lock = named(arguments)
    found = one(lock)
    if found is None:
        complain(f"lock {quoted(lock.name)} is free: there is no pid to print")
        return FREE
    if found.pid is None:
        raise Unknown(f"lock {quoted(lock.name)} is held by {found}; {found.advice()}")
    return reply(str(found.pid), DONE)


def list_(arguments: argparse.Namespace) -> int:
    """List the locks that are held."""
    locks = every()
    if arguments.json:
        return reply(_json([_object(found, found, True) for found in locks]), DONE)
    if not locks:
        return reply("No lock is held in this network namespace.", DONE)
    return reply(_table(locks), DONE)


def wait(arguments: argparse.Namespace) -> int:
    """Wait until a lock is free, without taking it, and without a place in its queue.

    A connection would be woken at once.  But it would count as a waiter, and each release would have to skip it.
    """
    lock = named(arguments)
    deadline = float("inf") if arguments.timeout is None else monotonic() + arguments.timeout
    inode = None
    try:
        while True:
            began = monotonic()
            if inode is None or not _still(inode, lock.address):
                listed = _diag.find(lock.address)
                if listed is None:
                    return DONE
                if inode is None and has_open(os.getpid(), listed.inode):
                    complain(f"lock {quoted(lock.name)} is held by this very process, too: it does not wait for itself")
                    return FAILED
                inode = listed.inode
            now = monotonic()
            if now >= deadline:
                break
            sleep(min(max(_LOOK, _SHARE * (now - began)), deadline - now))
    except OSError as exc:
        raise unknown(exc, lock) from exc
    return _not_free(lock, arguments.timeout)


def _still(inode: int, address: bytes) -> bool:
    """Whether the lock has not been free since: its socket is the same one through every handing over."""
    try:
        return _diag.owns(inode, address)
    except OSError:  # no sock_diag; /proc/net/unix is read whole, for any question
        return False


def _not_free(lock: Lock, timeout: float) -> int:
    by = ""
    try:
        found = one(lock)
        if found is None:
            return DONE  # just now
        by = f", by {found}"
    except Unknown:
        pass
    complain(f"lock {quoted(lock.name)} is still held after {timeout:g} s{by}; wait longer, or `pidabs stop` it")
    return FAILED


def user(uid: int | None) -> str | None:
    """The user's name, or else its number."""
    if uid is None:
        return None
    if uid not in _users:  # which may be asked over the network
        from pwd import getpwuid

        try:
            _users[uid] = getpwuid(uid).pw_name
        except KeyError:
            _users[uid] = str(uid)
    return _users[uid]


def _text(lock: Lock, found: Found | None) -> str:
    if found is None:
        return f"{show(lock.name)} is free"
    facts = [("pid", f"unknown: {found.why}; {found.advice()}" if found.pid is None else str(found.pid))]
    if found.scope is not None:
        facts.insert(0, ("scope", show(found.scope)))
    facts.append(("user", show(user(found.uid) or "unknown")))
    if found.command is not None:
        facts.append(("command", show(found.command)))
    if found.running is not None:
        facts.append(("running", f"{duration(found.running)}; it has not held the lock for longer than that"))
    facts.append(("waiters", str(found.waiters)))
    return "\n".join([f"{show(lock.name)} is held", *(f"  {what:<8} {fact}" for what, fact in facts)])


def _table(locks: list[Found]) -> str:
    rows: list[tuple[str, ...]] = [_HEADER]
    for found in locks:
        number = "?" if found.pid is None else str(found.pid)
        scope = f"@{show(found.scope)}:" if found.scope is not None else ""
        who, command = show(user(found.uid) or "?"), show(found.command or "?")
        rows.append((number, who, str(found.waiters), scope + show(found.name), command))
    return table(rows, _RIGHT, _widths(rows, terminal_width()))


def _widths(rows: list[tuple[str, ...]], columns: int) -> list[int]:
    """How wide each column may be, so that a line fits.  The command gives way first, then the name."""
    if not columns:
        return [0] * len(_HEADER)
    pids, users, waiters, names, commands = (max(map(width, column)) for column in zip(*rows, strict=True))
    users = min(users, _USER_WIDTH)
    left = columns - pids - users - waiters - 2 * (len(_HEADER) - 1)
    names = max(min(names, left - min(commands, _LEAST)), _LEAST)
    return [pids, users, waiters, names, max(left - names, len("COMMAND"))]


def _object(lock: Lock | Found, found: Found | None, held: bool | None) -> dict[str, object]:
    """What docs/command-schema.json describes."""
    _, scope = parse(lock.address) or ("", None)
    who = user(found.uid) if found is not None else None
    return {
        "name": unicode(lock.name),
        "scope": None if scope is None else unicode(scope),
        "address": lock.address.hex(),
        "held": held,
        "pid": found and found.pid,
        "uid": found and found.uid,
        "user": None if who is None else unicode(who),
        "command": None if found is None or found.command is None else unicode(found.command),
        "running": None if found is None or found.running is None else round(found.running, 2),
        "waiters": found.waiters if found is not None else 0 if held is False else None,
        "inode": found and found.inode,
    }


def _json(value: object) -> str:
    from json import dumps

    return dumps(value, indent=2)
