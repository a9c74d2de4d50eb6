"""Stands in for lockfile.linklockfile of lockfile 0.12.2, which locks by a hard link; ours has no file."""

from __future__ import annotations

from lockfile import AlreadyLocked, LockBase, LockFailed, LockTimeout, NotLocked, NotMyLock
from lockfile import linklockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LinkLockFile", "LockBase", "LockFailed", "LockTimeout", "NotLocked", "NotMyLock"]


class LinkLockFile(NamedByLockFile, _original.LinkLockFile):
    """The lock of `path + ".lock"`, without a file."""

    _kind = _original.LinkLockFile


if not SUPPORTED:
    LinkLockFile = _original.LinkLockFile  # type: ignore[misc]
