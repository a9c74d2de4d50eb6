"""Mutation testing of pidabs/_queue.py, _handover.py and _lock.py: which changes to the code does no test notice?

    tox -e mutants -- [--minutes 25] [--workers 4] [--report FILE] [--only TEXT]

The mutations are cosmic-ray's, and one that it lacks: a statement left out.  Each is made in a copy of the package that
PYTHONPATH puts before the installed one, so nothing in the checkout changes and several can be tested at a time.  A
mutant counts as killed only when the test that failed fails again: the tests have deadlines, and machines are busy.

Left out are mutations of what is never run, such as annotations, and of each comparison all but two or three of the ten
that cosmic-ray makes.  docs/mutants.md explains the survivors.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import PythonNode

ROOT = Path(__file__).parent.parent
FILES = "_queue.py", "_handover.py", "_lock.py"
TESTS = "lock", "queue", "fork", "async", "exit", "mirror", "holder", "hostile", "sandbox", "exceptions"
"""In the order in which they are asked."""

OPERATORS = re.compile(
    r"NumberReplacer|AddNot|ExceptionReplacer|Replace(And|Or)With|Replace(True|False)With|ReplaceUnary|ZeroIteration|"
    r"ReplaceBreak|ReplaceContinue|Operator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|In_NotIn|NotIn_In|Lt_LtE|Lt_GtE|LtE_Lt|"
    r"LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt|BitOr_BitAnd|BitAnd_BitOr|Add_Sub|Sub_Add)$"
)
QUICK = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""Most mutants die in an instant; then it is pytest's start that takes the time."""

ONE_TEST = 25  # seconds; a mutant that hangs is killed by then
ALL_TESTS = 240


class LeaveOut(Operator):
    """A simple statement becomes `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if isinstance(node, PythonNode) and node.type == "simple_stmt" and self._matters(node.children[0]):
            yield node.start_pos, node.end_pos

    def _matters(self, statement: Any) -> bool:
        code = statement.get_code(include_prefix=False)
        return statement.type not in ("string", "import_name", "import_from") and code not in ("pass", "...")

    def mutate(self, node: Any, index: int) -> Any:
        [new] = get_ast("pass\n").children[:1]
        new.children[0].prefix = node.get_first_leaf().prefix
        return new

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class Mutant(NamedTuple):
    file: str
    operator: str
    line: int
    before: str
    after: str
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.operator.removeprefix('core/')}: `{self.before}` -> `{self.after}`"


def mutants(file: str) -> Iterator[Mutant]:
    code = (ROOT / "pidabs" / file).read_text(encoding="utf-8")
    seen = {meaning(code)}
    wanted = {name: get_operator(name) for name in operator_names() if OPERATORS.search(name)}
    for name, operator in {**wanted, "LeaveOut": LeaveOut}.items():
        positions = [place for node in ast_nodes(get_ast(code)) for place in operator().mutation_positions(node)]
        for occurrence, place in enumerate(positions):
            mutated = mutate_code(code, operator(), occurrence)
            if mutated is None or meaning(mutated) in seen:
                continue
            seen.add(meaning(mutated))
            old, new = next(
                pair for pair in zip(code.splitlines(), mutated.splitlines(), strict=False) if len({*pair}) > 1
            )
            yield Mutant(file, name, place[0][0], old.strip(), new.strip(), mutated)


class _Running(ast.NodeTransformer):
    """Leaves of a module what is ever run: no annotation, nothing for type checkers."""

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: Any) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return None if node.value is None else ast.Assign([node.target], self.visit(node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if ast.unparse(node.targets[0]) == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) in ("TYPE_CHECKING", "not TYPE_CHECKING") else self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not):
            return inner.operand  # "not not", in a condition
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.Compare) and type(inner.ops[0]) in _OPPOSITES:
            inner.ops[0] = _OPPOSITES[type(inner.ops[0])]()
            return inner
        return node


_OPPOSITES = {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn}
_OPPOSITES |= {ast.NotIn: ast.In, ast.GtE: ast.Lt, ast.Lt: ast.GtE}


def meaning(code: str) -> str:
    """The same for two texts that do the same."""
    return ast.dump(_Running().visit(ast.parse(code)))


def package(directory: Path) -> Path:
    """The package as it is installed, pidabs.compat in its place."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pidabs", directory / "pidabs", ignore=ignore)
    shutil.copytree(ROOT / "compat", directory / "pidabs" / "compat", ignore=ignore)
    return directory / "pidabs"


