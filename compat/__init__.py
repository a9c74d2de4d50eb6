"""Stand-ins for other libraries' locks: the original's module path with `pidabs.compat.` in front.

    from daemon.pidfile import TimeoutPIDLockFile        ->  from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
    from lockfile.pidlockfile import PIDLockFile         ->  from pidabs.compat.lockfile.pidlockfile import PIDLockFile

`install()` and `python -m pidabs.compat PROGRAM` do that to a program without an edit.

The originals have to be installed (extra `daemon`): their exceptions and base classes are used, so that an `except`
or an isinstance elsewhere still matches.  Where there are no abstract sockets (macOS, Windows) the originals
themselves are handed out, with one warning.
"""

from __future__ import annotations

import warnings

from pidabs import Lock, Unsupported

__all__ = ["SUPPORTED", "install"]


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


def install(*, children: bool = False) -> None:
    """Make the imports of filelock, lockfile, its modules and daemon.pidfile that follow find our locks.

    Raises RuntimeError, and changes nothing, if a module has got one of the originals already: it would go on to lock
    files, and exclude nobody who is on sockets.  With `children`, Pythons that this process starts do the same.
    """
    from ._install import install

    install(children=children)
