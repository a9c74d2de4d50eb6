"""`pidabs migrate`: the imports of the originals in a program's source become those of their stand-ins.

The diff goes to stdout, for `patch -p0` or `git apply -p0`; what was found and not decided to stderr, one line each.
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
import warnings
from typing import TYPE_CHECKING

from ._codes import DONE, FAILED, UNAVAILABLE
from ._migrate_files import CarriedOver, Files, dependencies, shadowing, volumes
from ._migrate_names import MENTIONED
from ._text import complain, encodable, show

if TYPE_CHECKING:
    import argparse
    from io import FileIO

    Noted = set[tuple[int, str]]


class _CannotRead(Exception):
    """A file that is no Python, or none that we can write again as it is."""


def migrate(parsed: argparse.Namespace) -> int:
    """Show the changes, or make them with --write, and say what has to be looked at."""
    try:
        import libcst  # noqa: F401
    except ImportError:
        complain('migrate needs libcst: pip install "pidabs[migrate]"')
        return UNAVAILABLE
    files = Files(parsed.paths)
    failed = {path: str(exc.strerror) for path, exc in files.missing}
    changed = noted = 0
    uses = False
    for path in files.python:
        notes: Noted = set()
        try:
            with open(path, "rb") as file:
                source = file.read()
            if not MENTIONED.search(source):
                continue
            result, concerned = rewritten(path, source, notes)
            uses |= concerned
            if result != source and parsed.write:
                _write(path, source, result)
        except _CannotRead as exc:
            failed[path] = str(exc)
        except OSError as exc:
            failed[path] = str(exc.strerror)
        else:
            if result != source:
                changed += 1
                if parsed.write:
                    print(encodable(f"rewrote {show(path)}", sys.stdout))
                else:
                    _show_diff(path, source, result)
        noted += _say(path, notes)
    looks = [(path, dependencies) for path in files.declaring]
    if uses:
        looks += [(path, volumes) for path in files.containers]
    for path, look in looks:
        try:
            with open(path, "rb") as file:
                noted += _say(path, set(look(file.read())))
        except OSError as exc:
            failed[path] = str(exc.strerror)
    sys.stdout.flush()
    for path, why in failed.items():
        complain(f"{show(path)}: {show(why)}; left as it is")
    _sum_up(changed, noted, parsed.write)
    return FAILED if failed or (changed and not parsed.write) else DONE


def rewritten(path: str, source: bytes, notes: Noted) -> tuple[bytes, bool]:
    """The source with its imports rewritten, and whether it has to do with locks."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper

    from ._migrate_imports import Imports, ThroughDaemon
    from ._migrate_notes import Notes

    _refuse_what_is_too_deep(source)
    try:
        module = cst.parse_module(source)
        carried = CarriedOver(source, module.bytes)

        def note(line: int, text: str) -> None:
            notes.add((carried.line(line), text))

        wrapper = MetadataWrapper(module)
        through = ThroughDaemon()
        wrapper.visit(through)
        looked = Notes(note, wrapper.module)
        wrapper.visit(looked)
        imports = Imports(note, module.code.splitlines(), shadowing(path), through.found)
        result = carried.apply(wrapper.visit(imports).bytes)
        if result is None:
            raise _CannotRead("it would not be written again as it is, byte by byte")
        return result, looked.used
    except cst.ParserSyntaxError as exc:
        raise _CannotRead(f"line {exc.raw_line}: not Python as libcst knows it") from exc
    except (UnicodeError, LookupError, SyntaxError) as exc:
        raise _CannotRead(f"cannot be decoded: {exc}") from exc
    except RecursionError as exc:
        raise _CannotRead("nested too deeply") from exc


def _refuse_what_is_too_deep(source: bytes) -> None:
    """libcst's parser would overflow its stack, and end this process, where Python's raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except (MemoryError, RecursionError) as exc:
        raise _CannotRead("nested too deeply") from exc
    except (SyntaxError, ValueError) as exc:
        if "too many nested" in str(exc):
            raise _CannotRead("nested too deeply") from exc


def _write(path: str, source: bytes, result: bytes) -> None:
    """Into the file, and not a new one in its place: it may have links, an owner, a mode."""
    with open(path, "r+b", buffering=0) as file:
        try:
            _fill(file, result)
        except OSError:  # it is longer, and there is no room
            _fill(file, source)
            raise


def _fill(file: FileIO, content: bytes) -> None:
    file.seek(0)
    while content:
        content = content[file.write(content) :]
    file.truncate()


def _show_diff(path: str, source: bytes, result: bytes) -> None:
    name = os.fsencode(show(path))
    lines = difflib.diff_bytes(
        difflib.unified_diff, source.splitlines(True), result.splitlines(True), name, name, lineterm=b"\n"
    )
    output = b"".join(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in lines)
    sys.stdout.flush()
    if sys.stdout.isatty():
        for line in output.decode("utf-8", "surrogateescape").splitlines():
            print(encodable("\t".join(map(show, line.split("\t"))), sys.stdout))
    else:
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()


def _say(path: str, notes: Noted) -> int:
    for line, text in sorted(notes):
        print(f"{show(path)}:{line}: {show(text)}", file=sys.stderr)
    return len(notes)


def _sum_up(changed: int, noted: int, written: bool) -> None:
    files = f"{changed} file{'s' * (changed != 1)}"
    places = f"{noted} place{'s' * (noted != 1)} to look at"
    done = "rewritten" if written else "would change; --write does it" if changed else "would change"
    print(f"{files} {done}; {places}", file=sys.stderr)
