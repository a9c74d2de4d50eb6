"""Which files there are to look at, what those say that are not Python, and what a file's bytes become.

Rules
- Directories are walked, without what version control, environments and caches keep in them, and without following
  symlinks to directories: no loop, no file twice.
- What is not to change stays as it is, byte by byte: encoding, line ends, a missing last one.
"""

from __future__ import annotations

import os
import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SKIPPED = frozenset(
    {
        *(".bzr", ".git", ".hg", ".svn", ".eggs", ".nox", ".tox", ".venv", "node_modules"),
        *("__pycache__", "__pypackages__", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    }
)
_PYTHON = (".py", ".pyi", ".pyw")
_DECLARING = re.compile(
    r"pyproject\.toml|setup\.(cfg|py)|tox\.ini|Pipfile|[\w.-]*(requirements|constraints)[\w.-]*\.(txt|in)|"
    r"(environment|meta|conda)[\w.-]*\.ya?ml"
)
_CONTAINERS = re.compile(r"(Docker|Container)file([.-].*)?|.*\.(Docker|Container)file|[\w.-]*compose[\w.-]*\.ya?ml")
_DEPENDENCY = re.compile(
    rb"^[^#\n]*?(?<![\w./\[-])(filelock|lockfile|python[-_.]daemon)(?![\w./]|-\w)", re.IGNORECASE | re.MULTILINE
)
_VOLUME = re.compile(rb"^\s*-?\s*(volumes:|VOLUME\b|network_mode:)", re.MULTILINE)


class Files:
    """The files of these paths: Python's, those that declare dependencies, those that make containers."""

    def __init__(self, paths: list[str]) -> None:
        self.missing: list[tuple[str, OSError]] = []
        self.python: list[str] = []
        self.declaring: list[str] = []
        self.containers: list[str] = []
        seen = set()
        for path in paths:
            for found in self._walk(path) if os.path.isdir(path) else [path]:
                name, real = os.path.basename(found), os.path.realpath(found)
                if real in seen:
                    continue
                seen.add(real)
                python = name.endswith(_PYTHON)  # setup.py also declares
                if _DECLARING.fullmatch(name):
                    self.declaring.append(found)
                elif _CONTAINERS.fullmatch(name):
                    self.containers.append(found)
                else:
                    python = python or found == path or ("." not in name and _has_shebang(found))
                if python:
                    self.python.append(found)

    def _walk(self, top: str) -> Iterator[str]:
        for directory, directories, files in os.walk(top, onerror=self._cannot_walk):
            directories[:] = sorted(
                name
                for name in directories
                if name not in _SKIPPED and not os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))
            )
            for name in sorted(files):
                path = os.path.join(directory, name)
                if os.path.isfile(path):
                    yield path

    def _cannot_walk(self, exc: OSError) -> None:
        self.missing.append((str(exc.filename), exc))


def _has_shebang(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return re.match(rb"#!.*py", file.read(64)) is not None
    except OSError:
        return False


def shadowing(path: str) -> frozenset[str]:
    """Names of originals that a script would find beside itself."""
    directory = os.path.dirname(path) or os.curdir
    if os.path.exists(os.path.join(directory, "__init__.py")):
        return frozenset()
    beside = {
        name for name in ("filelock", "lockfile", "daemon") if os.path.exists(os.path.join(directory, f"{name}.py"))
    }
    return frozenset(beside - {os.path.basename(path).removesuffix(".py")})


def dependencies(source: bytes) -> Iterator[tuple[int, str]]:
    """Where a file names one of the originals' distributions."""
    for match in _DEPENDENCY.finditer(source):
        found = match[1].lower().decode()
        extra = "filelock" if found == "filelock" else "daemon"
        line = source.count(b"\n", 0, match.start(1)) + 1
        yield line, f"names {found}: a dependency becomes pidabs[{extra}], which brings it along"


def volumes(source: bytes) -> Iterator[tuple[int, str]]:
    """Where a file has containers share files, or a network."""
    for match in _VOLUME.finditer(source):
        line = source.count(b"\n", 0, match.start(1)) + 1
        yield line, "a lock that is shared between containers: only those in one network namespace exclude each other"


class CarriedOver:
    """What was changed in a copy of a source, changed in the source: the copy may differ from it elsewhere.

    libcst writes nearly all sources as it has read them, but not those with form feeds or the line ends of old Macs.
    """

    def __init__(self, source: bytes, copy: bytes) -> None:
        self._source, self._copy = source.splitlines(True), copy.splitlines(True)
        self._same = source == copy
        self._line: dict[int, int] = {}
        if not self._same:
            for at, to, size in SequenceMatcher(None, self._copy, self._source, False).get_matching_blocks():
                self._line.update({at + step: to + step for step in range(size)})

    def line(self, number: int) -> int:
        """The source's number of a line of the copy, both from 1."""
        return number if self._same else self._line.get(number - 1, number - 1) + 1

    def apply(self, changed: bytes) -> bytes | None:
        """None if that cannot be told."""
        if self._same:
            return changed
        new, result, taken = changed.splitlines(True), list(self._source), 0
        for what, begin, end, start, stop in SequenceMatcher(None, self._copy, new, False).get_opcodes():
            if what == "equal":
                continue
            places = [self._line.get(number) for number in range(begin, end)]
            first = places[0] if places else None
            if first is None or places != list(range(first, first + len(places))):
                return None
            result[first + taken : first + taken + len(places)] = new[start:stop]
            taken += stop - start - len(places)
        return b"".join(result)
