"""Names: what stands for which address, what is refused, and the published format with vectors computed by b2sum(1)."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from support import child, needs_root, run_in

import pidabs
from pidabs._names import is_path, parse, resolve


class Fspath:
    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


def address(name: Any, scope: str | None = None) -> bytes:
    return resolve(name, scope)[1]


# The published format -----------------------------------------------------------------------------------------


def test_short_name_is_spelled_out() -> None:
    assert resolve("nightly-backup") == ("nightly-backup", b"\0pidabs:nightly-backup")


def test_name_of_99_bytes_is_the_longest_that_is_spelled_out() -> None:
    assert address("a" * 99) == b"\0pidabs:" + b"a" * 99
    assert len(address("a" * 99)) == 107


def test_name_of_100_bytes_is_hashed() -> None:
    # head -c 100 /dev/zero | tr '\0' a | b2sum -l 128
    assert address("a" * 100) == b"\0pidabs:#380853467729041ce36dd617ae1bd799:" + b"a" * 65
    assert len(address("a" * 100)) == 107


def test_name_of_10_000_bytes_is_hashed() -> None:
    assert address("x" * 10_000) == b"\0pidabs:#91804e84e74b1d081fe5fe5f2843990b:" + b"x" * 65


def test_hashed_path_keeps_the_end_of_its_name() -> None:
    path = "/srv/" + "d" * 200 + "/app.pid"
    assert address(path) == b"\0pidabs:#d7306f2ffda1dfb429067d1990e80b29:" + b"d" * 57 + b"/app.pid"


def test_length_counts_bytes_not_characters() -> None:
    assert address("é" * 49) == b"\0pidabs:" + b"\xc3\xa9" * 49
    assert address("é" * 50).startswith(b"\0pidabs:#")


def test_long_names_that_differ_only_at_the_start_differ() -> None:
    assert address("1" + "x" * 10_000) != address("2" + "x" * 10_000)


def test_scope_is_part_of_the_address() -> None:
    assert address("x", "blue") == b"\0pidabs@blue:x"
    # \0pidabs@blue: takes 13 bytes, so 94 are left.
    assert address("x" * 94, "blue") == b"\0pidabs@blue:" + b"x" * 94
    hashed = address("a" * 100, "blue")
    assert hashed == b"\0pidabs@blue:#380853467729041ce36dd617ae1bd799:" + b"a" * 60
    assert len(hashed) == 107


def test_longest_scope_leaves_room_for_a_hash_and_a_tail() -> None:
    scope = "s" * 32
    hashed = address("a" * 100, scope)
    assert hashed == b"\0pidabs@" + b"s" * 32 + b":#380853467729041ce36dd617ae1bd799:" + b"a" * 32
    assert len(hashed) == 107


# Paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x", False),
        ("x.pid", False),
        ("", False),
        ("./x", True),
        ("/x", True),
        ("x/", True),
        (b"x", False),
        (b"./x", True),
        (Path("x"), True),
        (PurePosixPath("x"), True),
        (Fspath("x"), True),
        (Fspath(b"x"), True),
    ],
)
def test_is_path(name: Any, expected: bool) -> None:
    assert expected == is_path(name)


def test_symlinked_directory_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    expected = os.path.realpath(tmp_path) + "/real/x.pid"
    assert expected == resolve(str(tmp_path / "link" / "x.pid"))[0]


def test_last_part_is_kept_though_it_is_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "x.pid").symlink_to("elsewhere")
    expected = os.path.realpath(tmp_path) + "/x.pid"
    assert expected == resolve(tmp_path / "x.pid")[0]


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("{base}/dir/x", "{base}/dir/x"),
        ("{base}/dir/../x", "{base}/x"),
        ("{base}//dir///x", "{base}/dir/x"),
        ("/{base}/dir/x", "{base}/dir/x"),
        ("{base}/dir/x/", "{base}/dir/x"),
        ("{base}/dir/./x", "{base}/dir/x"),
        ("{base}/dir/.", "{base}/dir"),
        ("{base}/dir/..", "{base}"),
        ("{base}/missing/x", "{base}/missing/x"),
        # The kernel goes to the link's target first, and up from there.
        ("{base}/link/../x", "{base}/far/x"),
        ("{base}/link/..", "{base}/far"),
        ("/", "/"),
        ("//", "/"),
    ],
)
def test_spellings_of_one_path(tmp_path: Path, spelling: str, expected: str) -> None:
    base = os.path.realpath(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    assert expected.format(base=base) == resolve(spelling.format(base=base))[0]


def test_path_through_more_symlinks_than_the_kernel_follows(tmp_path: Path) -> None:
    """Whoever owns a directory on the way can plant them; before Python 3.13 resolving them is a recursion."""
    (tmp_path / "0").symlink_to(tmp_path)
    for number in range(1, 1500):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    try:
        full, _ = resolve(tmp_path / "1499" / "x.pid")
    except ValueError as exc:
        assert "so many symbolic links" in str(exc)  # noqa: PT017
    else:
        assert full == os.path.realpath(tmp_path) + "/x.pid"


def test_relative_path_where_the_working_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError):
        resolve("./x")
    assert resolve("x")[0] == "x"


def test_relative_path_is_made_absolute_when_the_lock_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock = pidabs.Lock("./x.pid")
    pathlike = pidabs.Lock(Path("x.pid"))
    monkeypatch.chdir("/")
    assert os.path.realpath(tmp_path) + "/x.pid" == lock.name == pathlike.name


def test_directory_is_a_name_like_any_other(tmp_path: Path) -> None:
    with pidabs.Lock(tmp_path) as lock:
        assert pidabs.holder(f"{tmp_path}/") == lock.holder()


@pytest.mark.skipif(not os.path.islink("/var/run"), reason="/var/run is no symlink here")
def test_var_run_and_run_exclude_each_other(name: str) -> None:
    with (
        pidabs.Lock(f"/var/run/{name}"),
        pytest.raises(pidabs.Timeout, match=f"held by pid {os.getpid()} "),
    ):
        pidabs.Lock(f"/run/{name}").acquire(timeout=0)


# Bytes --------------------------------------------------------------------------------------------------------


def test_str_and_bytes_are_the_same_name() -> None:
    assert resolve("é") == resolve("é".encode())


def test_bytes_that_are_no_utf8_round_trip() -> None:
    assert resolve(b"a\xff\xfe") == ("a\udcff\udcfe", b"\0pidabs:a\xff\xfe")
    assert resolve("a\udcff\udcfe") == resolve(b"a\xff\xfe")


def test_name_that_is_no_utf8_locks_and_is_shown(name: str) -> None:
    raw = name.encode() + b"\xff\n"
    with pidabs.Lock(raw):
        with pytest.raises(pidabs.Timeout) as caught:
            pidabs.Lock(raw).acquire(timeout=0)
        assert r"\udcff\n" in str(caught.value).encode().decode()  # printable as it is
        assert os.fsdecode(raw) == caught.value.name


# What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        (b"", "must not be empty"),
        (Fspath(""), "must not be empty"),
        ("a\0b", "must not contain NUL"),
        ("/run/a\0b", "must not contain NUL"),
        (b"\0", "must not contain NUL"),
        ("#a", "must not begin with '#'"),
        (b"#", "must not begin with '#'"),
        ("\ud800", "encodable"),
    ],
)
def test_bad_names(name: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pidabs.Lock(name)
    with pytest.raises(ValueError, match=message):
        pidabs.holder(name)


@pytest.mark.parametrize("name", [None, 5, 1.0, [], bytearray(b"x"), object()])
def test_wrong_types(name: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(name).__name__}"):
        pidabs.Lock(name)


def test_path_to_a_name_that_begins_with_a_hash_sign_is_none(tmp_path: Path) -> None:
    assert resolve(tmp_path / "#x")[0] == os.path.realpath(tmp_path) + "/#x"


# Scopes -------------------------------------------------------------------------------------------------------


def test_scope_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIDABS_SCOPE", "blue")
    assert address("x") == b"\0pidabs@blue:x"
    assert address("x", "red") == b"\0pidabs@red:x"
    monkeypatch.setenv("PIDABS_SCOPE", "")
    assert address("x") == b"\0pidabs:x"


SHOWS_ADDRESSES = """
    import os, pidabs
    def show():
        print(*(pidabs.Lock("x", scope=scope).address[1:].decode() for scope in (None, "red")))
    show()
