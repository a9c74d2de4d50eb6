"""Hostile neighbours: a real second uid squats, floods, lies, plants and forges; it is not granted, believed or obeyed.

What the kernel lets any local user do cannot be prevented: it can take a name first, and fill a queue.  Promised there:
the error names it, it is not trusted, the wait costs next to nothing, and a timeout is kept.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lockfile import AlreadyLocked, LockTimeout, NotMyLock
from pidabs.compat.lockfile.pidlockfile import PIDLockFile
from support import Child, address, child, inode, must_block, open_descriptors, queued, wait_until

import pidabs
from pidabs import _descriptors, _diag, _holder, _linux, _mirror, _queue

STRANGER = 12346
BYSTANDER = 12347
SO_PASSRIGHTS = 83


def may_become(uid: int) -> bool:
    return (
        subprocess.run([sys.executable, "-c", f"import os; os.setuid({uid})"], stderr=subprocess.DEVNULL).returncode
        == 0
    )


pytestmark = pytest.mark.skipif(not may_become(STRANGER), reason="may not become another user here")

AS_STRANGER = f"""
    import array, ctypes, encodings.idna, resource, select, signal, socket, struct, time
    os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as a program that this user has started is
    address = b"\\0pidabs:" + sys.argv[1].encode()
    def rights(*sockets):
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno() for sock in sockets]))]
    def squat(backlog=100):
        sock = socket.socket(socket.AF_UNIX); sock.bind(address)
        if backlog is not None: sock.listen(backlog)
        return sock
    def connect(word=b"W", to=None):
        sock = socket.socket(socket.AF_UNIX); sock.connect(address if to is None else to); sock.send(word); return sock
"""
"""Child code: another user, who knows the name and the protocol."""


@contextmanager
def stranger(code: str, *args: str) -> Iterator[Child]:
    with child(AS_STRANGER + code, args=args) as process:
        yield process


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


WAIT = """
    import pidabs, time
    lock = pidabs.Lock(sys.argv[1])
    before = len(os.listdir("/proc/self/fd"))
    say("asks")
    lock.acquire()
    say("held", len(os.listdir("/proc/self/fd")) - before)
    listen()
    lock.release()
    say("released")
"""


@contextmanager
def friend(name: str) -> Iterator[Child]:
    """A process of ours in the queue of a lock that is held."""
    before = queued(name)
    with child(WAIT, args=(name,)) as process:
        process.expect("asks")
        wait_until(lambda: queued(name) == before + 1, "the friend to be in the queue")
        yield process


# Squatting ----------------------------------------------------------------------------------------------------

SQUATS = {
    "deaf": "sock = squat(None)",
    "listening": "sock = squat()",
    "full": "sock = squat(0); only = connect()",
    "accepting and silent": """sock = squat()
    say("squats")
    kept = []
    while True: kept.append(sock.accept())""",
    "throwing out": """sock = squat()
    say("squats")
    while True: sock.accept()[0].close()""",
    "throwing out slowly": """sock = squat()
    say("squats")
    while True:
        conn = sock.accept()[0]; time.sleep(0.06); conn.close()""",
    "saying much": """sock = squat()
    say("squats")
    while True:
        conn = sock.accept()[0]
        try:
            while True: conn.send(b"O" * 65536)
        except OSError: pass""",
}
"""Ways to take a name first, as a stranger's code."""

squats = pytest.mark.parametrize("code", SQUATS.values(), ids=SQUATS.keys())


@contextmanager
def squatter(name: str, code: str) -> Iterator[Child]:
    with stranger(f"    {code}\n    say('squats')\n    listen()", name) as process:
        process.expect("squats")
        yield process


@squats
def test_squatter_is_named_and_the_timeout_is_kept(name: str, code: str) -> None:
    with squatter(name, code) as process:
        for timeout in (0, 0.3):
            began = time.monotonic()
            with pytest.raises(pidabs.Timeout, match=f"held by pid {process.pid} .uid {STRANGER}, "):
                pidabs.Lock(name).acquire(timeout)
            assert time.monotonic() - began < timeout + 1
        assert pidabs.Lock(name).locked()


