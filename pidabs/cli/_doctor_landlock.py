"""Whether we are in a Landlock sandbox that may not connect to abstract sockets made outside of it (Linux 6.12).

The kernel does not tell a process its Landlock domains, but it stacks 16 at the most: how many more a thread can enter
tells how many it is in.  A thread that does this is restricted for the rest of its short life; its process is not.
And a lock that somebody else holds can be connected to, or not: that is asked only inside of a sandbox, since a
connection leaves a dead entry in that lock's queue.
"""

from __future__ import annotations

import _thread
import errno
import os
import socket
from struct import pack

from .. import _diag
from .._names import PREFIX, parse
from ._doctor_finding import OK, UNKNOWN, WARN, Finding

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1
_FIRST_WITH_SCOPES = 6
_SCOPE_ABSTRACT_UNIX_SOCKET = 1
_MOST_LAYERS = 16
_SET_NO_NEW_PRIVILEGES = 38
_MOST_ASKED = 3
_REMEDY = "to wait in line, and to see who holds a lock: no abstract-socket scope in the sandbox's Landlock ruleset"


def landlock() -> Finding:
    if os.uname().machine == "alpha":
        return Finding(UNKNOWN, "its system calls have other numbers on this machine")
    try:
        from ctypes import CDLL, c_size_t, get_errno

        syscall = CDLL(None, use_errno=True).syscall
    except (ImportError, OSError) as exc:
        return Finding(UNKNOWN, f"cannot be asked: this Python has no ctypes ({exc})")
    version = syscall(_CREATE_RULESET, None, c_size_t(0), _VERSION)
    if version < 0 and get_errno() not in (errno.ENOSYS, errno.EOPNOTSUPP):
        return _by_connecting(f"its system calls are denied ({errno.errorcode.get(get_errno())})")
    if version < _FIRST_WITH_SCOPES:
        return Finding(OK, "it is off" if version < 0 else "it knows no scopes in this kernel (they came with 6.12)")
    layers = _count_layers()
    if layers == 0:
        return Finding(OK, "we are in no sandbox of it")
    return _by_connecting("whether we are in a sandbox cannot be found out" if layers is None else f"layers: {layers}")


def _count_layers() -> int | None:
    from ctypes import CDLL, c_size_t, create_string_buffer, get_errno

    libc = CDLL(None, use_errno=True)
    entered: list[int] = []
    done = _thread.allocate_lock()

    def enter_all() -> None:
        try:
            rules = create_string_buffer(pack("=QQQ", 0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET))
            ruleset = libc.syscall(_CREATE_RULESET, rules, c_size_t(24), 0)
            if ruleset < 0 or libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
                return
            count = 0
            while count <= _MOST_LAYERS and libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0:
                count += 1
            if get_errno() == errno.E2BIG:
                entered.append(count)
            os.close(ruleset)
        finally:
            done.release()

    done.acquire()
    try:
        _thread.start_new_thread(enter_all, ())
    except RuntimeError:
        return None
    done.acquire()
    return _MOST_LAYERS - entered[0] if entered and entered[0] <= _MOST_LAYERS else None


def _by_connecting(context: str) -> Finding:
    """Ask the lock of somebody else, if there is one."""
    try:
        others = [found.address for found in _diag.sockets(PREFIX) if found.listening and parse(found.address)]
    except OSError:
        others = []
    for address in others[:_MOST_ASKED]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(address)
            except PermissionError:
                return Finding(
                    WARN,
                    f"a lock's holder outside cannot be reached ({context}): locks exclude, but we cannot wait in line",
                    "a Landlock scope around this process: connect is denied, and we try again every 1 to 50 ms",
                    _REMEDY,
                )
            except OSError:
                continue
        return Finding(OK, f"a lock's holder could be reached ({context})")
    return Finding(
        UNKNOWN,
        f"{context}; whether one of them keeps us from waiting for locks held outside cannot be seen",
        "nobody holds a lock whom we could ask",
        "outside, run `pidabs run doctor -- sleep 60`, and this again meanwhile",
    )
