"""docs/comparison.md: what it says of other locks, tried with the real packages.

Each lock is used in processes of its own, as its documentation shows.  What cannot be tried here (NFS, other systems,
systemd) is on the page with its source instead.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from support import Child, child, in_namespace, switches, wait_until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
TOX = (ROOT / "tox.ini").read_text(encoding="utf-8")
WATCHED = 0.4  # seconds; the longest pause between two polls is portalocker's, 0.25
ROUNDS = 5


class Peer(NamedTuple):
    """A lock, and what the page says of it, as a word each.

    `code` defines take(seconds), which says whether it has the lock (None: wait for ever), drop() and who().
    """

    package: str
    code: str
    waits: str  # "asleep", "polls" or "never"
    killed: str  # "free" or "stale"
    recycled: str  # "free" or "fooled": its file is there, without a holder, and names a living process
    forked: str  # "free", "kept" by the holder's forked child when the holder has been killed, or "stale" anyway
    barging: str  # "possible" or "never"
    named: str  # who(): "yes" or "no"
    elsewhere: str  # another network namespace, the same directory: "excluded" or "not"


def filelock(cls: str) -> str:
    return textwrap.dedent(f"""
        import filelock
        lock = filelock.{cls}(path)
        def take(seconds):
            try: lock.acquire(timeout=-1 if seconds is None else seconds)
            except filelock.Timeout: return False
            return True
        drop = lock.release
    """)


def portalocker(cls: str) -> str:
    return textwrap.dedent(f"""
        import portalocker
        lock = portalocker.{cls}(path)
        def take(seconds):
            try: lock.acquire(timeout=1e6 if seconds is None else seconds, fail_when_locked=False)
            except portalocker.LockException: return False
            return True
        drop = lock.release
    """)


PEERS = {
    "pidabs.Lock": Peer(
        "pidabs",
        """
        import pidabs
        lock = pidabs.Lock(path, mirror=True)
        def take(seconds):
            try: lock.acquire(seconds)
            except pidabs.Timeout: return False
            return True
        drop = lock.release
        def who(): return lock.holder().pid
        """,
        *("asleep", "free", "free", "free", "never", "yes", "not"),
    ),
    "filelock FileLock": Peer(
        "filelock",
        filelock("FileLock"),
        *("polls", "free", "free", "free", "possible", "no", "excluded"),
    ),
    "filelock SoftFileLock": Peer(
        "filelock",
        filelock("SoftFileLock") + "def who(): return lock.pid\n",
        *("polls", "free", "free", "free", "possible", "yes", "excluded"),
    ),
    "lockfile LockFile": Peer(
        "lockfile",
        """
        import lockfile
        lock = lockfile.LockFile(path)
        def take(seconds):
            try: lock.acquire(timeout=seconds)
            except (lockfile.AlreadyLocked, lockfile.LockTimeout): return False
            return True
        drop = lock.release
        """,
        *("polls", "stale", "fooled", "stale", "possible", "no", "excluded"),
    ),
    "python-daemon TimeoutPIDLockFile": Peer(
        "daemon",
        """
        import lockfile
        from daemon.pidfile import TimeoutPIDLockFile
        lock = TimeoutPIDLockFile(path, acquire_timeout=1)
        def take(seconds):
            while True:
                try: lock.acquire(timeout=1 if seconds is None else seconds)
                except (lockfile.AlreadyLocked, lockfile.LockTimeout):
                    if seconds is not None: return False
                else: return True
        drop = lock.release
        who = lock.read_pid
        """,
        *("polls", "stale", "fooled", "stale", "possible", "yes", "excluded"),
    ),
    "pid PidFile": Peer(
        "pid",
        """
        import pid
        lock = pid.PidFile(os.path.basename(path), piddir=os.path.dirname(path))
        def take(seconds):
            try: lock.create()
            except (pid.PidFileAlreadyLockedError, pid.PidFileAlreadyRunningError) as exc:
                refused.append(getattr(exc, "pid", None))
                return False
            return True
        drop = lock.close
        refused = []
        def who():
            take(0)
            return refused[-1]
        """,
        *("never", "free", "fooled", "kept", "never", "no", "excluded"),
    ),
    "portalocker Lock": Peer(
        "portalocker",
        portalocker("Lock"),
        *("polls", "free", "free", "kept", "possible", "no", "excluded"),
    ),
    "portalocker PidFileLock": Peer(
        "portalocker",
        portalocker("PidFileLock") + "who = lock.read_pid\n",
        *("polls", "free", "free", "kept", "possible", "yes", "excluded"),
    ),
    "fasteners InterProcessLock": Peer(
        "fasteners",
        """
        import fasteners
        lock = fasteners.InterProcessLock(path)
        def take(seconds): return lock.acquire(blocking=seconds != 0, timeout=seconds or None)
        drop = lock.release
        """,
        *("polls", "free", "free", "free", "possible", "no", "excluded"),
    ),
    "flock(2)": Peer(
        "fcntl",
        """
        import fcntl
        file = open(path, "a")
        def take(seconds):
            try: fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if seconds == 0 else 0))
            except BlockingIOError: return False
            return True
        def drop(): fcntl.flock(file, fcntl.LOCK_UN)
        """,
        *("asleep", "free", "free", "kept", "possible", "no", "excluded"),
    ),
}

PREAMBLE = """
import time
path = sys.argv[1]
def who(): return None
"""
SERVES = """
say("ready")
while True:
    word = listen()
    if word == "take": say(take(None))
    elif word == "try": say(take(0))
    elif word == "drop": say(drop() and None)
    elif word == "who": say(who())
    elif word == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        say(child)
    elif word == "leave":
        import ctypes
        CLONE_NEWNET = 0x40000000
        say(ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0)
    elif word == "barge":
        # While somebody waits: let go, and take it again at once.
        drop()
        say(take(0))
