"""What `interop` costs: `python -m bench.interop [DIRECTORY]`.  Each figure is a ratio within one run.

Acquire+release of a free lock, by the original, by ours, and by ours that takes the original's file, too.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
from functools import partial

import filelock
import lockfile.pidlockfile
import pidabs.compat.filelock
import pidabs.compat.lockfile.pidlockfile as ours

from .measure_uncontended import repeat, timed
from .session import take_turns

PAIRS, ROUNDS = 300, 15
KINDS = {
    "PIDLockFile": (lockfile.pidlockfile.PIDLockFile, ours.PIDLockFile),
    "FileLock": (filelock.FileLock, pidabs.compat.filelock.FileLock),
}


def main() -> None:
    versions = f"filelock {filelock.__version__}, CPython {platform.python_version()}, Linux {platform.release()}"
    print(f"{versions}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        for label, (original, our) in KINDS.items():
            path = os.path.join(directory, label)
            locks = {"theirs": original(path), "plain": our(path), "both": our(path, interop=True)}
            subjects = {name: partial(timed, partial(repeat, lock), PAIRS) for name, lock in locks.items()}
            found = take_turns(subjects, ROUNDS)
            theirs, plain, both = (statistics.median(took for [took] in samples) for samples in found.values())
            print(
                f"{label:12} original {theirs:7.1f} us   ours {plain:7.1f} us   with interop {both:7.1f} us"
                f"   {both / plain:.1f} times ours, {both / theirs:.2f} times the original's"
            )


if __name__ == "__main__":
    main()
