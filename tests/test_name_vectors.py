"""docs/name-format.md and its test vectors: what they say, what pidabs does and what examples/lock.c does is one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pidabs
from pidabs import _handover, _names, _queue

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "name-format.md").read_text(encoding="utf-8")
VECTORS = json.loads((ROOT / "docs" / "name-vectors.json").read_text(encoding="utf-8"))
LONGEST = 107

addresses = pytest.mark.parametrize("vector", VECTORS["addresses"], ids=lambda vector: vector["about"])
refused = pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["about"])
paths = pytest.mark.parametrize("vector", VECTORS["paths"], ids=lambda vector: vector["about"])


def name_of(vector: dict[str, str]) -> bytes:
    return bytes.fromhex(vector["name_hex"]) if "name_hex" in vector else vector["name"].encode()


@pytest.fixture
def scope(vector: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the caller gives; the environment is as the vector says."""
    if "environment" in vector:
        monkeypatch.setenv("PIDABS_SCOPE", vector["environment"])
    else:
        monkeypatch.delenv("PIDABS_SCOPE", raising=False)
    return vector.get("scope")


@pytest.fixture
def tree(vector: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """ROOT, not as long as tmp_path; and the working directory is that of the vector."""
    with tempfile.TemporaryDirectory() as directory:
        root = os.path.realpath(directory)
        with monkeypatch.context() as patch:
            plant(root)
            patch.chdir(vector["cwd"].replace("ROOT", root))
            patch.delenv("PIDABS_SCOPE", raising=False)
            yield root


def plant(root: str) -> None:
    for directory in VECTORS["tree"]["directories"]:
        os.mkdir(f"{root}/{directory}")
    for link, target in VECTORS["tree"]["links"].items():
        os.symlink(target, f"{root}/{link}")


# By the page alone ----------------------------------------------------------------------------------------------------


def by_the_page(vector: dict[str, str]) -> bytes:
    """Steps 4 and 5, spelled out.  No path here leads through a link or a directory that there is."""
    raw = name_of(vector)
    if b"/" in raw:
        parts: list[bytes] = []
        for part in raw.split(b"/"):
            if part == b"..":
                parts = parts[:-1]
            elif part not in (b"", b"."):
                parts.append(part)
        raw = b"/" + b"/".join(parts)
    scope = vector.get("scope", vector.get("environment", ""))
    prefix = b"\0pidabs@" + scope.encode() + b":" if scope else b"\0pidabs:"
    if len(prefix) + len(raw) <= LONGEST:
        return prefix + raw
    start = prefix + b"#" + hashlib.blake2b(raw, digest_size=16).hexdigest().encode("ascii") + b":"
    return start + raw[len(raw) - (LONGEST - len(start)) :]


@addresses
def test_address_is_as_the_page_says(vector: dict[str, str]) -> None:
    expected = bytes.fromhex(vector["address"])
    assert expected == by_the_page(vector)
    assert len(expected) <= LONGEST
    readable = (chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in expected[1:])
    assert vector["shown"] == "@" + "".join(readable)


def test_one_by_b2sum() -> None:
    """Not by Python at all: head -c 100 /dev/zero | tr '\\0' a | b2sum -l 128."""
    (vector,) = (one for one in VECTORS["addresses"] if one.get("name") == "a" * 100 and "scope" not in one)
    assert bytes.fromhex(vector["address"]) == b"\0pidabs:#380853467729041ce36dd617ae1bd799:" + b"a" * 65


def test_the_vectors_cover_what_there_is() -> None:
    found = [bytes.fromhex(vector["address"]) for vector in VECTORS["addresses"]]
    assert any(len(one) == LONGEST and b":#" not in one for one in found)
    assert any(b":#" in one and one.startswith(b"\0pidabs@") for one in found)
    keys = {key for kind in ("addresses", "refused") for vector in VECTORS[kind] for key in vector}
    assert keys - {"about"} == {"name", "name_hex", "scope", "environment", "address", "shown"}
    for key in keys - {"about"} | set(VECTORS) - {"format", "version"}:
        assert f"`{key}`" in PAGE, key


# pidabs ---------------------------------------------------------------------------------------------------------------


@addresses
def test_pidabs_takes_this_address(vector: dict[str, str], scope: str | None) -> None:
    expected = bytes.fromhex(vector["address"])
    lock = pidabs.Lock(name_of(vector), scope=scope)
    assert expected == lock.address
    if "name" in vector:
        assert expected == pidabs.Lock(vector["name"], scope=scope).address
    parsed = _names.parse(expected)
    assert parsed is not None
    name, found = parsed
    assert found == (scope or vector.get("environment") or None)
    assert expected.endswith(b":" + os.fsencode(name))
    assert name == lock.name or name.startswith("#")


@refused
def test_pidabs_refuses(vector: dict[str, str], scope: str | None) -> None:
    with pytest.raises(ValueError, match=r"a lock's name|a scope is"):
        pidabs.Lock(name_of(vector), scope=scope)


@paths
def test_pidabs_makes_this_path_of_it(vector: dict[str, str], tree: str) -> None:
    expected = vector["absolute"].replace("ROOT", tree)
    assert expected == pidabs.Lock(vector["name"].replace("ROOT", tree)).name


def test_the_bytes_of_the_protocol_are_those_of_the_page() -> None:
    said = {
        byte: bytes.fromhex(code) for byte, code in re.findall(r"^\| `(\w)` \| ([0-9a-f]{2}) \|", PAGE, re.MULTILINE)
    }
    for byte in (_queue.WAITING, _queue.OFFER, _queue.ANSWER, _queue.GRANT):
        assert said.pop(byte.decode()) == byte
    assert not said


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (r"listen\(2\) with a backlog of (\d+)", _queue.BACKLOG),
        (r"who has just connected gets (\d+) ms", _handover._JOIN_TIME * 1000),
        (r"MUST be `A`, at most (\d+) ms", _handover.SOON * 1000),
        (r"gives up after (\d+) ms or \d+ connections", _handover._RELEASE_TIME * 1000),
        (r"gives up after \d+ ms or (\d+) connections", _handover._MAX_SKIPPED),
        (r"an address of at most (\d+) bytes", _names.MAX_ADDRESS),
        (r"A scope is 1 to (\d+) bytes", _names._MAX_SCOPE),
    ],
)
def test_the_numbers_are_those_of_the_page(said: str, value: float) -> None:
    prose = " ".join(PAGE.split())
    assert [float(found) for found in re.findall(said, prose)] == [value]


