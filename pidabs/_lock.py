"""Lock: what a program uses, in threads and in asyncio's tasks, over the same steps."""

from __future__ import annotations

import os
from _warnings import warn
from _weakref import ref

from . import _diag, _handover
from ._descriptors import Socket
from ._drive import Cancelled, current_task, run, run_async
from ._errors import NotHeld, Timeout
from ._inherit import AcrossFork
from ._ownership import Ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import EllipsisType, TracebackType
    from typing import NoReturn

    from ._drive import CancelCheck
    from ._names import Name


class Lock(Ownership):
    """A lock that dies with its holder.

    `name` with a slash, or an os.PathLike, is a path: it is made absolute now, and no file is needed or made there.
    Any other name stands for itself.  Everybody in this network namespace who uses the name excludes each other.

    `timeout` is the default of `acquire`.  `mirror` keeps a PID file, for people and tools: at the path it names, or,
    if True, at the lock's own.  `scope` (default: $PIDABS_SCOPE) sets locks of one name apart.

    A lock belongs to the process: any thread may release it, a forked child does not hold it (see `across_fork`).  It
    is not reentrant.  A lock that is garbage-collected while held warns (ResourceWarning) and is released.

    Raises TypeError or ValueError for bad arguments, Unsupported where there are no abstract sockets.
    """

    __slots__ = ()

    def __init__(
        self,
        name: Name,
        *,
        timeout: float | None = None,
        mirror: bool | str | os.PathLike[str] = False,
        scope: str | None = None,
    ) -> None:
        super().__init__(name, timeout, mirror, scope)
        self._ref = ref(self)

    def acquire(
        self,
        timeout: float | EllipsisType | None = ...,
        *,
        cancel_check: CancelCheck | None = None,
        poll_interval: float = 0.05,
    ) -> Lock:
        """Take the lock, waiting at most `timeout` seconds: None waits for ever, 0 tries once.  Returns the lock.

        Without `timeout` it is that of the constructor.

        `cancel_check`, if given, is asked every `poll_interval` seconds of the wait, which keeps its place in the queue
        meanwhile; the wait is over when it is true, as if the time were up.

        Raises Timeout, AlreadyHeld if this thread holds it already (through this object; or through any, and would wait
        for ever), MirrorError (then it is not held), OSError if there are no descriptors left.
        """
        seconds = self._seconds(timeout)
        hand: list[Socket] = []
        try:
            waiting = self._begin(seconds, None, hand)
            if waiting is None or run(waiting, cancel_check, poll_interval):
                return self
        except Cancelled:
            self._undo(hand)
        except BaseException as exc:
            self._undo(hand)
            self._explain(exc)
            raise
        raise Timeout(self.name, seconds or 0.0, self.holder)

    async def acquire_async(
        self,
        timeout: float | EllipsisType | None = ...,
        *,
        cancel_check: CancelCheck | None = None,
        poll_interval: float = 0.05,
    ) -> Lock:
        """`acquire` for a task of asyncio, which waits by its event loop.  Cancelling it never loses the lock.

        AlreadyHeld means that this very task holds it already: another task of this thread is waited for.
        """
        seconds = self._seconds(timeout)
        hand: list[Socket] = []
        try:
            waiting = self._begin(seconds, current_task(), hand)
            if waiting is None or await run_async(waiting, cancel_check, poll_interval):
                return self
        except Cancelled:
            self._undo(hand)
        except BaseException as exc:
            self._undo(hand)
            self._explain(exc)
            raise
        raise Timeout(self.name, seconds or 0.0, self.holder)

    def release(self) -> None:
        """Let go of the lock, handing it to the first waiter.  Raises NotHeld, also if the lock was lost."""
        sock = self._sock
        hand: list[Socket] = []
        try:
            dropped = self._drop(sock, hand)
            if dropped is not None and dropped.fileno() >= 0:  # somebody waits
                rest = _handover.hand_over(dropped, hand)
                if rest is not None:
                    run(rest)
        except BaseException:
            self._undo(hand, sock)
            raise
        if dropped is None:
            raise NotHeld(self._why_not_held("release"))

    async def release_async(self) -> None:
        """`release` for a task of asyncio: the loop runs on while a waiter is asked whether it still wants the lock."""
        sock = self._sock
        hand: list[Socket] = []
        try:
            dropped = self._drop(sock, hand)
            if dropped is not None and dropped.fileno() >= 0:  # somebody waits
                rest = _handover.hand_over(dropped, hand)
                if rest is not None:
                    await run_async(rest)
        except BaseException:
            self._undo(hand, sock)
            raise
        if dropped is None:
            raise NotHeld(self._why_not_held("release"))

    def locked(self) -> bool:
        """Whether anybody holds the lock.  Leaves no trace there; raises OSError if the kernel cannot be asked."""
        return self.held or _diag.find(self.address) is not None

    def waiters(self) -> int:
        """How many wait for the lock.  Raises OSError if the kernel cannot be asked."""
        listed = _diag.find(self.address)
        if listed is None:
            return 0
        try:
            queue = _diag.queue(listed.inode)
        except OSError:
            return listed.queued  # the dead are counted too
        if queue[:1] == [0]:
            self._drop_dead()
        return sum(1 for inode in queue if inode)

    def fileno(self) -> int:
        """The descriptor of the held lock, for DaemonContext(files_preserve=[lock]).  Raises NotHeld."""
        if self._sock is None or not self.held:
            raise NotHeld(self._why_not_held("give the descriptor of"))
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

    async def __aenter__(self) -> Lock:
        return await self.acquire_async()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release_async()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}: make another by its name")

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}{' held' if self.held else ''}>"

    def __del__(self) -> None:
        if not hasattr(self, "_sock"):  # called with wrong arguments
            return
        if self._sock is not None and self.held:
            try:
                warn(f"lock {self.name!r} was collected while held", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.release()
        else:
            self._leave()
