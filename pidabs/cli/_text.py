"""What people and programs are shown.

Rules:
- What others chose, such as names and command lines, never reaches a terminal raw.  Each character that is not
  printable is escaped, so is the backslash, and each byte that is not text: no two names look alike by an escape.
- What the output's encoding lacks is escaped, not an error.
- An output that is closed, full or a broken pipe makes no traceback, neither now nor when Python flushes at its exit.
"""

from __future__ import annotations

import os
import sys

from . import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_GAP = "  "


def show(text: str) -> str:
    """The text with everything escaped that could move a cursor or deceive a reader."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not text, see os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quoted(text: str) -> str:
    return f"'{show(text)}'"


def unicode(text: str) -> str:
    """For JSON: the text as UTF-8 whatever the locale, and U+FFFD for what is none, since a half surrogate makes many
    readers refuse the whole document."""
    return os.fsencode(text).decode("utf-8", "replace")


def reply(text: str, code: int, otherwise: int = UNKNOWN) -> int:
    """Write lines to stdout: `code`, or `otherwise` if they cannot be written."""
    out = sys.stdout
    if out is None:  # closed by who started us: the exit code is all that is wanted
        return code
    try:
        _write(out, text)
    except BrokenPipeError:
        raise  # the command's main knows what to do
    except OSError as exc:
        complain(f"cannot write the answer: {exc.strerror}; see where standard output goes")
        return otherwise
    return code


def complain(text: str) -> None:
    """One line on stderr, if there is one."""
    if sys.stderr is None:
        return
    try:
        _write(sys.stderr, f"pidabs: {text}")
    except OSError:
        pass


def _write(out: TextIO, text: str) -> None:
    encoding = out.encoding or "utf-8"
    try:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        out.flush()
    except OSError:
        # What is still buffered would fail again at exit, with a complaint and an exit code of Python's own.
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, out.fileno())
        os.close(null)
        raise


def duration(seconds: float) -> str:
    """In its two largest units."""
    rest = int(seconds)
    parts: list[str] = []
    for length, unit in (86400, "d"), (3600, "h"), (60, "min"), (1, "s"):
        if rest >= length or (unit == "s" and not parts):
            parts.append(f"{rest // length} {unit}")
        rest %= length
    return " ".join(parts[:2])


def table(rows: Sequence[Sequence[str]], right: Sequence[int], widths: Sequence[int]) -> str:
    """Rows in columns; those in `right` are set to the right, and cut to `widths` where these are positive."""
    cells = [[cut(cell, limit) for cell, limit in zip(row, widths, strict=True)] for row in rows]
    columns = [max(map(width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for at, (cell, column) in enumerate(zip(row, columns, strict=True)):
            space = " " * (column - width(cell))
            padded.append(space + cell if at in right else cell + space)
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def terminal_width() -> int:
    """The columns of the terminal on stdout; 0 if it is none, or does not say."""
    try:
        if sys.stdout is None or not sys.stdout.isatty():
            return 0
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


def width(text: str) -> int:
    """The columns that it takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, limit: int) -> str:
    """At most so many columns of it; 0 means all."""
    if limit <= 0 or width(text) <= limit:
        return text
    try:
        dots = "…"
        dots.encode((sys.stdout and sys.stdout.encoding) or "utf-8")
    except UnicodeEncodeError:
        dots = "..."
    while width(text) + len(dots) > limit:
        text = text[:-1]
    return text + dots
