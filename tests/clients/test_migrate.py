"""`pidabs migrate` on the sources of real packages, as pip fetches them; `tox -e clients` runs it.

What has to be found is found by `ast`, which the command does not use for that: each import of an original is rewritten
or noted, and nothing else has changed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HOLD, child, wait_until

import pidabs

PACKAGES = {
    "ansible-runner==2.4.3": 1,
    "apache-airflow-core==3.3.2": 2,
    "bugwarrior==2.1.0": 3,
    "cachecontrol==0.12.14": 2,
    "cachecontrol==0.14.4": 2,
    "cibuildwheel==4.3.5": 8,
    "conda-lock==4.0.3": 1,
    "datasets==5.2.0": 4,
    "huggingface_hub==2.4.0": 2,
    "jasmin==0.11.1": 5,
    "litdata==0.2.76": 3,
    "luigi==3.8.1": 0,
    "pytest-mypy==1.1.0": 1,
    "python-daemon==3.1.2": 1,
    "python-discovery==1.9.5": 1,
    "tldextract==5.4.0": 1,
    "tox==4.67.15": 3,
    "transformers==4.50.0": 3,
    "virtualenv==21.15.8": 1,
}
"""With the number of statements that import something from an original, as `ast` finds them."""

ORIGINAL = re.compile(r"(filelock|lockfile)(\.|$)|daemon\.(pidfile|runner)(\.|$)")


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fetched")


def sources(requirement: str, fetched: Path) -> Path:
    """The package's sources, fetched once."""
    directory = fetched / requirement
    if not directory.exists():
        (directory / "archive").mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*command, "--dest", directory / "archive", requirement], check=True, timeout=300)
        (archive,) = (directory / "archive").iterdir()
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(directory / "source")
        else:
            with tarfile.open(archive) as sdist:
                sdist.extractall(
                    directory / "source", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
                )
    return directory / "source"


def migrate(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pidabs", "migrate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=300, cwd="/")


def python_files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*.py"))}


def parsed(source: bytes) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def imports(tree: ast.Module) -> Iterator[tuple[ast.stmt | ast.expr, int]]:
    """Statements and calls that import from an original, with the line of the name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.lineno for alias in node.names if ORIGINAL.match(alias.name)]
            yield from ((node, line) for line in found[:1])
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(ORIGINAL.match(name) for name in names):
                yield node, node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and ORIGINAL.match(str(node.args[0].value)):
                yield node, node.args[0].lineno


def without_imports(tree: ast.Module) -> str:
    """What is left of a tree that must not change."""

    class Remove(ast.NodeTransformer):
        def visit_Import(self, node: ast.Import) -> ast.AST:
            return ast.Pass()

        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
            return ast.Pass()

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            if isinstance(node.value, str):
                return ast.Constant(node.value.removeprefix("pidabs.compat."))
            return node

    return ast.dump(Remove().visit(tree))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("requirement", "expected"), PACKAGES.items(), ids=PACKAGES)
def test_real_sources(requirement: str, expected: int, fetched: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    shutil.copytree(sources(requirement, fetched), root)
    before = python_files(root)

    shown = migrate(root)
    assert shown.returncode == (1 if expected else 0)
    assert python_files(root) == before
    written = migrate(root, "--write")
    assert written.stderr.splitlines()[:-1] == shown.stderr.splitlines()[:-1]
    after = python_files(root)
    assert after.keys() == before.keys()
    notes = os.fsdecode(written.stderr)

    statements = 0
    for path, source in before.items():
        tree = parsed(source) if re.search(rb"filelock|lockfile|daemon", source) else None
        if tree is None:
            assert after[path] == source
            continue
        compile(after[path], path, "exec", dont_inherit=True)
        old, new = source.splitlines(), after[path].splitlines()
        assert len(old) == len(new)
        may_change = set()
        for node, line in imports(tree):
            statements += 1
            assert node.end_lineno is not None
            may_change |= set(range(node.lineno, node.end_lineno + 1))
            assert b"pidabs.compat." in new[line - 1] or f"{path}:{node.lineno}: " in notes, (path, line)
        changed = {number for number, (left, right) in enumerate(zip(old, new, strict=True), 1) if left != right}
        assert changed <= may_change
        new_tree = parsed(after[path])
        assert new_tree is not None
        assert without_imports(tree) == without_imports(new_tree)
    assert statements == expected

    again = migrate(root, "--write")
    assert (again.returncode, again.stdout) == (written.returncode, b"")
    assert python_files(root) == after
    # A diff for patch(1), too.
    for path, source in before.items():
        path.write_bytes(source)
    subprocess.run(["patch", "-p0", "--silent", "--binary"], input=shown.stdout, cwd="/", check=True, timeout=60)
    assert python_files(root) == after


# Rewritten, they work: with the sources in front of the installed package


def rewritten(requirement: str, fetched: Path, tmp_path: Path) -> str:
    root = tmp_path / "source"
    shutil.copytree(sources(requirement, fetched), root)
    migrate(root, "--write")
    return str(root)


VIRTUALENV = """
    sys.path.insert(0, sys.argv[1])
    import virtualenv
    from virtualenv.util.lock import FileLock
    assert virtualenv.__file__.startswith(sys.argv[1]) and FileLock.__module__ == "pidabs.compat.filelock"
    say("ready")
    listen()
    virtualenv.cli_run([sys.argv[2], "--no-periodic-update", "--app-data", sys.argv[3], "--quiet"])
    say("made", "filelock" in sys.modules)
