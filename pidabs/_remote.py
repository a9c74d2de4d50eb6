"""Paths that other hosts may share, whom a lock of this host does not exclude: a warning, once for each file system.

Rule: it never fails, and where it cannot tell it says nothing.
"""

from __future__ import annotations

import os
import re
import sys
from _warnings import warn

MOUNTS = "/proc/self/mounts"
_REMOTE = re.compile(
    r"nfs4?|cifs|smb3|smbfs|9p|virtiofs|ceph|glusterfs|lustre|beegfs|gpfs|ocfs2|gfs2|afs|fuse(\.(?!fuse-overlayfs).*)?"
)
_BETWEEN = ("pidabs", "daemon", "filelock", "lockfile")
"""Packages that make a lock for somebody else."""


def file_system(path: str) -> str | None:
    """The kind of file system on which this path is, if it is absolute and other hosts may have mounted that."""
    if not os.path.isabs(path):
        return None
    best, kind = "", ""
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, point, type_, *_ = line.split(" ")
                if len(point) >= len(best) and os.path.commonpath([path, point]) == point:
                    best, kind = point, type_
    except OSError:
        return None
    return kind if _REMOTE.fullmatch(kind) else None


def warn_of_other_hosts(path: str) -> None:
    """Point at the line that called pidabs."""
    kind = file_system(path)
    if kind is None:
        return
    depth = 1
    while sys._getframe(depth).f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        depth += 1
    warn(
        f"lock {path!r} is on {kind}: other hosts and containers that share it are not excluded",
        RuntimeWarning,
        stacklevel=depth + 1,
    )
