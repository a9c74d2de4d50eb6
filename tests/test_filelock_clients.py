"""Programs that use filelock, with nothing changed but the module that they import."""

from __future__ import annotations

import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HOLD, child, wait_until

import pidabs

ON_OURS = """
    import filelock, pidabs.compat.filelock
    for name in filelock.__all__:
        getattr(filelock, name)  # it imports much of itself only now, and by its own name
    sys.modules["filelock"] = pidabs.compat.filelock
"""
"""Child code: from here on `import filelock` finds ours."""

VIRTUALENV = (
    ON_OURS
    + """
    import virtualenv
    say("ready")
    listen()
    for number in range(2):
        virtualenv.cli_run([f"{sys.argv[1]}-{number}", "--no-periodic-update", "--app-data", sys.argv[2], "--quiet"])
    say("made", sys.modules["virtualenv.util.lock"].FileLock.__module__)
"""
)


def test_virtualenvs_from_several_processes_at_once(tmp_path: Path) -> None:
    pytest.importorskip("virtualenv")
    with ExitStack() as stack:
        makers = [
            stack.enter_context(child(VIRTUALENV, args=(str(tmp_path / f"env{number}"), str(tmp_path / "data"))))
            for number in range(5)
        ]
        for maker in makers:
            maker.expect("ready")
        for maker in makers:
            maker.tell()
        for maker in makers:
            assert maker.read_line(60) == "made pidabs.compat.filelock"
    made = list(tmp_path.glob("env*/bin/pip"))
    assert len(made) == 10


WEAK_FILE_LOCK = (
    ON_OURS
    + """
    from huggingface_hub.utils import WeakFileLock
    say("ready")
    listen()
    for _ in range(20):
        with WeakFileLock(sys.argv[1]) as lock:
            with open(sys.argv[2], "r+") as file:
                number = int(file.read())
                file.seek(0)
                file.write(str(number + 1))
    say("done", type(lock).__module__)
"""
)


def test_weak_file_lock_of_huggingface_hub_under_contention(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    number = tmp_path / "number"
    number.write_text("0")
    with ExitStack() as stack:
        workers = [
            stack.enter_context(child(WEAK_FILE_LOCK, args=(str(tmp_path / "lock"), str(number)))) for _ in range(5)
        ]
        for worker in workers:
            worker.expect("ready")
        for worker in workers:
            worker.tell()
        for worker in workers:
            assert worker.read_line(60) == "done pidabs.compat.filelock"
    assert number.read_text() == "100"
    assert not (tmp_path / "lock").exists()


TOX = (
    ON_OURS
    + """
    from tox.run import main
    from tox.tox_env import package
    say("ready", package.FileLock.__module__)
    say("ended", main(["run", "-c", sys.argv[1] + "/tox.ini", "--workdir", sys.argv[1] + "/.tox", "-qq"]))
"""
)
BACKEND = """
    import zipfile

    def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
        name = "some-1-py3-none-any.whl"
        with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
            wheel.writestr("some.py", "")
            wheel.writestr("some-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: some\\nVersion: 1\\n")
            wheel.writestr("some-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
            wheel.writestr("some-1.dist-info/RECORD", "some.py,,\\n")
        return name
"""
"""Builds without help from the network."""


def test_tox_waits_to_build_the_package_that_another_tox_builds(tmp_path: Path) -> None:
    pytest.importorskip("tox")
    (tmp_path / "backend.py").write_text(textwrap.dedent(BACKEND))
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "some"\nversion = "1"\n'
    )
    (tmp_path / "tox.ini").write_text("[testenv]\npackage = wheel\ncommands = python -c 'import some'\n")
    path = str(tmp_path / ".tox" / ".pkg" / "file.lock")
    with child(HOLD, args=(path,)) as holder, child(TOX, args=(str(tmp_path),)) as tox:
        holder.expect("held")
        tox.expect("ready pidabs.compat.filelock")
        wait_until(lambda: pidabs.Lock(path).waiters() == 1, deadline=60)
        holder.tell()
        assert tox.read_line(90) == "ended 0"
