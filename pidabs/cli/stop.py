"""`pidabs signal` and `pidabs stop`: to the process that holds a lock, and no other.

Rules:
- Only who the kernel says called listen() on the lock last, and is not seen to have lost it since, is signalled; only
  through a pidfd, so that a recycled pid is never hit.  Who merely has the socket open may have been handed it by a
  stranger: such a process is named, and left alone.
- Never this very process, which may have been started with the lock (`pidabs run x -- pidabs stop x`).
- To have stopped means that the process is gone.  One that lets go of the lock and lives on has not.
"""

from __future__ import annotations

import os
import re
import signal as signals
from time import monotonic, sleep

from .. import Holder, Lock, LockError, _diag, _linux
from .._holder import ask
from ._codes import DONE, FAILED, FREE, USAGE, Unknown
from ._find import Found, has_ended, named, one, process, unknown
from ._proc import has_open, is_guard
from ._text import complain, quoted, reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_TRIES = 5  # to find the holder while the lock changes hands, which takes a millisecond
_PAUSE = 0.005
_TAKE_OVER = 1.0  # seconds for waiters to take the lock of a process that is gone, or for what it supervised to die


def signal(arguments: argparse.Namespace) -> int:
    """Send a signal to a lock's holder."""
    number = signal_number(arguments.signal)
    if number is None:
        complain(f"no such signal: {quoted(arguments.signal)}; `kill -l` lists them")
        return USAGE
    lock = named(arguments)
    holder = _holder_of(lock)
    if holder is None:
        complain(f"lock {quoted(lock.name)} is free: there is nobody to signal")
        return FREE
    return _send(lock, holder, number, process(holder.pid, holder.command))


def stop(arguments: argparse.Namespace) -> int:
    """Send SIGTERM to a lock's holder and wait until that process is gone; then, if asked to, SIGKILL."""
    lock = named(arguments)
    holder = _holder_of(lock)
    if holder is None:
        return reply(f"lock {quoted(lock.name)} is free: nothing to stop", DONE, DONE)
    who = process(holder.pid, holder.command)
    waiters = _linux.attempt(lock.waiters)
    for number in (signals.SIGTERM, signals.SIGKILL) if arguments.kill else (signals.SIGTERM,):
        code = _send(lock, holder, number, who, gone=DONE)
        if code != DONE:
            return code
        if holder.wait(arguments.timeout):
            return reply(f"{who} is gone; {_successor(lock, waiters)}", DONE, DONE)
    complain(_still_there(lock, holder, who, arguments))
    return FAILED


def signal_number(text: str) -> int | None:
    """SIGTERM, term, RTMIN+1, RTMAX-1 or 15; None if there is no such signal."""
    if re.fullmatch(r"\d{1,3}", text, re.ASCII):
        return int(text) if int(text) <= signals.SIGRTMAX else None
    found = re.fullmatch(r"(?:SIG)?(?:(RTMIN|RTMAX)([+-]\d{1,2})|([A-Z0-9]+))", text.upper(), re.ASCII)
    number = getattr(signals, f"SIG{found[1] or found[3]}", None) if found else None
    if number is None or not found or not found[2]:
        return number
    number += int(found[2])
    return number if signals.SIGRTMIN <= number <= signals.SIGRTMAX else None


def _holder_of(lock: Lock) -> Holder | None:
    """The process that holds the lock, for certain; None if the lock is free.  Raises Unknown."""
    name = quoted(lock.name)
    pid = None
    try:
        for _ in range(_TRIES):
            holder = ask(lock.address, sparing=False)
            if holder is None:
                return None
            if holder.gid is None:  # it could not be asked, by a connection
                why = f"cannot ask who holds lock {name}: its queue is full, or a sandbox denies it"
                raise Unknown(f"{why}; {_seen(lock)}")
            if holder.pid is None:
                where = f"in another pid namespace, with uid {holder.uid}"
                raise Unknown(f"the holder of lock {name} is {where}; signal it from there")
            pid = holder.pid
            if not has_ended(holder) and _has(pid, lock) is not False:
                return holder
            sleep(_PAUSE)  # it is just being handed on, or taken after its holder's death
    except OSError as exc:
        raise unknown(exc, lock) from exc
    raise Unknown(f"pid {pid}, which took lock {name}, has it no longer; {_seen(lock)}")


