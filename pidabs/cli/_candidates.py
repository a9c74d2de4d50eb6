"""What can stand at a place of the command line, by the parser: all that the completions of the shells know.

The parser's own tables are read, as every completion of argparse has to; they are private, but old.
"""

from __future__ import annotations

import argparse
import os
import signal

from .. import list_locks
from ._parser import parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = frozenset({"PATH", "FILE.svg"})
"""The metavars of what is a file."""


class Place:
    """What can stand where the cursor is: `words` with a few words of help, and what else the shell itself knows.

    `command` is the index of the word at which another command line starts, whose word this is.
    """

    def __init__(self, words: list[tuple[str, str]] | None = None, files: bool = False, command: int = -1) -> None:
        self.words = words or []
        self.files = files
        self.command = command


def candidates(words: list[str], current: str) -> Place:
    """For the word that begins with `current`, after `words`, of which `pidabs` itself is none."""
    here = parser()
    given: list[argparse.Action] = []
    positionals = _positionals(here)
    pending: argparse.Action | None = None  # an option whose value is next
    scope = ""
    options = True  # until `--`
    for index, word in enumerate(words):
        if pending is None and positionals and positionals[0].metavar == "CMD":
            return Place(command=index + (word == "--"))
        if pending is not None:
            scope = word if pending.dest == "scope" else scope
            pending = None
        elif options and word == "--":
            options = False
        elif options and word[:1] == "-" and word != "-":
            option, value = _option(here, word)
            if option is None:
                return Place()
            given.append(option)
            if option.nargs is None and value is None:
                pending = option
            elif option.dest == "scope":
                scope = value or ""
        elif not positionals:
            return Place()
        elif isinstance(positionals[0], argparse._SubParsersAction):
            if word not in positionals[0].choices:
                return Place()
            here = positionals[0].choices[word]
            given, positionals, options = [], _positionals(here), True
        elif positionals[0].nargs not in ("*", "+"):
            del positionals[0]

    if pending is not None:
        return _values(pending, current, scope, dashes=False)
    if positionals and positionals[0].metavar == "CMD":
        return Place(command=len(words))
    if options and current[:2] == "--" and "=" in current:
        option, value = _option(here, current)
        if option is None or value is None:
            return Place()
        prefix = current.removesuffix(value)
        place = _values(option, value, scope, dashes=True)
        return Place([(prefix + word, help_) for word, help_ in place.words], place.files)
    if options and current[:1] == "-":
        return Place(list(_options(here, given)))
    return _values(positionals[0], current, scope, dashes=not options) if positionals else Place()


def _positionals(here: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in here._actions if not action.option_strings]


def _option(here: argparse.ArgumentParser, word: str) -> tuple[argparse.Action | None, str | None]:
    """The option that a word is, and the value that it contains, if it does."""
    known = here._option_string_actions
    if word[:2] == "--":
        name, equals, value = word.partition("=")
        return known.get(name), value if equals else None
    for index, letter in enumerate(word[1:], 2):  # -n, -w3, -nw 3
        option = known.get(f"-{letter}")
        if option is None or option.nargs is None:
            return option, word[index:] or None
    return option, None


def _options(here: argparse.ArgumentParser, given: list[argparse.Action]) -> Iterator[tuple[str, str]]:
    """Those that can still be given."""
    excluded = set(given)
    for group in here._mutually_exclusive_groups:
        if not excluded.isdisjoint(group._group_actions):
            excluded.update(group._group_actions)
    for action in here._actions:
        if action not in excluded and action.help != argparse.SUPPRESS:
            for name in action.option_strings:
                yield name, help_of(action).partition(";")[0]


def help_of(action: argparse.Action) -> str:
    """The help text of an option or argument."""
    return (action.help or "") % {"default": action.default}


def _values(action: argparse.Action, current: str, scope: str, dashes: bool) -> Place:
    """The values that an option or argument can have; those that begin with a dash only if `dashes`."""
    if isinstance(action, argparse._SubParsersAction):
        return Place([(command.dest, command.help or "") for command in action._choices_actions])
    if action.choices is not None:
        return Place([(str(choice), "") for choice in action.choices])
    if action.metavar in FILES:
        return Place(files=True)
    if action.metavar == "SIG":
        return Place([(member.name.removeprefix("SIG"), "") for member in signal.Signals])
    words: list[tuple[str, str]] = []
    if action.metavar == "LABEL":
        words = [(label, "") for label in sorted({lock.scope for lock in list_locks() if lock.scope})]
    elif action.metavar == "NAME":
        words = list(_names(scope or os.environ.get("PIDABS_SCOPE", "")))
    # fish does not quote a ~.
    first = "~" if dashes else "~-"
    typeable = [(word, help_) for word, help_ in words if word.isprintable() and word[0] not in first]
    # A slash makes it a path, of a file that need not be there.
    return Place(typeable, files=action.metavar == "NAME" and ("/" in current or current[:1] == "~"))


def _names(scope: str) -> Iterator[tuple[str, str]]:
    for lock in list_locks():
        # A '#' is what is left of a name that was too long: it cannot be given.
        if (lock.scope or "") == scope and lock.name[0] != "#":
            yield lock.name, f"held, {lock.waiters} waiting" if lock.waiters else "held"
