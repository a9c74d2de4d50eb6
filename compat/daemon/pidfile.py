"""Stands in for daemon.pidfile of python-daemon 3.1.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon import pidfile as _original

from .. import SUPPORTED
from ..lockfile.pidlockfile import PIDLockFile

__all__ = ["PIDLockFile", "TimeoutPIDLockFile"]

if TYPE_CHECKING:

    class _Original:
        """python-daemon has no types."""

        acquire_timeout: float | None

        def __init__(self, path: Any, acquire_timeout: float | None = None, *args: Any, **kwargs: Any) -> None: ...
        def acquire(self, timeout: float | None = None) -> None: ...

else:
    _Original = _original.TimeoutPIDLockFile


class TimeoutPIDLockFile(_Original, PIDLockFile):
    """The original, whose super() calls find our PIDLockFile where they found lockfile's.

    `acquire_timeout` is the default of `acquire`: None, 0 or a negative number tries once.
    """


if not SUPPORTED and not TYPE_CHECKING:
    TimeoutPIDLockFile = _original.TimeoutPIDLockFile
