"""The checks of `pidabs doctor`, and how they are run: in a child process.

A seccomp filter may kill who makes a call that it does not know; then the next check is run in another child.
"""

from __future__ import annotations

import errno
import json
from functools import partial

from ._doctor_children import Boss, Workshop
from ._doctor_finding import BAD, UNKNOWN, WARN, Finding, describe
from ._doctor_host import HOST_CHECKS
from ._doctor_landlock import landlock
from ._doctor_sockets import SOCKET_CHECKS
from ._interrupt import UnexpectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKS: dict[str, tuple[str, Callable[[], Finding]]] = {
    **SOCKET_CHECKS,
    **HOST_CHECKS,
    "landlock": ("Landlock", landlock),
}
"""By id: the title, and the check."""

NEEDED = {"lock", "bind", "peercred", "environment"}
"""Those without which locks are impossible."""


def run(shop: Workshop) -> Iterator[tuple[str, str, Finding]]:
    """(id, title, finding) of each check."""
    names = list(CHECKS)
    while names:
        try:
            child = shop.start(partial(_examine, names))
        except OSError:  # no process can be started: then here, and at the risk of it
            for name in names:
                yield name, CHECKS[name][0], _safely(name)
            return
        while names:
            name = names[0]
            try:
                line = child.hear(CHECKS[name][0])
                finding = Finding(*json.loads(line)) if line else _killed(name, child.fate())
            except UnexpectedError as exc:
                line, finding = None, Finding(BAD if name in NEEDED else UNKNOWN, str(exc))
            names = names[1:]
            yield name, CHECKS[name][0], finding
            if not line:
                break
        child.end()


def _examine(names: list[str], boss: Boss) -> None:
    from resource import RLIMIT_CORE, setrlimit

    setrlimit(RLIMIT_CORE, (0, 0))  # one that is killed leaves nothing behind
    for name in names:
        boss.say(json.dumps(_safely(name)))


def _safely(name: str) -> Finding:
    try:
        return CHECKS[name][1]()
    except OSError as exc:  # not the check's own call, which it looks after itself
        full = exc.errno in (errno.EMFILE, errno.ENFILE)
        return Finding(
            BAD if name in NEEDED else UNKNOWN,
            f"cannot be tried: {describe(exc)}",
            "all descriptors are in use" if full else "",
            "raise the limit: ulimit -n 1024, or LimitNOFILE= in a systemd unit" if full else "",
        )
    except Exception as exc:
        return Finding(BAD if name in NEEDED else UNKNOWN, f"cannot be tried: {type(exc).__name__}: {exc}")


def _killed(name: str, fate: str) -> Finding:
    sandbox = "a seccomp filter kills who asks" if "SIGSYS" in fate else ""
    remedy = "let it answer with an error instead, or allow the call (systemd: SystemCallErrorNumber=EPERM)"
    status = BAD if name in NEEDED else WARN if sandbox else UNKNOWN
    return Finding(status, f"the process that tried it ended: {fate}", sandbox, remedy if sandbox else "")
