"""What is listed: locks, scopes, owners and waiters, from sock_diag, from /proc/net/unix, and from garbage."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import textwrap
from contextlib import ExitStack
from typing import Any

import pytest
from support import HOLD, address, child, in_namespace, needs_root, queued, run_in, wait_until

import pidabs
from pidabs import _diag


def mine(name: str) -> list[pidabs.LockInfo]:
    """The listed locks of this test; others may hold theirs meanwhile."""
    return [lock for lock in pidabs.list_locks() if name in lock.name]


@pytest.fixture(params=["netlink", "proc"])
def source(request: pytest.FixtureRequest) -> str:
    if request.param == "proc":
        request.getfixturevalue("no_netlink")
    return str(request.param)


@pytest.mark.usefixtures("source")
def test_held_locks_are_listed_by_name(name: str) -> None:
    assert mine(name) == []
    with pidabs.Lock(name + "-b") as second, pidabs.Lock(name + "-a") as first:
        listed = mine(name)
        assert [first.name, second.name] == [info.name for info in listed]
        for lock, info in zip((first, second), listed, strict=True):
            assert lock.address == info.address
            assert os.fstat(lock.fileno()).st_ino == info.inode
        assert [(info.scope, info.waiters) for info in listed] == [(None, 0), (None, 0)]
    assert mine(name) == []


def test_socket_owns_its_address_through_a_handing_over(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    inode = os.fstat(lock.fileno()).st_ino
    assert _diag.owns(inode, lock.address)
    assert not _diag.owns(inode, lock.address + b"x")
    with child(HOLD, args=(name,)) as waiter:
        wait_until(lambda: lock.waiters() == 1)
        lock.release()
        waiter.expect("held")
        assert _diag.owns(inode, lock.address)
        waiter.kill()
        wait_until(lambda: not _diag.owns(inode, lock.address))


@pytest.mark.usefixtures("source")
def test_scopes(name: str) -> None:
    with pidabs.Lock(name), pidabs.Lock(name, scope="blue"), pidabs.Lock(name, scope="apple"):
        assert [(name, None), (name, "apple"), (name, "blue")] == [(lock.name, lock.scope) for lock in mine(name)]


def test_owner_and_holder(name: str, source: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        (listed,) = mine(name)
        assert listed.uid == (os.getuid() if source == "netlink" else None)
        holder = listed.holder()
        assert holder is not None
        assert holder.pid == process.pid
        process.kill()
        assert listed.holder() is None


@needs_root
def test_owner_is_another_user(name: str) -> None:
    with child("import pidabs; os.setuid(12350)\n" + textwrap.dedent(HOLD), args=(name,)) as process:
        process.expect("held")
        (listed,) = mine(name)
        assert listed.uid == 12350


def test_waiters_are_the_living(name: str, source: str) -> None:
    """sock_diag tells them from the dead; /proc/net/unix cannot."""
    with pidabs.Lock(name) as lock, ExitStack() as stack:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.connect(lock.address)
        for _ in range(2):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(lock.address)
        (listed,) = mine(name)
        assert listed.waiters == (2 if source == "netlink" else 5)
        assert pidabs.Lock(name).waiters() == listed.waiters


@pytest.mark.usefixtures("source")
def test_asking_leaves_no_trace(name: str) -> None:
    with pidabs.Lock(name):
        for _ in range(20):
            assert pidabs.Lock(name).locked()
            assert mine(name) != []
            assert pidabs.Lock(name).waiters() == 0
        assert queued(name) == 0
    assert not pidabs.Lock(name).locked()


@pytest.mark.usefixtures("source")
def test_who_only_binds_has_the_lock(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address(name))
        assert pidabs.Lock(name).locked()
        (listed,) = mine(name)
        assert listed.waiters == 0


@pytest.mark.parametrize("tail", [b" a b", b"\t", b"\xff\xfe", b"\x1b[31m", b"@", "é".encode(), b"#", b":x"])
@pytest.mark.usefixtures("source")
def test_strange_names(name: str, tail: bytes) -> None:
    raw = name.encode() + tail
    with pidabs.Lock(raw):
        assert [os.fsdecode(raw)] == [lock.name for lock in mine(name)]
        assert pidabs.Lock(raw).locked()


def test_name_with_newlines(name: str) -> None:
    raw = f"{name}\n{name}-2\n".encode()
    with pidabs.Lock(raw):
        assert [os.fsdecode(raw)] == [lock.name for lock in mine(name)]


@pytest.mark.usefixtures("no_netlink")
def test_name_with_newlines_breaks_lines_and_nothing_else(name: str) -> None:
    """/proc/net/unix cannot show it; the others are still found, and a forged line is at least none of theirs."""
    forged = f"{name}-x\n0000000000000000: 00000002 00000000 00010000 0001 01 12345 @pidabs:{name[-8:]}-f".encode()
    with pidabs.Lock(forged), pidabs.Lock(name):
        assert name in [lock.name for lock in pidabs.list_locks()]
        assert pidabs.Lock(name).locked()


def test_hashed_name(name: str) -> None:
    with pidabs.Lock("x" * 200 + name) as lock:
        (listed,) = mine(name)
        assert listed.name.startswith("#")
        assert os.fsdecode(lock.address) == "\0pidabs:" + listed.name


@pytest.mark.usefixtures("source")
def test_other_sockets_are_no_locks(name: str, public_dir: Any) -> None:
    raw = address(name)
    others = [
        (socket.SOCK_DGRAM, raw),
        (socket.SOCK_SEQPACKET, raw),
        (socket.SOCK_STREAM, raw[1:].decode() + "-path"),
        (socket.SOCK_STREAM, b"\0" + name.encode()),
        (socket.SOCK_STREAM, b"\0pidabs-" + name.encode()),
        (socket.SOCK_STREAM, b"\0pidabs"),
        (socket.SOCK_STREAM, b"\0\0pidabs:" + name.encode()),
    ]
    with ExitStack() as stack:
        for kind, where in others:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(str(public_dir / where) if isinstance(where, str) else where)
            if kind != socket.SOCK_DGRAM:
                sock.listen()
        assert mine(name) == []
        assert not pidabs.Lock(name).locked()
        with pidabs.Lock(name):
            assert len(mine(name)) == 1


@pytest.mark.usefixtures("source")
def test_connections_to_a_lock_are_no_locks(name: str) -> None:
    """An accepted connection has the lock's name, too, and outlives the lock."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
        listener.bind(address(name))
        listener.listen()
        peer.connect(address(name))
        conn, _ = listener.accept()
        with conn:
            assert len(mine(name)) == 1
            listener.close()
            assert mine(name) == []
            assert not pidabs.Lock(name).locked()