@squats
def test_waiting_for_a_squatter_costs_next_to_nothing_and_ends_with_it(name: str, code: str) -> None:
    with squatter(name, code) as process, child(WAIT, args=(name,)) as waiter:
        waiter.expect("asks")
        before = cpu(waiter.pid)
        assert waiter.says_nothing(1.0)
        assert cpu(waiter.pid) - before < 0.25
        process.kill()
        waiter.expect("held 1")


@squats
def test_another_user_is_told_at_least_whose_squatter_it_is(name: str, code: str) -> None:
    """Who is not root may not see which process has the socket open."""
    asks = f"""
    import pidabs
    os.setgroups([]); os.setgid({BYSTANDER}); os.setuid({BYSTANDER})
    try: pidabs.Lock(sys.argv[1]).acquire(0.1)
    except pidabs.Timeout as exc: say(exc.holder.uid, exc.holder.pid, exc)
    """
    with squatter(name, code) as process, child(asks, args=(name,)) as victim:
        uid, pid, *_ = victim.read_line().split()
        assert (str(STRANGER), True) == (uid, pid in ("None", str(process.pid)))


@squats
def test_pid_lock_file_names_the_squatter_and_leaves_it_alone(strangers_dir: Path, code: str) -> None:
    """Also where the stranger has written a PID file there, which names somebody else."""
    path = str(strangers_dir / "x.pid")
    with squatter(path, code) as process, child("listen()") as innocent:
        (strangers_dir / "x.pid").write_text(f"{innocent.pid}\n", encoding="ascii")
        shim = PIDLockFile(path)
        for timeout, error in ((0, AlreadyLocked), (0.1, LockTimeout)):
            with pytest.raises(error, match=f" by pid {process.pid} .uid {STRANGER}, "):
                shim.acquire(timeout)
        assert (shim.is_locked(), shim.i_am_locking(), shim.read_pid()) == (True, False, process.pid)
        with pytest.raises(NotMyLock):
            shim.release()
        with pytest.warns(RuntimeWarning, match=f"held by a live process .pid {process.pid} "):
            shim.break_lock()
        assert shim.is_locked()
        assert process.process.poll() is innocent.process.poll() is None


def test_name_that_is_free_again_while_the_squatter_keeps_our_connection(name: str) -> None:
    """1. it accepts us; 2. it closes its listener; 3. nothing wakes us; 4. we look for ourselves."""
    code = """
    sock = squat()
    say("squats")
    conn = sock.accept()[0]
    say("accepted")
    listen()
    sock.close()
    say("closed")
    listen()
    """
    with stranger(code, name) as process:
        process.expect("squats")
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            process.expect("accepted")
            assert waiter.says_nothing()
            process.tell()
            process.expect("closed")
            waiter.expect("held 1")


# False grants -------------------------------------------------------------------------------------------------

FALSE_GRANTS = {
    "the listener": "conn.sendmsg([b'L'], rights(sock))",
    "offer and listener": "conn.send(b'O'); conn.sendmsg([b'L'], rights(sock))",
    "the listener with the offer": "conn.sendmsg([b'O'], rights(sock))",
    "another socket": "conn.send(b'O'); conn.sendmsg([b'L'], rights(conn))",
    "two descriptors": "conn.send(b'O'); conn.sendmsg([b'L'], rights(sock, sock))",
    "many descriptors": "conn.send(b'O'); conn.sendmsg([b'L'], rights(*[sock] * 250))",
    "no descriptor": "conn.send(b'O'); conn.send(b'L')",
    "a long message": "conn.send(b'O'); conn.sendmsg([b'L' * 5000], rights(sock))",
    "endless bytes": "conn.send(b'OL' * 2000000)",
    "out of band": "conn.send(b'O', socket.MSG_OOB); conn.send(b'OL')",
    "half a connection": "conn.send(b'O'); conn.shutdown(socket.SHUT_RD); conn.send(b'L')",
}
"""What a stranger who holds the name sends a waiter."""


