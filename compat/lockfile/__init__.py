"""Stands in for lockfile 0.12.2: `import pidabs.compat.lockfile as lockfile`.

The locks are ours; the exceptions and LockBase are lockfile's own classes, so that an `except` or an isinstance
elsewhere still matches.  docs/lockfile.md says what differs.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

from lockfile import (
    AlreadyLocked,
    Error,
    LockBase,
    LockError,
    LockFailed,
    LockTimeout,
    NotLocked,
    NotMyLock,
    UnlockError,
)

from .linklockfile import LinkLockFile

__all__ = [
    "AlreadyLocked",
    "Error",
    "FileLock",
    "LinkFileLock",
    "LockBase",
    "LockError",
    "LockFailed",
    "LockFile",
    "LockTimeout",
    "MkdirFileLock",
    "NotLocked",
    "NotMyLock",
    "SQLiteFileLock",
    "UnlockError",
    "locked",
]

LockFile = LinkLockFile
FileLock = LockFile


def LinkFileLock(*args: Any, **kwds: Any) -> Any:  # noqa: N802
    """Deprecated, as in the original: use linklockfile.LinkLockFile."""
    from .linklockfile import LinkLockFile

    return _deprecated(LinkLockFile, "lockfile.linklockfile", *args, **kwds)


def MkdirFileLock(*args: Any, **kwds: Any) -> Any:  # noqa: N802
    """Deprecated, as in the original: use mkdirlockfile.MkdirLockFile."""
    from .mkdirlockfile import MkdirLockFile

    return _deprecated(MkdirLockFile, "lockfile.mkdirlockfile", *args, **kwds)


def SQLiteFileLock(*args: Any, **kwds: Any) -> Any:  # noqa: N802
    """Deprecated, as in the original: use sqlitelockfile.SQLiteLockFile."""
    from .sqlitelockfile import SQLiteLockFile

    return _deprecated(SQLiteLockFile, "lockfile.sqlitelockfile", *args, **kwds)


def _deprecated(cls: Any, module: str, *args: Any, **kwds: Any) -> Any:
    warnings.warn(f"Import from {module} module instead of lockfile package", DeprecationWarning, stacklevel=3)
    if args and not isinstance(args[0], (str, os.PathLike)):
        args = args[1:]  # an object whose class has one of these functions for a method, as in lockfile's own tests
    return cls(*args, **kwds)


def locked(path: Any, timeout: float | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function runs while FileLock(path) is held; `timeout` as for `acquire`."""

    def decor(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            lock = FileLock(path, timeout=timeout)
            lock.acquire()
            try:
                return func(*args, **kwargs)
            finally:
                lock.release()

        return wrapper

    return decor
