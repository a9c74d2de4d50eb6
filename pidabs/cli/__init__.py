"""The command: where each of its commands is, and its exit codes.

0    done; the lock is held
1    not done, or the lock is in the way; the reason is on stderr
2    wrong usage
3    the lock is free (LSB)
4    it could not be found out (LSB)
69   cannot be done here: something is not installed, or the system is not supported (EX_UNAVAILABLE)
71   `run` only: the system refused something (EX_OSERR); 126 and 127: the command cannot be executed, is not found
128+N  ended by signal N

Each error is one line on stderr that says what to do.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

from .. import LockError, Unsupported
from ._parser import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DONE = 0
FAILED = 1
USAGE = 2
FREE = 3
UNKNOWN = 4
UNAVAILABLE = 69
SYSTEM = 71

_COMMANDS = {
    "run": ".run:run",
    "status": ".ask:status",
    "pid": ".ask:pid",
    "list": ".ask:list_",
    "wait": ".ask:wait",
    "signal": ".stop:signal",
    "stop": ".stop:stop",
    "doctor": ".doctor:doctor",
    "migrate": ".migrate:migrate",
    "completion": ".completion:completion",
    "demo": ".demo:demo",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `pidabs`: its exit code.  Usage errors raise SystemExit, as argparse does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _fill_standard_streams()
        parsed = parse(words)
        # Each command is imported when it is run: no other pays for it.
        module, _, function = _COMMANDS[parsed.command].partition(":")
        code: int = getattr(import_module(module, __name__), function)(parsed)
        if sys.stdout is not None:  # closed by who started us
            sys.stdout.flush()  # here and not at exit, where Python would only complain about a broken pipe
    except BrokenPipeError:
        # Who read our output has seen enough, as `head` does.  Python flushes again at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Unsupported as exc:
        return _fail(exc, UNAVAILABLE)
    except (LockError, OSError) as exc:
        return _fail(exc, SYSTEM if words[:1] == ["run"] else FAILED)
    return code


def complain(text: object) -> None:
    """One line on stderr, at once: what stays in a buffer, because stderr is full or gone, fails again at exit."""
    line = f"pidabs: {text}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8", "backslashreplace")
    try:
        os.write(2, line)
    except OSError:
        pass


def _fail(exc: Exception, code: int) -> int:
    complain(exc)
    return code


def _fill_standard_streams() -> None:
    """Where 0, 1 or 2 is closed, a lock's descriptor would get that number, and be taken for input or output.

    Close-on-exec: a command that `run` runs finds them closed, as it would without us.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