@pytest.mark.parametrize("send", FALSE_GRANTS.values(), ids=FALSE_GRANTS.keys())
def test_false_grants_of_a_stranger_are_not_believed(name: str, send: str) -> None:
    code = f"""
    sock = squat()
    say("squats")
    for _ in range(20):
        conn = sock.accept()[0]
        try: {send}
        except OSError: pass
        conn.close()
    say("tried")
    listen()
    """
    with stranger(code, name) as process:
        process.expect("squats")
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            process.expect("tried")
            assert waiter.says_nothing()
            process.kill()
            waiter.expect("held 1")
            assert pidabs.holder(name) == pidabs.Holder(waiter.pid, os.getuid(), os.getgid())


def test_true_listener_of_another_network_namespace_from_a_stranger(name: str) -> None:
    """A stranger can make itself such a namespace, and the right name in it."""
    code = """
    out, into = socket.socketpair()
    if os.fork() == 0:
        CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
        made = not ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
        foreign = squat()
        into.sendmsg([b"y" if made else b"n"], rights(foreign))
        os._exit(0)
    word, ancillary, _, _ = out.recvmsg(1, 64)
    os.wait()
    say(word.decode())
    foreign = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
    sock = squat()
    say("squats")
    conn = sock.accept()[0]
    conn.recv(1)
    try: conn.send(b"O"); conn.sendmsg([b"L"], rights(foreign))
    except OSError: pass
    say("tried")
    listen()
    """
    with stranger(code, name) as process:
        if process.read_line() == "n":
            pytest.skip("users may not make network namespaces here")
        process.expect("squats")
        with child(WAIT, args=(name,)) as waiter:
            process.expect("tried")
            waiter.expect("asks")
            assert waiter.says_nothing()
            process.kill()
            waiter.expect("held 1")


# Flooding -----------------------------------------------------------------------------------------------------

FLOOD = """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3000), hard))
    kept = []
    def flood(count, word=b"WAAAA"):
        for _ in range(count):
            sock = socket.socket(socket.AF_UNIX); sock.setblocking(False)
            try: sock.connect(address)
            except BlockingIOError: return
            kept.append(sock); sock.send(word)
    def granted():
        '''Whether any of these connections has been sent the lock.'''
        for sock in kept:
            sock.setblocking(True); sock.settimeout(5)
            try: data, ancillary, _, _ = sock.recvmsg(10, 64)
            except ConnectionResetError: continue
            if data or ancillary: return True
        return False
"""


@pytest.mark.impatient
def test_full_queue_of_strangers_that_hold_on(name: str) -> None:
    """They say yes before they are asked.  The order and the wake-up are lost, the lock is not."""
    code = FLOOD + "    flood(3000); say(len(kept)); listen(); say(granted())"
    lock = pidabs.Lock(name).acquire()
    with stranger(code, name) as process:
        assert int(process.read_line()) >= _queue.BACKLOG
        assert queued(name) >= _queue.BACKLOG
        blocked = must_block(lambda: pidabs.Lock(name).acquire())
        with pytest.raises(pidabs.Timeout, match=f"held by pid {os.getpid()} "):
            pidabs.Lock(name).acquire(0.1)
        began = time.monotonic()
        lock.release()
        assert time.monotonic() - began < 5
        blocked().release()
        process.tell()
        process.expect("False")
    assert not lock.locked()


@pytest.mark.parametrize("word", [b"", b"W", b"WAAAA"])
def test_friend_behind_a_hundred_strangers_is_granted(name: str, word: bytes) -> None:
    """They are skipped without a question: at 2 ms for each that says nothing, 100 would take longer than a release."""
    code = FLOOD + f"    flood(100, {word!r}); say(len(kept)); listen(); say(granted())"
    lock = pidabs.Lock(name).acquire()
    before = inode(name)
    with stranger(code, name) as process:
        process.expect("100")
        with friend(name) as waiter:
            lock.release()
            waiter.expect("held 1")
            assert inode(name) == before
            process.tell()
            process.expect("False")


