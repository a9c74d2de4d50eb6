"""What `interop` costs: `python bench/interop.py`.  Each figure is a ratio within one run.

Acquire+release of a free lock, by the original, by ours, and by ours that takes the original's file, too.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import filelock
import lockfile.pidlockfile
import pidabs.compat.filelock
import pidabs.compat.lockfile.pidlockfile as ours
from quick import uncontended
from shims import medians

PAIRS = 300


def main() -> None:
    versions = f"filelock {filelock.__version__}, CPython {platform.python_version()}, Linux {platform.release()}"
    print(f"{versions}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        rows: tuple[tuple[str, Callable[..., Any], Callable[..., Any]], ...] = (
            ("PIDLockFile", lockfile.pidlockfile.PIDLockFile, ours.PIDLockFile),
            ("FileLock", filelock.FileLock, pidabs.compat.filelock.FileLock),
        )
        for label, original, our in rows:
            path = os.path.join(directory, label)
            locks = original(path), our(path), our(path, interop=True)
            theirs, plain, both = medians(*(lambda lock=lock: uncontended(lock, PAIRS) for lock in locks))
            print(
                f"{label:12} original {theirs:7.1f} us   ours {plain:7.1f} us   with interop {both:7.1f} us"
                f"   {both / plain:.1f} times ours, {both / theirs:.2f} times the original's"
            )


if __name__ == "__main__":
    main()
