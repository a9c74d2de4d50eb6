"""Lock: what a program holds.  The protocol is in _queue.py; this drives its steps and keeps the lock's state."""

from __future__ import annotations

import _thread
import os
import sys
from _warnings import warn
from _weakref import ref
from time import monotonic

from . import _descriptors, _diag, _held, _holder, _linux, _queue
from ._descriptors import Socket
from ._drive import FOR_EVER, run
from ._errors import AlreadyHeld, MirrorError, NotHeld, Timeout, Unsupported
from ._holder import Holder
from ._inherit import AcrossFork
from ._mirror import Mirror
from ._names import is_path, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import EllipsisType, TracebackType
    from typing import NoReturn

    from ._names import Name

_LONGEST = 1e9  # seconds; more would overflow somewhere
_UNDO_TRIES = 16


class Lock:
    """A lock that dies with its holder.

    `name` with a slash, or an os.PathLike, is a path: it is made absolute now, and no file is needed or made there.
    Any other name stands for itself.  Everybody in this network namespace who uses the name excludes each other.

    `timeout` is the default of `acquire`.  `mirror` keeps a PID file, for people and tools: at the path it names, or,
    if True, at the lock's own.  `scope` (default: $PIDABS_SCOPE) sets locks of one name apart.

    A lock belongs to the process: any thread may release it, a forked child does not hold it (see `across_fork`).  It
    is not reentrant.  A lock that is garbage-collected while held warns (ResourceWarning) and is released.

    Raises TypeError or ValueError for bad arguments, Unsupported where there are no abstract sockets.
    """

    __slots__ = ("__weakref__", "_mirror", "_owner", "_ref", "_sock", "_timeout", "address", "name")

    def __init__(
        self,
        name: Name,
        *,
        timeout: float | None = None,
        mirror: bool | str | os.PathLike[str] = False,
        scope: str | None = None,
    ) -> None:
        self._sock: Socket | None = None
        self._mirror: Mirror | None = None
        if not _linux.supported():
            raise Unsupported(
                f"cannot make lock {name!r}: {sys.platform} has no abstract unix sockets; pidabs needs Linux"
            )
        if mirror is True and not is_path(name):
            raise ValueError(f"mirror=True needs a path for a name, to write the PID file to, not {name!r}")
        self.name, self.address = resolve(name, scope)
        if mirror:
            self._mirror = Mirror(self.name if mirror is True else resolve(os.path.join(os.curdir, mirror))[0])
        self._timeout = _checked(timeout)
        self._owner = 0
        self._ref = ref(self)

    def acquire(self, timeout: float | EllipsisType | None = ...) -> Lock:
        """Take the lock, waiting at most `timeout` seconds: None waits for ever, 0 tries once.  Returns the lock.

        Raises Timeout, AlreadyHeld if this thread holds it already (through this object; or through any, and would wait
        for ever), MirrorError (then it is not held), OSError if there are no descriptors left.
        """
        seconds = self._timeout if timeout is ... else _checked(timeout)
        if self._sock is not None:
            self._check_not_ours()
        sock = None
        hand: list[Socket] = []
        try:
            sock = _descriptors.open_socket(hand)
            if not _queue.bind(sock, self.address):
                sock = self._wait(sock, seconds, hand)
            if sock is not None:
                self._own(sock)
                hand.clear()  # it refers to the socket, and the socket to it
                return self
        except BaseException as exc:
            self._undo(sock, hand)
            if isinstance(exc, OSError) and exc.errno is not None:  # not what a signal handler raises
                exc.filename = self.name
                if _linux.denied(exc):
                    raise Unsupported(f"cannot acquire lock {self.name!r}: abstract sockets are denied here") from exc
            raise
        raise Timeout(self.name, seconds or 0.0, self.holder)

    def release(self) -> None:
        """Let go of the lock, handing it to the first waiter.  Raises NotHeld, also if the lock was lost."""
        sock = self._sock
        hand: list[Socket] = []
        try:
            # Of two threads that release, one finds it.
            if (
                sock is not None
                and _descriptors.is_listener(sock, self.address)
                and _held.held.pop(sock, None) is not None
            ):
                self._sock = None  # before another thread is granted the lock through this object
                if self._mirror is not None:
                    self._mirror.remove()
                if not _queue.close_if_idle(sock):
                    run(_queue.hand_over(sock, hand))
                return
        except BaseException:
            self._undo(sock, hand)
            raise
        raise NotHeld(self._why_not_held())

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, checked with the kernel: a forked child does not."""
        sock = self._sock
        return sock is not None and _descriptors.is_listener(sock, self.address)

    def locked(self) -> bool:
        """Whether anybody holds the lock.  Leaves no trace there; raises OSError if the kernel cannot be asked."""
        return self.held or _diag.find(self.address) is not None

    def holder(self) -> Holder | None:
        """Who holds the lock, None if nobody does.  Raises OSError if the kernel cannot be asked."""
        sock = self._sock
        if sock is not None and _descriptors.is_listener(sock, self.address):
            return _holder.of_peer(sock, self.address)
        return _holder.ask(self.address)

    def waiters(self) -> int:
        """How many wait for the lock.  Raises OSError if the kernel cannot be asked."""
        listed = _diag.find(self.address)
        if listed is None:
            return 0
        try:
            queue = _diag.queue(listed.inode)
        except OSError:
            return listed.queued  # the dead are counted too
        sock = self._sock
        if sock is not None and _descriptors.is_listener(sock, self.address):
            _descriptors.drop_dead(sock, queue)
        return sum(1 for inode in queue if inode)

    def fileno(self) -> int:
        """The descriptor of the held lock, for DaemonContext(files_preserve=[lock]).  Raises NotHeld."""
        if self._sock is None or not self.held:
            raise NotHeld(self._why_not_held())
        return self._sock.fileno()

    def across_fork(self) -> AcrossFork:
        """`with lock.across_fork():` each fork by this thread moves the lock to the child; the parent has it no more.

        For a daemon that takes its lock before it detaches, so that a refusal still reaches the terminal.  End the
        block when the daemon has detached: else the workers that it forks get the lock.
        """
        return AcrossFork(self)

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}: make another by its name")

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}{' held' if self.held else ''}>"

    def __del__(self) -> None:
        if self._sock is not None and self.held:
            try:
                warn(f"lock {self.name!r} was collected while held", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.release()
        elif self._sock is not None:
            self._leave()

    # What acquire and release are made of ---------------------------------------------------------------------------

    def _check_not_ours(self) -> None:
        sock = self._sock
        if sock is None:
            return
        if _descriptors.is_listener(sock, self.address):
            if self._owner == _thread.get_ident():
                raise AlreadyHeld(f"cannot acquire lock {self.name!r}: this thread holds it already")
        elif _held.held.pop(sock, None) is not None:  # lost, or left behind by a fork; not just being released
            if self._sock is sock:
                self._sock = None
            _descriptors.abandon(sock)

    def _wait(self, sock: Socket, seconds: float | None, hand: list[Socket]) -> Socket | None:
        if seconds == 0:
            _descriptors.close(sock)
            return None
        if seconds is None:
            self._check_deadlock()
        deadline = FOR_EVER if seconds is None else monotonic() + seconds
        return run(_queue.wait(sock, self.address, deadline, hand))

    def _check_deadlock(self) -> None:
        me = _thread.get_ident()
        if any(lock.address == self.address and lock._owner == me for lock in _held.locks()):
            reason = "this thread holds it already, through another object"
            raise AlreadyHeld(f"cannot wait for lock {self.name!r}: {reason}")

    def _own(self, sock: Socket) -> None:
        self._owner = _thread.get_ident()
        self._sock = sock
        _held.held[sock] = self._ref
        if self._mirror is not None:
            try:
                self._mirror.write()
            except OSError as exc:
                self.release()
                reason = f"its PID file {self._mirror.path!r} cannot be written: {exc.strerror}"
                raise MirrorError(f"cannot acquire lock {self.name!r}: {reason}") from exc

    def _undo(self, sock: Socket | None, hand: list[Socket]) -> None:
        """After an exception anywhere in acquire or release: hold nothing.  A second exception does not stop it."""
        for _ in range(_UNDO_TRIES):
            try:
                if self._sock is sock or (self._sock is not None and self._sock.hand is hand):
                    self._sock = None
                if self._sock is None and self._mirror is not None:
                    self._mirror.remove()
                for mine in (sock, *hand):
                    if mine is not None:
                        _held.held.pop(mine, None)
                        _descriptors.abandon(mine)
                _descriptors.sweep(self.address, hand)
                return
            except BaseException:
                continue

    def _why_not_held(self) -> str:
        if self._sock is None:
            return f"cannot release lock {self.name!r}: it is not held by this object"
        return (
            f"lock {self.name!r} was lost: its descriptor was closed behind our back, as DaemonContext does unless "
            "told files_preserve=[lock], or the process forked without `with lock.across_fork()`"
        )

    # What a fork does with it; see _inherit.py ----------------------------------------------------------------------

    def _moving(self) -> tuple[Socket | None, int]:
        return self._sock, self._mirror.fd if self._mirror is not None else -1

    def _arrive(self) -> None:
        self._owner = _thread.get_ident()
        if self._sock is not None:
            self._sock.listen(_queue.BACKLOG)
        if self._mirror is not None:
            self._mirror.move_here()

    def _leave(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            _held.held.pop(sock, None)
            _descriptors.abandon(sock)
        if self._mirror is not None:
            self._mirror.forget()

    def _settle(self) -> None:
        if self._mirror is not None and self.held:
            self._mirror.relock()


def _checked(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:  # nor NaN
        raise ValueError(f"a timeout must not be negative: {timeout!r}")
    return None if timeout > _LONGEST else timeout