@pytest.mark.impatient
def test_stranger_that_comes_and_goes_all_the_time(name: str) -> None:
    """Exclusion holds, each release ends in time, nothing of the stranger's stays open here."""
    code = """
    say("begins")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for _ in range(3):
            try: connect(b"WA").close()
            except OSError: pass
        try: squat().close()
        except OSError: pass
    """
    before = open_descriptors(settled=True)
    lock, other = pidabs.Lock(name), pidabs.Lock(name)
    with stranger(code, name) as process:
        process.expect("begins")
        for _ in range(200):
            lock.acquire(20)
            with pytest.raises(pidabs.Timeout):
                other.acquire(0)
            began = time.monotonic()
            lock.release()
            assert time.monotonic() - began < 5
    assert before == open_descriptors()


def test_stranger_is_not_granted_by_a_user_who_is_not_root(name: str) -> None:
    code = f"""
    import pidabs
    os.setgroups([]); os.setgid({BYSTANDER}); os.setuid({BYSTANDER})
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say("held")
    listen()
    lock.release()
    say("released", lock.locked())
    """
    with child(code, args=(name,)) as holder:
        holder.expect("held")
        with stranger(FLOOD + "    flood(10); say('queued'); listen(); say(granted())", name) as process:
            process.expect("queued")
            holder.tell()
            holder.expect("released False")
            process.tell()
            process.expect("False")


# Descriptors that block when they are closed ------------------------------------------------------------------

LINGERING = """
    def lingering():
        '''A socket that waits for 30 s in its close, if that is the last, and the other end, which does not read.'''
        listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
        ours = socket.socket(); ours.connect(listener.getsockname()); theirs, _ = listener.accept()
        ours.setblocking(False)
        try:
            while True: ours.send(b"x" * 65536)
        except BlockingIOError: pass
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
        return ours, theirs

    def bomb(conn, word):
        '''Send it to somebody who will close it, unread, with the connection.'''
        try: conn.sendmsg([word], rights(ours))
        except PermissionError: say("refused")
        else: say("sent")
        ours.close()
    ours, theirs = lingering()
"""


def refuses_descriptors() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


needs_refusal = pytest.mark.skipif(
    not refuses_descriptors(), reason="this kernel cannot refuse descriptors (SO_PASSRIGHTS, Linux 6.16)"
)


@needs_refusal
def test_release_does_not_wait_for_a_strangers_descriptor_to_close(name: str) -> None:
    code = LINGERING + "    conn = connect(b''); bomb(conn, b'W'); listen()"
    lock = pidabs.Lock(name).acquire()
    with stranger(code, name) as process:
        process.expect("refused")
        began = time.monotonic()
        lock.release()
        assert time.monotonic() - began < 5
    assert not lock.locked()


@needs_refusal
def test_lock_that_was_granted_refuses_strangers_descriptors_too(name: str) -> None:
    """The refusal goes with the socket; and where a program in C made it, which has not heard of it, from now on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(name))
        listener.listen()
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            conn, _ = listener.accept()
            with conn:
                assert conn.recv(1) == b"W"
                conn.send(b"O")
                assert conn.recv(1) == b"A"
                socket.send_fds(conn, [b"L"], [listener.fileno()])
                listener.close()
                waiter.expect("held 1")
            with stranger(LINGERING + "    conn = connect(b''); bomb(conn, b'W'); listen()", name) as process:
                process.expect("refused")
                waiter.tell()
                waiter.expect("released")


@needs_refusal
@pytest.mark.parametrize("word", [b"O", b"L"])
def test_acquire_does_not_wait_for_a_strangers_descriptor_to_close(name: str, word: bytes) -> None:
    code = LINGERING + f"    sock = squat(); say('squats'); conn = sock.accept()[0]; bomb(conn, {word!r}); listen()"
    with stranger(code, name) as process:
        process.expect("squats")
        began = time.monotonic()
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(name).acquire(0.3)
        assert time.monotonic() - began < 5
        process.expect("refused")


@needs_refusal
def test_asking_does_not_wait_for_a_strangers_descriptor_to_close(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. we connect to ask; 2. it sends; 3. we close."""
    code = LINGERING + "    sock = squat(); say('squats'); conn = sock.accept()[0]; bomb(conn, b'O'); listen()"
    with stranger(code, name) as process:
        process.expect("squats")
        credentials = _linux.peer_credentials

        def after_the_bomb(sock: _descriptors.Socket) -> tuple[int, int, int]:
            process.expect("refused")
            return credentials(sock)

        monkeypatch.setattr(_linux, "peer_credentials", after_the_bomb)
        began = time.monotonic()
        assert pidabs.holder(name) == pidabs.Holder(process.pid, STRANGER, STRANGER)
        assert time.monotonic() - began < 5


