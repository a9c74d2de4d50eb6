r"""Names: from a name or path to the address of its socket, and back.  Pure but for paths and the default scope.

The format is published; any program that binds the same bytes to a SOCK_STREAM socket takes part:

    \0pidabs:NAME                  a name of at most 99 bytes
    \0pidabs:#HASH:TAIL            a longer one: blake2b-128 of NAME in hex, then as much of NAME's tail as fits
    \0pidabs@SCOPE:...             the same two in a scope of their own

An address is exactly these bytes, 107 at most.  The kernel compares all bytes it is given, so a C program has to pass
the exact length to bind(2); with sizeof(struct sockaddr_un) it takes another name, padded with NULs.
"""

from __future__ import annotations

import os
from _blake2 import blake2b  # not in hashlib, which takes 10 ms; and now: after a chroot it may be out of reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]

PREFIX = b"\0pidabs"
MAX_ADDRESS = 107  # sun_path has 108 bytes; one is left, so that C code may add a NUL when it prints the name
_MAX_SCOPE = 32
_AT_SECURE = 23


def is_path(name: Name) -> bool:
    """Whether `name` means a path: an os.PathLike, or text with a slash in it."""
    return isinstance(name, os.PathLike) or b"/" in _encode(name)


def resolve(name: Name, scope: str | None = None) -> tuple[str, bytes]:
    """The full name and the address that `name` stands for.

    A path is made absolute now, since daemons chdir later; its directory's symlinks are resolved and its last part is
    kept, so /var/run/x.pid and /run/x.pid are one lock while a symlink planted at x.pid itself redirects nobody.

    Raises TypeError or ValueError for what cannot be a name, FileNotFoundError for a relative path where the working
    directory is gone.
    """
    raw = _encode(name)
    if not raw:
        raise ValueError("a lock's name must not be empty")
    if b"\0" in raw:
        raise ValueError(f"a lock's name must not contain NUL: {name!r}")
    if is_path(name):
        raw = _absolute(raw)
    elif raw.startswith(b"#"):
        raise ValueError(f"a lock's name must not begin with '#', which marks hashed names: {name!r}")
    return os.fsdecode(raw), _address(raw, _prefix(scope))


def parse(address: bytes) -> tuple[str, str | None] | None:
    """(name, scope) of a lock's address, None for any other.  A hashed name comes back as '#HASH:TAIL'."""
    label, colon, raw = address.removeprefix(PREFIX).partition(b":")
    if not address.startswith(PREFIX) or not colon or not raw or (label and label[:1] != b"@") or label == b"@":
        return None
    return os.fsdecode(raw), os.fsdecode(label[1:]) or None


def _encode(name: Name) -> bytes:
    if not isinstance(name, (str, bytes, os.PathLike)):
        raise TypeError(f"a lock's name is a str, bytes or os.PathLike, not {type(name).__name__}")
    try:
        return os.fsencode(name)
    except UnicodeEncodeError as exc:
        raise ValueError(f"a lock's name must be encodable: {exc}") from exc


def _absolute(path: bytes) -> bytes:
    head, tail = os.path.split(path.rstrip(b"/") or b"/")
    try:
        # realpath first and only then any "..": lexically, link/../x would be another file than the kernel's.
        path = os.path.realpath(path) if tail in (b"", b".", b"..") else os.path.join(os.path.realpath(head), tail)
    except RecursionError:  # before Python 3.13; the kernel follows 40
        raise ValueError(f"a lock's path must not lead through so many symbolic links: {path!r}") from None
    return b"/" + path.lstrip(b"/")  # POSIX lets "//x" differ from "/x"; Linux does not


def _prefix(scope: str | None) -> bytes:
    if scope is None:
        scope = None if _CHOSEN_BY_ANOTHER else os.environ.get("PIDABS_SCOPE") or None
    if scope is None:
        return PREFIX + b":"
    if not isinstance(scope, str):
        raise TypeError(f"a scope is a str, not {type(scope).__name__}")
    label = _encode(scope)
    if not 0 < len(label) <= _MAX_SCOPE or any(byte in label for byte in b"\0:/"):
        raise ValueError(f"a scope is 1 to {_MAX_SCOPE} bytes without NUL, ':' and '/', not {scope!r}")
    return PREFIX + b"@" + label + b":"


def _is_setuid() -> bool:
    """Whether we got rights that who started us, and chose our environment, has not; as glibc's secure_getenv does.

    He could set a privileged program's lock apart from that of another run of it.
    """
    try:
        with open("/proc/self/auxv", "rb") as file:
            vector = memoryview(file.read()).cast("L").tolist()
    except OSError:  # no /proc, or not ours to read after a change of uid
        return os.geteuid() != os.getuid() or os.getegid() != os.getgid()
    return dict(zip(vector[::2], vector[1::2], strict=True)).get(_AT_SECURE) == 1


def _address(raw: bytes, prefix: bytes) -> bytes:
    if len(prefix) + len(raw) <= MAX_ADDRESS:
        return prefix + raw
    start = prefix + b"#" + blake2b(raw, digest_size=16).hexdigest().encode() + b":"
    return start + raw[len(start) - MAX_ADDRESS :]


# Now: a program that gives up its rights, or changes its effective uid for a moment, goes on with the locks it had.
_CHOSEN_BY_ANOTHER = "PIDABS_SCOPE" in os.environ and _is_setuid()
