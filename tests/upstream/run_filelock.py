"""Run filelock's own tests on our classes.

    python run_filelock.py [--sdist SDIST] [--all | PYTEST ARGUMENTS]

Needs, from PyPI: filelock==4.2.11, pytest-asyncio, pytest-mock, pytest-timeout, pytest-xdist, virtualenv.

Nothing of filelock is kept here.  Its tests are run as they are, from the source distribution, in whose place
filelock_stand_in/sitecustomize.py puts pidabs.compat.filelock, in this process and in every interpreter that a test
starts.  filelock_excluded.txt lists the tests that cannot pass, each with its reason.  That list is held to what it
says: a test on it that passes fails the run, as does a test that is not on it and fails, or an entry that is no test.

This file is the pytest plugin, too, that does so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

import pytest

RELEASE = "4.2.11"
HANDED_THROUGH = (
    "soft_rw", "test_read_write*", "test_async_read_write*", "test_soft_lease*", "test_soft_stale*",
    "test_strict_soft*", "test_marker_records*",
)  # fmt: skip
"""Tests of classes that are filelock's own with us, too.  They take more than half of the time: only with --all."""

AT_LEAST, AT_LEAST_OF_ALL = 1300, 2700
"""Tests that pass; fewer means that some were not found."""

HERE = Path(__file__).resolve().parent
EXCLUDED = HERE / "filelock_excluded.txt"
STAND_IN = HERE / "filelock_stand_in"
WHOLE = "PIDABS_UPSTREAM_WHOLE"
"""How many have to pass; set unless a part of the tests is asked for.  Then all entries of the list have to be met."""

LISTED_TIMEOUT = 8
"""Seconds for a test that is expected to fail: some do so by waiting for what never comes."""

NOT_RUN = "not run: "
"""Begins the reason of a test that would do harm to the others, such as closing their descriptors."""


def excluded() -> dict[str, str]:
    """Node id, or one without its parameters, to reason."""
    entries = {}
    for line in EXCLUDED.read_text().splitlines():
        if line and not line.startswith("#"):
            node, _, reason = line.partition("  # ")
            if not reason or node in entries:
                raise SystemExit(f"{EXCLUDED.name}: no reason, or listed twice: {line}")
            entries[node] = reason
    return entries


# The plugin. Strict xfail is just what is wanted of a listed test. It runs in each of xdist's workers.


def entry_of(node: str, entries: dict[str, str]) -> str | None:
    return next((name for name in (node, node.partition("[")[0]) if name in entries), None)


def pytest_configure() -> None:
    import filelock

    if filelock.FileLock.__module__.partition(".")[0] != "pidabs":
        raise pytest.UsageError("filelock is not replaced by the stand-in")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    entries = excluded()
    for item in items:
        if entry := entry_of(item.nodeid, entries):
            run = not entries[entry].startswith(NOT_RUN)
            item.add_marker(pytest.mark.xfail(reason=entries[entry], strict=True, run=run), append=False)
            item.add_marker(pytest.mark.timeout(LISTED_TIMEOUT), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Some tests raise KeyboardInterrupt; if one fails, that must not end the run."""
    try:
        return (yield)
    except KeyboardInterrupt as exc:
        raise AssertionError("KeyboardInterrupt") from exc


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """One test makes a chain of 2000 exceptions; if it fails, pytest comes to grief over showing them."""
    raised = call.excinfo and call.excinfo.value
    for _ in range(100):
        raised = raised and raised.__context__
    if raised:
        raised.__context__ = None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    for reason, number in Counter(report.wasxfail for report in stats.get("xfailed", [])).most_common():
        terminalreporter.write_line(f"{number:5} excluded: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    least = int(os.environ.get(WHOLE, "0"))
    if reporter is None or not least:
        return  # one of xdist's workers, or a part of the tests
    entries = excluded()
    seen = {
        entry_of(report.nodeid, entries)
        for reports in reporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
    }
    missing = [entry for entry in entries if entry not in seen]
    passed = len(reporter.stats.get("passed", []))
    for entry in missing:
        reporter.write_line(f"listed, but not a test: {entry}")
    if passed < least:
        reporter.write_line(f"{passed} passed, expected at least {least}")
    if missing or passed < least:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# The run.


def download(directory: Path) -> Path:
    """The source distribution, as pip finds it.

    pip builds the metadata of whatever it downloads, and this one names a build hook (python-sbom) that an index may
    not have.  Its tests need no build.  So pip is given, without isolation, a backend under the name of the one that is
    asked for, that says no more than what is known already.
    """
    backend = directory / "backend" / "hatchling"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(BACKEND.format(version=RELEASE))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "filelock", "--dest", str(directory), f"filelock=={RELEASE}"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(backend.parent)})
    [sdist] = directory.glob("*.tar.gz")
    return sdist


BACKEND = """\
from pathlib import Path


def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = Path(directory, "filelock-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: filelock\\nVersion: {version}\\n")
    return info.name
"""


def unpack(sdist: Path, directory: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    [root] = directory.iterdir()
    return root


def main() -> int:
    if version("filelock") != RELEASE:
        raise SystemExit(f"needs filelock {RELEASE}, not {version('filelock')}")
    arguments = sys.argv[1:]
    given = Path(arguments.pop(1)).absolute() if arguments[:1] == ["--sdist"] else None
    del arguments[: 1 if given else 0]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for part in ("sdist", "source", "tmp"):
            (work / part).mkdir()
        root = unpack(given or download(work / "sdist"), work / "source")
        path = [str(STAND_IN), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        if arguments == ["--all"]:
            arguments = []
            environment[WHOLE] = str(AT_LEAST_OF_ALL)
        elif not arguments:
            arguments = ["tests", *(f"--ignore-glob=tests/{name}" for name in HANDED_THROUGH)]
            environment[WHOLE] = str(AT_LEAST)
        # From a safe path (-P): the source distribution's root is pytest's business. In a fixed order. All is logged:
        # else it would be up to what ran before in the same worker, as virtualenv, which some tests use, turns it on.
        command = [sys.executable, "-P", "-m", "pytest", "-p", "run_filelock", "-p", "no:cacheprovider", "-q"]
        command += ["-p", "no:randomly", "--log-level", "DEBUG"]
        command += ["-n", "4", "--dist", "worksteal", "--basetemp", str(work / "tmp" / "t")]
        return subprocess.run([*command, *(arguments or ["tests"])], cwd=root, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