def test_before_that_kernel_the_lock_is_free_at_least(name: str) -> None:
    """The release may hang in the stranger's socket; the lock does not, and goes to the friend behind it."""
    code = """
    import pidabs
    pidabs._descriptors.take_descriptors = lambda sock, wanted: None
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say("held")
    listen()
    lock.release()
    say("released")
    """
    with child(code, args=(name,)) as holder:
        holder.expect("held")
        with stranger(LINGERING + "    conn = connect(b''); bomb(conn, b'W'); listen()", name) as process:
            process.expect("sent")
            with friend(name) as waiter:
                holder.tell()
                waiter.expect("held 1")
                assert holder.says_nothing()
                process.kill()  # its end of the TCP connection goes, and with it the wait
                holder.expect("released")


# Making us signal somebody else -------------------------------------------------------------------------------

TAKES_DESCRIPTORS = """
    import socket
    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inbox.bind(b"\\0inbox-" + sys.argv[1].encode())
    say("takes")
    inbox.recvmsg(1, 64)
    say("has it")
    listen()
"""
"""Child code: an innocent daemon that can be sent a descriptor, as a bus or a service manager can."""

GIVES = """
    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inbox.sendmsg([b"."], rights(sock), 0, b"\\0inbox-" + sys.argv[1].encode())
"""


@pytest.mark.parametrize("kind", ["full", "deaf"])
@pytest.mark.parametrize("gone", [False, True], ids=["squatter alive", "squatter gone"])
def test_process_that_was_sent_the_squatters_socket_is_not_its_holder(name: str, kind: str, gone: bool) -> None:
    """Where the holder cannot be asked, it is looked for; whoever is found may be signalled by root."""
    with child(TAKES_DESCRIPTORS, args=(name,)) as innocent:
        innocent.expect("takes")
        code = f"    {SQUATS[kind]}\n" + GIVES + "    say('given'); listen()"
        with stranger(code, name) as process:
            process.expect("given")
            innocent.expect("has it")
            if gone:
                process.kill()
            holder = pidabs.holder(name)
            assert holder is not None  # the name stays taken while the innocent has the socket
            assert (holder.pid, holder.uid) == (None if gone else process.pid, STRANGER)
            if gone:
                with pytest.raises(pidabs.LockError, match="no handle"):
                    holder.terminate(0, kill=True)
            else:
                assert holder.terminate(20)
                assert process.wait() == -signal.SIGTERM
            assert innocent.process.poll() is None


def test_setuid_program_that_was_started_with_the_squatters_socket_is_not_its_holder(name: str) -> None:
    """Its real uid is the stranger's, its effective one is root's; here, the other way round, a process says which."""
    with child("listen()") as innocent:
        listed = _diag.Listed(address(name), 1, True, STRANGER, 0)
        assert _holder._uids(innocent.pid) == {os.getuid()}
        assert not _holder._holds(innocent.pid, listed)
    mixed = f"os.setresuid({STRANGER}, 0, 0); say('mixed'); listen()"
    with child(mixed) as innocent:
        innocent.expect("mixed")
        assert _holder._uids(innocent.pid) == {STRANGER, 0}
        assert not _holder._holds(innocent.pid, listed)