def test_long_queue_in_front_of_all_others(name: str) -> None:
    """A dump that begins with a queue of 1000 comes back empty on a fresh netlink socket; here it is the only one."""
    code = """
    import pidabs, resource, socket
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    lock = pidabs.Lock(sys.argv[1]).acquire()
    waiters = []
    for _ in range(1020):
        waiters.append(socket.socket(socket.AF_UNIX)); waiters[-1].connect(lock.address)
    for waiter in waiters[:20]: waiter.close()
    say([(listed.name == lock.name, listed.waiters) for listed in pidabs.list_locks()])
    say(pidabs.Lock(sys.argv[1]).waiters(), pidabs._diag.find(lock.address).queued)
    say(lock.waiters(), pidabs._diag.find(lock.address).queued)
    say(pidabs.Lock(sys.argv[1]).locked())
    """
    done = run_in(in_namespace("--net"), code, name)
    lines = done.stdout.split("\n")
    assert lines == ["[(True, 1000)]", "1000 1020", "1000 1000", "True", ""], done.stderr


def test_many_locks(name: str) -> None:
    """A dump of several messages."""
    locks = [pidabs.Lock(f"{name}-{number:03}").acquire() for number in range(300)]
    try:
        assert [lock.name for lock in locks] == [lock.name for lock in mine(name)]
    finally:
        for lock in locks:
            lock.release()


def test_locks_of_other_network_namespaces_are_not_seen(name: str) -> None:
    code = "import pidabs\nsay(pidabs.list_locks(), pidabs.Lock(sys.argv[1]).locked(), pidabs.holder(sys.argv[1]))"
    with pidabs.Lock(name):
        done = run_in(in_namespace("--net"), code, name)
        assert done.stdout == "[] False None\n", done.stderr


@pytest.mark.usefixtures("no_netlink")
def test_neither_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*args: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(_diag, "open", no_proc, raising=False)
    lock = pidabs.Lock(name)
    for ask in (pidabs.list_locks, lock.locked, lock.waiters):
        with pytest.raises(PermissionError):
            ask()
    with lock:  # and still it can be taken
        assert lock.locked()


