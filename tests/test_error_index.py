"""docs/errors.md is complete: each message that the sources raise, warn of or complain with is in it, and each class.

Of a message only its fixed parts are known, in their order; one line of the page's blocks has to have them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pages import DOCS, ROOT, blocks

import pidabs

PAGE = (DOCS / "errors.md").read_text(encoding="utf-8")
LINES = "".join(blocks(PAGE, "text")).splitlines()
SOURCES = sorted([*(ROOT / "pidabs").rglob("*.py"), *(ROOT / "compat").rglob("*.py")])

SPEAKS = {"complain", "error", "unknown", "warn", "_fail", "_show_both"}
"""Functions that are given a message."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Parts = tuple[str, ...]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def functions_of(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, Function)]


def named(name: str, path: Path) -> list[Function]:
    """The functions of this name: those of this file, or else of any."""
    here = [function for function in functions_of(path) if function.name == name]
    return here or [function for other in SOURCES for function in functions_of(other) if function.name == name]


def messages(path: Path) -> Iterator[tuple[int, Parts]]:
    """The messages of a file, by line."""
    for scope in [tree_of(path), *functions_of(path)]:
        for node in own_nodes(scope):
            said: list[ast.expr] = []
            if path.name == "_errors.py" and isinstance(node, ast.Return) and node.value is not None:
                said = [node.value]
            elif isinstance(node, ast.Raise) and node.exc is not None:
                said = [node.exc]
            elif isinstance(node, ast.Call) and (name_of(node.func) in SPEAKS or is_to_stderr(node)):
                said = node.args
            for expression in said:
                for parts in templates(expression, scope, path):
                    yield node.lineno, parts


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Without those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, Function):
            yield node
            yield from own_nodes(node)


def name_of(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def is_to_stderr(call: ast.Call) -> bool:
    return name_of(call.func) == "print" and any(
        keyword.arg == "file" and name_of(keyword.value) == "stderr" for keyword in call.keywords
    )


def templates(expression: ast.AST, scope: ast.AST, path: Path, depth: int = 0) -> Iterator[Parts]:
    """The fixed parts of each text in an expression, of the variables in it, and of what the functions return that are
    called in it."""
    if isinstance(expression, ast.Constant):
        if isinstance(expression.value, str):
            yield from worth_looking_for([expression.value])
    elif isinstance(expression, ast.JoinedStr):
        values = expression.values
        yield from worth_looking_for([v.value for v in values if isinstance(v, ast.Constant)])
        for value in values:
            if isinstance(value, ast.FormattedValue):
                yield from templates(value.value, scope, path, depth)
    elif isinstance(expression, ast.Name) and depth < 3:
        for node in [*own_nodes(scope), *tree_of(path).body]:
            if isinstance(node, ast.Assign) and any(name_of(target) == expression.id for target in node.targets):
                yield from templates(node.value, scope, path, depth + 1)
    elif isinstance(expression, ast.Call):
        for called in named(name_of(expression.func), path) if depth < 3 else ():
            for node in own_nodes(called):
                if isinstance(node, ast.Return) and node.value is not None:
                    yield from templates(node.value, called, path, depth + 1)
        for argument in expression.args:
            yield from templates(argument, scope, path, depth)
    elif isinstance(expression, ast.IfExp):
        yield from templates(expression.body, scope, path, depth)
        yield from templates(expression.orelse, scope, path, depth)
    elif isinstance(expression, ast.BinOp):
        yield from templates(expression.left, scope, path, depth)
        yield from templates(expression.right, scope, path, depth)


def worth_looking_for(texts: list[str]) -> Iterator[Parts]:
    """Without what hardly says anything: a single word may be a name, a flag or a mode."""
    parts = tuple(" ".join(text.split()) for text in texts if re.search(r"[a-zA-Z]", text))
    if sum(len(re.findall(r"[a-zA-Z]+", part)) for part in parts) > 1:
        yield parts


def is_listed(parts: Parts) -> bool:
    pattern = ".*".join(map(re.escape, parts))
    return any(re.search(pattern, line) for line in LINES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_message_is_in_the_index(path: Path) -> None:
    missing = [f"{line}: {' ... '.join(parts)}" for line, parts in messages(path) if not is_listed(parts)]
    assert not missing, "\n".join(sorted(set(missing)))


def test_the_sources_are_read() -> None:
    """A collector that finds nothing proves nothing."""
    found = {" ... ".join(parts) for path in SOURCES for _, parts in messages(path)}
    assert len(found) > 100
    assert "a lock's name must not be empty" in found
    assert "cannot wait for lock ... :" not in found
    assert "this thread holds it already, through another object" in found  # a variable
    assert "is suspended, and gets SIGTERM when it goes on; ... , or stop it with --kill" in found  # a function's


def test_each_exception_is_in_the_index() -> None:
    public = [name for name in pidabs.__all__ if isinstance(getattr(pidabs, name), type)]
    for name in public:
        if issubclass(getattr(pidabs, name), BaseException):
            assert f"`{name}`" in PAGE, name
