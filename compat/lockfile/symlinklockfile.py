"""Stands in for lockfile.symlinklockfile of lockfile 0.12.2, which locks by a symbolic link; ours makes none."""

from __future__ import annotations

from lockfile import AlreadyLocked, LockBase, LockTimeout, NotLocked, NotMyLock
from lockfile import symlinklockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LockBase", "LockTimeout", "NotLocked", "NotMyLock", "SymlinkLockFile"]


class SymlinkLockFile(NamedByLockFile, _original.SymlinkLockFile):
    """The lock of `path + ".lock"`, without a file."""

    _kind = _original.SymlinkLockFile


if not SUPPORTED:
    SymlinkLockFile = _original.SymlinkLockFile  # type: ignore[misc]