FORGES = """
    '''A socket whose name, printed in /proc/net/unix, reads as a line of another.'''
    line = b"\\n0: 2 0 10000 1 1 %s @pidabs:%s" % (sys.argv[2].encode(), sys.argv[1].encode())
    forged = socket.socket(socket.AF_UNIX); forged.bind(b"\\0x" + line)
    say("forged")
    listen()
"""


OWNS_A_SOCKET = """
    import socket
    sock = socket.socket(socket.AF_UNIX)
    say(os.fstat(sock.fileno()).st_ino)
    listen()
"""


@pytest.mark.usefixtures("no_netlink")
@pytest.mark.parametrize("real", ["free", "full"])
def test_forged_line_does_not_make_an_innocent_process_the_holder(name: str, real: str) -> None:
    """It says that the lock's socket is one that a daemon of root's has open."""
    with ExitStack() as stack:
        innocent = stack.enter_context(child(OWNS_A_SOCKET))
        inode = innocent.read_line()
        if real == "full":
            stack.enter_context(squatter(name, SQUATS["full"]))
        process = stack.enter_context(stranger(FORGES, name, inode))
        process.expect("forged")
        assert pidabs.Lock(name).locked()  # it can say that much: to take the name were as easy
        holder = pidabs.holder(name)
        assert holder is not None
        assert holder.pid is None
        for act in (lambda: holder.send_signal(signal.SIGKILL), lambda: holder.terminate(0, kill=True)):
            with pytest.raises(pidabs.LockError, match="no handle"):
                act()
        assert innocent.process.poll() is None
        if real == "free":
            pidabs.Lock(name).acquire(0).release()  # only bind decides


@pytest.mark.usefixtures("no_netlink")
def test_forged_line_on_an_old_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SO_PEERPIDFD the pid of the peer is checked, and not against a line that anybody can write."""
    monkeypatch.setattr(_linux, "peer_pidfd", lambda sock: None)
    with child(OWNS_A_SOCKET) as innocent, squatter(name, SQUATS["listening"]):
        monkeypatch.setattr(_linux, "peer_credentials", lambda sock: (innocent.pid, STRANGER, STRANGER))  # it came back
        with stranger(FORGES, name, innocent.read_line()) as process:
            process.expect("forged")
            holder = pidabs.holder(name)
            assert holder is not None
            with pytest.raises(pidabs.LockError, match="no handle"):
                holder.send_signal(signal.SIGKILL)
            assert innocent.process.poll() is None


# Users and their namespaces -----------------------------------------------------------------------------------

IN_USER_NAMESPACE = f"""
    CLONE_NEWUSER = 0x10000000
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
        say("denied"); sys.exit()
    for file, text in ("setgroups", "deny"), ("uid_map", "0 {STRANGER} 1"), ("gid_map", "0 {STRANGER} 1"):
        with open("/proc/self/" + file, "w") as opened: opened.write(text)
    assert os.geteuid() == 0
    say("root")
"""
"""Stranger's code: from now on it is root, in a user namespace of its own."""


def may_unshare_users(process: Child) -> None:
    line = process.read_line()
    if line == "denied":
        pytest.skip("users may not make user namespaces here")
    assert line == "root"


def test_root_of_a_user_namespace_is_not_granted(name: str) -> None:
    code = IN_USER_NAMESPACE + FLOOD + "    flood(5); say('queued'); listen(); say(granted())"
    lock = pidabs.Lock(name).acquire()
    with stranger(code, name) as process:
        may_unshare_users(process)
        process.expect("queued")
        with friend(name) as waiter:
            lock.release()
            waiter.expect("held 1")
            process.tell()
            process.expect("False")


