"""pidabs.compat.install() and python -m pidabs.compat: programs on our locks with nothing edited."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support import HOLD, child, wait_until

import pidabs

pytest.importorskip("filelock")
pytest.importorskip("daemon")

RUNNER = (sys.executable, "-m", "pidabs.compat")

INSTALL = """
    import pidabs.compat
    pidabs.compat.install()
"""

OURS = {
    "import filelock": "filelock.FileLock",
    "import filelock as fl": "fl.UnixFileLock",
    "from filelock import FileLock": "FileLock",
    "from filelock import *": "FileLock",
    "from filelock import AsyncFileLock": "AsyncFileLock",
    "import filelock.asyncio": "filelock.asyncio.AsyncUnixFileLock",
    "from filelock.asyncio import AsyncUnixFileLock": "AsyncUnixFileLock",
    "from filelock.asyncio import UnixFileLock": "UnixFileLock",
    "import importlib": "importlib.import_module('filelock').FileLock",
    "import filelock._unix": "filelock.FileLock",
    "def lazily():\n    import filelock\n    return filelock.FileLock": "lazily()",
    "from lockfile.pidlockfile import PIDLockFile": "PIDLockFile",
    "import lockfile.pidlockfile": "lockfile.pidlockfile.PIDLockFile",
    "from lockfile import pidlockfile": "pidlockfile.PIDLockFile",
    "import lockfile; from lockfile import pidlockfile as p": "p.PIDLockFile",
    "from daemon.pidfile import TimeoutPIDLockFile": "TimeoutPIDLockFile",
    "import daemon.pidfile": "daemon.pidfile.TimeoutPIDLockFile",
    "from daemon import pidfile": "pidfile.PIDLockFile",
    "import lockfile.pidlockfile, daemon.pidfile": "daemon.pidfile.TimeoutPIDLockFile",
    "x = __import__('daemon.pidfile')": "x.pidfile.TimeoutPIDLockFile",
    "import pidabs.compat.filelock; import filelock": "filelock.FileLock",
    "import pidabs.compat.daemon.pidfile; import daemon.pidfile": "daemon.pidfile.TimeoutPIDLockFile",
    "import pidabs.compat.filelock.asyncio; import filelock": "filelock.AsyncFileLock",
}
"""A program's import, and an expression for what it has got by it."""


def has_async() -> bool:
    import filelock

    return hasattr(filelock, "AsyncFileLock")


@pytest.mark.parametrize(("imported", "got"), OURS.items(), ids=OURS)
def test_every_way_to_import_finds_ours(imported: str, got: str) -> None:
    if "sync" in imported + got and not has_async():
        pytest.skip("this filelock has nothing asynchronous")
    with child(
        f"{INSTALL}\n{textwrap.indent(imported, ' ' * 4)}\n    say({got}.__module__.rpartition('.')[0])"
    ) as program:
        assert program.read_line().startswith("pidabs.compat")


def run_python(code: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", textwrap.dedent(code), *args, **options)


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **options.pop("env", {})}
    options.setdefault("cwd", "/")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False, **options)


