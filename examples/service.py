"""A service of systemd, in the foreground, of which one runs at a time, whoever starts it: systemd, cron or a person.

    python service.py /run/example-service     # again, beside it: exit code 75, and who holds the lock

example.service, beside this file, is its unit.

Shows: the native lock, without a PID file; a refusal that is no failure for systemd (RestartPreventExitStatus=75); and
`Type=notify`: it is "started" when it has the lock and not before.
"""

import os
import signal
import socket
import sys

import pidabs

REFUSED = 75  # EX_TEMPFAIL


def tell_systemd(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if address:  # started by systemd
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)


def serve() -> None:
    while True:
        signal.pause()  # the service's work


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by an exception, so that the lock is let go in order
    try:
        with pidabs.Lock(sys.argv[1], timeout=0):
            tell_systemd("READY=1")
            serve()
    except pidabs.Timeout as exc:
        print(f"example-service: {exc}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
