"""Check handoff.pml with spin: `python model/check.py [--long] [NAME ...]`.  Needs spin and a C compiler.

- Each CONFIGURATION has to pass: no property is violated in any state, and no execution is endless.
- Each MUTANT breaks one rule of the protocol, and has to be found out, by the property that the rule is there for.
- Each LIMIT is a property that is stronger than what pidabs promises: it has to be violated, else promise more.

docs/model.md has the results and explains them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).with_name("handoff.pml")
SECONDS = 1800
MEGABYTES = 8000
ENDLESS = "endless"
PROPERTIES = {
    "two_owners": "two processes believe that they hold the lock",
    "stuck": "a process that runs waits for ever",
    "leaked": "nobody is left, and the name is taken",
    "overtaken": "a waiter that runs is passed over",
    "asleep": "granted to one who was stopped before the offer, and still is",
    "still_taken": "let go with nobody waiting, and the name is taken",
    ENDLESS: "an execution without end",
}


class Case(NamedTuple):
    name: str
    defines: str
    about: str
    violates: str | None = None
    long: bool = False


class Outcome(NamedTuple):
    states: int
    seconds: float
    violated: str | None
    trace: list[str]


class CheckerError(Exception):
    """spin or the compiler is missing, or did not do its work."""


CONFIGURATIONS = [
    Case("plain", "N=4", "four processes, nothing goes wrong"),
    Case("again", "N=2 ROUNDS=3 CRASHES=1 STOPS=1 GIVEUPS=1", "the lock goes to and fro"),
    Case("crashes", "N=3 CRASHES=2", "killed between any two steps"),
    Case("stops", "N=3 STOPS=1 CRASHES=1", "stopped and continued between any two steps; or too slow"),
    Case("frozen", "N=3 STOPS=1 CRASHES=1 FROZEN", "stopped for ever"),
    Case("give-ups", "N=3 GIVEUPS=1 CRASHES=1", "a timeout, or cancelled"),
    Case("forks", "N=3 FORKS=1 CRASHES=1", "a forked child that has copies of everything for a while"),
    Case("moves", "N=3 MOVES=1 CRASHES=1 STOPS=1 FORKS=1", "across_fork"),
    Case("moves-only", "N=2 MOVES=1 STRICT_FREE", "across_fork, then free at once"),
    Case("threads", "N=3 THREADS CRASHES=1 STOPS=1", "two of the waiters are threads or tasks of one process"),
    Case("full-queue", "N=3 ROOM=1 CRASHES=1", "a backlog with room for one"),
    Case("no-queue", "N=3 ROOM=0 CRASHES=1 STOPS=1", "nobody can queue (Landlock): all poll"),
    Case("all-3", "N=3 CRASHES=1 STOPS=1 GIVEUPS=1 FORKS=1", "all at once, three processes", long=True),
    Case("all-3-again", "N=3 ROUNDS=2 CRASHES=1 STOPS=1", "the same, twice each", long=True),
    Case("crashes-4", "N=4 CRASHES=2", "four processes, two killed", long=True),
    Case("stops-4", "N=4 CRASHES=1 STOPS=1", "four processes, one killed, one stopped", long=True),
    Case("stops-3", "N=3 CRASHES=1 STOPS=3", "three stops: a release may run out of time", long=True),
    Case("frozen-4", "N=4 STOPS=2 FROZEN", "two of four stopped for ever", long=True),
    Case("give-ups-4", "N=4 STOPS=1 GIVEUPS=1", "four processes, one stopped, one gives up", long=True),
    Case("moves-4", "N=4 MOVES=1 CRASHES=1 STOPS=1 FORKS=1", "across_fork with two waiters", long=True),
]

MUTANTS = [
    Case("no-answer", "N=3 STOPS=1 BREAK_NO_ANSWER", "grants without waiting for the answer", "asleep"),
    Case("patient", "N=3 STOPS=1 FROZEN BREAK_PATIENT", "waits for an answer for ever", "stuck"),
    Case("impatient", "N=3 BREAK_IMPATIENT", "skips a waiter that runs", "overtaken"),
    Case("skip-keeps", "N=3 STOPS=1 BREAK_SKIP_KEEPS", "does not close the connection of whom it skips", "stuck"),
    Case("no-last-read", "N=3 GIVEUPS=1 BREAK_NO_LAST_READ", "gives up without reading once more", "overtaken"),
    Case("no-shutdown", "N=3 GIVEUPS=1 BREAK_NO_SHUTDOWN", "gives up without a shutdown first", "overtaken"),
    Case("cancel-closes", "N=3 GIVEUPS=1 BREAK_CANCEL_CLOSES", "cancelled with a grant: closes it", "overtaken"),
    Case("grant-unchecked", "N=3 GIVEUPS=1 BREAK_GRANT_UNCHECKED", "takes a failed grant for done", "overtaken"),
    Case("close-with-waiters", "N=3 BREAK_CLOSE_WITH_WAITERS", "closes without handing over", "overtaken"),
    Case("keep-copy", "N=3 BREAK_KEEP_COPY", "keeps its listener after the grant", "leaked"),
    Case("drop-after-grant", "N=3 BREAK_DROP_AFTER_GRANT", "holds the lock until the grant is sent", "two_owners"),
    Case("end-is-mine", "N=3 BREAK_END_IS_MINE", "takes the end of its wait for the lock, no bind", "two_owners"),
    Case("refused-sleeps", "N=3 BREAK_REFUSED_SLEEPS", "sleeps when its connect was refused", "stuck"),
    Case("no-pause", "N=3 BREAK_NO_PAUSE", "polls without a pause when it was refused", ENDLESS),
    Case("fork-keeps", "N=3 FORKS=1 BREAK_FORK_KEEPS", "a forked child keeps its copies", "leaked"),
    Case("parent-stays", "N=3 MOVES=1 BREAK_PARENT_STAYS", "across_fork: the parent goes on holding", "two_owners"),
    Case("drop-in-fork", "N=3 MOVES=1 BREAK_DROP_IN_FORK", "a release during the fork hands over", "two_owners"),
    Case("child-hurries", "N=2 MOVES=1 STRICT_FREE BREAK_CHILD_HURRIES", "goes on before its parent", "still_taken"),
    Case("crash-keeps", "N=3 CRASHES=1 BREAK_CRASH_KEEPS", "the kernel forgets to close, as with a file", "leaked"),
]

LIMITS = [
    Case("order-at-close", "N=3 STRICT_ORDER", "who joins after the last look has no place", "overtaken"),
    Case("free-at-once", "N=2 STRICT_FREE", "the one who granted may not have closed its copy yet", "still_taken"),
    Case("stopped-granter", "N=3 STOPS=1 FROZEN STRICT_STOP", "nor ever, if it was stopped just then", "stuck"),
]


def run(case: Case) -> Outcome:
    """Raises CheckerError; a property that is violated is an outcome."""
    defines = [f"-D{define}" for define in case.defines.split()]
    # Most of a quick case's time goes into the compiler.
    quality, table = (["-O2", "-DCOLLAPSE"], "-w26") if case.long else (["-O0"], "-w22")
    with tempfile.TemporaryDirectory(prefix="pidabs-model-") as directory:
        shutil.copy(MODEL, directory)
        _call(directory, "spin", "-a", *defines, MODEL.name)
        # Without partial order reduction: every step touches what others see, so it saves nothing.
        _call(directory, "cc", "-w", *quality, "-DNP", "-DNOREDUCE", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c")
        began = time.monotonic()
        said = _call(directory, "./pan", "-l", "-n", "-m100000", table)
        seconds = time.monotonic() - began
        found = re.search(r"(\d+) states, stored", said)
        if found is None or ("Search not completed" in said and "errors: 0" in said):
            raise CheckerError(f"{case.name}: the search was not completed:\n{said}")
        violated = _violated(said)
        trace = _trace(directory, defines) if violated else []
    return Outcome(int(found[1]), seconds, violated, trace)


def never_taken(defines: str) -> list[str]:
    """The rules of the model that no execution takes, as the lines where they begin."""
    with tempfile.TemporaryDirectory(prefix="pidabs-model-") as directory:
        shutil.copy(MODEL, directory)
        _call(directory, "spin", "-a", *(f"-D{define}" for define in defines.split()), MODEL.name)
        _call(directory, "cc", "-w", "-O1", "-DSAFETY", "-DNOREDUCE", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c")
        said = _call(directory, "./pan", "-m100000", "-w22")
    if "errors: 0" not in said or "Search not completed" in said:
        raise CheckerError(f"the search was not completed:\n{said}")
    return [line for line in re.findall(r"handoff\.pml:(\d+, state .*)", said) if "-end-" not in line]


def _call(directory: str, *command: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS
        )
    except FileNotFoundError as exc:
        raise CheckerError(f"{command[0]} is missing: install spin and a C compiler (Debian: spin, gcc)") from exc
    if done.returncode != 0 and command[0] != "./pan":  # which says itself what it found
        raise CheckerError(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def _violated(said: str) -> str | None:
    errors = re.findall(r"pan:\d+: (.*)", said)
    if not errors:
        return None
    assertion = re.match(r"assertion violated\s+!\((\w+)\)", errors[0])
    if assertion is not None and assertion[1] in PROPERTIES:
        return assertion[1]
    return ENDLESS if errors[0].startswith("non-progress cycle") else errors[0]


def _trace(directory: str, defines: list[str]) -> list[str]:
    """What each process does, step by step, until the property is violated."""
    steps = re.findall(r"^ *(P\d \w+)", _call(directory, "spin", *defines, "-t", MODEL.name), re.MULTILINE)
    return [f"{number:3}. {step}" for number, step in enumerate(steps, 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the model of the protocol.")
    parser.add_argument("--long", action="store_true", help="the large configurations, too: some ten minutes, 2 GB")
    parser.add_argument("--trace", action="store_true", help="print how mutants and limits are violated")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these configurations, mutants or limits")
    options = parser.parse_args(arguments)
    failed = 0
    for title, cases in ("Configurations", CONFIGURATIONS), ("Mutants", MUTANTS), ("Limits", LIMITS):
        print(f"{title}:")
        for case in cases:
            if case.name not in options.names and (options.names or (case.long and not options.long)):
                continue
            outcome = run(case)
            good = outcome.violated == case.violates
            failed += not good
            found = outcome.violated or "holds"
            print(f"  {case.name:18} {outcome.states:10,} states {outcome.seconds:7.1f} s  {found:11} {case.about}")
            if not good:
                print(f"    WRONG: expected {case.violates or 'no violation'}")
            if not good or options.trace:
                print(*(f"    {step}" for step in outcome.trace), sep="\n")
            sys.stdout.flush()
    print(f"{failed} not as expected" if failed else "all as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckerError as exc:
        sys.exit(f"check.py: {exc}")
