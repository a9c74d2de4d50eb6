"""Stand-ins for other libraries' locks: the original's module path with `pidabs.compat.` in front.

    from daemon.pidfile import TimeoutPIDLockFile        ->  from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
    from lockfile.pidlockfile import PIDLockFile         ->  from pidabs.compat.lockfile.pidlockfile import PIDLockFile

The originals have to be installed (extra `daemon`): their exceptions and base classes are used, so that an `except`
or an isinstance elsewhere still matches.  Where there are no abstract sockets (macOS, Windows) the originals
themselves are handed out, with one warning.
"""

from __future__ import annotations

import warnings

from pidabs import Lock, Unsupported

__all__ = ["SUPPORTED"]


def _probe() -> bool:
    try:
        Lock("pidabs.compat")
    except Unsupported as exc:
        warnings.warn(f"{exc}; pidabs.compat hands out the original locks instead", RuntimeWarning, stacklevel=2)
        return False
    return True


SUPPORTED = _probe()
"""Whether the classes here are pidabs' own.  A sandbox that denies abstract sockets on Linux is an error when a lock is
taken, not a reason to fall back: some processes on sockets and some on files would exclude nobody."""
