"""The project itself: what the wheel holds, what is public, who imports whom, and what `import pidabs` costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from types import FrameType

import pytest

import pidabs

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "pidabs").rglob("*.py")) + sorted((ROOT / "compat").rglob("*.py"))

CHEAP = {
    "__future__",
    "_blake2",
    "_functools",
    "_operator",
    "_socket",
    "_struct",
    "_weakref",
    "atexit",
    "errno",
    "fcntl",
    "select",
    "struct",
}
"""What `import pidabs` may load of the standard library beside what a bare interpreter has: under a millisecond in all.

Not socket, hashlib, typing, threading, asyncio, signal, subprocess, contextlib, warnings: some take 10 ms."""

LONGEST = 300


def module_name(path: Path) -> str:
    base = ROOT if path.is_relative_to(ROOT / "pidabs") else ROOT / "compat"
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(("pidabs.compat", *parts) if base != ROOT else parts).removesuffix(".__init__")


def is_private(path: Path) -> bool:
    return any(part.startswith("_") and part != "__init__" for part in module_name(path).split("."))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_tests_run_against_what_is_installed() -> None:
    """Under tox that is the wheel: a checkout that shadowed it would hide what the wheel lacks."""
    compat = importlib.import_module("pidabs.compat")
    if "TOX_ENV_DIR" in os.environ:
        for module in pidabs, compat:
            assert Path(str(module.__file__)).is_relative_to(os.environ["TOX_ENV_DIR"])


@pytest.mark.skipif("TOX_ENV_DIR" not in os.environ, reason="needs the built wheel, which tox installs")
def test_the_wheel_holds_the_sources_and_nothing_else() -> None:
    files = distribution("pidabs").files
    assert files is not None
    installed = {str(file) for file in files if file.parts[0] == "pidabs" and file.suffix != ".pyc"}
    expected = {re.sub("^compat/", "pidabs/compat/", str(path.relative_to(ROOT))) for path in SOURCES}
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "pidabs" / "cli" / "completions").iterdir()}
    assert installed == expected | scripts | {"pidabs/py.typed"}
    tops = {file.parts[0] for file in files if ".." not in file.parts}
    assert tops == {"pidabs", f"pidabs-{distribution('pidabs').version}.dist-info"}
    assert any(file.name == "LICENSE" for file in files)


def test_at_most_a_dozen_names_are_public() -> None:
    assert len(pidabs.__all__) <= 12


@pytest.mark.parametrize("path", [path for path in SOURCES if not is_private(path)], ids=name_of)
def test_public_names_exist(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name


def test_nothing_else_looks_public() -> None:
    public = {name for name, value in vars(pidabs).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public == set(pidabs.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_module_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def layout() -> list[str]:
    """The files of the `General layout` in pidabs/__init__.py, in order."""
    header = (ROOT / "pidabs" / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    return re.findall(r"^    (\w+)/? {2,}", header, re.MULTILINE)


def test_the_layout_names_each_file() -> None:
    found = {
        path.stem for path in (ROOT / "pidabs").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(layout()) == found - {"__init__", "__main__"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "pidabs")], ids=name_of)
def test_each_file_imports_only_what_stands_above_it(path: Path) -> None:
    files = layout()
    unit = path.relative_to(ROOT / "pidabs").parts[0].removesuffix(".py")
    above = set(files[: files.index(unit)] if unit in files else files)  # __init__ and __main__ see all
    inside_cli = path.parent.name == "cli"
    for module in sorted(imported(path)):
        package, _, rest = module.partition(".")
        if package != "pidabs":
            continue
        first = rest.partition(".")[0]
        assert first in above or (inside_cli and (first == "cli" or first in pidabs.__all__)), module


INTEROP_TOO = {"_descriptors.guard", "_descriptors.release_guard", "_linux.lift_file"}
"""What opens files has to share the guard that forks hold."""


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "compat")], ids=name_of)
def test_compat_uses_only_what_is_public(path: Path) -> None:
    for module in sorted(imported(path)):
        package, _, rest = module.partition(".")
        if package == "pidabs":
            allowed = path.name == "_interop.py" and rest in INTEROP_TOO
            assert allowed or rest in pidabs.__all__ or rest.startswith("compat."), module


def imported(path: Path) -> set[str]:
    """What a file imports when it runs, as dotted names: `from ._x import y` gives pidabs._x.y."""
    found = set()
    for node in without_typing(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = module_name(path)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def without_typing(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but for the bodies of `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from without_typing(node)


def test_import_pidabs_is_cheap() -> None:
    # Without site, whose .pth files load much themselves; but it is site that loads os in every interpreter.
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(pidabs.__file__).parent.parent)!r})
before = set(sys.modules)
import pidabs
print(*sorted(name for name in set(sys.modules) - before if name.partition('.')[0] != 'pidabs'))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(done.stdout.split()) <= CHEAP


def test_uncontended_acquire_takes_a_short_way(name: str) -> None:
    """At most 4 files and 12 functions of ours, so that it can be followed, and stays fast."""
    ours = str(Path(pidabs.__file__).parent)
    called = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            called.append((frame.f_code.co_filename, frame.f_code.co_name))

    lock = pidabs.Lock(name)
    sys.setprofile(note)
    try:
        lock.acquire(timeout=1)
    finally:
        sys.setprofile(None)
    lock.release()
    assert 1 < len({file for file, _ in called}) <= 4
    assert 1 < len(called) <= 12
