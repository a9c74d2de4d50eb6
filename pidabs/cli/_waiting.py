"""The line that tells, on a terminal, whom we wait for and for how long.

Rules: nothing without a terminal, cron mails every word; nothing while we are in the background, where somebody else's
line would be overwritten; nothing is left of it at the end.

Asking who holds the lock leaves a dead entry in the holder's queue, so it is done once, again when that process is
gone, and else ever more seldom.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from ._find import has_ended
from ._text import cut, duration, encodable, encoding, quoted, terminal_width, width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import Holder, Lock

INTERVAL = 0.2
"""Seconds between two looks at the clock; a shorter wait shows nothing."""

_ASK_AGAIN = 30.0  # seconds; doubles
_COLUMNS = 80


class WaitingLine:
    """Called every INTERVAL while we wait, as Lock.acquire's `cancel_check`."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._began = monotonic()
        self._shown = ""
        self._who = ""
        self._holder: Holder | None = None
        self._ask_at = 0.0

    def __call__(self) -> bool:
        waited = monotonic() - self._began
        if waited >= INTERVAL and _in_foreground():
            self._ask(waited)
            text = f"pidabs: waiting {duration(waited)} for lock {quoted(self._lock.name)}{self._who}"
            text = cut(encodable(text, sys.stderr), _columns() - 1, sys.stderr)  # a longer one would be left behind
            if text != self._shown:
                _write("\r" + text + " " * (width(self._shown) - width(text)))
                self._shown = text
        return False

    def erase(self) -> None:
        if self._shown and _in_foreground():
            # The terminal itself shows a ^C, before this, after, or amidst it: all the same where it can clear a line.
            plain = os.environ.get("TERM", "dumb") == "dumb"
            _write("\r" + " " * (_columns() - 1) + "\r" if plain else "\r\033[K")
        self._shown = ""

    def _ask(self, waited: float) -> None:
        if waited < self._ask_at and not (self._holder is not None and has_ended(self._holder)):
            return
        self._ask_at = max(_ASK_AGAIN, 2 * waited)
        try:
            holder = self._lock.holder()
        except OSError:
            return
        self._who = f", held by {holder}" if holder is not None else ""
        self._holder = holder
        if holder is not None and has_ended(holder):
            self._who += ", which has ended; a process that it started has the lock still open"
            self._holder = None  # to have asked once is enough


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(2) == os.getpgrp()
    except OSError:
        return True  # not the terminal that controls us


def _columns() -> int:
    return terminal_width(2) or _COLUMNS


def _write(text: str) -> None:
    try:
        os.write(2, text.encode(encoding(sys.stderr)))
    except OSError:
        pass
