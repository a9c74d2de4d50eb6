"""Programs that use filelock, with nothing changed but the module that they import."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from support import DEADLINE, HOLD, child, wait_until

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


TOX_LOCK = (
    ON_OURS
    + """
    import filelock
    path = sys.argv[1]
    lock = filelock.FileLock(path)
    try:
        lock.acquire(0.0001)
    except filelock.Timeout:
        say("waits")
        lock.acquire()
    say("has it")
    lock.release()
"""
)
"""As tox's package lock does it."""


def test_toxs_way_to_wait_for_another_tox(tmp_path: Path) -> None:
    path = str(tmp_path / ".pkg.lock")
    with child(HOLD, args=(path,)) as holder, ExitStack() as stack:
        holder.expect("held")
        tox = stack.enter_context(child(TOX_LOCK, args=(path,)))
        tox.expect("waits")
        wait_until(lambda: pidabs.Lock(path).waiters() == 1, deadline=DEADLINE)
        holder.tell()
        tox.expect("has it")
