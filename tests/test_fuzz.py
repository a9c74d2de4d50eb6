"""Whatever the kernel, a neighbour or a user says: names, sock_diag's replies, /proc/net/unix, PID files.

Two profiles: `quick`, at most a few seconds for each test, and `long`, up to an hour in all, by

    PIDABS_FUZZ=long pytest tests/test_fuzz.py          or          tox -e fuzz

Each test says what holds for every input; hypothesis looks for one for which it does not, and shrinks it.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pidabs.compat.lockfile.pidlockfile import PIDLockFile
from support import HOLD_PIDFILE, child, open_descriptors

import pidabs
from pidabs import _diag
from pidabs._mirror import Mirror
from pidabs._names import PREFIX, parse, resolve

COMMON: dict[str, Any] = {
    "deadline": None,  # a busy machine is no fault
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("pidabs-quick", max_examples=300, **COMMON)
settings.register_profile("pidabs-long", max_examples=20_000, **COMMON)
LONG = os.environ.get("PIDABS_FUZZ", "quick") == "long"
PROFILE = settings.get_profile("pidabs-long" if LONG else "pidabs-quick")

pytestmark = pytest.mark.timeout(3600 if LONG else 120)


def fuzz(share: float = 1.0) -> Callable[[Any], Any]:
    """The chosen profile, with a share of its examples for a test that is slow."""
    return settings(PROFILE, max_examples=max(20, int(PROFILE.max_examples * share)))


# Names --------------------------------------------------------------------------------------------------------

FRAGMENTS = ["/", ".", "..", "#", ":", "@", "\0", "\n", " ", "a", "pidabs:", "é", "\udcff", "\ud800", "x" * 60, "run"]
text_names = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
byte_names = st.one_of(st.binary(max_size=300), text_names.map(lambda text: text.encode("utf-8", "surrogatepass")))


class Fspath:
    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path

    def __repr__(self) -> str:
        return f"Fspath({self.path!r})"


names = st.one_of(text_names, byte_names, st.one_of(text_names, byte_names).map(Fspath))
plain = st.binary(min_size=1, max_size=200).filter(lambda raw: raw[:1] != b"#" and b"/" not in raw and b"\0" not in raw)
scopes = st.one_of(st.none(), st.text(min_size=1, max_size=32))
anything = st.one_of(
    names, scopes, st.integers(), st.floats(), st.lists(st.text()), st.integers().map(Fspath), st.none().map(Fspath)
)


@fuzz()
@given(anything, anything)
def test_every_name_has_an_address_or_is_refused(name: Any, scope: Any) -> None:
    try:
        full, address = resolve(name, scope)
    except (TypeError, ValueError):
        return
    assert address.startswith(PREFIX)
    assert 9 <= len(address) <= 107
    assert b"\0" not in address[1:]
    assert "\0" not in full
    parsed = parse(address)
    assert parsed is not None
    assert parsed[1] == scope
    if not parsed[0].startswith("#"):
        assert parsed[0] == full


@fuzz()
@given(plain, scopes)
def test_listed_name_leads_back_to_its_lock(name: bytes, scope: str | None) -> None:
    try:
        full, address = resolve(name, scope)
    except ValueError:
        assume(False)
    parsed = parse(address)
    assert parsed is not None
    assert (full, name) == (os.fsdecode(name), os.fsencode(full))
    if not parsed[0].startswith("#"):
        assert resolve(parsed[0], parsed[1]) == (full, address)


@fuzz()
@given(st.tuples(names, scopes), st.tuples(names, scopes))
def test_two_names_share_no_address(one: Any, other: Any) -> None:
    try:
        found = [(resolve(name, scope), scope) for name, scope in (one, other)]
    except ValueError:
        return
    (first, first_scope), (second, second_scope) = found
    assert (first[1] == second[1]) == ((first[0], first_scope) == (second[0], second_scope))


@fuzz()
@given(st.integers(60, 300), st.data(), scopes)
def test_long_names_that_differ_anywhere_differ(length: int, data: Any, scope: str | None) -> None:
    """A name that is hashed shows only its tail."""
    base = bytearray(b"n" * length)
    changed = bytearray(base)
    changed[data.draw(st.integers(0, length - 1))] = ord("m")
    try:
        addresses = {resolve(bytes(raw), scope)[1] for raw in (base, changed, base + b"n")}
    except ValueError:
        assume(False)
    assert len(addresses) == 3


@fuzz()
@example(["link", "link", "..", "..", "up", "a"])
@given(st.lists(st.sampled_from(["a", "b", "link", "up", "..", ".", "", "missing"]), min_size=1, max_size=12))
def test_path_is_resolved_as_the_kernel_does(parts: list[str]) -> None:
    """All but its last part; where that leads to a directory of ours, the names are equal if the files are."""
    path = str(tree() / "/".join(["a", *parts]))
    full, address = resolve(path)
    assert full.startswith("/")
    assert "//" not in full
    assert not {".", ".."} & set(full.split("/"))
    assert resolve(path) == (full, address)
    try:
        os.stat(os.path.dirname(path.rstrip("/")))
    except OSError as exc:
        if exc.errno == errno.ELOOP:  # where the kernel finds no file, one name is as good as another
            return
    assert resolve(full) == (full, address)
    parent = os.path.dirname(path.rstrip("/"))
    if os.path.isdir(parent) and os.path.basename(path.rstrip("/")) not in ("", ".", ".."):
        assert os.path.samefile(parent, os.path.dirname(full))


_trees: list[Path] = []


def tree() -> Path:
    """A directory with links in it, for all examples."""
    if not _trees:
        base = Path(tempfile.mkdtemp(prefix="pidabs-fuzz-"))
        (base / "a" / "b" / "a").mkdir(parents=True)
        (base / "a" / "link").symlink_to("b/a")
        (base / "a" / "up").symlink_to("../a")
        (base / "a" / "b" / "up").symlink_to("..")
        (base / "a" / "b" / "a" / "link").symlink_to("link")  # a loop
        _trees.append(base)
    return _trees[0]


@pytest.fixture(scope="module", autouse=True)
def no_tree_is_left() -> Iterator[None]:
    yield
    while _trees:
        shutil.rmtree(_trees.pop())


@fuzz()
@given(st.binary(max_size=120).map(lambda tail: PREFIX + tail) | st.binary(max_size=120))
@example(PREFIX + b"@:x")
@example(PREFIX + b"@a/b:x")
def test_every_address_is_a_lock_or_is_not(address: bytes) -> None:
    """Neighbours may bind what they like; the listing must bear it, and show it as it is."""
    parsed = parse(address)
    if parsed is None:
        return
    name, scope = parsed
    assert name
    label = b"" if scope is None else b"@" + os.fsencode(scope)
    assert PREFIX + label + b":" + os.fsencode(name) == address


# sock_diag ----------------------------------------------------------------------------------------------------

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# Built once: a strategy that is made anew for each draw takes most of the time.
lies = st.one_of(st.none(), st.none(), u32)


def attribute(kind: int, payload: bytes, lie: int | None) -> bytes:
    """One attribute; its length may lie."""
    return padded(struct.pack("=HH", 4 + len(payload) if lie is None else lie & 0xFFFF, kind) + payload)


def diagnosed(kind: int, state: int, attributes: list[bytes], cut: int | None) -> bytes:
    """A unix_diag_msg and its attributes, possibly cut short."""
    whole = struct.pack("=BBBBIII", 1, kind, state, 0, 4711, 0, 0) + b"".join(attributes)
    return whole if cut is None else whole[: cut % (len(whole) + 1)]


def message(payload: bytes, kind: int, flags: int, lie: int | None) -> bytes:
    return padded(struct.pack("=IHHII", 16 + len(payload) if lie is None else lie, kind, flags, 1, 0) + payload)


attributes = st.builds(
    attribute, st.sampled_from([0, 3, 4, 7]) | u16, st.binary(max_size=40) | st.just(PREFIX + b":x"), lies
)
sockets = st.builds(
    diagnosed, st.sampled_from([1, 2, 5]), st.sampled_from([7, 10]), st.lists(attributes, max_size=5), lies
)
messages_sent = st.builds(
    message,
    sockets | st.binary(max_size=40),
    st.sampled_from([20, 20, 20, 2, 3]) | u16,
    st.sampled_from([2, 0x12]),
    lies,
)
datagrams = st.lists(st.lists(messages_sent, max_size=4).map(b"".join) | st.binary(max_size=100), max_size=6)
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


class Kernel:
    """Answers each request with the next of these datagrams; then it is silent."""

    def __init__(self, replies: list[bytes]) -> None:
        self.replies = iter(replies)

    def __call__(self, *_: int) -> Kernel:
        return self

    def settimeout(self, seconds: float) -> None:
        pass

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        reply = next(self.replies, None)
        if reply is None:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return reply[:size]

    def close(self) -> None:
        pass


@fuzz(0.5)
@given(datagrams, st.sampled_from(["sockets", "queues", "queue", "find", "list_locks"]), st.booleans())
@example([struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -(2**31))], "sockets", False)
@example([struct.pack("=IHHII", 16, 2, 0, 1, 0)], "queue", False)
def test_replies_of_sock_diag(replies: list[bytes], ask: str, ends: bool) -> None:
    """A list, or an OSError; never another exception, and never the wait for more than was sent."""
    asks: dict[str, Callable[[], Any]] = {
        "sockets": lambda: _diag.sockets(PREFIX),
        "queues": _diag._dump_queues,
        "queue": lambda: _diag.queue(4711),
        "find": lambda: _diag.find(PREFIX + b":x"),
        "list_locks": pidabs.list_locks,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_diag, "socket", Kernel(replies + [DONE] * 20 * ends))
        try:
            found = asks[ask]()
        except OSError:
            return
    if ask == "list_locks":
        for lock in found:
            assert lock.address.startswith(PREFIX)
            assert lock.waiters >= 0
            repr(lock)
    if ask == "queues":
        assert all(0 <= inode <= 0xFFFFFFFF for queue in found.values() for inode in queue)


@fuzz()
@given(st.lists(st.tuples(u16, u16, st.binary(max_size=60)), max_size=6), st.data())
def test_whole_messages_are_read_whole_and_cut_ones_not_at_all(messages: list[Any], data: Any) -> None:
    packed = [padded(struct.pack("=IHHII", 16 + len(load), kind, flags, 1, 0) + load) for kind, flags, load in messages]
    whole = b"".join(packed)
    assert list(_diag.parse_messages(whole)) == messages
    cut = data.draw(st.integers(0, len(whole)))
    read = list(_diag.parse_messages(whole[:cut]))
    assert read == messages[: len(read)]
    assert sum(map(len, packed[: len(read)])) <= cut + 3  # the padding of the last may be missing


@fuzz()
@given(st.dictionaries(u16, st.binary(max_size=60), max_size=6), st.data())
def test_attributes_are_read_back(attributes: dict[int, bytes], data: Any) -> None:
    fixed = struct.pack("=BBBBIII", 1, 1, 10, 0, 4711, 0, 0)
    whole = fixed + b"".join(
        padded(struct.pack("=HH", 4 + len(load), kind) + load) for kind, load in attributes.items()
    )
    assert _diag.parse_socket(whole) == (4711, 1, 10, attributes)
    cut = data.draw(st.integers(len(fixed), len(whole)))
    assert _diag.parse_socket(whole[:cut])[3].items() <= attributes.items()


# /proc/net/unix -----------------------------------------------------------------------------------------------

HEADER = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
abstract = st.binary(min_size=1, max_size=107).filter(lambda raw: b"\n" not in raw and b"\0" not in raw)


def proc_line(name: bytes, inode: int, flags: int = 0x10000, kind: int = 1, state: int = 1) -> bytes:
    """As net/unix/af_unix.c prints it."""
    return b"%016x: %08X %08X %08X %04X %02X %5d @%s\n" % (0, 2, 0, flags, kind, state, inode, name)


@fuzz()
@given(st.dictionaries(abstract, st.integers(1, 0xFFFFFFFF), max_size=8), st.lists(abstract, max_size=3))
def test_proc_is_read_back(owners: dict[bytes, int], strangers: list[bytes]) -> None:
    lines = [proc_line(name, inode) for name, inode in owners.items()]
    lines += [proc_line(name, 5, kind=2) for name in strangers]  # a datagram socket may have the same name
    lines += [proc_line(name, 6, state=3, flags=0) for name in strangers]  # and a connection
    found = {one.address: one.inode for one in _diag.parse_proc(HEADER + b"".join(lines))}
    assert found == {b"\0" + name: inode for name, inode in owners.items()}


@fuzz()
@given(
    st.binary(max_size=400)
    | st.lists(
        st.sampled_from([b"@", b"\n", b" ", b"pidabs:x", b"0000: ", b"00010000 ", b"0001 ", b"01 ", b"-5 ", b"1_0 "]),
        max_size=60,
    ).map(b"".join)
)
@example(proc_line(b"x", 1).replace(b"    1", b"9" * 5000))
def test_garbage_in_proc(text: bytes) -> None:
    for one in _diag.parse_proc(text):
        assert one.address.startswith(b"\0")
        assert one.uid is None  # which is how the rest tells that nobody vouches for it
        assert one.queued >= 0


@fuzz()
@given(st.dictionaries(abstract, st.integers(1, 9999), min_size=1, max_size=4), st.binary(max_size=90), st.data())
def test_forged_lines_hide_no_lock(owners: dict[bytes, int], forged: bytes, data: Any) -> None:
    """A neighbour's name with anything in it stands in any place: it may add locks, and take none away."""
    lines = [proc_line(name, inode) for name, inode in owners.items()]
    lines.insert(data.draw(st.integers(0, len(lines))), proc_line(forged, 4711))
    found = {one.address for one in _diag.parse_proc(HEADER + b"".join(lines))}
    assert {b"\0" + name for name in owners} <= found


