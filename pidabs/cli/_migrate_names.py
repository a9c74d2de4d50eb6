"""The originals: which modules have a stand-in, what makes a lock, and what looks like one of their names.

Rule: the stand-in's module is the original's with `pidabs.compat.` in front, and has each of its public names.
"""

from __future__ import annotations

import re

OURS = "pidabs.compat."

MODULES = frozenset(
    {
        "daemon.pidfile",
        "filelock",
        "filelock.asyncio",
        "lockfile",
        "lockfile.linklockfile",
        "lockfile.mkdirlockfile",
        "lockfile.pidlockfile",
        "lockfile.sqlitelockfile",
        "lockfile.symlinklockfile",
    }
)

_FILELOCKS = ("FileLock", "UnixFileLock", "AsyncFileLock", "AsyncUnixFileLock")
_LOCKFILES = ("FileLock", "LockFile", "LinkFileLock", "MkdirFileLock", "SQLiteFileLock", "locked")

LOCKS = frozenset(
    {
        *(f"filelock.{name}" for name in _FILELOCKS),
        *(f"filelock.asyncio.{name}" for name in _FILELOCKS),
        *(f"lockfile.{name}" for name in _LOCKFILES),
        "lockfile.linklockfile.LinkLockFile",
        "lockfile.mkdirlockfile.MkdirLockFile",
        "lockfile.pidlockfile.PIDLockFile",
        "lockfile.sqlitelockfile.SQLiteLockFile",
        "lockfile.symlinklockfile.SymlinkLockFile",
        "daemon.pidfile.PIDLockFile",
        "daemon.pidfile.TimeoutPIDLockFile",
    }
)
"""What makes a lock that becomes ours."""

WITHOUT_INTEROP = frozenset(name for name in LOCKS if re.match(r"lockfile\.(?!pidlockfile\.)", name))
"""lockfile's five: their files do not say whether their owner lives."""

MENTIONED = re.compile(rb"filelock|lockfile|pidfile|\bdaemon\b.*\brunner\b")
"""What stands in every file that has to do with any of this."""

_FAMILY = re.compile(r"(filelock|lockfile)(\.|$)|daemon\.(pidfile|runner)(\.|$)")


def is_family(module: str) -> bool:
    """Whether it is a module of the originals that has to do with locks, with a stand-in or without."""
    return _FAMILY.match(module) is not None


def names_an_original(text: str) -> bool:
    """Whether a string is, most likely, the dotted name of something in an original: not 'lockfile.txt'."""
    if text in MODULES:
        return "." in text
    head, _, name = text.rpartition(".")
    if head not in MODULES or not name.isidentifier():
        return any(text.startswith(f"{module}.") for module in MODULES) and "._" in text and " " not in text
    return name[0] == "_" or name[0].isupper()


def original_of(dotted: str) -> str:
    """The original's name, of one of ours, too."""
    return dotted.removeprefix(OURS)