def test_netlink_that_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without unix_diag answers ENOENT: then /proc/net/unix is read."""

    class Refuses:
        def __init__(self, *args: int) -> None:
            pass

        def settimeout(self, seconds: float) -> None:
            pass

        def send(self, data: bytes) -> int:
            return len(data)

        def recv(self, size: int) -> bytes:
            return struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.ENOENT)

        def close(self) -> None:
            pass

    monkeypatch.setattr(_diag, "socket", Refuses)
    with pidabs.Lock("test-netlink-says-no") as lock:
        assert lock.name in [listed.name for listed in pidabs.list_locks()]
        assert _diag.find(lock.address) is not None
        with pytest.raises(FileNotFoundError, match="sock_diag"):
            _diag._dump_queues()


def test_info_is_shown(name: str) -> None:
    with pidabs.Lock(name, scope="blue") as lock:
        (listed,) = mine(name)
        inode = os.fstat(lock.fileno()).st_ino
        assert f"<LockInfo {name!r} scope='blue' uid={os.getuid()} inode={inode} waiters=0>" == repr(listed)


# Parsers ------------------------------------------------------------------------------------------------------


def message(kind: int, payload: bytes, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload + bytes(-len(payload) % 4)


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


SOCKET = struct.pack("=BBBBIII", 1, 1, 10, 0, 4711, 0, 0)


def test_messages() -> None:
    data = message(20, b"abcde") + message(3, b"")
    assert list(_diag.parse_messages(data)) == [(20, 2, b"abcde"), (3, 2, b"")]


def test_messages_cut_short() -> None:
    data = message(20, b"abcdefgh") + message(20, b"ijkl")
    whole = [(20, 2, b"abcdefgh"), (20, 2, b"ijkl")]
    for length in range(len(data)):
        complete = 2 if length == len(data) else 1 if length >= 24 else 0
        assert whole[:complete] == list(_diag.parse_messages(data[:length]))


@pytest.mark.parametrize("length", [0, 1, 15, 1000, 0xFFFFFFFF])
def test_message_with_a_wrong_length(length: int) -> None:
    data = struct.pack("=IHHII", length, 20, 0, 0, 0) + bytes(100)
    assert list(_diag.parse_messages(data)) == []


def test_socket() -> None:
    payload = SOCKET + attribute(0, b"\0name") + attribute(3, b"1234")
    assert _diag.parse_socket(payload) == (4711, 1, 10, {0: b"\0name", 3: b"1234"})


def test_socket_cut_short() -> None:
    payload = SOCKET + attribute(0, b"\0nam") + attribute(3, b"1234")
    for length in range(len(SOCKET), len(payload)):
        inode, kind, state, attributes = _diag.parse_socket(payload[:length])
        assert (inode, kind, state) == (4711, 1, 10)
        assert ({0: b"\0nam"} if length >= len(SOCKET) + 8 else {}) == attributes


@pytest.mark.parametrize("length", [0, 3, 100, 0xFFFF])
def test_attribute_with_a_wrong_length(length: int) -> None:
    payload = SOCKET + struct.pack("=HH", length, 0) + b"abcd"
    assert _diag.parse_socket(payload) == (4711, 1, 10, {})


PROC = b"""Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 100 @pidabs:one
0000000000000000: 00000002 00000000 00000000 0001 02     0 @pidabs:one
0000000000000000: 00000002 00000000 00000000 0001 02     0 @pidabs:one
0000000000000000: 00000003 00000000 00000000 0001 03 200 @pidabs:one
0000000000000000: 00000002 00000000 00000000 0001 01 300 @pidabs:two words
0000000000000000: 00000002 00000000 00010000 0005 01 400 @pidabs:seqpacket
0000000000000000: 00000002 00000000 00000000 0002 01 500 @pidabs:datagram
0000000000000000: 00000002 00000000 00010000 0001 01 600 /run/pidabs:path
0000000000000000: 00000002 00000000 00010000 0001 01 700
"""


def test_proc() -> None:
    found = [(one.address, one.inode, one.listening, one.queued) for one in _diag.parse_proc(PROC)]
    assert found == [(b"\0pidabs:one", 100, True, 2), (b"\0pidabs:two words", 300, False, 0)]


def test_proc_cut_short() -> None:
    for length in range(len(PROC)):
        found = _diag.parse_proc(PROC[:length])
        assert all(b"\0pidabs:two words".startswith(one.address) or one.inode == 100 for one in found)


def test_garbage() -> None:
    """Parsers of what the kernel says neither hang nor raise, whatever it says."""
    rng = random.Random(4711)
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(200))
        list(_diag.parse_messages(data))
        _diag.parse_proc(data)
        _diag.parse_socket(SOCKET + data)
        mangled = bytearray(PROC)
        for _ in range(5):
            mangled[rng.randrange(len(mangled))] = rng.randrange(256)
        _diag.parse_proc(bytes(mangled))


def test_waiting_process_is_counted(name: str) -> None:
    lock = pidabs.Lock(name).acquire()
    with child(HOLD, args=(name,)) as waiter:
        wait_until(lambda: [listed.waiters for listed in mine(name)] == [1])
        lock.release()
        waiter.expect("held")
        assert [listed.waiters for listed in mine(name)] == [0]
