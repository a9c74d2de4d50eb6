"""What the tests of the command share."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from typing import Any

from support import BECOME_UNPRIVILEGED

COMMAND = (sys.executable, "-m", "pidabs")

AS_ANOTHER_USER = (
    "import json, locale, os, pwd, sys, pidabs.cli as cli, pidabs.cli.ask, pidabs.cli.stop, unicodedata\n"
    "from pidabs.cli._parser import parse; parse(['list'])\n"
    + textwrap.dedent(BECOME_UNPRIVILEGED)
    + "sys.exit(cli.main(sys.argv[1:]))\n"
)
"""Child code: the command, run by a user that is nobody in particular."""

INHERITED = """
    # 1. `brand` takes the lock by hand and forks `keeper`; 2. it ends, and keeper has the lock alone.
    import socket
    brand = os.fork()
    if brand == 0:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(b"\\0pidabs:" + sys.argv[1].encode()); listener.listen(9)
        if os.fork() == 0:
            say(os.getpid()); listen()
        os._exit(0)
    os.waitpid(brand, 0)
    say(brand)
    listen()
"""

PASSED_ON = """
    # Another user takes the lock, hands it to this process, which takes any descriptor, and ends.
    import socket
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        os.setgroups([]); os.setgid(12348); os.setuid(12349)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(b"\\0pidabs:" + sys.argv[1].encode()); listener.listen(9)
        socket.send_fds(theirs, [b"x"], [listener.fileno()])
        os._exit(0)
    taken = socket.recv_fds(ours, 1, 1)
    os.wait()
    say("has it")
    listen()
"""


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **options.pop("env", {})}
    options.setdefault("capture_output", True)
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        **{"cwd": "/", "text": True, "timeout": 60, "env": environment, "check": False, **options},
    )


def run_as_another(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, *arguments],
        cwd="/",
        text=True,
        timeout=60,
        capture_output=True,
        check=False,
    )


def one_line(text: str) -> bool:
    return text.startswith("pidabs: ") and text.endswith("\n") and text.count("\n") == 1


def no_netlink(*arguments: Any) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def no_file(*arguments: Any) -> None:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