def test_root_of_a_user_namespace_is_not_believed(name: str) -> None:
    code = (
        IN_USER_NAMESPACE
        + """
    sock = squat()
    say("squats")
    conn = sock.accept()[0]
    try:
        conn.send(b"O")
        say(conn.recv(1), conn.recv(1))
        conn.sendmsg([b"L"], rights(sock))
    except OSError as exc: say(type(exc).__name__)
    listen()
    """
    )
    with stranger(code, name) as process:
        may_unshare_users(process)
        process.expect("squats")
        with child(WAIT, args=(name,)) as waiter:
            waiter.expect("asks")
            assert process.read_line() in ("b'W' b''", "ConnectionResetError", "BrokenPipeError")
            assert waiter.says_nothing()
            holder = pidabs.holder(name)
            assert holder is not None
            assert (process.pid, STRANGER) == (holder.pid, holder.uid)
            process.kill()
            waiter.expect("held 1")


CONTAINED = """
    '''Fork a process into a user namespace with the uids 0 to 65535, as a container has them; it goes on below.'''
    import ctypes, pidabs
    ready, go = os.pipe(), os.pipe()
    inside = os.fork()
    if inside:
        os.read(ready[0], 1)
        for which in "uid", "gid":
            with open(f"/proc/{inside}/{which}_map", "w") as file: file.write("0 1000000 65536")
        os.write(go[1], b".")
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]))
    if ctypes.CDLL(None).unshare(0x10000000): say("denied"); os._exit(0)
    os.write(ready[1], b"."); os.read(go[0], 1)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    say(os.geteuid())
"""
"""Child code: `nobody` of a container, whom it cannot tell from anybody outside."""


@pytest.mark.skipif(
    Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii").strip() != "65534", reason="another overflow uid"
)
def test_nobody_in_a_container_takes_no_stranger_for_itself(name: str) -> None:
    """Every uid outside reads as 65534 in there, its own: such a peer is neither granted nor believed."""
    code = (
        CONTAINED
        + """
    lock = pidabs.Lock(sys.argv[1]).acquire()
    say("held")
    listen()
    lock.release()
    say("released")
    listen()
    say("asks")
    lock.acquire()
    say("held again")
    listen()
    os._exit(0)
    """
    )
    with child(code, args=(name,)) as contained:
        line = contained.read_line()
        if line != "65534":
            pytest.skip(f"no such user namespaces here: {line}")
        contained.expect("held")
        with stranger(FLOOD + "    flood(3); say('queued'); listen(); say(granted())", name) as process:
            process.expect("queued")
            contained.tell()
            contained.expect("released")
            process.tell()
            process.expect("False")
        believing = """
    sock = squat(); say("squats"); conn = sock.accept()[0]
    try:
        conn.send(b"O"); say(conn.recv(1), conn.recv(1)); conn.sendmsg([b"L"], rights(sock))
    except OSError as exc: say(type(exc).__name__)
    listen()
    """
        with stranger(believing, name) as process:
            process.expect("squats")
            contained.tell()
            contained.expect("asks")
            assert process.read_line() in ("b'W' b''", "ConnectionResetError", "BrokenPipeError")
            assert contained.says_nothing()
            process.kill()
            contained.expect("held again")
            contained.tell()


# Planted where the mirror goes --------------------------------------------------------------------------------


@pytest.fixture
def strangers_dir(public_dir: Path) -> Path:
    """A directory that belongs to the stranger."""
    os.chown(public_dir, STRANGER, STRANGER)
    return public_dir


PLANT = """
    path, temporary = sys.argv[2], os.path.join(os.path.dirname(sys.argv[2]), ".x.pid.pidabs")
    precious = sys.argv[3]
    def remove(where):
        try: os.unlink(where)
        except IsADirectoryError:
            try: os.rmdir(where)
            except OSError: pass
        except OSError: pass
    def plant(where, kind):
        try:
            if kind == "symlink": os.symlink(precious, where)
            if kind == "dangling": os.symlink(precious + "-new", where)
            if kind == "fifo": os.mkfifo(where)
            if kind == "directory": os.mkdir(where)
            if kind == "file": os.close(os.open(where, os.O_CREAT | os.O_EXCL, 0o600))
            if kind == "hard link": os.link(precious, where)
        except OSError: pass
"""

