"""The command: its parser and its exit codes.

0    done
1    not done, or the lock is in the way; the reason is on stderr
2    wrong usage
69   cannot be done here: something is not installed, or the system is not supported (EX_UNAVAILABLE)
128+N  ended by signal N
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from .. import LockError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DONE = 0
FAILED = 1
UNAVAILABLE = 69


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `pidabs`: its exit code.  Usage errors raise SystemExit, as argparse does."""
    try:
        parsed = _parser().parse_args(arguments)
        code: int = parsed.run(parsed)
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
        return _fail(exc, FAILED)
    return code


def _fail(exc: Exception, code: int) -> int:
    print(f"pidabs: {exc}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pidabs", description="Locks that die with their holder.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help="show, with real processes and real kills, what pidabs is for")
    demo.set_defaults(run=_demo)
    return parser


# Each command is imported when it is run: no other pays for it.


def _demo(_: argparse.Namespace) -> int:
    from . import demo

    return demo.run()


class _Version(argparse.Action):
    """Like argparse's own, but looks the version up when asked: that import takes longer than all of pidabs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"pidabs {version('pidabs')}")
        except PackageNotFoundError:
            parser.exit(FAILED, "pidabs: not installed, so it has no version\n")
        parser.exit()
