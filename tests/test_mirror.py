"""The mirror PID file: for people and tools, never in the way of the lock."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import BECOME_UNPRIVILEGED, DEADLINE, child, flocked, must_block, open_descriptors, wait_until

import pidabs
from pidabs import _mirror

HOLD_MIRRORED = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1], mirror=True)
    lock.acquire()
    say("held")
    listen()
    lock.release()
    say("released")
"""

has_pgrep = pytest.mark.skipif(shutil.which("pgrep") is None, reason="procps is not installed")


def pgrep(path: Path) -> str | None:
    """What `pgrep -L -F` says: the pid of the live process whose locked PID file this is, or None."""
    done = subprocess.run(["pgrep", "-L", "-F", str(path)], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode in (0, 1, 3), done
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pid"


@pytest.fixture
def lock(path: Path) -> pidabs.Lock:
    return pidabs.Lock(path, mirror=True)


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    before = open_descriptors(settled=True)
    yield
    assert before == open_descriptors()


# What is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777], ids=oct)
def test_content_and_mode(lock: pidabs.Lock, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with lock:
            assert f"{os.getpid()}\n".encode() == path.read_bytes()
            assert path.lstat().st_mode == stat.S_IFREG | 0o644
            assert os.listdir(path.parent) == ["x.pid"]
    finally:
        os.umask(before)
    assert os.listdir(path.parent) == []


def test_is_off_by_default(path: Path) -> None:
    with pidabs.Lock(path):
        assert os.listdir(path.parent) == []


def test_written_anew_each_time(lock: pidabs.Lock, path: Path) -> None:
    for _ in range(3):
        with lock:
            assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
        assert not path.exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_at_a_path_of_its_own(name: str, path: Path, kind: type) -> None:
    with pidabs.Lock(name, mirror=kind(path)):
        assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
    assert not path.exists()


def test_at_a_relative_path_for_good(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    lock = pidabs.Lock(name, mirror="x.pid")
    monkeypatch.chdir("/")
    with lock:
        assert path.exists()
    assert not path.exists()


def test_a_plain_name_is_no_path_for_it(name: str) -> None:
    with pytest.raises(ValueError, match="mirror=True needs a path"):
        pidabs.Lock(name, mirror=True)


def test_a_timed_out_acquire_leaves_the_holders(lock: pidabs.Lock, path: Path) -> None:
    with child(HOLD_MIRRORED, args=(str(path),)) as holder:
        holder.expect("held")
        for timeout in (0, 0.02):
            with pytest.raises(pidabs.Timeout):
                lock.acquire(timeout=timeout)
            assert f"{holder.pid}\n" == path.read_text(encoding="ascii")


def test_the_next_in_the_queue_writes_its_own(path: Path) -> None:
    with child(HOLD_MIRRORED, args=(str(path),)) as holder:
        holder.expect("held")
        with child(HOLD_MIRRORED, args=(str(path),)) as waiter:
            wait_until(lambda: pidabs.Lock(path).waiters() == 1)
            assert holder.pid == int(path.read_text(encoding="ascii"))
            holder.tell()
            holder.expect("released")
            waiter.expect("held")
            assert waiter.pid == int(path.read_text(encoding="ascii"))


def test_readers_never_see_half_a_file(lock: pidabs.Lock, path: Path) -> None:
    code = """
    whole, expected = 0, sys.argv[2].encode() + b"\\n"
    while whole < 2000:
        try:
            with open(sys.argv[1], "rb") as file:
                text = file.read()
        except FileNotFoundError:
            continue
        if text != expected:
            say("saw", text)
            break
        whole += 1
    else:
        say("all whole")
    """
    with child(code, args=(str(path), str(os.getpid()))) as reader:
        while reader.says_nothing(0):
            with lock:
                pass
        reader.expect("all whole")


# What is in its place -----------------------------------------------------------------------------------------


def test_a_stale_one_is_replaced(lock: pidabs.Lock, path: Path) -> None:
    path.write_text("1\nand more\n", encoding="ascii")
    path.chmod(0o600)
    with lock:
        assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_symlink_is_replaced_and_not_followed(lock: pidabs.Lock, path: Path) -> None:
    target = path.parent / "precious"
    target.write_text("gold", encoding="ascii")
    path.symlink_to(target)
    with lock:
        assert not path.is_symlink()
        assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
    assert os.listdir(path.parent) == ["precious"]
    assert target.read_text(encoding="ascii") == "gold"


def test_a_symlink_at_the_temporary_name_is_not_followed(lock: pidabs.Lock, path: Path) -> None:
    target = path.parent / "precious"
    target.write_text("gold", encoding="ascii")
    with lock:
        pass
    for name in (".x.pid.pidabs", "x.pid.tmp"):
        (path.parent / name).symlink_to(target)
    with lock:
        assert not path.is_symlink()
    assert target.read_text(encoding="ascii") == "gold"


def test_a_fifo_is_replaced(lock: pidabs.Lock, path: Path) -> None:
    os.mkfifo(path)
    with lock:
        assert path.is_file()
    assert not path.exists()


def test_a_directory_is_an_error(lock: pidabs.Lock, path: Path) -> None:
    path.mkdir()
    (path / "file").touch()
    assert isinstance(refused(lock).__cause__, IsADirectoryError)
    assert os.listdir(path) == ["file"]


# When it cannot be written ------------------------------------------------------------------------------------


def refused(lock: pidabs.Lock) -> pidabs.MirrorError:
    """The error of an acquire whose mirror cannot be written, after which the lock is free."""
    with pytest.raises(pidabs.MirrorError) as caught:
        lock.acquire()
    assert not lock.held
    assert not lock.locked()
    pidabs.Lock(lock.name).acquire(timeout=0).release()
    with pytest.raises(pidabs.NotHeld):
        lock.release()
    return caught.value


def test_no_directory(path: Path) -> None:
    lock = pidabs.Lock(path / "nowhere" / "x.pid", mirror=True)
    error = refused(lock)
    assert isinstance(error.__cause__, FileNotFoundError)
    assert lock.name in str(error)
    assert os.strerror(errno.ENOENT) in str(error)


def test_a_file_for_a_directory(path: Path) -> None:
    path.touch()
    assert isinstance(refused(pidabs.Lock(path / "x.pid", mirror=True)).__cause__, NotADirectoryError)


def test_a_name_too_long_for_a_file(path: Path) -> None:
    error = refused(pidabs.Lock(path.parent / ("x" * 300), mirror=True))
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENAMETOOLONG
    assert os.listdir(path.parent) == []


def test_the_longest_name_of_a_file(path: Path) -> None:
    with pidabs.Lock(path.parent / ("x" * 255), mirror=True):
        assert os.listdir(path.parent) == ["x" * 255]


def test_a_read_only_directory(public_dir: Path) -> None:
    code = (
        "    import pidabs\n"
        + BECOME_UNPRIVILEGED
        + """
    lock = pidabs.Lock(sys.argv[1], mirror=True)
    try:
        lock.acquire()
    except pidabs.MirrorError as exc:
        say(type(exc.__cause__).__name__, lock.held, lock.locked())
    """
    )
    os.chmod(public_dir, 0o555)
    with child(code, args=(str(public_dir / "x.pid"),)) as process:
        process.expect("PermissionError False False")
        assert process.wait() == 0


def test_a_full_disk(path: Path) -> None:
    code = """
    import ctypes, errno, pidabs
    libc = ctypes.CDLL(None, use_errno=True)
    CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
    directory = sys.argv[1].encode()
    if (libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
            or libc.mount(b"none", directory, b"tmpfs", 0, b"size=4k")):
        say("cannot mount")
        sys.exit()
    with open(directory + b"/fill", "wb") as file:
        file.write(b"x" * 4096)
    lock = pidabs.Lock(os.fsdecode(directory) + "/x.pid", mirror=True)
    try:
        lock.acquire()
    except pidabs.MirrorError as exc:
        say(errno.errorcode[exc.__cause__.errno], lock.held, lock.locked(), os.listdir(directory))
    os.unlink(directory + b"/fill")
    with lock:
        say(os.listdir(directory))
    """
    with child(code, args=(str(path.parent),)) as process:
        line = process.read_line()
        if line == "cannot mount":
            pytest.skip("may not mount a file system")
        assert line == "ENOSPC False False [b'fill']"
        process.expect("[b'x.pid']")


def test_writers_that_were_killed_leave_at_most_one_file(lock: pidabs.Lock, path: Path) -> None:
    code = """
    import pidabs, signal
    os.rename = os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    pidabs.Lock(sys.argv[1], mirror=True).acquire()
    """
    for _ in range(3):
        with child(code, args=(str(path),)) as writer:
            assert writer.wait() == -9
        [left] = os.listdir(path.parent)
        assert left != "x.pid"
    with lock:
        assert os.listdir(path.parent) == ["x.pid"]
    assert os.listdir(path.parent) == []


def test_a_leftover_that_is_somebody_elses(public_dir: Path) -> None:
    """In a sticky directory it cannot be removed: another name does."""
    code = (
        "    import pidabs\n"
        + BECOME_UNPRIVILEGED
        + """
    with pidabs.Lock(sys.argv[1], mirror=True):
        say(open(sys.argv[1]).read().strip() == str(os.getpid()))
    """
    )
    os.chmod(public_dir, 0o1777)
    (public_dir / ".x.pid.pidabs").write_text("1\n", encoding="ascii")
    with child(code, args=(str(public_dir / "x.pid"),)) as process:
        process.expect("True")
        assert process.wait() == 0
    assert os.geteuid() != 0 or os.listdir(public_dir) == [".x.pid.pidabs"]


# Its flock ----------------------------------------------------------------------------------------------------


def test_flocked_while_held(lock: pidabs.Lock, path: Path) -> None:
    with lock:
        assert flocked(path)


def test_not_flocked_once_stale(path: Path) -> None:
    with child(HOLD_MIRRORED, args=(str(path),)) as holder:
        holder.expect("held")
        assert flocked(path)
        holder.kill()
    assert path.exists()
    assert not flocked(path)


def test_not_flocked_by_a_forked_child(path: Path) -> None:
    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1], mirror=True).acquire()
    if os.fork() == 0:
        say("child")
        listen()
        os._exit(0)
    os.wait()
    """
    with child(code, args=(str(path),)) as holder:
        holder.expect("child")
        assert flocked(path)
        holder.kill()
        assert not flocked(path)  # and the child, which still runs, is told to go
        holder.tell()


@has_pgrep
def test_pgrep_tells_a_held_one_from_a_stale_one(path: Path) -> None:
    with child(HOLD_MIRRORED, args=(str(path),)) as holder:
        holder.expect("held")
        assert str(holder.pid) == pgrep(path)
        holder.kill()
    assert pgrep(path) is None
    path.write_text(f"{os.getpid()}\n", encoding="ascii")
    assert pgrep(path) is None


# Removing -----------------------------------------------------------------------------------------------------


def test_deleted_by_somebody(lock: pidabs.Lock, path: Path) -> None:
    with lock:
        path.unlink()
    assert not path.exists()
    assert not lock.locked()


@pytest.mark.parametrize("text", ["1\n", "", None], ids=["another pid", "empty", "the same text"])
def test_replaced_by_somebody(lock: pidabs.Lock, path: Path, text: str | None) -> None:
    with lock:
        other = path.parent / "other"
        other.write_text(path.read_text(encoding="ascii") if text is None else text, encoding="ascii")
        other.rename(path)
        identity = path.stat().st_ino
    assert identity == path.stat().st_ino
    assert not lock.locked()


def test_overwritten_by_somebody(lock: pidabs.Lock, path: Path) -> None:
    with lock:
        path.write_text("4711\n", encoding="ascii")
    assert path.read_text(encoding="ascii") == "4711\n"


@pytest.mark.parametrize("what", ["directory", "symlink", "fifo"])
def test_something_else_in_its_place(lock: pidabs.Lock, path: Path, what: str) -> None:
    with lock:
        moved = path.rename(path.parent / "moved")
        if what == "directory":
            path.mkdir()
        elif what == "symlink":
            path.symlink_to(moved)  # to our very file
        else:
            os.mkfifo(path)
    assert os.path.lexists(path)
    assert moved.exists()
    assert not lock.locked()


def test_its_directory_is_gone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    lock = pidabs.Lock(tmp_path / "sub" / "x.pid", mirror=True)
    with lock:
        (tmp_path / "sub").rename(tmp_path / "moved")
    assert os.listdir(tmp_path / "moved") == ["x.pid"]
    assert not lock.locked()


@pytest.mark.parametrize("warnings_are", ["always", "error"])
def test_cannot_be_removed(public_dir: Path, warnings_are: str) -> None:
    """The lock is released all the same; the file names nobody, so that nobody signals our pid."""
    code = """
    import warnings, pidabs
    lock = pidabs.Lock(sys.argv[1], mirror=True).acquire()
    os.chmod(os.path.dirname(sys.argv[1]), 0o555)
    os.chown(os.path.dirname(sys.argv[1]), 0, 0) if os.geteuid() == 0 else None
    warnings.simplefilter(sys.argv[2])
    """
    code += (
        BECOME_UNPRIVILEGED
        + """
    said = []
    with warnings.catch_warnings(record=True) as caught:
        try:
            lock.release()
        except RuntimeWarning as exc:
            said.append(exc)
    said += [warning.message for warning in caught]
    say(len(said), "left behind" in str(said[0]), lock.held, lock.locked())
    """
    )
    path = public_dir / "x.pid"
    with child(code, args=(str(path), warnings_are)) as process:
        process.expect("1 True False False")
        assert process.wait() == 0
    assert path.read_bytes() == b""


def test_waiter_that_gives_up_leaves_the_mirror_to_whoever_releases(
    lock: pidabs.Lock, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one object: 1. A releases, and is about to remove the file; 2. B, who waits, is cancelled; 3. A goes on."""
    unlink = os.unlink
    removing, given_up = threading.Event(), threading.Event()

    def slowly(target: str) -> None:
        if not removing.is_set():
            removing.set()
            assert given_up.wait(DEADLINE)
        unlink(target)

    def wait() -> None:
        with pytest.raises(pidabs.Timeout):
            lock.acquire(cancel_check=removing.is_set, poll_interval=0.001)
        given_up.set()

    lock.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: lock.waiters() == 1)
    monkeypatch.setattr(os, "unlink", slowly)
    lock.release()
    thread.join()
    assert not path.exists()
    assert not lock.locked()