# PID files ----------------------------------------------------------------------------------------------------

contents = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"1\n", b"-1\n", b"0\n", b"%d\n" % os.getpid(), b"%d" % os.getpid(), b"9" * 5000, b"\0" * 9]),
    st.integers(-(2**70), 2**70).map(lambda number: b"%d\n" % number),
)


@pytest.fixture(scope="module")
def pid_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.pid"


@fuzz(0.3)
@given(contents)
def test_content_of_a_pid_file_decides_nothing(pid_path: Path, content: bytes) -> None:
    """Whatever it says, the lock is free; it is replaced, and removed in the end."""
    pid_path.write_bytes(content)
    shim = PIDLockFile(pid_path)
    lock = pidabs.Lock(pid_path, mirror=True)
    assert (shim.is_locked(), shim.i_am_locking(), shim.read_pid(), lock.holder()) == (False, False, None, None)
    with lock:
        assert pid_path.read_bytes() == b"%d\n" % os.getpid()
    assert not pid_path.exists()


@fuzz(0.3)
@given(contents, st.booleans())
def test_pid_file_that_was_overwritten_stays(pid_path: Path, content: bytes, closed: bool) -> None:
    """While we hold it, with our descriptor of it closed behind our back or not: it is not ours any more."""
    mirror = Mirror(str(pid_path))
    mirror.write()
    if closed:
        os.close(mirror.fd)
    with open(pid_path, "r+b") as file:
        file.truncate()
        file.write(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mirror.relock()
        mirror.remove()
    ours = content == b"%d\n" % os.getpid()
    assert pid_path.exists() is not ours
    if not ours:
        assert pid_path.read_bytes() == content
    assert mirror.fd == -1


@fuzz(0.1)
@given(st.lists(contents, min_size=1, max_size=5))
def test_content_of_a_held_locks_pid_file_decides_nothing(tmp_path_factory: Any, written: list[bytes]) -> None:
    """The kernel says who holds it."""
    path, pid = held_by_a_child(tmp_path_factory)
    for content in written:
        path.write_bytes(content)
        shim = PIDLockFile(path)
        assert (shim.is_locked(), shim.i_am_locking(), shim.read_pid()) == (True, False, pid)


_holders: list[Any] = []


def held_by_a_child(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """One holder for all examples."""
    if not _holders:
        path = tmp_path_factory.mktemp("held") / "x.pid"
        context = child(HOLD_PIDFILE, args=("pidabs.compat.lockfile.pidlockfile:PIDLockFile", str(path)))
        process = context.__enter__()
        process.expect("held")
        _holders.append((context, path, process.pid))
    _, path, pid = _holders[0]
    return path, pid


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = open_descriptors(settled=True)
    yield
    while _holders:
        _holders.pop()[0].__exit__(None, None, None)
    assert before == open_descriptors()
