"""One lock and those who ask for it: timeouts, misuse, errors, and descriptors that are gone or were never there."""

from __future__ import annotations

import asyncio
import copy
import errno
import gc
import inspect
import os
import pickle
import resource
import select
import socket
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import HOLD, SECCOMP, child, has_seccomp, inode, must_block, open_descriptors, queued, wait_until

import pidabs
from pidabs import _queue

LOST = r"its descriptor was closed behind our back.*files_preserve=\[lock\]"


def is_free(name: str) -> bool:
    return not pidabs.Lock(name).locked()


# Taking and letting go ----------------------------------------------------------------------------------------


def test_free_lock_is_taken_and_freed(name: str) -> None:
    lock = pidabs.Lock(name)
    before = open_descriptors(settled=True)
    for timeout in (None, 0, 0.0, 5, float("inf"), True):
        assert not lock.held
        assert not lock.locked()
        assert lock.acquire(timeout) is lock
        assert lock.held
        assert lock.locked()
        lock.release()
    assert before == open_descriptors()


def test_with_statement(name: str) -> None:
    with pidabs.Lock(name) as lock:
        assert lock.held
        assert pidabs.holder(name) == lock.holder()
    assert not lock.held


def test_with_statement_releases_when_its_body_raises(name: str) -> None:
    with pytest.raises(KeyError), pidabs.Lock(name):
        raise KeyError
    assert is_free(name)


