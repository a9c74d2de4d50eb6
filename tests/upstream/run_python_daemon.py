"""Run python-daemon's own tests on our classes.

    python -P run_python_daemon.py [SDIST]

Needs, from PyPI: python-daemon==3.1.2, lockfile>=0.12.2, testtools, testscenarios; pip, which is asked for the source
distribution unless SDIST is given, brings setuptools and wheel for itself.

Nothing of python-daemon is kept here.  Its tests are run against the installed `daemon`, in which PIDLockFile and
TimeoutPIDLockFile are ours before a test module is imported.  What they do is change, mock and look at those classes;
that the real ones lock is the business of test_python_daemon.py.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import unittest
from importlib.metadata import version
from pathlib import Path

RELEASE = "3.1.2"
MODULES = ("test.test_daemon", "test.test_pidfile")
AT_LEAST = 158
"""Tests of these modules in that release; fewer means that some were not found."""


def download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"]
    subprocess.run([*command, str(directory), f"python-daemon=={RELEASE}"], check=True)
    [sdist] = directory.glob("*.tar.gz")
    return sdist


def unpack(sdist: Path, directory: Path) -> Path:
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if "/test/" in member.name and member.isfile()]
        if any(Path(member.name).is_absolute() or ".." in Path(member.name).parts for member in members):
            raise SystemExit(f"{sdist} reaches out of its directory")
        for member in members:
            archive.extract(member, directory, **_DATA_ONLY)
    [root] = directory.iterdir()
    return root


_DATA_ONLY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def put_ours_in_place() -> None:
    import daemon.pidfile
    import lockfile.pidlockfile
    from pidabs.compat.daemon.pidfile import TimeoutPIDLockFile
    from pidabs.compat.lockfile.pidlockfile import PIDLockFile

    lockfile.pidlockfile.PIDLockFile = daemon.pidfile.PIDLockFile = PIDLockFile
    daemon.pidfile.TimeoutPIDLockFile = TimeoutPIDLockFile


def main() -> int:
    if version("python-daemon") != RELEASE:
        raise SystemExit(f"needs python-daemon {RELEASE}, not {version('python-daemon')}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for part in ("sdist", "source"):
            (work / part).mkdir()
        sdist = Path(sys.argv[1]) if len(sys.argv) > 1 else download(work / "sdist")
        root = unpack(sdist, work / "source")
        put_ours_in_place()
        # Only its tests: `daemon` is the installed one, and the standard library has a package `test`, too.
        sys.path.insert(0, str(root))
        for module in [module for module in sys.modules if module.split(".")[0] == "test"]:
            del sys.modules[module]
        suite = unittest.defaultTestLoader.loadTestsFromNames(MODULES)
        result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = result.testsRun - failed - len(result.skipped)
    print(f"{passed} passed, {failed} failed")
    if passed < AT_LEAST:
        print(f"expected at least {AT_LEAST} to pass")
    return int(failed > 0 or passed < AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
