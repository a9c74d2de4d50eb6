"""What can be typed: the commands, their options and their help, from which the man page and completions are made, too.

No command is imported here: none pays for another.
"""

from __future__ import annotations

import argparse
import re

from ._codes import FAILED, USAGE
from ._text import complain, terminal_width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

_NAME = "the lock: a path, if it has a slash, else a name that stands for itself; put -- before one that begins with -"
_SECONDS = "seconds, such as 2.5"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.  Raises SystemExit, as argparse does.

    What `run` is to run is taken off before argparse sees it: it must never take CMD's options for ours, and what it
    makes of `--` differs between Python's releases.
    """
    top, commands = _parsers()
    if words[:1] != ["run"]:
        return _parse(top, commands, words)
    options, name, command = _split(list(words[1:]), commands["run"])
    # In their places, words that mean nothing to argparse; where one is missing it says so.
    placeholders = ["NAME"] * len(name) + ["CMD"] * bool(command)
    parsed = _parse(top, commands, ["run", *options, *placeholders])
    parsed.name, parsed.argv = name[0], command
    return parsed


def parser() -> argparse.ArgumentParser:
    return _parsers()[0]


def _parse(
    top: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser], words: Sequence[str]
) -> argparse.Namespace:
    """As `top.parse_args`, but the command's own help is what a complaint refers to."""
    parsed, surplus = top.parse_known_args(words)
    if surplus:
        commands[parsed.command].error(f"unrecognized arguments: {' '.join(surplus)}")
    return parsed


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """All of it, and the part for each command."""
    top = _Parser(
        prog="pidabs",
        description="Locks that die with their holder: run a command under one, see who holds it, stop that process.",
        epilog="Exit codes: see `pidabs COMMAND --help`. 2 is wrong usage, everywhere; 69: it cannot be done here.",
        allow_abbrev=False,
        formatter_class=_Help,
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
            formatter_class=_Help,
            **options,
        )
        if name not in ("list", "doctor", "migrate", "demo", "completion"):
            added.add_argument("name", metavar="NAME", help=_NAME)
            added.add_argument("--scope", metavar="LABEL", help="sets locks of one name apart (default: $PIDABS_SCOPE)")
        return added

    run = command(
        "run",
        "run a command while holding a lock",
        f"the command's own, 128+N if signal N killed it; {FAILED} (or -E) if the lock is held; 71 for a system "
        "error; 126 if the command cannot be executed, 127 if it is not found.",
        usage="pidabs run [options] [--] NAME [--] CMD [ARG ...]",
    )
    waiting = run.add_mutually_exclusive_group()
    waiting.add_argument("-w", "--timeout", type=seconds, metavar="S", help=f"wait at most so many {_SECONDS}")
    waiting.add_argument("-n", "--nonblock", action="store_true", help="do not wait")
    run.add_argument(
        "--mirror",
        type=_path,
        metavar="PATH",
        help="keep a PID file there, for people and tools; flock'ed while the lock is held, and only with --supervise "
        "removed when the command ends",
    )
    run.add_argument(
        "-E",
        "--conflict-exit-code",
        type=exit_code,
        default=FAILED,
        metavar="CODE",
        help="exit with CODE if the lock is held (default: %(default)s); if CODE is 0, say nothing either",
    )
    run.add_argument(
        "--supervise",
        action="store_true",
        help="stay, forward signals, and let the lock end with the command; else the command takes the place of "
        "pidabs, and the lock is free when the last process that inherited it is gone",
    )
    run.add_argument("argv", nargs="+", metavar="CMD", help="the command and its arguments: all that follows NAME")

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
    migrate = command(
        "migrate",
        "rewrite the imports of filelock, lockfile and daemon.pidfile in Python sources, and say what else to look at",
        "0 nothing to change, or written; 1 something would change, or a file could not be read or written.",
    )
    migrate.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a directory with all that is in it")
    migrate.add_argument("--write", action="store_true", help="change the files; without it the changes are only shown")
    completion = command("completion", "print a completion script for a shell", "0.")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")
    # What these scripts ask at each TAB: `ask` and the words so far.  Not an option, whose rest would end at a `--`.
    completion.add_argument("question", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command("demo", "show, with real processes and real kills, what pidabs is for", "0 if all is as claimed, 1 if not.")
    return top, dict(commands.choices)


def _split(words: list[str], run: argparse.ArgumentParser) -> tuple[list[str], list[str], list[str]]:
    """The words after `run` as our options, NAME, and CMD with its arguments; NAME or CMD may be missing.

    As in POSIX our options end at the first word that is none.  `--` ends them too, and so does one after NAME, where
    an option without it is more likely one of ours, misplaced, than a command.
    """
    valued = {string for action in run._actions if action.nargs is None for string in action.option_strings}
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        at += 1 + _takes_the_next(words[at], valued)
    options, rest = words[:at], words[at:]
    if rest[:1] == ["--"]:
        rest = rest[1:]
    name, command = rest[:1], rest[1:]
    if command[:1] == ["--"]:
        command = command[1:]
    elif command and command[0].startswith("-"):
        run.error(f"{command[0]}: options go before NAME; if it is the command, put -- before it")
    return options, name, command


def _takes_the_next(word: str, valued: set[str]) -> bool:
    """Whether the value of an option is the next word: `-E 3`, `-nE 3`, `--scope x`, but not `-E3` or `--scope=x`."""
    if word.startswith("--"):
        return word in valued
    first = next((index for index, letter in enumerate(word) if f"-{letter}" in valued), None)
    return first == len(word) - 1


def seconds(text: str) -> float:
    if re.fullmatch(r"\d+\.?\d*|\.\d+", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"not a number of {_SECONDS}: {text!r}")
    return float(text)


def exit_code(text: str) -> int:
    if re.fullmatch(r"\d{1,3}", text, re.ASCII) is None or int(text) > 255:
        raise argparse.ArgumentTypeError(f"not an exit code, 0 to 255: {text!r}")
    return int(text)


def _path(text: str) -> str:
    if not text:  # an unset variable of the shell
        raise argparse.ArgumentTypeError("the path is empty")
    return text


class _Parser(argparse.ArgumentParser):
    """Like argparse's own, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see `{self.prog} --help`")
        raise SystemExit(USAGE)


class _Help(argparse.HelpFormatter):
    """Like argparse's own, which imports shutil, and compression with it, to ask how wide the terminal is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(terminal_width() or 80) - 2)


class _Version(argparse.Action):
    """Like argparse's own, but looks the version up when asked: that import takes longer than all of pidabs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"pidabs {version('pidabs')}")
        except PackageNotFoundError:
            complain("not installed, so it has no version; pip install it")
            parser.exit(FAILED)
        parser.exit()
