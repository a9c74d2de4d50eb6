"""`pidabs completion`: the completion of bash, zsh and fish.

The scripts in completions/ ask `pidabs completion SHELL ask ...` at each TAB, so they know nothing themselves, and
never have to be generated anew.  An answer is lines: what the shell has to add itself, then a candidate in each, with
its help after a tab.

Any local user can take a lock of any name, so the names are hostile input to a shell.  Names with control characters
or a ~ in front, or that are not text, are never offered; all others are quoted: by zsh and fish themselves, for bash
here.
"""

from __future__ import annotations

import os
import re
import sys

from ._candidates import Place, candidates
from ._codes import DONE, USAGE
from ._text import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_SCRIPTS = {"bash": "pidabs", "zsh": "_pidabs", "fish": "pidabs.fish"}


def completion(parsed: argparse.Namespace) -> int:
    """Print the script of a shell, or an answer to it."""
    marker, *question = parsed.question or ("",)
    asked = len(question) == 2 if parsed.shell == "bash" else bool(question)
    if marker not in ("", "ask") or (marker and not asked):
        complain(f"unrecognized arguments: {' '.join(parsed.question)}; see `pidabs completion --help`")
        return USAGE
    if not marker:
        with open(os.path.join(os.path.dirname(__file__), "completions", _SCRIPTS[parsed.shell]), "rb") as file:
            output = file.read()
    elif parsed.shell == "bash":
        output = _lines(_for_bash(*question))
    else:
        *words, current = question
        place = candidates(words, current)
        output = _lines([_adds(place), *(f"{word}\t{help_}" for word, help_ in place.words)])
    sys.stdout.buffer.write(output)
    return DONE


def _lines(lines: list[str]) -> bytes:
    return b"".join(os.fsencode(line) + b"\n" for line in lines)


def _adds(place: Place) -> str:
    if place.command >= 0:
        return f"command {place.command}"
    return "files" if place.files else "nothing"


def _for_bash(line: str, breaks: str) -> list[str]:
    """The answer for the line up to the cursor: bash splits words as no other shell does, and quotes none."""
    split = Split(line, breaks)
    if not split.understood:
        return ["nothing"]
    place = candidates(split.words[1:], split.current)
    if place.command >= 0:
        # There, where it is to go on, in characters.
        return [f"command {split.starts[place.command + 1]}"]
    matching = [word[split.replaced :] for word, _ in place.words if word.startswith(split.current)]
    quoted = (quote(word, split.quote) for word in matching)
    return [_adds(place), *(word for word in quoted if word is not None)]


class Split:
    """A line of bash, split into words that are rid of their quotes.

    `current` is the unfinished one, `quote` the quote that is open in it.  bash replaces its part from `replaced` on:
    what follows a quote or one of `breaks`.
    """

    def __init__(self, line: str, breaks: str) -> None:
        self.words: list[str] = []
        self.starts: list[int] = []
        self.current: str = ""
        self.quote: str = ""
        self.replaced: int = 0
        self.understood: bool = True
        inside = False
        characters = iter(enumerate(line))
        for index, character in characters:
            if not self.quote and character in " \t\n":
                if inside:
                    self.words.append(self.current)
                    self.current, self.replaced, inside = "", 0, False
                continue
            if not inside:
                self.starts.append(index)
                inside = True
            if character == self.quote:
                self.quote, self.replaced = "", len(self.current)
            elif self.quote == "'":
                self.current += character
            elif character in "$`" or (not self.quote and character in ";|&()<>"):
                self.understood = False  # only bash knows what becomes of it
            elif character == "\\":
                _, escaped = next(characters, (0, ""))  # one at the very end escapes nothing yet
                self.current += "\\" + escaped if self.quote and escaped not in '"\\$`' else escaped
            elif not self.quote and character in "'\"":
                self.quote, self.replaced = character, len(self.current)
            else:
                self.current += character
                if not self.quote and character in breaks:
                    self.replaced = len(self.current)
        if not inside:
            self.starts.append(len(line))


def quote(word: str, inside: str) -> str | None:
    """As bash has to read it, inside of the quotes that are open; None if it cannot be written there."""
    if not inside:
        return re.sub(r"([^\w@%+=:,./-])", r"\\\1", word)
    if inside == '"' and "!" in word:
        return None  # an interactive bash would expand it, escaped or not
    quoted = word.replace("'", r"'\''") if inside == "'" else re.sub(r'([\\"$`])', r"\\\1", word)
    # bash closes the quotes, unless it believes that they are.
    return quoted + inside if quoted.endswith(inside) else quoted
