"""Becoming the command that `pidabs run` is given.

Rule: it finds everything as it would without us: arguments, environment, descriptors, signals.  The one exception:
Python ignores SIGPIPE and SIGXFSZ when it starts and does not tell what they were, so both are set to their default.

The exit codes are the shell's: 127 not found, 126 found and not executable.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from ._codes import CANNOT_EXECUTE, NOT_FOUND, SYSTEM
from ._text import complain, quoted

_SHELL = "/bin/sh"
_REFUSED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO)
"""What is the system's fault, and not the command's."""


def execute(argv: list[str]) -> int:
    """Become the command.  Returns only if that fails: the exit code, after saying why."""
    sys.stdout.flush()
    sys.stderr.flush()
    _restore_locale()
    # A SIGINT that Python's own handler took note of just before the exec would be lost.
    ours = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (*ours, signal.SIGPIPE, signal.SIGXFSZ)}
    try:
        _exec(argv)
    except OSError as exc:
        failed = exc
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return _explain(argv[0], failed)


def _exec(argv: list[str]) -> None:
    """Search PATH as execvp(3) does; Python's own does not give a script without `#!` to the shell."""
    command = argv[0]
    failed = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if not command:
        raise failed
    for path in [command] if "/" in command else [os.path.join(place, command) for place in os.get_exec_path()]:
        try:
            try:
                os.execv(path, argv)
            except OSError as exc:
                if exc.errno != errno.ENOEXEC:
                    raise
                os.execv(_SHELL, [_SHELL, path, *argv[1:]])
        except OSError as exc:
            if exc.errno == errno.ENOENT and os.path.exists(path):
                exc = OSError(errno.ENOEXEC, "the interpreter that it names is not there")
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                failed = exc
                if exc.errno != errno.EACCES:
                    break
    raise failed


def _explain(command: str, exc: OSError) -> int:
    if exc.errno == errno.ENOENT:
        where = "there is no such file" if "/" in command else "no directory of PATH has it"
        complain(f"cannot run {quoted(command)}: {where}")
        return NOT_FOUND
    hint = "; it has to be an executable file" if exc.errno == errno.EACCES else ""
    complain(f"cannot run {quoted(command)}: {exc.strerror}{hint}")
    return SYSTEM if exc.errno in _REFUSED else CANNOT_EXECUTE


def _restore_locale() -> None:
    """In the C locale, which cron's is, Python sets LC_CTYPE, for its children too (PEP 538)."""
    if "LC_CTYPE" not in os.environ:
        return
    try:
        with open("/proc/self/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return
    values = [value[len(b"LC_CTYPE=") :] for value in variables if value.startswith(b"LC_CTYPE=")]
    if not values:
        del os.environ["LC_CTYPE"]
    elif values[0] != os.environb[b"LC_CTYPE"]:
        os.environb[b"LC_CTYPE"] = values[0]
