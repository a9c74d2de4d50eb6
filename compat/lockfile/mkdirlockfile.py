"""Stands in for lockfile.mkdirlockfile of lockfile 0.12.2, which locks by making a directory; ours makes none."""

from __future__ import annotations

from lockfile import AlreadyLocked, LockBase, LockFailed, LockTimeout, NotLocked, NotMyLock
from lockfile import mkdirlockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LockBase", "LockFailed", "LockTimeout", "MkdirLockFile", "NotLocked", "NotMyLock"]


class MkdirLockFile(NamedByLockFile, _original.MkdirLockFile):
    """The lock of `path + ".lock"`, without a file."""

    _kind = _original.MkdirLockFile


if not SUPPORTED:
    MkdirLockFile = _original.MkdirLockFile  # type: ignore[misc]