"""


@pytest.mark.timeout(300)
def test_virtualenv_works_rewritten(fetched: Path, tmp_path: Path) -> None:
    root = rewritten("virtualenv==21.15.8", fetched, tmp_path)
    with ExitStack() as stack:
        makers = [
            stack.enter_context(child(VIRTUALENV, args=(root, str(tmp_path / f"env{number}"), str(tmp_path / "data"))))
            for number in range(3)
        ]
        for maker in makers:
            assert maker.read_line(60) == "ready"
        for maker in makers:
            maker.tell()
        for maker in makers:
            assert maker.read_line(120) == "made True"
    assert len(list(tmp_path.glob("env*/bin/pip"))) == 3
    assert not list((tmp_path / "data").rglob("*.lock"))


WEAK_FILE_LOCK = """
    sys.path.insert(0, sys.argv[1])
    from huggingface_hub.utils import WeakFileLock
    say("ready")
    with WeakFileLock(sys.argv[2]) as lock:
        say(type(lock).__module__, sys.modules["huggingface_hub"].__file__.startswith(sys.argv[1]))
        listen()
"""


def test_huggingface_hub_works_rewritten(fetched: Path, tmp_path: Path) -> None:
    root, path = rewritten("huggingface_hub==2.4.0", fetched, tmp_path), str(tmp_path / "x.lock")
    with child(HOLD, args=(path,)) as holder, child(WEAK_FILE_LOCK, args=(root, path)) as waiter:
        holder.expect("held")
        assert waiter.read_line(60) == "ready"
        wait_until(lambda: pidabs.Lock(path).waiters() == 1)
        holder.tell()
        assert waiter.read_line(60) == "pidabs.compat.filelock True"
    assert not os.path.exists(path)


TLDEXTRACT = """
    sys.path.insert(0, sys.argv[1])
    import tldextract.cache
    cache = tldextract.cache.DiskCache(sys.argv[2])
    print(tldextract.cache.FileLock.__module__, tldextract.__file__.startswith(sys.argv[1]))
    for _ in range(2):
        print(cache.run_and_cache(lambda: print("called") or "value", "names", {}, []))
"""


def test_tldextract_works_rewritten(fetched: Path, tmp_path: Path) -> None:
    root = rewritten("tldextract==5.4.0", fetched, tmp_path)
    with child(TLDEXTRACT, args=(root, str(tmp_path / "cache"))) as program:
        lines = [program.read_line(60) for _ in range(4)]
    assert lines == ["pidabs.compat.filelock True", "called", "value", "value"]
    assert not list((tmp_path / "cache").rglob("*.lock"))


# Unmodified, on the runner


@pytest.mark.timeout(300)
def test_virtualenv_works_on_the_runner(tmp_path: Path) -> None:
    """As a console command, and nothing else of it is ours."""
    path = str(tmp_path / "data")
    program = [sys.executable, "-P", "-m", "pidabs.compat", str(Path(sys.executable).with_name("virtualenv"))]
    options = ["--no-periodic-update", "--app-data", path, "--quiet"]
    makers = [
        subprocess.Popen([*program, str(tmp_path / f"env{number}"), *options], cwd=tmp_path, stderr=subprocess.PIPE)
        for number in range(3)
    ]
    try:
        assert [(maker.communicate(timeout=200)[1], maker.returncode) for maker in makers] == [(b"", 0)] * 3
    finally:
        for maker in makers:
            maker.kill()
            maker.wait()
    assert len(list(tmp_path.glob("env*/bin/pip"))) == 3
    assert not list((tmp_path / "data").rglob("*.lock"))


PROGRAM = """
import sys, huggingface_hub.utils
with huggingface_hub.utils.WeakFileLock(sys.argv[1]) as lock:
    print(type(lock).__module__)
"""


def test_huggingface_hub_works_on_the_runner(tmp_path: Path) -> None:
    path = str(tmp_path / "x.lock")
    (tmp_path / "program.py").write_text(PROGRAM)
    with child(HOLD, args=(path,)) as holder:
        holder.expect("held")
        command = [sys.executable, "-P", "-m", "pidabs.compat", "program.py", path]
        waiter = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: pidabs.Lock(path).waiters() == 1, deadline=60)
            holder.tell()
            assert waiter.communicate(timeout=60)[0] == "pidabs.compat.filelock\n"
        finally:
            waiter.kill()
            waiter.wait()
    assert not os.path.exists(path)