def test_any_thread_may_release(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert is_free(name)


def test_no_file_is_made(tmp_path: Any) -> None:
    with pidabs.Lock(tmp_path / "x.pid"):
        assert os.listdir(tmp_path) == []


def test_attributes(name: str) -> None:
    lock = pidabs.Lock(name)
    assert (name, b"\0pidabs:" + name.encode()) == (lock.name, lock.address)
    assert f"<Lock {name!r}>" == repr(lock)
    with lock:
        assert f"<Lock {name!r} held>" == repr(lock)


# Timeouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_negative_timeouts_are_refused(name: str, timeout: float) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        pidabs.Lock(name, timeout=timeout)
    with pytest.raises(ValueError, match="must not be negative"):
        pidabs.Lock(name).acquire(timeout)
    assert is_free(name)


@pytest.mark.parametrize("timeout", ["1", b"1", [], object(), 1j])
def test_timeouts_that_are_no_numbers_are_refused(name: str, timeout: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(timeout).__name__}"):
        pidabs.Lock(name, timeout=timeout)
    with pytest.raises(TypeError, match=f"not {type(timeout).__name__}"):
        pidabs.Lock(name).acquire(timeout)


def test_timeout_of_the_lock_is_the_default_of_acquire(name: str) -> None:
    with pidabs.Lock(name):
        waiting = pidabs.Lock(name, timeout=0)
        with pytest.raises(pidabs.Timeout):
            waiting.acquire()
        blocked = must_block(lambda: waiting.acquire(timeout=0.3))
    assert blocked() is waiting  # freed in time
    waiting.release()


def test_timeout_none_waits(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        blocked = must_block(lambda: pidabs.Lock(name).acquire(None))
        holder.tell()
        blocked().release()


def test_seconds_pass_and_then_timeout(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        blocked = must_block(lambda: pidabs.Lock(name).acquire(0.4))
        with pytest.raises(pidabs.Timeout, match=r"within 0\.4 s"):
            blocked()


def test_a_wait_that_is_longer_than_the_kernel_counts(name: str) -> None:
    """poll(2) takes an int of milliseconds."""
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        blocked = must_block(lambda: pidabs.Lock(name).acquire(1e300))
        holder.tell()
        blocked().release()


def test_timeout_names_the_lock_and_its_holder(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with pytest.raises(pidabs.Timeout) as caught:
            pidabs.Lock(name).acquire(0)
        exc = caught.value
        assert isinstance(exc, TimeoutError)
        assert isinstance(exc, pidabs.LockError)
        assert exc.name == name
        assert exc.holder is not None
        assert (holder.pid, os.getuid(), os.getgid()) == (exc.holder.pid, exc.holder.uid, exc.holder.gid)
        assert f"cannot acquire lock {name!r}: held by pid {holder.pid} (uid {os.getuid()}, " in str(exc)
        assert "import pidabs" in str(exc)  # its command line


def test_timeout_whose_lock_is_free_by_the_time_one_asks(name: str) -> None:
    with pidabs.Lock(name), pytest.raises(pidabs.Timeout) as caught:
        pidabs.Lock(name).acquire(0)
    assert caught.value.holder is None
    assert "it was held, and has been freed since" in str(caught.value)


def test_timeout_remembers_its_first_answer(name: str) -> None:
    with pidabs.Lock(name):
        with pytest.raises(pidabs.Timeout) as caught:
            pidabs.Lock(name).acquire(0)
        first = caught.value.holder
    assert first is caught.value.holder is not None


def test_timeout_is_pickled_with_its_holder(name: str) -> None:
    with pidabs.Lock(name):
        with pytest.raises(pidabs.Timeout) as caught:
            pidabs.Lock(name).acquire(0.01)
        copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, pidabs.Timeout)
    assert (name, 0.01) == (copy.name, copy.waited)
    assert copy.holder == pidabs.Holder(os.getpid(), os.getuid(), os.getgid())


def test_single_tries_leave_nothing_in_the_holders_queue(name: str) -> None:
    with pidabs.Lock(name):
        other = pidabs.Lock(name)
        for _ in range(2000):
            with pytest.raises(pidabs.Timeout):
                other.acquire(timeout=0)
        assert queued(name) == 0


def test_cancel_check_is_asked_twenty_times_a_second_unless_told_otherwise() -> None:
    for acquire in (pidabs.Lock.acquire, pidabs.Lock.acquire_async):
        assert inspect.signature(acquire).parameters["poll_interval"].default == 0.05


# Misuse -------------------------------------------------------------------------------------------------------


def test_release_of_what_is_not_held(name: str) -> None:
    lock = pidabs.Lock(name)
    with pytest.raises(pidabs.NotHeld, match=f"cannot release lock '{name}': it is not held by this object"):
        lock.release()
    with lock:
        pass
    with pytest.raises(pidabs.NotHeld):
        lock.release()


def test_release_through_another_object_is_not_holding(name: str) -> None:
    with pidabs.Lock(name) as lock:
        with pytest.raises(pidabs.NotHeld):
            pidabs.Lock(name).release()
        assert lock.held


@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_acquire_twice_on_one_object(name: str, timeout: float | None) -> None:
    with pidabs.Lock(name) as lock:
        with pytest.raises(pidabs.AlreadyHeld, match="this thread holds it already"):
            lock.acquire(timeout)
        assert lock.held
    assert is_free(name)


def test_waiting_for_ourselves_is_an_error_each_time(name: str) -> None:
    with pidabs.Lock(name) as lock:
        for _ in range(3):
            with pytest.raises(pidabs.AlreadyHeld, match=r"this thread holds it.*through another object"):
                pidabs.Lock(name).acquire()
        assert lock.held
    assert is_free(name)


def test_waiting_for_ourselves_with_a_deadline_times_out(name: str) -> None:
    with pidabs.Lock(name), pytest.raises(pidabs.Timeout, match=f"held by pid {os.getpid()} "):
        pidabs.Lock(name).acquire(0.05)


def test_waiting_for_another_thread_of_ours_is_none(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    blocked = must_block(pidabs.Lock(name).acquire)
    lock.release()
    blocked().release()


def test_shared_object_excludes_threads(name: str) -> None:
    lock = pidabs.Lock(name)
    inside: list[int] = []
    counter = [0]

    def work() -> None:
        for _ in range(50):
            with lock:
                inside.append(1)
                seen = counter[0]
                time.sleep(0)
                assert len(inside) == 1
                counter[0] = seen + 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == [300]
    assert is_free(name)


def test_shared_object_that_other_threads_use_while_we_look(name: str) -> None:
    """A look at the lock by thread 2 must not undo what threads 1 and 3 do to it meanwhile.

    1. thread 1 holds; 2. thread 2 begins to acquire and reads the socket; 3. thread 1 releases; 4. thread 2 finds it
    not held; 5. thread 3 acquires; 6. thread 2 forgets what it read, and only that.
    """
    lock = pidabs.Lock(name).acquire()
    steps = [lock.release, lambda: lock.acquire(5)]

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_name != "_check_not_ours":
            return None if frame.f_code.co_name != "acquire" else trace
        if event == "line" and frame.f_locals.get("sock") is not None and steps:
            step = threading.Thread(target=steps.pop(0))
            step.start()
            step.join(0.2)  # not for ever: it may have to wait for us
        return trace

    def second() -> None:
        sys.settrace(trace)
        try:
            lock.acquire(0)
        except pidabs.Timeout:
            pass
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert steps == []
    wait_until(lambda: lock.held, "thread 3 to hold the lock")
    lock.release()


# Collected ----------------------------------------------------------------------------------------------------


def test_lock_that_is_collected_while_held_warns_and_is_released(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with pytest.warns(ResourceWarning, match=f"lock '{name}' was collected while held") as caught:
        del lock
    assert [__file__] == [warning.filename for warning in caught]  # where it was dropped
    assert is_free(name)


@pytest.mark.parametrize("copy", [copy.copy, copy.deepcopy, pickle.dumps])
def test_lock_is_not_copied(name: str, copy: Callable[[pidabs.Lock], object]) -> None:
    with pytest.raises(TypeError, match="make another by its name"):
        copy(pidabs.Lock(name))


def test_nobody_waits_for_a_free_lock(name: str) -> None:
    lock = pidabs.Lock(name)
    assert lock.waiters() == 0
    with lock:
        assert lock.waiters() == 0


def test_lock_has_no_attributes_by_mistake(name: str) -> None:
    with pytest.raises(AttributeError):
        pidabs.Lock(name).time_out = 5  # type: ignore[attr-defined]


def test_collected_lock_goes_to_the_head_of_its_queue(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(HOLD, args=(name,)) as waiter:
        wait_until(lambda: pidabs.Lock(name).waiters() == 1)
        with pytest.warns(ResourceWarning):
            del lock
        waiter.expect("held")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_collected_lock_is_handed_on_although_warnings_are_errors(name: str) -> None:
    """That it is freed is the kernel's doing; that it is handed over and not fought for is ours."""
    lock = pidabs.Lock(name).acquire()
    with child(HOLD, args=(name,)) as waiter:
        wait_until(lambda: pidabs.Lock(name).waiters() == 1)
        before = inode(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del lock
        waiter.expect("held")
        assert inode(name) == before is not None


SAME_IDENT = """
    import pidabs, threading
    lock = pidabs.Lock(sys.argv[1])
    first = threading.Thread(target=lock.acquire)
    first.start()
    first.join()
    said = []
    def wait_too():
        if threading.get_ident() == first.ident:
            said.append("waits")
            say("waits")
            try: pidabs.Lock(sys.argv[1]).acquire().release()
            except pidabs.AlreadyHeld as exc: say(exc)
            else: say("got it")
    for _ in range(1000):
        second = threading.Thread(target=wait_too)
        second.start()
        while second.is_alive() and not said:
            second.join(0.001)
        if said: break
    listen()
    lock.release()
    second.join()
"""


def test_thread_with_the_ident_of_the_owner_is_another(name: str) -> None:
    """Idents come back as soon as a thread has ended; what it took for the process is still held."""
    with child(SAME_IDENT, args=(name,)) as process:
        process.expect("waits")
        wait_until(lambda: queued(name) == 1)
        process.tell()
        process.expect("got it")
        assert process.wait() == 0


def test_task_that_took_it_is_not_kept_alive(name: str) -> None:
    lock = pidabs.Lock(name)

    async def main() -> weakref.ref[object]:
        async with lock:
            return weakref.ref(asyncio.current_task())  # type: ignore[arg-type]

    task = asyncio.run(main())
    gc.collect()
    assert task() is None


def test_lock_that_was_never_acquired_is_collected_silently(name: str) -> None:
    lock = pidabs.Lock(name)
    del lock
    with pytest.raises(ValueError, match="empty"):
        pidabs.Lock("")
    with pytest.raises(TypeError):
        pidabs.Lock()  # type: ignore[call-arg]
    gc.collect()


# No descriptors -----------------------------------------------------------------------------------------------

NO_DESCRIPTORS = """
    import pidabs, errno, resource
    lock = pidabs.Lock(sys.argv[1])
    free = os.dup(0); os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + int(sys.argv[2]), hard))
    try:
        lock.acquire(timeout=float(sys.argv[3]))
    except OSError as exc:
        say(type(exc).__name__, errno.errorcode[exc.errno], exc.filename == sys.argv[1], lock.held)
    else:
        say("acquired"); lock.release()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lock.acquire(timeout=5)
    say("held")
    listen()
"""


def test_no_descriptors_left(name: str) -> None:
    with child(NO_DESCRIPTORS, args=(name, "0", "0")) as process:
        process.expect("OSError EMFILE True False")
        process.expect("held")


def test_one_descriptor_is_enough_for_a_free_lock(name: str) -> None:
    with child(NO_DESCRIPTORS, args=(name, "1", "0")) as process:
        process.expect("acquired")
        process.expect("held")


def test_no_descriptor_left_to_be_granted_the_lock(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(NO_DESCRIPTORS, args=(name, "1", "20")) as process:
        wait_until(lambda: lock.waiters() == 1)
        lock.release()
        process.expect("OSError EMFILE True False")
        process.expect("held")  # so it had been free


# Closed behind our back ---------------------------------------------------------------------------------------


def stranger_file(number: int) -> Any:
    opened = os.open("/dev/null", os.O_RDONLY)
    return _as(number, opened, lambda fd: os.fdopen(fd, "rb", 0))


def stranger_socketpair(number: int) -> Any:
    """What asyncio, multiprocessing and many others have; a socket without a name, like a waiter's."""
    ours, theirs = socket.socketpair()
    _OTHER_ENDS.append(theirs)
    return _as(number, ours.detach(), lambda fd: socket.socket(fileno=fd))


def stranger_listener(number: int) -> Any:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0stranger-{os.getpid()}-{number}")
    listener.listen()
    return _as(number, listener.detach(), lambda fd: socket.socket(fileno=fd))


def stranger_tcp(number: int) -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    return _as(number, listener.detach(), lambda fd: socket.socket(fileno=fd))


_OTHER_ENDS: list[socket.socket] = []


def _as(number: int, fd: int, make: Callable[[int], Any]) -> Any:
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
    return make(number)


STRANGERS = [stranger_file, stranger_socketpair, stranger_listener, stranger_tcp]


@pytest.fixture(autouse=True)
def close_other_ends() -> Any:
    yield
    while _OTHER_ENDS:
        _OTHER_ENDS.pop().close()


def works(stranger: Any) -> bool:
    """Whether it is still open, and still itself."""
    if isinstance(stranger, socket.socket):
        return bool(stranger.getsockname() is not None and select.select([], [], [stranger], 0) == ([], [], []))
    return bool(stranger.read(1) == b"")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_lost_lock_says_how_and_leaves_the_stranger_alone(name: str, stranger: Callable[[int], Any]) -> None:
    lock = pidabs.Lock(name).acquire()
    number = lock.fileno()
    os.close(number)
    other = stranger(number)
    try:
        assert not lock.held
        for use in (lock.release, lock.fileno):
            with pytest.raises(pidabs.NotHeld, match=LOST):
                use()
        assert is_free(name)
        assert lock.holder() is None
        assert works(other)
        with lock.across_fork():  # nothing to move
            pass
        assert works(other)
        with lock:  # it can be taken again
            assert lock.fileno() != number
            assert works(other)
        assert works(other)
    finally:
        other.close()


@pytest.mark.parametrize("stranger", STRANGERS)
def test_lost_lock_is_collected_and_leaves_the_stranger_alone(name: str, stranger: Callable[[int], Any]) -> None:
    lock = pidabs.Lock(name).acquire()
    number = lock.fileno()
    os.close(number)
    other = stranger(number)
    try:
        del lock
        gc.collect()
        assert works(other)
    finally:
        other.close()


@pytest.mark.parametrize("stranger", STRANGERS)
def test_lost_lock_and_a_fork_leave_the_stranger_alone(name: str, stranger: Callable[[int], Any]) -> None:
    lock = pidabs.Lock(name).acquire()
    number = lock.fileno()
    os.close(number)
    other = stranger(number)
    try:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if works(other) and not lock.held else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        other.close()


def test_lost_number_that_becomes_another_lock(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    number = lock.fileno()
    os.close(number)
    with pidabs.Lock(name + "-other") as other:
        assert number == other.fileno()
        assert not lock.held
        with pytest.raises(pidabs.NotHeld):
            lock.release()
        del lock
        assert other.held
    assert is_free(name + "-other")


def test_lost_number_that_becomes_the_same_lock_of_another_object(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    os.close(lock.fileno())
    with pidabs.Lock(name) as other:
        assert not lock.held
        with pytest.raises(pidabs.NotHeld):
            lock.release()
        with pytest.raises(pidabs.Timeout):
            lock.acquire(0)
        del lock
        assert other.held


CLOSE_ALL = """
    import pidabs, socket
    lock = pidabs.Lock(sys.argv[1]).acquire()
    os.closerange(3, 100)                     # as DaemonContext does
    try:
        lock.release()
    except pidabs.NotHeld as exc:
        say("files_preserve=[lock]" in str(exc))
    pair = socket.socketpair()                # comes to the same number
    lock.acquire(timeout=0)
    say(pidabs.holder(sys.argv[1]).pid == os.getpid())
    pair[0].send(b"x")
    say(pair[1].recv(1))
"""


def test_all_descriptors_closed_as_a_daemon_does(name: str) -> None:
    with child(CLOSE_ALL, args=(name,)) as process:
        process.expect("True")
        process.expect("True")
        process.expect("b'x'")
        assert process.wait() == 0


@pytest.mark.impatient
@pytest.mark.parametrize("stranger", STRANGERS)
def test_waiting_connection_closed_behind_our_back(name: str, stranger: Callable[[int], Any]) -> None:
    """Whoever has the number now is not read from, nor closed; past its deadline at the latest the wait ends well."""
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        before = {line.split()[0] for line in open_descriptors()}
        blocked = must_block(lambda: pidabs.Lock(name).acquire(0.6))
        new = [line for line in open_descriptors() if "socket" in line and line.split()[0] not in before]
        number = int(*(line.split()[0] for line in new))
        os.close(number)
        other = stranger(number)
        try:
            holder.tell()
            holder.expect("released")
            lock = blocked()
            assert lock.held
            assert works(other)
            lock.release()
            assert works(other)
        finally:
            other.close()


# And the rest -------------------------------------------------------------------------------------------------


def test_fileno_is_the_listener(name: str) -> None:
    lock = pidabs.Lock(name)
    with pytest.raises(pidabs.NotHeld):
        lock.fileno()
    with lock:
        listener = socket.socket(fileno=os.dup(lock.fileno()))
        try:
            assert lock.address == listener.getsockname()
            assert not os.get_inheritable(lock.fileno())
        finally:
            listener.close()


@pytest.mark.parametrize("default", [0.0, 0.001, 30.0])
def test_default_timeout_of_sockets_changes_nothing(name: str, default: float) -> None:
    socket.setdefaulttimeout(default)
    try:
        lock = pidabs.Lock(name).acquire()
        blocked = must_block(lambda: pidabs.Lock(name).acquire(10))
        with pytest.raises(pidabs.Timeout, match=f"pid {os.getpid()} "):
            pidabs.Lock(name).acquire(0)
        lock.release()
        blocked().release()
        assert is_free(name)
    finally:
        socket.setdefaulttimeout(None)


def test_default_timeout_of_sockets_and_an_exception(name: str) -> None:
    """The sweep after an exception looks at every socket of the process; its flags must stay as they are."""
    socket.setdefaulttimeout(5.0)
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(True)
        assert os.get_blocking(ours.fileno())
        with pidabs.Lock(name) as lock, pytest.raises(pidabs.AlreadyHeld):
            lock.acquire()
        assert os.get_blocking(ours.fileno())
        theirs.send(b"x")
        assert ours.recv(1) == b"x"
    finally:
        socket.setdefaulttimeout(None)
        ours.close()
        theirs.close()


def test_holding_a_thousand_locks(name: str) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, soft // 2)
    locks = [pidabs.Lock(f"{name}-{number}").acquire() for number in range(count)]
    assert all(lock.held for lock in locks)
    for lock in locks:
        lock.release()
    assert not any(lock.held for lock in locks)


def test_denied_sockets_are_unsupported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(sock: object, address: bytes) -> bool:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(_queue, "bind", deny)
    before = open_descriptors(settled=True)
    with pytest.raises(pidabs.Unsupported, match=f"lock '{name}': abstract sockets are denied here") as caught:
        pidabs.Lock(name).acquire()
    assert isinstance(caught.value.__cause__, PermissionError)
    assert before == open_descriptors()


@has_seccomp
@pytest.mark.parametrize("acquire", ["lock.acquire()", "asyncio.run(lock.acquire_async())"])
def test_sandbox_that_denies_bind(name: str, acquire: str) -> None:
    code = f"""
        import asyncio, errno, pidabs
        lock = pidabs.Lock(sys.argv[1])
        deny("bind", errno.EPERM)
        try: {acquire}
        except pidabs.Unsupported as exc: say(repr(exc.__cause__))
    """
    with child(textwrap.dedent(SECCOMP) + textwrap.dedent(code), args=(name,)) as process:
        answer = process.read_line()
        if answer == "no seccomp":
            pytest.skip("no seccomp here")
        assert answer == "PermissionError(1, 'Operation not permitted')"


def test_other_systems_are_unsupported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(pidabs.Unsupported, match="darwin has no abstract unix sockets; pidabs needs Linux"):
        pidabs.Lock(name)
