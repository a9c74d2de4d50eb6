"""What people and programs are shown.

Rules:
- What others chose, such as names and command lines, never reaches a terminal raw.  Each character that is not
  printable is escaped, so is the backslash, and each byte that is not text: no two names look alike by an escape.
- What the output's encoding lacks is escaped, not an error.
- An output that is closed, full or a broken pipe makes no traceback, neither now nor when Python flushes at its exit.
"""

from __future__ import annotations

import errno
import os
import sys

from ._codes import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_GAP = "  "
_REMEDIES = {
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENFILE: "raise the limit (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or end some",
    errno.ENOMEM: "free some memory",
    errno.ENOBUFS: "free some memory",
    errno.ENOSPC: "make room where it writes to",
}


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


def complain(text: object) -> None:
    """One line on stderr, at once: what stays in a buffer, because stderr is full or gone, fails again at exit.

    One line whatever is in it, and nothing that moves a cursor.
    """
    line = "".join(char if char.isprintable() else _shown(char) for char in f"pidabs: {text}")
    try:
        os.write(2, line.encode(encoding(sys.stderr), "backslashreplace") + b"\n")
    except OSError:
        pass


def reason(exc: Exception, remedy: str = "") -> str:
    """What an error says, and what to do about it: `remedy` if nothing better is known."""
    if not isinstance(exc, OSError) or exc.strerror is None:
        return str(exc)
    where = f"{os.fsdecode(exc.filename)}: " if isinstance(exc.filename, (str, bytes)) else ""
    remedy = _REMEDIES.get(exc.errno or 0, remedy)
    return f"{where}{exc.strerror}" + (f"; {remedy}" if remedy else "")


def reply(text: str, code: int, otherwise: int = UNKNOWN) -> int:
    """Write lines to stdout: `code`, or `otherwise` if they cannot be written.  Raises BrokenPipeError."""
    try:
        try:
            sys.stdout.write(encodable(text, sys.stdout) + "\n")
        finally:
            flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        complain(reason(exc))
        return otherwise
    return code


def flush() -> None:
    """Have all that was printed written.  Raises OSError, which says what to do."""
    try:
        sys.stdout.flush()
    except OSError as exc:
        # What is still buffered would fail again at exit, with a complaint and an exit code of Python's own.
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if isinstance(exc, BrokenPipeError):
            raise
        raise OSError(f"cannot write the answer: {exc.strerror}; see where standard output goes") from exc


def encoding(stream: object) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def encodable(text: str, stream: object) -> str:
    """The text with what the stream's encoding lacks escaped."""
    return text.encode(encoding(stream), "backslashreplace").decode(encoding(stream))


def paint(style: int, text: str) -> str:
    """The text in a colour, or bold, where stdout is a terminal that wants it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\033[{style}m{text}\033[0m"


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


def terminal_width(fd: int = 1) -> int:
    """The columns of the terminal there; 0 if it is none, or does not say."""
    try:
        return os.get_terminal_size(fd).columns
    except OSError:
        return 0


def width(text: str) -> int:
    """The columns that it takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, limit: int, stream: object = None) -> str:
    """At most so many columns of it, for `stream` (stdout); 0 means all."""
    if limit <= 0 or width(text) <= limit:
        return text
    dots = "…"
    try:
        dots.encode(encoding(stream or sys.stdout))
    except UnicodeEncodeError:
        dots = "..."
    end, room = 0, limit - len(dots)
    while (room := room - width(text[end])) >= 0:
        end += 1
    return text[:end] + dots
