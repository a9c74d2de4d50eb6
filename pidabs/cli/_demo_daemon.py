"""The daemon of `pidabs demo`.  It does nothing, until the demo ends.

Run as `python _demo_daemon.py PIDFILE DESCRIPTOR`.  The demo also runs a copy in which the one line that imports the
PID file is swapped.  The descriptor is a socket to the demo.  What happens is reported there, since a daemon has no
terminal; and when the demo is gone, however it went, reading from it ends, and so does the daemon.
"""

from __future__ import annotations

import os
import socket
import sys

from daemon import DaemonContext
from daemon.pidfile import TimeoutPIDLockFile
from lockfile import AlreadyLocked


def main(path: str, descriptor: int) -> None:
    demo = socket.socket(fileno=descriptor)
    pidfile = TimeoutPIDLockFile(path)
    demo.send(f"sees {pidfile.read_pid()}".encode())
    try:
        # Asked to detach, since by itself it would not when started by a container's init.
        with DaemonContext(pidfile=pidfile, files_preserve=[demo], detach_process=True):
            # With a handle to this very process: a number could be another's by the time it is read.
            socket.send_fds(demo, [f"runs {os.getpid()}".encode()], [os.pidfd_open(os.getpid())])
            demo.recv(1)
    except AlreadyLocked as exc:
        demo.send(f"refused {type(exc).__name__}: {exc}".encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
