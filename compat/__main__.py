"""`python -m pidabs.compat PROGRAM ARGS`: run a program on our locks, unedited.

Rule: but for the locks, the program finds what it would find if Python ran it itself: sys.argv, sys.path[0], the module
`__main__`, tracebacks, the exit code.  PROGRAM is a script, a directory or zip file with a __main__.py, a console
command of this Python, by its path or found on PATH, or `-m MODULE`.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import NoReturn

from . import install

_USAGE = "usage: python -m pidabs.compat {PROGRAM | -m MODULE} [ARG ...]"


class _CannotRun(Exception):
    """Its text and exit code, which is Python's own."""


def main() -> None:
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\nRun a Python program with the locks of pidabs in place of those of filelock, lockfile and")
        print("python-daemon. The program and the Pythons that it starts need pidabs; nothing is edited.")
        return
    if words[:1] == ["--"]:
        del words[0]
    if not words or (words[0][:1] == "-" and len(words[0]) > 1 and words[:1] != ["-m"]) or words == ["-m"]:
        _fail(_USAGE, 2)
    try:
        install(children=True)
        code, filename, spec = _module(words[1], words[1:]) if words[0] == "-m" else _file(words[0], words)
    except _CannotRun as exc:
        _fail(f"pidabs.compat: {exc.args[0]}", exc.args[1])
    except RuntimeError as exc:
        _fail(f"pidabs.compat: {exc}", 1)
    _run(code, filename, spec)


def _fail(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


def _module(name: str, argv: list[str]) -> tuple[CodeType, str | None, ModuleSpec | None]:
    """As `python -m` has it: sys.path[0] is the working directory, as it is already."""
    try:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            package, spec = name, find_spec(f"{name}.__main__")
            if spec is None:
                raise _CannotRun(f"{package} is a package and has no __main__.py", 1)
    except (ImportError, ValueError, AttributeError) as exc:
        raise _CannotRun(f"cannot find {name}: {exc}", 1) from exc
    if spec is None:
        raise _CannotRun(f"no module named {name}", 1)
    sys.argv[:] = [spec.origin or name, *argv[1:]]
    return _code(spec), spec.origin, spec


def _file(program: str, argv: list[str]) -> tuple[CodeType, str | None, ModuleSpec | None]:
    path = program
    if not os.path.exists(path) and os.sep not in program:
        path = shutil.which(program) or program
    sys.argv[:] = [path, *argv[1:]]
    if os.path.isdir(path) or path.endswith((".zip", ".pyz")):
        path = os.path.abspath(path)
        _first_on_path(path)
        spec = PathFinder.find_spec("__main__", [path])
        if spec is None:
            raise _CannotRun(f"cannot find a __main__ in {program}", 1)
        return _code(spec), spec.origin, spec
    full = os.path.abspath(path)
    try:
        with io.open_code(full) as file:
            source = file.read()
    except OSError as exc:
        raise _CannotRun(f"cannot open {path}: {exc.strerror}", 2) from exc
    _first_on_path(os.path.dirname(os.path.realpath(path)))
    if path.endswith(".pyc"):
        return _compiled(full), full, None
    if source[:4] == b"\x7fELF":
        raise _CannotRun(f"{path} is no Python program", 2)
    _check_interpreter(path, source)
    try:
        return compile(source, full, "exec", dont_inherit=True), full, None
    except (SyntaxError, ValueError) as exc:
        sys.excepthook(type(exc), exc.with_traceback(None), None)
        sys.exit(1)


def _first_on_path(directory: str) -> None:
    """Instead of the working directory, which `-m` has put there, unless it was told not to."""
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
        sys.path[0:1] = [directory]


def _compiled(path: str) -> CodeType:
    code = SourcelessFileLoader("__main__", path).get_code("__main__")
    assert code is not None
    return code


def _code(spec: ModuleSpec) -> CodeType:
    try:
        code: CodeType | None = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    except (AttributeError, ImportError) as exc:
        raise _CannotRun(f"{spec.name} cannot be run: {exc}", 1) from exc
    if code is None:
        raise _CannotRun(f"{spec.name} has no Python code", 1)
    return code


def _check_interpreter(path: str, source: bytes) -> None:
    """A console command of another Python would not find its packages in this one."""
    first, _, rest = source.partition(b"\n")
    if first[:2] != b"#!":
        return
    words = first[2:].split() or [b""]
    if words[0] == b"/bin/sh" and rest.startswith(b"'''exec' "):  # pip's, where the path is long or has spaces
        words = [rest.split(b"'''exec' ", 1)[1].split(b' "$0"', 1)[0].strip(b'"')]
    elif os.path.basename(words[0]) == b"env":
        words = [word for word in words[1:] if word[:1] != b"-" and b"=" not in word][:1] or [b""]
        if os.path.basename(words[0]).startswith(b"py"):
            return
    interpreter = os.fsdecode(words[0])
    if "py" not in os.path.basename(interpreter):
        raise _CannotRun(f"{path} is no Python program but one for {interpreter or 'nothing'}", 2)
    if os.path.isabs(interpreter) and _environment(interpreter) != _environment(sys.executable):
        raise _CannotRun(
            f"{path} is a program of another Python; install pidabs there and run "
            f"{interpreter} -m pidabs.compat {path}",
            2,
        )


def _environment(interpreter: str) -> str:
    """A virtual environment is known by the directory of its python, which is a symlink."""
    directory = os.path.realpath(os.path.dirname(interpreter))
    own = os.path.exists(os.path.join(os.path.dirname(directory), "pyvenv.cfg"))
    return directory if own else os.path.dirname(os.path.realpath(interpreter))


def _run(code: CodeType, filename: str | None, spec: ModuleSpec | None) -> None:
    """Run it as `__main__`, which it stays to the very end: threads and pickles may look for it after its last line."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__file__=filename, __cached__=None, __package__=None, __builtins__=__builtins__)
    if spec is None:
        main.__dict__["__loader__"] = SourceFileLoader("__main__", filename or "")
    else:
        main.__dict__.update(__spec__=spec, __package__=spec.parent, __loader__=spec.loader, __cached__=spec.cached)
    try:
        exec(code, main.__dict__)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        trace = exc.__traceback__
        shown = exc.with_traceback(trace and trace.tb_next)  # without our own line
        sys.excepthook(type(shown), shown, shown.__traceback__)
        sys.exit(1)


if __name__ == "__main__":
    main()
