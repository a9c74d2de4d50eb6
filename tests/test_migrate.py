"""`pidabs migrate`, on sources of our own.  tests/clients has it on those of real packages."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import one_line, run
from programs import PIDABS, finish, terminal

pytest.importorskip("libcst")

REWRITTEN = {
    # Statements
    "import filelock": "import pidabs.compat.filelock as filelock",
    "import filelock as fl": "import pidabs.compat.filelock as fl",
    "import os, filelock, sys": "import os, pidabs.compat.filelock as filelock, sys",
    "import filelock,os": "import pidabs.compat.filelock as filelock,os",
    "import filelock.asyncio": "import pidabs.compat.filelock as filelock, pidabs.compat.filelock.asyncio",
    "import lockfile.pidlockfile": "import pidabs.compat.lockfile as lockfile, pidabs.compat.lockfile.pidlockfile",
    "import lockfile.pidlockfile as p": "import pidabs.compat.lockfile.pidlockfile as p",
    "import lockfile, lockfile.linklockfile": "import pidabs.compat.lockfile as lockfile, "
    "pidabs.compat.lockfile.linklockfile",
    "import daemon, lockfile": "import daemon, pidabs.compat.lockfile as lockfile",
    "import daemon.pidfile": "import pidabs.compat.daemon as daemon, pidabs.compat.daemon.pidfile",
    "import daemon.pidfile as p": "import pidabs.compat.daemon.pidfile as p",
    "import daemon\nimport daemon.pidfile": "import pidabs.compat.daemon as daemon\n"
    "import pidabs.compat.daemon as daemon, pidabs.compat.daemon.pidfile",
    "import daemon as d\nd.pidfile.X": "import pidabs.compat.daemon as d\nd.pidfile.X",
    "from daemon import pidfile": "from pidabs.compat.daemon import pidfile",
    "from daemon import DaemonContext, pidfile as p": "from pidabs.compat.daemon import DaemonContext, pidfile as p",
    "from daemon.pidfile import *": "from pidabs.compat.daemon.pidfile import *",
    "from filelock import FileLock as F, Timeout": "from pidabs.compat.filelock import FileLock as F, Timeout",
    "from filelock import (  # why\n    FileLock,  # a\n)": "from pidabs.compat.filelock import (  # why\n"
    "    FileLock,  # a\n)",
    "from filelock import *": "from pidabs.compat.filelock import *",
    "from filelock.asyncio import AsyncFileLock": "from pidabs.compat.filelock.asyncio import AsyncFileLock",
    "from lockfile import pidlockfile": "from pidabs.compat.lockfile import pidlockfile",
    "from lockfile import LockFile; import os": "from pidabs.compat.lockfile import LockFile; import os",
    "from lockfile.pidlockfile import PIDLockFile": "from pidabs.compat.lockfile.pidlockfile import PIDLockFile",
    # Where they stand
    "def f():\n\tfrom filelock import FileLock": "def f():\n\tfrom pidabs.compat.filelock import FileLock",
    "class A:\n    import filelock": "class A:\n    import pidabs.compat.filelock as filelock",
    "if TYPE_CHECKING:\n    from filelock import BaseFileLock": "if TYPE_CHECKING:\n"
    "    from pidabs.compat.filelock import BaseFileLock",
    "try: import filelock\nexcept ImportError: filelock = None": "try: import pidabs.compat.filelock as filelock\n"
    "except ImportError: filelock = None",
    "import filelock\ntry: f()\nexcept (filelock.Timeout, OSError): pass": "import pidabs.compat.filelock as filelock\n"
    "try: f()\nexcept (filelock.Timeout, OSError): pass",
    "from filelock import FileLock\n__all__ = ['FileLock']": "from pidabs.compat.filelock import FileLock\n"
    "__all__ = ['FileLock']",
    # Calls
    "import importlib\nimportlib.import_module('filelock')": "import importlib\n"
    "importlib.import_module('pidabs.compat.filelock')",
    'from importlib import import_module as im\nx = im(\n    "lockfile.pidlockfile"  # a\n)': "from importlib import "
    'import_module as im\nx = im(\n    "pidabs.compat.lockfile.pidlockfile"  # a\n)',
    "__import__('filelock').FileLock": "__import__('pidabs.compat.filelock', fromlist=[\"__name__\"]).FileLock",
}
UNTOUCHED = [
    "import daemon",
    "from daemon import DaemonContext",
    "from daemon import daemon",
    "import daemon.daemon as d",
    "from . import filelock",
    "from .filelock import FileLock",
    "from my.lockfile import LockFile",
    "import filelocks, my_filelock, fasteners",
    "import pidabs.compat.filelock as filelock",
    "log = getLogger('filelock')",
    "x = 'lockfile.txt', 'filelock', b'filelock.FileLock'",
    "filelock.FileLock()",
    "'''from filelock import FileLock'''",
    "# import filelock",
]


@pytest.mark.parametrize(("before", "after"), REWRITTEN.items(), ids=REWRITTEN)
@pytest.mark.parametrize("end", ["\n", "", "\r\n"], ids=["lf", "none", "crlf"])
def test_rewrites(before: str, after: str, end: str, tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    if end == "\r\n":
        before, after = before.replace("\n", end) + end, after.replace("\n", end) + end
    else:
        before, after = before + end, after + end
    source.write_bytes(before.encode())
    assert migrate_here(source) == 1
    assert source.read_bytes() == before.encode()
    assert migrate_here(source, "--write") == 0
    assert source.read_bytes().decode() == after
    assert migrate_here(source) == 0  # there is nothing more to do
    assert source.read_bytes().decode() == after


@pytest.mark.parametrize("source", UNTOUCHED)
def test_leaves_alone(source: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(source)
    assert migrate_here(path, "--write") == 0
    assert path.read_text() == source


def migrate_here(*arguments: object) -> int:
    """Without another process, for there are many."""
    from pidabs import cli

    return cli.main(["migrate", *map(str, arguments)])


NOTED = {
    "from filelock._unix import UnixFileLock": [(1, "filelock._unix is private")],
    "import filelock.version": [(1, "filelock.version is private to the original, or has no stand-in")],
    "from filelock import _api": [(1, "filelock._api is private")],
    "from daemon import runner": [(1, "daemon.runner makes locks of its own")],
    "from daemon.runner import DaemonRunner": [(1, "daemon.runner makes locks of its own")],
    "import daemon.pidfile\nimport daemon.runner": [(2, "binds `daemon` to the original"), (2, "daemon.runner makes")],
    "try:\n    import filelock\nexcept ImportError:\n    filelock = None": [(2, "imported only if it is there")],
    "with suppress(ImportError):\n    import filelock": [(2, "imported only if it is there")],
    "x = __import__('lockfile.pidlockfile')": [(1, "rewritten by hand")],
    "x = __import__('filelock', globals())": [(1, "rewritten by hand")],
    "import importlib\nimportlib.import_module('filelock._unix')": [(2, "rewritten by hand")],
    "import importlib\nimportlib.import_module(f'lockfile.{x}')": [(2, "put together")],
    "import importlib\nimportlib.import_module('lockfile.' + x)": [(2, "put together")],
    "mock.patch('filelock.FileLock')": [(1, "'filelock.FileLock' names the original")],
    "mock.patch('lockfile.pidlockfile')": [(1, "'lockfile.pidlockfile' names the original")],
    "mock.patch('filelock._api.x')": [(1, "names the original")],
    "mock.patch.dict(\n    'sys.modules',\n    {'filelock': None})": [(3, "in sys.modules is the original")],
    "sys.modules['filelock'] = None": [(1, "in sys.modules is the original")],
    "pytest.importorskip('filelock')": [(1, "asks for filelock by name")],
    "if importlib.util.find_spec('filelock'): pass": [(1, "asks for filelock by name")],
}
USE = """\
import os, filelock
from daemon import DaemonContext
lock_path = "/run/x.lock"
lock = filelock.FileLock(lock_path)
"""
NOTED_BESIDE_A_LOCK = {
    "open(lock_path).read()": "looks at the lock file",
    "os.path.exists(str(lock_path))": "looks at the lock file",
    "os.stat(lock.lock_file)": "looks at the lock file",
    "Path(lock_path).read_text()": "looks at the lock file",
    "os.remove(base + '.lock')": "removes or moves the lock file",
    "os.unlink(self.pidfile)": "removes or moves the lock file",
    "lock_path.unlink()": "removes or moves the lock file",
    "os.chmod(lock_path, 0o666)": "sets a mode or an owner",
    "os.chown(lock.lock_file, 1, 1)": "sets a mode or an owner",
    "observer.schedule(handler, lock_path)": "watches the lock file",
    "inotify.add_watch(lock_path)": "watches the lock file",
    "lock.break_lock()": "break_lock leaves a live process its lock",
    "os.fork()": "forks: a child does not hold",
    "import multiprocessing as m; m.Process(target=f)": "forks: a child does not hold",
    "from concurrent.futures import ProcessPoolExecutor as P; P()": "forks: a child does not hold",
    "with DaemonContext(): pass": "forks: a child does not hold",
    "DaemonContext(pidfile=p, uid=33)": "becomes, or starts, another user",
    "os.setuid(33)": "becomes, or starts, another user",
    "import subprocess; subprocess.run(['x'], user='nobody')": "becomes, or starts, another user",
    "filelock.FileLock('/x', mode=0o666)": "no file whose mode",
    "filelock.FileLock('/mnt/nfs/x')": "a lock on a network file system",
    "import lockfile; lockfile.LockFile('/run/x')": "LockFile has no interop",
    "from lockfile.mkdirlockfile import MkdirLockFile as M; M('/run/x')": "MkdirLockFile has no interop",
    "filelock.FileLock(os.path.join(NFS_HOME, 'x'))": "a lock on a network file system",
    "filelock.FileLock(path)": "whose path is decided at run time",
    "filelock.FileLock(f'{x}/y')": "whose path is decided at run time",
    "class A(filelock.FileLock):\n    def _acquire(self): pass": "_acquire: a private part",
    "def f(x):\n    return Later(x)\nclass Later(filelock.FileLock): pass": "whose path is decided at run time",
    "lock._context.lock_file_fd": "_context: a private part",
}
NOT_NOTED_BESIDE_A_LOCK = [
    "open(data_path)",
    "os.remove(path)",
    "with DaemonContext(pidfile=p): pass",
    "filelock.SoftFileLock(path)",
    "other._context",
    "filelock.FileLock('/run/y')",
    "d.replace('a', 'b')",
]


Notes = Callable[[Path, str], list[tuple[int, str]]]


@pytest.fixture
def notes(capsys: pytest.CaptureFixture[str]) -> Notes:
    return lambda path, text: _notes(path, text, capsys)


def _notes(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[int, str]]:
    """What is said of a source: lines and texts."""
    path.write_text(text)
    capsys.readouterr()
    migrate_here(path)
    *lines, summary = capsys.readouterr().err.splitlines()
    assert summary.endswith(f"{len(lines)} place{'s' * (len(lines) != 1)} to look at")
    found = []
    for line in lines:
        assert line.startswith(f"{path}:")
        number, _, what = line.removeprefix(f"{path}:").partition(": ")
        found.append((int(number), what))
    return found


@pytest.mark.parametrize(("source", "expected"), NOTED.items(), ids=NOTED)
def test_notes_what_it_leaves(source: str, expected: list[tuple[int, str]], tmp_path: Path, notes: Notes) -> None:
    found = notes(tmp_path / "x.py", source)
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, text), (_, part) in zip(found, expected, strict=True):
        assert part in text


@pytest.mark.parametrize(("line", "expected"), NOTED_BESIDE_A_LOCK.items(), ids=NOTED_BESIDE_A_LOCK)
def test_notes_what_it_cannot_decide(line: str, expected: str, tmp_path: Path, notes: Notes) -> None:
    """Before the imports are rewritten, and afterwards."""
    path = tmp_path / "x.py"
    ((number, text),) = notes(path, f"{USE}{line}\n")
    assert number >= USE.count("\n") + 1
    assert expected in text
    assert migrate_here(path, "--write") == 0
    assert notes(path, path.read_text()) == [(number, text)]


@pytest.mark.parametrize("line", NOT_NOTED_BESIDE_A_LOCK)
def test_notes_nothing_else(line: str, tmp_path: Path, notes: Notes) -> None:
    assert notes(tmp_path / "x.py", f"{USE}{line}\n") == []


def test_notes_nothing_where_there_is_no_lock(tmp_path: Path, notes: Notes) -> None:
    assert notes(tmp_path / "x.py", "import os\nos.fork()\nos.remove(lockfile)\nx.break_lock()\n") == []


def test_what_is_written_runs(tmp_path: Path) -> None:
    pytest.importorskip("filelock")
    pytest.importorskip("daemon")
    source = tmp_path / "x.py"
    source.write_text(
        textwrap.dedent(
            """
            import sys, importlib
            import filelock, filelock as fl
            import lockfile.pidlockfile
            import daemon, daemon.pidfile
            from daemon import DaemonContext, pidfile as p
            from filelock import *
            def lazily():
                from filelock import FileLock as F
                return F
            for found in (
                filelock.FileLock, fl.UnixFileLock, lazily(), FileLock, importlib.import_module("filelock").FileLock,
                __import__("filelock").FileLock, lockfile.pidlockfile.PIDLockFile, daemon.pidfile.TimeoutPIDLockFile,
                p.TimeoutPIDLockFile,
            ):
                assert found.__module__.startswith("pidabs.compat."), found
            assert daemon.DaemonContext is DaemonContext and DaemonContext.__module__ == "daemon.daemon"
            try:
                filelock.FileLock(sys.argv[1]).acquire(timeout=0)
            except filelock.Timeout:
                assert Timeout is filelock.Timeout
                print("held")
            """
        )
    )
    assert migrate_here(source, "--write") == 0
    import pidabs

    with pidabs.Lock(str(tmp_path / "a.lock")):
        done = subprocess.run(
            [sys.executable, source, tmp_path / "a.lock"], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")


# Files

ENCODED = {
    "latin-1": b"# -*- coding: latin-1 -*-\nimport filelock  # \xe9\nx = '\xe9'\n",
    "utf-8 with a mark": b"\xef\xbb\xbfimport filelock\nx = '\xc3\xa9'\n",
    "form feeds": b"import os\n\n\x0c\n\n\nimport filelock\n\n\x0c\n",
    "mixed line ends": b"import os\r\nimport filelock\nif os:\r\n\timport filelock\n\r\n",
    "old Mac's line ends": b"import filelock\rimport os\r",
    "line ends in a string": b"import filelock\nx = 'a\\\r\nb'\n",
}


@pytest.mark.parametrize("source", ENCODED.values(), ids=ENCODED)
def test_all_else_stays_byte_by_byte(source: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(source)
    path.chmod(0o640)
    before = path.stat()
    assert migrate_here(path, "--write") == 0
    assert path.read_bytes() == source.replace(b"import filelock", b"import pidabs.compat.filelock as filelock")
    after = path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"import filelock\nprint 'x'\n", "line 2: not Python as libcst knows it"),
        (b"import filelock\nx = '\xff'\n", "cannot be decoded"),
        (b"# coding: no-such\nimport filelock\n", "cannot be decoded"),
        (b"x = 1\rimport filelock\r", "byte by byte"),
        (b"import filelock\nx = " + b"(" * 3000 + b")" * 3000, "nested too deeply"),
    ],
    ids=["python 2", "not utf-8", "unknown encoding", "old Mac", "deep"],
)
def test_a_file_that_cannot_be_read_is_told_and_the_others_done(source: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(source)
    (tmp_path / "b.py").write_text("import filelock\n")
    done = run("migrate", "--write", tmp_path)
    assert done.returncode == 1
    assert done.stdout == f"rewrote {tmp_path}/b.py\n"
    error, summary = done.stderr.splitlines(True)
    assert one_line(error)
    assert f"{tmp_path}/a.py: " in error
    assert says in error
    assert summary.startswith("1 file rewritten")
    assert (tmp_path / "a.py").read_bytes() == source
    assert (tmp_path / "b.py").read_text() == "import pidabs.compat.filelock as filelock\n"


def test_the_diff_is_one_that_patch_takes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"import os\r\nimport filelock\r\nx = 1")
    (tmp_path / "b.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\nimport lockfile")
    done = run("migrate", ".", cwd=tmp_path, text=False)
    assert done.returncode == 1
    subprocess.run(["patch", "--binary", "-p0", "-s"], input=done.stdout, cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "a.py").read_bytes() == b"import os\r\nimport pidabs.compat.filelock as filelock\r\nx = 1"
    assert (tmp_path / "b.py").read_bytes().endswith(b"'\xe9'\nimport pidabs.compat.lockfile as lockfile")
    assert run("migrate", ".", cwd=tmp_path).returncode == 0


def test_a_directory_is_walked(tmp_path: Path) -> None:
    found = ["a.py", "sub/b.pyi", "sub/deep/c.pyw", "script", "x.git/d.py"]
    skipped = [".git/a.py", ".tox/a.py", "env/lib/a.py", "sub/__pycache__/a.py", "node_modules/a.py", "a.txt", "data"]
    for name in found + skipped:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/usr/bin/env python3\nimport filelock\n" if name != "data" else "import filelock\n")
    (tmp_path / "env" / "pyvenv.cfg").touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sub" / "again.py").symlink_to(tmp_path / "a.py")
    (tmp_path / "sub" / "broken.py").symlink_to(tmp_path / "nowhere.py")
    os.mkfifo(tmp_path / "fifo.py")
    done = run("migrate", "--write", tmp_path, tmp_path / "a.py")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == sorted(f"rewrote {tmp_path}/{name}" for name in found)
    assert {name for name in skipped if "pidabs" in (tmp_path / name).read_text()} == set()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run("migrate", tmp_path / "no\x1b.py")
    assert done.returncode == 1
    error, _ = done.stderr.splitlines(True)
    assert error == f"pidabs: {tmp_path}/no\\x1b.py: No such file or directory; left as it is\n"


def test_a_file_beside_a_script_may_be_what_it_imports(tmp_path: Path, notes: Notes) -> None:
    (tmp_path / "filelock.py").write_text("class FileLock: pass\n")
    assert notes(tmp_path / "x.py", "import filelock\n") == [
        (1, "filelock: there is a filelock beside this file, which it may mean; left as it is")
    ]
    (tmp_path / "__init__.py").touch()  # in a package it cannot mean that
    assert notes(tmp_path / "x.py", "import filelock\n") == []


def test_dependencies_are_noted_and_left(tmp_path: Path) -> None:
    files = {
        "requirements-dev.txt": "pytest\nfilelock>=3\n# lockfile\npython-daemon\nmy-filelock\nfilelock-git\n",
        "pyproject.toml": '[project]\ndependencies = [\n  "lockfile",\n  "pidabs[filelock]",\n]\n',
        "setup.py": "setup(install_requires=['filelock'])\n",
        "notes.txt": "filelock\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = run("migrate", "--write", ".", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    found = [line.partition(": ")[0] for line in done.stderr.splitlines()[:-1]]
    assert found == [
        "./pyproject.toml:3",
        "./requirements-dev.txt:2",
        "./requirements-dev.txt:4",
        "./setup.py:1",
    ]
    assert "pidabs[daemon]" in done.stderr
    assert {name: (tmp_path / name).read_text() for name in files} == files


@pytest.mark.parametrize("name", ["requirements.txt", "compose.yml"])
def test_what_is_named_and_not_python_is_not_read_as_that(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x: [\n# filelock\n")
    done = run("migrate", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "0 files would change; 0 places to look at\n")


def test_containers_are_noted_if_there_are_locks(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text("services:\n  a:\n    volumes:\n      - x:/x\n")
    assert run("migrate", tmp_path).stderr == "0 files would change; 0 places to look at\n"
    (tmp_path / "a.py").write_text("import pidabs.compat.filelock\n")
    assert (
        f"{tmp_path}/docker-compose.yml:3: a lock that is shared between containers" in run("migrate", tmp_path).stderr
    )


def test_without_libcst_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "libcst.py").write_text("raise ImportError\n")
    done = run("migrate", tmp_path, env={"PYTHONPATH": str(tmp_path)})
    expected = 'pidabs: migrate needs libcst: pip install "pidabs[migrate]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (69, "", expected)


def test_no_other_command_pays_for_libcst(tmp_path: Path) -> None:
    code = "import sys, pidabs.cli as c; c.main(['list']); print('libcst' in sys.modules, 'difflib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "False False"


def test_an_unwritable_file(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write")
    (tmp_path / "a.py").write_text("import filelock\n")
    (tmp_path / "a.py").chmod(0o400)
    done = run("migrate", "--write", tmp_path)
    assert done.returncode == 1
    assert "Permission denied; left as it is" in done.stderr


LIMITED = """
import sys
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from pidabs.cli import main
most, hard = getrlimit(RLIMIT_FSIZE)
setrlimit(RLIMIT_FSIZE, (int(sys.argv[1]), hard))
code = main(sys.argv[2:])
setrlimit(RLIMIT_FSIZE, (most, hard))  # what measures the coverage writes a file
sys.exit(code)
"""


def test_a_file_that_there_is_no_room_for(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    source = b"import filelock\n" * 100
    path.write_bytes(source)
    done = finish(sys.executable, "-c", LIMITED, len(source) + 10, "migrate", "--write", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pidabs: {path}: File too large; left as it is\n0 files rewritten; 0 places to look at\n"
    assert path.read_bytes() == source


def test_an_output_that_lacks_a_character(tmp_path: Path) -> None:
    path = tmp_path / "\u2192.py"
    path.write_text("import filelock  # \u2192\n", encoding="utf-8")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    with terminal(PIDABS, "migrate", path, **ascii_only) as on:
        on.read_rest()
    assert b"\r\n-import filelock  # \\u2192\r\n" in on.screen
    done = run("migrate", "--write", path, env=ascii_only)
    assert (done.returncode, done.stdout) == (0, f"rewrote {tmp_path}/\\u2192.py\n")
