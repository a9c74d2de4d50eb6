"""What a check of `pidabs doctor` finds, and the kernel's version."""

from __future__ import annotations

import errno
import os
import re
from typing import NamedTuple

OK, WARN, BAD, UNKNOWN = "ok", "warn", "bad", "unknown"


class Finding(NamedTuple):
    """`status`: ok; warn, locks work but something around them does not; bad, locks are impossible; unknown."""

    status: str
    found: str
    cause: str = ""
    remedy: str = ""


def why(exc: OSError) -> str:
    """`describe` for what the kernel answered to a check's question."""
    _raise_if_full(exc)
    return describe(exc)


def describe(exc: OSError) -> str:
    """The error's name and text: EPERM (Operation not permitted)."""
    name = errno.errorcode.get(exc.errno or 0, "error")
    return f"{name} ({exc.strerror or exc})"


def text(path: str) -> str | None:
    """A file's text, stripped; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace").strip()
    except OSError as exc:
        _raise_if_full(exc)
        return None


def _raise_if_full(exc: OSError) -> None:
    """An error for want of descriptors is about us, and not about what was asked: nothing was found out."""
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        raise exc


def kernel_version() -> tuple[int, int, int]:
    """The version that the kernel was made from, as far as it tells: distributions have patches of their own in it."""
    # Debian's and Ubuntu's releases name the ABI, as in 5.10.0-28-amd64; what it was made from stands elsewhere.
    debian = re.search(r"Debian (\d+\.\d+\.\d+)", os.uname().version)
    ubuntu = re.search(r"(\d+\.\d+\.\d+)$", text("/proc/version_signature") or "")
    return parse_version((debian or ubuntu or [None, os.uname().release])[1] or "")


def parse_version(release: str) -> tuple[int, int, int]:
    numbers = [int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", release)[0])]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch
