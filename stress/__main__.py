"""The command; see __init__.py."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from typing import NoReturn

from .figures import Figures
from .signals import signals
from .storm import storm


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stress", description="Attempts to make the lock fail.")
    commands = parser.add_subparsers(dest="command", required=True)
    raging = commands.add_parser("storm", help="workers of every kind, killed, stopped and frozen at random")
    raging.add_argument("--seconds", type=float, help="how long (default: 60, without --kills)")
    raging.add_argument("--kills", type=int, help="until so many processes have been killed")
    raging.add_argument("--rounds", type=int, default=200, help="of queueing in order (default: %(default)s)")
    raging.add_argument("--stall", type=float, default=2.0, help="seconds that count as a stall (default: %(default)s)")
    raging.add_argument(
        "--sabotage",
        choices=("exclusion", "lost", "leak", "stall", "order"),
        default="",
        help="spoil the lock so that this trouble has to be found, and end when it is",
    )
    striking = commands.add_parser("signals", help="exceptions at random moments, and at every line")
    striking.add_argument("--count", type=int, default=50000, help="out of signal handlers (default: %(default)s)")
    for command in raging, striking:
        command.add_argument("--seed", default=str(random.getrandbits(32)))
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _end)
    figures = signals(options.count, options.seed) if options.command == "signals" else _storm(options)
    print(figures.as_json() if options.json else figures.as_table())
    return 0 if figures.passed else 1


def _end(*_: object) -> NoReturn:
    """Clear up, and end."""
    sys.settrace(None)  # an exception that is injected later would take the place of ours
    sys.exit(128 + signal.SIGTERM)


def _storm(options: argparse.Namespace) -> Figures:
    seconds = options.seconds
    if seconds is None:
        seconds = float("inf") if options.kills is not None else 60.0
    kills = sys.maxsize if options.kills is None else options.kills
    return storm(seconds, kills, options.rounds, options.seed, options.stall, options.sabotage)


sys.exit(main())