"""


def installed(peer: Peer) -> bool:
    return importlib.util.find_spec(peer.package) is not None


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    found = PEERS[request.param]
    if not installed(found):
        pytest.skip(f"{found.package} is not installed")
    if found.package == "filelock" and tuple(map(int, version("filelock").split(".")[:2])) < (4, 2):
        pytest.skip("the page is about filelock 4.2, which needs Python 3.11")
    return found


Start = Callable[..., Child]


@pytest.fixture
def start(peer: Peer, tmp_path: Path) -> Iterator[Start]:
    """Processes that use the same lock."""
    with ExitStack() as stack:

        def start(path: str = str(tmp_path / "x.pid")) -> Child:
            code = PREAMBLE + textwrap.dedent(peer.code) + SERVES
            process = stack.enter_context(child(code, args=(path,), stderr=subprocess.DEVNULL))
            process.expect("ready")
            return process

        yield start


def ask(process: Child, word: str) -> str:
    process.tell(word)
    return process.read_line()


def holding(start: Start) -> Child:
    process = start()
    assert ask(process, "try") == "True"
    return process


def test_killed(peer: Peer, start: Start, tmp_path: Path) -> None:
    """And a second kill, with the pid in the file now another process's: ours."""
    holder, other = holding(start), start()
    assert ask(other, "try") == "False"
    assert (ask(other, "who") == str(holder.pid)) == (peer.named == "yes")
    holder.kill()
    taken = ask(other, "try") == "True"
    assert ("free" if taken else "stale") == peer.killed
    if taken:
        other.kill()
    pid, file = str(other.pid if taken else holder.pid), tmp_path / "x.pid"
    left = file.read_text(encoding="ascii") if file.exists() else ""
    file.write_text(left.replace(pid, str(os.getpid())) if pid in left else f"{os.getpid()}\n", encoding="ascii")
    taken = ask(start(), "try") == "True"
    assert ("free" if taken else "fooled") == peer.recycled


def test_forked(peer: Peer, start: Start) -> None:
    holder = holding(start)
    forked = int(ask(holder, "fork"))
    other = start()
    try:
        holder.kill()
        taken = ask(other, "try") == "True"
        assert ("free" if taken else peer.killed if peer.killed == "stale" else "kept") == peer.forked
    finally:
        os.kill(forked, signal.SIGKILL)


def test_waiting_and_barging(peer: Peer, start: Start) -> None:
    holder, waiter = holding(start), start()
    waiter.tell("take")
    if peer.waits == "never":
        assert waiter.read_line() == "False"
        return
    assert waiter.says_nothing()
    before = switches(waiter.pid)
    assert waiter.says_nothing(WATCHED)
    assert ("asleep" if switches(waiter.pid) == before else "polls") == peer.waits
    barged = False
    for _ in range(ROUNDS):
        barged = ask(holder, "barge") == "True"
        if barged:
            break
        assert waiter.read_line() == "True"
        ask(waiter, "drop")
        wait_until(lambda: ask(holder, "try") == "True")
        waiter.tell("take")
        assert waiter.says_nothing()
    assert ("possible" if barged else "never") == peer.barging


def test_another_network_namespace_and_the_same_directory(peer: Peer, start: Start) -> None:
    """As two containers that share a volume."""
    in_namespace("--net")
    elsewhere = start()
    assert ask(elsewhere, "leave") == "True"
    holding(start)
    assert ("not" if ask(elsewhere, "try") == "True" else "excluded") == peer.elsewhere


# The page -------------------------------------------------------------------------------------------------------------


def rows(table: str) -> dict[str, list[str]]:
    """Of a table on the page, by the first cell: the words of the others."""
    _, _, rest = PAGE.partition(f"<!-- {table} -->\n")
    cells = [line.strip("|").split("|") for line in rest.partition("\n\n")[0].split("\n")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells[2:]}


def test_the_page_says_what_is_tried_here() -> None:
    tried = {name: [*peer[2:]] for name, peer in PEERS.items()}
    said = {name: [cell.strip("*") for cell in cells] for name, cells in rows("tried").items()}
    assert said == tried


def test_the_page_says_which_versions() -> None:
    """Those that tox.ini pins, and they are not said otherwise elsewhere."""
    pinned = dict(re.findall(r"^    (fasteners|pid|portalocker)==(\S+)", TOX, re.MULTILINE))
    assert len(pinned) == 3
    for package, number in pinned.items():
        assert f"{package} {number}" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:filelock|fasteners|portalocker|lockfile|pid)\.\w+)`", PAGE)))
)
def test_what_the_page_names_exists(name: str) -> None:
    package, attribute = name.split(".")
    module = pytest.importorskip(package)
    assert hasattr(module, attribute), name


def test_fasteners_lock_excludes_processes_and_not_objects(tmp_path: Path) -> None:
    """It is a POSIX lock: the process's, whatever object took it, and lost when any of them closes the file."""
    fasteners = pytest.importorskip("fasteners")
    one, two = fasteners.InterProcessLock(tmp_path / "x"), fasteners.InterProcessLock(tmp_path / "x")
    assert one.acquire(blocking=False)
    assert two.acquire(blocking=False)
    two.release()
    code = "import fasteners; say(fasteners.InterProcessLock(sys.argv[1]).acquire(blocking=False))"
    with child(code, args=(str(tmp_path / "x"),)) as other:
        other.expect("True")
    one.release()
