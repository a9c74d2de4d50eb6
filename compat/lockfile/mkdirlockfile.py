"""Stands in for lockfile.mkdirlockfile of lockfile 0.12.2, which locks by making a directory; ours makes none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockfile import AlreadyLocked, LockBase, LockFailed, LockTimeout, NotLocked, NotMyLock
from lockfile import mkdirlockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LockBase", "LockFailed", "LockTimeout", "MkdirLockFile", "NotLocked", "NotMyLock"]


if TYPE_CHECKING:
    _Original = object  # lockfile has no types; Shared says what is there
else:
    _Original = _original.MkdirLockFile


class MkdirLockFile(NamedByLockFile, _Original):
    """The lock of `path + ".lock"`, without a file."""

    _kind = _original.MkdirLockFile


if not SUPPORTED and not TYPE_CHECKING:
    MkdirLockFile = _original.MkdirLockFile