def pytest(where: Path, *arguments: str) -> tuple[int, str]:
    """Its exit status, and what it printed.  With a time limit; what hangs is stopped with all that it started."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_timeout",
    ]
    command += ["--tb=no", "-rf", f"--timeout={ONE_TEST}", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(where.parent), **QUICK},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=ALL_TESTS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # its own session: what it started and nobody else
        output, _ = process.communicate()
        return -1, output
    return process.returncode, output


def verdict(mutant: Mutant, where: Path, tests: Sequence[str]) -> str:
    """Which test kills it; empty if none does."""
    target = where / mutant.file
    original = target.read_text(encoding="utf-8")
    target.write_text(mutant.code, encoding="utf-8")
    flaky: list[str] = []
    try:
        for _ in range(4):
            status, output = pytest(where, *tests, *(f"--deselect={test}" for test in flaky))
            if status == 0:
                return ""
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
            if not failed:  # it hung, or cannot even be imported
                return f"exit status {status}"
            if pytest(where, failed[0])[0] != 0:
                return failed[0].removeprefix("tests/")
            flaky.append(failed[0])
        return ""
    finally:
        target.write_text(original, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--workers", type=int, default=4, help="the tests mostly wait")
    parser.add_argument("--report", type=Path, help="written as it goes; what it has already is not tested again")
    parser.add_argument("--only", default="", help="mutants whose description contains this text")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="which of tests/test_*.py")
    parser.add_argument("--list", action="store_true", help="show the mutants, and test none")
    options = parser.parse_args()
    todo = [mutant for file in FILES for mutant in mutants(file) if options.only in str(mutant)]
    if options.list:
        print(*todo, len(todo), sep="\n")
        return 0
    known = options.report.read_text() if options.report and options.report.exists() else ""
    todo = [mutant for mutant in todo if f" {mutant}  " not in known]
    # So that a run that is cut short has seen something of all.
    todo.sort(key=lambda mutant: zlib.crc32(str(mutant).encode()))
    tests = [f"tests/test_{name}.py" for name in options.tests]
    end = time.monotonic() + options.minutes * 60
    survivors: list[Mutant] = []
    tested = 0
    with tempfile.TemporaryDirectory(prefix="pidabs-mutants-") as directory:
        places: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.workers):
            places.put(package(Path(directory) / str(number)))
        where = places.get()
        if failed := verdict(todo[0]._replace(code=(where / todo[0].file).read_text(encoding="utf-8")), where, tests):
            sys.exit(f"fails without any mutation: {failed}")
        places.put(where)

        def judge(mutant: Mutant) -> tuple[Mutant, str | None]:
            if time.monotonic() > end:
                return mutant, None
            where = places.get()
            try:
                return mutant, verdict(mutant, where, tests)
            finally:
                places.put(where)

        with ThreadPoolExecutor(options.workers) as pool, (options.report or Path(os.devnull)).open("a") as report:
            for mutant, killer in pool.map(judge, todo):
                if killer is None:
                    continue
                tested += 1
                if not killer:
                    survivors.append(mutant)
                print(f"{'killed  ' if killer else 'SURVIVED'} {mutant}  {killer}", file=report, flush=True)
    print(f"{tested} of {len(todo)} mutants tested, {tested - len(survivors)} killed, {len(survivors)} survived:")
    print(*sorted(map(str, survivors)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
