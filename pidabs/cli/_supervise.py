"""`pidabs run --supervise`: stay beside the command, and let the lock end with it.

Three processes: we hold the lock, pass signals on and wait; the command; and a guard.

Rules:
- The command never runs without the lock.  It starts when the guard is there (it waits for a byte from us, and for the
  end of the pipe if we are killed first).  If we are killed, the guard, which has a copy of the listener, kills the
  command and keeps the lock until it is gone.  The kernel alone (PR_SET_PDEATHSIG) does not do: it closes a dead
  parent's descriptors before it signals the child, who in 3 of 500 tries ran on for 8 to 56 ms beside the next owner;
  and it forgets the child's wish when that changes its uid.  It is asked nevertheless, in case both of us are killed.
- All signals are blocked and taken one by one, so none is lost and none interrupts.  What the terminal sends reached
  the command without us: only what a process sent is passed on.
- When the terminal stops the command we stop as well, so that the shell takes its terminal back.
"""

from __future__ import annotations

import errno
import os
import signal
from _socket import socket
from select import POLLIN, poll

from .._queue import BACKLOG
from ._codes import SIGNALLED, SYSTEM
from ._command import execute
from ._forked import close_all_but
from ._proc import GUARD
from ._text import complain, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

    from .. import Lock

    Handler = Callable[[int, FrameType | None], object] | int | None

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
_WATCHED = set(signal.valid_signals()) - _FAULTS - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}
_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_FROM_TERMINAL = _STOPS | {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH, signal.SIGHUP, signal.SIGCONT}

_PR_SET_PDEATHSIG = 1
_TIDY_EVERY = 60.0  # seconds


def supervise(lock: Lock, argv: list[str]) -> int:
    """Run the command: its exit code, or 128 + the signal that killed it.  The lock is free then.  Raises OSError."""
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was ignored, no exit status would reach us
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    gate, opener = os.pipe()
    command = _fork()
    if command == 0:
        os.close(opener)
        _in_child(lambda: _command(argv, gate, mask, on_child))
    os.close(gate)
    try:
        guard = _start_guard(lock, command)
        try:
            os.write(opener, b"1")
        except BrokenPipeError:
            pass  # it has been killed before it could start
    finally:
        os.close(opener)
    code = _Watch(lock, command).until_it_ends()
    if guard:
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)  # now its copy of the listener is closed, and the lock can be handed over
    lock.release()
    return code


def _fork() -> int:
    try:
        return os.fork()
    except OSError as exc:
        number = exc.errno or errno.EAGAIN  # which Python 3.11 loses
        raise OSError(number, f"cannot start a process: {os.strerror(number)}") from exc


def _in_child(part: Callable[[], int]) -> NoReturn:
    code = SYSTEM
    try:
        code = part()
    except Exception as exc:
        complain(reason(exc))
    finally:
        os._exit(code)


# The command ----------------------------------------------------------------------------------------------------------


def _command(argv: list[str], gate: int, mask: set[int | signal.Signals], on_child: Handler) -> int:
    _die_with_parent()
    if not os.read(gate, 1):
        return SYSTEM  # it has died before, or could not start the guard and says so
    signal.signal(signal.SIGCHLD, on_child)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return execute(argv)


def _die_with_parent() -> None:
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    except (ImportError, OSError, AttributeError):
        pass  # the guard is there


# The guard ------------------------------------------------------------------------------------------------------------


def _start_guard(lock: Lock, command: int) -> int:
    """Its pid; 0 where there are no pidfds (Linux 5.3), and the kernel's word has to do."""
    try:
        us, it = os.pidfd_open(os.getpid()), os.pidfd_open(command)
    except AttributeError:
        return 0
    except OSError as exc:
        if exc.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        return 0
    listener = os.dup(lock.fileno())
    guard = _fork()
    if guard == 0:
        _in_child(lambda: _guard(us, it, listener))
    for fd in us, it, listener:
        os.close(fd)
    return guard


def _guard(supervisor: int, command: int, listener: int) -> int:
    """Until we are killed, by the supervisor at the end, or both have gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _rename(GUARD)
    os.setsid()  # no terminal stops us
    os.chdir("/")
    close_all_but(supervisor, command, listener)
    _wait_for(supervisor)
    ours = socket(fileno=listener)  # in a variable, which keeps it open
    ours.listen(BACKLOG)  # now it is we who hold the lock
    try:
        signal.pidfd_send_signal(command, signal.SIGKILL)
    except OSError:
        pass  # gone, or another user's: then the lock is held until it ends by itself
    _wait_for(command)
    return 0


def _rename(name: str) -> None:
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name)
    except OSError:
        pass


def _wait_for(pidfd: int) -> None:
    poller = poll()
    poller.register(pidfd, POLLIN)
    poller.poll()


# We -------------------------------------------------------------------------------------------------------------------


class _Watch:
    """Passes signals on to the command until it ends."""

    def __init__(self, lock: Lock, command: int) -> None:
        self._lock = lock
        self._command = command
        self._stopped = False
        self._was_stopped = False

    def until_it_ends(self) -> int:
        while (code := self._news()) is None:
            info = signal.sigtimedwait(_WATCHED, _TIDY_EVERY)
            if info is None:
                self._tidy()
            elif info.si_signo != signal.SIGCHLD and self._is_to_be_passed_on(info):
                self._pass_on(info.si_signo)
        return code

    def _news(self) -> int | None:
        """What became of the command: its exit code, None while it lives."""
        while state := os.waitid(os.P_PID, self._command, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG):
            if state.si_code == os.CLD_EXITED:
                return state.si_status
            if state.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                return SIGNALLED + state.si_status
            self._stopped = state.si_code == os.CLD_STOPPED
            if self._stopped and state.si_status in _STOPS:
                self._stop(state.si_status)
        return None

    def _stop(self, number: int) -> None:
        """Stop as the command did, until somebody continues us."""
        while signal.sigtimedwait({number}, 0):
            pass  # the terminal's, meant for both: else we stopped twice
        if signal.SIGCONT in signal.sigpending():
            return
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        self._was_stopped = True

    def _is_to_be_passed_on(self, info: signal.struct_siginfo) -> bool:
        if info.si_code > 0 and info.si_signo in _FROM_TERMINAL:
            # From the terminal, to all of its foreground; but a hangup to the session's leader alone.
            return info.si_signo in (signal.SIGHUP, signal.SIGCONT) and os.getsid(0) == os.getpid()
        if info.si_signo == signal.SIGCONT and self._was_stopped:
            self._was_stopped = False
            return self._stopped  # the shell continues all of a job
        return info.si_code > 0 or info.si_pid != self._command  # which means its group, us included

    def _pass_on(self, number: int) -> None:
        try:
            os.kill(self._command, number)
        except OSError as exc:
            complain(f"cannot pass {signal.strsignal(number)} on to pid {self._command}: {exc.strerror}")

    def _tidy(self) -> None:
        """Those who asked who we are, or gave up, left dead entries in the queue: a count drops them."""
        try:
            self._lock.waiters()
        except OSError:
            pass
