"""Paths that other hosts may share.  No network file system is mounted: the list of mounts is another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Child, child

from pidabs import _remote

MOUNTS = """\
/dev/x / ext4 rw 0 0
host:/y /srv/data nfs4 rw 0 0
/dev/z /srv/data/local xfs rw 0 0
me@host: /home/me/host fuse.sshfs rw 0 0
fuse-overlayfs /home/me/image fuse.fuse-overlayfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/data/x.lock", "nfs4"),
        ("/srv/data/local/x.lock", None),
        ("/srv/database/x.lock", None),
        ("/home/me/host/x.lock", "fuse.sshfs"),
        ("/home/me/image/x.lock", None),
        ("/run/x.lock", None),
        ("srv/data/x", None),
    ],
)
def test_file_system(path: str, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    monkeypatch.setattr(_remote, "MOUNTS", str(mounts))
    assert _remote.file_system(path) == expected


def test_without_proc_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_remote, "MOUNTS", str(tmp_path / "none"))
    assert _remote.file_system("/srv/data/x.lock") is None


@contextmanager
def where_all_is_on_nfs(code: str, path: Path) -> Iterator[Child]:
    mounts = path / "mounts"
    mounts.write_text(f"host:/y {path} nfs4 rw 0 0\n")
    start = """
    import warnings, pidabs, pidabs._remote
    pidabs._remote.MOUNTS = sys.argv[2]
    path = sys.argv[1]
    warnings.showwarning = lambda message, category, file, line, *_: say(category.__name__, file, message)
    """
    with child(start + code, args=(str(path / "x"), str(mounts))) as process:
        yield process


@pytest.mark.parametrize(
    "made",
    [
        "pidabs.Lock(path)",
        "__import__('pidabs.compat.filelock').compat.filelock.FileLock(path).acquire()",
        "__import__('pidabs.compat.lockfile').compat.lockfile.LockFile(path)",
        "__import__('pidabs.compat.daemon.pidfile').compat.daemon.pidfile.TimeoutPIDLockFile(path)",
    ],
)
def test_whoever_makes_a_lock_there_is_warned_once(made: str, tmp_path: Path) -> None:
    with where_all_is_on_nfs(f"{made}; say('made'); pidabs.Lock(path + '2'); say('another')", tmp_path) as process:
        said = process.read_line()
        assert said.startswith("RuntimeWarning <string> lock ")
        assert said.endswith("is on nfs4: other hosts and containers that share it are not excluded")
        process.expect("made")
        process.expect("another")


@pytest.mark.parametrize(
    "made",
    [
        "pidabs.Lock('name')",
        "__import__('pidabs.compat.filelock').compat.filelock.FileLock(path, interop=True).acquire()",
        "__import__('pidabs.compat.lockfile.pidlockfile').compat.lockfile.pidlockfile.PIDLockFile(path, interop=True)",
    ],
)
def test_names_and_locks_that_take_the_file_too_are_not_warned_of(made: str, tmp_path: Path) -> None:
    with where_all_is_on_nfs(f"lock = {made}; say('made')", tmp_path) as process:
        process.expect("made")


def test_the_command_says_it_in_a_line(tmp_path: Path) -> None:
    code = """
    from pidabs.cli import main
    os.dup2(1, 2)
    main(["run", path, "true"])
    """
    with where_all_is_on_nfs(code, tmp_path) as process:
        said = process.read_line()
        assert said.startswith(f"pidabs: lock '{tmp_path}/x' is on nfs4: ")
        assert process.wait() == 0
