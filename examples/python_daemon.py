"""A daemon on python-daemon that takes its lock before it detaches, so that a refusal reaches whoever starts it.

    pip install "pidabs[daemon]"
    python python_daemon.py /run/example-daemon.pid     # detaches; again: exit code 1, and who holds the lock
    pidabs stop /run/example-daemon.pid

Shows: the drop-in replacement, `across_fork()`, a PID file that is written for people and never read.  Kill it with
SIGKILL and start it again: no file has to be removed first.
"""

import signal
import sys

from daemon import DaemonContext
from lockfile import AlreadyLocked
from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile


def serve() -> None:
    while True:
        signal.pause()  # the daemon's work


def main() -> None:
    pidfile = TimeoutPIDLockFile(sys.argv[1])
    try:
        pidfile.acquire()
    except AlreadyLocked as exc:
        sys.exit(f"example-daemon: {exc}")
    # Each fork in here moves the lock to the child.  DaemonContext closes all files but those that it is told to keep,
    # and ends at SIGTERM by a SystemExit, which removes the PID file.
    with pidfile.across_fork(), DaemonContext(pidfile=pidfile, files_preserve=[pidfile]):
        serve()


if __name__ == "__main__":
    main()
