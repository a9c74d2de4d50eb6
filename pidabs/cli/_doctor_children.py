"""The processes that `pidabs doctor` starts: forked copies of it, which talk by lines through two pipes.

Rules:
- Whatever ends the doctor, none of them stays: it is left through `Workshop.__exit__`, also on Ctrl-C and SIGTERM; and
  each ends by itself once the doctor's ends of its pipes are gone, should the doctor be SIGKILLed.
- A child has no descriptor but its pipes, and one that it is to keep: else it would hold another child's pipe, or the
  doctor's output, open.
- Only children of ours that are not reaped yet are signalled, so their pids cannot be recycled.
"""

from __future__ import annotations

import os
import signal

from ._forked import close_all_but
from ._interrupt import SIGNALS, Interruptible, UnexpectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[["Boss"], object]

_REFUSED = "!"


class Workshop(Interruptible):
    """A context manager; inside it children can be started, and are gone at its end."""

    def __enter__(self) -> Workshop:
        self.children: list[Child] = []
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for child in list(self.children):
            child.end()
        super().__exit__()

    def start(self, work: Work, keep: int | None = None) -> Child:
        """A child that does `work`, and keeps one descriptor.  Raises OSError where no process can be started."""
        return Child(self, work, keep)


class Child:
    """A child, as the doctor sees it."""

    def __init__(self, shop: Workshop, work: Work, keep: int | None) -> None:
        self._shop = shop
        self._pending = b""
        self._status: int | None = None
        opened: list[int] = []
        try:
            for _ in range(2):
                opened += os.pipe()
            theirs_in, self._out, self._in, theirs_out = opened
            self.pid = os.fork()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        if self.pid == 0:
            _become_child(theirs_in, theirs_out, keep, work)
        shop.children.append(self)
        os.close(theirs_in)
        os.close(theirs_out)

    def tell(self, line: str) -> None:
        try:
            os.write(self._out, line.encode() + b"\n")
        except BrokenPipeError:
            raise UnexpectedError(f"a child ended: {self.fate()}") from None

    def hear(self, what: str) -> str | None:
        """The next line, None at the end.  Raises Interrupted; UnexpectedError if it is late, or went wrong there."""
        while b"\n" not in self._pending:
            self._shop.wait(self._in, what)
            data = os.read(self._in, 65536)
            if not data:
                return None
            self._pending += data
        data, _, self._pending = self._pending.partition(b"\n")
        line = data.decode(errors="replace")
        if line.startswith(_REFUSED):
            raise UnexpectedError(line.removeprefix(_REFUSED))
        return line

    def expect(self, what: str) -> str:
        line = self.hear(what)
        if line is None:
            raise UnexpectedError(f"{what}: the process ended, {self.fate()}")
        return line

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Wait for its end."""
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)

    def is_zombie(self) -> bool:
        """Whether it is dead and nobody has asked for its exit status, not even this call."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT) is not None

    def fate(self) -> str:
        """How it ended, when it has."""
        self.reap()
        code = os.waitstatus_to_exitcode(self._status or 0)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"

    def end(self) -> None:
        self.kill()
        self.reap()
        self._shop.children.remove(self)
        os.close(self._in)
        os.close(self._out)


class Boss:
    """The doctor, as a child sees it."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._in = incoming
        self._out = outgoing

    def say(self, line: str) -> None:
        os.write(self._out, line.encode(errors="replace") + b"\n")

    def listen(self) -> bool:
        """Wait for its word: whether it is still there."""
        return bool(os.read(self._in, 4096))


def _become_child(incoming: int, outgoing: int, keep: int | None, work: Work) -> None:
    """Do the work, and end: a child never gets back to where it was forked."""
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()  # Ctrl-C is for the doctor, which ends us
        close_all_but(incoming, outgoing, *([] if keep is None else [keep]))
        boss = Boss(incoming, outgoing)
        try:
            work(boss)
        except Exception as exc:
            what = str(exc) if isinstance(exc, OSError) and exc.errno else f"{type(exc).__name__}: {exc}"
            boss.say(_REFUSED + what)
    finally:
        os._exit(0)