def test_the_rest_of_the_originals_is_their_own() -> None:
    code = """
        import sys
        import pidabs.compat
        pidabs.compat.install()
        pidabs.compat.install()  # and again
        import filelock, lockfile.pidlockfile
        assert "asyncio" not in sys.modules or not filelock.__version__.startswith("4.2")  # that takes long
        import filelock._unix, importlib.metadata, pickle, unittest.mock
        assert filelock.__version__ == importlib.metadata.version("filelock")
        assert filelock.__spec__.loader is filelock.__loader__ and "pidabs" not in repr(filelock.__loader__)
        assert "filelock" in filelock.__file__ and "pidabs" not in filelock.__file__
        original = filelock._unix.UnixFileLock
        assert original.__module__ == "filelock._unix"
        assert filelock.SoftFileLock.__module__.startswith("filelock")
        assert issubclass(filelock.FileLock, original) and issubclass(filelock.FileLock, filelock.BaseFileLock)
        lock = filelock.FileLock("/nowhere")
        assert isinstance(lock, filelock.FileLock) and isinstance(lock, filelock.BaseFileLock)
        pidfile = lockfile.pidlockfile.PIDLockFile("/tmp/x")
        assert pickle.loads(pickle.dumps(pidfile)).path == pidfile.path
        class Mine(filelock.FileLock):
            def __init__(self, path): super().__init__(path, timeout=3)
        assert Mine("/nowhere").timeout == 3
        with unittest.mock.patch("filelock.FileLock") as patched:
            assert filelock.FileLock is patched
        assert filelock.FileLock is type(lock)
        assert filelock.FileLock._original.__mro__[1] is original
        assert "lockfile.pidlockfile" in {base.__module__ for base in lockfile.pidlockfile.PIDLockFile.__mro__}
    """
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_stand_in_is_in_its_place() -> None:
    """Whatever modules and names there are."""
    code = """
        import pidabs.compat
        pidabs.compat.install()
        from importlib import import_module
        from pathlib import Path
        root, seen = Path(pidabs.compat.__file__).parent, 0
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            if name[0] == "_" or "._" in name:
                continue
            original, ours = import_module(name), import_module("pidabs.compat." + name)
            for attribute in ours.__all__ if hasattr(ours, "__all__") else ():
                value = getattr(ours, attribute)
                if str(getattr(value, "__module__", None)).startswith("pidabs.compat."):
                    seen += 1
                    assert getattr(original, attribute) is value, (name, attribute)
        assert seen >= 6, seen
    """
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_locks_are_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "x.lock")
    take = "import filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); say('held'); listen()"
    with child(f"{INSTALL}\n    {take}", args=(path,)) as holder:
        holder.expect("held")
        assert pidabs.Lock(path).locked()
        assert not os.path.exists(path)
        with pytest.raises(pidabs.Timeout):
            pidabs.Lock(path).acquire(timeout=0)


LATE = {
    "from filelock import FileLock": ["mine.FileLock"],
    "from filelock import FileLock as F, UnixFileLock": ["mine.F", "mine.UnixFileLock"],
    "import filelock\nclass Lock(filelock.FileLock): pass": ["mine.Lock"],
    "from daemon.pidfile import TimeoutPIDLockFile as T": ["mine.T"],
}


@pytest.mark.parametrize(("source", "named"), LATE.items(), ids=LATE)
def test_too_late_it_says_who_has_an_original_already_and_changes_nothing(
    source: str, named: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(source)
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import mine, filelock, pidabs.compat
        before, finders = [filelock.FileLock], list(sys.meta_path)
        try:
            pidabs.compat.install()
        except RuntimeError as exc:
            print(exc)
        assert sys.meta_path == finders
        assert filelock.FileLock is before[0] and before[0].__module__ == "filelock._unix"
    """
    done = run_python(code, str(tmp_path))
    assert done.stderr == ""
    begins, _, ends = done.stdout.partition(": ")
    assert begins == "pidabs.compat.install() comes too late"
    assert ends.partition(" had been imported")[0].split(", ") == sorted(named)


def test_a_module_alone_that_was_imported_before_does_no_harm() -> None:
    code = """
        import filelock, lockfile.pidlockfile, daemon.pidfile
        import pidabs.compat
        pidabs.compat.install()
        print(filelock.FileLock.__module__, lockfile.pidlockfile.PIDLockFile.__module__)
        print(daemon.pidfile.TimeoutPIDLockFile.__module__)
    """
    done = run_python(code)
    expected = ["pidabs.compat.filelock", "pidabs.compat.lockfile.pidlockfile", "pidabs.compat.daemon.pidfile"]
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_what_only_has_the_name_of_an_original_is_refused(tmp_path: Path) -> None:
    """Else the program would go on with locks that exclude nobody of ours."""
    (tmp_path / "filelock.py").write_text("class FileLock: pass\n")
    done = run_python(
        f"import sys\nsys.path.insert(0, sys.argv[1])\n{textwrap.dedent(INSTALL)}\nimport filelock", str(tmp_path)
    )
    assert done.returncode == 1
    assert f"ImportError: pidabs.compat cannot stand in for filelock ({tmp_path}/filelock.py)" in done.stderr


def test_threads_that_import_at_once_all_get_ours() -> None:
    code = """
        import threading, pidabs.compat
        pidabs.compat.install()
        found, barrier = [], threading.Barrier(8)
        def look(number):
            barrier.wait()
            if number % 3 == 0: from filelock import FileLock as found_
            elif number % 3 == 1: from lockfile.pidlockfile import PIDLockFile as found_
            else: from daemon.pidfile import TimeoutPIDLockFile as found_
            found.append(found_.__module__)
        threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(found) == 8 and all(name.startswith("pidabs.compat.") for name in found), found
    """
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


# The runner

SCRIPT = """
import __main__, sys, os
from filelock import FileLock
print(sys.argv, sys.path[0], __name__, __main__.FileLock is FileLock, FileLock.__module__)
print(__file__, __package__, __spec__ and __spec__.name, sys.stdin is not None)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "some" / "script.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def as_python_would(*arguments: str, cwd: Path) -> None:
    """Both run, and do the same but for the lock."""
    ours, theirs = (run(*words, *arguments, cwd=cwd) for words in (RUNNER, (sys.executable,)))
    assert "pidabs.compat.filelock" in ours.stdout
    assert "filelock._unix" in theirs.stdout
    assert ours.stdout.replace("pidabs.compat.filelock", "filelock._unix") == theirs.stdout
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr) == (7, "")


