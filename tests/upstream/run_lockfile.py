"""Run lockfile's own tests on our classes.

    python -P run_lockfile.py [SDIST]

Needs, from PyPI: lockfile==0.12.2; pip, which is asked for the source distribution unless SDIST is given, brings what
it needs to look at one.

Nothing of lockfile is kept here.  Its tests are run as they are, with pidabs.compat.lockfile and its modules in place
of the installed ones.  They are written for nose: classes with `setup` and `teardown`, of no framework's base class.
lockfile_excluded.txt lists the tests that cannot pass, each with its reason, and is held to what it says: a test on it
that passes fails the run, as does a test that is not on it and fails, or an entry that is no test.
"""

from __future__ import annotations

import faulthandler
import importlib
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from subprocess import run
from typing import Any

RELEASE = "0.12.2"
MODULES = ("linklockfile", "mkdirlockfile", "pidlockfile", "sqlitelockfile", "symlinklockfile")
EXPECTED = 70
"""Tests in that release; fewer means that some were not found."""

STUCK = 30
"""Seconds after which a test counts as hanging, and ends the run."""

EXCLUDED = Path(__file__).resolve().parent / "lockfile_excluded.txt"


def download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "lockfile", "--dest"]
    run([*command, str(directory), f"lockfile=={RELEASE}"], check=True)
    [sdist] = directory.glob("*.tar.gz")
    return sdist


def unpack(sdist: Path, directory: Path) -> Path:
    """Only its tests: the locks are ours."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "test" and ".." not in parts:
                member.name = parts[2]
                archive.extract(member, directory, **_DATA_ONLY)
    return directory


_DATA_ONLY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def put_ours_in_place() -> None:
    ours = {"lockfile": importlib.import_module("pidabs.compat.lockfile")}
    ours |= {f"lockfile.{name}": importlib.import_module(f"pidabs.compat.lockfile.{name}") for name in MODULES}
    sys.modules.update(ours)


def excluded() -> dict[str, str]:
    entries = {}
    for line in EXCLUDED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            test, _, reason = line.partition("  # ")
            if not reason or test in entries:
                raise SystemExit(f"{EXCLUDED.name}: no reason, or listed twice: {line}")
            entries[test] = reason
    return entries


def tests_of(module: Any) -> Iterator[tuple[type[Any], str]]:
    for name, found in sorted(vars(module).items()):
        if name.startswith("Test") and isinstance(found, type):
            for method in sorted(dir(found)):
                if method.startswith("test"):
                    yield found, method


def passes(cls: type[Any], method: str) -> bool:
    faulthandler.dump_traceback_later(STUCK, exit=True)
    case = cls()
    case.setup()
    try:
        getattr(case, method)()
    except Exception:
        print(f"{cls.__name__}.{method}", traceback.format_exc(), sep="\n")
        return False
    finally:
        case.teardown()
        faulthandler.cancel_dump_traceback_later()
    return True


def main() -> int:
    if version("lockfile") != RELEASE:
        raise SystemExit(f"needs lockfile {RELEASE}, not {version('lockfile')}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for part in ("sdist", "source"):
            (work / part).mkdir()
        sdist = Path(sys.argv[1]) if len(sys.argv) > 1 else download(work / "sdist")
        sys.path.insert(0, str(unpack(sdist, work / "source")))
        put_ours_in_place()
        found = list(tests_of(importlib.import_module("test_lockfile")))
        passed = {f"{cls.__name__}.{method}": passes(cls, method) for cls, method in found}
    entries = excluded()
    wrong = [f"failed: {test}" for test, ok in passed.items() if not ok and test not in entries]
    wrong += [f"listed, but passed: {test}" for test in entries if passed.get(test)]
    wrong += [f"listed, but not a test: {test}" for test in entries if test not in passed]
    if len(passed) != EXPECTED:
        wrong.append(f"{len(passed)} tests, expected {EXPECTED}")
    print(*wrong, f"{sum(passed.values())} passed, {len(entries)} excluded, {len(wrong)} wrong", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