PLANTED = ["symlink", "dangling", "fifo", "directory", "file", "hard link"]


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file that no PID file must end up in."""
    path = tmp_path / "precious"
    path.write_text("gold", encoding="ascii")
    yield path
    assert path.read_text(encoding="ascii") == "gold"
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("where", ["path", "temporary"])
@pytest.mark.parametrize("sticky", [False, True], ids=["its directory", "sticky"])
def test_planted_by_a_stranger(public_dir: Path, precious: Path, kind: str, where: str, sticky: bool) -> None:
    """Replaced or refused, and never followed, waited for, or written to."""
    before = open_descriptors(settled=True)
    os.chown(public_dir, 0 if sticky else STRANGER, -1)
    os.chmod(public_dir, 0o1777 if sticky else 0o755)
    path = public_dir / "x.pid"
    lock = pidabs.Lock(path, mirror=True)
    with stranger(
        PLANT + f"    plant({where}, '{kind}'); say('planted'); listen()", "x", str(path), str(precious)
    ) as process:
        process.expect("planted")
        if (kind, where) == ("directory", "path"):
            with pytest.raises(pidabs.MirrorError, match="Is a directory"):
                lock.acquire(0)
            assert not lock.held
        else:
            with lock:
                assert path.lstat().st_uid == os.getuid()
                assert path.is_file()
                assert not path.is_symlink()
                assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
    assert not lock.locked()
    assert before == open_descriptors()


def test_planted_between_our_unlink_and_our_open(public_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. the temporary name is taken; 2. we remove what is there; 3. a stranger takes it again."""
    os.chmod(public_dir, 0o1777)
    path = public_dir / "x.pid"
    unlink = _mirror._unlink

    def and_plant(name: str) -> None:
        unlink(name)
        os.symlink("/nowhere", name)
        os.chown(name, STRANGER, STRANGER, follow_symlinks=False)

    monkeypatch.setattr(_mirror, "_unlink", and_plant)
    and_plant(str(public_dir / ".x.pid.pidabs"))
    with pidabs.Lock(path, mirror=True):
        assert f"{os.getpid()}\n" == path.read_text(encoding="ascii")
    assert os.listdir(public_dir) == [".x.pid.pidabs"]


@pytest.mark.parametrize("sticky", [False, True], ids=["its directory", "sticky"])
def test_stranger_that_plants_all_the_time(public_dir: Path, precious: Path, sticky: bool) -> None:
    """In a sticky directory it cannot even keep us from writing, but for a directory in our place."""
    before = open_descriptors(settled=True)
    os.chown(public_dir, 0 if sticky else STRANGER, -1)
    os.chmod(public_dir, 0o1777 if sticky else 0o755)
    path = public_dir / "x.pid"
    kinds = [kind for kind in PLANTED if not (sticky and kind == "directory")]
    code = (
        PLANT
        + f"""
    say("begins")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for kind in {kinds!r}:
            for where in (path, temporary):
                remove(where); plant(where, kind)
    """
    )
    lock = pidabs.Lock(path, mirror=True)
    written = 0
    with stranger(code, "x", str(path), str(precious)) as process:
        process.expect("begins")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                with lock:
                    written += 1
            except pidabs.MirrorError:
                assert not sticky
            assert not lock.held
    assert written > 0
    assert not lock.locked()
    assert before == open_descriptors()


def test_fifo_planted_as_the_flock_is_taken_again(strangers_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. a daemon closes all descriptors; 2. the mirror is in place; 3. a stranger puts a FIFO there; 4. we open it."""
    path = strangers_dir / "x.pid"
    with pidabs.Lock(path, mirror=True) as lock:
        mirror = lock._mirror
        assert mirror is not None
        os.close(mirror.fd)
        in_place = _mirror.Mirror._is_in_place

        def and_plant(self: _mirror.Mirror, open_still: bool) -> bool:
            found = in_place(self, open_still)
            path.unlink()
            os.mkfifo(path)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(_mirror.Mirror, "_is_in_place", and_plant)
            patched = must_not_block(mirror.relock)
        assert patched
    assert path.is_fifo()


def must_not_block(function: Callable[[], object]) -> bool:
    """Whether it ends, in a thread, so that a test that fails can go on."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()
