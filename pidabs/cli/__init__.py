"""The command: where each of its commands is, and what becomes of their errors.

Each error is one line on stderr that says what to do.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from importlib import import_module

from .. import LockError, Unsupported
from ._codes import FAILED, SIGNALLED, SYSTEM, UNAVAILABLE, UNKNOWN, Unknown
from ._text import complain, flush, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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

_REFUSED = {"run": SYSTEM, **dict.fromkeys(("status", "pid", "list", "wait", "signal", "stop"), UNKNOWN)}
"""The exit code when the system refuses what the command cannot do without; of all others, FAILED."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `pidabs`: its exit code.  Usage errors raise SystemExit, as argparse does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _complain_of
    try:
        _fill_standard_streams()
        try:
            return _run(words)
        finally:
            flush()  # here and not at exit, where Python would only complain
    except BrokenPipeError:  # who read our output has seen enough, as `head` does
        return SIGNALLED + signal.SIGPIPE
    except KeyboardInterrupt:
        return _die_of_interrupt()
    except Unsupported as exc:
        complain(exc)
        return UNAVAILABLE
    except Unknown as exc:
        complain(exc)
        return UNKNOWN
    except (LockError, OSError) as exc:
        complain(reason(exc))
        return _REFUSED.get(words[0] if words else "", FAILED)


def _run(words: list[str]) -> int:
    from ._parser import parse  # takes the longest; inside of `main` a ^C makes no traceback of it

    parsed = parse(words)
    # Each command is imported when it is run: no other pays for it.
    module, _, function = _COMMANDS[parsed.command].partition(":")
    code: int = getattr(import_module(module, __name__), function)(parsed)
    return code


def _complain_of(message: Warning | str, *_: object, **__: object) -> None:
    complain(message)


def _die_of_interrupt() -> int:
    """As the shell wants it: a script stops at ^C only if its command was killed by it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    return SIGNALLED + signal.SIGINT  # blocked


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
