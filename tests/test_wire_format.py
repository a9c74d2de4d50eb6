"""docs/name-format.md: who does what the page says, and nothing else, takes part.

A holder and a waiter are written here by the page alone, in plain calls; at the other end is pidabs, in a process of
its own.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from support import DEADLINE, HOLD, Child, child, inode, must_block, wait_until

import pidabs

SO_NETNS_COOKIE = 71
RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


def peer(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def cookie(sock: socket.socket) -> bytes:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def join(address: bytes) -> socket.socket:
    """The queue, 2."""
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    conn.settimeout(DEADLINE)
    conn.connect(address)
    assert peer(conn)[1] in (0, os.geteuid())
    conn.send(b"\x57")
    return conn


def answer(conn: socket.socket) -> None:
    """The handoff, waiter, 1."""
    assert conn.recv(1) == b"\x4f"
    conn.send(b"\x41")


def receive(conn: socket.socket, address: bytes) -> socket.socket:
    """The handoff, waiter, 2 and 3."""
    data, ancillary, _, _ = conn.recvmsg(2, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
    (level, kind, payload) = ancillary[0]
    passed = array.array("i", payload)
    assert (data, (level, kind), len(passed)) == (b"\x4c", RIGHTS, 1)
    lock = socket.socket(fileno=passed[0])
    assert lock.getsockname() == address
    assert lock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    assert lock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert cookie(lock) == cookie(conn)
    lock.listen(1024)
    return lock


def release(lock: socket.socket) -> bool:
    """The handoff, holder: whether somebody took it.  With more patience."""
    lock.setblocking(False)
    while True:
        try:
            conn, _ = lock.accept()
        except BlockingIOError:
            lock.close()
            return False
        with conn:
            conn.settimeout(DEADLINE)
            if peer(conn)[1] not in (0, os.geteuid()):
                continue
            try:
                conn.send(b"\x4f")
                if (conn.recv(1), conn.recv(1)) != (b"\x57", b"\x41"):
                    continue
                conn.sendmsg([b"\x4c"], [(*RIGHTS, array.array("i", [lock.fileno()]))], socket.MSG_DONTWAIT)
            except OSError:
                continue
            lock.close()
            return True


@pytest.fixture
def address(name: str) -> bytes:
    return b"\0pidabs:" + name.encode()


@pytest.fixture
def holder(name: str) -> Iterator[Child]:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        yield process


def holding(name: str) -> int | None:
    found = pidabs.holder(name)
    return found.pid if found else None


def test_pidabs_hands_it_to_who_waits_by_the_page(holder: Child, name: str, address: bytes) -> None:
    with join(address) as conn:
        holder.tell()
        answer(conn)
        with receive(conn, address):
            holder.expect("released")
            assert holding(name) == os.getpid()
            with pytest.raises(pidabs.Timeout):
                pidabs.Lock(name).acquire(timeout=0)
    assert holding(name) is None


def test_who_holds_by_the_page_hands_it_to_pidabs(name: str, address: bytes) -> None:
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lock.bind(address)
    lock.listen(1024)
    before = inode(name)
    assert holding(name) == os.getpid()  # leaves a dead entry
    with child(HOLD, args=(name,)) as waiter:
        wait_until(lambda: pidabs.Lock(name).waiters() == 1)
        assert release(lock)
        waiter.expect("held")
        assert holding(name) == waiter.pid
        assert inode(name) == before


def test_round_and_round(holder: Child, name: str, address: bytes) -> None:
    """pidabs, the page, pidabs: one queue, in order."""
    with join(address) as conn, child(HOLD, args=(name,)) as last:
        wait_until(lambda: pidabs.Lock(name).waiters() == 2)
        holder.tell()
        answer(conn)
        lock = receive(conn, address)
        assert last.says_nothing()
        assert release(lock)
        last.expect("held")


def test_the_holder_is_killed(holder: Child, address: bytes) -> None:
    with join(address) as conn:
        end = must_block(lambda: conn.recv(1))
        holder.kill()
        try:
            assert end() == b""
        except ConnectionResetError:
            pass
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
            lock.bind(address)


def test_giving_up_with_the_grant_on_its_way(holder: Child, name: str, address: bytes) -> None:
    """Shut down, read once more, close: it is there, and it is ours."""
    with join(address) as conn:
        holder.tell()
        answer(conn)
        holder.expect("released")
        conn.shutdown(socket.SHUT_RDWR)
        with receive(conn, address):
            assert holding(name) == os.getpid()


def test_giving_up_before_the_grant(holder: Child, name: str, address: bytes) -> None:
    """It fails at the holder's end, and the next gets the lock."""
    with join(address) as conn, child(HOLD, args=(name,)) as after:
        wait_until(lambda: pidabs.Lock(name).waiters() == 2)
        conn.shutdown(socket.SHUT_RDWR)
        holder.tell()
        after.expect("held")


@pytest.mark.impatient
def test_silence_is_skipped(name: str, address: bytes) -> None:
    """Without a W, and with one but no answer."""
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with socket.socket(socket.AF_UNIX) as mute, join(address) as deaf, child(HOLD, args=(name,)) as after:
            mute.connect(address)
            wait_until(lambda: pidabs.Lock(name).waiters() == 3)
            began = time.monotonic()
            holder.tell()
            after.expect("held")
            assert time.monotonic() - began < DEADLINE / 2
            assert deaf.recv(2) == b"O"


def test_offer_and_grant_may_come_in_one_read() -> None:
    """Why the first read has a buffer of one byte."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, socket.socket(socket.AF_UNIX) as lock:
        ours.send(b"O")
        ours.sendmsg([b"L"], [(*RIGHTS, array.array("i", [lock.fileno()]))])
        data, ancillary, _, _ = theirs.recvmsg(2, socket.CMSG_SPACE(8))
        os.close(array.array("i", ancillary[0][2])[0])
        assert (data, len(ancillary)) == (b"OL", 1)