LOW_LIMIT = """
    import resource, pidabs
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    lock = pidabs.Lock(sys.argv[1], mirror=True).acquire()
    say(lock.fileno() < 64, lock.held, open(sys.argv[1]).read().split() == [str(os.getpid())])
    lock.release()
    say(lock.locked(), os.path.exists(sys.argv[1]))
"""


def test_numbers_below_a_low_limit(path: Path) -> None:
    with child(LOW_LIMIT, args=(str(path),)) as process:
        process.expect("True True True")
        process.expect("False False")


def test_descriptor_closed_behind_our_back(lock: pidabs.Lock, path: Path) -> None:
    """The number has become a stranger's file, which is neither closed nor written to."""
    before = {int(line.split()[0]) for line in open_descriptors()}
    lock.acquire()
    mirrors = [
        int(number)
        for number, _, target in (line.split(" ", 2) for line in open_descriptors())
        if int(number) not in before and target == str(path)
    ]
    [fd] = mirrors
    stranger = path.parent / "stranger"
    stranger.write_text("mine", encoding="ascii")
    os.close(fd)
    opened = os.open(stranger, os.O_RDWR)
    os.dup2(opened, fd)
    os.close(opened)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lock.release()
    assert stranger.samefile(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert stranger.read_text(encoding="ascii") == "mine"
    assert not lock.locked()
    assert not path.exists()


def test_a_collected_lock_removes_it(path: Path) -> None:
    lock = pidabs.Lock(path, mirror=True)
    lock.acquire()
    with pytest.warns(ResourceWarning, match="collected while held"):
        del lock
    assert not path.exists()


def test_removed_at_interpreter_exit(path: Path) -> None:
    with child("import pidabs\nlock = pidabs.Lock(sys.argv[1], mirror=True).acquire()", args=(str(path),)) as process:
        assert process.wait() == 0
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("waiting", [False, True])
def test_hold_after_a_lost_one_leaves_no_descriptor(path: Path, waiting: bool) -> None:
    """The lost hold's PID file is closed: else each loss would leave one open."""
    lock = pidabs.Lock(path, mirror=True)
    before = open_descriptors(settled=True)
    lock.acquire()
    finish = must_block(lambda: lock.acquire(timeout=DEADLINE)) if waiting else lock.acquire
    os.close(lock.fileno())
    finish()
    assert path.read_text() == f"{os.getpid()}\n"
    lock.release()
    assert not path.exists()
    assert before == open_descriptors()


@pytest.mark.parametrize("noticed", [False, True])
def test_lost_lock_that_is_dropped_leaves_no_descriptor(path: Path, noticed: bool) -> None:
    before = open_descriptors(settled=True)
    lock = pidabs.Lock(path, mirror=True).acquire()
    os.close(lock.fileno())
    if noticed:
        with pidabs.Lock(path), pytest.raises(pidabs.Timeout):
            lock.acquire(timeout=0)
    del lock
    assert before == open_descriptors()


def test_child_forked_while_the_file_is_written_does_not_keep_its_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, or a signal handler: `pgrep -L -F` would take a dead holder's file for a living one's."""
    flock, codes = _mirror.flock, []

    def forking(fd: int, how: int) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(any("x.pid" in line for line in open_descriptors()))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        flock(fd, how)

    monkeypatch.setattr(_mirror, "flock", forking)
    with pidabs.Lock(path, mirror=True):
        assert codes == [0]
    assert not path.exists()


def test_child_forked_as_the_file_is_opened_does_not_keep_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The file is opened; the interpreter is another thread's.  2. That forks.  3. The number is on record."""
    lift_file = _mirror.lift_file
    readable, writable = os.pipe()
    children: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os.close(writable)
            os.read(readable, 1)
            os._exit(0)
        children.append(pid)

    def forked_before(opened: list[int]) -> int:
        monkeypatch.setattr(_mirror, "lift_file", lift_file)
        number = opened.pop()
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        opened.append(number)
        return lift_file(opened)

    monkeypatch.setattr(_mirror, "lift_file", forked_before)
    lock = pidabs.Lock(path, mirror=True).acquire()
    assert flocked(path)
    os.close(lock._mirror.fd)  # type: ignore[union-attr]
    assert not flocked(path)
    os.close(writable)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0]
    os.close(readable)
    lock.release()
    assert os.listdir(path.parent) == []


def test_second_exception_while_a_failed_file_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors(settled=True)
    is_at = _mirror._is_at

    def keep(mirror: object, *args: object) -> None:
        raise KeyboardInterrupt("first")

    def interrupted(*args: object) -> bool:
        monkeypatch.setattr(_mirror, "_is_at", is_at)
        raise KeyboardInterrupt("second")

    monkeypatch.setattr(_mirror.Mirror, "_keep", keep)
    monkeypatch.setattr(_mirror, "_is_at", interrupted)
    lock = pidabs.Lock(path, mirror=True)
    with pytest.raises(KeyboardInterrupt, match="second"):
        lock.acquire()
    assert os.listdir(path.parent) == []
    assert before == open_descriptors()
    assert not lock.locked()
