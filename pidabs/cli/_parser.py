"""What can be typed: the commands, their options and their help, from which the man page and completions are made, too.

No command is imported here: none pays for another.
"""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CONFLICT = 1

_NAME = "the lock: a path, if it has a slash, else a name that stands for itself"
_SECONDS = "seconds, such as 2.5"


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="pidabs",
        description="Locks that die with their holder: run a command under one, see who holds it, stop that process.",
        epilog="Exit codes: see `pidabs COMMAND --help`. 2 is wrong usage, everywhere; 69: it cannot be done here.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name: str, help_: str, codes: str, **options: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help_,
            description=help_[0].upper() + help_[1:] + ".",
            epilog=f"Exit codes: {codes}",
            allow_abbrev=False,
            **options,
        )
        if name not in ("list", "doctor", "demo", "completion"):
            added.add_argument("name", metavar="NAME", help=_NAME)
            added.add_argument("--scope", metavar="LABEL", help="sets locks of one name apart (default: $PIDABS_SCOPE)")
        return added

    run = command(
        "run",
        "run a command while holding a lock",
        f"the command's own, 128+N if signal N killed it; {CONFLICT} (or -E) if the lock is held; 71 for a system "
        "error; 126 if the command cannot be executed, 127 if it is not found.",
        usage="pidabs run [options] NAME [--] CMD [ARG ...]",
    )
    waiting = run.add_mutually_exclusive_group()
    waiting.add_argument("-w", "--timeout", type=seconds, metavar="S", help=f"wait at most so many {_SECONDS}")
    waiting.add_argument("-n", "--nonblock", action="store_true", help="do not wait")
    run.add_argument("--mirror", metavar="PATH", help="keep a PID file there, for people and tools")
    run.add_argument(
        "-E", "--conflict-exit-code", type=exit_code, default=CONFLICT, metavar="CODE", help="if the lock is held"
    )
    run.add_argument(
        "--supervise",
        action="store_true",
        help="stay, forward signals, and let the lock end with the command; else the command takes the place of "
        "pidabs, and the lock is free when the last process that inherited it is gone",
    )
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments")

    status = command("status", "say who holds a lock", "0 held, 3 free, 4 unknown.")
    status.add_argument("--json", action="store_true", help="one object; docs/command.md has its schema")
    command("pid", "print the pid of a lock's holder", "0 printed, 3 free, 4 unknown.")
    list_ = command(
        "list", "list the locks that are held, their holders and waiters", "0, 4 if it cannot be found out."
    )
    list_.add_argument("--json", action="store_true", help="an array; docs/command.md has its schema")
    wait = command("wait", "wait until a lock is free, without taking it", "0 free, 1 still held, 4 unknown.")
    wait.add_argument("-w", "--timeout", type=seconds, metavar="S", help=f"at most so many {_SECONDS}")
    send = command("signal", "send a signal to a lock's holder", "0 sent, 1 not sent, 3 free, 4 unknown.")
    send.add_argument("signal", metavar="SIG", help="its name or number: TERM, SIGHUP, 15, 0")
    stop = command(
        "stop",
        "send SIGTERM to a lock's holder and wait until that process is gone",
        "0 gone, or the lock was free; 1 not gone; 4 unknown.",
    )
    stop.add_argument(
        "-w", "--timeout", type=seconds, default=10.0, metavar="S", help="so many seconds (default: %(default)s)"
    )
    stop.add_argument("--kill", action="store_true", help="then send SIGKILL, and wait as long again")
    doctor = command(
        "doctor",
        "say what this kernel and sandbox allow, and measure how fast a killed holder's lock is free here",
        "0 if locks work here, 1 if not.",
    )
    doctor.add_argument("--json", action="store_true", help="one object; docs/command.md has its schema")
    doctor.add_argument("--quick", action="store_true", help="measure nothing")
    doctor.add_argument("--plot", metavar="FILE.svg", help="draw how the measured times are distributed")
    completion = command("completion", "print a completion script for a shell", "0.")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")
    # What these scripts ask at each TAB: `ask` and the words so far.  Not an option, whose rest would end at a `--`.
    completion.add_argument("question", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command("demo", "show, with real processes and real kills, what pidabs is for", "0 if all is as claimed, 1 if not.")
    return top


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return value


def exit_code(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"not an exit code, 0 to 255: {text!r}")
    return value


class _Parser(argparse.ArgumentParser):
    """Like argparse's own, but what it repeats of the command line cannot move a terminal's cursor."""

    def error(self, message: str) -> NoReturn:
        super().error("".join(char if char.isprintable() else ascii(char)[1:-1] for char in message))


class _Version(argparse.Action):
    """Like argparse's own, but looks the version up when asked: that import takes longer than all of pidabs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"pidabs {version('pidabs')}")
        except PackageNotFoundError:
            parser.exit(1, "pidabs: not installed, so it has no version\n")
        parser.exit()