"""

LEFT_OUT, HONOURED = "pidabs:x pidabs@red:x\n", "pidabs@blue:x pidabs@red:x\n"


@needs_root
@pytest.mark.parametrize(
    ("uids", "then", "shown"),
    [
        ((0, 0, 0), "os.seteuid(12345)", HONOURED),  # a daemon that was started by root
        ((0, 0, 0), "os.setuid(12345)", HONOURED),
        ((12345, 0, 0), "os.setuid(0)", LEFT_OUT),  # a setuid program that goes on as root
        ((12345, 0, 0), "os.environ['PIDABS_SCOPE'] = 'green'", LEFT_OUT),
    ],
)
def test_who_starts_a_setuid_program_does_not_choose_its_scope(
    uids: tuple[int, int, int], then: str, shown: str
) -> None:
    """Else it would choose which runs of the program exclude each other."""
    code = textwrap.dedent(SHOWS_ADDRESSES) + then + "\nshow()"
    start = f"import os, sys; os.setresuid{uids}; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = run_in(["env", "PIDABS_SCOPE=blue"], start, code)
    assert done.stdout == shown * 2, done.stderr


@needs_root
def test_setuid_program_that_cannot_read_what_the_kernel_says_about_it() -> None:
    """After a change of uid /proc/self is root's; then the uids have to tell."""
    code = """
    from pidabs import _names
    os.setresgid(12345, 12345, 0)
    os.setresuid(12345, 12345, 0)
    try: open("/proc/self/auxv")
    except PermissionError: say(_names._is_setuid())
    os.setresuid(-1, 0, -1)
    os.setresgid(-1, 0, -1)
    os.setresuid(-1, 12345, -1)
    try: open("/proc/self/auxv")
    except PermissionError: say(_names._is_setuid())
    """
    assert run_in(["env"], code).stdout == "False\nTrue\n"