# examples/lock.c ------------------------------------------------------------------------------------------------------

SHOWS = """
#define main lock_main
#include "lock.c"
#undef main
int main(int argc, char **argv)
{
    struct address address;
    (void)lock_main;
    for (int i = 1; i < argc; i++) {
        if (address_of(argv[i], &address) < 0) {
            puts("refused");
            continue;
        }
        size_t length = address.length - offsetof(struct sockaddr_un, sun_path);
        for (size_t j = 0; j < length; j++)
            printf("%02x", (unsigned char)address.name.sun_path[j]);
        puts("");
    }
    return 0;
}
"""
"""The example, but what it does is to print addresses."""

SAYABLE = [
    one for one in VECTORS["refused"] if b"\0" not in name_of(one) and "\0" not in (one.get("scope", "x") or "\0")
]
"""No argument and no variable has a NUL in it, and an empty PIDABS_SCOPE is none."""

compiles = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("c")
    (directory / "shows.c").write_text(SHOWS, encoding="utf-8")
    words = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "examples"), "-o", "shows", "shows.c"]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return directory / "shows"


def by_c(program: Path, name: bytes, **environment: str) -> str:
    """By the working directory and environment of this process."""
    everything = {**os.environ, **environment}
    done = subprocess.run([program, name], capture_output=True, timeout=20, check=True, env=everything)
    return done.stdout.decode().rstrip("\n")


@compiles
@addresses
def test_c_takes_this_address_or_none(program: Path, vector: dict[str, str], scope: str | None) -> None:
    """It says itself that it refuses long names; and a path has to have a directory, and a last part."""
    environment: dict[str, Any] = {} if scope is None else {"PIDABS_SCOPE": scope}
    found = by_c(program, name_of(vector), **environment)
    name = vector.get("name", "")
    if b":#" in bytes.fromhex(vector["address"]) or "no-such-directory" in name or name.endswith("/"):
        assert found == "refused"
    else:
        assert found == vector["address"]


@compiles
@pytest.mark.parametrize("vector", SAYABLE, ids=lambda vector: vector["about"])
def test_c_refuses(program: Path, vector: dict[str, str], scope: str | None) -> None:
    environment: dict[str, Any] = {} if scope is None else {"PIDABS_SCOPE": scope}
    assert by_c(program, name_of(vector), **environment) == "refused"


@compiles
@paths
def test_c_makes_this_path_of_it(program: Path, vector: dict[str, str], tree: str) -> None:
    name = vector["name"].replace("ROOT", tree)
    expected = b"\0pidabs:" + vector["absolute"].replace("ROOT", tree).encode()
    found = by_c(program, name.encode())
    if name.endswith(("/", ".")) or "missing" in name or len(expected) > LONGEST:
        assert found == "refused"
    else:
        assert found == expected.hex()