def test_a_script(script: Path, tmp_path: Path) -> None:
    as_python_would(str(script), "a", "-b", cwd=tmp_path)
    as_python_would("some/script.py", cwd=tmp_path)
    (tmp_path / "link").symlink_to(script)
    as_python_would("link", "--help", cwd=tmp_path)


def test_a_module_and_a_package(script: Path, tmp_path: Path) -> None:
    (script.parent / "__main__.py").write_text(SCRIPT)
    (script.parent / "__init__.py").write_text("")
    as_python_would("-m", "some.script", "x", cwd=tmp_path)
    as_python_would("-m", "some", "-m", cwd=tmp_path)


def test_a_directory_and_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(SCRIPT)
    as_python_would("app", "x", cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", SCRIPT)
    as_python_would("app.pyz", "x", cwd=tmp_path)


def test_a_command_on_path(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "some-command"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{SCRIPT}")
    command.chmod(0o755)
    done = run(*RUNNER, "some-command", "x", cwd=tmp_path, env={"PATH": f"{command.parent}:{os.environ['PATH']}"})
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.startswith(f"['{command}', 'x'] {command.parent} __main__ True pidabs.compat.filelock\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "usage: "),
        (["-m"], 2, "usage: "),
        (["-x", "y"], 2, "usage: "),
        (["no-such-program"], 2, "pidabs.compat: cannot open no-such-program: No such file or directory"),
        (["-m", "no_such_module"], 1, "pidabs.compat: no module named no_such_module"),
        (["-m", "no_such.module"], 1, "pidabs.compat: cannot find no_such.module: "),
        (["-m", "email"], 1, "pidabs.compat: email is a package and has no __main__.py"),
        (["shell"], 2, "pidabs.compat: shell is no Python program but one for /bin/sh"),
        (["elsewhere"], 2, "pidabs.compat: elsewhere is a program of another Python; install pidabs there and run "),
        (["/bin/true"], 2, "pidabs.compat: /bin/true is no Python program"),
        (["empty"], 1, "pidabs.compat: cannot find a __main__ in empty"),
    ],
    ids=str,
)
def test_errors_are_one_line(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "shell").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "elsewhere").write_text("#!/nowhere/bin/python3\n")
    (tmp_path / "empty").mkdir()
    done = run(*RUNNER, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_help() -> None:
    done = run(*RUNNER, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m pidabs.compat ")


@pytest.mark.parametrize(
    ("source", "code"),
    [("def f():\n    raise ValueError('x')\nf()\n", 1), ("x = (\n", 1), ("import sys\nsys.exit('why')\n", 1), ("", 0)],
    ids=["exception", "syntax", "exit", "nothing"],
)
def test_ends_as_python_does(source: str, code: int, tmp_path: Path) -> None:
    """None of our own lines in the traceback, either."""
    (tmp_path / "x.py").write_text(source)
    ours, theirs = (run(*words, "x.py", cwd=tmp_path) for words in (RUNNER, (sys.executable,)))
    assert ours.returncode == theirs.returncode == code
    assert ours.stdout == theirs.stdout == ""
    assert ours.stderr == theirs.stderr


def test_main_is_the_program_to_its_very_end(tmp_path: Path) -> None:
    source = """
        import atexit, pickle, sys, threading
        class Thing: pass
        ended = threading.Event()
        def late():
            ended.wait()
            assert type(pickle.loads(pickle.dumps(Thing()))) is sys.modules["__main__"].Thing
            print("late")
        atexit.register(lambda: print(sys.modules["__main__"].Thing.__name__))
        threading.Thread(target=late).start()
        threading._register_atexit(ended.set)  # when the last line is over
    """
    (tmp_path / "x.py").write_text(textwrap.dedent(source))
    done = run(*RUNNER, "x.py", cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (["late", "Thing"], "")


# Children

CHILDREN = """
import multiprocessing, subprocess, sys

def look(queue=None):
    import filelock
    module = filelock.FileLock.__module__
    return queue.put(module) if queue else module

if __name__ == "__main__":
    print(look())
    for method in "spawn", "forkserver", "fork":
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=look, args=(queue,))
        process.start()
        print(queue.get())
        process.join()
    code = "import filelock; print(filelock.FileLock.__module__)"
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", code])
    subprocess.run([sys.executable, "-c", again, code])
"""


def test_children_have_it_too(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(CHILDREN)
    done = run(*RUNNER, "x.py", cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (["pidabs.compat.filelock"] * 6, "")


def test_a_child_pays_nothing_before_the_first_import_of_an_original(tmp_path: Path) -> None:
    ours = "[name for name in sys.modules if name.partition('.')[0] == 'pidabs']"
    code = f"import sys; print({ours}, [path for path in sys.path if 'pidabs' in path])"
    (tmp_path / "x.py").write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])\n")
    done = run(*RUNNER, "x.py", cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith("[] ")
    assert "_children" not in done.stdout


def test_the_sitecustomize_that_is_there_runs_too(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.theirs = __file__\n")
    code = (
        "import sys, sitecustomize, filelock; print(sys.theirs, sitecustomize.__file__, filelock.FileLock.__module__)"
    )
    (tmp_path / "x.py").write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])\n")
    done = run(*RUNNER, "x.py", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
    path = str(tmp_path / "site" / "sitecustomize.py")
    assert (done.stdout.split(), done.stderr) == ([path, path, "pidabs.compat.filelock"], "")


def test_a_child_without_pidabs_says_so_and_only_when_it_matters(tmp_path: Path) -> None:
    """Such as the Python of another environment: it goes on, with the original."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "lockfile.py").write_text("")
    code = """
import subprocess, sys
for line in sys.argv[1:]:
    subprocess.run([sys.executable, "-S", "-c", "import sys, sitecustomize; sys.path.append('lib'); " + line])
"""
    (tmp_path / "x.py").write_text(code)
    done = run(*RUNNER, "x.py", "import json", "import lockfile; import lockfile", cwd=tmp_path)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("pidabs.compat: ")
    assert "has no pidabs: its lockfile is the original" in line


def test_install_is_for_children_only_if_told(tmp_path: Path) -> None:
    code = """
        import os, pidabs.compat
        pidabs.compat.install()
        before = os.environ.get("PYTHONPATH")
        pidabs.compat.install(children=True)
        pidabs.compat.install(children=True)
        print(before, os.environ["PYTHONPATH"].count("_children"), os.environ["PYTHONPATH"].endswith(":/some"))
    """
    done = run_python(code, env={"PYTHONPATH": "/some"})
    assert (done.stdout, done.stderr) == ("/some 1 True\n", "")


# The real thing


def test_an_unmodified_program_waits_for_a_lock_of_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "x.lock")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom filelock import FileLock\nwith FileLock(sys.argv[1]):\n    print('in', flush=True)\n"
    )
    with child(HOLD, args=(path,)) as holder:
        holder.expect("held")
        waiter = subprocess.Popen([*RUNNER, str(program), path], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        try:
            wait_until(lambda: pidabs.Lock(path).waiters() == 1)
            holder.tell()
            assert waiter.communicate(timeout=20)[0] == "in\n"
        finally:
            waiter.kill()
            waiter.wait()
    assert waiter.returncode == 0