@pytest.mark.parametrize("scope", ["", "a:b", "a/b", "a\0b", "s" * 33, "é" * 17])
def test_bad_scopes(scope: str) -> None:
    with pytest.raises(ValueError, match="a scope is 1 to 32 bytes without NUL, ':' and '/'"):
        pidabs.Lock("x", scope=scope)


@pytest.mark.parametrize("scope", ["a:b", "a/b", "s" * 33])
def test_bad_scope_in_the_environment(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIDABS_SCOPE", scope)
    with pytest.raises(ValueError, match="a scope is"):
        pidabs.Lock("x")


def test_wrong_type_of_scope() -> None:
    scope: Any = 5
    with pytest.raises(TypeError, match="int"):
        pidabs.Lock("x", scope=scope)


def test_scopes_set_locks_of_one_name_apart(name: str) -> None:
    with (
        pidabs.Lock(name),
        pidabs.Lock(name, scope="blue") as blue,
        child(
            "import pidabs; say(pidabs.holder(sys.argv[1]).pid)", args=(name,), env={"PIDABS_SCOPE": "blue"}
        ) as other,
    ):
        other.expect(str(os.getpid()))
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(name, scope="blue").acquire(timeout=0)
        assert blue.held


# And back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [None, "blue", "#", "é"])
@pytest.mark.parametrize("name", ["x", "a:b", ":", "@", "/run/x.pid", "/", "a\nb", b"\xff", "a" * 90, "pidabs:x"])
def test_parse_gives_back_what_was_resolved(name: Any, scope: str | None) -> None:
    full, raw = resolve(name, scope)
    assert (full, scope) == parse(raw)


def test_parse_of_a_hashed_name() -> None:
    hashed = "#380853467729041ce36dd617ae1bd799:" + "a" * 60
    assert parse(address("a" * 100, "blue")) == (hashed, "blue")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"\0pidabs",
        b"\0pidabs:",
        b"\0pidabs@:x",
        b"\0pidabs@blue",
        b"\0pidabs@blue:",
        b"\0pidabsx:y",
        b"\0pidabs-other:y",
        b"pidabs:x",
        b"\0pidab:x",
        b"\0\0pidabs:x",
    ],
)
def test_parse_of_what_is_no_lock(raw: bytes) -> None:
    assert parse(raw) is None
