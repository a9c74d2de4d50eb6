"""Stands in for lockfile.symlinklockfile of lockfile 0.12.2, which locks by a symbolic link; ours makes none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockfile import AlreadyLocked, LockBase, LockTimeout, NotLocked, NotMyLock
from lockfile import symlinklockfile as _original

from .. import SUPPORTED
from ._shared import NamedByLockFile

__all__ = ["AlreadyLocked", "LockBase", "LockTimeout", "NotLocked", "NotMyLock", "SymlinkLockFile"]


if TYPE_CHECKING:
    _Original = object  # lockfile has no types; Shared says what is there
else:
    _Original = _original.SymlinkLockFile


class SymlinkLockFile(NamedByLockFile, _Original):
    """The lock of `path + ".lock"`, without a file."""

    _kind = _original.SymlinkLockFile


if not SUPPORTED and not TYPE_CHECKING:
    SymlinkLockFile = _original.SymlinkLockFile
