"""Stands in for lockfile.sqlitelockfile of lockfile 0.12.2, which locks by a row in a database of this process's own.

So the original excludes no other process; ours does, and has no database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockfile import AlreadyLocked, LockBase, LockTimeout, NotLocked, NotMyLock
from lockfile import sqlitelockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LockBase", "LockTimeout", "NotLocked", "NotMyLock", "SQLiteLockFile"]


if TYPE_CHECKING:
    _Original = object  # lockfile has no types; Shared says what is there
else:
    _Original = _original.SQLiteLockFile


class SQLiteLockFile(NamedByLockFile, _Original):
    """The lock of `path + ".lock"`, without a database: `connection` and `testdb` are not there."""

    _kind = _original.SQLiteLockFile

    def __init__(self, path: Any, threaded: bool = True, timeout: float | None = None) -> None:
        LockBase.__init__(self, path, threaded, timeout)  # not the original's, which makes the database
        self._start(self.lock_file)


if not SUPPORTED and not TYPE_CHECKING:
    SQLiteLockFile = _original.SQLiteLockFile
