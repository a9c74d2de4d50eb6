"""Stands in for daemon.pidfile of python-daemon 3.1.2."""

from __future__ import annotations

from daemon import pidfile as _original

from .. import SUPPORTED
from ..lockfile.pidlockfile import PIDLockFile

__all__ = ["PIDLockFile", "TimeoutPIDLockFile"]

if SUPPORTED:

    class TimeoutPIDLockFile(_original.TimeoutPIDLockFile, PIDLockFile):
        """The original, whose super() calls find our PIDLockFile where they found lockfile's.

        `acquire_timeout` is the default of `acquire`: None, 0 or a negative number tries once.
        """

else:
    TimeoutPIDLockFile = _original.TimeoutPIDLockFile  # type: ignore[misc]