def _has(pid: int, lock: Lock) -> bool | None:
    """Whether the process has the lock's socket open; None if that cannot be seen."""
    listed = _linux.attempt(_diag.find, lock.address)
    return None if listed is None else has_open(pid, listed.inode)


def _send(lock: Lock, holder: Holder, number: int, who: str, gone: int = FAILED) -> int:
    """Whether it was sent, as an exit code; `gone` if the process has ended meanwhile.  Raises Unknown."""
    if holder.pid == os.getpid():
        complain(f"this very process holds lock {quoted(lock.name)}, it was started with it; it does not signal itself")
        return FAILED
    try:
        holder.send_signal(number)
    except ProcessLookupError:
        if gone != DONE:
            complain(f"{who} is gone; `pidabs status` says who holds lock {quoted(lock.name)} now")
        return gone
    except PermissionError:
        complain(f"not permitted to signal {who}, uid {holder.uid}; do it as that user or as root")
        return FAILED
    except (LockError, OSError) as exc:
        raise Unknown(f"cannot signal {who}: {exc}") from exc
    return DONE


def _seen(lock: Lock) -> str:
    """What may be said about a lock whose holder cannot be asked."""
    try:
        found = one(lock)
    except Unknown:
        found = None
    if found is None:
        return "try again"
    if found.pid is None:
        return found.advice()
    return f"{found} is seen to have it: if that is the one, use kill"


def _successor(lock: Lock, waiters: int | None) -> str:
    """Who has the lock now."""
    end = monotonic() + _TAKE_OVER
    try:
        while ((found := one(lock)) is None and waiters) or _is_guarded(found) or _has_let_go(found):
            if monotonic() > end:
                break
            sleep(_PAUSE)
    except Unknown:
        return "who holds the lock now is not known"
    name = quoted(lock.name)
    if found is None:
        return f"lock {name} is free"
    if found.pid is None and has_open(os.getpid(), found.inode):
        return f"lock {name} is free when this command has ended, too, which was started with it"
    if _is_guarded(found):
        return f"lock {name} is free when the command that it supervised has ended; it has been killed, if that can be"
    return f"lock {name} is now held by {found}, which was not stopped"


def _is_guarded(found: Found | None) -> bool:
    """Whether `pidabs run --supervise` was killed, and its command is just dying."""
    return found is not None and found.pid is not None and is_guard(found.pid)


def _has_let_go(found: Found | None) -> bool:
    """Whether it was just being let go as we looked."""
    return found is not None and _linux.attempt(_diag.owns, found.inode, found.address) is False


def _still_there(lock: Lock, holder: Holder, who: str, arguments: argparse.Namespace) -> str:
    waited = f"{arguments.timeout:g} s after {'SIGKILL' if arguments.kill else 'SIGTERM'}"
    if arguments.kill:
        return f"{who} is still dying, {waited}; wait longer"
    try:
        released = not lock.locked() or ((found := one(lock)) is not None and found.pid not in (None, holder.pid))
    except (OSError, Unknown):
        released = False
    if _stopped(holder):
        scope = f"--scope {quoted(arguments.scope)} " if arguments.scope else ""
        resume = f"`pidabs signal {scope}{quoted(lock.name)} CONT`"
        return f"{who} is suspended, and gets SIGTERM when it goes on; {resume}, or stop it with --kill"
    if released:
        return f"{who} has let go of lock {quoted(lock.name)}, but still runs {waited}; stop it by its pid"
    return f"{who} still runs, {waited}; wait longer, or stop it with --kill"


def _stopped(holder: Holder) -> bool:
    try:
        with open(f"/proc/{holder.pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t") and not has_ended(holder)
