"""Stands in for lockfile.linklockfile of lockfile 0.12.2, which locks by a hard link; ours has no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockfile import AlreadyLocked, LockBase, LockFailed, LockTimeout, NotLocked, NotMyLock
from lockfile import linklockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LinkLockFile", "LockBase", "LockFailed", "LockTimeout", "NotLocked", "NotMyLock"]


if TYPE_CHECKING:
    _Original = object  # lockfile has no types; Shared says what is there
else:
    _Original = _original.LinkLockFile


class LinkLockFile(NamedByLockFile, _Original):
    """The lock of `path + ".lock"`, without a file."""

    _kind = _original.LinkLockFile


if not SUPPORTED and not TYPE_CHECKING:
    LinkLockFile = _original.LinkLockFile
